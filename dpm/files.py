"""Files, read and written whole or not at all; and the one error a user can mend."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class UserError(Exception):
    """Something the user can mend: its one line says what, where and how."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A failure in here is a UserError; so is a name that is taken by what no rename should replace."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EISDIR, "a folder or a device has this name")
        yield
    except OSError as error:
        reason = "a file is where a folder should be" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another place") from None


def write(path: Path, content: bytes) -> None:
    """Write a file aside, then rename it into place: a reader sees the old file or the new, never half of one."""
    path = path.resolve()  # what a link names is replaced, not the link
    aside = path.parent / f".{path.name}.{os.getpid()}.part"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def refuse_unwritable(path: Path) -> None:
    """UserError at once, not when the work is done, where `write` would fail; no folder is made yet."""
    with writing(path):
        TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())).close()


def write_json(path: Path, content: object) -> None:
    """Write one JSON document, indented, ending with a newline."""
    write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write a safetensors file whose header carries `about`."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write(path, save(whole, metadata={"about": json.dumps(about)}))  # one entry: the header keeps no order of several


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and what its header says of them. Nothing is unpickled.

    Raises UserError when the file is missing, truncated or of another format.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name the safetensors file in it")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            if not isinstance(about, dict):
                raise ValueError("its header is another program's")
            return {name: file.get_tensor(name) for name in names}, about
    except FileNotFoundError:
        raise UserError(f"no weights at {path}; `dpm train` makes some, or name others") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it anew, or train elsewhere") from None


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, less the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a module from named tensors; UserError when they belong to another model."""
    wanted, found = module.state_dict(), {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if {name: tuple(tensor.shape) for name, tensor in wanted.items()} != found:
        odd = sorted(wanted.keys() ^ found.keys()) or ["shapes differ"]
        raise UserError(f"{path} belongs to another experiment or setting ({odd[0]}); name the one it was trained for")
    module.load_state_dict(tensors)
