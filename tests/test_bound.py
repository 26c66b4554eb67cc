"""The bound K, Sections 2.3 and 2.4, Appendix B: each number once by dpm and once by brute force, in float64.

Bits are settled by enumerating every trajectory of few steps. Linear-Gaussian models are settled without sampling
too: all that is averaged is then quadratic in the N normal variables, and the 2N points ±√N e_i average it exactly.
"""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Generator

import dpm.bound
from dpm.bound import (
    STRATUM_SIZE,
    EvidenceBound,
    KLProfile,
    PaperBound,
    bound_loss,
    estimate_K,
    evaluate,
    evaluate_subsampled,
    final_step_bound_loss,
    first_learned_timestep,
    kl_above,
    kl_profile,
    log_null,
    prior_cross_entropy_gap,
    prior_kl,
    reconstruction_loss,
    step_kl,
    stratified_timesteps,
    timestep_at,
    timestep_by_share,
    trajectory_K,
)
from dpm.data.synthetic import heartbeat, heartbeat_sequences
from dpm.distributions import Bernoulli, Normal
from dpm.forward import AbsorbingForward, BernoulliForward, GaussianForward, sum_except_batch
from dpm.ideal import IdealMixtureReverse, IdealReverse
from dpm.importance import importance_estimate, log_weights
from dpm.reverse import DiscretizedFinalStep, final_step, learned_final_step
from dpm.schedules import LearnedSchedule, linear_alpha_bar, log_snr_linear
from dpm.units import bits_per_dimension, bits_per_pixel, edge_ceiling, mean_and_stderr, null_bits, to_bits


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(*shape, seed=1):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


STATES = torch.cartesian_prod(real(0, 1), real(0, 1))  # of two bits
PRIOR_PROB_T = [(0.5, 2), (0.5, 3), (0.2, 2), (0.2, 3), (0.2, 4)]
DATA = {0.5: real(0.4, 0.05, 0.15, 0.4), 0.2: real(0.65, 0.2, 0.1, 0.05)}  # q(x⁰) of mean activity 0.5 and 0.2


def replay(q, noises):
    """The forward process with the noise of its draws written down beforehand."""
    remaining = iter(noises)
    q.sample_noise = lambda x, generator: next(remaining)
    return q


def keep_prior(q, xt, t):
    """The identity reversal: the forward kernel, which is its own reversal under π."""
    return q.transition(xt, t)


class LinearLogits:
    """A reverse model of bits whose logits are linear in x^t, with weights of their own for each t."""

    def __init__(self, T, seed):
        self.weight, self.bias = draws(T + 1, 2, 2, seed=seed), draws(T + 1, 2, seed=seed + 1)

    def __call__(self, q, xt, t):
        return Bernoulli((xt[:, None] @ self.weight[t])[:, 0] + self.bias[t])


class Enumerated:
    """Two bits over T steps with matrices [4, 4] and loops: nothing of dpm but the reverse model's logits."""

    def __init__(self, p, T, prior_prob):
        self.T, self.prior_prob = T, prior_prob
        self.q = BernoulliForward(linear_alpha_bar(T), prior_prob)
        steps = []
        for t in range(1, T + 1):
            kept = 1 - 1 / (T - t + 1)
            of_one_bit = kept * torch.eye(2, dtype=torch.float64) + (1 - kept) * real(1 - prior_prob, prior_prob)
            steps.append(torch.kron(of_one_bit, of_one_bit))
        self.forward = [None, *steps]  # [t][x^{t−1}, x^t]
        self.prior = torch.kron(real(1 - prior_prob, prior_prob), real(1 - prior_prob, prior_prob))
        edge = steps[0].T * self.prior / self.prior[:, None]  # (44): q(x¹|x⁰) π(x⁰)/π(x¹)
        self.reverse = [None, edge]  # [t][x^t, x^{t−1}]
        for t in range(2, T + 1):
            self.reverse.append(self.transition_of(p, t))
        if getattr(p, "final_step", None):
            self.reverse[1] = self.transition_of(p, 1)
        self.marginal = [torch.eye(4, dtype=torch.float64)]  # [t][x⁰, x^t]
        for step in steps:
            self.marginal.append(self.marginal[-1] @ step)

    def transition_of(self, p, t):
        """p(x^{t−1}|x^t) [4, 4] from the logits of the reverse model."""
        probs = 1 / (1 + torch.exp(-p(self.q, STATES, torch.full((4,), t)).logits))
        return torch.stack([(probs * s + (1 - probs) * (1 - s)).prod(1) for s in STATES], 1)

    def trajectories(self):
        """Every (x⁰, …, x^T) as indices [4^(T+1), T+1], log q(x^{1…T}|x⁰), log p(x^{0…T})."""
        path = torch.cartesian_prod(*[torch.arange(4)] * (self.T + 1))
        log_q, log_p = torch.zeros(len(path)).double(), self.prior.log()[path[:, -1]]
        for t in range(1, self.T + 1):
            log_q = log_q + self.forward[t].log()[path[:, t - 1], path[:, t]]
            log_p = log_p + self.reverse[t].log()[path[:, t], path[:, t - 1]]
        return path, log_q, log_p

    def K_along_trajectories(self, data):
        """(37)-(39), summed."""
        path, log_q, log_p = self.trajectories()
        return float((data[path[:, 0]] * log_q.exp() * (log_p - log_q)).sum())

    def kl(self, t, x0):
        """E_{q(x^t|x⁰)} KL( q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t) )."""
        total = 0.0
        for xt in range(4):
            joint = self.marginal[t - 1][x0] * self.forward[t][:, xt]
            posterior = joint / joint.sum()
            total += float(joint.sum() * (posterior * (posterior / self.reverse[t][xt]).log()).sum())
        return total

    def parts(self, data):
        """The KL sum and the three entropies of (14)."""

        def entropy(probs):
            return -float((probs * probs.log()).sum())

        kl = [sum(self.kl(t, x0) for t in range(2, self.T + 1)) for x0 in range(4)]
        at_T, at_1 = ([entropy(self.marginal[t][x0]) for x0 in range(4)] for t in (self.T, 1))
        return *(float(data @ real(*part)) for part in (kl, at_T, at_1)), entropy(self.prior)

    def K(self, data):
        kl, at_T, at_1, prior = self.parts(data)
        return -kl + at_T - at_1 - prior

    def log_p_x0(self):
        """log p(x⁰), equation (6), by the product of the reverse matrices."""
        p = self.prior
        for t in range(self.T, 0, -1):
            p = p @ self.reverse[t]
        return p.log()


def enumerate_draws(enumerated, data, timesteps):
    """Every x⁰ with every x^t at these timesteps, each by its own marginal: indices [N, 1 + n], probabilities [N]."""
    index = torch.cartesian_prod(*[torch.arange(4)] * (1 + len(timesteps)))
    weight = data[index[:, 0]]
    for column, t in enumerate(timesteps, start=1):
        weight = weight * enumerated.marginal[t][index[:, 0], index[:, column]]
    return index, weight


