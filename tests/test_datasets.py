"""The data: moments by dense numerical averages against the closed forms that the module uses."""

import math

import pytest
import torch
from scipy import stats
from torch import Generator

from dpm.datasets import ROLL_NOISE, heartbeat, heartbeat_sequences, roll_curve, roll_points, swiss_roll


def places(count):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def raw_spiral(u):
    """As scikit-learn's make_swiss_roll: t = 1.5π(1+2u), (t cos t, t sin t)."""
    t = [1.5 * math.pi * (1 + 2 * v) for v in u.tolist()]
    return torch.tensor([[a * math.cos(a), a * math.sin(a)] for a in t], dtype=torch.float64)


def test_roll_curve_has_mean_0_and_variance_1():
    """By a midpoint sum of 400 000 places: mean 0 in each coordinate, 1 the mean variance of the two."""
    x = roll_curve(places(400_000))
    assert x.shape == (400_000, 2) and x.dtype == torch.float64
    assert x.mean(0).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert float(x.square().mean()) == pytest.approx(1, abs=1e-9)


def test_roll_curve_is_the_spiral_moved_and_scaled_by_one_constant():
    u = torch.tensor([0, 0.1, 0.35, 0.5, 0.8, 1.0], dtype=torch.float64)
    x, raw = roll_curve(u), raw_spiral(u)
    dense = raw_spiral(places(20_000))
    scale = float((dense - dense.mean(0)).square().mean().sqrt())
    assert torch.allclose(x - x[0], (raw - raw[0]) / scale, atol=1e-6, rtol=0)


@pytest.mark.parametrize("noise", [0.0, ROLL_NOISE, 0.3])
def test_swiss_roll_is_the_curve_and_noise_of_total_variance_1(noise):
    """E x² = (1−noise²)·1 + noise², within 5 standard errors; the blur is N(0, noise²) by Kolmogorov-Smirnov."""
    n = 20_000
    x, again = (swiss_roll(n, Generator().manual_seed(0), noise) for _ in range(2))
    assert x.shape == (n, 2) and x.dtype == torch.float64 and torch.equal(x, again)
    square = x.square().mean(1)
    assert float(square.mean()) == pytest.approx(1, abs=5 * float(square.std()) / math.sqrt(n))
    on_curve = swiss_roll(n, Generator().manual_seed(0), 0.0)  # the same places, no blur
    blur = x - math.sqrt(1 - noise**2) * on_curve
    if noise:
        assert stats.kstest((blur / noise).flatten().numpy(), "norm").pvalue > 1e-3
    else:
        assert not blur.any()
    dense = roll_curve(places(20_000))
    assert float(torch.cdist(on_curve[:50], dense).min(1).values.max()) < 1e-3


def test_swiss_roll_takes_every_place_on_the_curve_equally_often():
    on_curve = swiss_roll(4_000, Generator().manual_seed(3), 0.0)
    nearest = torch.cdist(on_curve, roll_curve(places(2_000))).argmin(1)
    assert stats.kstest((nearest.numpy() + 0.5) / 2_000, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("noise", [0.0, ROLL_NOISE, 0.3])
def test_roll_points_are_midpoints_of_the_curve_inside_the_roll(noise):
    points = roll_points(7, noise)
    u = torch.tensor([1, 3, 5, 7, 9, 11, 13], dtype=torch.float64) / 14
    assert torch.allclose(points, math.sqrt(1 - noise**2) * roll_curve(u), atol=1e-14, rtol=0)
    dense = roll_points(200_000, noise)
    assert float(dense.square().mean()) == pytest.approx(1 - noise**2, abs=1e-8)  # the noise adds the rest


def test_there_are_exactly_five_heartbeats_of_mean_activity_one_fifth():
    """D.1.2: 20 bits, a 1 every 5th bin."""
    sequences = heartbeat_sequences()
    naive = {tuple(float(i % 5 == phase) for i in range(20)) for phase in range(5)}
    assert sequences.shape == (5, 20) and sequences.dtype == torch.float64
    assert {tuple(s) for s in sequences.tolist()} == naive and len(naive) == 5
    assert sequences.mean(1).tolist() == [0.2] * 5 and sequences.mean(0).tolist() == pytest.approx([0.2] * 20)


def test_heartbeats_have_uniform_phases():
    x, again = (heartbeat(10_000, Generator().manual_seed(0)) for _ in range(2))
    assert x.shape == (10_000, 20) and torch.equal(x, again)
    same = (x[:, None] == heartbeat_sequences()).all(-1)
    assert bool((same.sum(1) == 1).all())
    assert stats.chisquare(same.sum(0).numpy()).pvalue > 1e-3
    assert float(x.mean()) == pytest.approx(0.2, abs=1e-12)


def test_heartbeats_of_another_length_and_period():
    x = heartbeat(100, Generator().manual_seed(0), length=6, period=3)
    assert {tuple(s) for s in x.tolist()} == {(1, 0, 0) * 2, (0, 1, 0) * 2, (0, 0, 1) * 2}
