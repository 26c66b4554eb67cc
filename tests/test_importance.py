"""Weights (9) against exact p(x⁰), their standard error against the error made, and (14) corrected against (39)."""

import itertools
import math

import pytest
import torch
from torch import Generator

from dpm import bound, distributions, figures, forward, importance, schedules, units
from dpm.ideal import IdealMixtureReverse

D = torch.float64
STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=D)
MIX = torch.tensor([[2.0, -0.5], [0.7, 1.5]], dtype=D)
BETAS = {2: [0, 0.1, 0.5], 3: [0, 0.2, 0.3, 0.4], 4: [0, 0.25, 1 / 3, 0.5, 1.0]}  # the last forgets exactly


def odd_bits(q, xt, t):
    """A reverse model with nothing to recommend it but that it mixes the bits."""
    return distributions.Bernoulli(xt @ MIX - 1.0 + 0.2 * torch.as_tensor(t, dtype=D).reshape(-1, 1))


def stay(q, xt, t):
    """The reverse model that runs the forward kernel: π's own."""
    return q.transition(xt, t)


def bit_process(T, prior_prob):
    return forward.BernoulliForward(torch.tensor(BETAS[T], dtype=D), prior_prob)


def bernoulli(x, r):
    """Probability of the bits x [2], each 1 with probability r [2], by hand."""
    return math.prod(float(r[i] if x[i] else 1 - r[i]) for i in range(2))


def forward_matrix(q, t):
    """q(x^t|x^{t−1}) [4, 4] from the formula of Table App.1."""
    beta = float(q.beta[t])
    return torch.tensor([[bernoulli(y, x * (1 - beta) + q.prior_prob * beta) for y in STATES] for x in STATES], dtype=D)


def reverse_matrix(q, t):
    """p(x^{t−1}|x^t) [4, 4]: the edge step (44) by Bayes' rule, the others from odd_bits' probabilities."""
    if t == 1:
        pi = prior(q)
        return forward_matrix(q, 1).T * pi / pi[:, None]
    probs = odd_bits(q, STATES, torch.full((4,), t)).probs
    return torch.tensor([[bernoulli(y, r) for y in STATES] for r in probs], dtype=D)


def prior(q):
    return torch.tensor([bernoulli(y, [q.prior_prob] * 2) for y in STATES], dtype=D)


def p_x0(q):
    """(6) by transition matrices."""
    p = prior(q)
    for t in range(q.T, 0, -1):
        p = p @ reverse_matrix(q, t)
    return p


def K_39(q):
    """(37)-(39) from each start by summing over all trajectories, [4] nats."""
    q_t, p_t = ([f(q, t) for t in range(1, q.T + 1)] for f in (forward_matrix, reverse_matrix))
    K = torch.zeros(4, dtype=D)
    for path in itertools.product(range(4), repeat=q.T + 1):
        steps = list(itertools.pairwise(path))
        weight = math.prod(float(q_t[k][a, b]) for k, (a, b) in enumerate(steps))
        log_ratio = sum(float(p_t[k][b, a].log() - q_t[k][a, b].log()) for k, (a, b) in enumerate(steps))
        K[path[0]] += weight * (log_ratio + float(prior(q)[path[-1]].log()))
    return K


def K_14(q):
    """(14) from each start, the expectation over x^t summed, [4] nats."""
    kl = torch.zeros(4, dtype=D)
    start, end = STATES.repeat_interleave(4, dim=0), STATES.repeat(4, 1)
    for t in range(2, q.T + 1):
        weight = q.marginal(start, t).log_prob(end).sum(1).exp()
        laws = q.posterior(end, start, t), odd_bits(q, end, t)
        posterior, reverse = (torch.distributions.Bernoulli(law.probs) for law in laws)
        divergence = torch.distributions.kl_divergence(posterior, reverse).sum(1)
        kl += (weight * divergence).reshape(4, 4).sum(1)
    return bound.PaperBound(kl, *q.entropy_constants(STATES)).K


def gaussian_model(v, T=8):
    """A forward process, the ideal reverse model for N(0, v), and the variance of its exact p(x⁰), by recursion."""
    q, p = forward.GaussianForward(schedules.log_snr_linear(T, 0.04, 0.85)), IdealMixtureReverse(torch.zeros(1, 1), v)
    one, V = torch.ones(1, 1, dtype=D), 1.0
    for t in range(T, 0, -1):
        law = p(q, one, t) if t > 1 else q.final_step(p, one)
        V = float(law.mean) ** 2 * V + float(law.variance)
    return q, p, V


