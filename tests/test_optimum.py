"""The exact optimum against brute force: enumeration for bits, quadrature for Gaussian mixtures, in float64."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Generator

from dpm.bound import Bound, estimate, evaluate, mean_and_error
from dpm.datasets import ROLL_NOISE, heartbeat, heartbeat_sequences, roll_points, swiss_roll
from dpm.forward import Binomial, Bits, Gaussian, Normal
from dpm.optimum import BlurredOptimum, Optimum
from dpm.schedules import erase_evenly, geometric


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def all_states(bits):
    return torch.cartesian_prod(*[real(0, 1)] * bits).reshape(-1, bits)


THREE = real([0, 0, 1], [0, 1, 1], [1, 1, 1])  # three equally likely data of 3 bits
PLACES, WIDTH = real(-1.1, 0.2, 1.0)[:, None], 0.1  # a mixture of three normals in one dimension


# Bits, by enumeration of x⁰ and x^{t−1}


@pytest.mark.parametrize(("points", "rate"), [(THREE, 0.5), (THREE, 0.2), (heartbeat_sequences(4, 2), 0.2)])
@pytest.mark.parametrize("T", [2, 5])
def test_optimum_of_bits_is_the_mean_of_q_of_the_step_before(points, rate, T):
    """f_b* = q(x^{t−1}_i = 1 | x^t), from the joint of x⁰, x^{t−1}, x^t over all states."""
    bits = points.shape[1]
    q, states, p = Binomial(erase_evenly(T), rate), all_states(bits), Optimum(points)
    for t in range(2, T + 1):
        laws = q.marginal(points, torch.full((len(points),), t - 1))
        before = torch.stack([laws.log_prob(s).sum(1).exp().mean() for s in states])  # q(x^{t−1})
        kernel = q.step(states, torch.full((len(states),), t))
        joint = torch.stack([before * kernel.log_prob(s).sum(1).exp() for s in states])  # [x^t, x^{t−1}]
        rates = joint @ states / joint.sum(1, keepdim=True)
        assert torch.allclose(p(q, states, torch.full((len(states),), t)).probs, rates, atol=1e-11, rtol=0)


def exact_K_of_bits(p, q, points):
    """(14) averaged over every point and every x^t: uniform noise 0 makes a 1, noise 1 a 0. With a gradient."""
    states = all_states(points.shape[1])
    x0, xt = points.repeat_interleave(len(states), 0), states.repeat(len(points), 1)
    kl = 0.0
    for t in range(2, q.T + 1):
        steps = torch.full((len(x0),), t)
        weight = q.marginal(x0, steps).log_prob(xt).sum(1).exp() / len(points)
        bound = estimate(p, q, x0, steps, 1 - xt)
        kl = kl + (weight * bound.kl).sum() / (q.T - 1)
    constants = estimate(p, q, points, torch.full((len(points),), 2), points)
    return -kl + (constants.entropy_T - constants.entropy_1 - constants.entropy_prior).mean()


@pytest.mark.parametrize(("points", "rate"), [(THREE, 0.5), (heartbeat_sequences(4, 2), 0.5)])
@pytest.mark.parametrize("T", [2, 6])
def test_no_other_reversal_of_bits_beats_the_optimum(points, rate, T):
    """Exactly: the log odds of f_b* moved at random lower K, and the slope of K at f_b* is 0."""
    q, best = Binomial(erase_evenly(T), rate), Optimum(points)
    K, bits = exact_K_of_bits(best, q, points), points.shape[1]
    shift = torch.zeros(T + 1, bits, bits + 1, dtype=torch.float64, requires_grad=True)

    def moved(by):
        return lambda q, xt, t: Bits(
            best(q, xt, t).logits + (torch.cat([xt, torch.ones_like(xt[:, :1])], 1)[:, None] * by[t]).sum(-1)
        )

    [slope] = torch.autograd.grad(exact_K_of_bits(moved(shift), q, points), shift)
    assert float(slope.abs().max()) < 1e-12
    for seed in range(5):
        step = torch.randn(shift.shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
        for size in (0.05, -0.05):
            assert float(exact_K_of_bits(moved(size * step), q, points)) < float(K) - 1e-4


@pytest.mark.parametrize("T", [2, 6, 40])
def test_best_K_of_bits_is_below_minus_the_entropy_of_the_data(T):
    """K* ≤ −H(X⁰) = −log 2 for two sequences of mean activity 0.5, exactly."""
    points = heartbeat_sequences(4, 2)
    loss = -math.log(2) - float(exact_K_of_bits(Optimum(points), Binomial(erase_evenly(T), 0.5), points))
    assert loss > 0
    if T == 40:
        assert loss < 0.4  # small steps lose little


def test_best_K_of_the_heartbeat_is_below_minus_its_entropy():
    q, points = Binomial(erase_evenly(50), 0.2), heartbeat_sequences()
    x0 = heartbeat(500, Generator().manual_seed(0))
    K, error = mean_and_error(evaluate(Optimum(points), q, x0, Generator().manual_seed(1)).K)
    assert -math.log(5) - 3 < K < -math.log(5) - 5 * error


def test_log_probability_of_a_finite_set():
    p = Optimum(THREE)
    x0 = torch.cat([THREE, 1 - THREE])
    assert p.log_probability(x0).tolist() == pytest.approx([-math.log(3)] * 3 + [-math.inf] * 3, abs=1e-15)


# Gaussians, by quadrature over x^{t−1}


def mixture_before(q, points, variance, t, grid):
    """q(x^{t−1}) on a grid [n, D], by scipy: the points spread by their width and the noise so far."""
    kept = math.prod(1 - b for b in q.beta[:t].tolist())
    scale = math.sqrt(kept * variance + 1 - kept)
    return sum(stats.norm.pdf(grid, math.sqrt(kept) * point, scale).prod(1) for point in points.numpy()) / len(points)


@pytest.mark.parametrize("xt", [-1.7, 0.0, 0.6, 2.4])
def test_blurred_optimum_has_the_moments_of_q_of_the_step_before(xt):
    q, y = Gaussian(geometric(5, 0.05, 0.95)), np.linspace(-9, 9, 18_001)[:, None]
    p = BlurredOptimum(PLACES, WIDTH)
    for t in range(2, 6):
        b = float(q.beta[t])
        weight = mixture_before(q, PLACES, WIDTH, t, y) * stats.norm.pdf(xt, math.sqrt(1 - b) * y[:, 0], math.sqrt(b))
        weight /= weight.sum()
        mean = float(weight @ y[:, 0])
        law = p(q, real([xt]), torch.tensor([t]))
        assert float(law.mean) == pytest.approx(mean, abs=1e-10)
        assert float(law.variance) == pytest.approx(float(weight @ (y[:, 0] - mean) ** 2), abs=1e-10)


@pytest.mark.parametrize("variance", [0.0, 0.05])
def test_optimum_in_the_plane_has_the_diagonal_moments_of_q_of_the_step_before(variance):
    points, xt = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7]), real([0.3, 0.4])
    q, axis = Gaussian(geometric(4, 0.1, 0.9)), np.linspace(-7, 7, 281)
    y = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    p = BlurredOptimum(points, variance) if variance else Optimum(points)
    for t in range(2, 5):
        b = float(q.beta[t])
        weight = mixture_before(q, points, variance, t, y)
        weight *= stats.norm.pdf(xt.numpy(), math.sqrt(1 - b) * y, math.sqrt(b)).prod(1)
        weight /= weight.sum()
        mean = weight @ y
        law = p(q, xt, torch.tensor([t]))
        assert law.mean[0].tolist() == pytest.approx(mean.tolist(), abs=1e-9)
        assert law.variance[0].tolist() == pytest.approx((weight @ (y - mean) ** 2).tolist(), abs=1e-9)


def test_blur_of_no_width_is_the_finite_set():
    q, xt, t = Gaussian(geometric(4, 0.1, 0.9)), real([0.3, 0.4], [-2, 1]), torch.tensor([2, 4])
    points = real([1.2, -0.3], [-0.5, 1.0])
    sharp, blurred = Optimum(points)(q, xt, t), BlurredOptimum(points, 0.0)(q, xt, t)
    assert torch.allclose(sharp.mean, blurred.mean, atol=1e-13, rtol=0)
    assert torch.allclose(sharp.variance, blurred.variance, atol=1e-13, rtol=0)


def mixture_quadrature(nodes=40):
    """x⁰ of the blurred mixture, and one noise for x^t, with weights that average smooth functions: Gauss-Hermite."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    z, w = real(*z), real(*(w / w.sum()))
    x0 = (PLACES + math.sqrt(WIDTH) * z).flatten()
    weight = (w / len(PLACES)).repeat(len(PLACES))
    return x0.repeat_interleave(nodes)[:, None], z.repeat(len(x0))[:, None], (weight[:, None] * w).flatten()


