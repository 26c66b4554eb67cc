"""What made a result: the command, the seed, the device, the versions, the git revision, the date."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def command_line() -> str:
    """The command line of this process."""
    return " ".join(["dpm", *sys.argv[1:]])


def provenance(seed: int, device: torch.device, n_processes: int = 1) -> dict:
    """What made a result: command, seed, devices, versions, git revision, date."""
    cuda, threads = device.type == "cuda", torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if cuda else f"cpu, {threads} thread{'s' * (threads > 1)}"
    return {
        "command": command_line(),
        "seed": seed,
        "device": name if n_processes == 1 else f"{n_processes} × {name}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "dpm": installed_version()},
        "revision": git_revision(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def installed_version() -> str:
    """The version of dpm that is installed; "unknown" where it is used from a checkout alone."""
    try:
        return version("dpm")
    except PackageNotFoundError:
        return "unknown"


def git_revision() -> str:
    """The git revision of the source, with a + where files of the module have changed; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        git = partial(subprocess.run, cwd=here, capture_output=True, text=True, check=True)
        git(["git", "ls-files", "--error-unmatch", "."])  # an installed module may lie in another project's checkout
        changed = "+" if git(["git", "status", "--porcelain", "--", "."]).stdout else ""
        return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
