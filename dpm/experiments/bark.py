"""Bark, Section 3.2, Table 1 and Figure 5: a texture, and a hole that is filled in."""

from functools import partial

from dpm.data.sets import load_bark, load_bark_squares
from dpm.experiments.base import image_config, image_experiment, multi_scale_reverse, paper_reverse
from dpm.networks.paper import ConvPathway
from dpm.reverse import KernelPerturbation

T, BETA_1 = 500, 1e-6
RESTORED_SIZE = 300  # pixels of Figure 5's pictures
config = partial(image_config, T, BETA_1)


def published_reverse() -> KernelPerturbation:
    """D.2.1: the convolutional pathway alone; of three scales, since 300 is no multiple of 8."""
    return paper_reverse(T, 1, [ConvPathway(1, 100, n_layers=6, kernel=3, n_scales=3)], width=100, n_layers=4)


EXPERIMENT = image_experiment(
    "bark",
    (1, 64, 64),
    load_bark,
    T,
    BETA_1,
    settings={
        "paper": config(published_reverse, batch=64, n_steps=50_000, learning_rate=1e-3),
        "best": config(partial(multi_scale_reverse, 1, width=64, depth=4), batch=12, n_steps=6_000, learning_rate=2e-3),
    },
    paper={"K": -0.55, "K_minus_L_null": 1.5},
    whole_images=lambda generator: load_bark_squares(generator, RESTORED_SIZE),
)
