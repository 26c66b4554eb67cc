"""All experiments by name. One is added by writing a file here that defines EXPERIMENT."""

import pkgutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

import dpm.experiments
from dpm.errors import UserError
from dpm.experiments.base import Experiment, TrainConfig
from dpm.experiments.shipped import weights_path
from dpm.files import load_state, read_tensors, strip_prefix
from dpm.reverse import DiffusionModel
from dpm.schedules import check_schedule

_NO_EXPERIMENT = {"base", "shipped", "registry", "own"}


def _find_experiments() -> dict[str, Experiment]:
    """The EXPERIMENT of every other file of this folder, in alphabetical order."""
    names = [module.name for module in pkgutil.iter_modules(dpm.experiments.__path__)]
    modules = [import_module(f"dpm.experiments.{name}") for name in names if name not in _NO_EXPERIMENT]
    return {module.EXPERIMENT.name: module.EXPERIMENT for module in modules}


EXPERIMENTS = _find_experiments()  #: name → Experiment


def get_experiment(name: str, setting: str) -> tuple[Experiment, TrainConfig]:
    """The experiment, with the ideal reverse model of the setting's form, and the configuration of these names.

    UserError lists those that exist.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"no experiment named {name!r}; there are {', '.join(EXPERIMENTS)}")
    settings = EXPERIMENTS[name].settings
    if setting not in settings:
        raise UserError(f"{name} has no setting {setting!r}; it has {', '.join(settings)}")
    experiment, config = EXPERIMENTS[name], settings[setting]
    return (replace(experiment, ideal=config.ideal) if config.ideal else experiment), config


def build_model(config: TrainConfig, seed: int = 0) -> DiffusionModel:
    """A fresh model whose initial weights depend on the seed alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):  # weights are initialised on the CPU
        torch.default_generator.manual_seed(seed)
        model = config.build()
    model.p.float()  # schedules are float64, networks float32, whatever the default type
    return model


def load_model(name: str, setting: str, path: Path | None = None, device: torch.device | str = "cpu") -> DiffusionModel:
    """The trained model of a setting, from the shipped weights, or from weights or a checkpoint of `dpm train`.

    UserError where they are missing, broken, another model's, or hold a schedule that is none.
    """
    experiment, config = get_experiment(name, setting)
    if path is None and not weights_path(name, setting).exists():
        shipped = [other for other in experiment.settings if weights_path(name, other).exists()]
        only = f", only of {', '.join(shipped)}" if shipped else ""
        raise UserError(
            f"no weights of {name} --setting {setting} are shipped{only}; "
            "`dpm train` makes them, --checkpoint names them"
        )
    return load_weights(config, path or weights_path(name, setting), device, name)


def check_trained_on(name: str, metadata: dict[str, str], path: Path) -> None:
    """UserError where the metadata of weights say that they are of a user's own data, or of another experiment."""
    if "data" in metadata:
        raise UserError(f"{path} was trained on data of your own, not on {name}; name them by --data instead")
    if metadata.get("experiment", name) != name:
        raise UserError(
            f"{path} belongs to another experiment or setting ({metadata['experiment']}); name one of {name}"
        )


def check_setting(name: str | None, config: TrainConfig, metadata: dict[str, str], path: Path) -> None:
    """UserError where the metadata of weights say that they are of another setting of the experiment."""
    setting, settings = metadata.get("setting", ""), EXPERIMENTS[name].settings if name else {}
    if settings.get(setting, config) is not config:
        raise UserError(
            f"{path} belongs to another experiment or setting: it is of {name} --setting {setting}; give that setting"
        )


def load_weights(
    config: TrainConfig, path: Path, device: torch.device | str = "cpu", name: str | None = None
) -> DiffusionModel:
    """The trained model of a configuration, from weights or a checkpoint of `dpm train`.

    UserError where a name of an experiment is given and they are not of it, or where the network is another's.
    """
    tensors, metadata = read_tensors(path)
    if name is not None:
        check_trained_on(name, metadata, path)
    model = build_model(config)
    try:
        load_state(model, strip_prefix(tensors, "ema.module.") or tensors, path)
    except UserError:
        check_setting(name, config, metadata, path)
        raise
    check_schedule(model.schedule(), path)
    return model.to(device).requires_grad_(False)
