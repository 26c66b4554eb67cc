"""Entropy bounds, Section 2.6 and Appendix A: each value by its formula and from the joint distribution, in float64."""

import math

import pytest
import torch
from torch import Generator

from dpm import entropy
from dpm.data.synthetic import heartbeat, heartbeat_sequences, swiss_roll, swiss_roll_points
from dpm.forward import AbsorbingForward, BernoulliForward, GaussianForward, sum_except_batch
from dpm.ideal import IdealMixtureReverse, IdealReverse
from dpm.schedules import linear_alpha_bar, log_snr_linear
from dpm.units import mean_and_stderr

PRIOR_PROBS = [0.5, 0.2]
LINE = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None]
CELL = float(LINE[1] - LINE[0])


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_beta(T, seed=0):
    beta = 0.02 + 0.6 * torch.rand(T, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([real(0.0), beta])


def timesteps(t, x):
    return torch.full((len(x),), t)


def states(length):
    return torch.cartesian_prod(*[real(0.0, 1.0)] * length).reshape(-1, length)


def entropy_of(probabilities):
    return torch.special.entr(probabilities).sum()


def step_matrix(q, t, length):
    """T_π(x^t | x^{t−1}; β_t) between all states of `length` bits, as Table App.1 prints it: a Kronecker power."""
    beta = float(q.beta[t])
    prob_one = [x * (1 - beta) + q.prior_prob * beta for x in (0, 1)]
    bit, matrix = real(*[[1 - r, r] for r in prob_one]), torch.ones(1, 1, dtype=torch.float64)
    for _ in range(length):
        matrix = torch.kron(matrix, bit)
    return matrix


def joint(q, points, t):
    """q(x⁰, x^{t−1}, x^t) over all states, [S, S, S], from matrices alone."""
    every = states(points.shape[1])
    start = (every[:, None] == points).all(-1).double().mean(1)
    jump = torch.eye(len(every), dtype=torch.float64)
    for s in range(1, t):
        jump = jump @ step_matrix(q, s, points.shape[1])
    return start[:, None, None] * jump[:, :, None] * step_matrix(q, t, points.shape[1])


POINTS = [
    real([0, 1, 1], [1, 0, 0]),
    real([0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]),
    real([1, 1, 1]),
]


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
@pytest.mark.parametrize("points", POINTS, ids=range(3))
@pytest.mark.parametrize("beta", [linear_alpha_bar(4), random_beta(4)], ids=["linear", "random"])
def test_bits_by_the_joint_table(prior_prob, points, beta):
    """(25)-(27) and both sides of (24), (36), at every t, for data that match π and data that do not."""
    q = BernoulliForward(beta, prior_prob)
    for t in range(1, 5):
        table = joint(q, points, t)
        pair, x0_before, x0_after = table.sum(0), table.sum(2), table.sum(1)
        before, after = pair.sum(1), pair.sum(0)
        upper = entropy_of(pair) - entropy_of(pair.sum(1))
        truth = entropy_of(pair) - entropy_of(pair.sum(0))
        start = entropy_of(table.sum((1, 2)))
        lower = upper + entropy_of(x0_before) - start - (entropy_of(x0_after) - start)
        given_both = entropy_of(table) - entropy_of(x0_after)
        assert torch.isclose(entropy.entropy_upper_bound(q, points, timesteps(t, points)).mean(), upper, atol=1e-12)
        assert torch.isclose(entropy.entropy_lower_bound(q, points, timesteps(t, points)).mean(), lower, atol=1e-12)
        assert torch.isclose(lower, given_both, atol=1e-12)
        assert torch.isclose(entropy.entropy_exact(q, points, t, states(3)), truth, atol=1e-12)
        assert lower <= truth + 1e-12
        forgotten = entropy_of(x0_after) - entropy_of(after) - (entropy_of(x0_before) - entropy_of(before))
        assert forgotten >= -1e-12  # (31)
        assert torch.isclose(truth - lower, forgotten, atol=1e-12)  # (32)-(35): it is what the lower side misses


@pytest.mark.parametrize("prior_prob", PRIOR_PROBS)
def test_prior_cross_entropy_gap_of_step_is_the_change_of_the_cross_entropy(prior_prob):
    """H(X^t) − H(X^{t−1}) = [fall of KL to π] − gap, and the KL never rises; for bits, by the joint table."""
    q, every = BernoulliForward(random_beta(4), prior_prob), states(3)
    log_prior = sum_except_batch(q.prior(every).log_prob(every))
    for points in POINTS:
        for t in range(1, 5):
            before, after = (joint(q, points, t).sum(0).sum(axis) for axis in (1, 0))
            gap = entropy.prior_cross_entropy_gap_of_step(q, points, timesteps(t, points)).mean()
            assert torch.isclose(gap, after @ log_prior - before @ log_prior, atol=1e-12)
            rise = entropy_of(after) - entropy_of(before)
            fall = (before @ log_prior + entropy_of(before)) - (after @ log_prior + entropy_of(after))
            assert torch.isclose(rise, -fall - gap, atol=1e-12) and fall <= 1e-12
            upper = entropy.entropy_upper_bound(q, points, timesteps(t, points)).mean()
            assert entropy.entropy_exact(q, points, t, every) <= upper + gap + 1e-12


@pytest.mark.parametrize(("mean", "square"), [(0.0, 1.0), (0.0, 4.0), (1.5, 0.3)])
@pytest.mark.parametrize("beta", [log_snr_linear(10, 1e-2, 0.99), linear_alpha_bar(5), random_beta(7)], ids=range(3))
def test_gaussian_data_in_closed_form(mean, square, beta):
    """x⁰ ~ N(mean, square): H(X^{t−1}|X^t) from the variance of the reversal, which is Gaussian too."""
    q, point = GaussianForward(beta), real([mean])
    for t in range(1, q.T + 1):
        before, after = (float(q.alpha_bar[s] * square + q.noise_variance[s]) for s in (t - 1, t))
        b = float(q.beta[t])
        closed = 0.5 * math.log(2 * math.pi * math.e * before * b / after)
        upper = entropy.entropy_upper_bound(q, point, timesteps(t, point))[0]
        assert torch.isclose(upper, real(0.5 * math.log(2 * math.pi * math.e * b)), atol=1e-12)
        assert torch.isclose(entropy.entropy_exact(q, point, t, LINE, CELL, square), real(closed), atol=1e-10)
        second = [float(q.alpha_bar[s]) * (mean**2 + square) + float(q.noise_variance[s]) for s in (t - 1, t)]
        from_width = (
            square / 2 * float(q.alpha_bar[t] - q.alpha_bar[t - 1])
        )  # the point alone has no variance of its own
        gap = entropy.prior_cross_entropy_gap_of_step(q, point, timesteps(t, point))[0] - from_width
        assert torch.isclose(gap, real((second[0] - second[1]) / 2), atol=1e-12)
        assert closed <= float(upper + gap) + 1e-12


def test_gaussian_lower_side_is_the_entropy_of_the_posterior():
    q, x0 = (
        GaussianForward(random_beta(7)),
        torch.randn(6, 3, generator=Generator().manual_seed(1), dtype=torch.float64),
    )
    t = torch.arange(2, 8)
    by_bayes = sum_except_batch(q.posterior(torch.zeros_like(x0), x0, t).entropy())
    assert torch.allclose(entropy.entropy_lower_bound(q, x0, t), by_bayes, atol=1e-12)


def test_mixture_on_the_line_by_a_double_integral():
    """H(X^{t−1}|X^t) = −∫∫ q(x^{t−1}, x^t) log q(x^{t−1}|x^t), with no use of (27)."""
    q, points, variance = GaussianForward(linear_alpha_bar(5)), real([-0.9], [0.4], [1.1]), 0.05
    line = torch.linspace(-7, 7, 1201, dtype=torch.float64)[:, None]
    cell = float(line[1] - line[0])
    for t in range(1, 6):
        before = entropy.log_marginal_density(q, points, line, t - 1, variance)
        pair = before[:, None] + q.transition(line, timesteps(t, line)).log_prob(line.T)
        after = torch.logsumexp(pair + math.log(cell), dim=0)
        direct = -(pair.exp() * (pair - after)).sum() * cell**2
        assert torch.isclose(entropy.entropy_exact(q, points, t, LINE, CELL, variance), direct, atol=1e-10)
        assert torch.allclose(after, entropy.log_marginal_density(q, points, line, t, variance), atol=1e-8)


def heartbeat_grid(rows):
    """The forward process sees only the ones in each column of 5·rows bits: a state per count, how many share it."""
    counts, bits = torch.cartesian_prod(*[torch.arange(rows + 1)] * 5), torch.arange(5 * rows)
    multiplicity = real(*[math.comb(rows, k) for k in range(rows + 1)])[counts].prod(1)
    return (bits // 5 < counts[:, bits % 5]).double(), multiplicity


def test_states_that_look_alike_may_share_a_place():
    q, points = BernoulliForward(linear_alpha_bar(6), 0.2), heartbeat_sequences(10)
    for t in range(1, 7):
        together = entropy.entropy_exact(q, points, t, *heartbeat_grid(2))
        assert torch.isclose(together, entropy.entropy_exact(q, points, t, states(10)), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("T", [5, 40, 300])
def test_heartbeat_lies_between(T):
    """(24) at every t for the paper's data and prior; over all t the two sides lie H_π apart, log 5 of it below."""
    q, points = BernoulliForward(linear_alpha_bar(T), 0.2), heartbeat_sequences()
    t = torch.arange(1, T + 1).repeat_interleave(5)
    lower, upper = (
        side(q, points.repeat(T, 1), t).reshape(T, 5).mean(1)
        for side in (entropy.entropy_lower_bound, entropy.entropy_upper_bound)
    )
    truth = torch.stack([entropy.entropy_exact(q, points, s, *heartbeat_grid(4)) for s in range(1, T + 1)])
    assert torch.all(lower <= truth + 1e-11) and torch.all(truth <= upper + 1e-11)
    prior = 20 * float(entropy_of(real(0.2, 0.8)))
    assert math.isclose(float((upper - lower).sum()), prior, abs_tol=1e-10)
    assert math.isclose(float((truth - lower).sum()), math.log(5), abs_tol=1e-10)
    assert torch.isclose(lower[0], real(0.0), atol=1e-12) and torch.isclose(upper[-1], real(prior), atol=1e-12)


def test_bounds_depend_on_the_data_only_by_the_mean_activity():
    q = BernoulliForward(random_beta(5), 0.2)
    same, other = real([1, 0, 0, 0, 0], [0, 0, 1, 0, 0]), real([1, 1, 0, 0, 0], [0, 0, 1, 1, 0])
    for side in (entropy.entropy_upper_bound, entropy.entropy_lower_bound, entropy.prior_cross_entropy_gap_of_step):
        for t in range(2, 6):
            values = side(q, same, timesteps(t, same))
            assert torch.isclose(values[0], values[1], atol=1e-13)
            assert abs(values[0] - side(q, other, timesteps(t, other))[0]) > 1e-3


def test_first_step():
    """Nothing is left open by x⁰ itself: 0 for bits, −∞ for reals."""
    for prior_prob in PRIOR_PROBS:
        assert torch.allclose(
            entropy.entropy_lower_bound(
                BernoulliForward(linear_alpha_bar(9), prior_prob), POINTS[0], torch.ones(2).long()
            ),
            real(0.0, 0.0),
            atol=1e-13,
        )
    first = entropy.entropy_lower_bound(GaussianForward(linear_alpha_bar(9)), real([0.3, 1.0]), torch.ones(1).long())
    assert first[0] == -math.inf


@pytest.mark.parametrize("t", [2, 3, 4])
def test_what_the_lower_side_misses_is_the_kl_of_a_perfect_reversal(t):
    """E KL( q(x^{t−1}|x^t,x⁰) ‖ q(x^{t−1}|x^t) ) of (14): for one bit the ideal reverse model is exact."""
    q, points = BernoulliForward(random_beta(4), 0.2), real([0.0], [1.0], [1.0])
    kl = 0.0
    for x0 in points:
        xt, start = states(1), x0.expand(2, 1)
        weight = q.marginal(start, timesteps(t, xt)).log_prob(xt)[:, 0].exp()
        posterior, ideal = q.posterior(xt, start, t), IdealReverse(points)(q, xt, t)
        laws = (torch.distributions.Bernoulli(law.probs) for law in (posterior, ideal))
        kl += float(weight @ torch.distributions.kl_divergence(*laws)[:, 0]) / 3
    lower = entropy.entropy_lower_bound(q, points, timesteps(t, points)).mean()
    assert math.isclose(float(entropy.entropy_exact(q, points, t, states(1)) - lower), kl, abs_tol=1e-12)


def test_sampled_entropy_agrees_with_the_sum_over_states():
    generator, q = Generator().manual_seed(0), BernoulliForward(linear_alpha_bar(20), 0.2)
    for t in (1, 2, 10, 19, 20):
        values = entropy.entropy_sampled(q, heartbeat_sequences(), heartbeat(20_000, generator), t, generator)
        mean, error = mean_and_stderr(values)
        truth = entropy.entropy_exact(q, heartbeat_sequences(), t, *heartbeat_grid(4))
        assert abs(mean - float(truth)) < 4 * error + 1e-9 and error < 0.02


def test_sampled_entropy_of_gaussian_data_agrees_with_the_closed_form():
    generator, q, square = Generator().manual_seed(0), GaussianForward(linear_alpha_bar(8)), 2.0
    x0 = math.sqrt(square) * torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    for t in (1, 4, 8):
        before, after = (float(q.alpha_bar[s] * square + q.noise_variance[s]) for s in (t - 1, t))
        closed = 0.5 * math.log(2 * math.pi * math.e * before * float(q.beta[t]) / after)
        mean, error = mean_and_stderr(entropy.entropy_sampled(q, real([0.0]), x0, t, generator, square))
        assert abs(mean - closed) < 4 * error < 0.06


def test_swiss_roll_lies_between():
    generator, q = Generator().manual_seed(0), GaussianForward(log_snr_linear(40, 1e-4, 0.995))
    x0 = swiss_roll(400, generator)
    for t in (2, 12, 20):
        mean, error = mean_and_stderr(entropy.entropy_sampled(q, swiss_roll_points(800), x0, t, generator, 0.02**2))
        lower, upper = (
            float(side(q, x0, timesteps(t, x0)).mean())
            for side in (entropy.entropy_lower_bound, entropy.entropy_upper_bound)
        )
        assert lower - 4 * error < mean < upper + 4 * error
        assert upper - lower > 4 * error


def test_density_is_that_of_the_ideal_reverse_model():
    """log q(x⁰) of the roll with its noise, by entropy.py and by ideal.py."""
    x0, points = swiss_roll(50, Generator().manual_seed(0)), swiss_roll_points(800)
    q = GaussianForward(log_snr_linear(40, 1e-4, 0.995))
    density = entropy.log_marginal_density(q, points, x0, 0, 0.02**2)
    assert torch.allclose(density, IdealMixtureReverse(points, 0.02**2).log_prob(x0), atol=1e-9)
    bits = heartbeat_sequences()
    q = BernoulliForward(linear_alpha_bar(5), 0.2)
    assert torch.allclose(entropy.log_marginal_density(q, bits, bits, 0), IdealReverse(bits).log_prob(bits), atol=1e-13)


@pytest.mark.parametrize(
    ("prior_prob", "ones", "holds"), [(0.2, 1, True), (0.2, 0, True), (0.2, 2, False), (0.5, 4, True)]
)
def test_when_entropy_never_falls(prior_prob, ones, holds):
    """(28) in 200 steps, for a bit of `ones`/5 activity: with π(1) = 0.2 up to 0.2, with 0.5 always."""
    q, points = BernoulliForward(linear_alpha_bar(200), prior_prob), (torch.arange(5) < ones).double()[:, None]
    H = torch.stack([entropy.marginal_entropy(q, points, t, states(1)) for t in range(201)])
    assert bool((H.diff() >= -1e-13).all()) == holds
    below = []  # (29)-(30), the entropy of a step back from the joint table
    for t in range(1, 201, 20):
        pair = joint(q, points, t).sum(0)
        back = entropy_of(pair) - entropy_of(pair.sum(0))
        below.append(bool(back <= entropy.entropy_upper_bound(q, points, timesteps(t, points)).mean() + 1e-12))
    assert all(below) == holds


@pytest.mark.parametrize(
    "q",
    [GaussianForward(random_beta(5)), BernoulliForward(random_beta(5), 0.2), AbsorbingForward(linear_alpha_bar(5))],
    ids=["gaussian", "bernoulli", "absorbing"],
)
@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 2, 2)])
def test_an_int_t_and_a_tensor_of_it_give_the_same(q, shape):
    """And a batch of several t is row by row what an int says."""
    x0 = (torch.arange(12) % 3 < 1).double().reshape(shape)
    for value in (
        entropy.entropy_upper_bound,
        entropy.entropy_lower_bound,
        *([] if isinstance(q, AbsorbingForward) else [entropy.prior_cross_entropy_gap_of_step]),
    ):
        for t in range(2, 6):
            by_int = value(q, x0, t)
            assert by_int.shape == (3,)
            assert torch.allclose(by_int, value(q, x0, timesteps(t, x0)), atol=1e-14, rtol=1e-13)
        rows = [value(q, x0[i : i + 1], t) for i, t in enumerate((2, 5, 3))]
        assert torch.allclose(value(q, x0, torch.tensor([2, 5, 3])), torch.cat(rows), atol=1e-14, rtol=1e-13)
