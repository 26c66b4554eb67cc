"""Files that are written whole or not at all, and whose content is checked before it is used."""

import errno
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpm.errors import UserError

# Writing


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
    path = Path(os.path.realpath(path))  # a link stays a link: what it names is replaced
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


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and keep others from it who ask too, until the block or the process ends, however it ends.

    UserError when another process is there already.
    """
    lock = FileLock(folder / ".lock")
    with write_errors_as_user_errors(folder / ".lock"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another run is at work in {folder}; wait for its end, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def not_finite(content: object, name: str = "") -> Iterator[str]:
    """The names of the numbers of a JSON document that are not finite: "a.b" for b of a, "a.0" for the first of a."""
    if isinstance(content, float) and not math.isfinite(content):
        yield name
    entries = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list | tuple)
        else ()
    )
    for key, value in entries:
        yield from not_finite(value, f"{name}.{key}" if name else str(key))


def to_json(content: object, indent: int | None = None) -> str:
    """One JSON document. UserError names the numbers in it that are not finite, for which JSON has no word."""
    names = [*not_finite(content)]
    if names:
        raise UserError(f"{', '.join(names)}: not finite; the weights, data or options lead to no number here")
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, content: object) -> None:
    """Write one JSON document, indented, with a newline at its end. UserError where a number in it is not finite."""
    write_file(path, (to_json(content, indent=2) + "\n").encode())


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """UserError naming the first tensor of `source` that holds a value that is not finite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{source}: {name} holds values that are not finite; name other weights, or train anew")


def write_array(path: Path, x: Tensor) -> None:
    """Write one tensor as a .npy file."""
    content = io.BytesIO()
    np.save(content, x.detach().cpu().numpy(), allow_pickle=False)
    write_file(path, content.getvalue())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors and string metadata as a safetensors file. UserError where a tensor is not finite."""
    check_finite(tensors, path)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one JSON entry, because a safetensors header does not keep the order of several
    write_file(path, save(on_cpu, metadata={"metadata": json.dumps(metadata)}))


# Reading

#: the types that a safetensors file may hold
DTYPES: set[torch.dtype] = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8}


def check_is_file(path: Path, what: str) -> None:
    """UserError unless `path` is a file, and no folder, device or pipe; `what` it should be."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name the {what} file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is a device or a pipe; name a {what} file")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file. Nothing is unpickled.

    Raises UserError when the file is missing, truncated or of another format, when a tensor is of a type that is not
    in DTYPES, and when a value is not finite.
    """
    check_is_file(path, "safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("metadata", "{}"))
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("its header is another program's")
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except FileNotFoundError:
        raise UserError(f"no weights at {path}; `dpm train` makes some, or name others") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; name a file that you may read") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it anew, or train elsewhere") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{path}: {name} is of {tensor.dtype}, which dpm never writes; name weights of `dpm train`")
    check_finite(tensors, path)
    return tensors, metadata


def read_json(path: Path, mend: str = "copy or install it anew") -> dict:
    """Read the record that a JSON file holds. UserError when it is missing, broken, or has a number not finite.

    `mend` tells the user what to do then.
    """
    check_is_file(path, "JSON")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = [*not_finite(content)]
        if names or not isinstance(content, dict):
            raise ValueError(f"{names[0]} is not finite" if names else "it is not one object")
        return content
    except FileNotFoundError:
        raise UserError(f"no record at {path}; {mend}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {mend}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a whole record ({error}); {mend}") from None


def strip_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, under their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_tensors(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """UserError unless tensors that were read from `path` have the names, shapes and types of those wanted.

    Half precision passes for single: so `dpm train` writes weights.
    """
    mismatched = sorted(wanted.keys() ^ tensors.keys())
    mismatched += [
        f"shape of {name}" for name in wanted if not mismatched and tensors[name].shape != wanted[name].shape
    ]
    if mismatched:
        raise UserError(
            f"{path} belongs to another experiment or setting ({mismatched[0]}); name the one it was trained for"
        )
    for name, like in wanted.items():
        if (tensors[name].dtype, like.dtype) not in {(like.dtype, like.dtype), (torch.float16, torch.float32)}:
            raise UserError(
                f"{path}: {name} is of {tensors[name].dtype}, not {like.dtype}; name weights of `dpm train`"
            )


def load_state(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load a state dict that was read from `path`. UserError when `check_tensors` finds another model's."""
    check_tensors(tensors, module.state_dict(), path)
    module.load_state_dict(tensors)
