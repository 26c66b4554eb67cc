"""The command line as a user meets it: its JSON, and one clear line with exit status 2 for all that a user can mend."""

import errno
import json
import math
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.distributed.run import get_args_parser

from dpm import posterior, reverse, training
from dpm.bound import simple_loss
from dpm.cli.output import print_result
from dpm.cli.parser import build_parser
from dpm.cli.sample import draw_samples, to_data
from dpm.cli.train import check_counts
from dpm.data.sets import load_digits
from dpm.data.synthetic import heartbeat_sequences
from dpm.errors import UserError
from dpm.evaluation import evaluate_experiment
from dpm.experiments.own import MOST_PASSES, RECIPES
from dpm.experiments.registry import EXPERIMENTS, build_model, load_model
from dpm.experiments.shipped import weights_path
from dpm.files import read_tensors, write_tensors
from dpm.forward import BIT_KERNELS, BernoulliForward, GaussianForward
from dpm.ideal import IdealReverse, enumerate_ideal_K
from dpm.schedules import linear_alpha_bar, log_snr_linear
from dpm.training import Record
from dpm.units import mean_and_stderr, to_bits

KEYS = {"experiment", "K_bits", "K_stderr_bits", "unit", "L_null_bits", "K_minus_L_null_bits", "K_optimum_bits"}
KEYS |= {"minus_entropy_bits", "parts_bits", "T", "paper", "provenance"}


BEGUN = [".lock", "checkpoint.safetensors", "config.json", "log.jsonl"]  # what a run writes before its first step


@pytest.fixture
def digits(tmp_path):
    """The words that name an untrained model of the digits, and few steps of it."""
    path = tmp_path / "untrained.safetensors"
    write_tensors(path, build_model(EXPERIMENTS["digits"].settings["best"]).state_dict(), {})
    return ["digits", "--setting", "best", "--checkpoint", path, "--T", 3, "--json"]


def test_sample_draws_pictures(dpm, digits, tmp_path):
    status, out, err = dpm("sample", *digits, "-n", 5, "--out", tmp_path / "s.png")
    result = json.loads(out)
    assert err == f"dpm: wrote {tmp_path / 's.png'}\n"
    assert status == 0 and result["T"] == 3 and "possible_share" not in result
    assert Image.open(tmp_path / "s.png").size[0] > 100


def test_pictures_can_be_kept_as_they_are(dpm, digits, tmp_path):
    """As half-precision arrays, whose header names the command."""
    path = tmp_path / "r.safetensors"
    assert dpm("denoise", *digits, "-n", 3, "--out", path)[0] == 0
    arrays, metadata = read_tensors(path)
    assert {name: x.shape for name, x in arrays.items()} == dict.fromkeys(("x0", "seen", "restored"), (3, 1, 8, 8))
    assert metadata["command"].startswith("dpm denoise digits --setting best")


@pytest.mark.parametrize("command", ["sample", "denoise", "inpaint"])
def test_what_is_drawn_and_not_saved_is_said_to_be_so(dpm, digits, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir())
    status, out, err = dpm(command, *digits, "-n", 2)
    assert status == 0 and json.loads(out)["n"] == 2 and sorted(os.listdir()) == before
    assert err == "dpm: nothing is saved; --out names a file to write\n"


def test_baselines_are_saved(dpm, tmp_path, monkeypatch):
    def density_baselines(images, model, generator):
        return {"mcgsm_bits": float(len(images.test) + generator.initial_seed())}

    monkeypatch.setattr("dpm.cli.baselines.density_baselines", density_baselines)
    words = ["--setting", "best", "--seed", 3, "--save", tmp_path / "b.json", "--json"]
    status, out, err = dpm("baselines", "digits", *words)
    assert err == f"dpm: wrote {tmp_path / 'b.json'}\n"
    assert status == 0 and json.loads(out) == json.loads((tmp_path / "b.json").read_text())
    assert json.loads(out)["mcgsm_bits"] == 700 and json.loads(out)["experiment"] == "digits"


@pytest.mark.parametrize("r", ["constant", "annealed", "diffused"])
@pytest.mark.parametrize("how", [["denoise", "--variance", "0.01"], ["inpaint", "--hole", "2"]])
def test_restoring_pictures_brings_them_nearer(dpm, digits, tmp_path, how, r):
    """Even an untrained model, which knows nothing but π, does not move what is known, or known well."""
    status, out, _ = dpm(how[0], *digits, *how[1:], "-n", 3, "--r", r, "--out", tmp_path / "r.png")
    result = json.loads(out)
    assert status == 0 and result["n"] == 3 and result["r"] == r
    assert result["mse_restored"] < 0.2 and Image.open(tmp_path / "r.png").size[0] > 100
    if how[0] == "denoise":
        assert result["mse_seen"] == pytest.approx(0.01, rel=0.5)


def test_list_names_every_setting(dpm):
    status, out, _ = dpm("list", "--json")
    rows = json.loads(out)["experiments"]
    assert status == 0
    assert {(row["experiment"], row["setting"]) for row in rows} == {
        (name, setting) for name in EXPERIMENTS for setting in EXPERIMENTS[name].settings
    }
    assert "heartbeat" in dpm("list")[1]


def test_evaluate_prints_one_json_object(dpm, few_held_out):
    status, out, _ = dpm("evaluate", "swiss_roll", "--setting", "best", "--json")
    result = json.loads(out)
    assert status == 0 and set(result) >= KEYS and out.count("\n") == 1
    assert result["provenance"]["command"].startswith("dpm evaluate")
    parts = result["parts_bits"]
    K = parts["entropy_T"] - parts["entropy_1"] - parts["entropy_prior"] - parts["kl"]
    assert result["K_bits"] == pytest.approx(K)
    assert "K_bits" in dpm("evaluate", "swiss_roll", "--setting", "best")[1]


def test_optimum_prints_K_star(dpm, few_held_out):
    status, out, _ = dpm("optimum", "heartbeat", "--T", "20", "--json")
    result = json.loads(out)
    assert status == 0 and result["T"] == 20 and result["K_optimum_bits"] < result["minus_entropy_bits"]
    assert out.count("\n") == 1 and result["experiment"] == "heartbeat" and result["unit"] == "bits/seq"
    assert result["provenance"]["command"] == "dpm optimum heartbeat --T 20 --json"
    assert result["K_optimum_stderr_bits"] == 0  # every state counted
    assert result["schedule"] == "untrained" and "K* of the untrained forward process" in dpm("optimum", "--help")[1]


