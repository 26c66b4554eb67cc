"""Files are written whole or not at all, and read without running anything."""

import errno
import os
import pickle

import pytest
import torch

from dpm.files import UserError, load_into, read_tensors, write, write_tensors


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {"a": torch.randn(3, 4, dtype=torch.float64), "b.c": torch.arange(5)}
    write_tensors(tmp_path / "deep" / "x.safetensors", tensors, {"step": "7"})
    back, about = read_tensors(tmp_path / "deep" / "x.safetensors")
    assert about == {"step": "7"} and back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write(path, b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        write(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.json"]


def test_a_file_in_the_place_of_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "x.json", b"new")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:5], lambda b: os.urandom(100), lambda b: b""]
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.randn(50)}, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_tensors(path)


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def test_a_pickle_is_never_unpickled(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_tensors(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(UserError):
        read_tensors(tmp_path)


@pytest.mark.parametrize("other", [torch.nn.Linear(2, 4), torch.nn.Linear(2, 3, bias=False)])
def test_a_foreign_file_is_named(tmp_path, other):
    with pytest.raises(UserError, match="another experiment or setting"):
        load_into(torch.nn.Linear(2, 3), other.state_dict(), tmp_path / "x.safetensors")
