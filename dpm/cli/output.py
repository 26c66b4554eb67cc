"""How a command prints what it found."""

import json


def print_result(result: dict, as_json: bool) -> None:
    """Print a result as one JSON object, or as a table of its numbers."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for name, value in result.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in entries:
            print(f"{name} {key}".ljust(32), f"{number:.4f}" if isinstance(number, float) else number)
