"""Distributions, each by two routes: closed forms against enumeration, quadrature, scipy, mpmath and torch's own."""

import math

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from scipy import stats

from dpm.distributions import (
    Bernoulli,
    Categorical,
    DiscretizedNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from dpm.forward import AbsorbingForward
from dpm.forward.absorbing import MASK
from dpm.schedules import linear_alpha_bar

GRID = torch.linspace(-14, 14, 5601, dtype=torch.float64)  # a trapezoid sum on it is exact for smooth, narrow densities
STEP = float(GRID[1] - GRID[0])
EXTREME = [-27.631, -13.8, -2.0, 0.0, 0.4, 2.0]  # logits; the first is a probability of 1e-12
mp.dps = 60


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


# Bernoulli


def exact_prob(logit):
    return 1 / (1 + mp.exp(-mpf(logit)))


def exact_kl(p, q):
    r, s = exact_prob(p), exact_prob(q)
    return float(r * mp.log(r / s) + (1 - r) * mp.log((1 - r) / (1 - s)))


@pytest.mark.parametrize("p", EXTREME)
@pytest.mark.parametrize("q", [*EXTREME, -27.0, 27.631])
def test_kl_of_bits_to_60_digits(p, q):
    law, other = Bernoulli(real(p)), Bernoulli(real(q))
    assert float(kl_divergence(law, other)) == pytest.approx(exact_kl(p, q), rel=1e-10, abs=0)


def test_kl_of_bits_with_probabilities_near_one_to_60_digits():
    for p in (13.8, 27.631):
        for q in (13.0, 27.0, 29.0):
            assert float(kl_divergence(Bernoulli(real(p)), Bernoulli(real(q)))) == pytest.approx(
                exact_kl(p, q), rel=1e-10, abs=0
            )


@pytest.mark.parametrize("p", EXTREME)
@pytest.mark.parametrize("q", EXTREME)
def test_kl_of_bits_given_by_their_probabilities(p, q):
    """Probabilities, logits, or one of each: the KL is the same."""
    laws = [(Bernoulli(x), Bernoulli(probs=(x.sigmoid(), (-x).sigmoid()))) for x in (real(p), real(q))]
    for first in laws[0]:
        for second in laws[1]:
            assert float(kl_divergence(first, second)) == pytest.approx(exact_kl(p, q), rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("logit", [*EXTREME, 13.8, 27.631])
def test_bits_entropy_and_log_prob(logit):
    """Against 60 digits; the absolute error is that of float64 at the log odds, which is all that K asks."""
    law, r = Bernoulli(real(logit)), exact_prob(logit)
    assert float(law.entropy()) == pytest.approx(float(-r * mp.log(r) - (1 - r) * mp.log(1 - r)), abs=1e-14)
    assert float(law.log_prob(real(1.0))) == pytest.approx(float(mp.log(r)), abs=1e-14)
    assert float(law.log_prob(real(0.0))) == pytest.approx(float(mp.log(1 - r)), abs=1e-14)
    assert float(law.mean) == pytest.approx(float(r), rel=1e-12, abs=0)


@pytest.mark.parametrize("logit", [-27.631, 27.631])
def test_bits_entropy_and_log_prob_keep_the_digits_of_probabilities_of_1e_12(logit):
    law, r = Bernoulli(real(logit)), exact_prob(logit)
    assert float(law.entropy()) == pytest.approx(float(-r * mp.log(r) - (1 - r) * mp.log(1 - r)), rel=1e-10, abs=0)
    assert float(law.log_prob(real(1.0))) == pytest.approx(float(mp.log(r)), rel=1e-10, abs=0)
    assert float(law.log_prob(real(0.0))) == pytest.approx(float(mp.log(1 - r)), rel=1e-10, abs=0)


@pytest.mark.parametrize("prob", [0.0, 0.2, 0.5, 0.999, 1.0])
def test_bits_drawn_at_evenly_spread_noise_have_their_probability(prob):
    x = Bernoulli(real(prob).logit()).reparameterize((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    assert x.dtype == torch.float64 and set(x.tolist()) <= {0.0, 1.0}
    assert float(x.mean()) == pytest.approx(prob, abs=1e-12)


@pytest.mark.parametrize("slope", [-3.0, 0.0, 0.7])
def test_bits_cross_entropy_and_tilt_by_enumeration(slope):
    p, q = Bernoulli(real(0.4)), Bernoulli(probs=(real(0.9), real(0.1)))
    one = float(real(0.4).sigmoid())
    assert float(p.cross_entropy(q)) == pytest.approx(-one * math.log(0.9) - (1 - one) * math.log(0.1), rel=1e-13)
    assert float(p.variance) == pytest.approx(one * (1 - one), rel=1e-13)
    weight = one * math.exp(slope)
    assert float(p.tilt(real(slope)).mean) == pytest.approx(weight / (weight + 1 - one), rel=1e-13)


def test_bits_are_given_in_one_way():
    for given in ({}, {"logits": real(0.0), "probs": (real(0.5), real(0.5))}):
        with pytest.raises(ValueError, match="either logits or probs"):
            Bernoulli(**given)


# Normal


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (-1.3, 0.01), (0.7, 1e-12)])
def test_normal_density_and_entropy(mean, variance):
    law = Normal(real(mean), real(variance))
    scale = math.sqrt(variance)
    assert float(law.variance) == pytest.approx(variance, rel=1e-14, abs=0)
    for z in (-2.0, 0.0, 0.5):
        x = mean + scale * z
        assert float(law.log_prob(real(x))) == pytest.approx(stats.norm.logpdf(x, mean, scale), rel=1e-10, abs=0)
    assert float(law.entropy()) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * variance), rel=1e-12, abs=0)


