"""Training: resuming, killing, several processes, losses that are not finite, and that it climbs at all."""

import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Generator

from dpm import distributed, training
from dpm.bound import bound_loss, estimate_K, simple_loss, trajectory_K
from dpm.data.synthetic import heartbeat, swiss_roll
from dpm.distributed import choose_device, choose_precision, init_distributed, rank_and_world_size, use_device
from dpm.errors import UserError
from dpm.experiments.registry import EXPERIMENTS, build_model
from dpm.files import lock_folder, read_tensors, write_tensors
from dpm.forward import BernoulliForward, GaussianForward
from dpm.networks.denoisers import FourierMLP, ImageDenoiser
from dpm.networks.layers import channels_last
from dpm.networks.paper import RBFNetwork, SigmoidMLP
from dpm.networks.unet import u_net
from dpm.reverse import (
    DiffusionModel,
    DiscretizedFinalStep,
    KernelPerturbation,
    LogitPrediction,
    VPrediction,
    learned_final_step,
)
from dpm.schedules import FixedSchedule, LearnedSchedule, linear_alpha_bar, log_snr_linear
from dpm.training import TrainState, train
from dpm.units import mean_and_stderr, to_bits

CPU = torch.device("cpu")
METADATA = {"experiment": "swiss_roll", "setting": "tiny", "steps": "120"}


def tiny_run(seed=0):
    """Float32 weights and a float64 schedule, learned together."""
    torch.manual_seed(0)
    model = DiffusionModel(
        LearnedSchedule(log_snr_linear(6, 1e-2, 0.9)), GaussianForward, VPrediction(FourierMLP(2, 8, 2, 1))
    )
    return TrainState(model, CPU, seed, METADATA)


def tiny_bits_run(seed=0):
    torch.manual_seed(0)
    q = BernoulliForward(linear_alpha_bar(8))
    return TrainState(
        DiffusionModel(FixedSchedule(q.beta), BernoulliForward, LogitPrediction(SigmoidMLP(q, 20, 24, 2, n_shared=3))),
        CPU,
        seed,
        METADATA,
    )


def tiny_picture_run(seed=0):
    torch.manual_seed(0)
    q = GaussianForward(log_snr_linear(8, 1e-3, 0.99))
    return TrainState(
        DiffusionModel(FixedSchedule(q.beta), GaussianForward, VPrediction(ImageDenoiser(1, 8, u_net((8,), (1,)), 0))),
        CPU,
        seed,
        METADATA,
    )


def go(run, steps=120, **options):
    return list(train(run, swiss_roll, batch=20, n_steps=steps, learning_rate=1e-2, **options))


def held(path):
    """All that a checkpoint holds, but for the time that it took: names and bytes of tensors, and the header."""
    tensors, metadata = read_tensors(path)
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, metadata | {"seconds": None}


def contents(run, path):
    run.save(path)
    return held(path)


@pytest.mark.slow
def test_training_climbs_and_records_every_fifty_steps():
    """Equation (15): K grows."""
    records = go(tiny_run(), steps=330)
    assert [record.step for record in records] == [50, 100, 150, 200, 250, 300, 330]
    assert records[-1].K > records[0].K


def test_beta_1_stays_and_the_others_move():
    run = tiny_run()
    before = run.model.forward_process().beta.detach().clone()
    go(run)
    after = run.model.forward_process().beta.detach()
    assert torch.equal(after[:2], before[:2]) and (after[2:] != before[2:]).all()


def pictures(n, generator):
    return torch.randn(n, 1, 4, 4, generator=generator)


