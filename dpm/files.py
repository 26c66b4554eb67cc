"""Files that are written whole or not at all."""

import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpm.errors import UserError


@contextmanager
def write_errors_as_user_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError; refuse a path that names a folder or a device."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EISDIR, "a folder or a device has this name")
        yield
    except OSError as error:
        reason = "a file is where a folder should be" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another place") from None


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: into a temporary file beside it, which is then renamed. UserError when that fails."""
    path = path.resolve()  # a link stays a link: what it names is replaced
    temporary = path.parent / f".{path.name}.{os.getpid()}.part"
    with write_errors_as_user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise now the UserError that `write_file` would raise later. Creates no folder."""
    with write_errors_as_user_errors(path):
        TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())).close()


def write_json(path: Path, content: object) -> None:
    """Write one JSON document, indented, with a newline at its end."""
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_array(path: Path, x: Tensor) -> None:
    """Write one tensor as a .npy file."""
    content = io.BytesIO()
    np.save(content, x.detach().cpu().numpy(), allow_pickle=False)
    write_file(path, content.getvalue())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors and string metadata as a safetensors file."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one JSON entry, because a safetensors header does not keep the order of several
    write_file(path, save(on_cpu, metadata={"metadata": json.dumps(metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file. Nothing is unpickled.

    Raises UserError when the file is missing, truncated or of another format.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name the safetensors file in it")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            metadata = json.loads((file.metadata() or {}).get("metadata", "{}"))
            if not isinstance(metadata, dict):
                raise ValueError("its header is another program's")
            return {name: file.get_tensor(name) for name in names}, metadata
    except FileNotFoundError:
        raise UserError(f"no weights at {path}; `dpm train` makes some, or name others") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it anew, or train elsewhere") from None


def strip_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, under their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_state(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load a state dict that was read from `path`. UserError when its names or shapes are another model's."""
    wanted, found = module.state_dict(), {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if {name: tuple(tensor.shape) for name, tensor in wanted.items()} != found:
        mismatched = sorted(wanted.keys() ^ found.keys()) or ["shapes differ"]
        raise UserError(
            f"{path} belongs to another experiment or setting ({mismatched[0]}); name the one it was trained for"
        )
    module.load_state_dict(tensors)