def test_kl_of_normals_by_quadrature():
    p, q = Normal(real(0.3), real(0.5)), Normal(real(-0.4), real(1.2))
    integrand = p.log_prob(GRID).exp() * (p.log_prob(GRID) - q.log_prob(GRID))
    assert float(kl_divergence(p, q)) == pytest.approx(float(integrand.sum() * STEP), abs=1e-12)


def test_normal_draws_with_frozen_noise_are_differentiable():
    """Section 2.4.1: x = μ + σ·noise, so ∂x/∂μ = 1 and ∂x/∂σ² = noise/2σ."""
    mean, variance, noise = real(0.3).requires_grad_(), real(0.25).requires_grad_(), real(-1.7)
    x = Normal(mean, variance).reparameterize(noise)
    assert x.item() == pytest.approx(0.3 - 0.5 * 1.7, abs=1e-15)
    to_mean, to_variance = torch.autograd.grad(x, [mean, variance])
    assert (float(to_mean), float(to_variance)) == pytest.approx((1, -1.7), abs=1e-14)


def test_normal_cross_entropy_and_tilt_by_quadrature():
    p, q, slope = Normal(real(0.3), real(0.5)), Normal(real(-0.4), real(1.2)), 0.7
    density = p.log_prob(GRID).exp()
    assert float(p.cross_entropy(q)) == pytest.approx(float(-(density * q.log_prob(GRID)).sum() * STEP), abs=1e-12)
    tilted = density * (slope * GRID).exp()
    tilted = tilted / (tilted.sum() * STEP)
    assert torch.allclose(p.tilt(real(slope)).log_prob(GRID).exp(), tilted, atol=1e-13, rtol=0)


def test_normal_cross_entropy_is_finite_where_a_point_has_no_entropy():
    point, q = Normal(real(0.3), real(0.0)), Normal(real(-0.4), real(1.2))
    assert float(point.cross_entropy(q)) == pytest.approx(-stats.norm.logpdf(0.3, -0.4, math.sqrt(1.2)), rel=1e-13)
    assert float(point.entropy()) == -math.inf


def test_a_variance_that_is_one_number_broadcasts():
    """A number, as for an int t, gives what the same number for each entry gives, with the shape of the mean."""
    mean = real([0.1, -0.2], [1.3, 0.4])
    number, each = Normal(mean, real(0.3)[0]), Normal(mean, torch.full_like(mean, 0.3))
    other = Normal(mean / 2, real(0.7)[0])
    for name in ("stddev", "entropy", "cross_entropy", "kl_divergence"):
        value, want = (getattr(p, name) for p in (number, each))
        if name != "stddev":
            value, want = (f(*[other] * (name != "entropy")) for f in (value, want))
        assert value.shape == mean.shape and torch.equal(value, want)


# MultivariateNormal: against torch's, against independent normals, and by quadrature

MEAN, OTHER_MEAN = real([0.3, -0.7], [1.1, 0.2]), real([-0.5, 0.1], [0.4, 0.9])
COVARIANCE = real([[0.8, 0.5], [0.5, 0.6]], [[1.5, -0.2], [-0.2, 0.3]])
OTHER_COVARIANCE = real([[1.1, -0.4], [-0.4, 0.9]], [[0.5, 0.1], [0.1, 0.7]])
PLANE = torch.cartesian_prod(*[torch.linspace(-10, 10, 401, dtype=torch.float64)] * 2)
CELL = (20 / 400) ** 2


