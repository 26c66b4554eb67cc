"""Data sets that do not fit into the book: from the folder that DPM_DATA names, else from the network, once.

What a file holds is checked, not how it is packed, so that a copy that was compressed anew passes.
"""

import gzip
import hashlib
import io
import logging
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pooch
import requests

from dpm.errors import UserError

Unpack = Callable[[bytes], list[bytes]]  #: a file's bytes → the contents in it, in order


def no_unpacking(data: bytes) -> list[bytes]:
    """A file that is no archive: the checksum is that of its own bytes."""
    return [data]


def gunzip(data: bytes) -> list[bytes]:
    """The content of a gzip file."""
    return [gzip.decompress(data)]


def unzip(data: bytes) -> list[bytes]:
    """The contents of a zip file, sorted by file name, then by folder: CLASS/0000.jpg of every class comes first.

    So the first n of them hold all classes.
    """
    archive = zipfile.ZipFile(io.BytesIO(data))
    return [archive.read(name) for name in sorted(archive.namelist(), key=lambda name: name.split("/")[::-1])]


def check_sha256(contents: Iterable[bytes], sha256: str) -> None:
    """ValueError unless the concatenated contents have this SHA-256."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    if digest.hexdigest() != sha256:
        raise ValueError(f"its content has SHA-256 {digest.hexdigest()[:8]}…, not {sha256[:8]}…")


def read_contents(path: Path, unpack: Unpack, sha256: str) -> list[bytes]:
    """The checked contents of a file; ValueError when it is damaged or holds something else."""
    data = path.read_bytes()
    try:
        unpacked = unpack(data)
    except Exception as error:  # on damage the readers raise EOFError, zlib.error, BadZipFile, and several more
        raise ValueError(f"it is damaged ({error})") from None
    check_sha256(unpacked, sha256)
    return unpacked


@contextmanager
def as_user_error(what: str, how: str) -> Iterator[None]:
    """Turn an OSError or ValueError of the block into the UserError '`what`: reason; `how`'."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what}: {reason}; {how}") from None


def find_local(name: str) -> Path | None:
    """The file or folder `name` in the folder that DPM_DATA names; None where there is none."""
    folder = os.environ.get("DPM_DATA")
    if not folder:
        return None
    if not (os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)):
        raise UserError(
            f"DPM_DATA names {folder}, which is no folder to read from; name that of your data, or unset it"
        )
    path = Path(folder, name)
    return path if path.exists() else None


def read_local(path: Path, unpack: Unpack, sha256: str) -> list[bytes]:
    """The checked contents of a file under DPM_DATA; UserError when it is damaged or holds something else."""
    with as_user_error(f"cannot use {path}", "put a whole copy there, or take it away"):
        return read_contents(path, unpack, sha256)


def download(url: str, path: Path, unpack: Unpack, sha256: str) -> None:
    """Download `url` to `path` unless a file is there. It gets that name only once its contents are checked."""
    instead = f"or set DPM_DATA to a folder that holds {path.parent.name}/{path.name}"

    def download_and_check(url: str, temporary: str, _: object) -> None:
        pooch.HTTPDownloader(progressbar=sys.stderr.isatty())(url, temporary, None)
        read_contents(Path(temporary), unpack, sha256)

    pooch.get_logger().setLevel(logging.WARNING)  # else it asks for a checksum of the packed file
    try:
        pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=download_and_check)
    except requests.RequestException as error:
        reason = f"cannot download {url} ({type(error).__name__})"
        raise UserError(f"{reason}; connect to the network and try again, {instead}") from None
    except ValueError as error:
        raise UserError(f"{url} came, but {error}; try again, {instead}") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space, {instead}") from None


def fetch(name: str, url: str, unpack: Unpack, sha256: str) -> list[bytes]:
    """The contents of the file FOLDER/FILE under DPM_DATA, in pooch's cache, or at `url`, from where it is cached.

    Raises UserError when there is none, or when what there is does not have this SHA-256.
    """
    local = find_local(name)
    if local:
        return read_local(local, unpack, sha256)
    cached = Path(pooch.os_cache("dpm")) / name
    download(url, cached, unpack, sha256)
    with as_user_error(f"cannot use {cached}", "remove it, and run again to download it anew"):
        return read_contents(cached, unpack, sha256)
