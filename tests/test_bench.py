"""`make bench` compares like with like: the bare loops find the loss that `dpm` finds."""

import runpy
from pathlib import Path

import pytest

from dpm.experiments.registry import EXPERIMENTS, build_model

BENCH = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "bench.py"))


@pytest.mark.parametrize(
    ("name", "setting", "loss"),
    [("swiss_roll", "best", "roll_loss"), ("heartbeat", "best", "bits_loss"), ("heartbeat", "paper", "bits_loss")],
)
def test_the_bare_loop_finds_the_same_loss(name, setting, loss):
    experiment = EXPERIMENTS[name]
    model = build_model(experiment.settings[setting])
    BENCH["check_equal"](model, BENCH[loss](model), experiment.settings[setting], experiment.draw)