@pytest.mark.parametrize("prior_prob", [0.2, 0.5])
@pytest.mark.parametrize("T", BETAS)
def test_weights_average_to_the_probability_of_bits(T, prior_prob):
    """(7)-(9) against the sum (6) itself."""
    q = bit_process(T, prior_prob)
    estimate = importance.importance_estimate(
        importance.log_weights(odd_bits, q, STATES, 40_000, Generator().manual_seed(T))
    )
    assert ((estimate.log_p - p_x0(q).log()).abs() < 4 * estimate.stderr).all()
    assert (estimate.stderr < 0.05).all()


@pytest.mark.parametrize("prior_prob", [0.2, 0.5])
@pytest.mark.parametrize("T", BETAS)
def test_the_enumerated_model_is_normalised(T, prior_prob):
    q = bit_process(T, prior_prob)
    assert torch.isclose(p_x0(q).sum(), torch.ones((), dtype=D), atol=1e-14)
    assert (K_39(q) < p_x0(q).log()).all()  # the second law, start by start


@pytest.mark.parametrize("v", [0.25, 1.0, 3.0])
def test_weights_average_to_the_density_of_a_linear_gaussian_model(v):
    q, p, V = gaussian_model(v)
    x0 = torch.linspace(-3, 3, 7, dtype=D)[:, None]
    estimate = importance.importance_estimate(importance.log_weights(p, q, x0, 20_000, Generator().manual_seed(1)))
    exact = -(x0[:, 0] ** 2) / (2 * V) - 0.5 * math.log(2 * math.pi * V)
    assert ((estimate.log_p - exact).abs() < 4 * estimate.stderr + 1e-10).all()


@pytest.mark.parametrize("shape", [(4, 2), (9, 1, 2, 2)])
@pytest.mark.parametrize("kind", ["bits", "reals"])
def test_at_equilibrium_every_trajectory_weighs_pi(kind, shape):
    """With the forward kernel as reverse model detailed balance holds, and no work is done along the way."""
    generator = Generator().manual_seed(2)
    q = bit_process(3, 0.2) if kind == "bits" else forward.GaussianForward(schedules.log_snr_linear(5, 0.01, 0.7))
    x0 = q.prior(torch.zeros(shape, dtype=D)).reparameterize(q.sample_noise(torch.zeros(shape, dtype=D), generator))
    log_weight = importance.log_weights(stay, q, x0, 6, generator)
    pi = q.prior(x0).log_prob(x0).flatten(1).sum(1)
    assert log_weight.shape == (6, shape[0]) and len(pi.unique()) > 1
    assert torch.allclose(log_weight, pi.expand(6, -1), atol=1e-11)
    estimate = importance.importance_estimate(log_weight)
    assert torch.allclose(estimate.effective_sample_size, torch.full_like(pi, 6)) and (estimate.stderr < 1e-10).all()


def test_importance_estimate_of_two_weights_by_hand():
    estimate = importance.importance_estimate(torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=D).log())
    assert torch.allclose(estimate.log_p.exp(), torch.tensor([2.0, 5.0], dtype=D))
    assert torch.allclose(estimate.effective_sample_size, torch.tensor([1.6, 2.0], dtype=D))  # 4²/(1 + 9), and 2
    assert torch.allclose(estimate.stderr, torch.tensor([0.5, 0.0], dtype=D), atol=1e-15)  # √2/√2, relative to 2


def test_importance_estimate_works_in_log_space():
    log_weight = torch.randn(50, 3, generator=Generator().manual_seed(3), dtype=D)
    near, far = importance.importance_estimate(log_weight), importance.importance_estimate(log_weight - 5000)
    assert torch.allclose(far.log_p + 5000, near.log_p, atol=1e-10)
    assert torch.allclose(far.stderr, near.stderr, atol=1e-10) and torch.allclose(
        far.effective_sample_size, near.effective_sample_size, atol=1e-8
    )


def test_one_trajectory_is_its_own_estimate_and_claims_no_error():
    log_weight = torch.tensor([[-3.0, 2.0]], dtype=D)
    estimate = importance.importance_estimate(log_weight)
    assert torch.equal(estimate.log_p, log_weight[0]) and torch.equal(
        estimate.effective_sample_size, torch.ones(2, dtype=D)
    )
    assert estimate.stderr.isnan().all()


def test_the_claimed_error_is_the_error_made():
    q, truth = bit_process(3, 0.5), p_x0(bit_process(3, 0.5)).log()
    log_weight = importance.log_weights(odd_bits, q, STATES, 400 * 500, Generator().manual_seed(4)).reshape(400, -1)
    estimate = importance.importance_estimate(log_weight)
    made = (estimate.log_p.reshape(500, 4) - truth).square().mean(0).sqrt()
    assert torch.allclose(estimate.stderr.reshape(500, 4).mean(0), made, rtol=0.15)  # 500 repeats know it to 3 %


