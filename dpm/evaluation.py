"""A row of Tables 1 and 2, measured: K on held-out data, what it lacks of K*, and what it is compared with."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from dpm.baselines import fitted_mcgsm_log_prob, parzen, patch_gaussian_log_prob
from dpm.bound import (
    STRATUM_SIZE,
    Bound,
    EvidenceBound,
    KLProfile,
    PaperBound,
    evaluate,
    evaluate_subsampled,
    first_learned_timestep,
    kl_above,
    kl_profile,
    log_null,
    step_kl,
    stratified_timesteps,
)
from dpm.data.images import ImageDataset
from dpm.distributions import kl_divergence
from dpm.entropy import entropy_lower_bound
from dpm.errors import UserError
from dpm.experiments.base import Experiment
from dpm.forward import ForwardProcess, sum_except_batch
from dpm.ideal import IdealReverse, enumerate_entropy, enumerate_ideal_K
from dpm.reverse import DiffusionModel, ReverseModel, has_edge_step, noise_and_denoise, reverse_step, sample
from dpm.units import bits_per_dimension, mean_and_stderr, to_bits

SAMPLE_BATCH = 4_000  # points or sequences in one batch
N_ROUNDS = 4  # of averages over q, whose spread is their error
HELD_OUT_SAMPLES = 4_000  # on which K is estimated where it is known better from K*
HELD_OUT_TIMESTEPS = 50  # for each of them
PROGRESS_AFTER = 2  # seconds after which a bar is shown
MAX_PIXELS = 100_000  # pixels of pictures in one batch; more do not fit the caches of a CPU
N_EVALUATIONS = 10_000  # evaluations of the network per round, over pictures and timesteps
N_PILOT = 1_000  # evaluations of the network by which timesteps are shared out
MIN_TIMESTEPS = 2  # per picture and round, however many pictures there are


def held_out_data(experiment: Experiment, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """x⁰ for evaluation, from a generator that no training run with a seed below 10 000 has used."""
    return experiment.held_out_data(Generator(device).manual_seed(10_000 + seed))


def evaluate_experiment(experiment: Experiment, model: DiffusionModel, seed: int = 0) -> dict:
    """The row of Table 1: K on held-out data, its parts and L_null, in bits per point, per sequence or per pixel.

    Where the ideal reverse model is known, K is K* less the gap to it, both averaged over q itself, which is far more
    precise; K on the held-out data stands beside it.
    """
    q = model.forward_process()
    x0 = held_out_data(experiment, seed, q.beta.device)
    generator = Generator(q.beta.device).manual_seed(seed)
    row: dict = {"experiment": experiment.name, "unit": experiment.unit, "T": q.T, "paper": experiment.paper}
    if experiment.ideal:
        prior = experiment.forward_process(q.T)  # π of Table 1, whatever the kernel of the model
        return row | evaluate_beside_ideal(experiment.ideal, model.p, q, prior, x0[:HELD_OUT_SAMPLES], generator)

    def in_unit(nats: Tensor) -> Tensor:
        return to_bits(nats) / experiment.n_pixels

    images = experiment.images(q.beta.device) if experiment.images else None
    bound = evaluate_twice(model, x0, generator) if images else evaluate_all(model, x0, generator)
    rounds = in_unit(bound.K).view(-1, len(x0))
    K_per_sample = rounds.mean(0)
    K, stderr = mean_and_stderr(K_per_sample)
    if images:
        stderr = stderr_of_strata(images.mean_per_photograph(K_per_sample))
    L_null = float(in_unit(log_null(q, x0)).mean())
    row |= {"K_bits": K, "K_stderr_bits": stderr, "L_null_bits": L_null, "K_minus_L_null_bits": K - L_null}
    row |= {"parts_bits": {part: float(in_unit(nats).mean()) for part, nats in vars(bound).items()}}
    row |= {"held_out": len(x0)}
    if images:
        row |= image_units(images, K) | {"K_draws_stderr_bits": stderr_of_draws(*rounds)}
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


def evaluate_all(model: DiffusionModel, x0: Tensor, generator: Generator) -> Bound:
    """K of all samples x⁰ [n, …], every timestep for each of them."""
    q = model.forward_process()
    return concatenate_bounds([evaluate(model.p, q, batch, generator) for batch in x0.split(SAMPLE_BATCH)])


def image_batch_size(x: Tensor) -> int:
    """How many pictures of this size [.., C, H, W] go through a network at once, where memory is not the limit."""
    return max(1, MAX_PIXELS // x.shape[-2:].numel())


def evaluate_twice(model: DiffusionModel, x0: Tensor, generator: Generator) -> Bound:
    """K of all pictures x⁰ [n, …] by subsampled timesteps, then again with other timesteps and other noise: [2·n].

    Timesteps are drawn in proportion to the spread of their KL terms, which a pilot estimates.
    """
    n_timesteps = max(MIN_TIMESTEPS, math.ceil(N_EVALUATIONS / len(x0)))
    batch = math.ceil(image_batch_size(x0) / STRATUM_SIZE) * STRATUM_SIZE  # whole strata
    q = model.forward_process()
    profile = pilot_profile(model.p, q, x0, generator)
    batches = tqdm([*x0.split(batch)] * 2, unit="batch", delay=PROGRESS_AFTER)
    return concatenate_bounds([evaluate_subsampled(model.p, q, x, generator, n_timesteps, profile) for x in batches])


@torch.no_grad()
def pilot_profile(p: ReverseModel, q: ForwardProcess, x0: Tensor, generator: Generator) -> KLProfile:
    """Mean and spread of the KL terms over t, from N_PILOT draws of pictures x⁰ [n, …] and of timesteps."""
    index = torch.randint(len(x0), (N_PILOT,), generator=generator, device=x0.device)
    t = stratified_timesteps(N_PILOT, q.T, generator)
    batches = zip(*(values.split(image_batch_size(x0)) for values in (index, t)), strict=True)
    kl = [step_kl(p, q, x0[i], s, q.sample_noise(x0[i], generator)) for i, s in batches]
    return kl_profile(t, torch.cat(kl), q.T)


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


@torch.no_grad()
def evaluate_beside_ideal(
    ideal: IdealReverse, p: ReverseModel, q: ForwardProcess, prior: ForwardProcess, x0: Tensor, generator: Generator
) -> dict:
    """K of p, K* of the ideal reverse model of p's form, −H(X⁰), and what K lacks of it in three parts, in bits.

    Standard errors are of N_ROUNDS rounds; K* and the entropies of the data have none where all states can be
    enumerated. `prior` is the process whose π gives L_null. K on held-out x⁰ [n, D] by (14) alone is a check.
    """
    entropies, gaps = torch.zeros(2, N_ROUNDS, q.T + 1, dtype=torch.float64, device=q.beta.device)
    steps = list(product(range(N_ROUNDS), range(first_learned_timestep(p, q), q.T + 1)))
    for k, t in tqdm(steps, unit="step", delay=PROGRESS_AFTER):
        entropies[k, t], gaps[k, t] = reverse_step_terms(ideal, p, q, t, generator)
    exact = enumerate_ideal_K(ideal, q.with_beta(q.beta.cpu()))  # on the device of its points
    sampled = mean_bound(ideal, p, q, entropies).K
    ideal_K, gap = (sampled if exact is None else exact.to(sampled)).expand(N_ROUNDS), gaps.sum(1)
    bound = mean_bound(ideal, p, q, entropies + gaps)
    bound = replace(bound, kl=bound.kl + bound.K - (ideal_K - gap))  # what is exact in K* is exact in the parts
    minus_entropy = -estimate_entropy(ideal, q, 0, generator)
    edge = edge_step_loss(ideal, q, generator) if has_edge_step(p, q) else torch.zeros_like(minus_entropy)
    held_out = evaluate_subsampled(p, q, x0, generator, min(q.T - 1, HELD_OUT_TIMESTEPS)).K
    L_null = -float(to_bits(prior_cross_entropy(ideal, prior, 0)))
    return {
        **summarize("K", bound.K),
        "L_null_bits": L_null,
        "K_minus_L_null_bits": float(to_bits(bound.K).mean()) - L_null,
        "parts_bits": {part: float(to_bits(nats).mean()) for part, nats in vars(bound).items()},
        **summarize("K_optimum", ideal_K),
        **summarize("gap", gap),
        **summarize("minus_entropy", minus_entropy),
        "lost_bits": {
            "edge": float(to_bits(edge).mean()),
            "kernel_and_schedule": float(to_bits(minus_entropy - ideal_K - edge).mean()),
            "training": float(to_bits(gap).mean()),
        },
        "edge_stderr_bits": mean_and_stderr(to_bits(edge))[1],
        "K_held_out_bits": float(to_bits(held_out).mean()),
        "K_held_out_stderr_bits": stderr_of_strata(to_bits(held_out)),
        "held_out": len(x0),
    }


def reverse_step_terms(
    ideal: IdealReverse, p: ReverseModel, q: ForwardProcess, t: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """E H[p*(x^{t−1}|x^t)] and E KL( p*(x^{t−1}|x^t) ‖ p(x^{t−1}|x^t) ) over q(x^t), nats.

    The KL is what K of p lacks of K* at t. It is so because log p is linear in the moments of x^{t−1} that p* has from
    q: p* has to be of the form of p.
    """
    xt, weights = ideal.sample_marginal(q, t, generator)
    best, own = reverse_step(ideal, q, xt, t), reverse_step(p, q, xt, t)
    return weights @ sum_except_batch(best.entropy()), weights @ sum_except_batch(kl_divergence(best, own))


def mean_bound(ideal: IdealReverse, p: ReverseModel, q: ForwardProcess, terms: Tensor) -> Bound:
    """K in parts, averaged over the data, from E −log p(x^{t−1}|x^t) at each t [rounds, T+1]: [rounds] nats each."""
    points, weights = ideal.points.to(q.beta), ideal.weights.to(q.beta)
    posterior_entropy = sum(entropy_lower_bound(q, points, t) @ weights for t in range(2, q.T + 1))
    kl = terms[:, 2:].sum(1) - posterior_entropy
    if has_edge_step(p, q):
        return PaperBound(kl, *(entropy @ weights for entropy in q.entropy_constants(points)))
    entropy_T = sum_except_batch(q.marginal(points, q.T).entropy()) @ weights
    return EvidenceBound(terms[:, 1], kl, prior_cross_entropy(ideal, q, q.T) - entropy_T)


def prior_cross_entropy(ideal: IdealReverse, q: ForwardProcess, t: int) -> Tensor:
    """−E log π(x^t), nats."""
    points, weights = ideal.points.to(q.beta), ideal.weights.to(q.beta)
    marginal = q.blurred_marginal(points, ideal.variance, t)
    return sum_except_batch(marginal.cross_entropy(q.prior(points))) @ weights


def estimate_entropy(ideal: IdealReverse, q: ForwardProcess, t: int, generator: Generator) -> Tensor:
    """H_q(X^t), [N_ROUNDS] nats: estimates, which agree where all states can be enumerated."""
    exact = enumerate_entropy(ideal, q.with_beta(q.beta.cpu()), t)
    if exact is not None:
        return exact.to(q.beta).expand(N_ROUNDS)
    samples = (ideal.sample_marginal(q, t, generator) for _ in range(N_ROUNDS))
    return torch.stack([-(weights @ ideal.log_marginal(q, xt, t)) for xt, weights in samples])


def edge_step_loss(ideal: IdealReverse, q: ForwardProcess, generator: Generator) -> Tensor:
    """E KL( q(x⁰|x¹) ‖ p(x⁰|x¹) ) of the edge step (44), [N_ROUNDS] nats.

    By detailed balance it is H(X¹) − H(X⁰) + E log π(x¹) − E log π(x⁰), of which the last two cancel for data that
    have the prior's moments.
    """
    at_0, at_1 = (estimate_entropy(ideal, q, t, generator) - prior_cross_entropy(ideal, q, t) for t in (0, 1))
    return at_1 - at_0


def compare_with_yardsticks(scores: dict[str, Tensor], K: Tensor) -> dict:
    """What other density models give the same samples, nats [n] by name, and what K [n], bits, is above each."""
    row: dict[str, float] = {}
    for name, nats in scores.items():
        over, stderr = mean_and_stderr(K - to_bits(nats))
        row |= {f"{name}_bits": float(to_bits(nats).mean())}
        row |= {f"K_over_{name}_bits": over, f"K_over_{name}_stderr_bits": stderr}
    return row


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
    independent = {name: images.mean_per_photograph(nats) for name, nats in scores.items()}
    return {key: value for name, nats in independent.items() for key, value in summarize(name, nats).items()}


def summarize(name: str, nats: Tensor) -> dict[str, float]:
    """Mean and standard error of independent values in nats, as bits under a name of the row."""
    mean, stderr = mean_and_stderr(to_bits(nats))
    return {f"{name}_bits": mean, f"{name}_stderr_bits": stderr}


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
    return summarize("parzen", log_p) | {"parzen_sigma": sigma}