def correlated():
    return MultivariateNormal(MEAN, COVARIANCE), MultivariateNormal(OTHER_MEAN, OTHER_COVARIANCE)


def test_multivariate_normal_is_that_of_torch():
    p, q = correlated()
    one, other = (torch.distributions.MultivariateNormal(law.mean, law.covariance) for law in (p, q))
    x = real([0.1, 0.2], [-1.0, 3.0])
    assert torch.allclose(p.log_prob(x), one.log_prob(x), rtol=1e-13, atol=0)
    assert torch.allclose(p.entropy(), one.entropy(), rtol=1e-13, atol=0)
    assert torch.allclose(p.variance, one.variance, rtol=1e-13, atol=0)
    assert torch.allclose(kl_divergence(p, q), torch.distributions.kl_divergence(one, other), rtol=1e-12, atol=0)


@pytest.mark.parametrize("i", [0, 1])
def test_multivariate_normal_by_quadrature_over_the_plane(i):
    """Total mass, mean, covariance, entropy, cross entropy and KL, all [B]: one batch entry at a time."""
    p, q = correlated()
    log_p, log_q = (MultivariateNormal(law.mean[i], law.covariance[i]).log_prob(PLANE) for law in (p, q))
    weight = log_p.exp() * CELL
    assert float(weight.sum()) == pytest.approx(1, abs=1e-10)
    mean = weight @ PLANE
    assert torch.allclose(p.mean[i], mean, atol=1e-9, rtol=0)
    assert torch.allclose(p.covariance[i], (weight[:, None] * (PLANE - mean)).T @ (PLANE - mean), atol=1e-9, rtol=0)
    assert float(p.entropy()[i]) == pytest.approx(float(-weight @ log_p), abs=1e-9)
    assert float(p.cross_entropy(q)[i]) == pytest.approx(float(-weight @ log_q), abs=1e-9)
    assert float(p.kl_divergence(q)[i]) == pytest.approx(float(weight @ (log_p - log_q)), abs=1e-9)


def test_multivariate_normal_without_correlation_is_independent_normals():
    variance, other = real([0.8, 0.6], [1.5, 0.3]), correlated()[1]
    whole, each = MultivariateNormal(MEAN, torch.diag_embed(variance)), Normal(MEAN, variance)
    x = real([0.1, 0.2], [-1.0, 3.0])
    assert torch.allclose(whole.log_prob(x), each.log_prob(x).sum(1), rtol=1e-13, atol=0)
    assert torch.allclose(whole.entropy(), each.entropy().sum(1), rtol=1e-13, atol=0)
    assert torch.allclose(whole.reparameterize(x), each.reparameterize(x), rtol=1e-13, atol=0)
    assert torch.allclose(kl_divergence(each, other), kl_divergence(whole, other), rtol=1e-13, atol=0)
    one = torch.distributions.MultivariateNormal(MEAN, torch.diag_embed(variance))
    two = torch.distributions.MultivariateNormal(other.mean, other.covariance)
    assert torch.allclose(kl_divergence(each, other), torch.distributions.kl_divergence(one, two), rtol=1e-12, atol=0)


def test_multivariate_normal_draws_have_its_mean_and_covariance():
    """Noise 0 gives the mean; the images of the unit vectors are a root of the covariance."""
    p, _ = correlated()
    assert torch.equal(p.reparameterize(torch.zeros_like(MEAN)), MEAN)
    root = torch.stack([p.reparameterize(unit.expand(2, 2)) - MEAN for unit in torch.eye(2).double()], dim=2)
    assert torch.allclose(root @ root.mT, COVARIANCE, atol=1e-14, rtol=0)


def test_multivariate_normal_tilt_is_the_density_times_an_exponential():
    p, _ = correlated()
    slope = real([0.7, -0.2], [-1.0, 0.4])
    for i in range(2):
        weight = MultivariateNormal(p.mean[i], p.covariance[i]).log_prob(PLANE) + PLANE @ slope[i]
        normalised = weight - torch.logsumexp(weight, 0) - math.log(CELL)
        law = p.tilt(slope)
        assert torch.allclose(
            MultivariateNormal(law.mean[i], law.covariance[i]).log_prob(PLANE), normalised, atol=1e-9, rtol=1e-12
        )


# Categorical: against enumeration, torch's, and Bernoulli

