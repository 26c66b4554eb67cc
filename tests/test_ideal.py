"""Ideal reverse models against brute force: enumeration for bits, quadrature for Gaussian mixtures, in float64."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Generator

from dpm.bound import PaperBound, evaluate, prior_kl, step_kl
from dpm.data.synthetic import ROLL_NOISE, heartbeat, heartbeat_sequences, swiss_roll, swiss_roll_points
from dpm.distributions import Bernoulli, Categorical, Normal
from dpm.forward import AbsorbingForward, BernoulliForward, ForwardProcess, GaussianForward
from dpm.ideal import (
    IdealFullCovarianceReverse,
    IdealMixtureReverse,
    IdealReverse,
    _enumerate_counts,
    _interchangeable_groups,
    best_schedule,
    enumerate_entropy,
    enumerate_ideal_K,
    ideal_K,
)
from dpm.reverse import learned_final_step, reverse_step
from dpm.schedules import beta_from_alpha_bar, linear_alpha_bar, log_snr_linear
from dpm.units import mean_and_stderr, to_bits


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def all_states(bits):
    return torch.cartesian_prod(*[real(0, 1)] * bits).reshape(-1, bits)


THREE = real([0, 0, 1], [0, 1, 1], [1, 1, 1])  # three equally likely data of 3 bits
PLACES, WIDTH = real(-1.1, 0.2, 1.0)[:, None], 0.1  # a mixture of three normals in one dimension


# Bits, by enumeration of x⁰ and x^{t−1}


@pytest.mark.parametrize(("points", "prior_prob"), [(THREE, 0.5), (THREE, 0.2), (heartbeat_sequences(4, 2), 0.2)])
@pytest.mark.parametrize("T", [2, 5])
def test_ideal_of_bits_is_the_mean_of_q_of_the_step_before(points, prior_prob, T):
    """f_b* = q(x^{t−1}_i = 1 | x^t), from the joint of x⁰, x^{t−1}, x^t over all states."""
    bits = points.shape[1]
    q, states, p = BernoulliForward(linear_alpha_bar(T), prior_prob), all_states(bits), IdealReverse(points)
    for t in range(2, T + 1):
        laws = q.marginal(points, torch.full((len(points),), t - 1))
        before = torch.stack([laws.log_prob(s).sum(1).exp().mean() for s in states])  # q(x^{t−1})
        kernel = q.transition(states, torch.full((len(states),), t))
        joint = torch.stack([before * kernel.log_prob(s).sum(1).exp() for s in states])  # [x^t, x^{t−1}]
        probs = joint @ states / joint.sum(1, keepdim=True)
        assert torch.allclose(p(q, states, torch.full((len(states),), t)).probs, probs, atol=1e-11, rtol=0)


def exact_K_of_bits(p, q, points):
    """(14) averaged over every point and every x^t: uniform noise 0 makes a 1, noise 1 a 0. With a gradient."""
    states = all_states(points.shape[1])
    x0, xt = points.repeat_interleave(len(states), 0), states.repeat(len(points), 1)
    kl = 0.0
    for t in range(2, q.T + 1):
        steps = torch.full((len(x0),), t)
        weight = q.marginal(x0, steps).log_prob(xt).sum(1).exp() / len(points)
        kl = kl + (weight * step_kl(p, q, x0, steps, 1 - xt)).sum()
    at_T, at_1, prior = q.entropy_constants(points)
    return -kl + (at_T - at_1 - prior).mean()


@pytest.mark.parametrize(("points", "prior_prob"), [(THREE, 0.5), (heartbeat_sequences(4, 2), 0.5)])
@pytest.mark.parametrize("T", [2, 6])
def test_no_other_reverse_model_of_bits_beats_the_ideal(points, prior_prob, T):
    """Exactly: the logits of f_b* moved at random lower K, and the slope of K at f_b* is 0."""
    q, best = BernoulliForward(linear_alpha_bar(T), prior_prob), IdealReverse(points)
    K, bits = exact_K_of_bits(best, q, points), points.shape[1]
    shift = torch.zeros(T + 1, bits, bits + 1, dtype=torch.float64, requires_grad=True)

    def moved(by):
        return lambda q, xt, t: Bernoulli(
            best(q, xt, t).logits + (torch.cat([xt, torch.ones_like(xt[:, :1])], 1)[:, None] * by[t]).sum(-1)
        )

    [slope] = torch.autograd.grad(exact_K_of_bits(moved(shift), q, points), shift)
    assert float(slope.abs().max()) < 1e-12
    for seed in range(5):
        step = torch.randn(shift.shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
        for size in (0.05, -0.05):
            assert float(exact_K_of_bits(moved(size * step), q, points)) < float(K) - 1e-4


@pytest.mark.parametrize("T", [2, 6, 40])
def test_ideal_K_of_bits_is_below_minus_the_entropy_of_the_data(T):
    """K* ≤ −H(X⁰) = −log 2 for two sequences of mean activity 0.5, exactly."""
    points = heartbeat_sequences(4, 2)
    loss = -math.log(2) - float(
        exact_K_of_bits(IdealReverse(points), BernoulliForward(linear_alpha_bar(T), 0.5), points)
    )
    assert loss > 0
    if T == 40:
        assert loss < 0.4  # small steps lose little


def test_ideal_K_of_the_heartbeat_is_below_minus_its_entropy():
    q, points = BernoulliForward(linear_alpha_bar(50), 0.2), heartbeat_sequences()
    x0 = heartbeat(500, Generator().manual_seed(0))
    K, error = mean_and_stderr(evaluate(IdealReverse(points), q, x0, Generator().manual_seed(1)).K)
    assert -math.log(5) - 3 < K < -math.log(5) - 5 * error


def test_log_prob_of_a_finite_set():
    p = IdealReverse(THREE)
    x0 = torch.cat([THREE, 1 - THREE])
    assert p.log_prob(x0).tolist() == pytest.approx([-math.log(3)] * 3 + [-math.inf] * 3, abs=1e-15)


# Gaussians, by quadrature over x^{t−1}


def mixture_before(q, points, variance, t, grid):
    """q(x^{t−1}) on a grid [n, D], by scipy: the points spread by their width and the noise so far."""
    kept = math.prod(1 - b for b in q.beta[:t].tolist())
    scale = math.sqrt(kept * variance + 1 - kept)
    return sum(stats.norm.pdf(grid, math.sqrt(kept) * point, scale).prod(1) for point in points.numpy()) / len(points)


@pytest.mark.parametrize("xt", [-1.7, 0.0, 0.6, 2.4])
def test_ideal_of_a_mixture_has_the_moments_of_q_of_the_step_before(xt):
    q, y = GaussianForward(log_snr_linear(5, 0.05, 0.95)), np.linspace(-9, 9, 18_001)[:, None]
    p = IdealMixtureReverse(PLACES, WIDTH)
    for t in range(2, 6):
        b = float(q.beta[t])
        weight = mixture_before(q, PLACES, WIDTH, t, y) * stats.norm.pdf(xt, math.sqrt(1 - b) * y[:, 0], math.sqrt(b))
        weight /= weight.sum()
        mean = float(weight @ y[:, 0])
        law = p(q, real([xt]), torch.tensor([t]))
        assert float(law.mean) == pytest.approx(mean, abs=1e-10)
        assert float(law.variance) == pytest.approx(float(weight @ (y[:, 0] - mean) ** 2), abs=1e-10)


@pytest.mark.parametrize("variance", [0.0, 0.05])
def test_ideal_in_the_plane_has_the_diagonal_moments_of_q_of_the_step_before(variance):
    points, xt = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7]), real([0.3, 0.4])
    q, axis = GaussianForward(log_snr_linear(4, 0.1, 0.9)), np.linspace(-7, 7, 281)
    y = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    p = IdealMixtureReverse(points, variance) if variance else IdealReverse(points)
    for t in range(2, 5):
        b = float(q.beta[t])
        weight = mixture_before(q, points, variance, t, y)
        weight *= stats.norm.pdf(xt.numpy(), math.sqrt(1 - b) * y, math.sqrt(b)).prod(1)
        weight /= weight.sum()
        mean = weight @ y
        law = p(q, xt, torch.tensor([t]))
        assert law.mean[0].tolist() == pytest.approx(mean.tolist(), abs=1e-9)
        assert law.variance[0].tolist() == pytest.approx((weight @ (y - mean) ** 2).tolist(), abs=1e-9)


def test_a_mixture_of_no_variance_is_the_finite_set():
    q, xt, t = GaussianForward(log_snr_linear(4, 0.1, 0.9)), real([0.3, 0.4], [-2, 1]), torch.tensor([2, 4])
    points = real([1.2, -0.3], [-0.5, 1.0])
    points_alone, mixture = IdealReverse(points)(q, xt, t), IdealMixtureReverse(points, 0.0)(q, xt, t)
    assert torch.allclose(points_alone.mean, mixture.mean, atol=1e-13, rtol=0)
    assert torch.allclose(points_alone.variance, mixture.variance, atol=1e-13, rtol=0)


def mixture_quadrature(nodes=40):
    """x⁰ of the mixture, and one noise for x^t, with weights that average smooth functions: Gauss-Hermite."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    z, w = real(*z), real(*(w / w.sum()))
    x0 = (PLACES + math.sqrt(WIDTH) * z).flatten()
    weight = (w / len(PLACES)).repeat(len(PLACES))
    return x0.repeat_interleave(nodes)[:, None], z.repeat(len(x0))[:, None], (weight[:, None] * w).flatten()


