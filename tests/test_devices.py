"""What a GPU would refuse, seen without one: an operation between tensors of two devices. `meta` stands for the GPU."""

import pytest
import torch
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpm.baselines import MCGSM, WIDTHS, log_parzen
from dpm.entropy import log_density
from dpm.experiments import EXPERIMENTS, build
from dpm.forward import Gaussian
from dpm.optimum import Optimum
from dpm.posterior import Smooth
from dpm.results import lost_at_the_edge
from dpm.schedules import from_alpha_bar, geometric
from dpm.train import Objective

COPIES = {"_to_copy", "copy_"}


class OneDevice(TorchDispatchMode):
    """Raises where an operation other than a copy meets tensors of two devices; numbers, of no dimension, may mix."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        met = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim}
        if len(met) > 1 and operation.overloadpacket.__name__ not in COPIES:
            raise RuntimeError(f"{operation} between {met}")
        return operation(*args, **(kwargs or {}))


def there(*shape):
    return torch.empty(*shape, dtype=torch.float64, device="meta")


def test_two_devices_are_refused_here_as_a_gpu_would():
    with OneDevice(), pytest.raises(RuntimeError, match="between"):
        there(3) + torch.zeros(3)
    with OneDevice():
        assert (there(3) + torch.tensor(1.0)).device.type == torch.zeros(3).to("meta").device.type == "meta"


@pytest.mark.parametrize(
    "compute",
    [
        lambda q: log_density(q, there(5, 2), there(4, 2), 1),
        lambda q: log_parzen(there(4, 3), there(6, 3), WIDTHS),
        lambda q: MCGSM(torch.rand(50, 25).double(), Generator()).to("meta")(there(50, 25)),
        lambda q: from_alpha_bar(there(10)),
        lambda q: Smooth(lambda x: x.sum(1), share=0.5).log(there(4, 2)),
        lambda q: Optimum(torch.zeros(5, 2)).moments(q, there(4, 2), there(4).long())[0],
        lambda q: Optimum(torch.zeros(5, 2)).log_probability(there(4, 2)),
        lambda q: lost_at_the_edge(Optimum(torch.zeros(5, 2)), q, there(4, 2), Generator()),
    ],
    ids=["log_density", "log_parzen", "MCGSM", "from_alpha_bar", "Smooth", "moments", "log_probability", "edge"],
)
def test_what_is_computed_stays_on_its_device(compute):
    q = Gaussian(geometric(10, 1e-3, 0.99).to("meta"))
    with OneDevice():
        assert compute(q).device.type == "meta"


@pytest.mark.parametrize(
    ("name", "setting"),
    [("swiss_roll", "ours"), ("heartbeat", "ours"), ("digits", "paper"), ("digits", "ours"), ("cifar10", "paper")],
)
def test_a_training_step_stays_on_its_device(name, setting):
    experiment = EXPERIMENTS[name]
    model = build(experiment.settings[setting]).to("meta")
    x0 = there(4, *experiment.shape).float()
    with OneDevice():
        loss = Objective(model)(x0, there(4).long(), there(*x0.shape).float())
        loss.backward()
    assert loss.device.type == "meta"
