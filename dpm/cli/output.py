"""How a command prints what it found."""

from dpm.files import to_json


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