def K_by_quadrature(p, q):
    x0, noise, weight = mixture_quadrature()
    q.sample_noise = lambda x, generator: noise
    bound: PaperBound = evaluate(p, q, x0, Generator())
    return float((weight * bound.K).sum())


@pytest.mark.parametrize("T", [2, 5])
def test_no_other_reverse_model_of_gaussians_beats_the_ideal(T):
    """By quadrature: means moved or variances scaled, at every t or as a function of x^t, lower K."""
    q, best = GaussianForward(log_snr_linear(T, 0.05, 0.95)), IdealMixtureReverse(PLACES, WIDTH)
    K = K_by_quadrature(best, q)

    def moved(shift, scale):
        def p(q, xt, t):
            law = best(q, xt, t)
            return Normal(law.mean + law.stddev * shift(xt), law.variance * torch.exp(scale(xt)))

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


def test_ideal_K_of_a_mixture_is_below_minus_its_entropy():
    """K* ≤ −H(X⁰), by quadrature; the data's second moment is not 1, so K is taken with the cross entropies to π."""
    q = GaussianForward(log_snr_linear(5, 0.02, 0.99))
    scale = math.sqrt(float(PLACES.square().mean()) + WIDTH)
    best = IdealMixtureReverse(PLACES / scale, WIDTH / scale**2)
    x0, noise, weight = mixture_quadrature()
    q.sample_noise = lambda x, generator: noise
    x0 = x0 / scale
    assert float(weight @ x0[:, 0].square()) == pytest.approx(1, abs=1e-12)
    K = float((weight * evaluate(best, q, x0, Generator()).K).sum())
    minus_entropy = float((weight * best.log_prob(x0)).sum())
    assert minus_entropy - 1 < K <= minus_entropy


