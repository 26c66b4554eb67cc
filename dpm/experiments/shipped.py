"""Where the weights, results and schedules are that the project ships."""

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from dpm.errors import UserError
from dpm.files import read_json
from dpm.schedules import check_schedule


def find_data(package: Path) -> Path:
    """The folder of what is shipped: inside an installed package, beside the package in a checkout."""
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent / "data"


DATA = find_data(Path(str(files("dpm"))))


def weights_path(name: str, setting: str) -> Path:
    """The shipped weights of an experiment's setting."""
    return DATA / "weights" / f"{name}-{setting}.safetensors"


def schedule_path(name: str, setting: str = "best") -> Path:
    """The shipped best schedule of an experiment's setting, as `dpm schedule` wrote it."""
    return DATA / "schedules" / f"{name}-{setting}.json"


def result_path(name: str, setting: str) -> Path:
    """The shipped result of an experiment's setting."""
    return DATA / "results" / f"{name}-{setting}.json"


def load_result(name: str, setting: str) -> dict:
    """The shipped result: what `dpm train` wrote when it made the shipped weights."""
    return read_json(result_path(name, setting))


def load_schedule(name: str, setting: str = "best") -> Tensor:
    """The shipped best schedule of a setting, β [T+1] in float64. UserError where its record holds none."""
    path = schedule_path(name, setting)
    beta = read_json(path).get("beta")
    if not (isinstance(beta, list) and all(isinstance(value, float) for value in beta)):
        raise UserError(f"{path} holds no noise schedule; copy or install it anew")
    return check_schedule(torch.tensor(beta, dtype=torch.float64), path)
