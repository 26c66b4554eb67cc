"""Bits per dimension: likelihoods that are known otherwise, and what the mistakes of other tools would make of them."""

import math

import pytest
import torch
from torch import Generator
from torch.special import entr, log_ndtr

from dpm import evaluation
from dpm.adapters import (
    PretrainedReverse,
    fixed_large,
    fixed_small,
    forward_process_from_sigma,
    learned,
    measure_x0_error,
    moment_matched,
)
from dpm.bound import evaluate, prior_kl
from dpm.distributions import Categorical, Normal
from dpm.errors import UserError
from dpm.forward import GaussianForward
from dpm.ideal import IdealMixtureReverse, IdealReverse, ideal_K
from dpm.reverse import learned_final_step
from dpm.schedules import extract, log_snr_linear
from dpm.scoring import FINAL_STEPS, Levels, WithFinalStep, score_pictures
from dpm.units import bits_per_dimension, mean_and_stderr, to_bits

STDDEV = 0.25  # of Gaussian pictures, 32 of 256 levels


def gaussian_network(q, predicts="eps"):
    """The best prediction for x⁰ ~ N(0, STDDEV²), which is linear in x^t."""

    def network(x, i):
        alpha_bar, noise_variance = extract(q.alpha_bar, i + 1, x), extract(q.noise_variance, i + 1, x)
        score = -x / (alpha_bar * STDDEV**2 + noise_variance)
        return {"eps": -noise_variance.sqrt() * score, "score": score}[predicts]

    return network


def gaussian_x0_error(q):
    """Var(x⁰|x^t) of such pictures at each t, [T+1]."""
    return STDDEV**2 * q.noise_variance / (q.alpha_bar * STDDEV**2 + q.noise_variance)


@pytest.fixture(scope="module")
def gaussian_pictures():
    """[8000, 1, 8, 8] of 256 levels, and −log₂ P of each per number, [8000]."""
    levels = Levels()
    x = STDDEV * torch.randn(8000, 1, 8, 8, generator=Generator().manual_seed(9), dtype=torch.float64)
    edges = levels.to_x(torch.arange(256)) + levels.bin_width / 2
    share = torch.diff(log_ndtr(edges / STDDEV).exp(), prepend=torch.zeros(1))
    images = ((x - levels.low) / levels.bin_width).round().to(torch.uint8)
    return images, -share.log2()[images.long()].mean((1, 2, 3))


@pytest.mark.parametrize("n_steps", [3, 12])
@pytest.mark.parametrize("final_step", FINAL_STEPS)
def test_gaussian_pictures_score_their_probability_and_what_the_prior_costs(gaussian_pictures, final_step, n_steps):
    """Reverse steps of the right mean and variance are exact here, however few, so that the bound has no gap.

    Of its parts, the prior, T − 1 KL terms and the final step, none can be left out, and there is no other.
    """
    images, truth = gaussian_pictures
    q = GaussianForward(log_snr_linear(n_steps, 1e-4, 0.5))
    p = PretrainedReverse(gaussian_network(q), "eps", moment_matched(gaussian_x0_error(q)))
    bits = score_pictures(p, q, images, Levels(), Generator().manual_seed(0), final_step)
    variance = q.alpha_bar[-1] * STDDEV**2 + q.noise_variance[-1]
    marginal_prior_kl = float(to_bits((variance - 1 - variance.log()) / 2))
    gap, stderr = mean_and_stderr(bits.total - truth)
    assert abs(gap - marginal_prior_kl) < min(3 * stderr, 0.005) and marginal_prior_kl > 0.1
    assert torch.allclose(sum(bits.parts.values()), bits.total)
    assert bits.kl.shape == (8000, n_steps + 1) and bits.kl[:, :2].abs().max() == 0
    assert min(part.mean() for part in (bits.prior, bits.final, *bits.kl.T[2:])) > 20 * stderr


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_gaussian_pictures_under_fixed_variances_by_hand(gaussian_pictures, variance):
    """Every KL is known: ½(log v/β̃ + β̃/v − 1 + c² Var(x⁰|x^t)/v), and the final step is the same at t = 1 alone."""
    images, _ = gaussian_pictures
    q, levels = GaussianForward(log_snr_linear(30, 1e-4, 0.95)), Levels()
    p = PretrainedReverse(gaussian_network(q), "eps", variance)
    bits = score_pictures(p, q, images, levels, Generator().manual_seed(0), "dequantized")
    tilde, error = q.posterior_coefficients.variance, gaussian_x0_error(q)
    chosen = {fixed_small: tilde, fixed_large: q.beta}[variance].clone()
    chosen[1] = tilde[2]
    kl = (chosen / tilde).log() + tilde / chosen - 1 + q.posterior_coefficients.x0**2 * error / chosen
    assert torch.allclose(bits.kl.mean(0)[2:], to_bits(kl[2:] / 2), rtol=0.02)
    final = ((2 * math.pi * chosen[1]).log() + error[1] / chosen[1]) / 2 - math.log(levels.bin_width)
    by_hand = {"kl": kl[2:].sum() / 2, "final": final}
    for part, nats in by_hand.items():
        found, stderr = mean_and_stderr(getattr(bits, part).view(len(images), -1).sum(1))
        assert abs(found - float(to_bits(nats))) < 4 * stderr