@pytest.mark.slow
def test_ideal_K_of_the_swiss_roll_is_below_minus_its_entropy():
    """T = 40: the gap between −H(X⁰) and K*, sample by sample, is positive by more than 5 standard errors."""
    best = IdealMixtureReverse(swiss_roll_points(1000), ROLL_NOISE**2)
    x0 = swiss_roll(2_000, Generator().manual_seed(0))
    K = evaluate(best, GaussianForward(log_snr_linear(40, 1e-4, 0.995)), x0, Generator().manual_seed(1)).K
    gap, error = mean_and_stderr(best.log_prob(x0) - K)
    assert 5 * error < gap < 3


@pytest.mark.parametrize("variance", [0.01, 0.3])
def test_log_prob_of_a_mixture_is_its_mixture_density(variance):
    points = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7])
    p, axis = IdealMixtureReverse(points, variance), np.linspace(-5, 5, 501)
    grid = torch.tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    log_density = p.log_prob(grid)
    naive = logsumexp(
        [stats.norm.logpdf(grid, point, math.sqrt(variance)).sum(1) for point in points.numpy()], 0
    ) - math.log(3)
    assert np.allclose(log_density, naive, atol=1e-9, rtol=1e-12)
    assert float(log_density.exp().sum()) * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-10)


def test_log_prob_of_a_curve_is_quadrature_over_it():
    """Four times the points change nothing but a little at the curve's two ends: they lie closer than their width."""
    x0 = swiss_roll(500, Generator().manual_seed(0))
    coarse, fine = (IdealMixtureReverse(swiss_roll_points(count), ROLL_NOISE**2).log_prob(x0) for count in (2000, 8000))
    assert float((coarse - fine).abs().max()) < 0.01
    assert float((coarse - fine).abs().median()) < 1e-9


# K* of bits, enumerated, and K* of anything, averaged over the x⁰ that explain an x^t

UNEVEN = real(0.5, 0.3, 0.2)


@pytest.mark.parametrize(("length", "period"), [(4, 2), (6, 3), (7, 3), (5, 8), (8, 4)])
@pytest.mark.parametrize("T", [2, 7])
def test_enumerated_K_is_K_over_every_state(length, period, T):
    points = heartbeat_sequences(length, period)
    q = BernoulliForward(linear_alpha_bar(T), float(points.mean()))
    best = IdealReverse(points)
    assert float(enumerate_ideal_K(best, q)) == pytest.approx(float(exact_K_of_bits(best, q, points)), abs=1e-11)


def test_enumerated_K_of_weighted_points_is_that_of_points_repeated():
    """Weights 0.5, 0.3, 0.2 are ten points of which five, three and two are the same."""
    q, weighted = BernoulliForward(linear_alpha_bar(5), 0.4), IdealReverse(THREE, UNEVEN)
    repeated = THREE.repeat_interleave(torch.tensor([5, 3, 2]), 0)
    K = float(exact_K_of_bits(IdealReverse(repeated), q, repeated))
    assert float(enumerate_ideal_K(weighted, q)) == pytest.approx(K, abs=1e-12)
    assert float(enumerate_ideal_K(IdealReverse(THREE), q)) != pytest.approx(K, abs=1e-3)
    xt, t = all_states(3), torch.full((8,), 3)
    assert torch.allclose(weighted(q, xt, t).probs, IdealReverse(repeated)(q, xt, t).probs, atol=1e-13)
    assert weighted.log_prob(THREE).exp().tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_only_what_the_data_let_change_places_is_interchangeable():
    groups, sizes = heartbeat_sequences(6, 3).T.unique(dim=0, return_counts=True)
    assert _interchangeable_groups(groups, sizes, torch.full((3,), 1 / 3)) == [[0, 1, 2]]
    assert _interchangeable_groups(groups, torch.tensor([2, 1, 2]), torch.full((3,), 1 / 3)) == [[0, 2], [1]]
    assert sorted(map(len, _interchangeable_groups(groups, sizes, real(0.5, 0.25, 0.25)))) == [1, 2]
    assert len(_interchangeable_groups(THREE.T, torch.ones(3, dtype=torch.long), torch.full((3,), 1 / 3))) == 3