def enumerate_evaluate(p, enumerated, data):
    """E K of dpm's `evaluate`, which draws x², …, x^T and, for a final step that is not (44), x¹ at the end."""
    timesteps = [*range(2, enumerated.T + 1), *([1] if getattr(p, "final_step", None) else [])]
    index, weight = enumerate_draws(enumerated, data, timesteps)
    noises = [1 - STATES[column] for column in index[:, 1:].T]  # uniform noise 0 makes a 1, noise 1 a 0
    q = replay(BernoulliForward(linear_alpha_bar(enumerated.T), enumerated.prior_prob), noises)
    return evaluate(p, q, STATES[index[:, 0]], Generator()), weight


# K by enumeration


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
@pytest.mark.parametrize("seed", [0, 1])
def test_evaluate_is_equation_14_part_by_part(prior_prob, T, seed):
    p = LinearLogits(T, seed)
    enumerated = Enumerated(p, T, prior_prob)
    data = DATA[0.2]  # (14) is what it is for any data
    bound, weight = enumerate_evaluate(p, enumerated, data)
    parts = [float((weight * part).sum()) for part in (bound.kl, bound.entropy_T, bound.entropy_1, bound.entropy_prior)]
    assert parts == pytest.approx(list(enumerated.parts(data)), abs=1e-10)
    assert float((weight * bound.K).sum()) == pytest.approx(enumerated.K(data), abs=1e-10)


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
@pytest.mark.parametrize("seed", [0, 1])
def test_trajectory_K_is_equations_37_to_39_trajectory_by_trajectory(prior_prob, T, seed):
    p = LinearLogits(T, seed)
    enumerated = Enumerated(p, T, prior_prob)
    path, log_q, log_p = enumerated.trajectories()
    noises = [1 - STATES[path[:, t]] for t in range(1, T + 1)]
    q = replay(BernoulliForward(linear_alpha_bar(T), prior_prob), noises)
    K = trajectory_K(p, q, STATES[path[:, 0]], Generator())
    assert torch.allclose(K, log_p - log_q, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_K_of_14_is_K_along_trajectories_when_the_data_have_the_activity_of_pi(prior_prob, T, seed):
    """Appendix B, (37) to (51), exactly."""
    enumerated = Enumerated(LinearLogits(T, seed), T, prior_prob)
    assert enumerated.K(DATA[prior_prob]) == pytest.approx(enumerated.K_along_trajectories(DATA[prior_prob]), abs=1e-10)


def test_K_of_14_differs_by_the_cross_entropies_to_pi_when_they_change():
    """What (40)-(46) leave out: E log π(x^T) + E log π(x⁰) − E log π(x¹) + H_p(X^T)."""
    enumerated, data = Enumerated(LinearLogits(3, 0), 3, 0.2), DATA[0.5]
    at_0, at_1, at_T = (float(data @ enumerated.marginal[t] @ enumerated.prior.log()) for t in (0, 1, 3))
    gap = at_T + at_0 - at_1 - float(enumerated.prior @ enumerated.prior.log())
    assert enumerated.K_along_trajectories(data) - enumerated.K(data) == pytest.approx(gap, abs=1e-10)
    assert abs(gap) > 0.1


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
def test_estimate_K_is_unbiased(prior_prob, T):
    """Averaged over t = 2…T and every x⁰ and x^t it is (14): T−1 terms, constants counted once."""
    p, data = LinearLogits(T, 3), DATA[prior_prob]
    enumerated, mean = Enumerated(p, T, prior_prob), 0.0
    q = BernoulliForward(linear_alpha_bar(T), prior_prob)
    for t, x0, xt in itertools.product(range(2, T + 1), range(4), range(4)):
        K = estimate_K(p, q, STATES[x0, None], torch.tensor([t]), 1 - STATES[xt, None])
        mean += float(data[x0] * enumerated.marginal[t][x0, xt] * K) / (T - 1)
    assert mean == pytest.approx(enumerated.K(data), abs=1e-10)


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
@pytest.mark.parametrize("seed", range(5))
def test_K_never_exceeds_the_log_likelihood_of_bits(prior_prob, T, seed):
    """(12), (13) against L = Σ q(x⁰) log p(x⁰), (10)-(11); and (7)-(9): trajectory weights average to p(x⁰) itself."""
    enumerated, data = Enumerated(LinearLogits(T, seed), T, prior_prob), DATA[prior_prob]
    path, log_q, log_p = enumerated.trajectories()
    p_x0 = torch.zeros(4).double().index_add(0, path[:, 0], log_p.exp())
    assert torch.allclose(enumerated.log_p_x0(), p_x0.log(), atol=1e-12)
    noises = [1 - STATES[path[:, t]] for t in range(1, T + 1)]
    q = replay(BernoulliForward(linear_alpha_bar(T), prior_prob), noises)
    log_weight = trajectory_K(LinearLogits(T, seed), q, STATES[path[:, 0]], Generator())
    averaged = torch.zeros(4).double().index_add(0, path[:, 0], log_q.exp() * log_weight.exp())
    assert torch.allclose(averaged, p_x0, atol=1e-12, rtol=0)
    each = torch.zeros(4).double().index_add(0, path[:, 0], log_q.exp() * log_weight)
    assert bool((each <= p_x0.log()).all())  # Jensen, sample by sample
    assert enumerated.K(data) <= float(data @ p_x0.log())


# K of linear-Gaussian models, exactly


class Linear:
    """A linear-Gaussian reverse model, x^{t−1} ~ N(a_t x^t + b_t, v_t)."""

    def __init__(self, T, seed):
        self.a, self.b = 0.8 + 0.2 * draws(T + 1, seed=seed), draws(T + 1, seed=seed + 1) / 5
        self.v = 0.1 + 0.4 * torch.rand(T + 1, generator=Generator().manual_seed(seed), dtype=torch.float64)

    def __call__(self, q, xt, t):
        a, b, v = (values[t].reshape(-1, 1) for values in (self.a, self.b, self.v))
        return Normal(a * xt + b, v.expand_as(xt))

    def moments_of_x0(self, q, learned=False):
        """Mean and variance of p(x⁰): (4), the steps T…2, and the edge step (44), or a learned final step."""
        mean, variance = 0.0, 1.0
        for t in range(q.T, 0 if learned else 1, -1):
            a, b, v = float(self.a[t]), float(self.b[t]), float(self.v[t])
            mean, variance = a * mean + b, a**2 * variance + v
        if learned:
            return mean, variance
        kept = 1 - float(q.beta[1])
        return math.sqrt(kept) * mean, kept * variance + 1 - kept


def cubature(n_variables):
    """Points [2N, N] that average every quadratic of N standard normals exactly, with equal weights."""
    return math.sqrt(n_variables) * torch.cat([torch.eye(n_variables), -torch.eye(n_variables)]).double()


def exact_K(p, beta, mean, variance, of):
    """E K of a linear reverse model for one-dimensional data N(mean, variance)."""
    q = GaussianForward(beta)
    z = cubature(q.T + 1)
    x0 = mean + math.sqrt(variance) * z[:, :1]
    K = of(p, replay(q, z[:, 1:].T[..., None]), x0, Generator())
    return float((K.K if isinstance(K, PaperBound) else K).mean())


BETAS = [log_snr_linear(2, 0.1, 0.8), log_snr_linear(6, 0.02, 0.95), log_snr_linear(12, 1e-3, 0.99)]
UNIT = [(0.0, 1.0), (0.6, 0.64), (-0.8, 0.36)]  # E x² = 1


@pytest.mark.parametrize("beta", BETAS, ids=len)
@pytest.mark.parametrize(("mean", "variance"), UNIT)
@pytest.mark.parametrize("seed", [0, 1])
def test_K_of_14_is_K_along_trajectories_for_gaussians(beta, mean, variance, seed):
    p = Linear(len(beta) - 1, seed)
    assert exact_K(p, beta, mean, variance, evaluate) == pytest.approx(
        exact_K(p, beta, mean, variance, trajectory_K), rel=1e-11, abs=0
    )


def test_K_of_14_differs_by_the_cross_entropies_to_pi_when_the_variance_is_not_one():
    beta, p, square = BETAS[1], Linear(6, 0), 0.7**2 + 0.2
    kept = (1 - beta).cumprod(0)
    at = [kept[t] * square + 1 - kept[t] for t in (0, 1, 6)]  # E (x^t)²; E log π(x) = −½ log 2π − ½ E x²
    gap = float(-at[2] - at[0] + at[1] + 1) / 2
    both = [exact_K(p, beta, 0.7, 0.2, of) for of in (trajectory_K, evaluate)]
    assert both[0] - both[1] == pytest.approx(gap, abs=1e-10)
    assert abs(gap) > 0.01


def naive_gaussian_K(p, beta, mean, variance):
    """(14) for N(mean, variance), written out with moments: KL of two normals averaged over x⁰ and x^t."""
    T, b = len(beta) - 1, beta.tolist()
    kept = [math.prod(1 - r for r in b[: t + 1]) for t in range(T + 1)]
    K = 0.5 * math.log(1 - kept[T]) - 0.5 * math.log(b[1]) - 0.5 * math.log(2 * math.pi * math.e)
    for t in range(2, T + 1):
        precision = (1 - b[t]) / b[t] + 1 / (1 - kept[t - 1])  # of x^{t−1}: what x^t says, and what x⁰ says
        v = 1 / precision
        on_xt, on_x0 = math.sqrt(1 - b[t]) / b[t] * v, math.sqrt(kept[t - 1]) / (1 - kept[t - 1]) * v
        # the difference of means: (on_xt − a) x^t + on_x0 x⁰ − b, with x^t = √ᾱ x⁰ + √(1−ᾱ) z
        a, shift, s = float(p.a[t]), float(p.b[t]), float(p.v[t])
        per_x0 = (on_xt - a) * math.sqrt(kept[t]) + on_x0
        square = (per_x0 * mean - shift) ** 2 + per_x0**2 * variance + (on_xt - a) ** 2 * (1 - kept[t])
        K -= 0.5 * (math.log(s / v) + (v + square) / s - 1)
    return K


@pytest.mark.parametrize("beta", BETAS, ids=len)
@pytest.mark.parametrize("seed", [0, 1])
def test_evaluate_is_equation_14_for_gaussians(beta, seed):
    p = Linear(len(beta) - 1, seed)
    naive = naive_gaussian_K(p, beta, 0.7, 0.2)
    assert exact_K(p, beta, 0.7, 0.2, evaluate) == pytest.approx(naive, rel=1e-10, abs=0)


@pytest.mark.parametrize("beta", BETAS, ids=len)
@pytest.mark.parametrize(("mean", "variance"), UNIT)
@pytest.mark.parametrize("seed", range(5))
def test_K_never_exceeds_the_log_likelihood_of_gaussians(beta, mean, variance, seed):
    """p(x⁰) is exactly normal, so E log p(x⁰) is known."""
    p = Linear(len(beta) - 1, seed)
    m, v = p.moments_of_x0(GaussianForward(beta))
    log_likelihood = -0.5 * math.log(2 * math.pi * v) - ((mean - m) ** 2 + variance) / (2 * v)
    assert exact_K(p, beta, mean, variance, evaluate) <= log_likelihood


# The identity reversal and L_null


@pytest.mark.parametrize("prior_prob", [0.5, 0.2])
@pytest.mark.parametrize("T", [2, 3, 4])
def test_identity_reversal_of_bits_from_pi_gives_L_null(prior_prob, T):
    """K − L_null = 0, averaged over all states."""
    enumerated = Enumerated(keep_prior, T, prior_prob)
    bound, weight = enumerate_evaluate(keep_prior, enumerated, enumerated.prior)
    null = enumerated.prior @ log_null(enumerated.q, STATES)
    assert float((weight * bound.K).sum()) == pytest.approx(float(null), abs=1e-10)
    assert float(null) == pytest.approx(float(enumerated.prior @ enumerated.prior.log()), abs=1e-12)


@pytest.mark.parametrize("beta", BETAS, ids=len)
@pytest.mark.parametrize(("mean", "variance"), UNIT)
def test_identity_reversal_of_gaussians_gives_L_null(beta, mean, variance):
    """For any data with E x² = 1; those from N(0, 1) then meet the exact log likelihood with equality."""
    assert exact_K(keep_prior, beta, mean, variance, evaluate) == pytest.approx(
        -0.5 * math.log(2 * math.pi * math.e), abs=1e-10
    )


@pytest.mark.parametrize(
    ("q", "x0"),
    [
        (GaussianForward(log_snr_linear(20, 1e-3, 0.99)), draws(50, 3, 2)),
        (BernoulliForward(linear_alpha_bar(20), 0.2), (draws(50, 7) > 0).double()),
        (BernoulliForward(log_snr_linear(20, 1e-3, 0.99), 0.5), (draws(50, 7) > 0).double()),
    ],
)
def test_identity_reversal_gives_L_null_along_every_trajectory(q, x0):
    """Detailed balance telescopes: log p(x^{0…T}) − log q(x^{1…T}|x⁰) = log π(x⁰), whatever the data."""
    K = trajectory_K(keep_prior, q, x0, Generator().manual_seed(0))
    assert torch.allclose(K, log_null(q, x0), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kernel", ["gaussian", "bernoulli"])
def test_identity_reversal_on_samples_of_pi(kernel):
    """K − L_null = 0 within 5 standard errors of 4000 draws."""
    generator = Generator().manual_seed(4)
    q = (
        GaussianForward(log_snr_linear(10, 0.01, 0.99))
        if kernel == "gaussian"
        else BernoulliForward(linear_alpha_bar(10), 0.2)
    )
    like = torch.zeros(4000, 3).double()
    x0 = q.prior(like).reparameterize(q.sample_noise(like, generator))
    gain, error = mean_and_stderr(evaluate(keep_prior, q, x0, generator).K - log_null(q, x0))
    assert abs(gain) < 5 * error < 0.3


def test_L_null_of_a_gaussian_dimension_of_variance_one():
    x0 = real(-1, 1)[:, None]
    null = float(to_bits(log_null(GaussianForward(BETAS[0]), x0)).mean())
    assert null == pytest.approx(-2.0471, abs=5e-5)
    assert null == pytest.approx(-0.5 * math.log2(2 * math.pi * math.e), abs=1e-12)


@pytest.mark.parametrize(("prior_prob", "bits"), [(0.2, -14.43856), (0.5, -20.0)])
def test_L_null_of_a_heartbeat(prior_prob, bits):
    null = to_bits(log_null(BernoulliForward(linear_alpha_bar(3), prior_prob), heartbeat_sequences()))
    assert null.tolist() == pytest.approx([bits] * 5, abs=5e-6)


def test_edge_step_of_the_paper_s_heartbeat_costs_0_0439_bits():
    """H_q(X¹|X⁰) at T = 2000; with β_T = 1 the other two entropies cancel."""
    x0 = heartbeat_sequences()
    bound = PaperBound(torch.zeros(5).double(), *BernoulliForward(linear_alpha_bar(2000), 0.2).entropy_constants(x0))
    assert to_bits(bound.entropy_1).tolist() == pytest.approx([0.0439] * 5, abs=5e-5)
    assert torch.allclose(bound.entropy_T, bound.entropy_prior, atol=1e-12)
    assert torch.allclose(bound.K, -bound.entropy_1, atol=1e-12)


# Estimates


class Bent:
    """A reverse model that is nowhere near linear."""

    def __init__(self, T):
        self.T = T

    def __call__(self, q, xt, t):
        b = q.beta[t].to(xt.dtype).reshape(-1, *[1] * (xt.dim() - 1))
        mean = xt * (1 - b).sqrt() + 0.5 * b.sqrt() * torch.tanh(2 * xt)
        return Normal(mean, torch.sigmoid(b.logit() + 0.3 * torch.sin(xt)))


def test_three_routes_to_K_agree_within_their_errors():
    """`evaluate`, stratified `estimate_K` and `trajectory_K` on the same data, means within 5 standard errors."""
    q, p, generator = GaussianForward(log_snr_linear(8, 0.02, 0.97)), Bent(8), Generator().manual_seed(0)
    x0 = draws(14_000, 2)
    x0 = (x0 - x0.mean(0)) / x0.std(0, correction=0)
    t = stratified_timesteps(len(x0), q.T, generator)[torch.randperm(len(x0), generator=generator)]
    routes = [
        mean_and_stderr(K)
        for K in (
            evaluate(p, q, x0, generator).K,
            estimate_K(p, q, x0, t, q.sample_noise(x0, generator)),
            trajectory_K(p, q, x0, generator),
        )
    ]
    for (a, error_a), (b, error_b) in itertools.combinations(routes, 2):
        assert abs(a - b) < 5 * math.hypot(error_a, error_b) < 0.5


def test_step_kl_draws_xt_by_frozen_noise_and_sums_over_all_but_the_batch():
    q, p, x0, noise = GaussianForward(log_snr_linear(8, 0.02, 0.97)), Bent(8), draws(5, 3, 2), draws(5, 3, 2, seed=2)
    t = torch.tensor([2, 8, 5, 3, 2])
    values = step_kl(p, q, x0, t, noise)
    kept = (1 - q.beta).cumprod(0)[t].reshape(5, 1, 1)
    xt = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
    posterior, reverse = (torch.distributions.Normal(d.mean, d.stddev) for d in (q.posterior(xt, x0, t), p(q, xt, t)))
    naive = torch.distributions.kl_divergence(posterior, reverse).sum((1, 2))
    assert values.shape == (5,) and torch.allclose(values, naive, atol=1e-11)


@pytest.mark.parametrize(("T", "times"), [(2, 3), (3, 1), (6, 4), (40, 2)])
def test_stratified_timesteps_take_each_t_equally_often_when_the_batch_allows(T, times):
    for seed in range(20):
        t = stratified_timesteps(times * (T - 1), T, Generator().manual_seed(seed))
        assert torch.bincount(t).tolist() == [0, 0, *[times] * (T - 1)]


def test_stratified_timesteps_are_unbiased_for_any_batch():
    """7 draws over t = 2…6: each t comes once or twice, and 7/5 times in the mean, within 5 standard errors."""
    counts = torch.stack(
        [torch.bincount(stratified_timesteps(7, 6, Generator().manual_seed(s)), minlength=7) for s in range(2000)]
    )
    assert set(counts[:, 2:].flatten().tolist()) == {1, 2} and not counts[:, :2].any()
    error = math.sqrt(0.4 * 0.6 / 2000)
    assert bool(((counts[:, 2:].double().mean(0) - 1.4).abs() < 5 * error).all())


@pytest.mark.parametrize("above", [1, 3, 5])
def test_stratified_timesteps_above_one_take_no_other(above):
    t = stratified_timesteps(4 * (6 - above), 6, Generator().manual_seed(0), above)
    assert torch.bincount(t, minlength=7).tolist() == [0] * (above + 1) + [4] * (6 - above)


@pytest.mark.parametrize("above", [1, 4, 7])
def test_kl_above_a_step_is_the_sum_of_the_terms_there(above):
    """Against every such term for every sample, means within 5 standard errors; few samples keep to few terms."""
    q, p, x0 = GaussianForward(log_snr_linear(8, 0.02, 0.97)), Bent(8), draws(14_000, 2)
    every, generator = range(above + 1, 9), Generator().manual_seed(0)
    terms = sum(step_kl(p, q, x0, t, q.sample_noise(x0, generator)) for t in every)
    (whole, error), drawn = mean_and_stderr(terms), kl_above(p, q, x0, above, generator)
    parts = torch.stack([row.mean() for row in drawn.view(-1, 140)])  # of all terms alike
    mean, spread = mean_and_stderr(parts)
    assert abs(mean - whole) < 5 * math.hypot(error, spread) < 0.1 * whole


def test_stratified_timesteps_never_pass_T_by_rounding(monkeypatch):
    monkeypatch.setattr(dpm.bound.torch, "rand", lambda *shape, **options: real(1 - 2**-53)[0])
    assert int(stratified_timesteps(1000, 6, Generator()).max()) == 6


# Any final step


class Learned:
    """A reverse model with a learned final step: its own kernel at t = 1 in the place of (44)."""

    def __init__(self, p):
        self.p, self.final_step = p, learned_final_step

    def __call__(self, q, xt, t):
        return self.p(q, xt, t)


def general_bound(p, q, x0, noises):
    """The general bound from its terms, one noise for each t = 2…T and then t = 1."""
    *later, first = noises
    kl = sum(step_kl(p, q, x0, t, noise) for t, noise in zip(range(2, q.T + 1), later, strict=True))
    return EvidenceBound(reconstruction_loss(p, q, x0, first), kl, prior_kl(q, x0))


@pytest.mark.parametrize("beta", BETAS, ids=len)
@pytest.mark.parametrize(("mean", "variance"), [*UNIT, (0.7, 0.2), (1.0, 3.0)])
def test_general_bound_with_the_edge_step_44_is_equation_14_plus_the_gap_for_gaussians(beta, mean, variance):
    """Exactly, by cubature; the gap is that of the cross entropies to π, and is zero for data of mean square 1."""
    q, p, z = GaussianForward(beta), Linear(len(beta) - 1, 0), cubature(len(beta))
    x0 = mean + math.sqrt(variance) * z[:, :1]
    general = float(general_bound(p, q, x0, z[:, 1:].T[..., None]).K.mean())
    gap = float(prior_cross_entropy_gap(q, x0).mean())
    assert general == pytest.approx(naive_gaussian_K(p, beta, mean, variance) + gap, rel=1e-10, abs=0)
    assert general == pytest.approx(exact_K(p, beta, mean, variance, trajectory_K), rel=1e-10, abs=0)
    assert (abs(gap) < 1e-12) == ((mean, variance) in UNIT)


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_general_bound_with_the_edge_step_44_is_equation_14_plus_the_gap_for_bits(prior_prob, T, data):
    """Exactly, by enumeration."""
    p = LinearLogits(T, 0)
    enumerated = Enumerated(p, T, prior_prob)
    q = enumerated.q
    index, weight = enumerate_draws(enumerated, data, [*range(2, T + 1), 1])
    noises = [1 - STATES[column] for column in index[:, 1:].T]
    general = float(weight @ general_bound(p, q, STATES[index[:, 0]], noises).K)
    gap = float(data @ prior_cross_entropy_gap(q, STATES))
    assert general == pytest.approx(enumerated.K(data) + gap, abs=1e-10)
    assert general == pytest.approx(enumerated.K_along_trajectories(data), abs=1e-10)
    assert (abs(gap) < 1e-12) == (prior_prob == 0.5 or data is DATA[prior_prob])


def test_general_bound_with_the_edge_step_44_is_equation_14_within_its_error():
    """On data of mean square 1, for a model far from linear, each side with its own draws."""
    q, p, generator = GaussianForward(log_snr_linear(8, 0.02, 0.97)), Bent(8), Generator().manual_seed(0)
    x0 = draws(14_000, 2)
    x0 = x0 / x0.square().mean(0).sqrt()
    of_14, error_14 = mean_and_stderr(evaluate(p, q, x0, generator).K)
    general, error = mean_and_stderr(general_bound(p, q, x0, [q.sample_noise(x0, generator) for _ in range(8)]).K)
    assert abs(general - of_14) < 5 * math.hypot(error, error_14) < 0.5


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
@pytest.mark.parametrize("seed", [0, 1])
def test_evaluate_with_a_learned_final_step_of_bits(prior_prob, T, seed):
    """Part by part, and its K against all trajectories (37)-(39) and against log p(x⁰), for any data."""
    p = Learned(LinearLogits(T, seed))
    enumerated, data = Enumerated(p, T, prior_prob), DATA[0.2]
    bound, weight = enumerate_evaluate(p, enumerated, data)
    at_1, at_T = enumerated.marginal[1], enumerated.marginal[T]
    parts = [
        -float(data @ (at_1 * enumerated.reverse[1].log().T).sum(1)),
        enumerated.parts(data)[0],
        float(data @ (at_T * (at_T / enumerated.prior).log()).sum(1)),
    ]
    found = [float(weight @ part) for part in (bound.reconstruction, bound.kl, bound.prior_kl)]
    assert found == pytest.approx(parts, abs=1e-10)
    mean_K, with_edge = float(weight @ bound.K), Enumerated(p.p, T, prior_prob)
    assert mean_K == pytest.approx(enumerated.K_along_trajectories(data), abs=1e-10)
    assert mean_K <= float(data @ enumerated.log_p_x0())
    assert abs(mean_K - with_edge.K_along_trajectories(data)) > 0.01  # the step (44) is another


@pytest.mark.parametrize(("prior_prob", "T"), PRIOR_PROB_T)
def test_estimate_K_with_a_learned_final_step_is_unbiased(prior_prob, T):
    """Averaged over t = 1…T, x⁰ and x^t: T terms, one of them the reconstruction. As one batch, and one by one."""
    p, data, total = Learned(LinearLogits(T, 3)), DATA[0.2], 0.0
    enumerated = Enumerated(p, T, prior_prob)
    batch, weights = [], []
    for t, x0, xt in itertools.product(range(1, T + 1), range(4), range(4)):
        batch.append((STATES[x0], torch.tensor(t), 1 - STATES[xt]))
        weights.append(float(data[x0] * enumerated.marginal[t][x0, xt]) / T)
    x0, t, noise = (torch.stack(column) for column in zip(*batch, strict=True))
    K = estimate_K(p, enumerated.q, x0, t, noise)
    assert float(real(*weights) @ K) == pytest.approx(enumerated.K_along_trajectories(data), abs=1e-10)
    for i in range(len(t)):
        total += weights[i] * float(estimate_K(p, enumerated.q, x0[i : i + 1], t[i : i + 1], noise[i : i + 1]))
    assert total == pytest.approx(enumerated.K_along_trajectories(data), abs=1e-10)
    assert first_learned_timestep(p, enumerated.q) == 1 and first_learned_timestep(p.p, enumerated.q) == 2


Z = torch.linspace(-9, 9, 241, dtype=torch.float64)  # quadrature over a standard normal: the trapezoid rule
Z_WEIGHT = torch.softmax(-Z.square() / 2, 0)
PLANE = torch.cartesian_prod(Z, Z)
PLANE_WEIGHT = torch.outer(Z_WEIGHT, Z_WEIGHT).flatten()


def quadrature_K(p, beta, mean, variance):
    """(37)-(39) for data N(mean, variance): each log density averaged over the pair (x^{t−1}, x^t) that it is of.

    Nothing of dpm but the reverse model: neither posteriors nor divergences.
    """
    b, K, alpha_bar = beta.tolist(), 0.0, 1.0
    for t in range(1, len(b)):
        before = math.sqrt(alpha_bar) * mean + math.sqrt(alpha_bar * variance + 1 - alpha_bar) * PLANE[:, :1]
        after = math.sqrt(1 - b[t]) * before + math.sqrt(b[t]) * PLANE[:, 1:]
        law = p(GaussianForward(beta), after, t)
        log_p = stats.norm.logpdf(before, law.mean, law.variance.sqrt())
        log_q = stats.norm.logpdf(after, math.sqrt(1 - b[t]) * before, math.sqrt(b[t]))
        K += float(PLANE_WEIGHT @ torch.from_numpy(log_p - log_q)[:, 0])
        alpha_bar *= 1 - b[t]
    return K + float(PLANE_WEIGHT @ torch.from_numpy(stats.norm.logpdf(after))[:, 0])


@pytest.mark.parametrize("beta", BETAS, ids=len)
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 0.2)])
@pytest.mark.parametrize("kind", ["linear", "bent"])
def test_evaluate_with_a_learned_final_step_of_gaussians(beta, mean, variance, kind):
    """Against quadrature over pairs (x^{t−1}, x^t), for a linear model and one far from linear."""
    T = len(beta) - 1
    p = Learned(Linear(T, 0) if kind == "linear" else Bent(T))
    x0, noise = mean + math.sqrt(variance) * PLANE[:, :1], PLANE[:, 1:]
    q = replay(GaussianForward(beta), [noise] * T)  # each term needs one x⁰ and one noise, so all t share theirs
    K = float(PLANE_WEIGHT @ evaluate(p, q, x0, Generator()).K)
    assert pytest.approx(quadrature_K(p, beta, mean, variance), rel=1e-9, abs=0) == K
    if kind == "linear":
        m, v = p.p.moments_of_x0(GaussianForward(beta), learned=True)
        log_likelihood = -0.5 * math.log(2 * math.pi * v) - ((mean - m) ** 2 + variance) / (2 * v)
        assert log_likelihood >= K


