"""What a GPU would refuse, seen without one: an operation between tensors of two devices. `meta` stands for the GPU."""

import pytest
import torch
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpm.baselines import BANDWIDTHS, MCGSM, log_parzen
from dpm.entropy import log_marginal_density
from dpm.evaluation import reverse_step_terms
from dpm.experiments.registry import EXPERIMENTS, build_model
from dpm.forward import GaussianForward
from dpm.ideal import IdealReverse
from dpm.posterior import GradientGuidance
from dpm.schedules import beta_from_alpha_bar, log_snr_linear
from dpm.training import Objective

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
        lambda q: log_marginal_density(q, there(5, 2), there(4, 2), 1),
        lambda q: log_parzen(there(4, 3), there(6, 3), BANDWIDTHS),
        lambda q: MCGSM(torch.rand(50, 25).double(), Generator()).to("meta")(there(50, 25)),
        lambda q: beta_from_alpha_bar(there(10)),
        lambda q: GradientGuidance(lambda x: x.sum(1), power=0.5).log_prob(there(4, 2)),
        lambda q: IdealReverse(torch.zeros(5, 2)).predict_x0(q, there(4, 2), there(4).long())[0],
        lambda q: IdealReverse(torch.zeros(5, 2)).log_prob(there(4, 2)),
        lambda q: reverse_step_terms(*[IdealReverse(torch.zeros(5, 2))] * 2, q, 3, Generator())[1],
    ],
    ids=[
        "log_marginal_density",
        "log_parzen",
        "MCGSM",
        "beta_from_alpha_bar",
        "GradientGuidance",
        "predict_x0",
        "log_prob",
        "reverse_step_terms",
    ],
)
def test_what_is_computed_stays_on_its_device(compute):
    q = GaussianForward(log_snr_linear(10, 1e-3, 0.99).to("meta"))
    with OneDevice():
        assert compute(q).device.type == "meta"


AT_ONE_T = [("swiss_roll", "paper"), ("heartbeat", "paper")]  # for many t they call `unique`, which meta tensors lack
AT_ANY_T = [
    ("swiss_roll", "best"),
    ("heartbeat", "best"),
    ("digits", "paper"),
    ("digits", "best"),
    ("cifar10", "paper"),
]


@pytest.mark.parametrize(("name", "setting"), AT_ANY_T)
def test_a_training_step_stays_on_its_device(name, setting):
    experiment = EXPERIMENTS[name]
    model = build_model(experiment.settings[setting]).to("meta")
    x0 = there(4, *experiment.shape).float()
    with OneDevice():
        loss = Objective(model)(x0, there(4).long(), there(*x0.shape).float())
        loss.backward()
    assert loss.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "setting", "t"),
    [(*names, 3) for names in AT_ONE_T + AT_ANY_T]
    + [(*names, there(4).long()) for names in [*AT_ANY_T, ("swiss_roll", "beyond")]],
)
def test_a_reverse_step_stays_on_its_device_at_one_t_or_many(name, setting, t):
    experiment = EXPERIMENTS[name]
    model = build_model(experiment.settings[setting]).to("meta")
    x = there(4, *experiment.shape)
    with OneDevice():
        mean = model.p(model.forward_process(), x, t).mean
    assert mean.device.type == "meta" and mean.shape == x.shape
