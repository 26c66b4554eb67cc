"""Where the weights, results and schedules are that the project ships."""

import json
from importlib.resources import files
from pathlib import Path


def find_data(package: Path) -> Path:
    """The folder of what is shipped: inside an installed package, beside the package in a checkout."""
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent / "data"


DATA = find_data(Path(str(files("dpm"))))


def weights_path(name: str, setting: str) -> Path:
    """The shipped weights of an experiment's setting."""
    return DATA / "weights" / f"{name}-{setting}.safetensors"


def schedule_path(name: str) -> Path:
    """The shipped best schedule of an experiment, as `dpm schedule` wrote it."""
    return DATA / "schedules" / f"{name}.json"


def load_result(name: str, setting: str) -> dict:
    """The shipped result: what `dpm train` wrote when it made the shipped weights."""
    return json.loads((DATA / "results" / f"{name}-{setting}.json").read_text())
