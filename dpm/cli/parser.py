"""The words of the command line, as argparse sees them. Imports nothing heavy."""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from dpm.errors import UserError

PARZEN_SAMPLES = 10_000  # of Table 2's protocol
DEFAULT_SETTING = "paper"
OLD_SETTINGS = {"ours": "best", "cpu": "best"}  # words of earlier versions, which recorded commands use


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a UserError, with a pointer to `--help`."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """An argument type: a whole number in a range."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return parse


seed = whole_number(0, 2**32 - 1)  #: one that every generator takes


def file_path(*suffixes: str) -> Callable[[str], Path]:
    """An argument type: a file with one of these suffixes."""

    def path(text: str) -> Path:
        if Path(text).suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} is no {' or '.join(suffixes)} file")
        return Path(text)

    return path


def positive(text: str) -> float:
    """A finite number above 0."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return float(text)


def setting(text: str) -> str:
    """A setting by its present name."""
    return OLD_SETTINGS.get(text, text)


def add_command(commands: argparse._SubParsersAction, name: str, run: str, about: str) -> argparse.ArgumentParser:
    """A command. `run` names a file of `dpm.cli` and a function in it."""
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(run=f"dpm.cli.{run}")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


Add = Callable[[str, str, str], argparse.ArgumentParser]  #: (command, what runs it, what it does) → its parser


# Arguments that several commands share


def add_name(command: argparse.ArgumentParser) -> None:
    """An experiment."""
    command.add_argument("name", help="an experiment, see `dpm list`")
    command.set_defaults(data=None)


def add_name_or_data(command: argparse.ArgumentParser, required: bool = True) -> None:
    """An experiment, or data of one's own."""
    data = command.add_mutually_exclusive_group(required=required)
    data.add_argument("name", nargs="?", help="an experiment, see `dpm list`")
    data.add_argument("--data", type=Path, help="your own: a folder of pictures, or a .npy or .npz file")


def add_seed(command: argparse.ArgumentParser) -> None:
    """The seed of all that is random."""
    command.add_argument("--seed", type=seed, default=0)


def add_setting(command: argparse.ArgumentParser) -> None:
    """One of an experiment's settings."""
    choices = "paper (as published, the default), best (at the paper's bound) or beyond (with later choices); "
    choices += "`dpm list` shows which there are"
    command.add_argument("--setting", type=setting, default=DEFAULT_SETTING, help=choices)


def add_device(command: argparse.ArgumentParser) -> None:
    """Where to compute."""
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def add_n_timesteps(command: argparse.ArgumentParser) -> None:
    """T."""
    command.add_argument("--T", type=int, help="number of timesteps")


def add_model(command: argparse.ArgumentParser) -> None:
    """A trained model, and where to compute."""
    add_seed(command)
    add_setting(command)
    add_device(command)
    command.add_argument("--checkpoint", type=Path, help="weights to use in place of the shipped ones")


def add_sampler(command: argparse.ArgumentParser, n: int = 16) -> None:
    """A trained model to sample from, and how many samples."""
    add_model(command)
    command.add_argument("-n", type=int, default=n, help="number of samples")
    add_n_timesteps(command)


def add_restoration(command: argparse.ArgumentParser) -> None:
    """What `dpm denoise` and `dpm inpaint` share."""
    add_name_or_data(command)
    add_sampler(command)
    command.add_argument("--out", type=file_path(".png", ".safetensors"), help="a .png of them, or a .safetensors file")
    command.add_argument("--r", default="constant", help="r(x^t), Section 2.5.4: constant, annealed or diffused")


# Commands


def add_train(add: Add) -> None:
    """`dpm train`."""
    train = add("train", "train:train_experiment", "maximise K; writes checkpoint, weights and results.json")
    add_name_or_data(train)
    add_seed(train)
    add_setting(train)
    add_device(train)
    train.add_argument(
        "--steps",
        type=int,
        help="optimiser steps; by default the setting's own number, "
        "with --data the network's or 500 passes over the training samples, whichever is less",
    )
    train.add_argument(
        "--out", type=Path, help="folder; by default runs/NAME-SETTING, or runs/ and the name of the data"
    )
    train.add_argument(
        "--micro-batch", "--at-once", type=int, help="samples in memory at once; the whole batch by default"
    )
    train.add_argument(
        "--sample-every",
        type=whole_number(1, 10**9),
        help="steps between two pictures of samples in the folder, each drawn at the next record of the log, "
        "of which there is one every 50 steps",
    )
    own = train.add_argument_group("with --data")
    own.add_argument(
        "--size", type=whole_number(4, 1024), help="crop pictures to squares, and reduce them to this many pixels"
    )
    own.add_argument(
        "--network", help="unet (the default) or paper for pictures, mlp (the default) or paper for points and bits"
    )
    own.add_argument(
        "--T",
        type=whole_number(2, 100_000),
        help="number of timesteps; by default the network's: of unet 1000, of mlp 200 for points and 500 for bits",
    )
    own.add_argument(
        "--batch",
        type=whole_number(1, 10**6),
        help="samples per step; by default the network's: of unet 64, of mlp 1000 for points and 1000 for bits",
    )
    own.add_argument(
        "--learning-rate",
        type=positive,
        help="its peak; by default the network's: of unet 0.001, of mlp 0.002 for points and 0.002 for bits",
    )
    start = train.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    start.add_argument("--from", dest="start", type=Path, help="initial weights, such as those in data/weights")