@pytest.mark.parametrize("T", BETAS)
def test_the_mean_log_weight_is_K(T):
    q = bit_process(T, 0.2)
    log_weight = importance.log_weights(odd_bits, q, STATES, 20_000, Generator().manual_seed(5))
    assert ((log_weight.mean(0) - K_39(q)).abs() < 4 * log_weight.std(0) / math.sqrt(20_000)).all()


def test_more_trajectories_rise_from_K_towards_log_p():
    q = bit_process(3, 0.2)
    log_weight = importance.log_weights(odd_bits, q, STATES, 2**15, Generator().manual_seed(6))
    log_p = torch.stack(
        [importance.importance_estimate(log_weight.reshape(S, -1)).log_p.mean() for S in (1, 2, 4, 8, 64, 2**15)]
    )
    assert (log_p.diff() > 0).all() and abs(log_p[0] - K_39(q).mean()) < 0.02
    assert abs(log_p[-1] - p_x0(q).log().mean()) < 0.01


@pytest.mark.parametrize("prior_prob", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("T", BETAS)
def test_the_prior_cross_entropy_gap_takes_14_to_39_for_every_start(T, prior_prob):
    """Start by start the two differ by more than a constant of the mean; corrected, by nothing."""
    q = bit_process(T, prior_prob)
    assert torch.allclose(K_14(q) + bound.prior_cross_entropy_gap(q, STATES), K_39(q), atol=1e-10)


@pytest.mark.parametrize("prior_prob", [0.1, 0.2, 0.5])
def test_the_prior_cross_entropy_gap_of_bits_depends_only_on_their_activity(prior_prob):
    q = bit_process(3, prior_prob)
    excess = STATES.sum(1) - 2 * prior_prob
    expected = excess * float(q.beta[1] + q.alpha_bar[3]) * math.log(prior_prob / (1 - prior_prob))
    assert torch.allclose(bound.prior_cross_entropy_gap(q, STATES), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 1), (2, 3, 2, 2)])
@pytest.mark.parametrize("T", [2, 8, 40])
def test_the_prior_cross_entropy_gap_of_reals_depends_only_on_their_mean_square(T, shape):
    q = forward.GaussianForward(schedules.log_snr_linear(T, 1e-3, 0.9))
    x0 = 2 * torch.randn(shape, generator=Generator().manual_seed(T), dtype=D)
    expected = -0.5 * (x0.square() - 1).flatten(1).sum(1) * (q.beta[1] + q.alpha_bar[T])
    assert torch.allclose(bound.prior_cross_entropy_gap(q, x0), expected, atol=1e-12)


@pytest.mark.parametrize("v", [0.25, 1.0, 4.0])
def test_off_variance_1_only_the_corrected_bound_bounds(v):
    q, p, V = gaussian_model(v)
    sign, noise = (torch.tensor(z, dtype=D)[:, None] for z in ([1, 1, -1, -1], [1, -1, 1, -1]))  # exact for quadratics
    x0 = math.sqrt(v) * sign
    kl = sum(bound.step_kl(p, q, x0, t, noise) for t in range(2, q.T + 1))
    plain = float(bound.PaperBound(kl, *q.entropy_constants(x0)).K.mean())
    corrected = plain + float(bound.prior_cross_entropy_gap(q, x0).mean())
    L = -v / (2 * V) - 0.5 * math.log(2 * math.pi * V)
    assert corrected <= L + 1e-10
    assert (plain > L + 0.1) == (v > 1)
    data = math.sqrt(v) * torch.randn(50_000, 1, generator=Generator().manual_seed(7), dtype=D)
    along_trajectories, error = units.mean_and_stderr(bound.trajectory_K(p, q, data, Generator().manual_seed(8)))
    assert abs(along_trajectories - corrected) < 4 * error
    assert v == 1 or abs(along_trajectories - plain) > 8 * error


def test_histograms_share_their_bins_and_mark_a_place():
    samples = {"wide": torch.linspace(-4, 4, 99, dtype=D), "narrow": torch.linspace(-1, 1, 99, dtype=D)}
    (axes,) = figures.plot_histograms(samples, "W (bits)", mark=0.5).axes
    assert axes.get_xlabel() == "W (bits)" and axes.get_ylabel() and axes.get_yscale() == "log"
    assert list(axes.lines[0].get_xdata()) == [0.5, 0.5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["wide", "narrow"]
    first, second = (patch.get_xy()[:, 0] for patch in axes.patches)
    assert first.min() == second.min() == -4 and first.max() == second.max() == 4
