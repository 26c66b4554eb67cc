"""What made a result: the command, the seed, the device, the versions, the git revision."""

import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError

import torch

import dpm.provenance
from dpm import provenance as module
from dpm.provenance import git_revision, installed_version, provenance


def test_provenance_says_what_made_a_result(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dpm", "train", "heartbeat"])
    before = datetime.now(UTC).date().isoformat()
    record = provenance(3, torch.device("cpu"))
    assert before <= record["date"] <= datetime.now(UTC).date().isoformat()
    assert record.keys() == {"command", "seed", "device", "versions", "revision", "date"}
    assert record["command"] == "dpm train heartbeat" and record["seed"] == 3 and record["device"].startswith("cpu")
    assert record["versions"]["torch"] == torch.__version__
    monkeypatch.setattr(dpm.provenance, "version", {"dpm": "3.2"}.get)
    assert provenance(3, torch.device("cpu"))["versions"]["dpm"] == "3.2"
    assert provenance(3, torch.device("cpu"), 4)["device"] == f"4 × {record['device']}"


def test_a_dpm_that_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(dpm.provenance, "version", missing)
    assert installed_version() == "unknown"


def test_revision_is_of_the_module_wherever_one_stands(tmp_path, monkeypatch):
    """In a real checkout: what has changed beside the module does not count."""

    def git(*words):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    module = tmp_path / "dpm" / "provenance.py"
    module.parent.mkdir()
    module.write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(dpm.provenance, "__file__", str(module))
    (tmp_path / "notes").write_text("")
    assert git_revision() == git("rev-parse", "--short", "HEAD")
    module.write_text("x = 1")
    assert git_revision() == git("rev-parse", "--short", "HEAD") + "+"


def test_revision_marks_a_changed_source_and_survives_without_git(monkeypatch):
    def git(changed):
        def answer(command, **options):
            return subprocess.CompletedProcess(command, 0, stdout=changed if "status" in command else "abc1234\n")

        return answer

    for changed, expected in (("", "abc1234"), (" M dpm/bound.py\n", "abc1234+")):
        monkeypatch.setattr(subprocess, "run", git(changed))
        assert git_revision() == expected

    def missing(command, **options):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert git_revision() == "unknown"


def test_the_revision_of_another_project_is_not_that_of_the_module(tmp_path, monkeypatch):
    """Installed into an environment inside a checkout, which tracks other files."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    installed = tmp_path / "dpm" / "provenance.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(module, "__file__", str(installed))
    assert git_revision() == "unknown"
    subprocess.run([*git, "add", installed], cwd=tmp_path, check=True)
    assert git_revision().endswith("+")
