"""`log.jsonl`, by which a run is followed: one JSON object a line, with the step, K in bits, and how fast it went."""

import json
from pathlib import Path

from dpm.errors import UserError
from dpm.files import to_json, write_errors_as_user_errors, write_file


def append_record(path: Path, record: dict) -> None:
    """Add a line to a log. UserError where it cannot be written."""
    with write_errors_as_user_errors(path), path.open("a", encoding="utf8") as file:
        file.write(to_json(record) + "\n")


def read_log(path: Path) -> list[dict]:
    """The records of a log, in order; a line that a killed process left unfinished at the end is passed over."""
    try:
        records = [json.loads(line) for line in path.read_text("utf8").split("\n")[:-1]]
        if not all(isinstance(record, dict) and "step" in record for record in records):
            raise ValueError("a line is no record of a step")
        return records
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no log at {path}; name the folder of a run of `dpm train`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no log of `dpm train` ({error}); take it away") from None


def cut_log(path: Path, step: int) -> None:
    """Keep what a log says up to a step: a resumed run does the later steps again, and a new one all of them."""
    kept = [record for record in read_log(path) if record["step"] <= step] if step and path.exists() else []
    write_file(path, "".join(to_json(record) + "\n" for record in kept).encode())
