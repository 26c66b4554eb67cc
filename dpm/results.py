"""The rows of Tables 1 and 2, measured: K on held-out data, what it lacks, and what made the number."""

import math
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from dpm.baselines import MCGSM, causal_windows, fit_mcgsm, full_gaussian, log_pixels, parzen
from dpm.bound import (
    NEIGHBOURS,
    Bound,
    bits_per_dimension,
    evaluate,
    evaluate_some,
    in_bits,
    kl_above,
    log_null,
    mean_and_error,
    per_sample,
)
from dpm.datasets import Images, patches
from dpm.entropy import log_density
from dpm.experiments import Experiment
from dpm.files import UserError
from dpm.forward import Binomial, Chain, everywhere
from dpm.networks import cost, peak
from dpm.optimum import Optimum, exact_K
from dpm.reverse import Diffusion, redraw, sample
from dpm.train import Objective

COMPARED = 4_000  # held-out samples on which a model and the optimum meet the same noise
AT_ONCE = 100_000  # pixels of pictures; more do not fit the caches
LOOKS = 20_000  # at pictures in each of two rounds, over steps t; at least five at each


def held_out(experiment: Experiment, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Fresh samples for evaluation, which no run of `train` with a seed below 10 000 has drawn."""
    return experiment.held_out(Generator(device).manual_seed(10_000 + seed))


def report(experiment: Experiment, model: Diffusion, seed: int = 0) -> dict:
    """The row of Table 1: K of (14) on held-out data, its parts, L_null, in bits a point, a sequence or a pixel."""
    q = model.q()
    x0 = held_out(experiment, seed, q.beta.device)
    generator = Generator(q.beta.device).manual_seed(seed)
    if experiment.images:
        bound = two_rounds(model, x0, generator)
    else:
        bound = joined([evaluate(model.p, q, some, generator) for some in x0.split(COMPARED)])

    def unit(nats: Tensor) -> Tensor:
        return in_bits(nats) / experiment.pixels

    rounds = unit(bound.K).view(-1, len(x0))
    each = rounds.mean(0)
    K, error = mean_and_error(each)
    if experiment.images:
        error = error_of_rows(each)
    null = float(unit(log_null(q, x0)).mean())
    row = {
        "experiment": experiment.name,
        "K_bits": K,
        "K_stderr_bits": error,
        "unit": experiment.unit,
        "L_null_bits": null,
        "K_minus_L_null_bits": K - null,
        "parts_bits": {part: float(unit(nats).mean()) for part, nats in vars(bound).items()},
        "T": q.T,
        "held_out": len(x0),
        "paper": experiment.paper,
    }
    if experiment.optimum:
        row |= against_optimum(experiment.optimum, q, x0, bound.K[:COMPARED], K, generator, seed)
    if experiment.images:
        row |= as_pictures(experiment.images(q.beta.device), K)
        row |= {"K_draws_stderr_bits": error_of_draws(*rounds)}
    return row


def as_pictures(images: Images, K: float) -> dict:
    """What belongs to a likelihood of pictures: bits a dimension, the scale that leads there, the data's own label."""
    row = {"bits_per_dimension": bits_per_dimension(K, images.train.shape[1], images.scale)}
    row |= {"shift_levels": images.shift, "scale_levels": images.scale}
    return row | ({"label": images.label} if images.label else {})


def joined(bounds: list[Bound]) -> Bound:
    """(14) of several batches as of one."""
    return Bound(*(torch.cat(parts) for parts in zip(*(vars(bound).values() for bound in bounds), strict=True)))


def two_rounds(model: Diffusion, x0: Tensor, generator: Generator) -> Bound:
    """(14) of all pictures x⁰, and once more with other t and other noise, [2·n]."""
    measure = partial(evaluate_some, times=max(5, math.ceil(LOOKS / len(x0))))
    whole_rows = math.ceil(shown_at_once(x0) / NEIGHBOURS) * NEIGHBOURS
    return joined([measure(model.p, model.q(), some, generator) for some in x0.split(whole_rows) * 2])


def shown_at_once(x: Tensor) -> int:
    """How many pictures of this size [.., C, H, W] a network is shown at once, where memory is not the limit."""
    return max(1, AT_ONCE // x.shape[-2:].numel())


def error_of_draws(first: Tensor, second: Tensor) -> float:
    """Standard error of the mean K of these very pictures, [n] from either of two rounds: what other t and other noise
    would change, where the standard error beside K is of other pictures."""
    return error_of_rows((first - second) / 2)  # varies as their mean does


def error_of_rows(bits: Tensor) -> float:
    """Standard error of the mean of [n], from the means of rows of pictures that share out their steps."""
    _, error = mean_and_error(torch.stack([row.mean() for row in bits.split(NEIGHBOURS)]))
    return error


def against_optimum(p: Optimum, q: Chain, x0: Tensor, first: Tensor, K: float, generator: Generator, seed: int) -> dict:
    """K*, −H(X⁰), and what K lacks of it in three parts.

    The gap K* − K is a mean difference on the `first` samples with the same noise, which varies far less than either;
    K* is exact where all states can be counted, and K plus the gap elsewhere.
    """
    best = evaluate(p, q, x0[:COMPARED], Generator(x0.device).manual_seed(seed)).K
    gap, gap_error = mean_and_error(in_bits(best - first))
    truth = float(in_bits(torch.cat([p.log_probability(some) for some in x0.split(COMPARED)])).mean())
    counted = exact_K(p, Binomial(q.beta.cpu(), q.rate)) if isinstance(q, Binomial) else None  # where its points are
    best_K = K + gap if counted is None else float(in_bits(counted))
    edges = [lost_at_the_edge(p, q, some, generator) for some in x0.split(COMPARED)]
    edge, edge_error = mean_and_error(in_bits(torch.cat(edges)))
    return {
        "K_optimum_bits": best_K,
        "gap_bits": gap,
        "gap_stderr_bits": gap_error,
        "minus_entropy_bits": truth,
        "lost_bits": {"edge": edge, "kernel_and_schedule": truth - best_K - edge, "training": gap},
        "edge_stderr_bits": edge_error,
    }


def rivals(images: Images, model: Diffusion, generator: Generator) -> dict:
    """Table 2's MCGSM and a full-covariance Gaussian of 8×8 patches, fitted to 400 grey training pictures and measured
    on all that are held out, in bits a pixel; and what the model's K is above the MCGSM, picture by picture."""
    train, test = images.draw(400, generator), images.held_out(generator)
    windows = causal_windows(train).flatten(0, 1)
    mcgsm = fit_mcgsm(MCGSM(windows, generator), windows, generator)
    gaussian, squares = full_gaussian(patches(train, 8)), patches(test, 8)
    scores = {"mcgsm": log_pixels(mcgsm, test)}
    scores["gaussian"] = gaussian.log_prob(squares.flatten(1)).view(len(test), -1).mean(1) / squares[0].numel()
    K = two_rounds(model, test, generator).K.view(2, -1).mean(0)
    scores["K_over_mcgsm"] = K / test[0].numel() - scores["mcgsm"]
    return {f"{name}_{key}": value for name, score in scores.items() for key, value in in_row(score).items()}


def in_row(nats: Tensor) -> dict[str, float]:
    """Mean and standard error, in bits."""
    mean, error = mean_and_error(in_bits(nats))
    return {"bits": mean, "stderr_bits": error}


def parzen_table(images: Images, validation: Tensor, model: Diffusion, q: Chain, n: int, generator: Generator) -> dict:
    """Table 2 for MNIST: the estimate of n samples, of as many training digits, and what lies between the two.

    `perfect_bits_of` fewer digits tells what their number is worth. `redrawn_bits` are of the fewest digits, taken by q
    to x^t and back by p; what they lose is lost below t. `kl_above_bits` is what (14) has above t, bits a picture.
    UserError when there are fewer training digits than n, or too few to take an eighth of them.
    """
    if not 8 <= n <= len(images.train):
        raise UserError(f"-n {n}: give 8 to {len(images.train)}, the training digits to hold samples against")

    def several(measure: Callable[..., Tensor], x: Tensor, *step: int) -> Tensor:
        batches = tqdm(x.split(shown_at_once(x)), unit="batch")
        return torch.cat([measure(model.p, q, some, *step, generator) for some in batches])

    def bits(samples: Tensor) -> float:
        return parzen_row(images, samples, validation)["parzen_bits"]

    order = torch.randperm(len(images.train), generator=generator, device=generator.device)
    digits, held_out = images.blurred(images.train[order[:n]], generator).float(), images.held_out(generator)
    half, quarter, few = (n // part for part in (2, 4, 8))
    steps = [q.T * tenths // 10 for tenths in (6, 7, 8, 9)]
    row: dict = {"T": q.T, "n": n} | parzen_row(images, several(sample, digits), validation)
    row |= {f"perfect_{name}": value for name, value in parzen_row(images, digits, validation).items()}
    row["perfect_bits_of"] = {some: bits(digits[:some]) for some in (half, quarter, few)}
    row["redrawn_bits"] = {t: bits(several(redraw, digits[:few], t)) for t in steps}
    row["kl_above_bits"] = {t: float(in_bits(several(kl_above, held_out, t)).mean()) for t in steps}
    return row


def parzen_row(images: Images, samples: Tensor, validation: Tensor) -> dict[str, float]:
    """Table 2's Parzen estimate for samples of x⁰ [n, C, H, W], by the published protocol: pictures in [0, 1]."""

    def shades(x: Tensor) -> Tensor:
        return x.flatten(1).double() / 255

    levels = (samples * images.scale + images.shift - 0.5).clamp(0, 255)  # 0.5: the mean of the noise of one level
    sigma, log_p = parzen(shades(levels), shades(validation[:1000]), shades(images.test))
    return {f"parzen_{key}": value for key, value in in_row(log_p).items()} | {"parzen_sigma": sigma}


def lost_at_the_edge(p: Optimum, q: Chain, x0: Tensor, generator: Generator) -> Tensor:
    """KL( q(x⁰|x¹) ‖ p(x⁰|x¹) ) of the edge step (44), [B] nats whose mean is H_q(X¹|X⁰) − H_q(X⁰|X¹) for data that π
    knows: of both its logarithms q(x¹|x⁰) is a factor, and its analytic mean takes the noise out."""
    steps = everywhere(1, x0)
    law = q.step(x0, steps)
    x1 = law.at(q.noise(x0, generator))
    about_x0 = p.log_probability(x0) + per_sample(law.log_prob(x1)) - log_density(q, p.points.to(x1), x1, 1, p.variance)
    return about_x0 + per_sample(law.entropy()) + log_null(q, x1) - log_null(q, x0)


def pace(
    model: Diffusion, like: Tensor, samples: int, seconds: float, precision: torch.dtype, processes: int
) -> dict[str, float]:
    """Samples like this one trained on a second, and the share that this was of what the machines can multiply."""
    x0, q = like.float(), model.q()
    adds, _ = cost(Objective(model), x0, everywhere(2, x0), q.noise(x0, Generator(x0.device)))
    rate, most = samples / seconds, processes * peak(x0.device, precision)
    return {"samples_per_second": rate, "fraction_of_peak": 3 * adds * rate / most}  # a gradient costs twice its value


def command_line() -> str:
    """The command that this process was given."""
    return " ".join(["dpm", *sys.argv[1:]])


def provenance(seed: int, device: torch.device, processes: int = 1) -> dict:
    """What made a result: command, seed, devices, versions, git revision, date."""
    cuda, threads = device.type == "cuda", torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if cuda else f"cpu, {threads} thread{'s' * (threads > 1)}"
    return {
        "command": command_line(),
        "seed": seed,
        "device": name if processes == 1 else f"{processes} × {name}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "revision": revision(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def revision() -> str:
    """The git revision of the source, with a + when it has been changed since; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        git = partial(subprocess.run, cwd=here, capture_output=True, text=True, check=True)
        changed = "+" if git(["git", "status", "--porcelain", "--", "."]).stdout else ""
        return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