def test_a_variance_exploding_network_is_the_same_model(gaussian_pictures):
    """Told σ in place of β, and the score of x⁰ + σε in place of the noise."""
    images, _ = gaussian_pictures
    sigma = torch.logspace(-2, 1, 30, dtype=torch.float64)
    q = forward_process_from_sigma(sigma)
    assert torch.allclose(q.noise_variance[1:] / q.alpha_bar[1:], sigma**2)

    def network(x, i):
        return -x / (STDDEV**2 + sigma.float()[i].view(-1, 1, 1, 1) ** 2)

    p = PretrainedReverse(network, "score", variance_exploding=True)
    same = PretrainedReverse(gaussian_network(q), "eps")
    totals = [score_pictures(p, q, images[:50], Levels(), Generator().manual_seed(0)).total for p in (p, same)]
    assert torch.allclose(*totals, rtol=1e-4)


def ideal_adapter(points, q, weights=None):
    """The ideal reverse model of pictures [M, C, H, W], told as a network of 2C channels: x⁰ and log variance."""
    ideal = IdealReverse(points.flatten(1), weights)

    def network(x, i):
        xt = x.double().flatten(1)
        x0, variance = ideal.predict_x0(q, xt, i + 1)
        law = q.posterior_from_moments(xt, x0, variance, i + 1)
        return torch.stack([x0, law.variance.clamp(min=1e-12).log()], 1).view(len(x), 2 * x.shape[1], *x.shape[2:])

    return PretrainedReverse(network, "x0", learned)


def test_a_finite_set_scores_as_its_ideal_model():
    """The adapter against `dpm.ideal`: law by law, K* by entropies, and the two bits of four pictures as the limit."""
    levels = Levels(4)
    images = (
        torch.tensor([[0, 1, 3, 2], [1, 3, 0, 0], [2, 2, 3, 3], [3, 0, 1, 2]]).view(4, 1, 2, 2).repeat(1000, 1, 1, 1)
    )
    x0, points = levels.to_x(images), levels.to_x(images[:4])
    ideal = IdealReverse(
        points.flatten(1), final_step=lambda p, q, x1: Categorical(torch.ones(*x1.shape, 1), x1[:1, 0])
    )
    for n_steps in (20, 100):
        q = GaussianForward(log_snr_linear(n_steps, 1e-3, 0.999))
        p, t = ideal_adapter(points, q), torch.arange(len(x0)) % n_steps + 1
        xt = q.marginal(x0, t).reparameterize(q.sample_noise(x0, Generator().manual_seed(2)))
        ours, law = p(q, xt, t), ideal(q, xt.flatten(1), t)
        assert torch.allclose(ours.mean.flatten(1), law.mean, atol=1e-4)
        assert torch.allclose(ours.variance.flatten(1), law.variance, rtol=1e-3, atol=1e-5)
        bits, stderr = mean_and_stderr(4 * score_pictures(p, q, images, levels, Generator().manual_seed(0)).total)
        K, K_stderr = mean_and_stderr(to_bits(ideal_K(ideal, q, x0.flatten(1), Generator().manual_seed(1))))
        assert abs(bits + K) < 3 * math.hypot(stderr, K_stderr)
        assert 2 < -K < bits + 4 * stderr
    assert bits < 2.15


