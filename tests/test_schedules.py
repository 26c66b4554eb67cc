"""Noise schedules, Section 2.4.1: signal shares by products written out, one factor a step."""

import itertools
import math

import pytest
import torch
from torch import Generator

from dpm.forward import GaussianForward
from dpm.schedules import (
    FixedSchedule,
    LearnedSchedule,
    beta_from_alpha_bar,
    cosine_alpha_bar,
    extract,
    linear_alpha_bar,
    linear_beta,
    log_alpha_bar,
    log_snr_linear,
    power_alpha_bar,
    shortest_paths,
)


def signal_shares(beta):
    """ᾱ_0…T as the running product of 1−β_s, in plain Python."""
    shares, kept = [], 1.0
    for beta_t in beta.tolist():
        kept *= 1 - beta_t
        shares.append(kept)
    return shares


def random_beta(T, seed=0, low=0.01, high=0.6):
    rates = low + (high - low) * torch.rand(T, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), rates])


def test_linear_beta_is_the_published_schedule_at_a_thousand_steps():
    """β from 1e-4 to 0.02, evenly; with fewer steps about the same noise in all, and below 20 a rate above 1."""
    beta = linear_beta(1000)
    assert beta[0] == 0 and beta.dtype == torch.float64
    assert torch.allclose(beta[[1, 2, 1000]], torch.tensor([1e-4, 1e-4 + 0.0199 / 999, 0.02], dtype=torch.float64))
    assert torch.allclose(linear_beta(100).sum(), beta.sum()) and linear_beta(20)[-1] == 1
    with pytest.raises(ValueError, match="20 steps or more"):
        linear_beta(19)


@pytest.mark.parametrize("T", [1, 2, 40, 1000])
def test_cosine_alpha_bar_is_a_squared_cosine_that_ends_at_zero(T):
    wanted = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T)] + [0]
    beta = cosine_alpha_bar(T)
    assert beta[0] == 0 and beta[-1] == 1
    assert signal_shares(beta) == pytest.approx([share / wanted[0] for share in wanted], abs=1e-12)


@pytest.mark.parametrize("T", [1, 2, 3, 10, 2000])
def test_power_alpha_bar_is_a_power_of_what_linear_alpha_bar_leaves(T):
    assert torch.allclose(power_alpha_bar(T, 1), linear_alpha_bar(T), atol=1e-12)
    left = [math.prod(1 - b for b in power_alpha_bar(T, 2.5)[: t + 1].tolist()) for t in range(T + 1)]
    assert left == pytest.approx([(1 - t / T) ** 2.5 for t in range(T + 1)], abs=1e-12)


@pytest.mark.parametrize("T", [1, 2, 3, 10, 2000])
def test_linear_alpha_bar_erases_the_same_share_of_the_first_signal_each_step(T):
    beta = linear_alpha_bar(T)
    assert beta.shape == (T + 1,) and beta.dtype == torch.float64
    assert beta[0] == 0 and beta[T] == 1
    assert signal_shares(beta) == pytest.approx([1 - t / T for t in range(T + 1)], abs=1e-12)
    assert float(beta[1]) == pytest.approx(1 / T, rel=1e-15, abs=0)


@pytest.mark.parametrize(("T", "first", "last"), [(2, 1e-4, 0.5), (10, 1e-6, 0.9), (40, 1e-4, 0.995)])
def test_log_snr_linear_has_noise_odds_that_grow_by_one_factor(T, first, last):
    beta = log_snr_linear(T, first, last)
    assert beta.shape == (T + 1,) and beta.dtype == torch.float64 and beta[0] == 0
    shares = signal_shares(beta)[1:]
    odds = [(1 - share) / share for share in shares]
    factor = (last / (1 - last) / (first / (1 - first))) ** (1 / (T - 1))
    assert [after / before for before, after in itertools.pairwise(odds)] == pytest.approx(
        [factor] * (T - 1),
        rel=1e-8,
        abs=0,  # 1 − ᾱ_1 = 1e-6 keeps ten digits
    )
    assert float(beta[1]) == pytest.approx(first, rel=1e-9, abs=0)
    assert 1 - shares[-1] == pytest.approx(last, rel=1e-12, abs=0)
    assert bool(((beta[1:] > 0) & (beta[1:] < 1)).all())


@pytest.mark.parametrize("T", [3, 9, 41])
def test_log_snr_linear_passes_a_noise_variance_between_its_ends_halfway(T):
    """Either half is the schedule of its own ends."""
    shares, middle = signal_shares(log_snr_linear(T, 1e-3, 0.6, 0.99)), (T + 1) // 2
    assert 1 - shares[middle] == pytest.approx(0.6, rel=1e-9)
    for (first, last), part in (((1e-3, 0.6), shares[1 : middle + 1]), ((0.6, 0.99), shares[middle:])):
        assert part == pytest.approx(signal_shares(log_snr_linear(len(part), first, last))[1:], rel=1e-9)


