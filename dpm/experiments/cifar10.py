"""CIFAR-10, Section 3.2, Table 1 and Figure 3: colour pictures."""

from functools import partial

from dpm.data.sets import load_cifar10
from dpm.experiments.base import image_config, image_experiment, multi_scale_reverse, paper_reverse
from dpm.networks.paper import ConvPathway, DensePathway
from dpm.reverse import KernelPerturbation

T, BETA_1 = 1000, 1e-6
config = partial(image_config, T, BETA_1)


def published_reverse() -> KernelPerturbation:
    """D.2.1: a dense pathway in parallel with the convolutional one."""
    dense = DensePathway(3, 32, width=1000, n_layers=6, outputs=5)
    convolutional = ConvPathway(3, 100, n_layers=6, kernel=3, n_scales=3)
    return paper_reverse(T, 3, [dense, convolutional], width=100, n_layers=4)


EXPERIMENT = image_experiment(
    "cifar10",
    (3, 32, 32),
    load_cifar10,
    T,
    BETA_1,
    settings={
        "paper": config(published_reverse, batch=200, n_steps=100_000, learning_rate=1e-3),
        "best": config(partial(multi_scale_reverse, 3, width=64, depth=3), batch=48, n_steps=8_000, learning_rate=2e-3),
    },
    paper={"K": 5.4, "K_minus_L_null": 11.5},
)