@pytest.mark.parametrize("levels", [Levels(4, 0, 3), Levels(5, -0.5, 0.5)])
def test_probabilities_of_the_levels_add_up_to_one_whatever_their_range(levels):
    step, q = FINAL_STEPS["discretized"](levels), GaussianForward(log_snr_linear(5, 1e-4, 0.5))
    x1 = torch.tensor([-2.0, 0.2, 4.0], dtype=torch.float64)[:, None]
    law = step(WithFinalStep(lambda q, xt, t: Normal(xt, torch.full_like(xt, 0.3)), step), q, x1)
    total = sum(law.log_prob(levels.to_x(torch.full_like(x1, k))).exp() for k in range(levels.n))
    assert torch.allclose(total, torch.ones_like(total))


# The mistakes of other tools: each makes of the same model another number, and ours is not that


P = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)  # of four levels
H = float(to_bits(entr(P).sum()))


def ideal_levels(width):
    """q, and the ideal model of numbers whose noise is `width` levels wide: an even grid of points in each level."""
    n_points = 96 if width else 1
    u = width * ((torch.arange(n_points, dtype=torch.float64) + 0.5) / n_points - 0.5)
    points = Levels(4).to_x(torch.arange(4)[:, None]) + Levels(4).bin_width * u
    q = GaussianForward(log_snr_linear(40, 1e-4, 0.999))
    return q, ideal_adapter(points.view(-1, 1, 1, 1), q, P.repeat_interleave(n_points) / n_points)


@pytest.fixture(scope="module")
def numbers():
    """4000 levels as pictures of one pixel, in just the proportions P."""
    return torch.arange(4).repeat_interleave((P * 4000).round().long()).view(4000, 1, 1, 1)


@pytest.mark.parametrize(("final_step", "width"), [("discretized", 0), ("dequantized", 1)])
def test_known_levels_score_their_entropy(numbers, final_step, width):
    """And 4 levels have 3 gaps between them: with 4 a density would be log₂ 4/3 = 0.42 bits off."""
    q, p = ideal_levels(width)
    bits = score_pictures(p, q, numbers, Levels(4), Generator().manual_seed(0), final_step)
    mean, stderr = bits.mean_and_stderr
    assert mean + 3 * stderr > H and mean < H + 0.1 + 3 * stderr and stderr < 0.04


@pytest.mark.parametrize(("width", "below"), [(0.5, 0.8), (0, 3)])
def test_too_little_dequantisation_noise_goes_below_the_entropy(numbers, width, below):
    """Half a level: a bit too few. None: fewer without end, here below 0. The model is the ideal one of these data."""
    q, p = ideal_levels(width)
    generator, x0 = Generator().manual_seed(0), Levels(4).to_x(numbers)
    x0 = x0 + width * Levels(4).bin_width * (torch.rand(x0.shape, generator=generator, dtype=x0.dtype) - 0.5)
    K = evaluate(WithFinalStep(p, learned_final_step), q, x0, generator).K
    assert bits_per_dimension(float(to_bits(K).mean()), 1, 1 / Levels(4).bin_width) < H - below


@pytest.mark.parametrize("final_step", ["dequantized", "edge"])
def test_a_model_of_half_the_noise_gains_nothing_by_it(numbers, final_step):
    """For densities noise of a whole level is added, which it finds impossible; without, it is below the entropy."""
    q, p = ideal_levels(0.5)
    assert score_pictures(p, q, numbers[::40], Levels(4), Generator().manual_seed(0), final_step).total.mean() > 2 * H


def test_dequantisation_noise_is_one_level_wide(numbers):
    levels = Levels(4)
    noise = (levels.dequantize(numbers, Generator().manual_seed(0)) - levels.to_x(numbers)) / levels.bin_width
    assert -0.5 <= noise.min() < -0.49 and 0.49 < noise.max() <= 0.5 and abs(noise.var() - 1 / 12) < 0.005


def test_pictures_are_scored_as_they_are_and_not_flipped():
    levels = Levels(4)
    images = torch.tensor([[0, 1, 3, 2], [1, 3, 0, 0], [2, 2, 3, 3], [3, 0, 1, 2]]).view(4, 1, 2, 2).repeat(50, 1, 1, 1)
    q = GaussianForward(log_snr_linear(20, 1e-3, 0.999))
    p = ideal_adapter(levels.to_x(images[:4]), q)
    as_they_are, flipped = (
        score_pictures(p, q, pictures, levels, Generator().manual_seed(0)).total.mean()
        for pictures in (images, images.flip(-1))
    )
    assert as_they_are < 1 < 10 < flipped