LEVELS = torch.linspace(-1, 1, 256, dtype=torch.float64)  # the grey levels of eight bits
DISCRETIZED = DiscretizedFinalStep(2 / 255, -1.0, 1.0)


class Discretized(Learned):
    """A reverse model with DDPM's final step on the levels."""

    def __init__(self, p):
        self.p, self.final_step = p, DISCRETIZED


@pytest.mark.parametrize("kind", ["linear", "bent"])
@pytest.mark.parametrize("x1", [-30.0, -1.0, -0.3, 0.0, 0.9, 1.1, 30.0])
def test_discretized_final_step_gives_all_levels_a_probability_of_one(kind, x1):
    p, q = (Linear(6, 0) if kind == "linear" else Bent(6)), GaussianForward(log_snr_linear(6, 1e-4, 0.95))
    law = p(q, real([x1]), 1)
    log_P = final_step(Discretized(p), q, real([x1]).expand(256, 1)).log_prob(LEVELS[:, None])[:, 0]
    assert float(log_P.logsumexp(0)) == pytest.approx(0, abs=1e-11)
    edges = torch.cat([real(-math.inf), (LEVELS[1:] + LEVELS[:-1]) / 2, real(math.inf)])
    masses = stats.norm.cdf(edges, float(law.mean), float(law.stddev))
    assert torch.allclose(log_P.exp(), torch.from_numpy(masses).diff(), atol=1e-12, rtol=0)


