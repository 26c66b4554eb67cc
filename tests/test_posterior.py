"""Multiplying distributions, Section 2.5: products against quadrature and enumeration, samples against the exact."""

import math

import pytest
import torch
from torch import Generator

from dpm.distributions import Bernoulli, MultivariateNormal, Normal
from dpm.forward import BernoulliForward, GaussianForward, sum_except_batch
from dpm.importance import effective_sample_size
from dpm.posterior import (
    BernoulliLikelihood,
    GaussianLikelihood,
    GradientGuidance,
    Likelihood,
    annealed,
    constant,
    diffused,
    posterior_trajectory,
    resample,
    sample_posterior,
)
from dpm.schedules import linear_alpha_bar, log_snr_linear


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(*shape, seed=1):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def timesteps(t, n):
    return torch.full((n,), t)


STATES = torch.cartesian_prod(*[real(0, 1)] * 2)
LINE = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
BITS = BernoulliForward(real(0, 0.1, 0.3, 0.5), prior_prob=0.3)
REALS = GaussianForward(real(0, 0.1, 0.3, 0.5))
BIT_LIKELIHOOD = BernoulliLikelihood(real(1.7, -0.6))
OBSERVATION = GaussianLikelihood(real(0.8), real(0.35))


def on_line(values):
    """A density on LINE from its logarithm, normalised by quadrature."""
    return torch.softmax(values, 0)


def integral(log_values):
    return torch.logsumexp(log_values, 0) + math.log(float(LINE[1] - LINE[0]))


def bits_model(q, xt, t):
    """A reverse model of two bits with arbitrary logits."""
    return Bernoulli(xt @ draws(2, 2, seed=5) + torch.as_tensor(t).reshape(-1, 1) * draws(2, seed=6) / 3)


def line_model(q, xt, t):
    """A linear-Gaussian reverse model whose mean, slope and variance change with t."""
    t = torch.as_tensor(t).reshape(-1, 1).double()
    return Normal(0.7 * xt + 0.1 * t, (0.1 + 0.1 * t).expand_as(xt))


def table(law):
    """P(row → column) of the four states."""
    return torch.stack([law.log_prob(y.expand(4, 2)).sum(1) for y in STATES], dim=1).exp()


def tables(q=BITS):
    """p(x²→x³ …) as matrices: [start, 3→2, 2→1, 1→0]."""
    start = table(q.prior(STATES))[:1]
    return [start, table(bits_model(q, STATES, timesteps(3, 4))), table(bits_model(q, STATES, timesteps(2, 4))),
            table(q.final_step(None, STATES))]  # fmt: skip


def exact_bits(r=BIT_LIKELIHOOD):
    """p(x⁰) r(x⁰)/Z and log Z by matrices."""
    start, *steps = tables()
    p = start @ steps[0] @ steps[1] @ steps[2]
    joint = p[0] * r.log_prob(STATES).exp()
    return joint / joint.sum(), joint.sum().log()


@pytest.mark.parametrize(
    "r",
    [
        BIT_LIKELIHOOD,
        BIT_LIKELIHOOD.temper(real(0.3)),
        BernoulliLikelihood(real(math.inf, 0)),
        BernoulliLikelihood(real(0.2, -math.inf)),
    ],
)
def test_bits_times_r_against_enumeration(r):
    law = Bernoulli(real(0.4, -1.1).expand(4, 2))
    p, weight = law.log_prob(STATES).sum(1), r.log_prob(STATES).exp()
    joint = p.exp() * weight
    prob_one = joint @ STATES / joint.sum()
    assert torch.allclose(r.multiply(law).probs[0], prob_one, atol=1e-12)
    assert torch.allclose(r.log_normalizer(law, STATES)[0], joint.sum().log(), atol=1e-12)


def test_table_app1_needs_c_where_it_prints_x():
    c, d = real(0.4, 0.1, 0.7), real(0.9, 0.3, 0.5)
    right = c * d / (c * d + (1 - c) * (1 - d))
    assert torch.allclose(BernoulliLikelihood(d.logit()).multiply(Bernoulli(c.logit())).probs, right, atol=1e-14)
    printed = [c * d / (x * d + (1 - c) * (1 - d)) for x in (0, 1)]
    assert printed[0].max() > 1 and all(((right - wrong).abs() > 1e-3).all() for wrong in printed)


