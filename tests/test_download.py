"""Downloads: from DPM_DATA first, else once from a server of this test's own; nothing bad is ever kept."""

import errno
import gzip
import hashlib
import io
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from dpm.data.download import check_sha256, fetch, find_local, gunzip, no_unpacking, read_contents, unzip
from dpm.errors import UserError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKED = gzip.compress(CONTENT, mtime=0)


class Handler(BaseHTTPRequestHandler):
    """Answers with `server.files`, and promises `server.longer` bytes more than it sends."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"") + self.server.longer))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.longer = {"/set.gz": PACKED}, [], 0
        server.url = f"http://127.0.0.1:{server.server_port}/set.gz"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no DPM_DATA."""
    monkeypatch.delenv("DPM_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "dpm"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def get(url):
    (content,) = fetch("set/set.gz", url, gunzip, SHA256)
    return content


def test_a_file_is_downloaded_once_and_kept_as_it_came(server, cache, capfd, monkeypatch):
    log = io.StringIO()
    for handler in pooch.get_logger().handlers:
        monkeypatch.setattr(handler, "stream", log)
    assert get(server.url) == get(server.url) == CONTENT
    assert server.asked == ["/set.gz"]
    assert files(cache) == ["set/set.gz"] and (cache / "set" / "set.gz").read_bytes() == PACKED
    assert capfd.readouterr() == ("", "") and log.getvalue() == ""  # a page that runs this prints nothing


def test_dpm_data_comes_first_and_its_files_may_be_packed_otherwise(server, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("DPM_DATA", str(tmp_path / "mine"))
    (tmp_path / "mine" / "set").mkdir(parents=True)
    (tmp_path / "mine" / "set" / "set.gz").write_bytes(gzip.compress(CONTENT, 1, mtime=7))
    assert get(server.url) == CONTENT
    assert server.asked == [] and not cache.exists()
    (tmp_path / "mine" / "set" / "set.gz").unlink()
    assert get(server.url) == CONTENT
    assert server.asked == ["/set.gz"] and files(tmp_path / "mine") == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[: len(b) // 2], "damaged"),
        (lambda b: b[:-4], "damaged"),
        (lambda b: b[:40] + bytes(20) + b[60:], "damaged"),
        (lambda b: b"<html>not found</html>", "damaged"),
        (lambda b: b"", "SHA-256"),
        (lambda b: gzip.compress(CONTENT[:-1] + b"\0"), "SHA-256"),
    ],
)
def test_damage_is_one_clear_line_wherever_it_lies(server, cache, tmp_path, monkeypatch, damage, says):
    """On the way, in the cache, under DPM_DATA. What came damaged is not kept: the next call asks anew."""
    server.files["/set.gz"] = damage(PACKED)
    with pytest.raises(
        UserError, match=rf"^http[^\n]*set.gz came, but [^\n]*{says}[^\n]*; .*DPM_DATA .* holds set/set.gz$"
    ):
        get(server.url)
    assert files(cache) == []
    server.files["/set.gz"] = PACKED
    assert get(server.url) == CONTENT
    (cache / "set" / "set.gz").write_bytes(damage(PACKED))
    with pytest.raises(UserError, match=rf"^cannot use [^\n]*cache[^\n]*{says}[^\n]*; remove it, and run again[^\n]*$"):
        get(server.url)
    monkeypatch.setenv("DPM_DATA", str(tmp_path / "mine"))
    (tmp_path / "mine" / "set").mkdir(parents=True)
    (tmp_path / "mine" / "set" / "set.gz").write_bytes(damage(PACKED))
    with pytest.raises(UserError, match=rf"^cannot use [^\n]*mine[^\n]*{says}[^\n]*; put a whole copy there[^\n]*$"):
        get(server.url)
    assert server.asked == ["/set.gz"] * 2


def test_a_download_that_breaks_off_leaves_nothing(server, cache):
    server.longer = 1000
    with pytest.raises(UserError, match=r"^cannot download http[^\n]*; connect to the network .* holds set/set.gz$"):
        get(server.url)
    assert files(cache) == []


def test_no_network_is_one_clear_line(server, cache):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"^cannot download http[^\n]* \(ConnectionError\); connect to the network"):
        get(server.url)
    assert files(cache) == []


def test_a_page_that_is_gone_is_one_clear_line(server, cache):
    with pytest.raises(UserError, match=r"^cannot download http[^\n]*other.gz \(HTTPError\); "):
        get(server.url.replace("set.gz", "other.gz"))
    assert files(cache) == []


def test_a_full_disk_leaves_nothing(server, cache, monkeypatch):
    class Full(pooch.HTTPDownloader):
        def __call__(self, url, temporary, *_):
            Path(temporary).write_bytes(PACKED[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pooch, "HTTPDownloader", Full)
    with pytest.raises(UserError, match=r"^cannot write [^\n]*set.gz: No space left on device; free some space, or "):
        get(server.url)
    assert files(cache) == []


def test_a_cache_that_cannot_be_made_is_one_clear_line(server, cache):
    cache.parent.write_text("")
    with pytest.raises(UserError, match=r"^cannot write [^\n]*set.gz: [^\n]*; free some space, or set DPM_DATA"):
        get(server.url)
    assert server.asked == []


def test_the_name_is_given_only_when_the_content_is_checked(server, cache, monkeypatch):
    seen = []

    def noted(path, *rest):
        seen.append((path.name, (cache / "set" / "set.gz").exists()))
        return read_contents(path, *rest)

    monkeypatch.setattr("dpm.data.download.read_contents", noted)
    get(server.url)
    (temporary, early), (name, late) = seen
    assert temporary != "set.gz" and not early
    assert name == "set.gz" and late


def test_dpm_data_unset_empty_or_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DPM_DATA", raising=False)
    assert find_local("x") is None
    monkeypatch.setenv("DPM_DATA", "")
    assert find_local(".") is None
    monkeypatch.setenv("DPM_DATA", str(tmp_path))
    assert find_local("x") is None
    (tmp_path / "x").write_text("")
    assert find_local("x") == tmp_path / "x"
    monkeypatch.setenv("DPM_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^DPM_DATA names [^\n]*none, which is no folder to read from; [^\n]*$"):
        find_local("x")
    monkeypatch.setenv("DPM_DATA", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no folder to read from"):
        find_local("x")


def test_a_zip_is_read_class_by_class_within_each_number():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("t/cat/0000.jpg", "t/cat/0001.jpg", "t/ape/0001.jpg", "t/ape/0000.jpg"):
            file.writestr(name, name)
    assert unzip(archive.getvalue()) == [b"t/ape/0000.jpg", b"t/cat/0000.jpg", b"t/ape/0001.jpg", b"t/cat/0001.jpg"]


@pytest.mark.parametrize("cut", [slice(0, 60), slice(20, None), slice(0, 0)])
def test_a_damaged_zip_is_refused(tmp_path, cut):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", CONTENT)
    (tmp_path / "x").write_bytes(archive.getvalue()[cut])
    with pytest.raises(ValueError, match="damaged"):
        read_contents(tmp_path / "x", unzip, SHA256)


def test_the_checksum_is_of_all_contents_in_order():
    check_sha256([CONTENT], SHA256)
    check_sha256([CONTENT[:100], CONTENT[100:]], SHA256)
    assert no_unpacking(CONTENT) == gunzip(PACKED) == [CONTENT]
    for other in ([CONTENT[100:], CONTENT[:100]], [CONTENT, b"\0"], []):
        with pytest.raises(ValueError, match=SHA256[:8]):
            check_sha256(other, SHA256)