def add_score(add: Add) -> None:
    """`dpm score`."""
    score = add("score", "score:score", "bits per dimension of a model trained elsewhere")
    score.add_argument("folder", metavar="DIR", type=Path, help="a pipeline that diffusers saved")
    score.add_argument("--data", type=Path, required=True, help="held-out pictures: a folder, or a .npy or .npz file")
    add_seed(score)
    add_device(score)
    score.add_argument("-n", "--n", type=int, default=100, help="number of pictures, drawn by the seed")
    score.add_argument("--levels", type=int, default=256, help="grey levels, of which the last is 1 to the network")
    score.add_argument("--clip", action="store_true", help="clip the predicted x⁰ to the range of the data")
    score.add_argument("--final-step", choices=["discretized", "dequantized", "edge"], default="discretized")


def add_ideal(add: Add) -> None:
    """`dpm optimum` and `dpm schedule`."""
    optimum = add(
        "optimum",
        "ideal:optimum",
        "K* of the untrained forward process, and −H(X⁰); `evaluate` has K* of a trained one",
    )
    add_name(optimum)
    add_seed(optimum)
    add_n_timesteps(optimum)
    optimum.add_argument("--kernel", help="forward kernel for bits: flipping (the paper's) or masking")
    optimum.add_argument("--length", type=int, help="number of bits of another heartbeat")
    optimum.add_argument("--period", type=int, help="number of bits from one 1 to the next in another heartbeat")

    schedule = add("schedule", "ideal:schedule", "the noise schedule that makes K* the highest")
    add_name(schedule)
    add_seed(schedule)
    add_setting(schedule)
    add_n_timesteps(schedule)
    schedule.add_argument("--out", type=Path, help="a JSON file for it")


def add_sample(add: Add) -> None:
    """`dpm sample`, `dpm denoise` and `dpm inpaint`, and what samples are compared with."""
    sample = add("sample", "sample:sample", "draw from p(x⁰)")
    add_name_or_data(sample, required=False)
    add_sampler(sample)
    sample.add_argument(
        "--out",
        type=file_path(".png", ".safetensors", ".npy"),
        help="a .png of them, or their arrays; .npy in the units of the data",
    )

    baselines = add("baselines", "baselines:baselines", "other density models on the same pictures")
    add_name(baselines)
    add_sampler(baselines, n=PARZEN_SAMPLES)
    baselines.add_argument("--save", dest="out", type=Path, help="a JSON file for the result")

    denoise = add("denoise", "sample:denoise", "restore held-out pictures from noise")
    add_restoration(denoise)
    denoise.add_argument("--variance", type=float, default=1.0, help="of the noise; 1 is that of the data")

    inpaint = add("inpaint", "sample:inpaint", "restore held-out pictures from a hole in their middle")
    add_restoration(inpaint)
    inpaint.add_argument("--hole", type=int, default=4, help="side of the hole, in pixels")


def build_parser() -> Parser:
    """The parser of all commands. `run` names what does the work: a module, a colon, a function."""
    top = Parser(
        prog="dpm",
        description="Train and check the experiments of the diffusion paper (2015).",
        epilog="Points and bits take one thread, which is fastest; OMP_NUM_THREADS asks for another number.",
    )
    add = partial(add_command, top.add_subparsers(required=True, metavar="COMMAND"))

    add("list", "listing:list_experiments", "experiments, settings, the paper's numbers, shipped weights")
    add_train(add)
    curve = add("curve", "curve:curve", "learning curves of runs, beside K* where it is known")
    curve.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that `dpm train` writes")
    curve.add_argument("--out", type=file_path(".png"), help="a .png of them")
    evaluate = add("evaluate", "evaluate:evaluate", "K on held-out data, its parts, L_null and K*")
    add_name_or_data(evaluate)
    add_model(evaluate)
    add_score(add)
    add_ideal(add)
    add_sample(add)
    return top
