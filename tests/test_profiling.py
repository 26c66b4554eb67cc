"""What a network costs and how fast it trains."""

import pytest
import torch
from torch import Generator

from dpm import profiling
from dpm.experiments.registry import EXPERIMENTS, build_model
from dpm.profiling import count_macs
from dpm.schedules import FixedSchedule


def test_throughput_counts_samples_and_products(monkeypatch):
    """A gradient costs twice its value: at a peak of six times a sample's products a second, one a second is a
    half, and at twice that peak, in another precision, a quarter."""
    experiment = EXPERIMENTS["digits"]
    model = build_model(experiment.settings["best"])
    model.schedule = FixedSchedule(experiment.forward_process(30).beta)
    x0 = experiment.draw(1, Generator().manual_seed(0))
    adds, _ = count_macs(model.p, model.forward_process(), x0, torch.tensor([2]))
    peaks = {torch.float32: 6.0 * adds, torch.bfloat16: 12.0 * adds}
    monkeypatch.setattr(profiling, "peak_macs_per_second", lambda device, precision: peaks[precision])
    for precision, processes, fraction in (
        (torch.float32, 1, 0.5),
        (torch.float32, 2, 0.25),
        (torch.bfloat16, 1, 0.25),
    ):
        found = profiling.throughput(model, x0, 30, 30.0, precision, processes)
        assert found == pytest.approx({"samples_per_second": 1.0, "fraction_of_peak": fraction})
