"""How a command prints what it found, and says where it wrote it."""

import sys
from pathlib import Path

from dpm.files import to_json


def print_written(path: Path | None) -> None:
    """Say on stderr what was written, or that nothing was, for want of a name."""
    print(f"dpm: wrote {path}" if path else "dpm: nothing is saved; --out names a file to write", file=sys.stderr)


def print_result(result: dict, as_json: bool) -> None:
    """Print a result as one JSON object, or as a table of its numbers. UserError where one is not finite."""
    document = to_json(result)
    if as_json:
        print(document)
        return
    for name, value in result.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in entries:
            print(f"{name} {key}".ljust(32), f"{number:.4f}" if isinstance(number, float) else number)