def K_by_quadrature(p, q):
    x0, noise, weight = mixture_quadrature()
    q.noise = lambda x, generator: noise
    bound: Bound = evaluate(p, q, x0, Generator())
    return float((weight * bound.K).sum())


@pytest.mark.parametrize("T", [2, 5])
def test_no_other_reversal_of_gaussians_beats_the_optimum(T):
    """By quadrature: means moved or variances scaled, at every t or as a function of x^t, lower K."""
    q, best = Gaussian(geometric(T, 0.05, 0.95)), BlurredOptimum(PLACES, WIDTH)
    K = K_by_quadrature(best, q)

    def moved(shift, scale):
        def p(q, xt, t):
            law = best(q, xt, t)
            return Normal(law.mean + law.scale * shift(xt), law.variance * torch.exp(scale(xt)))

        return p

    def zero(x):
        return torch.zeros_like(x)

    for bend in (torch.ones_like, torch.tanh, torch.cos):
        for size in (0.02, -0.02):

            def by(x, size=size, bend=bend):
                return size * bend(x)

            for p in (moved(by, zero), moved(zero, by)):
                fall = K - K_by_quadrature(p, q)
                assert 0 < fall < 2 * (T - 1) * 0.02**2  # KL is quadratic in the move: no first-order part
                assert fall > 1e-5