def test_optimum_of_another_heartbeat(dpm):
    """Two phases of six bits: K* by the book's own module, −H(X⁰) = −1."""
    status, out, _ = dpm("optimum", "heartbeat", "--T", "9", "--length", "6", "--period", "2", "--json")
    result, points = json.loads(out), heartbeat_sequences(6, 2)
    assert status == 0 and result["minus_entropy_bits"] == pytest.approx(-1)
    assert result["minus_entropy_stderr_bits"] == 0
    K = enumerate_ideal_K(IdealReverse(points), BernoulliForward(linear_alpha_bar(9), 0.5))
    assert result["K_optimum_bits"] == pytest.approx(float(to_bits(K)), abs=1e-12)


def test_optimum_of_the_masking_kernel(dpm):
    """The absorbing kernel of D3PM in place of flips: more of −H(X⁰) = −2.32 is within reach."""
    words = ["optimum", "heartbeat", "--T", "20", "--json"]
    masking, flipping = (json.loads(dpm(*words, "--kernel", kernel)[1]) for kernel in ("masking", "flipping"))
    assert masking["K_optimum_bits"] == pytest.approx(-2.698, abs=0.005)
    assert masking["minus_entropy_bits"] == pytest.approx(-math.log2(5)) and masking["kernel"] == "masking"
    assert flipping["K_optimum_bits"] == json.loads(dpm(*words)[1])["K_optimum_bits"] < masking["K_optimum_bits"]


def test_the_help_names_every_kernel_for_bits(dpm):
    _, text, _ = dpm("optimum", "--help")
    assert all(name in text for name in BIT_KERNELS)


def test_sequences_that_coincide_are_counted_together(dpm):
    """Period 6, four bits: two of the six phases have no one, so −H(X⁰) = −⅔ log₂ 6 − ⅓ log₂ 3."""
    result = json.loads(dpm("optimum", "heartbeat", "--T", "4", "--length", "4", "--period", "6", "--json")[1])
    assert result["minus_entropy_bits"] == pytest.approx(-2 / 3 * math.log2(6) - math.log2(3) / 3)


@pytest.mark.slow
def test_optimum_of_the_roll_states_its_error(dpm, monkeypatch):
    monkeypatch.setattr("dpm.cli.ideal.ideal_K", lambda p, q, x0, generator: torch.tensor([1.0, 3.0]))
    result = json.loads(dpm("optimum", "swiss_roll", "--T", "4", "--json")[1])
    assert result["K_optimum_bits"] == pytest.approx(2 / math.log(2))
    assert result["K_optimum_stderr_bits"] == pytest.approx(1 / math.log(2))


def test_schedule_writes_its_betas(dpm, tmp_path, monkeypatch):
    beta = torch.tensor([0, 1e-4, 0.1, 0.2], dtype=torch.float64)
    monkeypatch.setattr("dpm.cli.ideal.best_schedule", lambda *args: beta)
    monkeypatch.setattr("dpm.cli.ideal.ideal_K", lambda p, q, x0, generator: q.log_alpha_bar[-1:].expand(2) * beta[1:3])
    status, out, err = dpm("schedule", "swiss_roll", "--T", "3", "--out", tmp_path / "beta.json", "--json")
    assert err == f"dpm: wrote {tmp_path / 'beta.json'}\n"
    result = json.loads((tmp_path / "beta.json").read_text())
    assert status == 0 and result["beta"] == beta.tolist() and result["T"] == 3
    assert json.loads(out)["over_best_log_snr_linear_bits"] == result["over_best_log_snr_linear_bits"]


def test_train_writes_weights_that_evaluate_reads(dpm, few_held_out, tmp_path):
    status, out, err = dpm("train", "swiss_roll", "--steps", 3, "--out", tmp_path, "--json")
    result = json.loads(out)
    assert status == 0 and set(result) >= KEYS and "K " in err and err.endswith(f"dpm: wrote {tmp_path}\n")
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "checkpoint.safetensors",
        "weights.safetensors",
        "results.json",
        "config.json",
        "log.jsonl",
    }
    for file in ("weights", "checkpoint"):
        assert dpm("evaluate", "swiss_roll", "--checkpoint", tmp_path / f"{file}.safetensors", "--json")[0] == 0
    _, out, _ = dpm("train", "swiss_roll", "--steps", 5, "--out", tmp_path, "--resume", "--json")
    made, before = json.loads(out)["provenance"], result["provenance"]
    assert made["steps"] == 5 and made["training_seconds"] >= before["training_seconds"]
    batch = made["samples_per_second"] * made["training_seconds"] / made["steps"]
    assert batch == pytest.approx(EXPERIMENTS["swiss_roll"].settings["paper"].batch)  # however short the run
    assert made["command"].split("; ")[0] == before["command"] and made["command"].count("--resume") == 1


def test_train_goes_on_from_given_weights(dpm, few_held_out, tmp_path):
    """One step from the shipped weights, the learning rate still low, stays near them; other options are heeded."""
    words = ["train", "swiss_roll", "--setting", "best", "--steps", 1, "--json"]
    shipped = weights_path("swiss_roll", "best")
    status, out, _ = dpm(*words, "--from", shipped, "--micro-batch", 30, "--out", tmp_path)
    made = json.loads(out)["provenance"]
    assert status == 0 and made["samples_per_second"] > 0 and 0 < made["fraction_of_peak"] < 1
    (before, _), (after, _) = (read_tensors(path) for path in (shipped, tmp_path / "weights.safetensors"))
    assert all(torch.allclose(after[name], before[name], atol=1e-3) for name in before)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_training_without_data_leaves_nothing_behind(dpm, monkeypatch, tmp_path):
    def missing(n, generator):
        raise UserError("no bark here")

    monkeypatch.setitem(EXPERIMENTS, "bark", replace(EXPERIMENTS["bark"], draw=missing))
    assert dpm("train", "bark", "--out", tmp_path / "x") == (2, "", "dpm: no bark here\n")
    assert not (tmp_path / "x").exists()