@pytest.mark.parametrize(("classes", "sizes"), [([[0, 1, 2]], [2, 2, 2]), ([[0, 2], [1]], [3, 1, 3]), ([[0]], [5])])
def test_counts_stand_for_every_state_once(classes, sizes):
    counts, log_ways = _enumerate_counts(classes, torch.tensor(sizes), n_states=2)
    ones = counts[..., 1]
    assert torch.equal(counts.sum(2), torch.tensor(sizes).double().expand_as(ones))
    assert float(log_ways.exp().sum()) == pytest.approx(2 ** sum(sizes), rel=1e-13)
    assert float(log_ways.exp() @ ones.sum(1)) == pytest.approx(sum(sizes) * 2 ** (sum(sizes) - 1), rel=1e-13)


def test_counts_of_three_states_stand_for_every_state_once():
    counts, log_ways = _enumerate_counts([[0, 2], [1]], torch.tensor([2, 1, 2]), n_states=3)
    assert float(log_ways.exp().sum()) == pytest.approx(3**5, rel=1e-13)
    assert torch.equal(counts.sum(2), real(2, 1, 2).expand(len(counts), 3))


class GreyForward(ForwardProcess):
    """Three grey levels; with probability β_t one is drawn anew from all three. Here x⁰ has a variance of its own."""

    states = real(0, 0.5, 1)

    def redrawn(self, x, kept):
        probs = kept[..., None] * (x[..., None] == self.states) + (1 - kept[..., None]) / 3
        return Categorical(probs, self.states)

    def prior(self, x):
        return self.redrawn(x, torch.zeros_like(x))

    def transition(self, x, t):
        return self.redrawn(x, 1 - self.beta[t].expand_as(x))

    def marginal(self, x0, t):
        return self.redrawn(x0, self.alpha_bar[t].expand_as(x0))

    def posterior_from_moments(self, xt, mean, variance, t):
        grey = 4 * (mean - variance - mean.square())  # P(x⁰ = ½), from E x⁰ and E (x⁰)²
        x0_probs = torch.stack([1 - mean - grey / 2, grey, mean - grey / 2], -1)
        before, step = self.marginal(self.states, t - 1).probs, self.transition(xt, t).probs[..., None, :]
        joint = before * step  # [..., x⁰, x^{t−1}], for a step is as likely back as forth
        return Categorical((x0_probs[..., None] * joint / joint.sum(-1, keepdim=True)).sum(-2), self.states)

    def log_likelihood(self, xt, points, t):
        agreements = (xt[:, None] == points).double().sum(-1)
        return agreements * (torch.log1p(2 * self.alpha_bar[t]) - torch.log(self.noise_variance[t]))

    def transition_entropy(self, x0, t):
        return self.transition(x0, t).entropy().sum(1)


GREYS = real([0, 0.5, 1], [0.5, 0.5, 0], [1, 0, 0.5])
DISCRETE = {
    "flips": (lambda T: BernoulliForward(linear_alpha_bar(T)), THREE),  # with π(1) = ½, (14) is exact for any data
    "masks": (lambda T: AbsorbingForward(linear_alpha_bar(T)), THREE),
    "greys": (lambda T: GreyForward(linear_alpha_bar(T)), GREYS),
}
every_discrete_process = pytest.mark.parametrize(("make", "points"), DISCRETE.values(), ids=DISCRETE)


@pytest.mark.parametrize("T", [1, 2, 5])
@every_discrete_process
def test_enumerated_K_is_K_over_every_trajectory(make, points, T):
    """(37)-(39) over all states at every t, one transition matrix per step."""
    q = make(T)
    p, states = IdealReverse(points), torch.cartesian_prod(*[q.states] * points.shape[1])
    total = 0.0
    for x0 in points:
        weight = (states == x0).all(1).double()
        for t in range(1, T + 1):
            forward, backward = (
                torch.stack([law.log_prob(s).sum(1) for s in states], 1)
                for law in (q.transition(states, t), reverse_step(p, q, states, t))
            )  # [from, to]
            joint = weight[:, None] * forward.exp()
            ratio = torch.where(joint > 0, backward.T - forward, 0.0)
            total = total + float((joint * ratio).sum()) / len(points)
            weight = joint.sum(0)
        prior = torch.where(weight > 0, q.prior(states).log_prob(states).sum(1), 0.0)
        total = total + float(weight @ prior) / len(points)
    assert float(enumerate_ideal_K(p, q)) == pytest.approx(total, abs=1e-12)


