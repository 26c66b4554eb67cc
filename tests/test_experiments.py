"""The experiments of Tables 1 and 2 and their settings; what `get_experiment` and `load_model` refuse."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from dpm.bound import log_null
from dpm.data import sets
from dpm.data.images import ImageDataset
from dpm.errors import UserError
from dpm.experiments import bark
from dpm.experiments.base import image_experiment
from dpm.experiments.registry import EXPERIMENTS, build_model, get_experiment, load_model
from dpm.experiments.shipped import schedule_path, weights_path
from dpm.experiments.swiss_roll import BETA_1, roll_schedule
from dpm.files import write_tensors
from dpm.forward import GaussianForward
from dpm.forward.absorbing import MASK
from dpm.ideal import IdealMixtureReverse
from dpm.reverse import has_edge_step
from dpm.schedules import log_snr_linear
from dpm.units import mean_and_stderr, to_bits

SETTINGS = [(name, setting) for name in EXPERIMENTS for setting in EXPERIMENTS[name].settings]


def test_get_experiment_finds_every_experiment_and_setting():
    for name, setting in SETTINGS:
        experiment, config = get_experiment(name, setting)
        assert experiment == replace(EXPERIMENTS[name], ideal=config.ideal or EXPERIMENTS[name].ideal)
        assert config is experiment.settings[setting]
    assert {name for name, _ in SETTINGS} >= {"swiss_roll", "heartbeat", "digits"}
    for experiment in EXPERIMENTS.values():
        assert list(experiment.settings) in (["paper", "best"], ["paper", "best", "beyond"])
    assert {("swiss_roll", "beyond"), ("heartbeat", "beyond")} <= {*SETTINGS}
    assert all(experiment.name == name for name, experiment in EXPERIMENTS.items())


@pytest.mark.parametrize("setting", ["paper", "best"])
def test_a_network_of_bark_takes_the_whole_picture_that_is_restored(setting):
    model = build_model(EXPERIMENTS["bark"].settings[setting]).to("meta")
    x = torch.empty(1, 1, 300, 300, device="meta")
    assert model.p(model.forward_process(), x, torch.ones(1, dtype=torch.long, device="meta")).mean.shape == x.shape


def test_get_experiment_names_what_there_is_when_asked_for_something_else():
    with pytest.raises(UserError, match=r"'roll'.*heartbeat.*swiss_roll"):
        get_experiment("roll", "paper")
    for old in ("ours", "cpu"):  # the command line alone understands these
        with pytest.raises(UserError, match=rf"heartbeat.*'{old}'.*paper.*best"):
            get_experiment("heartbeat", old)


def test_the_paper_s_numbers_are_those_of_table_1_with_the_L_null_of_our_priors():
    """K − (K − L_null) is L_null: −14.438 bits per sequence, and twice −2.047 for the roll, to the digits printed."""
    for name, digits in (("heartbeat", 1e-3), ("swiss_roll", 1e-2)):
        experiment = EXPERIMENTS[name]
        x0 = experiment.draw(20_000, Generator().manual_seed(0))
        null = float(to_bits(log_null(experiment.forward_process(3), x0)).mean())
        printed = experiment.paper["K"] - experiment.paper["K_minus_L_null"]
        assert null == pytest.approx(printed, abs=digits + 0.02 * (name == "swiss_roll"))


def test_roll_schedule_starts_at_the_fixed_beta_1_and_leaves_one_half_per_cent():
    beta = roll_schedule(40)
    assert float(beta[1]) == pytest.approx(BETA_1, rel=1e-9, abs=0)
    assert math.prod(1 - b for b in beta.tolist()) == pytest.approx(0.005, rel=1e-9, abs=0)


def test_the_ideal_model_of_an_experiment_knows_the_distribution_of_its_data():
    """Every heartbeat drawn has −log 5; on the roll no wider or narrower noise is more likely, by 5 standard errors."""
    beats = EXPERIMENTS["heartbeat"]
    log_q = beats.ideal.log_prob(beats.draw(50, Generator().manual_seed(0)))
    assert log_q.tolist() == pytest.approx([-math.log(5)] * 50, abs=1e-12)
    roll = EXPERIMENTS["swiss_roll"]
    x0 = roll.draw(3_000, Generator().manual_seed(0))
    log_q = roll.ideal.log_prob(x0)
    for factor in (0.67, 1.5):
        other = IdealMixtureReverse(roll.ideal.points, factor * roll.ideal.variance)
        gain, error = mean_and_stderr(log_q - other.log_prob(x0))
        assert gain > 5 * error


@pytest.mark.parametrize("name", ["swiss_roll", "heartbeat"])
def test_the_ideal_model_of_a_setting_is_of_the_form_of_its_network(name):
    """Their reverse steps and their final steps are of one kind, and so are their schedules and their data."""
    experiment, config = get_experiment(name, "beyond")
    model, x = build_model(config), experiment.draw(3, Generator().manual_seed(0))
    q, p, ideal = model.forward_process(), model.p, experiment.ideal
    assert ideal is not None and not has_edge_step(p, q) and not has_edge_step(ideal, q)
    assert ideal.final_step is p.final_step and torch.equal(ideal.points, EXPERIMENTS[name].ideal.points)
    xt = q.marginal(x, 5).reparameterize(q.sample_noise(x, Generator().manual_seed(1)))
    assert type(p(q, xt, 5)) is type(ideal(q, xt, 5)) and p(q, xt, 5).entropy().shape == ideal(q, xt, 5).entropy().shape


def test_beyond_begins_at_what_it_knows_without_training():
    """The roll at the posterior of N(0, I); a masked bit of the heartbeat at even odds."""
    roll, beats = (build_model(EXPERIMENTS[name].settings["beyond"]) for name in ("swiss_roll", "heartbeat"))
    q, xt = roll.forward_process(), torch.randn(4, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
    assert q.T == 100 and float(q.beta[1]) == pytest.approx(BETA_1, rel=1e-9)
    kernel, reverse = q.transition(xt, 9), roll.p(q, xt, 9)
    assert torch.allclose(reverse.mean, kernel.mean, atol=1e-5)
    covariance = torch.diag_embed(kernel.variance.expand(4, 2))
    assert torch.allclose(reverse.covariance, covariance, atol=1e-6)
    q = beats.forward_process()
    assert q.T == EXPERIMENTS["heartbeat"].T
    prob_one, _ = beats.p.predict_x0(q, torch.tensor([[MASK, 0.0, 1.0, MASK] * 5]), 7)
    assert prob_one[0, :4].tolist() == [0.5, 0.0, 1.0, 0.5]


@pytest.mark.parametrize(("name", "setting"), [pair for pair in SETTINGS if pair[1] != "beyond"])
def test_every_setting_builds_the_forward_process_of_its_experiment(name, setting):
    experiment, config = get_experiment(name, setting)
    q, expected = build_model(config).forward_process(), experiment.forward_process(experiment.T)
    assert type(q) is type(expected) and q.T == experiment.T
    if (name, setting) == ("swiss_roll", "best"):  # it has a schedule of its own, from the same β_1
        recorded = json.loads(schedule_path(name).read_text())["beta"]
        expected = GaussianForward(torch.tensor(recorded, dtype=torch.float64))
    if (name, setting) == ("mnist", "best"):  # half of its steps belong to the expert of high noise
        assert int((q.log_snr < build_model(config).p.network.log_snr_threshold).sum()) in (q.T // 2 - 1, q.T // 2)
        expected = GaussianForward(log_snr_linear(q.T, 1e-7, 0.73, 0.999))
    assert torch.allclose(q.beta, expected.beta, rtol=1e-12, atol=0)
    assert float(q.beta[1].detach()) == float(expected.beta[1])
    assert config.batch % (q.T - 1) == 0 or config.batch < q.T - 1
    x0 = torch.ones(2, *experiment.shape, dtype=torch.float64)
    t = torch.tensor([2, q.T])
    reverse = build_model(config).p(q, x0, t)
    assert reverse.mean.shape == x0.shape and bool(reverse.mean.isfinite().all())
    kernel = q.transition(x0, t)  # every model starts where it keeps π: K = L_null
    assert torch.allclose(reverse.mean, kernel.mean, atol=1e-5) and torch.allclose(
        reverse.variance, kernel.variance, atol=1e-5
    )


@pytest.mark.parametrize("setting", ["paper", "best"])
def test_build_model_depends_on_its_seed_alone(setting):
    config = get_experiment("swiss_roll", setting)[1]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build_model(config, 1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = build_model(config, 1).state_dict(), build_model(config, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_load_model_returns_the_weights_of_a_file_frozen(tmp_path):
    """Weights as `dpm train` writes them, and the averaged weights inside a checkpoint."""
    model = build_model(get_experiment("swiss_roll", "paper")[1], seed=3)
    tensors = model.state_dict()
    write_tensors(tmp_path / "weights", tensors, {})
    ema = {f"ema.module.{name}": value for name, value in tensors.items()}
    write_tensors(tmp_path / "checkpoint", ema | {"model.other": torch.zeros(2)}, {})
    for file in ("weights", "checkpoint"):
        loaded = load_model("swiss_roll", "paper", tmp_path / file)
        assert all(torch.equal(value, tensors[name]) for name, value in loaded.state_dict().items())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_load_model_says_which_weights_are_shipped(monkeypatch):
    with pytest.raises(UserError, match=r"bark --setting paper are shipped, only of best; `dpm train` makes them"):
        load_model("bark", "paper")
    monkeypatch.setitem(EXPERIMENTS, "new", replace(EXPERIMENTS["swiss_roll"], name="new"))
    with pytest.raises(UserError, match=r"new --setting best are shipped; `dpm train` makes them"):
        load_model("new", "best")


def test_load_model_refuses_what_is_missing_broken_or_another_model(tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*nothing"):
        load_model("swiss_roll", "paper", tmp_path / "nothing")
    (tmp_path / "broken").write_bytes(b"\x08\x00")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_model("swiss_roll", "paper", tmp_path / "broken")
    write_tensors(tmp_path / "best", build_model(get_experiment("swiss_roll", "best")[1]).state_dict(), {})
    with pytest.raises(UserError, match=r"belongs to another .*name the one it was trained for"):
        load_model("swiss_roll", "paper", tmp_path / "best")
    with pytest.raises(UserError, match=r"swiss_roll-best.* it is of swiss_roll --setting best; give that setting"):
        load_model("swiss_roll", "paper", weights_path("swiss_roll", "best"))
    for setting in ("paper", "worst"):  # what helps nobody is not said: the setting asked for, and one that is none
        told = {"experiment": "swiss_roll", "setting": setting}
        write_tensors(tmp_path / "changed", {"x": torch.zeros(1)}, told)
        with pytest.raises(UserError, match=r"belongs to another .*name the one it was trained for"):
            load_model("swiss_roll", "paper", tmp_path / "changed")


def test_shipped_weights_have_a_file_for_every_setting():
    paths = [weights_path(name, setting) for name, setting in SETTINGS]
    assert len(set(paths)) == len(SETTINGS) and all(path.suffix == ".safetensors" for path in paths)
    assert weights_path("heartbeat", "paper").name == "heartbeat-paper.safetensors"


@pytest.mark.parametrize(("name", "setting"), [pair for pair in SETTINGS if weights_path(*pair).exists()])
def test_shipped_weights_are_those_of_the_model_of_their_setting(name, setting):
    assert all(value.isfinite().all() for value in load_model(name, setting).state_dict().values())


def test_recorded_schedule_beats_those_linear_in_log_snr():
    """The more steps there are, the less it matters where they lie."""
    for setting, T, n_errors in (("best", 40, 5), ("beyond", 100, 2)):
        record = json.loads(schedule_path("swiss_roll", setting).read_text())
        assert record["over_best_log_snr_linear_bits"] > n_errors * record["over_best_log_snr_linear_stderr_bits"]
        assert len(record["beta"]) == record["T"] + 1 == T + 1
        assert record["beta"][1] == pytest.approx(BETA_1, rel=1e-9)


def test_a_readout_of_the_paper_has_ten_bumps():
    for name in ("digits", "mnist", "bark", "dead_leaves"):
        assert build_model(EXPERIMENTS[name].settings["paper"]).p.network.readout.weight.shape[0] == 10


def test_weights_per_timestep_of_the_heartbeat_learn_on_a_fiftieth_of_the_scale():
    assert build_model(EXPERIMENTS["heartbeat"].settings["paper"]).p.network.readout.scale == 0.02


def test_the_paper_s_numbers_are_those_of_tables_1_and_2():
    paper = {name: (e.paper.get("K"), e.paper.get("K_minus_L_null")) for name, e in EXPERIMENTS.items()}
    assert paper["swiss_roll"] == (2.35, 6.45) and paper["heartbeat"] == (-2.414, 12.024)
    assert paper["bark"] == (-0.55, 1.5) and paper["dead_leaves"] == (1.489, 3.536) and paper["cifar10"] == (5.4, 11.5)
    assert EXPERIMENTS["mnist"].paper == {"parzen_bits": 317}


def test_pictures_to_train_on_are_drawn_and_the_others_held_out():
    train, test = torch.zeros(5, 1, 2, 2), 10 + torch.zeros(3, 1, 2, 2)
    experiment = image_experiment("x", (1, 2, 2), lambda device: ImageDataset(train, test, 0.0, 1.0), 3, 1e-3, {}, {})
    drawn, held_out = experiment.draw(20, Generator()), experiment.held_out_data(Generator())
    assert drawn.shape == (20, 1, 2, 2) and drawn.floor().unique().tolist() == [0]
    assert held_out.shape == (3, 1, 2, 2) and held_out.floor().unique().tolist() == [10]


def test_pictures_are_held_out():
    x0 = EXPERIMENTS["digits"].held_out_data(Generator().manual_seed(0))
    assert torch.equal(sets.load_digits().to_levels(x0), sets.load_digits().test.long())


def test_whole_pictures_are_300_wide(monkeypatch):
    monkeypatch.setattr(bark, "load_bark_squares", lambda generator, size: size)
    assert EXPERIMENTS["bark"].whole_images(None) == 300


def test_the_pathways_of_the_paper():
    scales = {
        name: [len(layer.convolutions) for layer in EXPERIMENTS[name].settings["paper"].build().p.network.pathways[0]]
        for name in ("bark", "dead_leaves")
    }
    assert scales == {"bark": [3] * 6, "dead_leaves": [4] * 6}


def test_large_pictures_are_trained_in_bfloat16():
    for name in ("mnist", "bark", "dead_leaves", "cifar10"):
        assert {config.precision for config in EXPERIMENTS[name].settings.values()} == {torch.bfloat16}
    assert {config.precision for config in EXPERIMENTS["digits"].settings.values()} == {torch.float32}