VALUES = real(-1.0, 0.5, 2.0)
PROBS, OTHER_PROBS = real([0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.6, 0.0, 0.4]), real(0.1, 0.6, 0.3)


def test_categorical_by_enumeration():
    p, q = Categorical(PROBS, VALUES), Categorical(OTHER_PROBS.expand(3, 3), VALUES)
    for i, row in enumerate(PROBS.tolist()):
        pairs = list(zip(row, VALUES.tolist(), strict=True))
        mean = sum(r * v for r, v in pairs)
        assert float(p.mean[i]) == pytest.approx(mean, abs=1e-15)
        assert float(p.variance[i]) == pytest.approx(sum(r * (v - mean) ** 2 for r, v in pairs), abs=1e-14)
        assert float(p.entropy()[i]) == pytest.approx(-sum(r * math.log(r) for r in row if r), abs=1e-15)
        cross = [-r * math.log(s) for r, s in zip(row, OTHER_PROBS.tolist(), strict=True)]
        assert float(p.cross_entropy(q)[i]) == pytest.approx(sum(cross), abs=1e-14)
        kl = sum(r * math.log(r / s) for r, s in zip(row, OTHER_PROBS.tolist(), strict=True) if r)
        assert float(kl_divergence(p, q)[i]) == pytest.approx(kl, abs=1e-14)
        for k, value in enumerate(VALUES.tolist()):
            log_prob = float(p.log_prob(torch.full((3,), value).double())[i])
            assert log_prob == (pytest.approx(math.log(row[k]), abs=1e-15) if row[k] else -math.inf)


def test_categorical_is_that_of_torch_where_nothing_is_impossible():
    p, q = (Categorical(probs, VALUES) for probs in (PROBS[0], OTHER_PROBS))
    one, other = (torch.distributions.Categorical(law.probs) for law in (p, q))
    assert torch.allclose(p.entropy(), one.entropy(), rtol=1e-13, atol=0)
    assert torch.allclose(kl_divergence(p, q), torch.distributions.kl_divergence(one, other), rtol=1e-12, atol=0)
    assert torch.allclose(p.log_prob(VALUES), one.log_prob(torch.arange(3)), rtol=1e-13, atol=0)


def test_categorical_of_two_values_is_a_bernoulli():
    logits, x = real([-2.0, 0.4], [3.0, 0.0]), real([0, 1], [1, 0])
    bits, other = Bernoulli(logits), Bernoulli(logits / 2)
    pair, other_pair = (
        Categorical(torch.stack([law.prob_zero, law.probs], dim=-1), real(0, 1)) for law in (bits, other)
    )
    for value, want in (
        (pair.mean, bits.mean),
        (pair.variance, bits.variance),
        (pair.log_prob(x), bits.log_prob(x)),
        (pair.entropy(), bits.entropy()),
        (pair.cross_entropy(other_pair), bits.cross_entropy(other)),
        (pair.kl_divergence(other_pair), bits.kl_divergence(other)),
        (pair.tilt(logits).mean, bits.tilt(logits).mean),
    ):
        assert value.shape == want.shape and torch.allclose(value, want, atol=1e-14, rtol=1e-12)


def test_categorical_of_what_cannot_be():
    """No value, whether below, between or above the values, has a probability; and a KL to what is impossible is ∞."""
    p = Categorical(PROBS[:1], VALUES)
    assert p.log_prob(real(-3.0, -0.9, 1.0, 2.1)).tolist() == [-math.inf] * 4
    assert float(kl_divergence(p, Categorical(PROBS[2:], VALUES))) == math.inf


@pytest.mark.parametrize("i", [0, 1, 2])
def test_categorical_draws_at_evenly_spread_noise_have_their_probabilities(i):
    noise = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    x = Categorical(PROBS[i], VALUES).reparameterize(noise)
    assert [float((x == value).double().mean()) for value in VALUES] == pytest.approx(PROBS[i].tolist(), abs=1e-12)
    assert x.dtype == torch.float64


def test_categorical_draws_where_the_probabilities_sum_to_less_than_1():
    """By a rounding: noise above the sum gives the last value and not an index out of range."""
    assert float(Categorical(real(0.5, 0.3, 0.2 - 1e-9), VALUES).reparameterize(real(1 - 1e-12))) == 2.0


def test_categorical_tilt_by_enumeration():
    slope = real(0.7, -2.0, 0.3)
    tilted = Categorical(PROBS, VALUES).tilt(slope)
    weight = PROBS * (slope[:, None] * VALUES).exp()
    assert torch.allclose(tilted.probs, weight / weight.sum(1, keepdim=True), atol=1e-15, rtol=0)
    assert bool((tilted.probs[PROBS == 0] == 0).all())