@every_discrete_process
def test_enumerated_K_is_the_mean_of_sampled_K(make, points):
    """The same K* by `ideal_K`, which samples x^t and leans on `log_likelihood`."""
    p, q, generator = IdealReverse(points), make(5), Generator().manual_seed(0)
    x0 = points[torch.randint(len(points), (20_000,), generator=generator)]
    mean, stderr = mean_and_stderr(ideal_K(p, q, x0, generator))
    assert abs(mean - float(enumerate_ideal_K(p, q))) < 4 * stderr


def test_enumerated_K_of_masks_on_the_heartbeat_is_that_of_a_simulation():
    K = {
        T: enumerate_ideal_K(IdealReverse(heartbeat_sequences()), AbsorbingForward(linear_alpha_bar(T)))
        for T in (20, 50)
    }
    assert float(to_bits(K[20])) == pytest.approx(-2.698, abs=0.005)
    assert float(to_bits(K[50])) == pytest.approx(-2.469, abs=0.005)


def test_too_many_states_are_not_enumerated():
    points = heartbeat_sequences(200, 10)
    assert enumerate_ideal_K(IdealReverse(points), BernoulliForward(linear_alpha_bar(3), 0.1)) is None
    assert (
        enumerate_ideal_K(IdealReverse(heartbeat_sequences(400, 300)), BernoulliForward(linear_alpha_bar(3), 0.1))
        is None
    )


@pytest.mark.slow
@pytest.mark.parametrize("T", [2, 10, 2000])
def test_enumerated_K_of_the_heartbeat_rises_towards_minus_its_entropy(T):
    points = heartbeat_sequences()
    K, more = (
        float(enumerate_ideal_K(IdealReverse(points), BernoulliForward(linear_alpha_bar(n), 0.2)))
        for n in (T, T + T // 2)
    )
    assert K < more < -math.log(5)


def test_enumerated_K_has_the_slope_of_its_difference_in_beta():
    points, beta = heartbeat_sequences(6, 3), linear_alpha_bar(4)
    beta[-1] = 0.9
    beta.requires_grad_()
    [slope] = torch.autograd.grad(enumerate_ideal_K(IdealReverse(points), BernoulliForward(beta, 1 / 3)), beta)
    for t in (1, 2, 4):
        move = torch.zeros(5, dtype=torch.float64)
        move[t] = 1e-6
        up, down = (
            float(enumerate_ideal_K(IdealReverse(points), BernoulliForward(beta.detach() + s * move, 1 / 3)))
            for s in (1, -1)
        )
        assert float(slope[t]) == pytest.approx((up - down) / 2e-6, rel=1e-6)


def test_averaged_K_of_bits_is_the_enumerated_one_in_the_mean():
    points, generator = heartbeat_sequences(), Generator().manual_seed(0)
    q, best = BernoulliForward(linear_alpha_bar(20), 0.2), IdealReverse(points)
    x0 = heartbeat(20_000, generator)
    K, error = mean_and_stderr(ideal_K(best, q, x0, generator))
    assert abs(K - float(enumerate_ideal_K(best, q))) < 4 * error < 0.1


def test_averaged_K_with_a_learned_final_step_is_the_enumerated_one_and_that_of_evaluate_in_the_mean():
    """Where the last step leaves a signal, so that both ends of the general bound count."""
    q, best = BernoulliForward(real(0, 0.2, 0.3, 0.2), 0.2), IdealReverse(THREE, final_step=learned_final_step)
    x0, exact = THREE.repeat(10_000, 1), float(enumerate_ideal_K(best, q))
    for K in (ideal_K(best, q, x0, Generator().manual_seed(1)), evaluate(best, q, x0, Generator().manual_seed(2)).K):
        mean, error = mean_and_stderr(K)
        assert abs(mean - exact) < 4 * error < 0.05
    assert float(prior_kl(q, THREE).mean()) > 0.5


@pytest.mark.parametrize("kind", [IdealMixtureReverse, IdealFullCovarianceReverse])
def test_averaged_K_of_reals_is_K_in_the_mean_and_varies_less(kind):
    best, q = kind(swiss_roll_points(500), ROLL_NOISE**2), GaussianForward(log_snr_linear(6, 1e-3, 0.9))
    x0 = swiss_roll(4_000, Generator().manual_seed(0))
    averaged, plain = (
        ideal_K(best, q, x0, Generator().manual_seed(1)),
        evaluate(best, q, x0, Generator().manual_seed(1)).K,
    )
    difference, error = mean_and_stderr(averaged - plain)
    assert abs(difference) < 4 * error
    assert float(averaged.std()) < 0.5 * float(plain.std())


def test_averaged_K_on_the_line_is_K_by_quadrature():
    q, best = GaussianForward(log_snr_linear(5, 0.05, 0.95)), IdealMixtureReverse(PLACES, WIDTH)
    K = K_by_quadrature(best, q)
    x0, _, weight = mixture_quadrature()
    assert float(weight @ ideal_K(best, q, x0, Generator())) == pytest.approx(K, abs=1e-9)


def test_full_covariance_ideal_has_all_moments_of_q_of_the_step_before():
    points, variance, xt = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7]), 0.05, real([0.3, 0.4])
    q, axis = GaussianForward(log_snr_linear(4, 0.1, 0.9)), np.linspace(-7, 7, 281)
    y = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    for t in range(2, 5):
        b = float(q.beta[t])
        weight = mixture_before(q, points, variance, t, y)
        weight *= stats.norm.pdf(xt.numpy(), math.sqrt(1 - b) * y, math.sqrt(b)).prod(1)
        weight /= weight.sum()
        law = IdealFullCovarianceReverse(points, variance)(q, xt, torch.tensor([t]))
        assert law.mean[0].tolist() == pytest.approx((weight @ y).tolist(), abs=1e-9)
        assert np.allclose(law.covariance[0], np.cov(y.T, aweights=weight, ddof=0), atol=1e-9)


