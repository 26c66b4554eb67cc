"""Files are written whole or not at all, and read without running anything."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dpm.errors import UserError
from dpm.files import check_writable, load_state, lock_folder, read_tensors, write_file, write_json, write_tensors


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {"a": torch.randn(3, 4, dtype=torch.float64), "b.c": torch.arange(5)}
    write_tensors(tmp_path / "deep" / "x.safetensors", tensors, {"step": "7"})
    back, metadata = read_tensors(tmp_path / "deep" / "x.safetensors")
    assert metadata == {"step": "7"} and back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_json_can_be_read_by_people(tmp_path):
    write_json(tmp_path / "x.json", {"device": "2 × GPU", "K": {"bits": 1.5}})
    assert (tmp_path / "x.json").read_text("utf8") == '{\n  "device": "2 × GPU",\n  "K": {\n    "bits": 1.5\n  }\n}\n'


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_file(path, b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.json"]


def test_nothing_is_seen_under_the_name_before_it_is_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "x.json", []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((path.exists(), os.fstat(file).st_size)))
    write_file(path, b"new")
    assert seen == [(False, 3)] and path.read_bytes() == b"new" and os.listdir(tmp_path) == ["x.json"]


def test_a_failed_rename_leaves_nothing(tmp_path):
    (tmp_path / "x" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write_file(tmp_path / "x", b"new")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("attempt", [lambda path: write_file(path, b"new"), check_writable])
def test_a_place_that_takes_no_file_is_one_clear_line(tmp_path, monkeypatch, attempt):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for path in ("file/x.json", "file/deeper/x.json", ".", "/proc/x.json", "/proc/x/x.json"):
        with pytest.raises(UserError, match=r"^cannot write [^\n]*; .* choose another place$"):
            attempt(Path(path))
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_the_place_of_a_folder_is_named_as_what_it_is(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file is where a folder should be"):
        write_file(tmp_path / "file" / "x.json", b"new")


def test_a_place_that_takes_a_file_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "deep" / "x.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("attempt", [lambda path: write_file(path, b"new"), check_writable])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, attempt):
    """A rename would put a file where a device is; a pipe stands for it, which takes no root to make."""
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UserError, match="a folder or a device has this name"):
        attempt(tmp_path / "x")
    assert (tmp_path / "x").is_fifo() and os.listdir(tmp_path) == ["x"]


def test_a_link_goes_on_linking(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "x")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "deep" / "x").read_bytes() == b"new"


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


@pytest.mark.parametrize("header", ["a cat", "[]"])
def test_a_header_that_others_wrote_is_refused(tmp_path, header):
    save_file({"a": torch.zeros(2)}, tmp_path / "x", metadata={"metadata": header})
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "x")


def test_missing_and_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "none" / "deeper", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="no weights at"):
            read_tensors(path)
    with pytest.raises(UserError, match="is a folder"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("other", [torch.nn.Linear(2, 4), torch.nn.Linear(2, 3, bias=False)])
def test_a_foreign_file_is_named(tmp_path, other):
    with pytest.raises(UserError, match="another experiment or setting"):
        load_state(torch.nn.Linear(2, 3), other.state_dict(), tmp_path / "x.safetensors")


def test_two_writers_of_one_name_do_not_share_a_file(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "fsync", lambda _: names.append(os.listdir(tmp_path)[0]))
    for pid in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        write_file(tmp_path / "x", b"x")
        (tmp_path / "x").unlink()
    assert len(set(names)) == 2


def test_a_folder_is_locked_for_the_time_of_a_block(tmp_path):
    for _ in range(2):  # also after a block that failed
        with pytest.raises(ZeroDivisionError), lock_folder(tmp_path / "deep" / "run"):
            with pytest.raises(UserError, match="another run is at work in"), lock_folder(tmp_path / "deep" / "run"):
                pytest.fail("two runs")
            raise ZeroDivisionError
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), lock_folder(tmp_path / "file"):
        pytest.fail("no folder")