def log_prob_of_levels(m, v):
    """log of the mass of N(m, v) around each level, the outermost bins reaching to infinity."""
    edges = torch.cat([real(-math.inf), (LEVELS[1:] + LEVELS[:-1]) / 2, real(math.inf)])
    mirrored = torch.where(edges[:-1] > m, -1.0, 1.0)  # the tail in which the difference keeps its digits
    ends = [stats.norm.cdf((mirrored * (e - m) / math.sqrt(v)).numpy()) for e in (edges[:-1], edges[1:])]
    return torch.from_numpy(abs(ends[1] - ends[0])).log()


def level_K(p, beta):
    """E K of each of the 256 levels, by quadrature over the noise."""
    x0 = LEVELS.repeat_interleave(len(Z))[:, None]
    noise = Z.repeat(256)[:, None]
    q = replay(GaussianForward(beta), [noise] * (len(beta) - 1))  # each term needs one noise, so all t share it
    return evaluate(p, q, x0, Generator()).K.reshape(256, -1) @ Z_WEIGHT


@pytest.mark.parametrize("seed", range(3))
def test_K_with_the_discretized_final_step_never_exceeds_the_log_probability_of_the_levels(seed):
    """p(x⁰) before rounding is exactly normal, so the probability of each level is known; level by level."""
    p, q = Linear(6, seed), GaussianForward(log_snr_linear(6, 1e-4, 0.95))
    m, v = p.moments_of_x0(q, learned=True)
    log_P = log_prob_of_levels(m, v)
    assert float(log_P.logsumexp(0)) == pytest.approx(0, abs=1e-12)
    assert bool((level_K(Discretized(p), q.beta) <= log_P).all())