@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.5), (-2.0, 0.01), (1.0, 4.0)])
def test_gaussian_times_r_against_quadrature(mean, variance):
    law = Normal(real(mean)[None], real(variance)[None])
    joint = law.log_prob(LINE)[:, 0] + OBSERVATION.log_prob(LINE)
    weight, product = on_line(joint), OBSERVATION.multiply(law)
    assert torch.allclose(product.mean[0, 0], weight @ LINE[:, 0], atol=1e-10)
    assert torch.allclose(product.variance[0, 0], weight @ (LINE[:, 0] - product.mean).square()[0], atol=1e-10)
    assert torch.allclose(OBSERVATION.log_normalizer(law, LINE[:1])[0], integral(joint), atol=1e-10)


def test_a_known_coordinate_is_pinned_and_an_unseen_one_left_alone():
    law = Normal(draws(3, 2), draws(3, 2, seed=2).exp())
    r = GaussianLikelihood(real(0.4, 0), real(0, math.inf))
    product = r.multiply(law)
    assert torch.equal(product.reparameterize(draws(3, 2))[:, 0], real(0.4, 0.4, 0.4))
    assert torch.equal(product.mean[:, 1], law.mean[:, 1])
    assert torch.allclose(product.variance[:, 1], law.variance[:, 1], atol=1e-15)
    want = Normal(law.mean[:, 0], law.variance[:, 0]).log_prob(real(0.4))
    assert torch.allclose(r.log_normalizer(law, law.mean), want, atol=1e-12)


def test_weight_is_the_normaliser_wherever_x_lies():
    """p r/p̃ by densities against Z̃ in closed form."""
    law, x = Normal(draws(7, 3), draws(7, 3, seed=2).exp()), 3 * draws(7, 3, seed=3)
    r = GaussianLikelihood(draws(3, seed=4), draws(3, seed=5).exp())
    assert torch.allclose(Likelihood.log_normalizer(r, law, x), r.log_normalizer(law, x), atol=1e-10)
    law, r = Bernoulli(draws(4, 2)), BernoulliLikelihood(real(1.7, -0.6))
    assert torch.allclose(Likelihood.log_normalizer(r, law, STATES), r.log_normalizer(law, STATES), atol=1e-10)


def test_first_order_is_exact_for_an_exponential():
    """Appendix C has no Hessian to neglect when log r is linear."""
    law = Normal(real(0.3)[None], real(0.5)[None])
    r = GradientGuidance(lambda x: 1.3 * x.sum(1))
    weight = on_line(law.log_prob(LINE)[:, 0] + r.log_prob(LINE))
    product = r.multiply(law)
    assert torch.allclose(product.mean[0, 0], weight @ LINE[:, 0], atol=1e-10)
    assert torch.allclose(product.variance, law.variance, atol=1e-15)
    logits = real(1.7, -0.6)
    bits = Bernoulli(draws(4, 2))
    assert torch.allclose(
        GradientGuidance(lambda x: x @ logits).multiply(bits).logits,
        BernoulliLikelihood(logits).multiply(bits).logits,
        atol=1e-14,
    )


def test_first_order_line_by_line():
    """(52) to (61) at 40 points y around μ, for r far from Gaussian."""
    mu, sigma, y = draws(1, 2), draws(1, 2, seed=2).exp(), 2 * draws(40, 2, seed=3)
    law, r = Normal(mu, sigma), GradientGuidance(lambda x: -(x.sin() + 0.3 * x[:, :1] * x).sum(1))
    at = mu.clone().requires_grad_()
    (g,) = torch.autograd.grad(-r.log_prob(at).sum(), at)

    def quadratic(x):
        return (x.square() / sigma).sum(1) / 2

    def level(values):
        return torch.allclose(values, values[:1], atol=1e-12)

    exact = OBSERVATION.multiply(law).log_prob(y).sum(1)
    assert level(exact + quadratic(y - mu) - OBSERVATION.log_prob(y))  # (52)-(55): log p̃ = −E, E = ½(y−μ)²/Σ + E_r
    h = real(1e-2, 1e-3)[:, None]
    missed = -r.log_prob(mu + h * y[:1]) + r.log_prob(mu) - (h * y[:1] * g).sum(1)
    assert float(missed[0] / missed[1]) == pytest.approx(100, rel=0.05)  # (56): E_r(μ) + (y−μ)g, to second order
    energy = quadratic(y - mu) + ((y - mu) * g).sum(1)  # (57)
    assert level(energy - quadratic(y) + (y * (mu / sigma - g)).sum(1))  # (58)
    assert level(energy - quadratic(y - mu + sigma * g))  # (59)
    assert level(energy + Normal(mu - sigma * g, sigma).log_prob(y).sum(1))  # (60)
    assert level(energy + r.multiply(law).log_prob(y).sum(1))  # (61)


