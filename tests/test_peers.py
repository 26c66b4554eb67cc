"""`make peers` scores every library by the same K, exactly where the network is exact, and its record says how."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import Generator

from dpm.adapters import fixed_large, fixed_small
from dpm.experiments.shipped import load_result
from dpm.units import mean_and_stderr, null_bits

PEERS = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "peers.py"))
SIGMA = torch.logspace(-2, 1, 200, dtype=torch.float64)
LIBRARIES = {"smalldiffusion": ["smalldiffusion", "torch_ema"], "diffusers": ["diffusers"]}


def normal_rival(variance_exploding):
    """The exact ε̂ of normal data of variance 1, at the levels SIGMA: σx/(1+σ²), of x = x⁰ + σε."""

    def network(x, i):
        sigma = SIGMA[i, None].float()
        return sigma * x / (1 + sigma**2) ** (1 if variance_exploding else 0.5)

    return PEERS["Rival"](network, SIGMA, variance_exploding, PEERS["Cost"](1, 1.0, 0))


def normal_data(n, seed):
    return torch.randn(n, 2, dtype=torch.float64, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("variance_exploding", [True, False])
@pytest.mark.parametrize("T", [40, 200])
def test_an_exact_network_scores_the_entropy_of_normal_data(variance_exploding, T):
    """There the forward process is its own reverse, whose variance is β_t, and K is −H at every T."""
    index = PEERS["even_levels"](SIGMA, T)
    q, reverse = normal_rival(variance_exploding).at_levels(index)
    p, choice = PEERS["best_reverse"](q, reverse, normal_data(1000, 0))
    K, error = mean_and_stderr(PEERS["score"](p, q, normal_data(4000, 1)))
    assert len(index) == T == q.T and choice.variance != "fixed small"
    assert abs(K - 2 * null_bits(1)) < 4 * error + 0.01 and error < 0.05


def test_of_the_fixed_variances_the_one_that_is_exact_scores_higher():
    q, reverse = normal_rival(True).at_levels(PEERS["even_levels"](SIGMA, 40))
    small, large = (
        PEERS["score"](reverse(variance), q, normal_data(1000, 2)) for variance in (fixed_small, fixed_large)
    )
    assert mean_and_stderr(large - small)[0] > 1


def test_levels_are_thinned_evenly_in_log_sigma():
    even = PEERS["even_levels"]
    assert torch.equal(even(SIGMA, 200), torch.arange(200)) and torch.equal(even(SIGMA, 300), torch.arange(200))
    thinned = SIGMA[even(SIGMA, 50)].log().diff()
    assert thinned.max() < 1.5 * thinned.min() and len(thinned) == 49


def test_training_ends_with_its_steps_or_its_seconds():
    assert PEERS["spend"](iter([1, 2, 3]), 10)[0] == 3
    assert PEERS["spend"](iter(range(10**9)), 0.01)[0] < 10**9
    assert PEERS["spend"](iter([7, 8]), 0) == (7, pytest.approx(0, abs=0.1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "library"), [(name, library) for name in PEERS["RIVALS"] for library in LIBRARIES])
def test_a_rival_predicts_noise_at_its_levels(name, library):
    for module in LIBRARIES[library]:
        pytest.importorskip(module)
    experiment, generator = PEERS["EXPERIMENTS"][name], Generator().manual_seed(0)
    x = experiment.draw(3, generator).float()
    rival = PEERS["RIVALS"][name][library](lambda n: experiment.draw(n, generator).float(), 1)
    i = torch.tensor([0, 5, len(rival.sigma) - 1])
    assert rival.network(x, i).shape == x.shape and rival.cost.steps >= 1
    assert bool((rival.sigma.diff() > 0).all()) and rival.variance_exploding == (library == "smalldiffusion")


@pytest.mark.parametrize("name", PEERS["RIVALS"])
def test_the_record_says_what_was_done(name):
    record = load_result("peers", name)
    made, rows = record["provenance"], record["rows"]
    assert {"command", "date", "revision", "device", "processor", "versions"} <= made.keys()
    assert {"torch", *LIBRARIES} <= made["versions"].keys()
    assert {row["library"] for row in rows} == {"dpm", *LIBRARIES}
    for row in rows:
        assert row.keys() >= {"variance", "final_step"} and row["unit"] == PEERS["EXPERIMENTS"][name].unit
        assert row["data"] == name and 0.85 * record["seconds"] < row["cpu_seconds"] < 1.06 * record["seconds"]
        of_dpm = [other["K_bits"] for other in rows if other["library"] == "dpm"]
        assert any(math.isclose(K - row["K_bits"], row["dpm_ahead_bits"], abs_tol=1e-9) for K in of_dpm)