def test_best_K_of_a_mixture_is_below_minus_its_entropy():
    """K* ≤ −H(X⁰), by quadrature; the data's second moment is not 1, so K is taken with the cross entropies to π."""
    q = Gaussian(geometric(5, 0.02, 0.99))
    scale = math.sqrt(float(PLACES.square().mean()) + WIDTH)
    best = BlurredOptimum(PLACES / scale, WIDTH / scale**2)
    x0, noise, weight = mixture_quadrature()
    q.noise = lambda x, generator: noise
    x0 = x0 / scale
    assert float(weight @ x0[:, 0].square()) == pytest.approx(1, abs=1e-12)
    K = float((weight * evaluate(best, q, x0, Generator()).K).sum())
    minus_entropy = float((weight * best.log_probability(x0)).sum())
    assert minus_entropy - 1 < K <= minus_entropy


def test_best_K_of_the_swiss_roll_is_below_minus_its_entropy():
    """T = 40: the gap between −H(X⁰) and K*, sample by sample, is positive by more than 5 standard errors."""
    best = BlurredOptimum(roll_points(1000), ROLL_NOISE**2)
    x0 = swiss_roll(2_000, Generator().manual_seed(0))
    K = evaluate(best, Gaussian(geometric(40, 1e-4, 0.995)), x0, Generator().manual_seed(1)).K
    gap, error = mean_and_error(best.log_probability(x0) - K)
    assert 5 * error < gap < 3


@pytest.mark.parametrize("variance", [0.01, 0.3])
def test_log_probability_of_a_blurred_set_is_its_mixture_density(variance):
    points = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7])
    p, axis = BlurredOptimum(points, variance), np.linspace(-5, 5, 501)
    grid = torch.tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    log_density = p.log_probability(grid)
    naive = logsumexp(
        [stats.norm.logpdf(grid, point, math.sqrt(variance)).sum(1) for point in points.numpy()], 0
    ) - math.log(3)
    assert np.allclose(log_density, naive, atol=1e-9, rtol=1e-12)
    assert float(log_density.exp().sum()) * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-10)


def test_log_probability_of_a_curve_is_quadrature_over_it():
    """Four times the points change nothing but a little at the curve's two ends: they lie closer than their width."""
    x0 = swiss_roll(500, Generator().manual_seed(0))
    coarse, fine = (BlurredOptimum(roll_points(count), ROLL_NOISE**2).log_probability(x0) for count in (2000, 8000))
    assert float((coarse - fine).abs().max()) < 0.01
    assert float((coarse - fine).abs().median()) < 1e-9
