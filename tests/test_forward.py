"""The forward process, Section 2.1 and Table App.1: each distribution in closed form and by brute force, float64."""

import math

import pytest
import torch
from scipy import stats
from torch import Generator

from dpm.forward import AbsorbingForward, BernoulliForward, GaussianForward
from dpm.forward.absorbing import MASK
from dpm.schedules import linear_alpha_bar, log_snr_linear

PRIOR_PROBS = [0.5, 0.2]
GRID = torch.linspace(-14, 14, 5601, dtype=torch.float64)  # a trapezoid sum on it is exact for smooth, narrow laws
STEP = float(GRID[1] - GRID[0])


def random_beta(T, seed=0):
    rates = 0.02 + 0.6 * torch.rand(T, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), rates])


SCHEDULES = [
    linear_alpha_bar(3),
    linear_alpha_bar(20),
    log_snr_linear(10, 1e-3, 0.99),
    random_beta(2),
    random_beta(7),
]
GAUSSIANS = [log_snr_linear(2, 0.05, 0.7), log_snr_linear(10, 1e-3, 0.99), random_beta(7), linear_alpha_bar(6)]


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def column(*values):
    return real(*values)[:, None]


def steps(t, x):
    return torch.full((len(x),), t)


def step_matrix(q, t):
    """T_π(x^t | x^{t−1}; β_t) of one bit as Table App.1 prints it: rows x^{t−1}, columns x^t."""
    beta, on = float(q.beta[t]), [x * (1 - float(q.beta[t])) + q.prior_prob * float(q.beta[t]) for x in (0, 1)]
    assert 0 <= beta <= 1
    return real(*[[1 - r, r] for r in on])


def marginal_matrix(q, t):
    """q(x^t | x⁰) of one bit, as a product of t step matrices."""
    product = torch.eye(2, dtype=torch.float64)
    for s in range(1, t + 1):
        product = product @ step_matrix(q, s)
    return product


def table(law):
    """P(x=0), P(x=1) of a batch of single bits: [B, 1] → [B, 2]."""
    return torch.cat([law.log_prob(torch.zeros_like(law.logits)), law.log_prob(torch.ones_like(law.logits))], 1).exp()


BOTH = column(0, 1)