@pytest.mark.parametrize(
    ("begin", "draw", "precision"),
    [
        (tiny_run, swiss_roll, torch.float32),
        (tiny_bits_run, heartbeat, torch.float32),
        (tiny_picture_run, pictures, torch.bfloat16),
    ],
)
def test_resuming_continues_bit_for_bit(tmp_path, begin, draw, precision):
    """Weights, averages, optimiser and generator: two checkpoints hold the same bytes."""
    whole, half, rest = begin(), begin(), begin(seed=5)
    options = {"batch": 20, "n_steps": 120, "learning_rate": 1e-2, "precision": precision}
    list(train(whole, draw, **options))
    next(train(half, draw, **options))
    half.save(tmp_path / "half")
    rest.resume(tmp_path / "half")
    assert rest.seconds == half.seconds > 0
    assert rest.step == 50 and contents(rest, tmp_path / "rest") == held(tmp_path / "half")
    list(train(rest, draw, **options))
    assert contents(rest, tmp_path / "rest") == contents(whole, tmp_path / "whole")


def test_a_checkpoint_without_its_time_is_refused(tmp_path):
    run, path = tiny_run(), tmp_path / "x"
    run.save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {key: value for key, value in metadata.items() if key != "seconds"})
    with pytest.raises(UserError, match="older dpm"):
        tiny_run().resume(path)


@pytest.mark.parametrize(("begin", "draw"), [(tiny_run, swiss_roll), (tiny_picture_run, pictures)])
@pytest.mark.parametrize("micro_batch", [1, 7, 20, 50])
def test_micro_batches_add_up_to_the_whole(begin, draw, micro_batch, monkeypatch):
    """Micro-batches of 7, 7 and 6 weigh as many as they hold: gradients and −K are those of 20, but for rounding."""
    found = []
    for size in (None, micro_batch):
        run = begin()
        monkeypatch.setattr(run.optimiser, "zero_grad", lambda: None)
        (record,) = train(run, draw, batch=20, n_steps=1, learning_rate=1e-2, micro_batch=size)
        found.append([torch.tensor(record.K), *(weights.grad for weights in run.model.parameters())])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def recording(timesteps, loss=bound_loss):
    """The loss, which notes the timesteps of every call."""
    return lambda p, q, x0, t, noise: timesteps.append(t) or loss(p, q, x0, t, noise)


@pytest.fixture
def micro_batches():
    """The timesteps of every micro-batch of two batches of 20, with 7 samples in memory at once."""
    timesteps = []
    options = {"batch": 20, "n_steps": 2, "learning_rate": 1e-2, "micro_batch": 7}
    list(train(tiny_run(), swiss_roll, **options, loss=recording(timesteps)))
    return timesteps


def test_a_micro_batch_holds_no_more_samples_than_asked(micro_batches):
    assert [len(t) for t in micro_batches] == [7, 7, 6] * 2


def test_every_micro_batch_has_timesteps_from_both_ends(micro_batches):
    """Or one of two noise-level experts would be left without a gradient, for which other processes wait."""
    T = tiny_run().model.forward_process().T
    assert len(micro_batches) == 6 and all(t.min() < T / 2 < t.max() for t in micro_batches)


def test_another_seed_walks_another_path(tmp_path):
    one, other = tiny_run(seed=1), tiny_run(seed=2)
    go(one), go(other)
    assert contents(one, tmp_path / "one") != contents(other, tmp_path / "other")


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    tiny_run().save(path)
    for metadata, expected in (
        (METADATA | {"experiment": "heartbeat"}, "run of experiment swiss_roll, not heartbeat"),
        (METADATA | {"seed": "3"}, "run of seed None, not 3"),
        ({}, "another experiment or setting"),
    ):
        other = TrainState(build_model(EXPERIMENTS["heartbeat"].settings["best"]), CPU, 0, metadata)
        with pytest.raises(UserError, match=expected):
            other.resume(path)
    other, state = tiny_run(), torch.zeros(16, dtype=torch.uint8)  # as long as a GPU's
    other.generator = SimpleNamespace(get_state=lambda: state)
    with pytest.raises(UserError, match="another kind of device"):
        other.resume(path)


