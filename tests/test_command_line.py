"""The command line as a user meets it: its JSON, and one clear line with exit status 2 for all that a user can mend."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from dpm import __main__ as command
from dpm.experiments import EXPERIMENTS, load, weights_path

KEYS = {"experiment", "K_bits", "K_stderr_bits", "unit", "L_null_bits", "K_minus_L_null_bits", "K_optimum_bits"}
KEYS |= {"minus_entropy_bits", "parts_bits", "T", "paper", "provenance"}


@pytest.fixture
def dpm(monkeypatch, capsys):
    """Run a command line; returns its exit status, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dpm", *map(str, words)])
        try:
            status = command.main()
        except SystemExit as leave:
            status = leave.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def few(monkeypatch):
    """Fewer held-out samples: what a report says is checked elsewhere, here only that it is made."""
    for name in EXPERIMENTS:
        monkeypatch.setitem(EXPERIMENTS, name, replace(EXPERIMENTS[name], held_out=20))


def test_list_names_every_setting(dpm):
    status, out, _ = dpm("list", "--json")
    rows = json.loads(out)["experiments"]
    assert status == 0
    assert {(row["experiment"], row["setting"]) for row in rows} == {
        (name, setting) for name in EXPERIMENTS for setting in EXPERIMENTS[name].settings
    }
    assert "heartbeat" in dpm("list")[1]


def test_evaluate_prints_one_json_object(dpm, few):
    status, out, _ = dpm("evaluate", "swiss_roll", "--setting", "ours", "--json")
    result = json.loads(out)
    assert status == 0 and set(result) >= KEYS and out.count("\n") == 1
    assert result["provenance"]["command"].startswith("dpm evaluate")
    parts = result["parts_bits"]
    K = parts["entropy_T"] - parts["entropy_1"] - parts["entropy_prior"] - parts["kl"]
    assert result["K_bits"] == pytest.approx(K)
    assert "K_bits" in dpm("evaluate", "swiss_roll", "--setting", "ours")[1]


def test_optimum_prints_K_star(dpm, few):
    status, out, _ = dpm("optimum", "heartbeat", "--T", "20", "--json")
    result = json.loads(out)
    assert status == 0 and result["T"] == 20 and result["K_optimum_bits"] < result["minus_entropy_bits"]


def test_train_writes_weights_that_evaluate_reads(dpm, few, tmp_path):
    status, out, err = dpm("train", "swiss_roll", "--steps", 3, "--out", tmp_path, "--json")
    result = json.loads(out)
    assert status == 0 and set(result) >= KEYS and "K " in err
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.safetensors",
        "weights.safetensors",
        "results.json",
    }
    for file in ("weights", "checkpoint"):
        assert dpm("evaluate", "swiss_roll", "--checkpoint", tmp_path / f"{file}.safetensors", "--json")[0] == 0
    assert dpm("train", "swiss_roll", "--steps", 5, "--out", tmp_path, "--resume", "--json")[0] == 0


def test_an_unfinished_run_is_not_overwritten(dpm, few, tmp_path):
    dpm("train", "swiss_roll", "--steps", 3, "--out", tmp_path)
    model = load("swiss_roll", "paper", tmp_path / "weights.safetensors")
    about = {"experiment": "swiss_roll", "setting": "paper", "steps": "10", "step": "3"}
    command.write_tensors(tmp_path / "checkpoint.safetensors", model.state_dict(), about)
    status, _, err = dpm("train", "swiss_roll", "--steps", 10, "--out", tmp_path)
    assert status == 2 and "unfinished run (step 3 of 10)" in err and "--resume" in err


def test_sample_draws_a_picture_of_possible_data(dpm, tmp_path):
    picture = tmp_path / "deep" / "roll.png"
    status, out, _ = dpm("sample", "swiss_roll", "--setting", "ours", "-n", 50, "--out", picture, "--json")
    assert status == 0 and json.loads(out)["n"] == 50 and picture.read_bytes()[:4] == b"\x89PNG"


def blocked(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "deeper"


def torn(tmp_path):
    path = tmp_path / "torn.safetensors"
    path.write_bytes(weights_path("swiss_roll", "paper").read_bytes()[:1000])
    return path


MISTAKES = {
    "unknown experiment": (lambda tmp: ["evaluate", "swissroll"], "no experiment named 'swissroll'"),
    "unknown setting": (lambda tmp: ["train", "heartbeat", "--setting", "best"], "no setting 'best'"),
    "missing checkpoint": (lambda tmp: ["evaluate", "heartbeat", "--checkpoint", tmp / "no"], "no checkpoint at"),
    "truncated checkpoint": (
        lambda tmp: ["sample", "swiss_roll", "--checkpoint", torn(tmp)],
        "not a whole safetensors",
    ),
    "folder as checkpoint": (lambda tmp: ["sample", "swiss_roll", "--checkpoint", tmp], "safetensors file"),
    "foreign checkpoint": (
        lambda tmp: ["evaluate", "heartbeat", "--checkpoint", weights_path("swiss_roll", "ours")],
        "another experiment or setting",
    ),
    "no steps": (lambda tmp: ["train", "swiss_roll", "--steps", 0, "--out", tmp / "x"], "--steps 0"),
    "negative steps": (lambda tmp: ["train", "swiss_roll", "--steps", -3, "--out", tmp / "x"], "--steps -3"),
    "steps in words": (lambda tmp: ["train", "swiss_roll", "--steps", "many"], "invalid int value: 'many'"),
    "no such device": (lambda tmp: ["train", "swiss_roll", "--device", "cuda", "--out", tmp / "x"], "no CUDA device"),
    "unwritable folder": (lambda tmp: ["train", "swiss_roll", "--steps", 2, "--out", blocked(tmp)], "cannot write"),
    "unwritable picture": (lambda tmp: ["sample", "swiss_roll", "--out", blocked(tmp) / "x.png"], "cannot write"),
    "nothing to resume": (lambda tmp: ["train", "swiss_roll", "--resume", "--out", tmp / "x"], "no checkpoint at"),
    "no samples": (lambda tmp: ["sample", "heartbeat", "-n", 0], "-n 0"),
    "one step": (lambda tmp: ["optimum", "heartbeat", "--T", 1], "--T 1"),
    "no command": (lambda tmp: [], "COMMAND"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_status_2(mistake, dpm, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words, expected = MISTAKES[mistake]
    status, out, err = dpm(*words(tmp_path))
    assert status == 2 and out == ""
    assert expected in err and err.startswith("dpm: ") and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "x").exists()