def test_K_with_the_discretized_final_step_reaches_the_log_probability_of_the_levels():
    """For the ideal reverse model of N(0, 0.09): only the width of a bin, narrow beside √β_1, is lost."""
    q, p = GaussianForward(log_snr_linear(60, 1e-3, 0.9999)), IdealMixtureReverse(torch.zeros(1, 1).double(), 0.09)
    v = 1.0
    for t in range(q.T, 0, -1):
        law = p(q, real([1.0]), t)
        v = float(law.mean) ** 2 * v + float(law.variance)
    log_P = log_prob_of_levels(0.0, v)
    p.final_step = DISCRETIZED
    below = (log_P - level_K(p, q.beta))[3:-3]  # the outermost bins are wide
    assert bool((below > 0).all()) and float(below.max()) < 0.02
    chosen = LEVELS[[20, 90, 128, 200], None]
    estimate = importance_estimate(log_weights(p, q, chosen, 4_000, Generator().manual_seed(0)))
    assert bool(((estimate.log_p - log_P[[20, 90, 128, 200]]).abs() < 4 * estimate.stderr).all())
    assert bool((estimate.stderr < 0.01).all())


@pytest.mark.parametrize("p", [Bent(8), Learned(Bent(8))], ids=["edge", "learned"])
def test_subsampled_timesteps_average_to_all_of_them_with_any_final_step(p):
    q, x0 = GaussianForward(log_snr_linear(8, 0.02, 0.97)), draws(6_000, 2)
    generator = Generator().manual_seed(0)
    whole = evaluate(p, q, x0, generator).K
    subsampled = evaluate_subsampled(p, q, x0, generator, 3).K
    difference, error = mean_and_stderr(subsampled - whole)
    assert abs(difference) < 4 * error < 0.2


