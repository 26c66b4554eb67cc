"""Pipelines that `diffusers` saved, and `dpm score`: the published algorithm agrees; no network, no pickle."""

import json
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_adapters import published_bits
from torch import Generator

from dpm.adapters import fixed_large, fixed_small, learned_range
from dpm.cli import main
from dpm.data.sets import load_digits
from dpm.errors import UserError
from dpm.pipelines import WEIGHTS, load_pipeline
from dpm.scoring import Levels

diffusers = pytest.importorskip("diffusers")
T = 100


def untrained(n_outputs=1, **config):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=n_outputs,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **config,
    )


@pytest.fixture(scope="module")
def pictures():
    """The digits with 256 levels, [n, 1, 8, 8]: 1100 to train on, 697 held out."""
    return load_digits().train * 15, load_digits().test * 15


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, pictures):
    """The folder of a pipeline that 150 steps have trained."""
    network, scheduler = untrained(), diffusers.DDPMScheduler(T, beta_start=1e-3, beta_end=0.2)
    optimizer, generator = torch.optim.Adam(network.parameters(), 2e-3), Generator().manual_seed(0)
    x = Levels().to_x(pictures[0]).float()
    for _ in range(150):
        x0, t = (x[torch.randint(len(x), (32,), generator=generator)], torch.randint(T, (32,), generator=generator))
        noise = torch.randn(x0.shape, generator=generator)
        loss = (network(scheduler.add_noise(x0, noise, t), t).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("pipeline")
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path, pictures):
    np.save(tmp_path / "held_out.npy", pictures[1][:, 0].numpy())
    return tmp_path / "held_out.npy"


