"""A run that is followed: its log, its choices, its pictures of samples, and the curves that are drawn of them."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dpm import figures, training
from dpm.cli.curve import shipped_optimum
from dpm.cli.train import draw_progress
from dpm.errors import UserError
from dpm.experiments.registry import EXPERIMENTS, build_model
from dpm.experiments.shipped import load_result
from dpm.runlog import append_record, cut_log, read_log
from dpm.training import Record, TrainState, learning_rate_at


def test_a_log_is_read_back_cut_and_gone_on_with(tmp_path):
    path = tmp_path / "log.jsonl"
    cut_log(path, 0)
    assert read_log(path) == []
    records = [{"step": step, "K_bits": step / 7} for step in (50, 100, 150)]
    for record in records:
        append_record(path, record)
    with path.open("a") as file:
        file.write('{"step": 200, "K_b')  # killed while it wrote
    assert read_log(path) == records
    cut_log(path, 100)
    append_record(path, records[2])
    assert read_log(path) == records
    cut_log(path, 0)
    assert read_log(path) == []


def test_a_log_that_is_gone_or_not_wanted_is_begun_anew(tmp_path):
    """A resumed run whose log was taken away goes on, and a new run reads nothing of an old log."""
    cut_log(tmp_path / "log.jsonl", 50)
    assert read_log(tmp_path / "log.jsonl") == []
    (tmp_path / "log.jsonl").write_text("{]\n")
    cut_log(tmp_path / "log.jsonl", 0)
    assert read_log(tmp_path / "log.jsonl") == []


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(UserError, match="no log at"):
        read_log(tmp_path / "log.jsonl")
    for broken in ("{]\n", "5\n", "{}\n", "[" * 5_000 + "\n"):
        (tmp_path / "log.jsonl").write_text(broken)
        with pytest.raises(UserError, match="is no log of"):
            read_log(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="cannot write"):
        append_record(tmp_path, {})


def test_what_a_caller_does_with_a_record_is_no_time_of_training(monkeypatch):
    monkeypatch.setattr(training, "RECORD_EVERY", 1)
    experiment = EXPERIMENTS["heartbeat"]
    state = TrainState(build_model(experiment.settings["best"]), torch.device("cpu"), 0, {})
    begun = time.monotonic()
    for _ in training.train(state, experiment.draw, 10, 3, 1e-3):
        time.sleep(0.2)
    assert 0 < state.seconds < time.monotonic() - begun - 0.39


def interrupted(records):
    """In place of training: these records, and Ctrl-C."""

    def train(state, *_, **options):
        for record in records:
            state.step = record.step
            yield record
        raise KeyboardInterrupt

    return train


def test_a_run_writes_its_choices_its_log_and_its_pictures(dpm, tmp_path, monkeypatch):
    """K in bits per pixel, the rate of the step before, pictures at the first record on or after each multiple."""
    monkeypatch.setattr("dpm.cli.train.draw_samples", lambda *words: torch.rand(words[3], 1, 8, 8))
    records = [Record(step, 64 * math.log(2) * step) for step in (50, 100, 150)]
    monkeypatch.setattr("dpm.cli.train.train", interrupted(records))
    words = ["train", "digits", "--setting", "best", "--device", "cpu", "--out", tmp_path]
    assert dpm(*words, "--sample-every", 75)[0] == 130
    log, config = read_log(tmp_path / "log.jsonl"), json.loads((tmp_path / "config.json").read_text())
    assert [line["K_bits"] for line in log] == pytest.approx([-50, -100, -150])
    peak = EXPERIMENTS["digits"].settings["best"].learning_rate
    assert log[1]["learning_rate"] == learning_rate_at(99, 4000, peak) == peak * (1 + math.cos(math.pi * 99 / 4000)) / 2
    assert all(line["samples_per_second"] > 128 * 50 for line in log)  # each took less than a second
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["samples-000100.png", "samples-000150.png"]
    assert Image.open(tmp_path / "samples-000100.png").size[0] > 100
    assert (config["steps"], config["batch"], config["learning_rate"], config["T"]) == (4000, 128, peak, 1000)
    assert config["provenance"]["command"].endswith("--sample-every 75") and config["unit"] == "bits/pixel"


def test_the_rate_of_a_record_is_of_the_steps_since_the_last_record(dpm, tmp_path, monkeypatch):
    """By a clock that shows 2 s for 50 steps, 1 s of a picture, and 4 s for the next 100."""
    clock = iter([10.0, 12.0, 13.0, 17.0, 18.0])
    monkeypatch.setattr("dpm.cli.train.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("dpm.cli.train.train", interrupted([Record(50, 3.0), Record(150, 2.0)]))
    dpm("train", "digits", "--setting", "best", "--device", "cpu", "--out", tmp_path)
    rates = [line["samples_per_second"] for line in read_log(tmp_path / "log.jsonl")]
    assert rates == [50 * 128 / 2, 100 * 128 / 4]


def test_a_resumed_run_leaves_one_log_without_a_seam(dpm, tmp_path, monkeypatch):
    """Stopped after the checkpoint of step 4 and a record of step 6: the log is that of a run never stopped."""
    monkeypatch.setattr(training, "RECORD_EVERY", 2)
    monkeypatch.setattr("dpm.cli.train.evaluate_experiment", lambda *_: {})
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    words = ["train", "swiss_roll", "--device", "cpu", "--steps", 10]
    assert dpm(*words, "--out", whole)[0] == 0

    def stopped(state, *words, **options):
        for record in training.train(state, *words, **options):
            if record.step == 4:
                state.save(parted / "checkpoint.safetensors")
            yield record
            if record.step == 6:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dpm.cli.train.train", stopped)
        assert dpm(*words, "--out", parted)[0] == 130
    assert [line["step"] for line in read_log(parted / "log.jsonl")] == [2, 4, 6]
    assert dpm(*words, "--out", parted, "--resume")[0] == 0
    logs = [
        [{name: line[name] for name in ("step", "K_bits", "learning_rate")} for line in read_log(run / "log.jsonl")]
        for run in (whole, parted)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 5


@pytest.fixture
def run_of(dpm, tmp_path, monkeypatch):
    """A function that makes the folder of a stopped run of an experiment."""

    def make(name, setting="best"):
        monkeypatch.setattr("dpm.cli.train.train", interrupted([Record(50, 3.0), Record(100, 2.0)]))
        dpm("train", name, "--setting", setting, "--device", "cpu", "--out", tmp_path / name)
        return tmp_path / name

    return make


def test_curve_draws_runs_beside_K_star(dpm, run_of, tmp_path, monkeypatch):
    """While a run goes on K* is the shipped one; what an earlier run in the folder reached is not shown."""
    drawn = []
    monkeypatch.setattr(
        "dpm.cli.curve.plot_learning_curves", lambda *words: drawn.append(words) or figures.panels(1, 1)[0]
    )
    run = run_of("heartbeat")
    status, out, err = dpm("curve", run, "--out", tmp_path / "x" / "c.png", "--json")
    assert err == f"dpm: wrote {tmp_path / 'x' / 'c.png'}\n"
    (found,) = json.loads(out)["runs"]
    assert status == 0 and found["step"] == [50, 100] and found["unit"] == "bits/seq"
    assert found["K_bits"] == pytest.approx([-3 / math.log(2), -2 / math.log(2)]) and found["K_final_bits"] is None
    assert found["K_optimum_bits"] == load_result("heartbeat", "best")["K_optimum_bits"]
    assert drawn == [([found], "bits/seq")] and Image.open(tmp_path / "x" / "c.png").format == "PNG"
    config = json.loads((run / "config.json").read_text())
    for command, expected in ((config["provenance"]["command"], -2.5), ("dpm train heartbeat", None)):
        result = {"K_bits": -2.5, "K_optimum_bits": -2.25, "provenance": {"command": command}}
        (run / "results.json").write_text(json.dumps(result))
        (found,) = json.loads(dpm("curve", run, "--json")[1])["runs"]
        assert found["K_final_bits"] == expected
        assert found["K_optimum_bits"] == (-2.25 if expected else load_result("heartbeat", "best")["K_optimum_bits"])
    assert f"{run} K_bits" in dpm("curve", run)[1]
    (run / "results.json").unlink()
    (run / "config.json").write_text(json.dumps(config | {"data": {}}))  # of a file that is named as an experiment
    assert json.loads(dpm("curve", run, "--json")[1])["runs"][0]["K_optimum_bits"] is None


def test_the_table_of_a_run_has_its_last_record(dpm, run_of):
    """And of a run that has none yet, K* alone."""
    run, best = run_of("heartbeat"), f"{load_result('heartbeat', 'best')['K_optimum_bits']:.4f}"
    ends = {"K_final_bits": "None", "K_optimum_bits": best}
    for wanted in ({"step": "100", "K_bits": f"{-2 / math.log(2):.4f}"} | ends, ends):
        lines = dpm("curve", run)[1].splitlines()
        assert dict(line.removeprefix(f"{run} ").split() for line in lines) == wanted
        (run / "log.jsonl").write_text("")


def test_a_picture_of_curves_shows_every_run_what_it_reached_and_K_star():
    runs = [
        {"folder": "a", "step": [50, 100], "K_bits": [-3.0, -2.0], "K_final_bits": -2.5, "K_optimum_bits": -1.0},
        {"folder": "b", "step": [], "K_bits": [], "K_final_bits": None, "K_optimum_bits": None},
    ]
    (axes,) = figures.plot_learning_curves(runs, "bits").axes
    first, cross, star, second = axes.lines
    assert first.get_xydata().tolist() == [[50, -3], [100, -2]] and cross.get_xydata().tolist() == [[100, -2.5]]
    assert set(star.get_ydata()) == {-1} and len(second.get_xdata()) == 0
    assert len({first.get_color(), second.get_color()}) == 2 and axes.get_ylabel() == "K (bits)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "evaluated", "K*"]
    (axes,) = figures.plot_learning_curves([runs[0] | {"K_optimum_bits": None}], "bits").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "evaluated"]


def test_curves_that_cannot_be_drawn_are_refused(dpm, run_of, tmp_path):
    run, other = run_of("heartbeat"), run_of("digits")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "log.jsonl").write_text('{"step": 3}\n')
    (tmp_path / "foreign" / "config.json").write_text("{}")
    refused = {
        (run, other): "in different units, bits/pixel and bits/seq",
        (tmp_path,): "no log at",
        (run / "config.json",): "name the folder of a run",
        (run / "log.jsonl",): "name the folder of a run",
        (tmp_path / "foreign",): "was not written by",
        (run, "--out", tmp_path / "x.jpg"): "no .png file",
        (): "arguments are required: DIR",
    }
    for words, expected in refused.items():
        status, out, err = dpm("curve", *words)
        assert status == 2 and out == "" and expected in err and err.count("\n") == 1


def test_a_curve_whose_setting_has_no_shipped_result_has_no_K_star():
    assert shipped_optimum({"experiment": "bark", "setting": "paper", "T": 1000}) is None
    record = load_result("heartbeat", "best")
    assert shipped_optimum({"experiment": "heartbeat", "setting": "best", "T": 2000}) == record["K_optimum_bits"]
    assert shipped_optimum({"experiment": "heartbeat", "setting": "best", "T": 1000}) is None


def test_a_damaged_choice_of_a_run_is_one_line(dpm, run_of):
    """Also numbers that JSON has no word for, which Python would read."""
    run = run_of("heartbeat")
    for content in ('{"unit": NaN}', "[]", "[" * 5_000):
        (run / "config.json").write_text(content)
        status, out, err = dpm("curve", run, "--json")
        assert (status, out) == (2, "") and "not a whole record" in err and err.count("\n") == 1


def test_samples_in_the_folder_are_those_of_the_averaged_weights(dpm, tmp_path, monkeypatch):
    """Two runs of one step: the same noise, and no randomness of training is used up."""
    monkeypatch.setattr(training, "RECORD_EVERY", 1)
    monkeypatch.setattr("dpm.cli.train.evaluate_experiment", lambda *_: {})
    monkeypatch.setattr("dpm.cli.train.to_png", lambda figure: figure.axes[0].lines[0].get_xydata().tobytes())
    words = ["train", "swiss_roll", "--device", "cpu", "--steps", 2]
    assert dpm(*words, "--sample-every", 1, "--out", tmp_path / "a")[0] == 0
    assert dpm(*words, "--out", tmp_path / "b")[0] == 0
    a, b = (read_log(tmp_path / run / "log.jsonl") for run in ("a", "b"))
    assert [line["K_bits"] for line in a] == [line["K_bits"] for line in b]
    drawn = [(tmp_path / "a" / f"samples-00000{step}.png").read_bytes() for step in (1, 2)]
    assert len(drawn[0]) == 2_000 * 2 * 8 and drawn[0] != drawn[1]


def test_a_picture_of_progress_is_drawn_by_the_averaged_model(tmp_path, monkeypatch):
    state = TrainState(build_model(EXPERIMENTS["heartbeat"].settings["best"]), torch.device("cpu"), 0, {})
    drawn = []

    def draw(experiment, model, q, n, generator):
        drawn.append((model, generator.initial_seed()))
        return torch.zeros(n, 20)

    monkeypatch.setattr("dpm.cli.train.draw_samples", draw)
    draw_progress(tmp_path / "x.png", EXPERIMENTS["heartbeat"], state, 3)
    assert drawn == [(state.ema.module, 3)] and state.ema.module is not state.model