@pytest.mark.slow
def test_a_checkpoint_is_written_at_records_once_enough_seconds_have_passed(tmp_path, monkeypatch):
    """A killed run loses no more than CHECKPOINT_SECONDS and the steps to the next record."""
    clock, run, saved = [0.0], tiny_run(), []
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run, "save", lambda path: saved.append(run.step))
    for record in train(run, swiss_roll, batch=20, n_steps=430, learning_rate=1e-2, checkpoint=tmp_path / "checkpoint"):
        clock[0] += 0.4 * training.CHECKPOINT_SECONDS
        assert not saved or record.step - saved[-1] <= 150
    assert saved == [200, 350, 430]


def check_stops(run, draw, path, message):
    run.save(path)
    with pytest.raises(UserError, match=message):
        list(train(run, draw, batch=20, n_steps=120, learning_rate=1e-2, checkpoint=path))
    tensors, metadata = read_tensors(path)
    assert metadata["step"] == "50" and all(value.isfinite().all() for value in tensors.values())


def test_a_loss_that_is_not_finite_stops_with_its_step_and_spares_the_checkpoint(tmp_path, monkeypatch):
    calls = []

    def draw(n, generator):
        calls.append(n)
        return swiss_roll(n, generator) * (math.nan if len(calls) == 73 else 1)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    check_stops(tiny_run(), draw, tmp_path / "checkpoint", "the loss is nan at step 73 of swiss_roll --setting tiny")


def test_weights_that_are_not_finite_stop_it_too(tmp_path, monkeypatch):
    """A step can spoil the weights after its own K was computed."""
    run, calls = tiny_run(), []

    def spoil(gradient):
        calls.append(0)
        return gradient * (math.inf if len(calls) == 100 else 1)

    run.model.p.network.mlp[0].weight.register_hook(spoil)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    check_stops(run, swiss_roll, tmp_path / "checkpoint", "a weight is not finite after step 100 of swiss_roll")


def test_averaged_weights_follow_early_and_then_slowly(tmp_path):
    """The first update takes nine tenths of the new weights; from the 890th on, one hundredth."""
    average, present = [torch.zeros(3)], [torch.ones(3)]
    for count, share in ((0, 0.9), (90, 0.09), (890, 0.01), (10**6, 0.01)):
        average[0].zero_()
        training.ema_update(average, present, torch.tensor(count))
        assert float(average[0][0]) == pytest.approx(share)
    run = tiny_run()
    go(run, steps=13)
    assert int(run.ema.n_averaged) == 2  # after ten steps, and at the end


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from dpm import training
import test_training as tests
training.CHECKPOINT_SECONDS, training.RECORD_EVERY = -1, 10
run, path = tests.tiny_run(), Path({path!r})
if path.exists():
    run.resume(path)
for record in tests.train(run, tests.swiss_roll, batch=20, n_steps=500, learning_rate=1e-2, checkpoint=path):
    print(record.step, flush=True)