@pytest.fixture
def score(monkeypatch, capsys):
    """Run `dpm score`, which may not reach the network; returns exit status, stdout, stderr."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dpm", "score", *map(str, words)])
        monkeypatch.setattr(socket.socket, "connect", refuse)
        status = main.main()
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("clip", [False, True])
def test_the_command_agrees_with_the_published_algorithm(score, pipeline, pictures, data, clip):
    """At common noise, on the pictures that its seed draws; its parts add up."""
    status, out, _ = score(pipeline, "--data", data, "--json", "--n", 16, "--seed", 3, *["--clip"] * clip)
    result = json.loads(out)
    assert status == 0 and result["n"] == 16 and result["T"] == T and result["clip"] == clip
    network = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    beta = diffusers.DDPMScheduler.from_pretrained(pipeline / "scheduler").betas.double()
    chosen = pictures[1][torch.randperm(697, generator=Generator().manual_seed(3))[:16]]
    x, generator = Levels().to_x(chosen), Generator().manual_seed(3)
    prior, terms = published_bits(lambda x, i: network(x, i).sample, beta, x, "eps", "fixed_small", clip, generator)
    bits, stderr = result["bits_per_dimension"], result["bits_per_dimension_stderr"]
    assert abs(bits - (prior + terms.sum(1)).mean()) < min(3 * stderr, 0.005)
    parts = result["parts_bits_per_dimension"]
    assert set(parts) == {"prior", "kl", "final"} and bits == pytest.approx(sum(parts.values()))
    assert parts["kl"] == pytest.approx(sum(result["kl_bits_per_dimension_by_timesteps"].values()))
    assert 4 < bits < 10 and "16 of 697 pictures" in result["counted"]


def test_a_folder_of_pictures_and_a_table(score, pipeline, pictures, tmp_path):
    for k in range(3):
        Image.fromarray(pictures[1][k, 0].numpy()).save(tmp_path / f"{k}.png")
    np.savez(tmp_path / "same.npz", pictures[1][:3, 0, :, :, None].numpy())
    words = ["--final-step", "dequantized", "--seed", 1]
    tables = [score(pipeline, "--data", path, *words) for path in (tmp_path, tmp_path / "same.npz")]
    lines = [table[1].split("provenance")[0] for table in tables]
    assert lines[0] == lines[1] and "bits_per_dimension_stderr" in lines[0] and tables[0][0] == 0
    assert "final_step" in lines[0] and "step/s" in tables[0][2]


def test_configurations_say_what_the_network_predicts(tmp_path):
    """Also in the flat layout, with a DDIM scheduler, and with a variance of its own."""
    cases = [
        (1, diffusers.DDIMScheduler(50, prediction_type="v_prediction"), "v", fixed_small),
        (1, diffusers.DDPMScheduler(50, prediction_type="sample", variance_type="fixed_large"), "x0", fixed_large),
        (2, diffusers.DDPMScheduler(50, variance_type="learned_range"), "eps", learned_range),
    ]
    for n_outputs, scheduler, predicts, variance in cases:
        untrained(n_outputs).save_pretrained(tmp_path)
        scheduler.save_pretrained(tmp_path)
        q, p, shape = load_pipeline(tmp_path, torch.device("cpu"))
        assert (p.predicts, p.variance, shape) == (predicts, variance, (1, 8, 8))
        assert torch.equal(q.beta[1:], scheduler.betas.double())
        assert p(q, torch.zeros(2, 1, 8, 8, dtype=torch.float64), 7).mean.shape == (2, 1, 8, 8)


@pytest.fixture
def copy(pipeline, tmp_path):
    """A copy of the pipeline, to be spoilt."""
    return shutil.copytree(pipeline, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_to_bin(folder):
    (folder / "unet" / f"{WEIGHTS}.safetensors").rename(folder / "unet" / f"{WEIGHTS}.bin")


def truncate(folder):
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


SPOILT = {
    "name a folder that save_pretrained": lambda folder: (folder / "unet" / "config.json").unlink(),
    "is not a whole record": lambda folder: (folder / "unet" / "config.json").write_text("{"),
    "whose pickles could run code": rename_to_bin,
    "holds no weights": lambda folder: (folder / "unet" / f"{WEIGHTS}.safetensors").unlink(),
    "cannot be built": truncate,
    "do not fit its config.json": lambda folder: edit(folder / "unet" / "config.json", add_attention=False),
    "is of a UNet2DConditionModel": lambda folder: edit(
        folder / "unet" / "config.json", _class_name="UNet2DConditionModel"
    ),
    "wants a class": lambda folder: edit(folder / "unet" / "config.json", num_class_embeds=10),
    "is of a PNDMScheduler": lambda folder: edit(
        folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler"
    ),
    "names 'flow'": lambda folder: edit(folder / "scheduler" / "scheduler_config.json", prediction_type="flow"),
    "names 'learned'": lambda folder: edit(folder / "scheduler" / "scheduler_config.json", variance_type="learned"),
    "does not implement|is not implemented": lambda folder: edit(
        folder / "scheduler" / "scheduler_config.json", beta_schedule="steep"
    ),
    "the bound is not finite": lambda folder: edit(
        folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True
    ),
}


@pytest.mark.parametrize("message", SPOILT)
def test_a_folder_that_cannot_be_scored_is_one_line(score, copy, data, message):
    SPOILT[message](copy)
    status, out, err = score(copy, "--data", data, "--n", 2)
    line = err.strip().splitlines()[-1]
    assert status == 2 and out == "" and line.startswith("dpm: ")
    assert any(words in line for words in message.split("|")), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", 1], "1 pictures have no standard error"),
        (["--levels", 1], "--levels 1: give 2 to 256"),
        (["--levels", 17], "level 240, and 17 levels end at 16"),
        (["--final-step", "none"], "invalid choice: 'none'"),
    ],
)
def test_a_word_that_cannot_be_is_one_line(score, pipeline, data, words, message):
    status, out, err = score(pipeline, "--data", data, *words)
    assert status == 2 and out == "" and message in err and err.count("\n") == 1


def test_pictures_that_do_not_fit_are_one_line(score, pipeline, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((4, 8, 16), np.uint8))
    np.save(tmp_path / "floats.npy", np.zeros((4, 8, 8)))
    for name, message in (("wide", "[1, 8, 16]"), ("floats", "uint8"), ("none", "none.npy")):
        status, _, err = score(pipeline, "--data", tmp_path / f"{name}.npy")
        assert status == 2 and message in err and err.count("\n") == 1


def test_a_missing_package_is_one_line(pipeline, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install diffusers"):
        load_pipeline(pipeline, torch.device("cpu"))