# One timestep for the batch, or one per sample


@pytest.mark.parametrize(
    ("q", "p", "x0"),
    [
        (GaussianForward(BETAS[1]), Bent(6), draws(5, 3, 2)),
        (BernoulliForward(linear_alpha_bar(6), 0.2), LinearLogits(6, 0), STATES),
        (AbsorbingForward(linear_alpha_bar(6)), IdealReverse(STATES[:3]), STATES[:3]),
    ],
    ids=["gaussian", "bernoulli", "absorbing"],
)
def test_an_int_t_and_a_tensor_of_it_give_the_same_terms(q, p, x0):
    noise = q.sample_noise(x0, Generator().manual_seed(0))
    for t in range(2, q.T + 1):
        for_all = step_kl(p, q, x0, t, noise)
        assert for_all.shape == (len(x0),)
        assert torch.allclose(for_all, step_kl(p, q, x0, torch.full((len(x0),), t), noise), atol=1e-14, rtol=1e-13)
    mixed = torch.tensor([2, 6, 4, 3, 2])[: len(x0)]
    values = step_kl(p, q, x0, mixed, noise)
    alone = [step_kl(p, q, x0[i : i + 1], int(mixed[i]), noise[i : i + 1]) for i in range(len(x0))]
    assert torch.allclose(values, torch.cat(alone), atol=1e-14, rtol=1e-13) and len(values.unique()) > 1


