"""Files that are broken, foreign or made to mislead: one clear line each, exit status 2, and nothing is written."""

import json
import math
import os
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dpm.errors import UserError
from dpm.experiments import shipped
from dpm.experiments.registry import EXPERIMENTS, build_model
from dpm.experiments.shipped import DATA, weights_path
from dpm.files import check_finite, read_json, read_tensors, to_json, write_json, write_tensors
from dpm.training import TrainState, train

NESTED = "[" * 5_000 + "]" * 5_000
SHIPPED = weights_path("swiss_roll", "best")


def header(text, length=None, body=b""):
    """A safetensors file of any header, and of any length that it claims to have."""
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


BYTES = {
    "empty": b"",
    "a torn length": b"\x08\x00",
    "zeros": bytes(1_000),
    "noise": bytes(range(256)) * 10,
    "a pickle": pickle.dumps({"a": 1}),
    "a text": b"weights\n",
    "torn": SHIPPED.read_bytes()[:10_000],
    "without its last byte": SHIPPED.read_bytes()[:-1],
    "with a byte too many": SHIPPED.read_bytes() + b"x",
    "a header of 2^64 bytes": header("{}", 2**64 - 1),
    "a header of a gigabyte": header("{}", 10**9),
    "a header that is longer than the file": header("{}", 50),
    "no JSON": header("{a}"),
    "a list": header("[]"),
    "a nested header": header(NESTED),
    "a nested entry": header(f'{{"a": {NESTED}}}'),
    "tensors beyond the file": header(entry(offsets=(0, 8))),
    "tensors before the file": header(entry(offsets=(-8, 0)), body=bytes(8)),
    "tensors that overlap": header(entry()[:-1] + ', "b": ' + entry()[6:], body=bytes(8)),
    "an endless shape": header(entry(shape=(2**62, 2**62)), body=bytes(8)),
    "a negative shape": header(entry(shape=(-2,)), body=bytes(8)),
    "an unknown type": header(entry(dtype="F99"), body=bytes(8)),
    "nested metadata": header(json.dumps({"__metadata__": {"metadata": NESTED}})),
    "metadata of numbers": header(json.dumps({"__metadata__": {"metadata": '{"step": [1]}'}})),
    "metadata that are a list": header(json.dumps({"__metadata__": {"metadata": "[]"}})),
    "metadata that are no JSON": header(json.dumps({"__metadata__": {"metadata": "{"}})),
}


def picture(path):
    Image.new("RGB", (8, 8)).save(path, "JPEG")


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))


PLACES = {
    "a picture": picture,
    "an archive": archive,
    "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "another experiment's": lambda path: shutil.copy(weights_path("heartbeat", "best"), path),
    "another setting's": lambda path: shutil.copy(weights_path("swiss_roll", "paper"), path),
    "a record": lambda path: shutil.copy(DATA / "results" / "swiss_roll-best.json", path),
    "samples": lambda path: shutil.copy(DATA / "samples" / "digits-sample.safetensors", path),
}


def spoil(name, change):
    """Write tensors, of which one is changed."""
    return lambda path, tensors, metadata: save(path, tensors | {name: change(tensors[name])}, metadata)


def save(path, tensors, metadata):
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"metadata": json.dumps(metadata)})


def put(value, place=-1):
    """Change one entry, the last if no other is named."""

    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[place] = value
        return tensor

    return change