"""


def start(path):
    code = SCRIPT.format(tests=os.path.dirname(__file__), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait() == 0
    with start(killed) as first:
        seen = [int(first.stdout.readline()) for _ in range(3)]
        first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    _, metadata = read_tensors(killed)
    assert seen[-1] <= int(metadata["step"]) < 500  # no more is lost than what came after the last checkpoint
    assert start(killed).wait() == 0
    assert held(killed) == held(undisturbed)


TOGETHER = """
import sys
from dataclasses import replace
from dpm import evaluation, ideal
from dpm.cli.main import main
from dpm.experiments.registry import EXPERIMENTS
evaluation.N_ROUNDS, ideal.LATTICE_SPACING = 2, 8.0
roll = EXPERIMENTS["swiss_roll"]
small = replace(roll.settings["best"], batch={batch})
EXPERIMENTS["swiss_roll"] = replace(roll, held_out_data=lambda g: roll.draw(20, g), settings={{"best": small}})
sys.exit(main())
"""


def train_together(folder, processes, batch):
    """`dpm train` under torchrun, with a small batch and few held-out samples."""
    script = folder / "script.py"
    script.write_text(TOGETHER.format(batch=batch))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
    words = ["train", "swiss_roll", "--setting", "best", "--steps", "60", "--device", "cpu", "--json"]
    return subprocess.run(
        [sys.executable, *torchrun, script, *words, "--out", folder / "run"], capture_output=True, text=True
    )


@pytest.mark.slow
def test_two_processes_walk_the_path_of_one(tmp_path):
    """torchrun: the weights of one process but for rounding; one prints, one writes, both end well."""
    one, two = (tmp_path / name for name in ("one", "two"))
    for processes, folder in enumerate((one, two), start=1):
        folder.mkdir()
        result = train_together(folder, processes, batch=40)
        assert result.returncode == 0, result.stderr
        row = json.loads(result.stdout)
        assert row["experiment"] == "swiss_roll" and result.stdout.count("\n") == 1
        assert row["provenance"]["device"].startswith("2 × cpu" if processes == 2 else "cpu")
        assert result.stderr.count(" 0/60 ") == 1 and "Warning" not in result.stderr
        written = [".lock", "checkpoint.safetensors", "config.json", "log.jsonl", "results.json", "weights.safetensors"]
        assert sorted(os.listdir(folder / "run")) == written
    again = train_together(two, 2, batch=40)
    assert again.returncode != 0 and again.stdout == ""
    [line] = [line for line in again.stderr.splitlines() if line.startswith("dpm: ")]
    assert "is a finished run of 60 steps" in line and "[rank" not in again.stderr
    alone, (together, _) = (read_tensors(folder / "run" / "checkpoint.safetensors") for folder in (one, two))
    weights = [name for name in together if name.startswith(("model.", "ema."))]
    assert weights and together.keys() == alone[0].keys()
    for name in weights:
        torch.testing.assert_close(together[name], alone[0][name], rtol=1e-5, atol=1e-5)
    assert torch.equal(together["generator"], alone[0]["generator"])


@pytest.mark.slow
def test_what_no_process_can_write_is_one_line_of_one(tmp_path):
    (tmp_path / "run").write_text("")
    result = train_together(tmp_path, 2, batch=40)
    assert result.returncode != 0 and result.stdout == ""
    [line] = [line for line in result.stderr.splitlines() if line.startswith("dpm: ")]
    assert "cannot write" in line and "[rank" not in result.stderr


def test_a_folder_that_another_run_holds_is_refused_in_one_line_of_one(tmp_path):
    """The first process alone asks for the lock; the other learns of it, and does not wait."""
    with lock_folder(tmp_path / "run"):
        result = train_together(tmp_path, 2, batch=40)
    assert result.returncode != 0 and result.stdout == "" and os.listdir(tmp_path / "run") == [".lock"]
    [line] = [line for line in result.stderr.splitlines() if line.startswith("dpm: ")]
    assert "another run is at work in" in line and "[rank" not in result.stderr


def test_a_number_of_processes_without_a_rank_is_not_ours(monkeypatch):
    """As a cluster's batch system sets it."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    init_distributed(CPU)
    assert rank_and_world_size() == (0, 1)


@pytest.mark.slow
def test_a_batch_that_does_not_split_is_refused_in_one_line_before_anything_is_written(tmp_path):
    result = train_together(tmp_path, 2, batch=41)
    assert result.returncode != 0 and result.stdout == ""
    [line] = [line for line in result.stderr.splitlines() if line.startswith("dpm: ")]
    assert "batch of 41 does not split evenly over 2" in line and not (tmp_path / "run").exists()


def test_a_batch_that_does_not_split_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (0, 3))
    with pytest.raises(UserError, match="batch of 20 does not split evenly over 3"):
        next(train(tiny_run(), swiss_roll, batch=20, n_steps=2, learning_rate=1e-2))


