"""Training: resuming, killing, several processes, losses that are not finite, and that it climbs at all."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from dpm import train as training
from dpm.bound import in_bits
from dpm.datasets import heartbeat, swiss_roll
from dpm.experiments import EXPERIMENTS, build
from dpm.files import UserError, read_tensors
from dpm.forward import Gaussian
from dpm.networks import GaussianDenoiser
from dpm.reverse import Denoise, Diffusion
from dpm.schedules import Learned, geometric
from dpm.train import Run, choose_device, train

CPU = torch.device("cpu")
ABOUT = {"experiment": "swiss_roll", "setting": "tiny", "steps": "120"}


def tiny_run(seed=0):
    torch.manual_seed(0)
    model = Diffusion(Learned(geometric(6, 1e-2, 0.9)), Gaussian, Denoise(GaussianDenoiser(2, 8, 2, 1)))
    return Run(model, CPU, seed, ABOUT)


def go(run, steps=120, **options):
    return list(train(run, swiss_roll, batch=20, steps=steps, rate=1e-2, **options))


def contents(run, path):
    run.save(path)
    return path.read_bytes()


def test_training_climbs_and_records_every_fifty_steps():
    records = go(tiny_run(), steps=330)
    assert [record.step for record in records] == [50, 100, 150, 200, 250, 300, 330]
    assert records[-1].K > records[0].K


def test_beta_1_stays_and_the_other_rates_move():
    run = tiny_run()
    before = run.model.q().beta.detach().clone()
    go(run)
    after = run.model.q().beta.detach()
    assert torch.equal(after[:2], before[:2]) and (after[2:] != before[2:]).all()


def test_resuming_continues_bit_for_bit(tmp_path):
    whole, half, rest = tiny_run(), tiny_run(), tiny_run(seed=5)
    go(whole)
    steps = train(half, swiss_roll, batch=20, steps=120, rate=1e-2)
    next(steps)
    half.save(tmp_path / "half")
    rest.resume(tmp_path / "half")
    assert rest.step == 50
    go(rest)
    assert contents(rest, tmp_path / "rest") == contents(whole, tmp_path / "whole")


def test_another_seed_walks_another_path(tmp_path):
    one, other = tiny_run(seed=1), tiny_run(seed=2)
    go(one), go(other)
    assert contents(one, tmp_path / "one") != contents(other, tmp_path / "other")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    tiny_run().save(tmp_path / "checkpoint")
    other = Run(build(EXPERIMENTS["heartbeat"].settings["ours"]), CPU, 0, {})
    with pytest.raises(UserError, match="another experiment or setting"):
        other.resume(tmp_path / "checkpoint")


def test_a_loss_that_is_not_finite_stops_with_its_step_and_spares_the_checkpoint(tmp_path):
    run, calls = tiny_run(), []

    def draw(n, generator):
        calls.append(n)
        return swiss_roll(n, generator) * (math.nan if len(calls) == 73 else 1)

    monkeypatched = tmp_path / "checkpoint"
    with pytest.raises(UserError, match="step 73 of swiss_roll --setting tiny"):
        run.save(monkeypatched)
        list(train(run, draw, batch=20, steps=120, rate=1e-2, checkpoint=monkeypatched))
    tensors, about = read_tensors(monkeypatched)
    assert about["step"] == "0" and all(value.isfinite().all() for value in tensors.values())


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from dpm import train as training
import test_train
training.CHECKPOINT_SECONDS = 0
run, path = test_train.tiny_run(), Path({path!r})
if path.exists():
    run.resume(path)
for record in test_train.train(run, test_train.swiss_roll, batch=20, steps=1500, rate=1e-2, checkpoint=path):
    print(record.step, flush=True)
"""


def start(path):
    code = SCRIPT.format(tests=os.path.dirname(__file__), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait() == 0
    first = start(killed)
    seen = [int(first.stdout.readline()) for _ in range(3)]
    time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, about = read_tensors(killed)
    assert seen[-1] <= int(about["step"]) < 1500  # no more is lost than what came after the last checkpoint
    assert start(killed).wait() == 0
    assert killed.read_bytes() == undisturbed.read_bytes()


def worker(rank, size, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": str(rank), "WORLD_SIZE": str(size)}
    training.join(CPU)
    run = tiny_run()
    go(run, steps=40)
    run.save(folder / f"{size}-{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_walk_the_path_of_one(tmp_path):
    torch.multiprocessing.spawn(worker, (2, tmp_path), nprocs=2)
    alone = tiny_run()
    go(alone, steps=40)
    alone.save(tmp_path / "1-0")
    one, first, second = (read_tensors(tmp_path / name)[0] for name in ("1-0", "2-0", "2-1"))
    weights = [name for name in one if name.startswith(("model.", "average."))]
    assert weights and all(torch.equal(first[name], second[name]) for name in weights)
    for name in weights:
        torch.testing.assert_close(one[name], first[name], rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_split_is_refused(monkeypatch):
    monkeypatch.setattr(training, "place", lambda: (0, 3))
    with pytest.raises(UserError, match="batch of 20 does not split evenly over 3"):
        next(train(tiny_run(), swiss_roll, batch=20, steps=2, rate=1e-2))


def test_the_device_is_chosen_in_one_place(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(UserError, match="no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda" and choose_device("cpu") == CPU


def test_the_heartbeat_climbs_from_the_null_model():
    """D.1.2: training starts near K = L_null and leaves it behind."""
    run = Run(build(EXPERIMENTS["heartbeat"].settings["ours"]), CPU, 0, {})
    records = list(train(run, heartbeat, batch=300, steps=400, rate=5e-3))
    K = [float(in_bits(torch.tensor(record.K))) for record in records]
    assert K[0] > -16 and K[-1] > -6