def test_full_covariance_ideal_loses_less_than_the_diagonal_one():
    q, x0 = GaussianForward(log_snr_linear(6, 1e-3, 0.9)), swiss_roll(2_000, Generator().manual_seed(0))
    diagonal, full = (
        evaluate(kind(swiss_roll_points(500), ROLL_NOISE**2), q, x0, Generator().manual_seed(1)).K
        for kind in (IdealMixtureReverse, IdealFullCovarianceReverse)
    )
    gain, error = mean_and_stderr(full - diagonal)
    assert gain > 5 * error


def test_weighted_mixture_is_points_repeated():
    q, xt, t = GaussianForward(log_snr_linear(4, 0.1, 0.9)), real([0.3], [-2.0]), torch.tensor([2, 4])
    weighted = IdealMixtureReverse(PLACES, WIDTH, UNEVEN)
    repeated = IdealMixtureReverse(PLACES.repeat_interleave(torch.tensor([5, 3, 2]), 0), WIDTH)
    ours, same = weighted(q, xt, t), repeated(q, xt, t)
    assert torch.allclose(ours.mean, same.mean, atol=1e-13) and torch.allclose(ours.variance, same.variance, atol=1e-13)
    assert torch.allclose(weighted.log_prob(xt), repeated.log_prob(xt), atol=1e-12)


# The best schedule