def test_bfloat16_rounds_the_products_and_leaves_weights_and_path(tmp_path):
    """Both precisions see the same data, times and noise, and climb alike; rounding moves little, not nothing."""
    full, rounded = tiny_picture_run(), tiny_picture_run()
    options = {"batch": 20, "n_steps": 50, "learning_rate": 1e-3}
    (one,) = train(full, pictures, **options)
    (other,) = train(rounded, pictures, **options, precision=torch.bfloat16)
    assert one.K != other.K and abs(one.K - other.K) < 0.01 * abs(one.K)
    assert torch.equal(full.generator.get_state(), rounded.generator.get_state())
    assert {weights.dtype for weights in rounded.model.parameters()} == {torch.float32}


def test_precision_is_what_the_machine_is_fast_in(monkeypatch):
    for capability, wanted, given in (
        ("AVX512", torch.bfloat16, torch.bfloat16),
        ("AVX512", torch.float32, torch.float32),
        ("AVX2", torch.bfloat16, torch.float32),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert choose_precision(wanted, CPU) == given
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_precision(torch.bfloat16, torch.device("cuda")) == torch.float32


def test_pictures_and_kernels_lie_with_channels_last():
    run = tiny_picture_run()
    kernels = [weights for weights in run.model.parameters() if weights.ndim == 4]
    assert kernels and all(weights.is_contiguous(memory_format=torch.channels_last) for weights in kernels)
    x = torch.zeros(2, 3, 4, 4)
    assert channels_last(x).is_contiguous(memory_format=torch.channels_last) and channels_last(x.flatten(1)).ndim == 2


def test_the_device_is_chosen_in_one_place(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(UserError, match="no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert choose_device("auto") == torch.device("cuda", 0) and choose_device("cpu") == CPU
    assert not taken  # to choose changes nothing
    use_device(choose_device("auto"))
    use_device(CPU)
    assert taken == [torch.device("cuda", 0)]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes for 2 GPUs"):
        choose_device("auto")


@pytest.mark.slow
def test_the_heartbeat_climbs_from_the_null_model():
    """D.1.2: training starts near K = L_null and leaves it behind."""
    run = TrainState(build_model(EXPERIMENTS["heartbeat"].settings["best"]), CPU, 0, {})
    records = list(train(run, heartbeat, batch=300, n_steps=400, learning_rate=5e-3))
    K = [float(to_bits(torch.tensor(record.K))) for record in records]
    assert K[0] > -16 and K[-1] > -6


def test_the_learning_rate_warms_up_and_falls_by_half_a_cosine(monkeypatch):
    run, learning_rates = tiny_run(), []
    step = run.optimiser.step
    monkeypatch.setattr(
        run.optimiser, "step", lambda: learning_rates.append(run.optimiser.param_groups[0]["lr"]) or step()
    )
    list(train(run, swiss_roll, batch=5, n_steps=200, learning_rate=1e-2))
    want = [1e-2 * min(1, (k + 1) / 100) * (1 + math.cos(math.pi * k / 200)) / 2 for k in range(200)]
    assert learning_rates == pytest.approx(want)


def test_adam_is_told_these_betas():
    assert tiny_run().optimiser.param_groups[0]["betas"] == (0.9, 0.99)


def test_a_run_of_another_setting_is_refused(tmp_path):
    run = tiny_run()
    run.metadata = {"setting": "paper"}
    run.save(tmp_path / "c")
    run.metadata = {"setting": "best"}
    with pytest.raises(UserError, match="run of setting paper, not best"):
        run.resume(tmp_path / "c")


def test_a_gpu_of_a_process_is_its_own_and_keeps_its_digits(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    device = choose_device("auto")
    assert torch.backends.cudnn.allow_tf32 is True and not chosen
    use_device(device)
    assert device == torch.device("cuda", 2) and chosen == [device]
    assert torch.backends.cudnn.allow_tf32 is False


def test_a_record_is_the_mean_since_the_last_record(monkeypatch):
    steps = []
    monkeypatch.setattr(training, "backward", lambda *_: steps.append(0) or torch.tensor(float(len(steps))))
    records = list(train(tiny_run(), swiss_roll, batch=5, n_steps=110, learning_rate=1e-2))
    assert [record.loss for record in records] == pytest.approx([25.5, 75.5, 105.5])
    assert [record.K for record in records] == pytest.approx([-25.5, -75.5, -105.5])


# Other losses and final steps


def test_the_default_loss_is_minus_K(tmp_path):
    default, explicit = tiny_run(), tiny_run()
    records = go(default), go(explicit, loss=lambda *args: -estimate_K(*args))
    assert records[0] == records[1]
    assert all(-record.loss == record.K for record in records[0])
    assert contents(default, tmp_path / "default") == contents(explicit, tmp_path / "explicit")


@pytest.mark.parametrize(("begin", "draw"), [(tiny_run, swiss_roll), (tiny_picture_run, pictures)])
def test_simple_loss_is_the_error_of_the_predicted_noise(begin, draw):
    """L_simple = ‖ε − ε̂‖² from the network's own output: v = √ᾱ ε − √(1−ᾱ) x⁰, so ε̂ = √ᾱ v + √(1−ᾱ) x^t."""
    model = begin().model
    q, x0 = model.forward_process(), draw(6, Generator().manual_seed(0)).float()
    noise, t = q.sample_noise(x0, Generator().manual_seed(1)), torch.tensor([1, 2, 3, 4, 5, 6])
    for parameter in model.p.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=Generator().manual_seed(2))
    alpha_bar = (1 - q.beta).cumprod(0)[t].float().reshape(-1, *[1] * (x0.dim() - 1))
    xt = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    v, _ = model.p.network(xt, (alpha_bar / (1 - alpha_bar)).log()).chunk(2, dim=1)
    error = (noise - alpha_bar.sqrt() * v - (1 - alpha_bar).sqrt() * xt).square().flatten(1).sum(1)
    found = simple_loss(model.p, q, x0, t, noise)
    assert found.shape == (6,) and torch.allclose(found, error, rtol=1e-3) and len(found.unique()) == 6


def fixed_run(p, beta_1=1e-2):
    """Points of the plane with a schedule that training does not change."""
    return TrainState(
        DiffusionModel(FixedSchedule(log_snr_linear(6, beta_1, 0.9)), GaussianForward, p), CPU, 0, METADATA
    )


def narrow_points(n, generator):
    """x⁰ ~ N(0, I/4): the ideal ε̂ is (1−ᾱ)^½ x^t/(¼ᾱ + 1 − ᾱ)."""
    return torch.randn(n, 2, generator=generator) / 2


def test_training_with_simple_loss_reaches_the_least_error_of_the_noise():
    """From the start, which is ideal for N(0, I), to the mean squared error that none can beat."""
    torch.manual_seed(0)
    run = fixed_run(VPrediction(FourierMLP(2, 32, 2, 1)))
    records = list(train(run, narrow_points, batch=250, n_steps=600, learning_rate=1e-2, loss=simple_loss))
    q = run.model.forward_process()
    alpha_bar = q.alpha_bar[2:]
    least = float((2 * alpha_bar / 4 / (alpha_bar / 4 + 1 - alpha_bar)).mean())  # Var(ε|x^t) of both, over t = 2…6
    start = float(2 * (alpha_bar**2 + alpha_bar * (1 - alpha_bar) / 4).mean())  # ε̂ = √(1−ᾱ) x^t
    assert records[0].loss > least and records[-1].loss == pytest.approx(least, rel=0.05)
    assert start > 1.15 * least
    assert all(weights.isfinite().all() for weights in run.model.parameters())


def test_training_with_a_loss_of_ones_own(tmp_path):
    """The squared error of x⁰: the record holds its mean, every sample is seen, and the schedule is left alone."""
    seen = []

    def x0_loss(p, q, x0, t, noise):
        x0_hat, _ = p.predict_x0(q, q.marginal(x0, t).reparameterize(noise), t)
        loss = (x0_hat - x0).square().sum(1)
        seen.append((x0, t, float(loss.detach().mean())))
        return loss

    torch.manual_seed(0)
    run = fixed_run(VPrediction(FourierMLP(2, 32, 2, 1)))
    records = list(train(run, narrow_points, batch=250, n_steps=600, learning_rate=1e-2, loss=x0_loss))
    q = run.model.forward_process()
    alpha_bar = q.alpha_bar[2:]
    least = float((2 * 0.25 * (1 - alpha_bar) / (alpha_bar / 4 + 1 - alpha_bar)).mean())  # Var(x⁰|x^t)
    assert records[-1].loss == pytest.approx(least, rel=0.05) and records[0].loss > 1.05 * least
    assert records[-1].loss == pytest.approx(sum(loss for *_, loss in seen[-50:]) / 50)
    assert len(seen) == 600 and all(len(x0) == len(t) == 250 for x0, t, _ in seen)
    assert torch.equal(q.beta, log_snr_linear(6, 1e-2, 0.9))


@pytest.mark.parametrize(
    ("final_step", "first"),
    [(None, 2), (learned_final_step, 1), (DiscretizedFinalStep(0.1, -3, 3), 1)],
    ids=["edge", "learned", "discretized"],
)
def test_a_learned_final_step_trains_from_t_1(final_step, first):
    """With the edge step (44) there is nothing to learn at t = 1."""
    torch.manual_seed(0)
    timesteps, run = [], fixed_run(VPrediction(FourierMLP(2, 8, 2, 1), final_step))
    options = {"batch": 4 * (7 - first), "n_steps": 3, "learning_rate": 1e-2}
    list(train(run, swiss_roll, **options, loss=recording(timesteps)))
    assert all(torch.bincount(t, minlength=7).tolist() == [0] * first + [4] * (7 - first) for t in timesteps)
    assert len(timesteps) == 3


@pytest.mark.slow
def test_a_learned_final_step_is_learned():
    """The readout of t = 1 (D.1.1) moves where that step is learned, and only there; K then passes that of (44)."""
    K = []
    for final_step in (None, learned_final_step):
        torch.manual_seed(0)
        run = fixed_run(KernelPerturbation(RBFNetwork(6, inputs=2, n_units=8, outputs=4), final_step=final_step), 0.3)
        list(train(run, narrow_points, batch=120, n_steps=600, learning_rate=1e-2))
        readout = run.model.p.network.readout.per_timestep
        moves = readout.detach().flatten(1).abs().amax(1) > 0  # all start at 0
        assert moves.tolist() == [False, final_step is not None, *[True] * 5]
        x0 = narrow_points(20_000, Generator().manual_seed(1)).double()
        K.append(
            mean_and_stderr(trajectory_K(run.model.p, run.model.forward_process(), x0, Generator().manual_seed(2)))
        )
    (with_edge, error), (learned, learned_error) = K
    assert learned > with_edge + 5 * math.hypot(error, learned_error)
    assert learned < -math.log(2 * math.pi * math.e / 4) + 4 * learned_error  # −H(X⁰)


def test_micro_batches_without_t_1_are_no_obstacle():
    """One sample at once: a micro-batch then has either the final step or another, never both."""
    found = []
    for micro_batch in (None, 1):
        torch.manual_seed(0)
        run = fixed_run(VPrediction(FourierMLP(2, 8, 2, 1), learned_final_step))
        options = {"batch": 12, "n_steps": 1, "learning_rate": 1e-2}
        (record,) = train(run, swiss_roll, **options, micro_batch=micro_batch)
        found.append(record.K)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