# The kernels, equations (1) and (2)


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
@pytest.mark.parametrize("beta", SCHEDULES, ids=len)
def test_bernoulli_transition_is_table_app_1(beta, prior_prob):
    """Equation (2): from each bit, the probabilities printed there."""
    q = BernoulliForward(beta, prior_prob)
    for t in range(1, q.T + 1):
        assert torch.allclose(table(q.transition(BOTH, steps(t, BOTH))), step_matrix(q, t), atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", GAUSSIANS, ids=len)
def test_gaussian_transition_is_table_app_1(beta):
    """Equation (2): mean and variance printed there."""
    q, x = GaussianForward(beta), column(-1.3, 0.4, 2.2)
    for t in range(1, q.T + 1):
        law, b = q.transition(x, steps(t, x)), float(beta[t])
        assert torch.allclose(law.mean, x * math.sqrt(1 - b), atol=1e-14, rtol=0)
        assert torch.allclose(law.variance, torch.full_like(x, b), atol=1e-14, rtol=0)


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
@pytest.mark.parametrize("beta", SCHEDULES, ids=len)
def test_bernoulli_prior_is_stationary(beta, prior_prob):
    """Equation (1), exactly: π T = π at every t."""
    q = BernoulliForward(beta, prior_prob)
    prior = table(q.prior(column(0.0)))
    assert prior[0].tolist() == pytest.approx([1 - prior_prob, prior_prob], abs=1e-14)
    for t in range(1, q.T + 1):
        assert torch.allclose(prior @ table(q.transition(BOTH, steps(t, BOTH))), prior, atol=1e-13, rtol=0)


@pytest.mark.parametrize("beta", GAUSSIANS, ids=len)
def test_gaussian_prior_is_stationary(beta):
    """Equation (1) by quadrature: ∫ T(y|y′) π(y′) dy′ = π(y) = N(y; 0, 1)."""
    q, y = GaussianForward(beta), real(-2.5, -0.3, 0, 1.7)
    for t in range(1, q.T + 1):
        before = GRID[:, None]
        weights = q.prior(before).log_prob(before).exp() * STEP
        after = (q.transition(before, steps(t, before)).log_prob(y).exp() * weights).sum(0)
        assert after.tolist() == pytest.approx(stats.norm.pdf(y).tolist(), abs=1e-12)


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
def test_bernoulli_detailed_balance(prior_prob):
    """What the edge step (44) rests on: T(x⁰|x¹) π(x¹) = T(x¹|x⁰) π(x⁰)."""
    q = BernoulliForward(linear_alpha_bar(5), prior_prob)
    prior = table(q.prior(column(0.0)))[0]
    for t in range(1, q.T + 1):
        flow = prior[:, None] * table(q.transition(BOTH, steps(t, BOTH)))
        assert torch.allclose(flow, flow.T, atol=1e-14, rtol=0)


@pytest.mark.parametrize("beta", GAUSSIANS, ids=len)
def test_gaussian_detailed_balance(beta):
    q = GaussianForward(beta)
    a, b = (x.reshape(-1, 1) for x in torch.meshgrid(real(-2, -0.1, 1.5), real(-1, 0.7, 3), indexing="ij"))
    for t in range(1, q.T + 1):
        there = q.prior(a).log_prob(a) + q.transition(a, steps(t, a)).log_prob(b)
        back = q.prior(b).log_prob(b) + q.transition(b, steps(t, b)).log_prob(a)
        assert torch.allclose(there, back, atol=1e-10, rtol=1e-12)


# t steps at once


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
@pytest.mark.parametrize("beta", SCHEDULES, ids=len)
def test_bernoulli_marginal_is_the_product_of_its_transitions(beta, prior_prob):
    """Equation (3), summed over all states between 0 and t."""
    q = BernoulliForward(beta, prior_prob)
    for t in range(1, q.T + 1):
        assert torch.allclose(table(q.marginal(BOTH, steps(t, BOTH))), marginal_matrix(q, t), atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", GAUSSIANS, ids=len)
def test_gaussian_marginal_is_the_composition_of_its_transitions(beta):
    """Equation (3), integrated over all states between 0 and t, moment by moment."""
    q, x0 = GaussianForward(beta), column(-1.3, 0.4, 2.2)
    mean, variance = x0, torch.zeros_like(x0)
    for t in range(1, q.T + 1):
        gain = (
            q.transition(torch.ones_like(x0), steps(t, x0)).mean - q.transition(torch.zeros_like(x0), steps(t, x0)).mean
        )
        mean, variance = gain * mean, gain**2 * variance + q.transition(x0, steps(t, x0)).variance
        law = q.marginal(x0, steps(t, x0))
        assert torch.allclose(law.mean, mean, atol=1e-12, rtol=0)
        assert torch.allclose(law.variance, variance, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", GAUSSIANS, ids=len)
def test_gaussian_total_variance_is_one_at_every_t(beta):
    """Data of variance 1 keep it, by the marginals and step by step."""
    q, x0 = GaussianForward(beta), column(-1, 1)  # mean 0, variance 1
    variance = torch.ones(1, dtype=torch.float64)
    for t in range(1, q.T + 1):
        law = q.marginal(x0, steps(t, x0))
        assert float(law.mean.var(correction=0) + law.variance.mean()) == pytest.approx(1, abs=1e-12)
        one = torch.ones(1, 1, dtype=torch.float64)
        variance = variance * q.transition(one, steps(t, one)).mean ** 2 + q.transition(one, steps(t, one)).variance
        assert float(variance) == pytest.approx(1, abs=1e-12)


def test_bits_of_the_probability_of_the_prior_keep_it():
    q, x0 = BernoulliForward(linear_alpha_bar(9), 0.2), column(1, 0, 0, 0, 0)
    for t in range(1, q.T + 1):
        assert float(q.marginal(x0, steps(t, x0)).probs.mean()) == pytest.approx(0.2, abs=1e-14)


def test_the_last_step_of_linear_alpha_bar_forgets_the_start():
    q = BernoulliForward(linear_alpha_bar(6), 0.2)
    law = q.marginal(BOTH, steps(6, BOTH))
    assert law.probs.flatten().tolist() == pytest.approx([0.2, 0.2], abs=1e-15)
    assert q.log_likelihood_ratio(BOTH, steps(6, BOTH)).tolist() == [[0.0], [0.0]]
    kept = q.posterior(1 - BOTH, BOTH, steps(6, BOTH))  # x^6 says nothing of x^5 either
    assert torch.allclose(kept.probs, q.marginal(BOTH, steps(5, BOTH)).probs, atol=1e-14, rtol=0)


def test_noise_variance_keeps_the_digits_of_tiny_beta():
    beta = real(0, 1e-12, 3e-12)
    for q in (GaussianForward(beta), BernoulliForward(beta, 0.2)):
        assert q.noise_variance.tolist() == pytest.approx([0, 1e-12, 4e-12], rel=1e-10, abs=0)
        assert torch.allclose(q.alpha_bar, 1 - q.noise_variance, atol=1e-15, rtol=0)
        assert q.T == 2


# Bayes' rule: posteriors, also from moments; likelihood ratios


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
@pytest.mark.parametrize("beta", SCHEDULES, ids=len)
def test_bernoulli_posterior_is_bayes(beta, prior_prob):
    """q(x^{t−1}|x^t,x⁰) of (47)-(48) by enumeration of x^{t−1}, with the normaliser."""
    q = BernoulliForward(beta, prior_prob)
    for t in range(2, q.T + 1):
        before, step = marginal_matrix(q, t - 1), step_matrix(q, t)
        for x0 in (0, 1):
            for xt in (0, 1):
                joint = before[x0] * step[:, xt]
                law = q.posterior(column(xt), column(x0), torch.tensor([t]))
                assert table(law)[0].tolist() == pytest.approx((joint / joint.sum()).tolist(), abs=1e-12)


@pytest.mark.parametrize("beta", GAUSSIANS, ids=len)
@pytest.mark.parametrize(("x0", "xt"), [(0.7, -0.4), (-1.5, 1.1), (2.0, 1.9)])
def test_gaussian_posterior_is_bayes(beta, x0, xt):
    """q(x^{t−1}|x^t,x⁰) of (47)-(48) by quadrature over x^{t−1}, with the normaliser."""
    q, centre = GaussianForward(beta), column(x0)
    y = torch.linspace(-8, 8, 32_001, dtype=torch.float64)[:, None]  # 40 places in the narrowest σ
    for t in range(2, q.T + 1):
        before = q.marginal(centre, torch.tensor([t - 1]))
        log_joint = (before.log_prob(y) + q.transition(y, steps(t, y)).log_prob(column(xt))).flatten()
        weight = torch.softmax(log_joint, 0)
        law, mean = q.posterior(column(xt), centre, torch.tensor([t])), (weight @ y).item()
        assert float(law.mean) == pytest.approx(mean, abs=1e-9)
        assert float(law.variance) == pytest.approx((weight @ (y - mean).square()).item(), rel=1e-8, abs=0)
        log_normaliser = torch.logsumexp(log_joint, 0) + (y[1, 0] - y[0, 0]).log()
        inside = weight > 1e-6 * weight.max()
        assert torch.allclose(law.log_prob(y).flatten()[inside], (log_joint - log_normaliser)[inside], atol=1e-8)


@pytest.mark.parametrize("beta", GAUSSIANS, ids=len)
def test_gaussian_posterior_from_moments_has_the_total_mean_and_variance(beta):
    """Posteriors mixed over three places of x⁰, moment by moment."""
    q, places, weight, xt = GaussianForward(beta), column(-1.2, 0.3, 2.0), real(0.2, 0.5, 0.3), 0.6
    mean = weight @ places
    variance = weight @ (places - mean).square()
    for t in range(2, q.T + 1):
        each = q.posterior(torch.full_like(places, xt), places, steps(t, places))
        total = weight @ each.mean
        spread = weight @ (each.variance + each.mean.square()) - total.square()
        law = q.posterior_from_moments(column(xt), mean[None], variance[None], torch.tensor([t]))
        assert float(law.mean) == pytest.approx(float(total), abs=1e-12)
        assert float(law.variance) == pytest.approx(float(spread), abs=1e-12)


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
@pytest.mark.parametrize("beta", SCHEDULES, ids=len)
@pytest.mark.parametrize("share", [0.0, 0.13, 0.8, 1.0])
def test_bernoulli_posterior_from_moments_is_the_mixture_of_posteriors(beta, prior_prob, share):
    q, mean = BernoulliForward(beta, prior_prob), torch.full_like(BOTH, share)
    for t in range(2, q.T + 1):
        at_one = q.posterior(BOTH, torch.ones_like(BOTH), steps(t, BOTH)).probs
        at_zero = q.posterior(BOTH, torch.zeros_like(BOTH), steps(t, BOTH)).probs
        law = q.posterior_from_moments(BOTH, mean, mean * (1 - mean), steps(t, BOTH))
        assert torch.allclose(law.probs, share * at_one + (1 - share) * at_zero, atol=1e-13, rtol=0)


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
@pytest.mark.parametrize("beta", SCHEDULES, ids=len)
def test_log_likelihood_ratio_is_that_of_the_marginals(beta, prior_prob):
    """log q(x^t|x⁰=1)/q(x^t|x⁰=0) from products of step matrices."""
    q = BernoulliForward(beta, prior_prob)
    for t in range(1, q.T + 1):
        matrix = marginal_matrix(q, t).log()
        assert torch.allclose(
            q.log_likelihood_ratio(BOTH, steps(t, BOTH))[:, 0], matrix[1] - matrix[0], atol=1e-11, rtol=0
        )


def test_log_likelihood_ratio_keeps_its_digits_when_little_signal_is_left():
    """q(1|1)/q(1|0) = 1 + ᾱ/(rate (1−ᾱ)), of order ᾱ once nearly all is erased; likewise for a 0."""
    q = BernoulliForward(real(0, 1 - 1e-9), 0.2)
    odds = float(q.alpha_bar[1] / q.noise_variance[1])
    off, on = q.log_likelihood_ratio(BOTH, steps(1, BOTH)).flatten().tolist()
    assert (off, on) == pytest.approx((-math.log1p(odds / 0.8), math.log1p(odds / 0.2)), rel=1e-6, abs=0)


def test_log_likelihood_ratio_of_a_nearly_untouched_bit_keeps_its_digits():
    q = BernoulliForward(real(0, 1e-12), 0.2)
    off, on = q.log_likelihood_ratio(BOTH, steps(1, BOTH)).flatten().tolist()
    assert off == pytest.approx(math.log(0.8e-12), rel=1e-12, abs=0)
    assert on == pytest.approx(-math.log(0.2e-12), rel=1e-12, abs=0)


def up_to_a_constant(values, naive):
    """Rows agree once each is moved by a constant of its own."""
    gap = values - naive
    assert torch.allclose(gap, gap[:, :1].expand_as(gap), atol=1e-10, rtol=0)
    assert float(values.std(dim=1).min()) > 1e-3  # there is something to tell the points apart


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
def test_bernoulli_log_likelihood_tells_points_apart_as_the_marginals_do(prior_prob):
    generator = Generator().manual_seed(1)
    points, xt = (torch.randint(2, size, generator=generator).double() for size in ((5, 6), (4, 6)))
    points[0], points[1] = 0, 1
    q = BernoulliForward(linear_alpha_bar(8), prior_prob)
    for t in (1, 2, 5, 7):
        naive = torch.stack([q.marginal(p.expand_as(xt), steps(t, xt)).log_prob(xt).sum(1) for p in points], 1)
        up_to_a_constant(q.log_likelihood(xt, points, steps(t, xt)), naive)


@pytest.mark.parametrize("variance", [0.0, 0.3])
def test_gaussian_log_likelihood_tells_points_apart_as_the_marginals_do(variance):
    generator = Generator().manual_seed(1)
    points, xt = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((5, 3), (4, 3)))
    q = GaussianForward(log_snr_linear(6, 0.1, 0.9))
    for t in (1, 3, 6):
        signal = math.prod(1 - b for b in q.beta[: t + 1].tolist())
        scale = math.sqrt(signal * variance + 1 - signal)  # of x^t about √ᾱ · point
        naive = [stats.norm.logpdf(xt, math.sqrt(signal) * p, scale).sum(1) for p in points]
        up_to_a_constant(
            q.log_likelihood(xt, points, steps(t, xt), variance), torch.stack([torch.tensor(n) for n in naive], 1)
        )
    if not variance:
        assert torch.equal(q.log_likelihood(xt, points, steps(3, xt)), q.log_likelihood(xt, points, steps(3, xt), 0.0))


def test_a_t_per_sample_and_any_shape():
    """A batch of mixed t gives row by row what each t alone gives, and images what their flat rows give."""
    generator = Generator().manual_seed(2)
    beta, t = log_snr_linear(9, 0.01, 0.9), torch.tensor([2, 9, 5, 3])
    a, b = (torch.randint(2, (4, 3, 2, 2), generator=generator).double() for _ in range(2))
    for q in (GaussianForward(beta), BernoulliForward(beta, 0.2)):
        for laws in (
            lambda q, t, x, y: q.transition(x, t),
            lambda q, t, x, y: q.marginal(x, t),
            lambda q, t, x, y: q.posterior(x, y, t),
            lambda q, t, x, y: q.posterior_from_moments(x, y / 2, y / 4, t),
        ):
            whole = laws(q, t, a, b)
            flat = torch.cat([laws(q, t[i, None], a[i].reshape(1, -1), b[i].reshape(1, -1)).mean for i in range(4)])
            assert whole.mean.shape == a.shape == whole.entropy().shape
            assert torch.equal(whole.mean.flatten(1), flat)


# Digits near 0 and 1, noise, priors


def test_bernoulli_distributions_keep_probabilities_of_1e_12():
    """No cancellation on the way from β to log odds, at either end."""
    q = BernoulliForward(real(0, 1e-12, 1e-12), 0.2)
    first, second = torch.tensor([1, 1]), torch.tensor([2, 2])
    off, on = q.transition(BOTH, first).logits.flatten().tolist()
    assert (off, on) == pytest.approx((math.log(0.2e-12), -math.log(0.8e-12)), rel=1e-13, abs=0)
    off, on = q.marginal(BOTH, second).logits.flatten().tolist()
    assert (off, on) == pytest.approx((math.log(0.4e-12), -math.log(1.6e-12)), rel=1e-13, abs=0)
    off, on = q.posterior(BOTH, BOTH, second).logits.flatten().tolist()  # two jumps there and back
    assert (off, on) == pytest.approx((math.log(0.2e-12 * 0.8e-12), -math.log(0.8e-12 * 0.2e-12)), rel=1e-12, abs=0)


def test_bernoulli_posterior_from_moments_keeps_probabilities_of_1e_12():
    """Known for certain, x⁰ gives its posterior, of probabilities near 1e-25; known but for 1e-20, both ways count."""
    q, second = BernoulliForward(real(0, 1e-12, 1e-12), 0.2), torch.tensor([2, 2])
    law = q.posterior_from_moments(BOTH, BOTH, torch.zeros_like(BOTH), second)
    assert torch.allclose(law.logits, q.posterior(BOTH, BOTH, second).logits, rtol=1e-12, atol=0)
    doubt = torch.full((1, 1), 1e-20, dtype=torch.float64)
    law = q.posterior_from_moments(
        column(0.0), doubt, doubt, second[:1]
    )  # x² = 0: on from x⁰ = 1 half the time, from x⁰ = 0 hardly
    assert float(law.logits) == pytest.approx(math.log(1e-20 / 2 + 0.2e-12 * 0.8e-12), rel=1e-10, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_distribution_that_reparameterize_needs(dtype):
    """Kolmogorov-Smirnov against N(0,1) and U(0,1); one seed, one draw."""
    x = torch.empty(20_000, 1, dtype=dtype)
    for q, law in ((GaussianForward(random_beta(3)), "norm"), (BernoulliForward(random_beta(3)), "uniform")):
        noise, again = (q.sample_noise(x, Generator().manual_seed(3)) for _ in range(2))
        assert noise.shape == x.shape and noise.dtype == dtype and torch.equal(noise, again)
        assert stats.kstest(noise.flatten().double().numpy(), law).pvalue > 1e-3


def test_gaussian_prior_is_standard_normal():
    law = GaussianForward(random_beta(3)).prior(torch.full((2, 3), 7.0, dtype=torch.float64))
    assert torch.equal(law.mean, torch.zeros(2, 3).double()) and torch.equal(law.variance, torch.ones(2, 3).double())


# Shortcuts, each against the long way


def processes_and_batches():
    generator, beta = Generator().manual_seed(4), log_snr_linear(9, 0.01, 0.9)
    for q, draw in (
        (GaussianForward(beta), torch.randn),
        (BernoulliForward(beta, 0.2), lambda *n, **o: torch.rand(*n, **o).round()),
    ):
        yield q, *(draw(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))


def same(one, other):
    return all(
        torch.allclose(a, b, rtol=1e-13, atol=1e-15)
        for a, b in ((one.mean, other.mean), (one.entropy(), other.entropy()))
    )


def test_posterior_coefficients_are_the_posterior():
    """All of them, those of one t, and those of one t per sample: the same three numbers."""
    q, xt, x0 = next(iter(processes_and_batches()))
    t = torch.tensor([2, 9, 5, 3])
    assert isinstance(q, GaussianForward)
    per_t = q.extract_posterior_coefficients(t, xt)
    for name in ("x0", "xt", "variance"):
        everything = getattr(q.posterior_coefficients, name)
        assert everything.shape == (q.T + 1,)
        assert torch.equal(getattr(per_t, name)[:, 0], everything[t])
        assert float(getattr(q.extract_posterior_coefficients(9, xt), name)) == float(everything[9])
    law = q.posterior(xt, x0, t)
    assert torch.equal(law.mean, per_t.x0 * x0 + per_t.xt * xt)
    assert torch.equal(law.variance, per_t.variance)


def test_one_t_for_all_is_that_t_for_each():
    for q, xt, x0 in processes_and_batches():
        alike, each = 5, torch.full((4,), 5)
        for laws in (
            lambda q, t, x, y: q.transition(x, t),
            lambda q, t, x, y: q.marginal(x, t),
            lambda q, t, x, y: q.posterior(x, y, t),
            lambda q, t, x, y: q.posterior_from_moments(x, y / 2, y.square() / 4, t),
        ):
            assert same(laws(q, alike, xt, x0), laws(q, each, xt, x0))
            noise = torch.rand(xt.shape, generator=Generator().manual_seed(0), dtype=xt.dtype)
            first, second = (laws(q, t, xt, x0).reparameterize(noise) for t in (alike, each))
            assert torch.equal(first, second)


def test_the_entropies_of_14_are_those_of_its_distributions():
    for q, _, x0 in processes_and_batches():
        laws = (q.marginal(x0, q.T), q.marginal(x0, 1), q.prior(x0))
        for entropy, law in zip(q.entropy_constants(x0), laws, strict=True):
            assert torch.allclose(entropy, law.entropy().sum(1), atol=1e-12, rtol=0)


def test_bits_of_the_default_prior_are_fair():
    assert BernoulliForward(linear_alpha_bar(3)).prior_prob == 0.5


# Kernels for bits, by enumeration of the states of one bit: what every one of them must satisfy

BIT_PROCESSES = [BernoulliForward(linear_alpha_bar(6), 0.2), AbsorbingForward(linear_alpha_bar(6))]
every_bit_process = pytest.mark.parametrize("q", BIT_PROCESSES, ids=lambda q: type(q).__name__)


def state_table(law_of, q):
    """P(to | from) over the states of one bit, [from, to]; `law_of` maps x [states, 1] to a distribution."""
    states = q.states[:, None]
    law = law_of(states)
    return torch.stack([law.log_prob(s.expand_as(states))[:, 0].exp() for s in states], dim=1)


def state_of(bit, q):
    """The place of a bit's value among the states."""
    return q.states.tolist().index(bit)


def transition_tables(q):
    """q(x^t | x^{t−1}) for t = 1…T, and their products q(x^t | x⁰) for t = 0…T, of one bit: [from, to] each."""
    steps = [state_table(lambda x, t=t: q.transition(x, t), q) for t in range(1, q.T + 1)]
    products = [torch.eye(len(q.states)).double()]
    for step in steps:
        products.append(products[-1] @ step)
    return steps, products


def posterior_table(q, bit, t):
    """q(x^{t−1} | x^t, x⁰ = bit) of one bit, [x^t, x^{t−1}]."""
    return state_table(lambda xt: q.posterior(xt, torch.full_like(xt, bit), t), q)


@every_bit_process
def test_transitions_compose_to_the_marginal_and_end_in_the_prior(q):
    """(2) and (3) by products of transition matrices; with β_T = 1 nothing is left of x⁰."""
    steps, products = transition_tables(q)
    bits = [state_of(bit, q) for bit in (0.0, 1.0)]
    for t, (step, product) in enumerate(zip(steps, products[1:], strict=True), start=1):
        assert torch.allclose(step.sum(1), torch.ones(len(step)).double(), atol=1e-15)
        assert torch.allclose(state_table(lambda x, t=t: q.marginal(x, t), q)[bits], product[bits], atol=1e-14)
    assert torch.allclose(state_table(q.prior, q)[bits], products[-1][bits], atol=1e-14)


@every_bit_process
def test_bayes_rule_gives_the_posterior(q):
    """(47)-(48) on the transition matrices, for every x^t that x⁰ can become."""
    steps, products = transition_tables(q)
    for t, (before, step, after) in enumerate(zip(products, steps, products[1:], strict=False), start=1):
        for bit in (0.0, 1.0):
            b = state_of(bit, q)
            possible = after[b] > 0
            bayes = (before[b][:, None] * step / after[b]).T  # [x^t, x^{t−1}]
            assert torch.allclose(posterior_table(q, bit, t)[possible], bayes[possible], atol=1e-14)


@every_bit_process
def test_posteriors_are_averaged_over_the_prediction(q):
    """Where x^t leaves both values of x⁰ possible, P(x⁰ = 1 | x^t) = 0.3 mixes the two posteriors with 0.7 and 0.3."""
    for t in range(1, q.T + 1):
        zero, one = posterior_table(q, 0.0, t), posterior_table(q, 1.0, t)
        law = state_table(lambda xt, t=t: q.posterior_from_moments(xt, torch.full_like(xt, 0.3), 0.21, t), q)
        marginal = state_table(lambda x, t=t: q.marginal(x, t), q)
        open_states = (marginal[state_of(0.0, q)] > 0) & (marginal[state_of(1.0, q)] > 0)
        assert open_states.any()
        assert torch.allclose(law[open_states], (0.7 * zero + 0.3 * one)[open_states], atol=1e-14)


@every_bit_process
def test_log_likelihood_weighs_points_as_the_marginals_do(q):
    """P(point | x^t) of three equally likely points of two bits, for every x^t that one of them can become."""
    points = real([0, 1], [1, 1], [1, 0])
    xt = torch.cartesian_prod(q.states, q.states)
    for t in range(1, q.T + 1):
        naive = torch.stack([q.marginal(point.expand_as(xt), t).log_prob(xt).sum(1) for point in points], dim=1)
        possible = naive.max(1).values > -math.inf
        log_likelihood = q.log_likelihood(xt[possible], points, t)
        assert torch.allclose(log_likelihood.softmax(1), naive[possible].softmax(1), atol=1e-14)


@every_bit_process
def test_transition_entropy_by_enumeration(q):
    """H_q(X^t|X^{t−1}) given x⁰: the entropy of each row of the transition matrix, averaged over q(x^{t−1}|x⁰)."""
    x0 = real([0, 1], [1, 1])
    for t, (step, before) in enumerate(zip(*transition_tables(q), strict=False), start=1):
        by_hand = before @ torch.special.entr(step).sum(1)  # per x⁰
        zero, one = (float(by_hand[state_of(bit, q)]) for bit in (0.0, 1.0))
        for when in (t, torch.full((2,), t)):
            assert q.transition_entropy(x0, when).tolist() == pytest.approx([zero + one, 2 * one], abs=1e-13)


# Absorbing diffusion


def masking(T=6):
    return AbsorbingForward(linear_alpha_bar(T))


def test_what_is_revealed_stays():
    q, xt = masking(), real(0, 1)[:, None]
    for t in range(1, 7):
        law = q.posterior_from_moments(xt, torch.full_like(xt, 0.3), 0.21, t)
        assert law.log_prob(xt)[:, 0].tolist() == [0, 0]


def test_masks_end_in_the_prior_and_the_final_step_reveals_all():
    q, x0 = masking(), real(0, 1)[:, None]
    assert torch.equal(q.marginal(x0, 6).probs, q.prior(x0).probs)
    assert not q.reversible
    law = q.final_step(
        lambda q, xt, t: q.posterior_from_moments(xt, torch.full_like(xt, 0.3), 0.21, t), real(MASK)[:, None]
    )
    assert law.probs[0, 0].tolist() == pytest.approx([0.7, 0, 0.3], abs=1e-15)
    assert q.log_likelihood(real(MASK, 1)[None], real([0, 1], [0, 0]), 3)[0].tolist() == [0, -math.inf]


def test_masks_need_a_last_step_that_masks_all():
    with pytest.raises(ValueError, match="the last step must mask"):
        AbsorbingForward(linear_alpha_bar(4)[:4])


def test_masks_forgive_a_prediction_that_a_rounding_took_out_of_0_to_1():
    q, xt = masking(), real(MASK, MASK)[:, None]
    law = q.posterior_from_moments(xt, real(1 + 1e-12, -1e-12)[:, None], 0.0, 4)
    exact = q.posterior(xt, real(1, 0)[:, None], 4)
    assert torch.equal(law.probs, exact.probs)