@pytest.mark.parametrize("T", [1, 2, 7, 40])
def test_beta_from_alpha_bar_undoes_the_product(T):
    beta = random_beta(T, seed=T)
    assert torch.allclose(beta_from_alpha_bar((1 - beta).cumprod(0)[1:]), beta, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("T", [1, 4, 40])
def test_log_alpha_bar_is_the_log_of_the_product(T):
    beta = random_beta(T, seed=T)
    logs = log_alpha_bar(beta)
    assert logs.shape == (T + 1,) and logs[0] == 0
    assert logs.tolist() == pytest.approx([math.log(share) for share in signal_shares(beta)], abs=1e-13)


def test_log_alpha_bar_is_minus_infinity_where_everything_is_erased():
    logs = log_alpha_bar(linear_alpha_bar(5))
    assert logs[5] == -math.inf and bool(logs[:5].isfinite().all())


def test_log_alpha_bar_keeps_the_digits_of_tiny_beta():
    beta = torch.tensor([0, 1e-14, 3e-14, 5e-13], dtype=torch.float64)
    assert log_alpha_bar(beta).tolist() == pytest.approx([0, -1e-14, -4e-14, -5.4e-13], rel=1e-12, abs=0)


def test_fixed_schedule_returns_its_beta_stores_it_and_trains_nothing():
    beta = random_beta(6)
    schedule = FixedSchedule(beta)
    assert torch.equal(schedule(), beta)
    assert list(schedule.parameters()) == []
    other = FixedSchedule(torch.zeros_like(beta))
    other.load_state_dict(schedule.state_dict())
    assert torch.equal(other(), beta)


def test_learned_schedule_starts_at_its_beta_and_frees_only_beta_2_to_T():
    """Section 2.4.1: β_1 fixed against overfitting, β_{2…T} learned."""
    T, beta = 12, log_snr_linear(12, 1e-4, 0.99)
    schedule = LearnedSchedule(beta)
    assert torch.allclose(schedule(), beta, rtol=1e-12, atol=0)
    assert torch.equal(schedule()[:2], beta[:2])
    [free] = schedule.parameters()
    assert free.shape == (T - 1,)
    jacobian = torch.stack([torch.autograd.grad(beta_t, free, retain_graph=True)[0] for beta_t in schedule()[2:]])
    assert torch.allclose(jacobian, torch.diag(beta[2:] * (1 - beta[2:])), rtol=1e-12, atol=0)
    other = LearnedSchedule(random_beta(T))
    other.load_state_dict(schedule.state_dict())
    assert torch.equal(other(), schedule())


@pytest.mark.parametrize("size", [-30.0, -3.0, 3.0, 30.0])
def test_learned_beta_stay_between_0_and_1_and_leave_beta_1_alone(size):
    beta = log_snr_linear(8, 1e-4, 0.99)
    schedule = LearnedSchedule(beta)
    with torch.no_grad():
        schedule.logits.add_(size)
    moved = schedule()
    assert torch.equal(moved[:2], beta[:2])
    assert bool(((moved[2:] > 0) & (moved[2:] < 1)).all())
    odds = (moved / (1 - moved) / (beta / (1 - beta)))[2:]
    assert odds.tolist() == pytest.approx([math.exp(size)] * 7, rel=1e-2, abs=0)  # 1 − β near 1e-13 has few digits left


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_shortest_paths_are_the_best_of_all_paths(steps):
    loss = torch.rand(5, 5, generator=Generator().manual_seed(steps), dtype=torch.float64)
    loss = torch.where(torch.ones(5, 5).triu(1) > 0, loss, math.inf)
    cost, path = shortest_paths(loss, steps)
    for end in range(steps, 5):
        ways = [(0, *between, end) for between in itertools.combinations(range(1, end), steps - 1)]
        costs = [sum(float(loss[a, b]) for a, b in itertools.pairwise(way)) for way in ways]
        assert float(cost[end]) == pytest.approx(min(costs), abs=1e-14)
        assert tuple(path[end].tolist()) == ways[costs.index(min(costs))]
    assert cost[:steps].isinf().all()


def test_a_noise_variance_between_ends_halfway_of_an_even_T():
    assert float(GaussianForward(log_snr_linear(4, 0.1, 0.5, 0.9)).noise_variance[3]) == pytest.approx(0.5)


def test_extract_picks_by_index_and_takes_the_type_of_x():
    values = torch.linspace(0, 1, 5, dtype=torch.float64)
    picked = extract(values, torch.tensor([0, 4, 2]), torch.zeros(3, 2, 2))
    assert picked.shape == (3, 1, 1) and picked.dtype == torch.float32
    assert picked.flatten().tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extract_gives_a_number_for_an_int_and_a_column_for_a_t_per_sample(dtype):
    """The same values either way, in the type of x, for every t; only the shapes differ, and both broadcast."""
    table, x = random_beta(6), torch.zeros(3, 2, 4, dtype=dtype)
    for t in range(7):
        number, column = extract(table, t, x), extract(table, torch.full((3,), t), x)
        assert number.shape == () and column.shape == (3, 1, 1)
        assert number.dtype == column.dtype == dtype
        assert torch.equal((x + number), (x + column)) and float(number) == float(table[t].to(dtype))
