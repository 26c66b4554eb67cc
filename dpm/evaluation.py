"""A row of Tables 1 and 2, measured: K on held-out data, what it lacks of K*, and what it is compared with."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from dpm.baselines import fitted_mcgsm_log_prob, parzen, patch_gaussian_log_prob
from dpm.bound import STRATUM_SIZE, Bound, evaluate, evaluate_subsampled, kl_above, log_null
from dpm.data.images import ImageDataset
from dpm.entropy import log_marginal_density
from dpm.errors import UserError
from dpm.experiments.base import Experiment
from dpm.forward import ForwardProcess, sum_except_batch
from dpm.ideal import IdealReverse, enumerate_ideal_K
from dpm.reverse import DiffusionModel, noise_and_denoise, sample
from dpm.units import bits_per_dimension, mean_and_stderr, to_bits

N_COMPARED = 4_000  # held-out samples on which the model and the ideal model see the same noise
MAX_PIXELS = 100_000  # pixels of pictures in one batch; more do not fit the caches of a CPU
N_EVALUATIONS = 20_000  # evaluations of the network per round, over pictures and timesteps
MIN_TIMESTEPS = 5  # per picture and round, however many pictures there are


def held_out_data(experiment: Experiment, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """x⁰ for evaluation, from a generator that no training run with a seed below 10 000 has used."""
    return experiment.held_out_data(Generator(device).manual_seed(10_000 + seed))


def evaluate_experiment(experiment: Experiment, model: DiffusionModel, seed: int = 0) -> dict:
    """The row of Table 1: K on held-out data, its parts and L_null, in bits per point, per sequence or per pixel."""
    q = model.forward_process()
    x0 = held_out_data(experiment, seed, q.beta.device)
    generator = Generator(q.beta.device).manual_seed(seed)
    if experiment.images:
        bound = evaluate_twice(model, x0, generator)
    else:
        bound = concatenate_bounds([evaluate(model.p, q, batch, generator) for batch in x0.split(N_COMPARED)])

    def in_unit(nats: Tensor) -> Tensor:
        return to_bits(nats) / experiment.n_pixels

    rounds = in_unit(bound.K).view(-1, len(x0))
    K_per_sample = rounds.mean(0)
    K, stderr = mean_and_stderr(K_per_sample)
    if experiment.images:
        stderr = stderr_of_strata(K_per_sample)
    L_null = float(in_unit(log_null(q, x0)).mean())
    row = {
        "experiment": experiment.name,
        "K_bits": K,
        "K_stderr_bits": stderr,
        "unit": experiment.unit,
        "L_null_bits": L_null,
        "K_minus_L_null_bits": K - L_null,
        "parts_bits": {part: float(in_unit(nats).mean()) for part, nats in vars(bound).items()},
        "T": q.T,
        "held_out": len(x0),
        "paper": experiment.paper,
    }
    if experiment.ideal:
        row |= compare_with_ideal(experiment.ideal, q, x0, bound.K[:N_COMPARED], K, generator, seed)
    if experiment.images:
        row |= image_units(experiment.images(q.beta.device), K)
        row |= {"K_draws_stderr_bits": stderr_of_draws(*rounds)}
    if experiment.vectors:
        row |= {"K_own_units_bits": K - experiment.vectors.scale_bits, "scale_bits": experiment.vectors.scale_bits}
    if experiment.yardsticks:
        row |= compare_with_yardsticks(experiment.yardsticks(x0, generator), K_per_sample)
    return row


def image_units(images: ImageDataset, K: float) -> dict:
    """Bits per dimension, the shift and scale that lead there, and the label that the data must carry."""
    row = {"bits_per_dimension": bits_per_dimension(K, images.train.shape[1], images.scale)}
    row |= {"shift_levels": images.shift, "scale_levels": images.scale}
    return row | ({"label": images.label} if images.label else {})


# Estimators of K and of its standard error


def concatenate_bounds(bounds: list[Bound]) -> Bound:
    """K in parts of several batches, as of one batch."""
    parts = zip(*(vars(bound).values() for bound in bounds), strict=True)
    return type(bounds[0])(*(torch.cat(values) for values in parts))


def image_batch_size(x: Tensor) -> int:
    """How many pictures of this size [.., C, H, W] go through a network at once, where memory is not the limit."""
    return max(1, MAX_PIXELS // x.shape[-2:].numel())


def evaluate_twice(model: DiffusionModel, x0: Tensor, generator: Generator) -> Bound:
    """K of all pictures x⁰ [n, …] by subsampled timesteps, then again with other timesteps and other noise: [2·n]."""
    n_timesteps = max(MIN_TIMESTEPS, math.ceil(N_EVALUATIONS / len(x0)))
    batch = math.ceil(image_batch_size(x0) / STRATUM_SIZE) * STRATUM_SIZE  # whole strata
    q = model.forward_process()
    batches = [*x0.split(batch)] * 2
    return concatenate_bounds([evaluate_subsampled(model.p, q, x, generator, n_timesteps) for x in batches])


def stderr_of_strata(values: Tensor) -> float:
    """Standard error of the mean of [n] samples that share timesteps within strata, from the means of strata.

    Of fewer than ten strata it is that of independent samples: so few samples have hundreds of timesteps each, and what
    differs between them is the samples.
    """
    strata = values.split(STRATUM_SIZE) if len(values) >= 10 * STRATUM_SIZE else values
    _, stderr = mean_and_stderr(torch.stack([stratum.mean() for stratum in strata]))
    return stderr


def stderr_of_draws(first: Tensor, second: Tensor) -> float:
    """Standard error of the mean K of these very pictures over timesteps and noise, from two rounds [n] each.

    The standard error beside K is over pictures.
    """
    return stderr_of_strata((first - second) / 2)  # its variance is that of the rounds' mean


# What K is held against


def compare_with_ideal(
    p: IdealReverse, q: ForwardProcess, x0: Tensor, K_samples: Tensor, K: float, generator: Generator, seed: int
) -> dict:
    """K*, −H(X⁰), and what K lacks of it in three parts.

    The gap K* − K is a mean difference to `K_samples` [N_COMPARED] with the same noise, which varies far less than
    either. K* is exact where all states can be enumerated, and K plus the gap elsewhere.
    """
    ideal = evaluate(p, q, x0[:N_COMPARED], Generator(x0.device).manual_seed(seed)).K
    gap, gap_stderr = mean_and_stderr(to_bits(ideal - K_samples))
    minus_entropy = float(to_bits(torch.cat([p.log_prob(batch) for batch in x0.split(N_COMPARED)])).mean())
    exact = enumerate_ideal_K(p, q.with_beta(q.beta.cpu()))  # on the device of its points
    K_ideal = K + gap if exact is None else float(to_bits(exact))
    edge_losses = [edge_step_loss(p, q, batch, generator) for batch in x0.split(N_COMPARED)]
    edge, edge_stderr = mean_and_stderr(to_bits(torch.cat(edge_losses)))
    return {
        "K_optimum_bits": K_ideal,
        "gap_bits": gap,
        "gap_stderr_bits": gap_stderr,
        "minus_entropy_bits": minus_entropy,
        "lost_bits": {"edge": edge, "kernel_and_schedule": minus_entropy - K_ideal - edge, "training": gap},
        "edge_stderr_bits": edge_stderr,
    }


def compare_with_yardsticks(scores: dict[str, Tensor], K: Tensor) -> dict:
    """What other density models give the same samples, nats [n] by name, and what K [n], bits, is above each."""
    row: dict[str, float] = {}
    for name, nats in scores.items():
        over, stderr = mean_and_stderr(K - to_bits(nats))
        row |= {f"{name}_bits": float(to_bits(nats).mean())}
        row |= {f"K_over_{name}_bits": over, f"K_over_{name}_stderr_bits": stderr}
    return row


def edge_step_loss(p: IdealReverse, q: ForwardProcess, x0: Tensor, generator: Generator) -> Tensor:
    """KL( q(x⁰|x¹) ‖ p(x⁰|x¹) ) of the edge step (44), [B] nats.

    Its mean is H_q(X¹|X⁰) − H_q(X⁰|X¹) for data that have the prior's moments. Both logarithms contain log q(x¹|x⁰),
    whose analytic mean replaces its sample.
    """
    transition = q.transition(x0, 1)
    x1 = transition.reparameterize(q.sample_noise(x0, generator))
    log_q_x1 = log_marginal_density(q, p.points.to(x1), x1, 1, p.variance)
    log_posterior = p.log_prob(x0) + sum_except_batch(transition.log_prob(x1)) - log_q_x1  # log q(x⁰|x¹)
    return log_posterior + sum_except_batch(transition.entropy()) + log_null(q, x1) - log_null(q, x0)


def density_baselines(images: ImageDataset, model: DiffusionModel, generator: Generator) -> dict:
    """Table 2's rivals on grey pictures, bits per pixel: an MCGSM, and a full Gaussian of 8×8 patches.

    Both are fitted to 400 training pictures and measured on all held-out ones, as is K minus the MCGSM's score, picture
    by picture.
    """
    train, test = images.draw(400, generator), images.held_out_data(generator)
    scores = {"mcgsm": fitted_mcgsm_log_prob(train, test, generator)}
    scores["gaussian"] = patch_gaussian_log_prob(train, test)
    K = evaluate_twice(model, test, generator).K.view(2, -1).mean(0)
    scores["K_over_mcgsm"] = K / test[0].numel() - scores["mcgsm"]
    return {f"{name}_{key}": value for name, nats in scores.items() for key, value in summarize(nats).items()}


def summarize(nats: Tensor) -> dict[str, float]:
    """Mean and standard error of values in nats, as bits."""
    mean, stderr = mean_and_stderr(to_bits(nats))
    return {"bits": mean, "stderr_bits": stderr}


def parzen_table(
    images: ImageDataset, validation: Tensor, model: DiffusionModel, q: ForwardProcess, n: int, generator: Generator
) -> dict:
    """Table 2 for MNIST: the Parzen estimate of n samples and of as many training digits, and what lies between.

    `perfect_bits_of` fewer training digits says what their number is worth. `redrawn_bits` are of an eighth of the
    digits, taken by q to x^t and back by p: what they lose is lost below t. `kl_above_bits` is what (14) has above t,
    bits per picture. UserError unless 8 ≤ n ≤ the number of training digits.
    """
    if not 8 <= n <= len(images.train):
        raise UserError(f"-n {n}: give 8 to {len(images.train)}, the training digits to hold samples against")

    def in_batches(function: Callable[..., Tensor], x: Tensor, *t: int) -> Tensor:
        batches = tqdm(x.split(image_batch_size(x)), unit="batch")
        return torch.cat([function(model.p, q, batch, *t, generator) for batch in batches])

    def parzen_bits(samples: Tensor) -> float:
        return parzen_row(images, samples, validation)["parzen_bits"]

    order = torch.randperm(len(images.train), generator=generator, device=generator.device)
    digits, test = images.dequantize(images.train[order[:n]], generator).float(), images.held_out_data(generator)
    half, quarter, eighth = (n // part for part in (2, 4, 8))
    timesteps = [q.T * tenths // 10 for tenths in (6, 7, 8, 9)]
    row: dict = {"T": q.T, "n": n} | parzen_row(images, in_batches(sample, digits), validation)
    row |= {f"perfect_{name}": value for name, value in parzen_row(images, digits, validation).items()}
    row["perfect_bits_of"] = {count: parzen_bits(digits[:count]) for count in (half, quarter, eighth)}
    row["redrawn_bits"] = {t: parzen_bits(in_batches(noise_and_denoise, digits[:eighth], t)) for t in timesteps}
    row["kl_above_bits"] = {t: float(to_bits(in_batches(kl_above, test, t)).mean()) for t in timesteps}
    return row


def parzen_row(images: ImageDataset, samples: Tensor, validation: Tensor) -> dict[str, float]:
    """Table 2's Parzen estimate for samples of x⁰ [n, C, H, W], by the published protocol: pictures in [0, 1]."""

    def to_unit_interval(levels: Tensor) -> Tensor:
        return levels.flatten(1).double() / 255

    levels = (samples * images.scale + images.shift - 0.5).clamp(0, 255)  # 0.5 is the mean of the dequantisation noise
    sigma, log_p = parzen(*(to_unit_interval(x) for x in (levels, validation[:1000], images.test)))
    return {f"parzen_{key}": value for key, value in summarize(log_p).items()} | {"parzen_sigma": sigma}
