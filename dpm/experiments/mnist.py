"""MNIST, Section 3.2, Table 2 and Figure App.1."""

from functools import partial

from dpm.data.sets import load_mnist
from dpm.experiments.base import image_config, image_experiment, paper_reverse
from dpm.networks.denoisers import ImageDenoiser, NoiseLevelExperts
from dpm.networks.paper import DensePathway
from dpm.networks.unet import u_net
from dpm.reverse import KernelPerturbation, VPrediction

T, BETA_1 = 1000, 1e-7
HIGH_NOISE = 0.73  #: noise variance above which a network of its own predicts: there a digit takes shape
config = partial(image_config, T, BETA_1)


def published_reverse() -> KernelPerturbation:
    """D.2.1: the dense pathway alone."""
    return paper_reverse(T, 1, [DensePathway(1, 28, width=900, n_layers=3, outputs=2)], width=20, n_layers=2)


def two_experts() -> VPrediction:
    """v-prediction by two U-Nets, one per range of noise, which see Fourier features of the grey levels."""
    widths, depths = (16, 64, 128), (1, 2, 3)
    high, low = (ImageDenoiser(1, widths[0], u_net(widths, depths), n_frequencies=5) for _ in range(2))
    return VPrediction(NoiseLevelExperts(high, low, HIGH_NOISE))


EXPERIMENT = image_experiment(
    "mnist",
    (1, 28, 28),
    load_mnist,
    T,
    BETA_1,
    settings={
        "paper": config(published_reverse, batch=512, n_steps=50_000, learning_rate=1e-3),
        "best": config(  # half of the timesteps belong to each expert
            two_experts,
            batch=128,
            n_steps=26_000,
            learning_rate=2e-3,
            between=(HIGH_NOISE,),
        ),
    },
    paper={"parzen_bits": 317},
)
