"""The settings of Table 1, what `choose` and `load` refuse, and a report on a tiny case."""

import json
import math
import subprocess
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Generator

from dpm import datasets, experiments
from dpm.bound import along_trajectory, evaluate, in_bits, log_null, mean_and_error
from dpm.entropy import log_density
from dpm.experiments import (
    BETA_1,
    EXPERIMENTS,
    build,
    choose,
    heartbeat_chain,
    held_out,
    load,
    lost_at_the_edge,
    provenance,
    report,
    revision,
    roll_schedule,
    schedule_path,
    weights_path,
)
from dpm.files import UserError, write_tensors
from dpm.forward import Gaussian
from dpm.networks import BinomialDenoiser
from dpm.optimum import BlurredOptimum, exact_K
from dpm.reverse import Denoise, Diffusion
from dpm.schedules import Fixed, erase_evenly

SETTINGS = [(name, setting) for name in EXPERIMENTS for setting in EXPERIMENTS[name].settings]


def test_choose_finds_every_experiment_and_setting():
    for name, setting in SETTINGS:
        experiment, chosen = choose(name, setting)
        assert experiment is EXPERIMENTS[name] and chosen is experiment.settings[setting]
    assert {name for name, _ in SETTINGS} == {"swiss_roll", "heartbeat"}
    assert all({"paper", "ours"} <= EXPERIMENTS[name].settings.keys() for name in EXPERIMENTS)


def test_choose_names_what_there_is_when_asked_for_something_else():
    with pytest.raises(UserError, match=r"'roll'.*swiss_roll.*heartbeat"):
        choose("roll", "paper")
    with pytest.raises(UserError, match=r"heartbeat.*'best'.*paper.*ours"):
        choose("heartbeat", "best")


def test_the_paper_s_numbers_are_those_of_table_1_with_the_L_null_of_our_chains():
    """K − (K − L_null) is L_null: −14.438 bits a sequence, and twice −2.047 for the roll, to the digits printed."""
    for name, digits in (("heartbeat", 1e-3), ("swiss_roll", 1e-2)):
        experiment = EXPERIMENTS[name]
        x0 = experiment.draw(20_000, Generator().manual_seed(0))
        null = float(in_bits(log_null(experiment.chain(3), x0)).mean())
        printed = experiment.paper["K"] - experiment.paper["K_minus_L_null"]
        assert null == pytest.approx(printed, abs=digits + 0.02 * (name == "swiss_roll"))


def test_roll_schedule_starts_at_the_fixed_rate_and_leaves_one_half_per_cent():
    beta = roll_schedule(40)
    assert float(beta[1]) == pytest.approx(BETA_1, rel=1e-9, abs=0)
    assert math.prod(1 - b for b in beta.tolist()) == pytest.approx(0.005, rel=1e-9, abs=0)


def test_the_optimum_of_an_experiment_knows_the_law_of_its_data():
    """Every heartbeat drawn has −log 5; on the roll no wider or narrower blur is more likely, by 5 standard errors."""
    beats = EXPERIMENTS["heartbeat"]
    log_q = beats.optimum.log_probability(beats.draw(50, Generator().manual_seed(0)))
    assert log_q.tolist() == pytest.approx([-math.log(5)] * 50, abs=1e-12)
    roll = EXPERIMENTS["swiss_roll"]
    x0 = roll.draw(3_000, Generator().manual_seed(0))
    log_q = roll.optimum.log_probability(x0)
    for factor in (0.67, 1.5):
        other = BlurredOptimum(roll.optimum.points, factor * roll.optimum.variance)
        gain, error = mean_and_error(log_q - other.log_probability(x0))
        assert gain > 5 * error


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_every_setting_builds_the_chain_of_its_experiment(name, setting):
    experiment, chosen = choose(name, setting)
    q, chain = build(chosen).q(), experiment.chain(experiment.T)
    assert type(q) is type(chain) and q.T == experiment.T
    if (name, setting) == ("swiss_roll", "ours"):  # it has a schedule of its own, from the same β_1
        chain = Gaussian(torch.tensor(json.loads(schedule_path(name).read_text())["beta"], dtype=torch.float64))
    assert torch.allclose(q.beta, chain.beta, rtol=1e-12, atol=0) and float(q.beta[1]) == float(chain.beta[1])
    assert chosen.batch % (q.T - 1) == 0 or chosen.batch < q.T - 1
    x0 = experiment.draw(2, Generator().manual_seed(0))
    t = torch.tensor([2, q.T])
    law = build(chosen).p(q, x0, t)
    assert law.mean.shape == x0.shape and bool(law.mean.isfinite().all())
    kernel = q.step(x0, t)  # every model starts at the reversal that keeps π: K = L_null
    assert torch.allclose(law.mean, kernel.mean, atol=1e-5) and torch.allclose(law.variance, kernel.variance, atol=1e-5)


