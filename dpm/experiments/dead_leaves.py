"""Dead leaves, Section 3.2, Table 2 and Figure 4: a texture with a known rival, the MCGSM."""

from functools import partial

from dpm.data.sets import load_dead_leaves
from dpm.experiments.base import image_config, image_experiment, multi_scale_reverse, paper_reverse
from dpm.networks.paper import ConvPathway
from dpm.reverse import KernelPerturbation

T, BETA_1 = 1000, 1e-6
config = partial(image_config, T, BETA_1)


def published_reverse() -> KernelPerturbation:
    """D.2.1: the convolutional pathway alone."""
    return paper_reverse(T, 1, [ConvPathway(1, 100, n_layers=6, kernel=3, n_scales=4)], width=100, n_layers=4)


EXPERIMENT = image_experiment(
    "dead_leaves",
    (1, 64, 64),
    load_dead_leaves,
    T,
    BETA_1,
    settings={
        "paper": config(published_reverse, batch=64, n_steps=50_000, learning_rate=1e-3),
        "best": config(partial(multi_scale_reverse, 1, width=64, depth=4), batch=12, n_steps=8_000, learning_rate=2e-3),
    },
    paper={"K": 1.489, "K_minus_L_null": 3.536},
)