def test_a_step_costs_what_its_two_signal_to_noise_ratios_say():
    """½ Σ log(1 + (s − r) Var(x⁰_i|x^t)) is H[f*] − H_q(X^{t−1}|X^t,X⁰), at every x^t."""
    q, best = GaussianForward(log_snr_linear(5, 0.01, 0.9)), IdealMixtureReverse(swiss_roll_points(200), 0.01)
    xt = torch.randn(50, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
    snr = q.alpha_bar / q.noise_variance
    for t in range(2, 6):
        steps = torch.full((50,), t)
        cost = (best(q, xt, steps).entropy() - q.posterior(xt, xt, steps).entropy()).sum(1)
        variance = best.predict_x0(q, xt, steps)[1]
        assert torch.allclose(cost, 0.5 * torch.log1p((snr[t - 1] - snr[t]) * variance).sum(1), atol=1e-11)


def test_best_schedule_beats_every_one_linear_in_log_snr():
    """On fresh samples, with the same noise: by more than three standard errors, and β_1 is as asked."""
    best, generator = IdealMixtureReverse(swiss_roll_points(500), ROLL_NOISE**2), Generator().manual_seed(0)
    beta = best_schedule(best, 8, 1e-3, swiss_roll(500, generator), generator, n_levels=150)
    assert float(beta[1]) == pytest.approx(1e-3, rel=1e-9) and beta.shape == (9,)
    x0 = swiss_roll(3_000, generator)
    K = ideal_K(best, GaussianForward(beta), x0, Generator().manual_seed(1))
    for last in (0.3, 0.5, 0.7, 0.9):
        gain, error = mean_and_stderr(
            K - ideal_K(best, GaussianForward(log_snr_linear(8, 1e-3, last)), x0, Generator().manual_seed(1))
        )
        assert gain > 3 * error


@pytest.mark.parametrize("seed", range(4))
def test_best_schedule_is_the_best_of_all_paths_with_the_same_noise_at_every_level(seed):
    """K* of (14) by entropies, for each choice of 3 of the 7 levels after β_1, on few samples: luck would decide."""
    points, x0 = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7]), real([1, 0], [-0.5, 1], [-1, -1])
    best = IdealMixtureReverse(points, 0.05)
    found = best_schedule(best, 4, 0.01, x0, Generator().manual_seed(seed), n_levels=8)
    noise = torch.randn(x0.shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
    first, *levels = torch.linspace(math.log(0.99 / 0.01), -7, 8, dtype=torch.float64).sigmoid()

    def K(beta):
        q = GaussianForward(beta)
        at_T, at_1, prior = q.entropy_constants(x0)
        steps = [(q.marginal(x0, t).reparameterize(noise), t) for t in range(2, 5)]
        lost = [(best(q, xt, t).entropy() - q.posterior(xt, x0, t).entropy()).sum(1) for xt, t in steps]
        return float((at_T - at_1 - prior - sum(lost)).mean())

    paths = [beta_from_alpha_bar(torch.stack([first, *path])) for path in combinations(levels, 3)]
    assert torch.allclose(found, max(paths, key=K), rtol=1e-9)


def test_groups_too_many_to_compare_are_not_compared(monkeypatch):
    monkeypatch.setattr("dpm.ideal._interchangeable_groups", lambda *_: pytest.fail("compared"))
    assert (
        enumerate_ideal_K(IdealReverse(heartbeat_sequences(200, 200)), BernoulliForward(linear_alpha_bar(3), 1 / 200))
        is None
    )


def test_a_schedule_of_as_many_steps_as_places_takes_them_all():
    p, generator = IdealMixtureReverse(swiss_roll_points(50), 4e-4), Generator().manual_seed(0)
    beta = best_schedule(p, 6, 1e-3, swiss_roll(20, generator), generator, n_levels=6)
    level = GaussianForward(beta).noise_variance
    assert torch.allclose(level[1:].logit(), torch.linspace(math.log(1e-3 / 0.999), 7, 6).double(), atol=1e-6)


def test_weights_of_equal_points_add_up():
    groups, sizes = torch.tensor([[0.0, 0, 1], [1, 1, 0]]).double(), torch.tensor([1, 1])
    assert _interchangeable_groups(groups, sizes, torch.tensor([0.2, 0.4, 0.4]).double()) == [[0], [1]]


def test_weights_lie_on_the_device_of_the_points():
    assert IdealReverse(torch.zeros(3, 2, device="meta")).weights.device.type == "meta"


@pytest.mark.parametrize("t", [2, 3, 5])
def test_one_t_for_a_batch_is_that_t_for_each(t):
    """An int, and a LongTensor full of it: the same predictions and the same distribution of x^{t−1}."""
    real_process, xt = GaussianForward(log_snr_linear(5, 0.05, 0.9)), real([0.3, 0.4], [-2, 1], [0.0, 0.1])
    points, bits = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7]), all_states(3)
    masked = torch.cartesian_prod(*[AbsorbingForward.states] * 3)
    masked = masked[(masked[:, None] == torch.where(masked[:, None] == 0.5, 0.5, THREE)).all(2).any(1)]  # possible x^t
    for p, q, x in (
        (IdealReverse(points), real_process, xt),
        (IdealMixtureReverse(points, 0.05), real_process, xt),
        (IdealFullCovarianceReverse(points, 0.05), real_process, xt),
        (IdealReverse(THREE), BernoulliForward(linear_alpha_bar(6), 0.2), bits),
        (IdealReverse(THREE), AbsorbingForward(linear_alpha_bar(6)), masked),
    ):
        each = torch.full((len(x),), t)
        for one, many in zip(p.predict_x0(q, x, t), p.predict_x0(q, x, each), strict=True):
            assert one.shape == x.shape and torch.allclose(one, many.expand_as(x), atol=1e-13, rtol=0)
        alike, apart, other = p(q, x, t), p(q, x, each), p(q, x, 4)
        assert torch.allclose(alike.mean, apart.mean, atol=1e-13, rtol=0)
        assert torch.allclose(alike.entropy(), apart.entropy(), atol=1e-13, rtol=0)
        assert float((alike.mean - other.mean).abs().max()) > 1e-4


def test_enumerated_K_of_masks_has_the_slope_of_its_difference_in_beta():
    """β_T is 1 and stays so; below it every β has a slope, though most probabilities of a mask are 0 or 1."""
    beta = real(0, 0.1, 0.4, 0.3, 1).requires_grad_()
    [slope] = torch.autograd.grad(enumerate_ideal_K(IdealReverse(THREE), AbsorbingForward(beta)), beta)
    for t in (1, 2, 3):
        move = torch.zeros(5, dtype=torch.float64)
        move[t] = 1e-6
        up, down = (
            float(enumerate_ideal_K(IdealReverse(THREE), AbsorbingForward(beta.detach() + s * move))) for s in (1, -1)
        )
        assert float(slope[t]) == pytest.approx((up - down) / 2e-6, rel=1e-5)
        assert abs(float(slope[t])) > 1e-3


# Averages over q(x^t)