def test_pictures_are_averaged_and_not_batches(monkeypatch):
    """Nine pictures in colour, in batches of four: the prior's part of each is its own, and the last counts a ninth."""
    monkeypatch.setattr(evaluation, "MAX_PIXELS", 4 * 64)
    images = torch.cat([torch.full((8, 3, 8, 8), 128), torch.full((1, 3, 8, 8), 255)])
    q = GaussianForward(log_snr_linear(5, 1e-4, 0.5))
    p = PretrainedReverse(gaussian_network(q), "eps")
    bits = score_pictures(p, q, images, Levels(), Generator().manual_seed(0))
    x0 = Levels().to_x(images)
    assert torch.allclose(bits.prior, to_bits(prior_kl(q, x0)) / 192) and bits.prior[8] > 2 * bits.prior[0]
    assert bits.mean_and_stderr[0] == pytest.approx(float(bits.total.sum() / 9))
    assert bits.mean_and_stderr[1] == pytest.approx(float(bits.total.std() / 3))


# A second route to the likelihood


def flow_log_likelihood(p, q, x, stride):
    """log p(x¹) in nats, by the probability flow from x¹ [B, 1, 1, 1] to x^T: Runge and Kutta, exact divergence."""
    log_odds = -q.log_snr[1:]
    step, gain = 2 * stride * float(log_odds[1] - log_odds[0]), torch.zeros(len(x))

    def velocity(x, t):
        """dx/du, u = log (1−ᾱ)/ᾱ, and its divergence."""
        x = x.detach().requires_grad_()
        x0, _ = p.run_network(q, x, t)
        change = q.alpha_bar[t].sqrt() / 2 * (q.alpha_bar[t].sqrt() * x - x0)
        (slope,) = torch.autograd.grad(change.sum(), x)
        return change.detach(), slope.flatten()

    for t in range(1, q.T, 2 * stride):
        a = velocity(x, t)
        b = velocity(x + step / 2 * a[0], t + stride)
        c = velocity(x + step / 2 * b[0], t + stride)
        d = velocity(x + step * c[0], t + 2 * stride)
        change, divergence = ((ka + 2 * kb + 2 * kc + kd) * step / 6 for ka, kb, kc, kd in zip(a, b, c, d, strict=True))
        x, gain = x + change, gain + divergence
    return gain + q.prior(x).log_prob(x).flatten()


def test_the_probability_flow_gives_the_likelihood_that_the_bound_approaches():
    """Of a mixture of four blurred levels: by the flow of the adapter's x⁰, by K of 401 steps, and exactly."""
    ideal = IdealMixtureReverse(Levels(4).to_x(torch.arange(4))[:, None], 0.01, P)
    q, generator = GaussianForward(log_snr_linear(401, 1e-5, 1 - 1e-5)), Generator().manual_seed(0)

    def network(x, i):
        return ideal.predict_x0(q, x.double().flatten(1), int(i[0]) + 1)[0].view_as(x)

    p = PretrainedReverse(network, "x0")
    level = torch.multinomial(P, 500, replacement=True, generator=generator)
    x0 = Levels(4).to_x(level)[:, None] + 0.1 * torch.randn(500, 1, generator=generator, dtype=torch.float64)
    x0, exact = x0.view(500, 1, 1, 1), ideal.log_prob(x0)
    flow = flow_log_likelihood(p, q, x0, 4)
    assert (flow - exact).abs().max() < 0.01 and exact.std() > 0.5
    p = PretrainedReverse(network, "x0", moment_matched(measure_x0_error(p, q, x0, generator)))
    K = evaluate(WithFinalStep(p, learned_final_step), q, x0.repeat(10, 1, 1, 1), generator).K
    gap, stderr = mean_and_stderr(flow.repeat(10) - K)
    assert -3 * stderr < gap < 0.03 + 3 * stderr and stderr < 0.02


def test_a_level_beyond_the_last_is_a_mistake():
    with pytest.raises(UserError, match="level 16, and 16 levels end at 15"):
        Levels(16).check(torch.tensor([0, 16], dtype=torch.uint8))
    assert torch.equal(
        Levels(17).to_x(torch.tensor([0, 8, 16], dtype=torch.uint8)), torch.tensor([-1.0, 0, 1]).double()
    )