# The gradient in β, Section 2.4.1


@pytest.mark.parametrize("p", [Bent(6), keep_prior], ids=["bent", "identity"])
def test_gradient_of_K_in_the_learned_beta_with_frozen_noise(p):
    """Central differences in the logits of β_2…T; β_1 has no gradient."""
    schedule = LearnedSchedule(log_snr_linear(6, 0.02, 0.95))
    x0, noise, t = draws(30, 2), draws(30, 2, seed=2), torch.arange(30) % 5 + 2

    def K():
        return estimate_K(p, GaussianForward(schedule()), x0, t, noise).mean()

    [gradient] = torch.autograd.grad(K(), schedule.logits)
    h, differences = 1e-5, []
    for i in range(5):
        values = []
        for move in (h, -h):
            with torch.no_grad():
                schedule.logits[i] += move
                values.append(float(K()))
                schedule.logits[i] -= move
        differences.append((values[0] - values[1]) / (2 * h))
    assert gradient.tolist() == pytest.approx(differences, rel=1e-6, abs=1e-8)
    assert float(gradient.abs().min()) > 1e-3


def test_gradient_of_the_mean_of_K_is_the_mean_gradient():
    """No term is lost to the frozen noise: averaged exactly, it is the derivative of (14) written out with moments."""
    p, logits = Linear(6, 0), log_snr_linear(6, 0.02, 0.95)[2:].logit().requires_grad_()
    head = log_snr_linear(6, 0.02, 0.95)[:2]

    def betas(logits):
        return torch.cat([head, torch.sigmoid(logits)])

    z, mean = cubature(7), 0.0
    x0, q = 0.7 + math.sqrt(0.2) * z[:, :1], GaussianForward(betas(logits))
    for t in range(2, 7):
        mean = mean + estimate_K(p, q, x0, torch.full((14,), t), z[:, t : t + 1]).mean() / 5
    [gradient] = torch.autograd.grad(mean, logits)
    h, differences = 1e-5, []
    for i in range(5):
        move = h * torch.eye(5).double()[i]
        ends = [naive_gaussian_K(p, betas(logits.detach() + s * move), 0.7, 0.2) for s in (1, -1)]
        differences.append((ends[0] - ends[1]) / (2 * h))
    assert gradient.tolist() == pytest.approx(differences, rel=1e-6, abs=1e-7)


def test_evaluation_records_no_gradient_and_estimates_do():
    schedule, x0 = LearnedSchedule(log_snr_linear(6, 0.02, 0.95)), draws(4, 2)
    q = GaussianForward(schedule())
    assert not evaluate(keep_prior, q, x0, Generator()).kl.requires_grad
    assert not trajectory_K(keep_prior, q, x0, Generator()).requires_grad
    assert estimate_K(keep_prior, q, x0, torch.full((4,), 2), x0).requires_grad


# Small change


def test_sum_except_batch_sums_over_all_but_the_batch():
    assert sum_except_batch(torch.arange(12.0).reshape(2, 3, 2)).tolist() == [15.0, 51.0]


def test_K_is_minus_kl_plus_three_entropies():
    bound = PaperBound(kl=real(1, 2), entropy_T=real(10, 20), entropy_1=real(100, 200), entropy_prior=real(1000, 2000))
    assert bound.K.tolist() == [-1091.0, -2182.0]


def test_bits_means_and_errors():
    values = draws(200)
    mean, error = mean_and_stderr(values)
    assert (mean, error) == pytest.approx((float(values.numpy().mean()), stats.sem(values.numpy())), rel=1e-12, abs=0)
    assert float(to_bits(real(math.log(8)))) == pytest.approx(3, abs=1e-15)


def test_evaluate_gives_each_sample_its_own_noise_and_repeats_with_its_seed():
    q, p = BernoulliForward(linear_alpha_bar(9), 0.2), keep_prior
    x0 = heartbeat(1, Generator().manual_seed(0)).expand(50, -1)
    kl, again = (evaluate(p, q, x0, Generator().manual_seed(1)).kl for _ in range(2))
    assert torch.equal(kl, again) and len(kl.unique()) > 25


# Units


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [0.8, 64.15])
def test_bits_per_dimension_of_the_true_density_are_the_entropy_of_the_levels(channels, scale):
    """Levels with noise of one level have a density P(level)·scale a channel: its K must turn into their entropy."""
    P = real(1, 2, 4, 9).div(16)
    K = channels * float(P @ (P * scale).log2())
    entropy = stats.entropy(P.numpy(), base=2)
    assert bits_per_dimension(K, channels, scale) == pytest.approx(entropy, abs=1e-12)
    assert bits_per_pixel(entropy, channels, scale) == pytest.approx(K, abs=1e-12)


def test_bits_per_dimension_of_a_normal_density_bound_those_of_its_levels():
    """log₂(scale) − K/C with K by quadrature inside each level, against P(level) by the normal's own integral."""
    scale, levels, P = 3.0, torch.arange(-4, 4).double(), real(1, 2, 4, 9, 9, 4, 2, 1).div(32)
    inside = (torch.arange(1000).double() + 0.5) / 1000
    log_density = stats.norm.logpdf(((levels[:, None] + inside) / scale).numpy()).mean(1) / math.log(2)
    exact = stats.norm.cdf((levels + 1) / scale) - stats.norm.cdf(levels / scale)
    bound = bits_per_dimension(float(P.numpy() @ log_density), 1, scale)
    assert 0 < bound + float(P.numpy() @ torch.from_numpy(exact).log2().numpy()) < 0.01


def test_bits_per_dimension_do_not_depend_on_the_unit_of_x():
    """Twice as many levels to the unit make K larger by one bit a channel."""
    assert bits_per_dimension(5.4, 3, 64.0) == pytest.approx(bits_per_dimension(5.4 + 3, 3, 128.0), abs=1e-12)


