"""What several files of tests share."""

import sys

import pytest

from dpm.cli import main


@pytest.fixture
def dpm(monkeypatch, capsys):
    """Run a command line; returns its exit status, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dpm", *map(str, words)])
        try:
            status = main.main()
        except SystemExit as leave:
            status = leave.code
        return status, *capsys.readouterr()

    return run