WEIGHT = "p.network.mlp.0.weight"
BETA = "schedule.beta"
TENSORS = {
    "nan": spoil(WEIGHT, put(math.nan)),
    "infinity": spoil(WEIGHT, put(math.inf)),
    "whole numbers": spoil(WEIGHT, lambda x: x.long()),
    "small whole numbers": spoil(WEIGHT, lambda x: x.to(torch.int8)),
    "booleans": spoil(WEIGHT, lambda x: x > 0),
    "complex numbers": spoil(WEIGHT, lambda x: x.to(torch.complex64)),
    "eight bits": spoil(WEIGHT, lambda x: x.to(torch.float8_e4m3fn)),
    "bfloat16": spoil(WEIGHT, lambda x: x.bfloat16()),
    "float64": spoil(WEIGHT, lambda x: x.double()),
    "none of its entries": spoil(WEIGHT, lambda x: x[:0]),
    "transposed": spoil(WEIGHT, lambda x: x.T),
    "another shape": spoil(WEIGHT, lambda x: x.flatten()),
    "a number for a tensor": spoil(WEIGHT, lambda x: x[0, 0]),
    "one tensor too many": lambda path, tensors, metadata: save(path, tensors | {"x": torch.zeros(2)}, metadata),
    "one tensor too few": lambda path, tensors, metadata: save(path, {BETA: tensors[BETA]}, metadata),
    "no tensor": lambda path, tensors, metadata: save(path, {}, metadata),
    "an old name": lambda path, tensors, metadata: save(path, {f"_{n}": x for n, x in tensors.items()}, metadata),
    "metadata of another": lambda path, tensors, _: save(path, tensors, {"experiment": "heartbeat"}),
    "a schedule in half precision": spoil(BETA, lambda beta: beta.half()),
    "a schedule in single precision": spoil(BETA, lambda beta: beta.float()),
    "a schedule of nan": spoil(BETA, put(math.nan)),
    "a schedule above 1": spoil(BETA, put(1.5)),
    "a schedule of 1 too early": spoil(BETA, put(1.0, place=20)),
    "a schedule below 0": spoil(BETA, put(-0.1)),
    "a schedule of 0": spoil(BETA, put(0.0)),
    "a schedule that does not start at 0": spoil(BETA, put(0.1, place=0)),
    "a shorter schedule": spoil(BETA, lambda beta: beta[:-1]),
}


def write_hostile(kind, path, tensors, metadata):
    if kind in BYTES:
        path.write_bytes(BYTES[kind])
    elif kind in PLACES:
        PLACES[kind](path)
    else:
        TENSORS[kind](path, tensors, metadata)


def check_refused(ran):
    """One line, and so no traceback; no result."""
    status, out, err = ran
    assert (status, out) == (2, "") and err.startswith("dpm: ") and err.count("\n") == 1 and len(err) < 600, err


