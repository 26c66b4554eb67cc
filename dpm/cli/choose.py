"""What a command works on: an experiment and its shipped weights, or a user's own data and a checkpoint."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dpm.cli.parser import DEFAULT_SETTING
from dpm.distributed import choose_device, use_device, use_one_thread
from dpm.errors import UserError
from dpm.experiments.base import Experiment
from dpm.experiments.own import Choices, choose, dump_choices, own_experiment, read_choices, read_same_data
from dpm.experiments.registry import get_experiment, load_model, load_weights
from dpm.reverse import DiffusionModel

OWN_OPTIONS = ("size", "network", "T", "batch", "learning_rate")  # of `dpm train --data`


def choose_trained(args: argparse.Namespace) -> tuple[Experiment, str, DiffusionModel]:
    """The experiment of NAME or of a checkpoint on the user's own data, its setting, and its trained model."""
    if args.name is None:
        experiment, setting = own_trained(args)
    else:
        experiment, setting = get_experiment(args.name, args.setting)[0], args.setting
    device = choose_machine(args.device, experiment)
    if args.name is None:
        return experiment, setting, load_weights(experiment.settings[setting], args.checkpoint, device)
    return experiment, setting, load_model(args.name, setting, args.checkpoint, device)


def choose_machine(name: str, experiment: Experiment) -> torch.device:
    """The device of this name, made the process's own; and one thread for points and bits."""
    device = choose_device(name)
    use_device(device)
    if experiment.images is None:
        use_one_thread()
    return device


def choose_to_train(args: argparse.Namespace) -> tuple[Experiment, str, Path, dict[str, str]]:
    """The experiment to train, its setting, the folder of the run, and what the header of its weights must say."""
    if args.name is not None:
        experiment, _ = get_experiment(args.name, args.setting)
        check_no_choices(args)
        return experiment, args.setting, args.out or Path("runs", f"{args.name}-{args.setting}"), {}
    check_no_setting(args)
    folder = args.out or Path("runs", args.data.resolve().stem)
    checkpoint = folder / "checkpoint.safetensors"
    chosen = {name: getattr(args, name) for name in OWN_OPTIONS if getattr(args, name) is not None}
    if args.resume and checkpoint.exists():
        choices, data = resume_choices(args.data, chosen, checkpoint)
    else:
        choices, data = choose(args.data, **chosen)
    return own_experiment(choices, data), choices.network, folder, {"data": dump_choices(choices)}


def check_no_choices(args: argparse.Namespace) -> None:
    """UserError where one of `OWN_OPTIONS` is given beside a named experiment."""
    for name in OWN_OPTIONS:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for --data; the settings of {args.name} fix their own")


def resume_choices(path: Path, chosen: dict, checkpoint: Path) -> tuple[Choices, Tensor]:
    """The choices that a run was begun with, and its data. UserError where they, or what is chosen now, are others."""
    begun = read_choices(checkpoint)
    for name, value in chosen.items():
        if value != getattr(begun, name):
            raise UserError(
                f"{checkpoint} was begun with {name.replace('_', ' ')} {getattr(begun, name)}, not {value}; "
                "resume it as it was begun"
            )
    return begun, read_same_data(path, begun, checkpoint)


def own_trained(args: argparse.Namespace) -> tuple[Experiment, str]:
    """The experiment of a checkpoint on the user's own data, with those data where --data names them; its setting."""
    check_no_setting(args)
    if args.checkpoint is None:
        raise UserError("name an experiment, or by --checkpoint what `dpm train --data` wrote")
    choices = read_choices(args.checkpoint)
    data = read_same_data(args.data, choices, args.checkpoint) if args.data else None
    return own_experiment(choices, data), choices.network


def check_no_setting(args: argparse.Namespace) -> None:
    """UserError where a setting is named beside the user's own data."""
    if args.setting != DEFAULT_SETTING:
        raise UserError(f"--setting {args.setting} is one of a named experiment; choose a --network for your own data")