def test_first_order_takes_the_slope_at_the_mean():
    """(61) for the E_r of a Gaussian r, whose slope is known; a power scales it."""
    law = Normal(draws(5, 1), draws(5, 1, seed=2).exp())
    slope = (OBSERVATION.y - law.mean) / OBSERVATION.variance
    for power in (1.0, 0.25):
        product = GradientGuidance(OBSERVATION.log_prob).temper(real(power)[None]).multiply(law)
        assert torch.allclose(product.mean, law.mean + law.variance * power * slope, atol=1e-12)
    x = draws(5, 1, seed=3)
    assert torch.allclose(
        GradientGuidance(OBSERVATION.log_prob).temper(real(0.25)[None]).log_prob(x),
        0.25 * OBSERVATION.log_prob(x),
        atol=1e-14,
    )


@pytest.mark.parametrize("t", [0, 1, 3])
def test_diffused_against_quadrature_and_enumeration(t):
    x = real(-1.3, 0.2, 2.0)[:, None]
    laws = REALS.marginal(x, timesteps(t, 3))
    if t > 0:
        want = [
            integral(Normal(m, v).log_prob(LINE)[:, 0] + OBSERVATION.log_prob(LINE))
            for m, v in zip(laws.mean, laws.variance, strict=True)
        ]
    else:
        want = list(OBSERVATION.log_prob(x))
    got, want = OBSERVATION.diffused(REALS, timesteps(t, 3), x).log_prob(x), torch.stack(want)
    assert torch.allclose(got - got[0], want - want[0], atol=1e-9)
    law = BITS.marginal(STATES, timesteps(t, 4))
    prob_one, prob_zero = law.probs, (-law.logits).sigmoid()
    d = BIT_LIKELIHOOD.logits.sigmoid()
    want = (prob_one * d + prob_zero * (1 - d)).log().sum(1)
    got = BIT_LIKELIHOOD.diffused(BITS, timesteps(t, 4), STATES).log_prob(STATES)
    assert torch.allclose(got - got[0], want - want[0], atol=1e-12)


def test_diffused_survives_a_forward_process_that_forgets():
    q, x = GaussianForward(linear_alpha_bar(4)), draws(3, 1)
    law = q.prior(x)
    product = OBSERVATION.diffused(q, timesteps(4, 3), x).multiply(law)
    assert torch.equal(product.mean, law.mean) and torch.equal(product.variance, law.variance)


def test_annealed_ends_in_r_and_starts_in_nothing():
    """And (23) is r itself at every t."""
    x = draws(6, 1)
    for r, q, law in (
        (OBSERVATION, REALS, REALS.prior(x)),
        (GradientGuidance(OBSERVATION.log_prob), REALS, REALS.prior(x)),
        (BIT_LIKELIHOOD, BITS, BITS.prior(STATES)),
    ):
        like = law.mean
        start, end = (annealed(r, q, timesteps(t, len(like)), like) for t in (3, 0))
        assert torch.equal(start.multiply(law).mean, law.mean)
        assert torch.allclose(end.multiply(law).mean, r.multiply(law).mean, atol=1e-14)
        assert constant(r, q, timesteps(3, len(like)), like) is r
    difference = annealed(OBSERVATION, REALS, timesteps(1, 6), x).log_prob(x) - annealed(
        OBSERVATION, REALS, timesteps(1, 6), x
    ).log_prob(x[:1].expand(6, 1))
    assert torch.allclose(
        difference, (OBSERVATION.log_prob(x) - OBSERVATION.log_prob(x[:1].expand(6, 1))) * 2 / 3, atol=1e-12
    )
    known = GaussianLikelihood(real(0.5), real(0)).temper(real(0, 0.5)[:, None])
    assert known.variance[0].isinf() and known.variance[1] == 0
    assert torch.equal(
        BernoulliLikelihood(real(-math.inf)).temper(real(0, 0.5)[:, None]).logits[:, 0], real(0, -math.inf)
    )


