"""The 8×8 digits that scikit-learn bundles: pictures that need no download. Not in the paper."""

from functools import partial

import torch

from dpm.data.sets import load_digits
from dpm.experiments.base import image_config, image_experiment, multi_scale_reverse, paper_reverse
from dpm.networks.paper import ConvPathway, DensePathway
from dpm.reverse import KernelPerturbation

T, BETA_1 = 1000, 1e-5
config = partial(image_config, T, BETA_1)


def published_reverse() -> KernelPerturbation:
    """D.2.1 with both pathways, small."""
    dense = DensePathway(1, 8, width=256, n_layers=2, outputs=2)
    convolutional = ConvPathway(1, 20, n_layers=3, kernel=3, n_scales=3)
    return paper_reverse(T, 1, [dense, convolutional], width=32, n_layers=2)


EXPERIMENT = image_experiment(
    "digits",
    (1, 8, 8),
    load_digits,
    T,
    BETA_1,
    settings={
        "paper": config(published_reverse, batch=128, n_steps=2_000, learning_rate=3e-3, precision=torch.float32),
        "best": config(
            partial(multi_scale_reverse, 1, width=32, depth=3),
            batch=128,
            n_steps=4_000,
            learning_rate=4e-3,
            precision=torch.float32,
        ),
    },
    paper={},
)
