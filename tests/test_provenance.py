"""What made a result: the command, the seed, the device, the versions, the git revision."""

import subprocess
import sys

import torch

from dpm import provenance as module
from dpm.provenance import git_revision, provenance


def test_provenance_says_what_made_a_result(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dpm", "train", "heartbeat"])
    record = provenance(3, torch.device("cpu"))
    assert record.keys() == {"command", "seed", "device", "versions", "revision", "date"}
    assert record["command"] == "dpm train heartbeat" and record["seed"] == 3 and record["device"].startswith("cpu")
    assert record["versions"]["torch"] == torch.__version__
    assert provenance(3, torch.device("cpu"), 4)["device"] == f"4 × {record['device']}"


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