def test_kernel_21_keeps_the_product_in_equilibrium_and_22_does_not():
    """(16) to (22), state by state: what carries p(x^t) r(x^t)/Z̃_t from t = 3 to 0, and what a weight makes up for."""
    r, (start, *steps) = BIT_LIKELIHOOD.log_prob(STATES).exp(), tables()
    before = start[0]
    models = [
        bits_model(BITS, STATES, timesteps(3, 4)),
        bits_model(BITS, STATES, timesteps(2, 4)),
        BITS.final_step(None, STATES),
    ]
    for p, law in zip(steps, models, strict=True):
        after = before @ p  # (17)
        Z_before, Z_after = before @ r, after @ r
        kernel = p * Z_before * r / (Z_after * r[:, None])  # (21)
        assert torch.allclose((before * r / Z_before) @ kernel, after * r / Z_after, atol=1e-14)  # (18), (19), by (16)
        back = Z_after * r[:, None] / (Z_before * r)
        assert torch.allclose(before @ (kernel * back), after, atol=1e-14)  # (20)
        share = kernel.sum(1, keepdim=True)
        assert torch.allclose(table(BIT_LIKELIHOOD.multiply(law)), kernel / share, atol=1e-14)  # (22)
        assert bool(((before * r / Z_before) @ (kernel / share) - after * r / Z_after).abs().max() > 1e-3)
        weight = BIT_LIKELIHOOD.log_normalizer(law, STATES) - BIT_LIKELIHOOD.log_prob(STATES)
        assert torch.allclose(weight + (Z_before / Z_after).log(), share[:, 0].log(), atol=1e-13)
        before = after


@pytest.mark.parametrize("r_schedule", [constant, annealed, diffused])
def test_kernels_alone_give_the_law_of_22(r_schedule):
    """Plain samples against the law of x⁰ that the normalised kernels (22) have, by matrices."""
    laws = []
    for k, p in enumerate(tables()):
        r_t = r_schedule(BIT_LIKELIHOOD, BITS, timesteps(3 - k, 4), STATES).log_prob(STATES)
        joint = p * r_t.exp()
        laws.append(joint / joint.sum(1, keepdim=True))
    want = (laws[0] @ laws[1] @ laws[2] @ laws[3])[0]
    n = 200_000
    x0, _ = sample_posterior(
        bits_model, BITS, BIT_LIKELIHOOD, torch.zeros(n, 2, dtype=torch.float64), Generator().manual_seed(1), r_schedule
    )
    share = (x0[:, None] == STATES).all(-1).double().mean(0)
    assert ((share - want).abs() < 4.5 * (want * (1 - want) / n).sqrt()).all()
    assert ((want - exact_bits()[0]).abs() > 0.004).any()  # which is not p̃


@pytest.mark.parametrize("r_schedule", [constant, annealed, diffused])
@pytest.mark.parametrize("resample_below", [0.0, 1.0])
def test_weights_reach_the_exact_posterior_of_bits(r_schedule, resample_below):
    n, (want, log_Z) = 200_000, exact_bits()
    like, generator = torch.zeros(n, 2, dtype=torch.float64), Generator().manual_seed(2)
    x0, log_weight = sample_posterior(bits_model, BITS, BIT_LIKELIHOOD, like, generator, r_schedule, resample_below)
    assert (effective_sample_size(log_weight) > n - 1) == (resample_below == 1.0)
    w = log_weight.softmax(0)
    hit = (x0[:, None] == STATES).all(-1).double()
    error = (w[:, None] * (hit - want)).square().sum(0).sqrt()
    assert ((w @ hit - want).abs() < 5 * error).all()
    assert abs(log_weight.logsumexp(0) - math.log(n) - log_Z) < 0.01