def test_masks_have_gradients_though_most_of_their_probabilities_are_0():
    """Slope of KL and entropy of a masked reverse step in the prediction of x⁰, against differences."""
    q, xt, x0 = AbsorbingForward(linear_alpha_bar(4)), real([0.0], [MASK], [1.0]), real([0.0], [1.0], [1.0])

    def kl_and_entropy(mean):
        law = q.posterior_from_moments(xt, mean, 0.0, 3)
        return kl_divergence(q.posterior(xt, x0, 3), law).sum() + 2 * law.entropy().sum()

    mean = torch.full((3, 1), 0.3, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(kl_and_entropy(mean), mean)
    for i in range(3):
        move = torch.zeros(3, 1, dtype=torch.float64)
        move[i] = 1e-6
        difference = kl_and_entropy(mean.detach() + move) - kl_and_entropy(mean.detach() - move)
        assert float(slope[i]) == pytest.approx(float(difference) / 2e-6, abs=1e-8)
    assert float(slope[1]) != 0 and slope[[0, 2]].flatten().tolist() == [0, 0]


# DiscretizedNormal: against scipy, 60 digits, and draws

LEVELS = torch.linspace(-1, 1, 9, dtype=torch.float64)


def discretized(mean, variance):
    return DiscretizedNormal(Normal(real(mean), real(variance)), 0.25, -1.0, 1.0)


def edges_of(k):
    """The bin of level k; the outermost reach to infinity."""
    return (-np.inf if k == 0 else float(LEVELS[k]) - 0.125), (np.inf if k == 8 else float(LEVELS[k]) + 0.125)


@pytest.mark.parametrize(("mean", "variance"), [(0.1, 0.2), (-0.9, 0.05), (3.0, 1.0), (0.0, 40.0)])
def test_levels_have_the_mass_of_their_bins(mean, variance):
    log_prob = discretized(mean, variance).log_prob(LEVELS)
    naive = [np.diff(stats.norm.cdf(edges_of(k), mean, math.sqrt(variance)))[0] for k in range(9)]
    assert log_prob.exp().tolist() == pytest.approx(naive, abs=1e-13)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("mean", [0.9, -0.9, 5.0])
def test_levels_far_in_either_tail_keep_their_digits(mean):
    """Up to 60 standard deviations away, against 60 digits; a difference of two Φ near 1 would be 0."""
    log_prob = discretized(mean, 0.01).log_prob(LEVELS)

    def upper_tail(z):
        return mp.erfc(z / mp.sqrt(2)) / 2

    for k in range(9):
        low, high = ((mpf(edge) - mpf(mean)) / mp.sqrt(mpf(0.01)) for edge in edges_of(k))
        if low + high < 0 or low == -mp.inf:
            low, high = -high, -low  # the right tail has the digits
        exact = float(mp.log(upper_tail(low) - upper_tail(high)))
        assert float(log_prob[k]) == pytest.approx(exact, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("mean", "variance"), [(0.1, 0.2), (-0.9, 0.05), (0.9, 1e-2)])
def test_levels_have_gradients_also_where_a_bin_reaches_to_infinity(mean, variance):
    for k in range(9):
        parameters = real(mean).requires_grad_(), real(variance).requires_grad_()
        slopes = torch.autograd.grad(
            DiscretizedNormal(Normal(*parameters), 0.25, -1.0, 1.0).log_prob(LEVELS[k : k + 1]).sum(), parameters
        )
        for slope, moves in zip(slopes, ((1e-6, 0.0), (0.0, 1e-6)), strict=True):
            up, down = (
                float(discretized(mean + s * moves[0], variance + s * moves[1]).log_prob(LEVELS)[k]) for s in (1, -1)
            )
            assert float(slope) == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-6)


def test_levels_drawn_at_evenly_spread_noise_have_their_probabilities():
    """Normal noise at 20,000 evenly spread quantiles: the share of each level is its probability."""
    law, n = discretized(0.3, 0.3), 20_000
    x = law.reparameterize(torch.tensor(stats.norm.ppf((np.arange(n) + 0.5) / n)))
    assert bool(torch.isin(x, LEVELS).all())
    share = torch.stack([(x == level).double().mean() for level in LEVELS])
    assert torch.allclose(share, law.log_prob(LEVELS).exp(), atol=1.01 / n, rtol=0)