@pytest.mark.parametrize("t", [1, 3, 5])
def test_the_lattice_has_the_density_and_the_moments_of_q(t, monkeypatch):
    """Blurred points of the plane of unequal weight: log q(x^t) by scipy, its mean and its mean square by hand."""
    monkeypatch.setattr("dpm.ideal.LATTICE_SPACING", 1.0)
    points, weights, variance = real([1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7]), real(0.5, 0.3, 0.2), 0.05
    q, p = GaussianForward(log_snr_linear(5, 0.01, 0.9)), IdealMixtureReverse(points, variance, weights)
    kept = math.prod(1 - b for b in q.beta[: t + 1].tolist())
    xt, weight = p.sample_marginal(q, t, Generator().manual_seed(0))
    width = kept * variance + 1 - kept
    density = sum(
        w * stats.multivariate_normal(math.sqrt(kept) * point, width * np.eye(2)).pdf(xt.numpy())
        for w, point in zip(weights.tolist(), points.numpy(), strict=True)
    )
    assert np.allclose(p.log_marginal(q, xt, t), np.log(density), atol=1e-9)
    assert torch.allclose(IdealReverse.log_marginal(p, q, xt, t), p.log_marginal(q, xt, t), atol=1e-9)
    assert float(weight.sum()) == pytest.approx(1, abs=1e-8) and float(weight.min()) > 0
    assert torch.allclose(weight @ xt, math.sqrt(kept) * weights @ points, atol=1e-5)
    mean_square = kept * float(weights @ points.square().sum(1)) + 2 * width
    assert float(weight @ xt.square().sum(1)) == pytest.approx(mean_square, rel=1e-5)


def test_a_finer_lattice_is_closer(monkeypatch):
    """The entropy of one normal: right to five digits at a spacing of one width, and in the mean of shifts at two."""
    q, p = GaussianForward(log_snr_linear(4, 0.01, 0.9)), IdealMixtureReverse(real([0.3, -0.4]), 0.05)
    exact = math.log(2 * math.pi * math.e * float(q.alpha_bar[2] * 0.05 + q.noise_variance[2]))

    def entropies(spacing):
        monkeypatch.setattr("dpm.ideal.LATTICE_SPACING", spacing)
        generator = Generator().manual_seed(0)
        samples = [p.sample_marginal(q, 2, generator) for _ in range(20)]
        return torch.stack([-(weight @ p.log_marginal(q, xt, 2)) for xt, weight in samples])

    fine, coarse = entropies(1.0), entropies(2.0)
    assert float((fine - exact).abs().max()) < 1e-4 < float((coarse - exact).abs().max())
    mean, stderr = mean_and_stderr(coarse)
    assert mean == pytest.approx(exact, abs=4 * stderr + 1e-3)


def test_samples_of_points_are_of_all_of_them_by_weight():
    q, p = BernoulliForward(linear_alpha_bar(6), 0.2), IdealReverse(THREE, UNEVEN)
    xt, weight = p.sample_marginal(q, 0, Generator().manual_seed(0))
    assert float(weight.sum()) == pytest.approx(1, abs=1e-12)
    found = [float(weight[(xt == point).all(1)].sum()) for point in THREE]
    assert found == pytest.approx(UNEVEN.tolist(), abs=1e-12)


@pytest.mark.parametrize("t", [0, 1, 4])
@every_discrete_process
def test_enumerated_entropy_is_the_sum_over_every_state(make, points, t):
    q = make(6)
    states = torch.cartesian_prod(*[q.states] * 3)
    q_xt = q.marginal(points, t).log_prob(states[:, None]).sum(2).exp().mean(1)
    entropy = enumerate_entropy(IdealReverse(points), q, t)
    assert float(entropy) == pytest.approx(float(torch.special.entr(q_xt).sum()), abs=1e-12)
    assert enumerate_entropy(IdealReverse(points), GaussianForward(linear_alpha_bar(6)), t) is None


def test_best_schedule_of_a_full_covariance_is_better_for_it_than_that_of_the_diagonal():
    """On a line across the plane, where a diagonal covariance has to take small steps: K* with common noise."""
    u = torch.linspace(-1.5, 1.5, 60, dtype=torch.float64)
    points, variance, step = torch.stack([u, u], 1), 4e-4, learned_final_step
    full, diagonal = (
        kind(points, variance, final_step=step) for kind in (IdealFullCovarianceReverse, IdealMixtureReverse)
    )
    generator = Generator().manual_seed(0)
    x0 = points.repeat(60, 1) + math.sqrt(variance) * torch.randn(3_600, 2, generator=generator, dtype=torch.float64)
    K = [
        ideal_K(full, GaussianForward(best_schedule(p, 8, 1e-3, x0, generator, 60)), x0, Generator().manual_seed(1))
        for p in (full, diagonal)
    ]
    gain, stderr = mean_and_stderr(K[0] - K[1])
    assert gain > 5 * stderr
