"""`dpm train`."""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import cast

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from dpm.bound import bound_loss
from dpm.cli.choose import choose_machine, choose_to_train
from dpm.cli.output import print_result, print_written
from dpm.cli.sample import draw_samples, plot_samples
from dpm.distributed import (
    check_batch_splits,
    choose_precision,
    close_distributed,
    hold_folder,
    init_distributed,
    rank_and_world_size,
)
from dpm.errors import UserError
from dpm.evaluation import evaluate_experiment
from dpm.experiments.base import Experiment, TrainConfig
from dpm.experiments.registry import build_model, load_weights
from dpm.figures import to_png
from dpm.files import check_writable, read_tensors, write_file, write_json, write_tensors
from dpm.profiling import throughput
from dpm.provenance import command_line, provenance
from dpm.reverse import DiffusionModel
from dpm.runlog import append_record, cut_log
from dpm.training import TrainState, learning_rate_at, read_number, train


def train_experiment(args: argparse.Namespace) -> None:
    """`dpm train`: maximise K, equation (15), then report what the written weights reach."""
    experiment, setting, folder, own_metadata = choose_to_train(args)
    config = experiment.settings[setting]
    n_steps = config.n_steps if args.steps is None else args.steps
    check_counts(n_steps, args.micro_batch)
    device = choose_machine(args.device, experiment)
    init_distributed(device)
    check_batch_splits(config.batch)
    metadata = {"experiment": experiment.name, "setting": setting, "seed": str(args.seed), "steps": str(n_steps)}
    metadata |= {"command": command_line()} | own_metadata
    model = (
        load_weights(config, args.start, name=args.name).requires_grad_()
        if args.start
        else build_model(config, args.seed)
    )
    experiment.draw(1, Generator(device))  # missing data are reported before anything is written
    state = TrainState(model, device, args.seed, metadata)
    checkpoint = folder / "checkpoint.safetensors"
    check_place(checkpoint, args.resume)
    with hold_folder(folder):
        begin_or_resume(state, checkpoint, n_steps, args.resume)
        precision = choose_precision(config.precision, device)
        begin_log(state, experiment, config, folder, precision)
        run(state, experiment, config, folder, n_steps, precision, args)
        rank, n_processes = rank_and_world_size()
        close_distributed()
        if rank == 0:
            print_result(write_result(state, experiment, config, folder, precision, n_processes), args.json)
            print_written(folder)


def write_result(
    state: TrainState,
    experiment: Experiment,
    config: TrainConfig,
    folder: Path,
    precision: torch.dtype,
    n_processes: int,
) -> dict:
    """Write the averaged weights, and what the file reaches on held-out data; returns the latter."""
    device, n_steps, weights = state.generator.device, int(state.metadata["steps"]), folder / "weights.safetensors"
    write_tensors(weights, to_half(state.ema.module.state_dict()), state.metadata)
    model = load_weights(config, weights, device)  # what is reported is what the file holds
    result = evaluate_experiment(experiment, model) | {"setting": state.metadata["setting"]}
    like = torch.zeros(1, *experiment.shape, device=device)
    result["provenance"] = run_provenance(state, n_processes) | {
        "steps": n_steps,
        "training_seconds": state.seconds,  # unrounded: steps × batch / samples_per_second
        "precision": str(precision),
    }
    result["provenance"] |= throughput(model, like, n_steps * config.batch, state.seconds, precision, n_processes)
    write_json(folder / "results.json", result)
    return result


def run_provenance(state: TrainState, n_processes: int) -> dict:
    """What made a run: its seed, its device and processes, its command."""
    seed, command = int(state.metadata["seed"]), state.metadata["command"]
    return provenance(seed, state.generator.device, n_processes) | {"command": command}


def check_counts(n_steps: int, micro_batch: int | None) -> None:
    """UserError unless both are positive."""
    if n_steps < 1:
        raise UserError(f"--steps {n_steps} trains nothing; give 1 or more")
    if micro_batch is not None and micro_batch < 1:
        raise UserError(f"--micro-batch {micro_batch} holds nothing; give 1 or more")


def check_place(checkpoint: Path, resume: bool) -> None:
    """UserError where there is nothing to resume, or where no checkpoint can be written. Leaves the place as it was."""
    if resume and not os.path.exists(checkpoint):
        raise UserError(
            f"nothing to resume, no checkpoint at {checkpoint}; begin without --resume, or name it by --out"
        )
    check_writable(checkpoint)  # in every process: one that fails alone leaves the others waiting