@pytest.mark.parametrize("kind", [*BYTES, *PLACES, *TENSORS])
def test_hostile_weights_are_refused(kind, dpm, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_hostile(kind, path, *read_tensors(SHIPPED))
    roll = ["swiss_roll", "--setting", "best"]
    for words in (
        ["evaluate", *roll, "--checkpoint", path, "--json"],
        ["sample", *roll, "--checkpoint", path, "--out", tmp_path / "deep" / "x.png"],
        ["train", *roll, "--from", path, "--out", tmp_path / "run"],
    ):
        check_refused(dpm(*words))
    assert set(os.listdir(tmp_path)) <= {path.name}


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_a_learned_schedule_that_has_run_to_an_end_is_refused(logit, dpm, tmp_path):
    """β is 0 or 1 in float64, though its logit is finite."""
    tensors, metadata = read_tensors(weights_path("swiss_roll", "paper"))
    spoil("schedule.logits", put(logit, place=3))(tmp_path / "x", tensors, metadata)
    check_refused(dpm("evaluate", "swiss_roll", "--checkpoint", tmp_path / "x"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The tensors and metadata of a run of the roll that has done one of ten steps."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.safetensors"
    config = EXPERIMENTS["swiss_roll"].settings["best"]
    about = {"experiment": "swiss_roll", "setting": "best", "seed": "0", "steps": "10"}
    state = TrainState(build_model(config), torch.device("cpu"), 0, about)
    list(train(state, EXPERIMENTS["swiss_roll"].draw, 20, 1, 1e-3, path))
    return read_tensors(path)


def say(**words):
    """Change the metadata of a checkpoint."""
    return lambda path, tensors, metadata: save(path, tensors, metadata | words)


def leave_out(prefix):
    return lambda path, tensors, metadata: save(
        path, {name: x for name, x in tensors.items() if not name.startswith(prefix)}, metadata
    )


CHECKPOINTS = {
    "a step in words": say(step="one"),
    "a step below 0": say(step="-1"),
    "a step that is not finite": say(step="nan"),
    "an endless step": say(step="9" * 5_000),
    "endless seconds": say(seconds="inf"),
    "seconds below 0": say(seconds="-3"),
    "no seconds": say(seconds=""),
    "steps that took no time": say(seconds="0.0"),
    "another seed": say(seed="1"),
    "another setting": say(setting="paper"),
    "another experiment": say(experiment="heartbeat"),
    "a step that the optimiser has not done": say(step="0"),
    "no generator": leave_out("generator"),
    "a generator of zeros": spoil("generator", torch.zeros_like),
    "a torn generator": spoil("generator", lambda x: x[:100]),
    "a generator of floats": spoil("generator", lambda x: x.float()),
    "an average of fewer than no steps": spoil("ema.n_averaged", lambda x: x - 10),
    "an average of later steps": spoil("ema.n_averaged", lambda x: x + 10),
    "no average": leave_out("ema."),
    "no weights": leave_out("model."),
    "no moments": leave_out("optimiser."),
    "one moment too few": leave_out("optimiser.3.exp_avg_sq"),
    "a moment of no weight": lambda path, tensors, metadata: save(
        path, tensors | {"optimiser.99.step": torch.ones(())}, metadata
    ),
    "a moment without a number": lambda path, tensors, metadata: save(
        path, tensors | {"optimiser.x.y.z": torch.ones(())}, metadata
    ),
    "a moment that is not finite": spoil("optimiser.1.exp_avg", put(math.inf)),
    "a moment of another shape": spoil("optimiser.1.exp_avg", lambda x: x[:1]),
    "weights that are not finite": spoil(f"model.{WEIGHT}", put(math.nan)),
    "an average that is not finite": spoil(f"ema.module.{WEIGHT}", put(math.nan)),
    "a schedule above 1": spoil(f"model.{BETA}", put(1.5)),
    "an averaged schedule above 1": spoil(f"ema.module.{BETA}", put(1.5)),
}


@pytest.mark.parametrize("kind", [*BYTES, *PLACES, *CHECKPOINTS])
def test_hostile_checkpoints_are_not_resumed(kind, dpm, checkpoint, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    if kind in CHECKPOINTS:
        CHECKPOINTS[kind](path, *checkpoint)
    else:
        write_hostile(kind, path, *checkpoint)
    before = path.read_bytes() if path.is_file() else None
    check_refused(dpm("train", "swiss_roll", "--setting", "best", "--steps", 10, "--out", tmp_path, "--resume"))
    assert set(os.listdir(tmp_path)) <= {path.name, ".lock"}
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("kind", [*BYTES, "a picture", "a folder", "a pipe", "a device", "samples", "a step in words"])
def test_a_new_run_does_not_overwrite_what_it_cannot_read(kind, dpm, checkpoint, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    write_hostile(kind, path, *checkpoint) if kind not in CHECKPOINTS else CHECKPOINTS[kind](path, *checkpoint)
    check_refused(dpm("train", "swiss_roll", "--setting", "best", "--steps", 10, "--out", tmp_path))
    assert set(os.listdir(tmp_path)) <= {path.name, ".lock"}


def test_the_checkpoint_that_others_spoil_is_sound(dpm, checkpoint, few_held_out, tmp_path):
    save(tmp_path / "checkpoint.safetensors", *checkpoint)
    words = ["--setting", "best", "--steps", 2, "--out", tmp_path, "--resume"]
    assert dpm("train", "swiss_roll", *words)[0] == 0


RECORDS = {
    "nothing": None,
    "empty": b"",
    "torn": b'{"beta": [0.0, 0.1',
    "a list": b"[0.0, 0.1, 0.2]",
    "nested": NESTED.encode(),
    "bytes": b"\xff\xfe\x00",
    "no schedule": b"{}",
    "words": b'{"beta": ["0", "0.1", "0.2"]}',
    "booleans": b'{"beta": [false, true, true]}',
    "lists": b'{"beta": [[0.0], [0.1], [0.2]]}',
    "nan": b'{"beta": [0.0, NaN, 0.2]}',
    "infinity": b'{"beta": [0.0, 0.1, 1e999]}',
    "above 1": b'{"beta": [0.0, 0.1, 1.2]}',
    "not from 0": b'{"beta": [0.1, 0.1, 0.2]}',
    "another length": b'{"beta": [0.0, 0.1, 0.2]}',
    "no steps": b'{"beta": [0.0]}',
}


@pytest.mark.parametrize("kind", RECORDS)
def test_hostile_records_are_refused(kind, dpm, tmp_path, monkeypatch):
    shutil.copytree(DATA / "weights", tmp_path / "weights")
    (tmp_path / "schedules").mkdir()
    if RECORDS[kind] is not None:
        (tmp_path / "schedules" / "swiss_roll-best.json").write_bytes(RECORDS[kind])
    monkeypatch.setattr(shipped, "DATA", tmp_path)
    check_refused(dpm("sample", "swiss_roll", "--setting", "best", "-n", 2))


@pytest.fixture
def enormous(tmp_path):
    """Weights that are finite, as are those of a network whose outputs are not."""

    def write(name):
        path = tmp_path / f"{name}.safetensors"
        tensors = build_model(EXPERIMENTS[name].settings["best"]).state_dict()
        networks = {key: torch.full_like(x, 3e38) for key, x in tensors.items() if not key.startswith("schedule")}
        write_tensors(path, tensors | networks, {})
        return [name, "--setting", "best", "--checkpoint", path]

    return write


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_bound_that_is_not_finite_is_named_and_not_printed(form, dpm, enormous, few_held_out):
    ran = dpm("evaluate", *enormous("swiss_roll"), *form)
    check_refused(ran)
    assert "K_bits" in ran[2] and "parts_bits.kl" in ran[2] and "entropy_prior" not in ran[2]


def test_samples_that_are_not_finite_are_not_written(dpm, enormous, few_held_out, tmp_path):
    roll, digits = (enormous(name) for name in ("swiss_roll", "digits"))
    for out in ([], ["--out", tmp_path / "x.png"], ["--out", tmp_path / "x.safetensors"]):
        check_refused(dpm("sample", *roll, "-n", 3, *out))
        check_refused(dpm("denoise", *digits, "-n", 2, "--T", 3, *out))
    assert {path.stem for path in tmp_path.iterdir()} == {"swiss_roll", "digits"}


def test_numbers_of_a_result_that_are_not_finite_are_named(tmp_path):
    result = {"K": 1.0, "parts": {"kl": math.nan, "prior": 2.0}, "beta": [0.0, math.inf], "of": (1, -math.inf)}
    for attempt in (to_json, lambda result: write_json(tmp_path / "x.json", result)):
        with pytest.raises(UserError, match=r"^parts\.kl, beta\.1, of\.1: not finite"):
            attempt(result)
    assert not list(tmp_path.iterdir())
    assert json.loads(to_json({"K": 1.0, "n": {2: [3]}})) == {"K": 1.0, "n": {"2": [3]}}


def test_tensors_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match="y holds values that are not finite"):
        write_tensors(tmp_path / "x", {"x": torch.zeros(2), "y": torch.full((2,), 1e5).half()}, {})
    assert not list(tmp_path.iterdir())
    check_finite({"x": torch.arange(3), "y": torch.zeros(0)}, "these")


def test_a_record_reads_as_it_was_written(tmp_path):
    write_json(tmp_path / "x.json", {"K": 1.5, "name": "β"})
    assert read_json(tmp_path / "x.json") == {"K": 1.5, "name": "β"}