@pytest.mark.parametrize("r", [OBSERVATION, GradientGuidance(OBSERVATION.log_prob)])
@pytest.mark.parametrize("resample_below", [0.0, 0.9])
def test_weights_reach_the_exact_posterior_of_a_gaussian(r, resample_below):
    mean, variance = real(0), real(1)
    for t in (3, 2):
        mean, variance = 0.7 * mean + 0.1 * t, 0.49 * variance + 0.1 + 0.1 * t
    mean, variance = mean * math.sqrt(0.9), 0.9 * variance + 0.1
    prior = Normal(mean, variance)
    want, log_Z = OBSERVATION.multiply(prior), Normal(mean, variance + OBSERVATION.variance).log_prob(OBSERVATION.y)
    n = 200_000
    like, generator = torch.zeros(n, 1, dtype=torch.float64), Generator().manual_seed(3)
    x0, log_weight = sample_posterior(line_model, REALS, r, like, generator, annealed, resample_below)
    w = log_weight.softmax(0)
    got = w @ x0[:, 0]
    spread = w @ (x0[:, 0] - got).square()
    assert abs(got - want.mean) < 5 * (want.variance / effective_sample_size(log_weight)).sqrt()
    assert abs(spread / want.variance - 1) < 5 * math.sqrt(2 / effective_sample_size(log_weight))
    assert abs(log_weight.logsumexp(0) - math.log(n) - log_Z) < 0.015