def begin_or_resume(state: TrainState, checkpoint: Path, n_steps: int, resume: bool) -> None:
    """Resume from the checkpoint where that is wanted, and write a first one, so that no later write can fail.

    Raises UserError where the checkpoint is another's, or where a new run would overwrite one that has trained.
    """
    if resume:
        begun = state.resume(checkpoint)
        state.metadata["command"] = f"{begun.get('command', 'a script')}; {command_line()}"
        if state.step > n_steps:
            raise UserError(f"{checkpoint} is at step {state.step} already; give --steps {state.step} or more")
    elif os.path.exists(checkpoint):  # also False where one may not look
        check_nothing_lost(checkpoint)
    rank, _ = rank_and_world_size()
    if rank == 0:
        state.save(checkpoint)


def check_nothing_lost(checkpoint: Path) -> None:
    """UserError when a new run would overwrite one that has trained, to its end or not; at step 0 nothing is lost."""
    _, metadata = read_tensors(checkpoint)
    step, n_steps = (int(read_number(metadata, key, checkpoint)) for key in ("step", "steps"))
    if 0 < step < n_steps:
        raise UserError(
            f"{checkpoint} is an unfinished run (step {step} of {n_steps}); "
            "--resume continues it, --out starts elsewhere"
        )
    if step > 0:
        raise UserError(
            f"{checkpoint} is a finished run of {step} steps; --resume with more --steps continues it, "
            "--out starts elsewhere, or remove its folder"
        )


def begin_log(
    state: TrainState, experiment: Experiment, config: TrainConfig, folder: Path, precision: torch.dtype
) -> None:
    """Write all choices to config.json, and cut log.jsonl back to the step that is gone on from."""
    rank, n_processes = rank_and_world_size()
    if rank > 0:
        return
    metadata = state.metadata
    choices: dict = {key: metadata[key] for key in ("experiment", "setting")}
    choices["T"] = state.model.forward_process().T
    choices |= {"unit": experiment.unit, "steps": int(metadata["steps"]), "batch": config.batch}
    choices |= {"learning_rate": config.learning_rate, "precision": str(precision)}
    if "data" in metadata:
        choices["data"] = json.loads(metadata["data"])
    write_json(folder / "config.json", choices | {"provenance": run_provenance(state, n_processes)})
    cut_log(folder / "log.jsonl", state.step)


def run(
    state: TrainState,
    experiment: Experiment,
    config: TrainConfig,
    folder: Path,
    n_steps: int,
    precision: torch.dtype,
    args: argparse.Namespace,
) -> None:
    """Train to the end, with a progress bar that shows K, a log, and --sample-every so many steps a picture."""
    rank, _ = rank_and_world_size()
    records = train(
        state,
        experiment.draw,
        config.batch,
        n_steps,
        config.learning_rate,
        folder / "checkpoint.safetensors",
        loss=config.loss or bound_loss,
        precision=precision,
        micro_batch=args.micro_batch,
    )
    with tqdm(total=n_steps, initial=state.step, unit="step", disable=rank > 0) as bar:
        begun, step = time.monotonic(), state.step
        for record in records:
            seconds = time.monotonic() - begun
            K = record.K / math.log(2) / experiment.n_pixels
            bar.update(record.step - bar.n)
            bar.set_postfix_str(f"K {K:.3f} {experiment.unit}", refresh=False)
            if rank == 0:
                learning_rate = learning_rate_at(record.step - 1, n_steps, config.learning_rate)
                line = {"step": record.step, "K_bits": K, "learning_rate": learning_rate}
                line["samples_per_second"] = (record.step - step) * config.batch / seconds
                append_record(folder / "log.jsonl", line)
                if args.sample_every and record.step // args.sample_every > step // args.sample_every:
                    draw_progress(folder / f"samples-{record.step:06}.png", experiment, state, args.seed)
            begun, step = time.monotonic(), record.step


N_DRAWN = {"pictures": 16, "points": 2_000, "bits": 100}  # samples in a picture of progress


def draw_progress(path: Path, experiment: Experiment, state: TrainState, seed: int) -> None:
    """Write a picture of samples of the averaged weights, from the same noise every time."""
    model = cast(DiffusionModel, state.ema.module)
    q = model.forward_process()
    generator = Generator(q.beta.device).manual_seed(seed)
    x = draw_samples(experiment, model, q, N_DRAWN[experiment.kind], generator)
    write_file(path, to_png(plot_samples(experiment, x)))


def to_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Network weights in 16 bits, for half the file; float64 schedules as they are."""
    return {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