def test_a_run_is_not_resumed_to_an_earlier_step(dpm, few_held_out, tmp_path):
    words = ["train", "swiss_roll", "--out", tmp_path, "--json"]
    assert dpm(*words, "--steps", 4)[0] == 0
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    status, out, err = dpm(*words, "--steps", 2, "--resume")
    assert (status, out) == (2, "") and "is at step 4 already" in err
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_run_that_was_stopped_after_its_last_step_is_resumed_to_its_report(dpm, tmp_path, monkeypatch):
    """And its progress goes on from that step."""
    for work in ("evaluate_experiment", "throughput"):
        monkeypatch.setattr(f"dpm.cli.train.{work}", lambda *_: {})
    words = ["train", "swiss_roll", "--steps", 2, "--device", "cpu", "--out", tmp_path]
    assert dpm(*words)[0] == 0
    (tmp_path / "results.json").unlink()
    status, _, err = dpm(*words, "--resume")
    assert status == 0 and (tmp_path / "results.json").exists() and "2/2" in err and "0/2" not in err


def test_torchrun_hands_on_every_option_of_training(dpm):
    """It reads shortened names as its own: `--start` it refused, for one of its options begins so."""
    options = set(re.findall(r"--[a-z-]+", dpm("train", "--help")[1])) - {"--help"}
    assert {"--setting", "--from"} <= options
    for option in options:
        understood = get_args_parser().parse_args(["-m", "dpm", "train", "mnist", option])
        assert understood.training_script_args == ["train", "mnist", option]


def test_progress_is_in_bits_on_stderr(dpm, few_held_out, tmp_path, monkeypatch):
    """The last record, turned from nats into bits, stands at the end of the bar; stdout holds the JSON alone."""
    seen = []

    def watched(*words, **options):
        for record in training.train(*words, **options):
            seen.append(record)
            yield record

    monkeypatch.setattr("dpm.cli.train.train", watched)
    _, out, err = dpm("train", "swiss_roll", "--steps", 60, "--out", tmp_path, "--json")
    assert json.loads(out) and [record.step for record in seen] == [50, 60]
    assert f"K {float(to_bits(torch.tensor(seen[-1].K))):.3f} bits" in err.split("\r")[-1]


def interrupted(state, draw, batch, n_steps, learning_rate, checkpoint, **options):
    """A run of which two steps are done, and one is saved, when Ctrl-C comes."""
    yield from training.train(state, draw, batch, 1, learning_rate, checkpoint, **options)
    state.step = 2
    raise KeyboardInterrupt


def test_ctrl_c_is_one_line_that_says_how_to_go_on(dpm, few_held_out, tmp_path, monkeypatch):
    words = ["train", "swiss_roll", "--steps", 5, "--out", tmp_path, "--json"]
    with monkeypatch.context() as patch:
        patch.setattr("dpm.cli.train.train", interrupted)
        status, out, err = dpm(*words)
    bar, message = re.split(r"[\r\n]+", err.strip())[-2:]
    assert (
        status == 130 and out == "" and "step" in bar and message.startswith("dpm: stopped") and "--resume" in message
    )
    assert sorted(os.listdir(tmp_path)) == BEGUN
    status, _, err = dpm(*words)
    assert status == 2 and "unfinished run (step 1 of 5)" in err and "--resume" in err and err.count("\n") == 1
    status, _, err = dpm(*words, "--seed", 1, "--resume")
    assert status == 2 and "run of seed 0, not 1" in err and err.count("\n") == 1
    assert dpm(*words, "--resume")[0] == 0