@pytest.mark.parametrize(
    ("q", "r"),
    [
        (GaussianForward(log_snr_linear(9, 1e-2, 0.9)), GaussianLikelihood(draws(2, 1, 3), real(0.2, 0, math.inf))),
        (
            BernoulliForward(linear_alpha_bar(9), prior_prob=0.3),
            BernoulliLikelihood(real(2.0, math.inf, 0.0).expand(2, 1, 3)),
        ),
    ],
)
def test_weights_are_all_alike_for_data_from_the_prior(q, r):
    """When p is the forward kernel, p(x^t) = π at every t and `diffused` makes (22) exact, step by step; images too."""
    like = torch.zeros(5, 2, 1, 3, dtype=torch.float64)
    log_Z = r.log_normalizer(q.prior(like), like)
    for t, x, log_weight in posterior_trajectory(
        lambda q, x, t: q.transition(x, t), q, r, like, Generator().manual_seed(1), diffused
    ):
        assert x.shape == like.shape
        if t <= 1:
            assert torch.allclose(log_weight - log_weight[0], torch.zeros(5, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(log_weight, log_Z, atol=1e-10)


def test_resampling_keeps_shares_and_the_mean_weight():
    log_weight, x = 2 * draws(1000), torch.arange(1000, dtype=torch.float64)[:, None]
    again, level = resample(x, log_weight, Generator().manual_seed(1))
    count = torch.bincount(again[:, 0].long(), minlength=1000)
    assert ((count - 1000 * log_weight.softmax(0)).abs() < 1).all()
    assert torch.allclose(level.exp(), log_weight.exp().mean().expand(1000), atol=1e-12)
    assert math.isclose(effective_sample_size(level), 1000, rel_tol=1e-9)
    assert math.isclose(effective_sample_size(real(0, -800, -900)), 1)


def test_what_cannot_be_is_refused():
    known = GaussianLikelihood(real(0.5), real(0))
    like = torch.zeros(4, 1, dtype=torch.float64)
    x0, log_weight = sample_posterior(line_model, REALS, known, like, Generator().manual_seed(1))
    assert torch.equal(x0, like + 0.5)
    with pytest.raises(ValueError, match="diffused"):
        resample(x0, log_weight, Generator())
    with pytest.raises(ValueError, match="diffused"):
        sample_posterior(line_model, REALS, known, like, Generator().manual_seed(1), resample_below=0.5)
    with pytest.raises(ValueError, match="no row is possible"):
        resample(x0, torch.full((4,), -math.inf), Generator())
    with pytest.raises(TypeError, match="multiplies bits with logits, not a Normal"):
        BIT_LIKELIHOOD.multiply(REALS.prior(like))
    full = MultivariateNormal(torch.zeros(4, 1), torch.ones(4, 1, 1))
    for wrong in (full, BITS.prior(like)):
        for refused in (known.multiply, lambda law: known.log_normalizer(law, like)):
            with pytest.raises(TypeError, match=f"independent normals, not a {type(wrong).__name__}"):
                refused(wrong)
    with pytest.raises(TypeError, match="mean of a GradientGuidance over q is not known"):
        diffused(GradientGuidance(lambda x: x.sum(1)), REALS, 1, like)


def test_per_sample_weights():
    """One r per sample: the weights of a batch are those of its rows."""
    law = Normal(draws(3, 2), draws(3, 2, seed=2).exp())
    r = GaussianLikelihood(draws(3, 2, seed=3), draws(3, 2, seed=4).exp())
    rows = [
        GaussianLikelihood(r.y[i], r.variance[i]).log_normalizer(Normal(law.mean[i][None], law.variance[i][None]), None)
        for i in range(3)
    ]
    assert torch.allclose(r.log_normalizer(law, law.mean), torch.cat(rows), atol=1e-12)
    assert torch.allclose(
        sum_except_batch(Normal(r.y, r.variance).log_prob(law.mean)), r.log_prob(law.mean), atol=1e-12
    )


def test_a_power_of_a_power():
    law = Normal(torch.zeros(3, 1).double(), torch.ones(3, 1).double())
    half = torch.full((1, 1), 0.5).double()
    twice = GradientGuidance(lambda x: x.sum(1)).temper(half).temper(half)
    assert torch.allclose(twice.multiply(law).mean, torch.full((3, 1), 0.25).double())
    assert torch.allclose(
        GradientGuidance(lambda x: x.sum(1), 0.5).temper(half).log_prob(torch.ones(3, 1).double()),
        torch.full((3,), 0.25).double(),
    )


def test_each_sample_has_its_own_power():
    r = GradientGuidance(lambda x: x.sum(1)).temper(torch.tensor([[0.0], [0.5], [1.0]]).double())
    assert r.log_prob(torch.ones(3, 1).double()).tolist() == [0, 0.5, 1]


def test_resampling_never_passes_the_last_row(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **o: torch.full((1,), 1 - 2.0**-24, dtype=torch.float32))
    n = 1000
    x = torch.arange(n, dtype=torch.float32)[:, None]
    for seed in range(20):
        again, _ = resample(x, 2 * torch.randn(n, generator=Generator().manual_seed(seed)), Generator())
        assert again.shape == x.shape


@pytest.mark.parametrize("shape", [(3, 1), (3, 2)])
@pytest.mark.parametrize(("r", "q"), [(OBSERVATION, REALS), (BIT_LIKELIHOOD, BITS)])
@pytest.mark.parametrize("r_schedule", [annealed, diffused])
def test_an_int_t_and_a_tensor_of_it_give_the_same_r(r, q, shape, r_schedule):
    """And in a batch of several t each sample has the r of its own."""
    x = (draws(*shape) > 0).double() if q is BITS else draws(*shape)
    if q is BITS:
        r = BernoulliLikelihood(r.logits[: shape[1]])
    for t in range(4):
        values = [r_schedule(r, q, s, x).log_prob(x) for s in (t, timesteps(t, 3))]
        assert values[0].shape == (3,) and torch.allclose(*values, atol=1e-13, rtol=1e-13)
        products = [r_schedule(r, q, s, x).multiply(q.prior(x)).mean for s in (t, timesteps(t, 3))]
        assert products[0].shape == shape and torch.allclose(*products, atol=1e-13, rtol=1e-13)
    mixed = r_schedule(r, q, torch.tensor([3, 1, 2]), x).multiply(q.prior(x)).mean
    alone = [r_schedule(r, q, t, x[i : i + 1]).multiply(q.prior(x[i : i + 1])).mean for i, t in enumerate((3, 1, 2))]
    assert torch.allclose(mixed, torch.cat(alone), atol=1e-13, rtol=1e-13)