@pytest.mark.parametrize("setting", ["paper", "ours"])
def test_build_depends_on_its_seed_alone(setting):
    chosen = choose("swiss_roll", setting)[1]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build(chosen, 1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = build(chosen, 1).state_dict(), build(chosen, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_held_out_is_fresh_for_every_seed():
    tiny = replace(EXPERIMENTS["swiss_roll"], held_out=7)
    a, again, other = held_out(tiny, 0), held_out(tiny, 0), held_out(tiny, 1)
    assert a.shape == (7, 2) and torch.equal(a, again) and not torch.equal(a, other)
    assert not any(torch.equal(a, tiny.draw(7, Generator().manual_seed(seed))) for seed in range(100))


def test_load_returns_the_weights_of_a_file_frozen(tmp_path):
    """Weights as `dpm train` writes them, and the average inside a checkpoint."""
    model = build(choose("swiss_roll", "paper")[1], seed=3)
    tensors = model.state_dict()
    write_tensors(tmp_path / "weights", tensors, {})
    averaged = {f"average.module.{name}": value for name, value in tensors.items()}
    write_tensors(tmp_path / "checkpoint", averaged | {"model.other": torch.zeros(2)}, {})
    for file in ("weights", "checkpoint"):
        loaded = load("swiss_roll", "paper", tmp_path / file)
        assert all(torch.equal(value, tensors[name]) for name, value in loaded.state_dict().items())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_load_refuses_what_is_missing_broken_or_another_model(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*nothing"):
        load("swiss_roll", "paper", tmp_path / "nothing")
    (tmp_path / "broken").write_bytes(b"\x08\x00")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load("swiss_roll", "paper", tmp_path / "broken")
    write_tensors(tmp_path / "ours", build(choose("swiss_roll", "ours")[1]).state_dict(), {})
    with pytest.raises(UserError, match="belongs to another"):
        load("swiss_roll", "paper", tmp_path / "ours")


def test_shipped_weights_have_a_file_for_every_setting():
    paths = [weights_path(name, setting) for name, setting in SETTINGS]
    assert len(set(paths)) == len(SETTINGS) and all(path.suffix == ".safetensors" for path in paths)
    assert weights_path("heartbeat", "paper").name == "heartbeat-paper.safetensors"


@pytest.fixture
def tiny():
    """The heartbeat over 10 steps with 200 held-out samples, and an untrained model of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Diffusion(Fixed(erase_evenly(10)), heartbeat_chain, Denoise(BinomialDenoiser(20, 8, 1)))
    return replace(EXPERIMENTS["heartbeat"], held_out=200), model


def test_report_is_the_row_of_table_1(tiny):
    experiment, model = tiny
    row = report(experiment, model, seed=4)
    assert row.keys() == {
        *("experiment", "K_bits", "K_stderr_bits", "unit", "L_null_bits", "K_minus_L_null_bits", "K_optimum_bits"),
        *("gap_bits", "gap_stderr_bits", "minus_entropy_bits", "parts_bits", "T", "held_out", "paper"),
        *("lost_bits", "edge_stderr_bits"),
    }
    assert (row["experiment"], row["unit"], row["T"], row["held_out"]) == ("heartbeat", "bits/seq", 10, 200)
    assert row["L_null_bits"] == pytest.approx(-14.43856, abs=5e-6)
    assert row["minus_entropy_bits"] == pytest.approx(-math.log2(5), abs=1e-12)
    assert row["K_minus_L_null_bits"] == pytest.approx(row["K_bits"] - row["L_null_bits"], abs=1e-12)
    assert abs(row["K_minus_L_null_bits"]) < 5 * row["K_stderr_bits"]  # untrained, it keeps π
    parts = row["parts_bits"]
    assert parts["entropy_T"] - parts["kl"] - parts["entropy_1"] - parts["entropy_prior"] == pytest.approx(
        row["K_bits"], abs=1e-10
    )
    assert row["gap_bits"] > 5 * row["gap_stderr_bits"]
    x0 = held_out(experiment, 4)
    alone = evaluate(experiment.optimum, model.q(), x0, Generator().manual_seed(4)).K
    assert row["gap_bits"] == pytest.approx(float(in_bits(alone).mean()) - row["K_bits"], abs=1e-10)
    exact = float(in_bits(exact_K(experiment.optimum, model.q())))
    assert row["K_optimum_bits"] == exact < row["minus_entropy_bits"]
    paths = in_bits(along_trajectory(model.p, model.q(), x0, Generator().manual_seed(4)))
    assert row["K_bits"] == pytest.approx(float(paths.mean()), abs=5 * row["K_stderr_bits"])
    assert report(experiment, model, seed=4) == row


def test_what_K_lacks_is_split_in_three(tiny):
    """−H(X⁰) − K*, exact for the heartbeat; of it the edge step's, H(X¹) − H(X⁰); and K* − K."""
    experiment, model = tiny
    row = report(experiment, model, seed=4)
    lost, q, points = row["lost_bits"], model.q(), experiment.optimum.points
    short = row["minus_entropy_bits"] - row["K_optimum_bits"]
    assert lost["edge"] + lost["kernel_and_schedule"] == pytest.approx(short, abs=1e-12)
    assert lost["training"] == row["gap_bits"]
    assert min(lost.values()) > 0
    x1 = torch.bernoulli(q.marginal(points, torch.ones(5, dtype=torch.long)).probs.expand(2_000, 5, 20).flatten(0, 1))
    after = -in_bits(log_density(q, points, x1, 1)).mean()
    assert lost["edge"] == pytest.approx(float(after) - math.log2(5), abs=5 * row["edge_stderr_bits"] + 0.1)


def test_edge_step_of_the_roll_loses_the_entropy_of_its_blur():
    """H(X¹) − H(X⁰) of the curve, by its width alone: it goes up by ½log(1 + β₁/noise²), where β₁ blurs it across."""
    experiment = EXPERIMENTS["swiss_roll"]
    q, x0 = experiment.chain(40), held_out(experiment, 0)[:4_000]
    lost, error = mean_and_error(lost_at_the_edge(experiment.optimum, q, x0, Generator().manual_seed(0)))
    assert lost == pytest.approx(0.5 * math.log1p(1e-4 / datasets.ROLL_NOISE**2), abs=5 * error + 2e-3)
    assert error < 0.02


def test_recorded_schedule_beats_the_geometric_ones():
    record = json.loads(schedule_path("swiss_roll").read_text())
    assert record["over_best_geometric_bits"] > 5 * record["over_best_geometric_stderr_bits"]
    assert len(record["beta"]) == record["T"] + 1 == 41 and record["beta"][1] == pytest.approx(BETA_1, rel=1e-9)


def test_report_on_more_samples_than_it_compares(tiny, monkeypatch):
    """K over all of them, in pieces; the gap to the optimum on the first alone, where both meet the same noise."""
    experiment, model = tiny
    whole = report(experiment, model, seed=4)
    monkeypatch.setattr(experiments, "COMPARED", 60)
    row = report(experiment, model, seed=4)
    first = held_out(experiment, 4)[:60]
    best, own = (evaluate(p, model.q(), first, Generator().manual_seed(4)).K for p in (experiment.optimum, model.p))
    gap = in_bits(best - own).detach().numpy()
    assert (row["gap_bits"], row["gap_stderr_bits"]) == pytest.approx((gap.mean(), stats.sem(gap)), abs=1e-10)
    assert row["held_out"] == 200 and row["K_bits"] != pytest.approx(float(in_bits(own).mean()), abs=1e-6)
    assert row["K_stderr_bits"] == pytest.approx(whole["K_stderr_bits"], rel=0.3)  # as of 200 samples, not of 60
    assert abs(row["K_bits"] - whole["K_bits"]) < 5 * math.hypot(row["K_stderr_bits"], whole["K_stderr_bits"])
    parts = row["parts_bits"]
    assert parts["entropy_T"] - parts["kl"] - parts["entropy_1"] - parts["entropy_prior"] == pytest.approx(
        row["K_bits"], abs=1e-10
    )


def test_provenance_says_what_made_a_result():
    about = provenance(["train", "heartbeat"], 3, torch.device("cpu"))
    assert about.keys() == {"command", "seed", "device", "versions", "revision", "date"}
    assert about["command"] == "dpm train heartbeat" and about["seed"] == 3 and about["device"].startswith("cpu")
    assert about["versions"]["torch"] == torch.__version__


def test_revision_marks_a_changed_source_and_survives_without_git(monkeypatch):
    def git(changed):
        def answer(command, **options):
            return subprocess.CompletedProcess(command, 0, stdout=changed if "status" in command else "abc1234\n")

        return answer

    for changed, expected in (("", "abc1234"), (" M dpm/bound.py\n", "abc1234+")):
        monkeypatch.setattr(experiments.subprocess, "run", git(changed))
        assert revision() == expected

    def missing(command, **options):
        raise FileNotFoundError

    monkeypatch.setattr(experiments.subprocess, "run", missing)
    assert revision() == "unknown"