def test_a_run_that_lost_nothing_may_begin_again(dpm, few_held_out, tmp_path, monkeypatch):
    words = ["train", "swiss_roll", "--steps", 3, "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr("dpm.cli.train.train", lambda *_, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        assert dpm(*words)[0] == 130
    assert dpm(*words)[0] == 0


def test_a_finished_run_is_not_overwritten(dpm, few_held_out, tmp_path):
    """Neither by one of fewer steps nor by one of more, and not by one that starts from its weights."""
    words, weights = ["train", "swiss_roll", "--steps", 3, "--out", tmp_path], tmp_path / "weights.safetensors"
    assert dpm(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for steps in (1, 3, 9):
        status, out, err = dpm(*words, "--steps", steps)
        assert (status, out) == (2, "") and err.count("\n") == 1 and "is a finished run of 3 steps" in err
        assert all(mend in err for mend in ("--resume with more --steps", "--out", "remove its folder"))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert dpm(*words, "--from", weights)[0] == 2
    assert dpm(*words, "--steps", 4, "--resume")[0] == 0


def test_of_two_runs_in_one_folder_the_second_is_refused(dpm, few_held_out, tmp_path):
    """Until the first ends, even by a kill, which leaves its lock's file behind."""
    words, checkpoint = (
        ["train", "swiss_roll", "--out", tmp_path, "--device", "cpu"],
        tmp_path / "checkpoint.safetensors",
    )
    command = [sys.executable, "-m", "dpm", *map(str, words), "--steps", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as first:
        while b"step" not in first.stderr.read1():  # its progress: by then it has written a checkpoint
            assert first.poll() is None
        for more in (["--steps", 3], ["--resume"]):
            status, out, err = dpm(*words, *more)
            assert (status, out) == (2, "") and "another run is at work in" in err and err.count("\n") == 1
        first.kill()
    assert sorted(os.listdir(tmp_path)) == BEGUN
    step = int(read_tensors(checkpoint)[1]["step"])
    assert dpm(*words, "--resume", "--steps", step + 1)[0] == 0


def test_a_disk_that_fills_up_while_training_spares_the_checkpoint(dpm, few_held_out, tmp_path, monkeypatch):
    saved = []

    def fill(_):
        saved.append(0)
        if len(saved) == 5:  # a checkpoint, config.json and log.jsonl to begin with, a checkpoint at step 2, and at 4
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(training, "RECORD_EVERY", 2)
    status, out, err = dpm("train", "swiss_roll", "--steps", 9, "--out", tmp_path)
    assert status == 2 and out == "" and sorted(os.listdir(tmp_path)) == BEGUN
    assert re.split(r"[\r\n]+", err.strip())[-1].startswith("dpm: cannot write") and "No space left" in err
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == "2"
    assert dpm("train", "swiss_roll", "--steps", 9, "--out", tmp_path, "--resume")[0] == 0


def test_a_place_that_cannot_be_written_is_noticed_before_the_work(dpm, tmp_path, monkeypatch):
    for work in ("dpm.cli.train.train", "dpm.reverse.sample"):
        monkeypatch.setattr(work, lambda *_, **options: pytest.fail("worked first"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    training, drawing = ["train", "swiss_roll"], ["sample", "heartbeat", "--setting", "best"]
    refused = [(training, out) for out in (tmp_path / "file", tmp_path / "file" / "x", "/proc/x")]
    refused += [(drawing, out) for out in (tmp_path / "folder.png", tmp_path / "file" / "x.png", "/proc/x.png")]
    for words, out in refused:
        status, _, err = dpm(*words, "--out", out)
        assert status == 2 and "cannot write" in err and err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_of_several_processes_one_speaks(dpm, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert dpm("evaluate", "swissroll") == (2, "", "")


def test_sample_draws_a_picture_of_possible_data(dpm, tmp_path):
    picture = tmp_path / "deep" / "roll.png"
    status, out, _ = dpm("sample", "swiss_roll", "--setting", "best", "-n", 50, "--out", picture, "--json")
    result = json.loads(out)
    assert status == 0 and out.count("\n") == 1 and result["n"] == 50 and -2 < result["mean_log_q_bits"] < 1
    assert result["provenance"]["seed"] == 0 and picture.read_bytes()[:4] == b"\x89PNG"


def test_samples_of_an_untrained_model_are_told_from_data(dpm, tmp_path):
    for name, number, most in (("swiss_roll", "mean_log_q_bits", -100), ("heartbeat", "possible_share", 0.1)):
        path = tmp_path / f"{name}.safetensors"
        write_tensors(path, build_model(EXPERIMENTS[name].settings["best"]).state_dict(), {})
        _, out, _ = dpm("sample", name, "--setting", "best", "--checkpoint", path, "-n", 50, "--T", 20, "--json")
        assert json.loads(out)[number] < most


def test_as_many_steps_as_the_model_has_are_its_own(dpm, tmp_path):
    drawn = []
    for name, T in (("a", []), ("b", ["--T", 40]), ("c", ["--T", 41])):
        path = tmp_path / f"{name}.safetensors"
        dpm("sample", "swiss_roll", "--setting", "best", "-n", 4, "--out", path, *T)
        drawn.append(read_tensors(path)[0]["x"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("trouble", "status", "said"),
    [
        (torch.OutOfMemoryError, 2, "smaller --micro-batch"),
        (BrokenPipeError, 1, ""),
        (KeyboardInterrupt, 130, "stopped"),
    ],
)
def test_trouble_is_one_line_at_most(dpm, monkeypatch, trouble, status, said):
    monkeypatch.setattr("dpm.cli.evaluate.choose_trained", lambda *_: (_ for _ in ()).throw(trouble()))
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    found, out, err = dpm("evaluate", "heartbeat")
    assert found == status and out == "" and said in err and err.count("\n") == bool(said)


def blocked(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "deeper"


def torn(tmp_path):
    path = tmp_path / "torn.safetensors"
    path.write_bytes(weights_path("swiss_roll", "paper").read_bytes()[:1000])
    return path


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def bomb(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(Bomb()))
    return path


MISTAKES = {
    "unknown experiment": (lambda tmp: ["evaluate", "swissroll"], "no experiment named 'swissroll'"),
    "unknown setting": (lambda tmp: ["train", "heartbeat", "--setting", "worst"], "no setting 'worst'"),
    "missing checkpoint": (lambda tmp: ["evaluate", "heartbeat", "--checkpoint", tmp / "no"], "no weights at"),
    "truncated checkpoint": (
        lambda tmp: ["sample", "swiss_roll", "--checkpoint", torn(tmp)],
        "not a whole safetensors",
    ),
    "pickle as checkpoint": (
        lambda tmp: ["evaluate", "swiss_roll", "--checkpoint", bomb(tmp)],
        "not a whole safetensors",
    ),
    "folder as checkpoint": (lambda tmp: ["sample", "swiss_roll", "--checkpoint", tmp], "is a folder"),
    "foreign checkpoint": (
        lambda tmp: ["evaluate", "heartbeat", "--checkpoint", weights_path("swiss_roll", "best")],
        "another experiment or setting",
    ),
    "no steps": (lambda tmp: ["train", "swiss_roll", "--steps", 0, "--out", tmp / "x"], "--steps 0"),
    "negative steps": (lambda tmp: ["train", "swiss_roll", "--steps", -3, "--out", tmp / "x"], "--steps -3"),
    "steps in words": (lambda tmp: ["train", "swiss_roll", "--steps", "many"], "invalid int value: 'many'"),
    "no such device": (lambda tmp: ["train", "swiss_roll", "--device", "cuda", "--out", tmp / "x"], "no CUDA device"),
    "unwritable folder": (lambda tmp: ["train", "swiss_roll", "--steps", 2, "--out", blocked(tmp)], "cannot write"),
    "unwritable picture": (lambda tmp: ["sample", "swiss_roll", "--out", blocked(tmp) / "x.png"], "cannot write"),
    "nothing to resume": (lambda tmp: ["train", "swiss_roll", "--resume", "--out", tmp / "x"], "no checkpoint at"),
    "two beginnings": (lambda tmp: ["train", "swiss_roll", "--resume", "--from", tmp / "x"], "not allowed with"),
    "nothing to start from": (lambda tmp: ["train", "swiss_roll", "--from", tmp / "x"], "no weights at"),
    "another's start": (
        lambda tmp: ["train", "swiss_roll", "--from", weights_path("swiss_roll", "best"), "--out", tmp / "x"],
        "another experiment or setting",
    ),
    "empty micro-batches": (
        lambda tmp: ["train", "swiss_roll", "--micro-batch", 0, "--out", tmp / "x"],
        "--micro-batch 0",
    ),
    "unknown device": (lambda tmp: ["sample", "swiss_roll", "--device", "gpu"], "invalid choice: 'gpu'"),
    "negative seed": (lambda tmp: ["evaluate", "swiss_roll", "--seed", -1], "no whole number from 0"),
    "endless seed": (
        lambda tmp: ["train", "swiss_roll", "--seed", 10**30, "--out", tmp / "x"],
        "no whole number from 0",
    ),
    "no samples": (lambda tmp: ["sample", "heartbeat", "-n", 0], "-n 0"),
    "endless samples": (lambda tmp: ["sample", "heartbeat", "-n", 10**12], "give 1 to 1000000"),
    "endless steps": (lambda tmp: ["optimum", "heartbeat", "--T", 10**12], "to 100000"),
    "one step": (lambda tmp: ["optimum", "heartbeat", "--T", 1], "--T 1"),
    "unknown kernel": (
        lambda tmp: ["optimum", "heartbeat", "--kernel", "melting"],
        "no kernel named 'melting'; there are flipping, masking",
    ),
    "a kernel of a roll": (lambda tmp: ["optimum", "swiss_roll", "--kernel", "masking"], "not for swiss_roll"),
    "unknown r": (lambda tmp: ["denoise", "digits", "--r", "fixed"], "there are constant, annealed, diffused"),
    "a one in every bin": (lambda tmp: ["optimum", "heartbeat", "--period", 1], "--period 1"),
    "a period of a roll": (lambda tmp: ["optimum", "swiss_roll", "--period", 3], "not for swiss_roll"),
    "no optimum": (lambda tmp: ["optimum", "digits"], "is not computed; it is for heartbeat, swiss_roll"),
    "no weights": (lambda tmp: ["evaluate", "digits", "--checkpoint", tmp / "none"], "no weights at"),
    "weights not shipped": (lambda tmp: ["sample", "bark"], "only of best"),
    "picture of no kind": (
        lambda tmp: ["sample", "heartbeat", "--out", tmp / "x.jpg"],
        "no .png or .safetensors or .npy file",
    ),
    "no steps to draw by": (
        lambda tmp: ["sample", "swiss_roll", "--setting", "best", "--T", 0, "--out", tmp / "x" / "y.png"],
        "--T 0",
    ),
    "no noise": (lambda tmp: ["denoise", "digits", "--variance", "-1"], "above 0"),
    "noise of no variance": (lambda tmp: ["denoise", "digits", "--variance", "0"], "above 0"),
    "endless noise": (lambda tmp: ["denoise", "digits", "--variance", "inf"], "at most a million"),
    "no grey pictures": (lambda tmp: ["baselines", "cifar10"], "no grey pictures"),
    "samples of leaves": (lambda tmp: ["baselines", "dead_leaves", "-n", 5], "leave out -n and --T"),
    "unwritable table": (
        lambda tmp: ["baselines", "digits", "--setting", "best", "--save", blocked(tmp) / "x.json"],
        "cannot write",
    ),
    "no pictures": (lambda tmp: ["denoise", "swiss_roll", "--setting", "best"], "no pictures"),
    "steps of its own": (lambda tmp: ["sample", "heartbeat", "--T", 9], "leave out --T"),
    "more timesteps than places": (lambda tmp: ["schedule", "swiss_roll", "--T", 301], "take 300 or fewer"),
    "schedule of bits": (lambda tmp: ["schedule", "heartbeat"], "made of bits"),
    "no command": (lambda tmp: [], "COMMAND"),
    "unknown command": (lambda tmp: ["dance"], "invalid choice: 'dance'"),
    "unknown option": (lambda tmp: ["list", "--loud"], "unrecognized arguments: --loud"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_status_2(mistake, dpm, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words, expected = MISTAKES[mistake]
    status, out, err = dpm(*words(tmp_path))
    assert status == 2 and out == ""
    assert expected in err and err.startswith("dpm: ") and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "x").exists()


def test_defaults_of_the_command_line():
    words = lambda *w: vars(build_parser().parse_args([*w]))  # noqa: E731
    assert words("evaluate", "x")["setting"] == words("train", "x")["setting"] == "paper"
    assert words("sample", "x")["n"] == words("denoise", "x")["n"] == 16 and words("baselines", "x")["n"] == 10_000
    assert words("denoise", "x")["r"] == "constant" and words("denoise", "x")["variance"] == 1
    assert words("inpaint", "x")["hole"] == 4 and words("sample", "x")["seed"] == 0
    score = words("score", "x", "--data", "y")
    assert (score["n"], score["levels"], score["clip"], score["final_step"]) == (100, 256, False, "discretized")


@pytest.mark.parametrize(
    ("words", "low", "high"),
    [
        (["evaluate", "x", "--seed"], 0, 2**32 - 1),
        (["train", "x", "--sample-every"], 1, 10**9),
        (["train", "--data", "x", "--size"], 4, 1024),
        (["train", "--data", "x", "--T"], 2, 100_000),
        (["train", "--data", "x", "--batch"], 1, 10**6),
    ],
)
def test_a_whole_number_may_be_either_end_of_its_range_and_none_beyond(words, low, high):
    name = words[-1].strip("-").replace("-", "_")
    for number in (low, high):
        assert vars(build_parser().parse_args([*words, str(number)]))[name] == number
    for number in (low - 1, high + 1):
        with pytest.raises(UserError, match=f"no whole number from {low} to {high}"):
            build_parser().parse_args([*words, str(number)])


def test_one_step_with_one_sample_at_once_is_enough():
    check_counts(1, 1)
    check_counts(1, None)


def test_up_to_a_million_samples_are_drawn(dpm, monkeypatch):
    monkeypatch.setattr("dpm.cli.sample.choose_trained", lambda _: (_ for _ in ()).throw(UserError("chosen")))
    for n, said in ((0, "-n 0"), (1, "chosen"), (10**6, "chosen"), (10**6 + 1, "-n 1000001")):
        assert said in dpm("sample", "heartbeat", "-n", n)[2]


def test_the_help_of_training_states_its_defaults(dpm):
    """They are written out there, for the parser imports nothing that knows them."""
    text = " ".join(dpm("train", "--help")[1].split())
    pictures, points, bits = (next(iter(RECIPES[kind].items())) for kind in ("pictures", "points", "bits"))
    assert (pictures[0], points[0], bits[0]) == ("unet", "mlp", "mlp")
    for name in ("T", "batch", "learning_rate"):
        values = [getattr(recipe, name) for _, recipe in (pictures, points, bits)]
        assert "by default the network's: of unet {}, of mlp {} for points and {} for bits".format(*values) in text
    assert f"or {MOST_PASSES} passes over the training samples" in text
    assert f"one every {training.RECORD_EVERY} steps" in text
    assert "unet (the default)" in text and "mlp (the default)" in text and "paper (as published, the default)" in text


def test_old_words_of_recorded_commands_are_understood(dpm, digits):
    """Settings `ours` and `cpu`, `--at-once`, and r by its old names, each reported under its new one."""
    words = lambda *w: vars(build_parser().parse_args([*w]))  # noqa: E731
    for command in ("train", "evaluate", "sample", "baselines", "denoise", "inpaint"):
        assert words(command, "x", "--setting", "ours")["setting"] == "best"
        assert words(command, "x", "--setting", "cpu")["setting"] == "best"
        assert words(command, "x", "--setting", "paper")["setting"] == "paper"
    assert words("train", "x", "--at-once", "30") == words("train", "x", "--micro-batch", "30")
    assert words("train", "x", "--at-once", "30")["micro_batch"] == 30
    name, _, _, *rest = digits
    drawn = {}
    for r, setting in (("fading", "ours"), ("annealed", "best"), ("carried", "cpu"), ("diffused", "best")):
        status, out, _ = dpm("denoise", name, "--setting", setting, *rest, "-n", 2, "--r", r)
        result = json.loads(out)
        assert status == 0 and result.pop("provenance") and result["setting"] == "best"
        drawn[r] = result
    assert drawn["fading"] == drawn["annealed"] and drawn["annealed"]["r"] == "annealed"
    assert drawn["carried"] == drawn["diffused"] and drawn["diffused"]["r"] == "diffused"


def loaded_by(*words):
    """What is printed by a process of its own that runs Python words, and the top-level modules loaded at its end."""
    code = "import atexit, sys; atexit.register(lambda: print(chr(10) + ' '.join(sys.modules), file=sys.stderr)); "
    ran = subprocess.run([sys.executable, "-c", code + words[0], *words[1:]], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, {name.split(".")[0] for name in ran.stderr.splitlines()[-1].split()}


PLOTTING = {"matplotlib", "seaborn", "PIL", "IPython", "ipywidgets"}


def test_import_dpm_loads_neither_torch_nor_plotting():
    _, modules = loaded_by("import dpm")
    assert "dpm" in modules and not modules & (PLOTTING | {"torch"})


def test_help_loads_no_torch():
    out, modules = loaded_by("from dpm.cli.main import main; main()", "--help")
    assert "inpaint" in out and "argparse" in modules and not modules & (PLOTTING | {"torch", "numpy"})
    out, modules = loaded_by("from dpm.cli.main import main; main()", "train", "--help")
    assert "--micro-batch" in out and "torch" not in modules


def test_list_loads_no_plotting():
    out, modules = loaded_by("from dpm.cli.main import main; main()", "list")
    assert "dead_leaves" in out and not modules & {"matplotlib", "seaborn", "IPython", "ipywidgets"}


def test_the_hole_is_a_square_of_noise_in_the_middle(dpm, digits, tmp_path):
    assert dpm("inpaint", *digits, "-n", 2, "--out", tmp_path / "r.safetensors")[0] == 0
    x, missing = read_tensors(tmp_path / "r.safetensors")[0], torch.zeros(8, 8).bool()
    missing[2:6, 2:6] = True
    assert torch.equal((x["seen"] != x["x0"]).all(0)[0], missing) and 0.5 < float(x["seen"][..., missing].std()) < 1.5
    assert dpm("inpaint", *digits, "--hole", 8)[0] == 2  # as large as the picture


def test_the_hole_of_an_oblong_picture_is_in_its_middle_too(dpm, digits, tmp_path, monkeypatch):
    """Of 8×12 pixels: rows 2 to 5, columns 4 to 7; a hole of 8 has no rest above it, though there is one beside."""
    whole = replace(EXPERIMENTS["digits"], whole_images=lambda generator: torch.zeros(1, 1, 8, 12))
    monkeypatch.setitem(EXPERIMENTS, "digits", whole)
    assert dpm("inpaint", *digits, "--out", tmp_path / "r.safetensors")[0] == 0
    missing = torch.zeros(8, 12).bool()
    missing[2:6, 4:8] = True
    assert torch.equal(read_tensors(tmp_path / "r.safetensors")[0]["seen"][0, 0] != 0, missing)
    status, _, err = dpm("inpaint", *digits, "--hole", 8)
    assert status == 2 and "--hole 8 does not fit in 8×12; give 1 to 7" in err


def test_pictures_are_drawn_in_single_precision_and_all_else_in_double(monkeypatch):
    monkeypatch.setattr(reverse, "sample", lambda p, q, like, generator: like)
    for name, dtype in (("digits", torch.float32), ("swiss_roll", torch.float64), ("heartbeat", torch.float64)):
        model = build_model(EXPERIMENTS[name].settings["best"])
        assert draw_samples(EXPERIMENTS[name], model, model.forward_process(), 2, None).dtype == dtype


def test_levels_that_a_byte_does_not_hold_are_cut():
    x = torch.tensor([-1e3, 1e3]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert to_data(EXPERIMENTS["digits"], x).flatten(1).tolist() == [[0] * 64, [255] * 64]


def test_whole_pictures_are_restored_where_there_are_some(dpm, digits, monkeypatch):
    whole = replace(EXPERIMENTS["digits"], whole_images=lambda generator: torch.zeros(1, 1, 12, 12))
    monkeypatch.setitem(EXPERIMENTS, "digits", whole)
    assert json.loads(dpm("denoise", *digits, "-n", 2)[1])["n"] == 1


def test_the_rival_of_a_schedule_is_the_best_one_linear_in_log_snr(dpm, monkeypatch):
    """With log of the last noise variance in place of K*: that of the schedule given, less that of the end at 0.95."""
    beta = torch.tensor([0, 1e-4, 0.1, 0.2], dtype=torch.float64)
    monkeypatch.setattr("dpm.cli.ideal.best_schedule", lambda *_: beta)
    log_noise = lambda p, q, *_: q.noise_variance[-1].log() * math.log(2) * torch.ones(2)  # noqa: E731
    monkeypatch.setattr("dpm.cli.ideal.ideal_K", log_noise)
    found = json.loads(dpm("schedule", "swiss_roll", "--T", 3, "--json")[1])["over_best_log_snr_linear_bits"]
    assert found == pytest.approx(math.log(1 - (1 - 1e-4) * 0.9 * 0.8) - math.log(0.95))


def test_a_schedule_begins_at_the_beta_1_of_its_experiment(dpm, monkeypatch):
    """The best one and its rivals, for a roll whose forward process has another β_1."""
    seen = []
    monkeypatch.setattr("dpm.cli.ideal.best_schedule", lambda p, T, beta_1, *_: log_snr_linear(T, beta_1, 0.9))
    monkeypatch.setattr("dpm.cli.ideal.ideal_K", lambda p, q, *_: seen.append(float(q.beta[1])) or torch.ones(2))
    roll = replace(EXPERIMENTS["swiss_roll"], forward_process=lambda T: GaussianForward(log_snr_linear(T, 0.03, 0.9)))
    monkeypatch.setitem(EXPERIMENTS, "swiss_roll", roll)
    assert dpm("schedule", "swiss_roll", "--T", 3, "--json")[0] == 0
    assert len(seen) > 2 and seen == pytest.approx([0.03] * len(seen))


def test_progress_on_pictures_is_in_bits_per_pixel(dpm, tmp_path, monkeypatch):
    def one(*_, **options):
        yield Record(1, 64 * math.log(2))
        raise KeyboardInterrupt

    monkeypatch.setattr("dpm.cli.train.train", one)
    status, _, err = dpm("train", "digits", "--setting", "best", "--device", "cpu", "--out", tmp_path / "x")
    assert status == 130 and "K -1.000 bits/pixel" in err


def test_evaluate_hands_on_its_seed(dpm, monkeypatch):
    monkeypatch.setattr("dpm.cli.evaluate.evaluate_experiment", lambda experiment, model, seed=0: {"seed": seed})
    assert json.loads(dpm("evaluate", "heartbeat", "--seed", 7, "--device", "cpu", "--json")[1])["seed"] == 7


def test_restoring_hands_on_what_was_seen_of_held_out_pictures(dpm, digits, monkeypatch):
    given = []

    def sampled(p, q, r, x0, generator, r_schedule):
        given.append((r, x0, r_schedule))
        return x0, None

    monkeypatch.setattr("dpm.cli.sample.sample_posterior", sampled)
    data = load_digits()
    for name in ("constant", "annealed", "diffused"):
        result = json.loads(dpm("denoise", *digits, "-n", 3, "--variance", 0.25, "--r", name)[1])
        r, x0, r_schedule = given.pop()
        assert r_schedule is getattr(posterior, name) and torch.equal(data.to_levels(x0), data.test[:3].long())
        assert r.variance.unique().tolist() == [0.25] and result["mse_restored"] == 0
        assert result["mse_seen"] == pytest.approx(float((r.y - x0).square().mean())) == pytest.approx(0.25, rel=0.3)


def test_what_is_said_of_samples_is_true_of_the_file(dpm, tmp_path):
    """The share of possible heartbeats by looking each up; the mean log q(x⁰) of the roll from the ideal model."""
    for name, T in (("heartbeat", 200), ("swiss_roll", 2)):
        words = ["sample", name, "--setting", "best", "-n", 50, "--T", T, "--out", tmp_path / f"{name}.safetensors"]
        result, x = json.loads(dpm(*words, "--json")[1]), read_tensors(tmp_path / f"{name}.safetensors")[0]["x"]
        assert x.dtype == torch.float16 and x.shape[0] == result["n"] == 50 and result["T"] == T
        if name == "heartbeat":
            possible = (x[:, None] == heartbeat_sequences()).all(2).any(1).double()
            assert 0.5 < result["possible_share"] == pytest.approx(float(possible.mean()))
        else:
            mean = float(to_bits(EXPERIMENTS[name].ideal.log_prob(x.double())).mean())
            assert result["mean_log_q_bits"] == pytest.approx(mean, rel=0.05) and mean < -20


def test_optimum_of_the_roll_is_of_a_thousand_fresh_samples_or_more(dpm, monkeypatch):
    """−H(X⁰) in bits from the very samples of K*; the more steps, the fewer of them."""
    monkeypatch.setattr("dpm.cli.ideal.ideal_K", lambda p, q, x0, generator: torch.full((3,), float(len(x0))))
    roll = EXPERIMENTS["swiss_roll"]
    for T, n in ((300, 2_000), (3_000, 1_000)):
        result = json.loads(dpm("optimum", "swiss_roll", "--T", T, "--seed", 4, "--json")[1])
        log_q = roll.ideal.log_prob(roll.draw(n, torch.Generator().manual_seed(4))) / math.log(2)
        assert result["K_optimum_bits"] == pytest.approx(n / math.log(2))
        found = (result["minus_entropy_bits"], result["minus_entropy_stderr_bits"])
        assert found == pytest.approx(mean_and_stderr(log_q))


def test_a_schedule_and_its_rivals_meet_the_same_noise_on_fresh_data(dpm, monkeypatch):
    """With K* that varies over samples alone, the gain has no error."""
    chosen_on, measured_on, noise = [], [], []

    def chosen(p, T, beta_1, x0, generator):
        chosen_on.append(x0)
        return torch.tensor([0, 1e-4, 0.1, 0.2], dtype=torch.float64)

    def K(p, q, x0, generator):
        measured_on.append(x0)
        noise.append(float(torch.rand(1, generator=generator)))
        return x0[:, 0] + q.noise_variance[-1]

    monkeypatch.setattr("dpm.cli.ideal.best_schedule", chosen)
    monkeypatch.setattr("dpm.cli.ideal.ideal_K", K)
    result = json.loads(dpm("schedule", "swiss_roll", "--T", 3, "--json")[1])
    assert len(noise) == 13 and len(set(noise)) == 1
    assert all(x0 is measured_on[0] for x0 in measured_on) and len(measured_on[0]) == 4_000
    assert not torch.isin(measured_on[0], chosen_on[0]).any()
    assert result["over_best_log_snr_linear_stderr_bits"] < 1e-9 < 0.01 < result["K_optimum_stderr_bits"]


def test_training_hands_on_its_options_and_reports_seed_0(dpm, few_held_out, tmp_path, monkeypatch):
    """The path is the seed's, the held-out data are the same after every run."""
    experiment = EXPERIMENTS["swiss_roll"]
    config = replace(experiment.settings["paper"], precision=torch.bfloat16, loss=simple_loss)
    monkeypatch.setitem(EXPERIMENTS, "swiss_roll", replace(experiment, settings={"paper": config}))
    given, rate = [], []

    def unchanged(state, draw, batch, n_steps, learning_rate, checkpoint, *, loss, precision, micro_batch):
        given.append((state, batch, n_steps, learning_rate, loss, precision, micro_batch))
        yield Record(n_steps, 1.0)

    monkeypatch.setattr("dpm.cli.train.train", unchanged)
    monkeypatch.setattr("dpm.cli.train.choose_precision", lambda wanted, device: wanted)
    monkeypatch.setattr("dpm.cli.train.throughput", lambda *words: rate.extend(words) or {})
    words = ["--steps", 7, "--seed", 5, "--micro-batch", 30, "--device", "cpu", "--out", tmp_path, "--json"]
    result = json.loads(dpm("train", "swiss_roll", *words)[1])
    ((state, *options),) = given
    assert (
        options == [config.batch, 7, config.learning_rate, simple_loss, torch.bfloat16, 30]
        and rate[2] == 7 * config.batch
    )
    assert state.generator.initial_seed() == 5 and result["provenance"]["precision"] == "torch.bfloat16"
    fresh = build_model(config, 5).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in state.model.state_dict().items())
    row = evaluate_experiment(experiment, load_model("swiss_roll", "paper", tmp_path / "weights.safetensors"), seed=0)
    assert result["L_null_bits"] == row["L_null_bits"] and result["K_bits"] == pytest.approx(row["K_bits"])


def test_the_weights_of_a_run_are_the_averaged_ones_in_16_bits(dpm, few_held_out, tmp_path):
    assert dpm("train", "swiss_roll", "--steps", 15, "--device", "cpu", "--out", tmp_path)[0] == 0
    (weights, _), (state, _) = (read_tensors(tmp_path / f"{x}.safetensors") for x in ("weights", "checkpoint"))
    for name, value in weights.items():
        averaged = state[f"ema.module.{name}"]
        assert torch.equal(value, averaged.half() if averaged.dtype == torch.float32 else averaged)
    assert {value.dtype for value in weights.values()} == {torch.float16, torch.float64}
    assert any(not torch.equal(state[f"ema.module.{name}"], state[f"model.{name}"]) for name in weights)


def test_baselines_of_mnist_get_the_digits_held_back_and_the_steps_asked_for(dpm, monkeypatch):
    given = []
    images, validation = load_digits(), torch.zeros(2, 1, 28, 28)
    monkeypatch.setitem(EXPERIMENTS, "mnist", replace(EXPERIMENTS["mnist"], images=lambda device: images))
    monkeypatch.setattr("dpm.cli.baselines.load_mnist_validation", lambda device: validation)
    monkeypatch.setattr("dpm.cli.baselines.parzen_table", lambda *words: given.extend(words) or {})
    assert dpm("baselines", "mnist", "--setting", "best", "-n", 9, "--T", 5, "--seed", 3, "--device", "cpu")[0] == 0
    assert given[0] is images and given[1] is validation and (given[3].T, given[4]) == (5, 9)
    assert given[5].initial_seed() == 3
    status, _, err = dpm("baselines", "digits", "--setting", "best", "--T", 5)
    assert status == 2 and "leave out -n and --T" in err


def test_the_table_of_experiments_has_the_paper_s_numbers_in_their_columns(dpm):
    lines = dpm("list")[1].splitlines()
    assert lines[0].split() == ["experiment", "setting", "paper", "K", "K-L_null", "unit", "weights"]
    assert ["heartbeat", "paper", "-2.414", "12.024", "bits/seq", "shipped"] in [line.split() for line in lines]
    assert "cifar10 paper 5.4 11.5 bits/pixel train them" in [" ".join(line.split()) for line in lines]


def test_a_result_is_a_line_per_number_of_four_digits(capsys):
    print_result({"K_bits": -2.34567, "T": 40, "paper": {"K": 2.35}, "unit": "bits"}, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["K_bits", "-2.3457"], ["T", "40"], ["paper", "K", "2.3500"], ["unit", "bits"]]


def test_a_fault_of_the_program_is_not_taken_for_the_user_s(dpm, monkeypatch):
    monkeypatch.setattr("dpm.cli.evaluate.choose_trained", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        dpm("evaluate", "heartbeat")


@pytest.mark.parametrize(
    ("words", "asked", "expected"),
    [
        (["evaluate", "heartbeat"], None, [1]),
        (["optimum", "heartbeat", "--T", 2], None, [1]),
        (["evaluate", "heartbeat"], "2", []),
        (["evaluate", "digits", "--setting", "best"], None, []),
    ],
)
def test_points_and_bits_take_one_thread_unless_the_user_asks(dpm, monkeypatch, words, asked, expected):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("dpm.cli.evaluate.evaluate_experiment", lambda *_: {})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert dpm(*words)[0] == 0 and chosen == expected


@pytest.mark.parametrize("name", ["x.npy", "x.png", "x.safetensors"])
def test_samples_that_are_not_finite_are_not_written(dpm, monkeypatch, tmp_path, name):
    monkeypatch.setattr(reverse, "sample", lambda p, q, like, generator: torch.full_like(like, torch.nan))
    status, out, err = dpm("sample", "swiss_roll", "-n", 5, "--out", tmp_path / name)
    assert status == 2 and out == "" and "samples of swiss_roll --setting paper: x holds values that are not" in err
    weights = weights_path("swiss_roll", "paper")
    assert f"{weights}: x holds" in dpm("sample", "swiss_roll", "--checkpoint", weights, "-n", 5)[2]
    assert not list(tmp_path.iterdir())
