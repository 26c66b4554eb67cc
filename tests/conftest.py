"""What several files of tests use."""

import sys
from dataclasses import replace

import pytest

from dpm import evaluation, ideal
from dpm.cli import main
from dpm.experiments.registry import EXPERIMENTS


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


@pytest.fixture
def few_held_out(monkeypatch):
    """Fewer samples: what a report says is checked elsewhere, here only that it is made."""
    monkeypatch.setattr(evaluation, "N_ROUNDS", 2)
    monkeypatch.setattr(evaluation, "PROGRESS_AFTER", 1e6)  # a slow machine prints the same
    monkeypatch.setattr(ideal, "SAMPLES_PER_POINT", 1)
    monkeypatch.setattr(ideal, "LATTICE_SPACING", 8.0)
    for name in EXPERIMENTS:
        first = EXPERIMENTS[name].held_out_data
        monkeypatch.setitem(
            EXPERIMENTS, name, replace(EXPERIMENTS[name], held_out_data=lambda g, first=first: first(g)[:20])
        )