def test_CIFAR_10_of_Table_1_is_4_20_bits_per_dimension():
    assert bits_per_dimension(5.4, 3, 255 * 0.25157) == pytest.approx(4.2034, abs=5e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_null_bits_are_L_null_of_data_of_mean_square_one(channels):
    x0 = torch.tensor([-1.0, 1.0]).double()[:, None].expand(2, channels)
    assert null_bits(channels) == pytest.approx(
        float(to_bits(log_null(GaussianForward(BETAS[0]), x0)).mean()), abs=1e-12
    )


@pytest.mark.parametrize(("beta_1", "channels"), [(0.1, 1), (1e-3, 3)])
def test_edge_ceiling_is_K_of_a_perfect_network_whose_forward_process_forgets(beta_1, channels):
    """(14) with no KL at all, up to the trace of the data at T, which can only lower it."""
    x0 = draws(4, channels)
    for last in (0.9, 1 - 1e-9):
        K = to_bits(
            PaperBound(
                torch.zeros(4).double(), *GaussianForward(log_snr_linear(9, beta_1, last)).entropy_constants(x0)
            ).K
        )
        below = edge_ceiling(beta_1, channels) - K
        assert torch.allclose(below, torch.full_like(below, -channels / 2 * math.log2(last)), atol=1e-10)
        assert bool((below > 0).all())


@pytest.mark.parametrize("times", [1, 3, 7])
def test_subsampled_timesteps_average_to_all_of_them(times):
    """`evaluate_subsampled` against `evaluate`, for a model that keeps π; more timesteps per sample, less spread."""
    q, x0 = (
        GaussianForward(log_snr_linear(20, 1e-2, 0.9)),
        1.5 * torch.randn(6_000, 2, generator=Generator().manual_seed(0)).double(),
    )
    all_steps = evaluate(keep_prior, q, x0, Generator().manual_seed(1))
    subsampled = evaluate_subsampled(keep_prior, q, x0, Generator().manual_seed(2), times)
    difference, error = mean_and_stderr(subsampled.K - all_steps.K)
    assert abs(difference) < 4 * error
    assert torch.equal(subsampled.entropy_1, all_steps.entropy_1)
    if times == 7:
        assert float(subsampled.kl.std()) < 0.7 * float(
            evaluate_subsampled(keep_prior, q, x0, Generator().manual_seed(2), 1).kl.std()
        )


def test_samples_of_a_stratum_interleave_their_timesteps():
    """Ten samples in a row meet every one of twenty timesteps once; each sample alone meets all equally often."""
    timesteps = []

    def recording(q, xt, t):
        timesteps.append(t)
        return keep_prior(q, xt, t)

    q, x0 = GaussianForward(log_snr_linear(21, 1e-2, 0.9)), torch.zeros(4000, 1).double()
    evaluate_subsampled(recording, q, x0, Generator().manual_seed(0), 2)
    t = torch.stack(timesteps, dim=1)  # [samples, 2]
    assert all(row.flatten().sort().values.tolist() == list(range(2, 22)) for row in t.split(10))
    assert float(t.double().std(0).max()) < 4 and bool((t[:, 1] - t[:, 0] == 10).all())
    counts = torch.bincount(t[::10, 0])[2:12]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


SHARE = torch.tensor([0, 0, 0.5, 0.2, 0.05, 0.25], dtype=torch.float64)


def test_timesteps_by_share_are_drawn_as_often_as_their_share():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    counts = torch.bincount(timestep_by_share(u, SHARE), minlength=6) / len(u)
    assert counts.tolist() == pytest.approx(SHARE.tolist(), abs=1e-4)
    assert timestep_by_share(torch.tensor([0.0, 1.0]).double(), SHARE).tolist() == [2, 5]
    uniform = torch.tensor([0, 0] + [1 / 19] * 19, dtype=torch.float64)
    assert torch.equal(timestep_by_share(u, uniform), timestep_at(u, 20))


@pytest.mark.parametrize("n_timesteps", [1, 3])
def test_timesteps_by_a_profile_average_to_all_of_them(n_timesteps):
    """Against the sum over every timestep, whatever the profile; that of a pilot makes the estimate vary least."""
    q, x0 = GaussianForward(log_snr_linear(30, 1e-2, 0.9)), 1.5 * draws(20_000, 2)
    every = evaluate(keep_prior, q, x0, Generator().manual_seed(5)).kl
    t = stratified_timesteps(20_000, 30, Generator().manual_seed(2))
    pilot = kl_profile(t, step_kl(keep_prior, q, x0, t, draws(20_000, 2, seed=3)), 30)
    rising = torch.arange(31, dtype=torch.float64).clamp(min=1) - 1
    wrong = KLProfile(mean=torch.full((31,), 7.0).double() * (rising > 0), share=rising / rising.sum())
    variance = {}
    for name, profile in (("pilot", pilot), ("wrong", wrong), ("none", None)):
        kl = evaluate_subsampled(keep_prior, q, x0, Generator().manual_seed(4), n_timesteps, profile).kl
        strata = (kl - every).view(-1, STRATUM_SIZE).mean(1)
        difference, error = mean_and_stderr(strata)
        assert abs(difference) < 4 * error
        variance[name] = float(strata.var())
    assert variance["pilot"] < min(variance["wrong"], variance["none"])


def test_a_profile_follows_mean_and_standard_deviation():
    """In twenty ranges of ten timesteps, whose standard deviations are 1 to 20, and whose means fall from 40."""
    t = torch.arange(2, 202).repeat(400)
    k = (t - 2) // 10
    kl = 40 - k + (1 + k) * torch.randn(len(t), generator=Generator().manual_seed(0))
    profile = kl_profile(t, kl, 201)
    assert float(profile.share.sum()) == pytest.approx(1) and profile.share[:2].tolist() == [0, 0]
    middles = torch.arange(20) * 10 + 6.5  # between two timesteps
    low, high = middles.floor().long(), middles.ceil().long()
    assert torch.allclose((profile.mean[low] + profile.mean[high]) / 2, 40 - torch.arange(20).double(), atol=1.5)
    wanted = 0.9 * torch.arange(1, 21) / 210 / 10 + 0.1 / 200
    assert torch.allclose((profile.share[low] + profile.share[high]) / 2, wanted.double(), rtol=0.06)


def test_loss_with_a_share_for_the_final_step_is_minus_K_with_less_variance():
    """In the mean over many batches it is −K of `evaluate`, and that of `bound_loss`, which meets t = 1 seldom."""
    q, p = GaussianForward(log_snr_linear(50, 1e-2, 0.9)), IdealMixtureReverse(real([0.5, 0.1]), 0.2)
    p.final_step = learned_final_step
    x0 = draws(50_000, 2)
    K, K_stderr = mean_and_stderr(evaluate(p, q, x0, Generator().manual_seed(5)).K)
    t = stratified_timesteps(500, 50, Generator().manual_seed(6), above=0).repeat(100)
    noise = draws(50_000, 2, seed=7)
    losses = {loss: loss(p, q, x0, t, noise).view(100, 500).mean(1) for loss in (bound_loss, final_step_bound_loss)}
    for batches in losses.values():
        mean, stderr = mean_and_stderr(batches)
        assert mean == pytest.approx(-K, abs=4 * math.hypot(stderr, K_stderr))
    assert losses[final_step_bound_loss].var() < 0.7 * losses[bound_loss].var()
