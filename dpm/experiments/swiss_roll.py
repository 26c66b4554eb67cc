"""The swiss roll, Section 3.1.1 and Appendix D.1.1: points of the plane."""

from torch import Tensor

from dpm.bound import final_step_bound_loss
from dpm.data.synthetic import ROLL_NOISE, swiss_roll, swiss_roll_points
from dpm.experiments.base import Experiment, TrainConfig
from dpm.experiments.shipped import load_schedule
from dpm.forward import GaussianForward
from dpm.ideal import IdealFullCovarianceReverse, IdealMixtureReverse
from dpm.networks.denoisers import FourierMLP
from dpm.networks.paper import RBFNetwork
from dpm.reverse import (
    DiffusionModel,
    FullCovarianceVPrediction,
    KernelPerturbation,
    VPrediction,
    learned_final_step,
)
from dpm.schedules import FixedSchedule, LearnedSchedule, log_snr_linear

BETA_1 = 1e-4  #: fixed, Section 2.4.1; below the roll's noise variance 4e-4, so that the final step blurs less than it
N_POINTS = 2000  # of the curve, as a quadrature: closer than the noise is wide


def roll_schedule(T: int) -> Tensor:
    """The roll's schedule before learning: β_1 as stated, half a percent of the signal's variance left at T."""
    return log_snr_linear(T, BETA_1, 0.995)


def paper_model() -> DiffusionModel:
    """D.1.1: 16 normalised RBF units, a readout per timestep, diagonal Σ through a sigmoid; β_2…T learned."""
    p = KernelPerturbation(RBFNetwork(40, inputs=2, n_units=16, outputs=4))
    return DiffusionModel(LearnedSchedule(roll_schedule(40)), GaussianForward, p)


def best_model() -> DiffusionModel:
    """v-prediction by an MLP on Fourier features, with the schedule that makes K* the highest, by `dpm schedule`."""
    p = VPrediction(FourierMLP(2, width=128, n_layers=3, n_frequencies=4))
    return DiffusionModel(FixedSchedule(load_schedule("swiss_roll")), GaussianForward, p)


def beyond_model() -> DiffusionModel:
    """v-prediction with the full covariance, and a learned final step, on a schedule by `dpm schedule`, T = 100."""
    network = FourierMLP(2, width=128, n_layers=3, n_frequencies=4, outputs=5)
    p = FullCovarianceVPrediction(network, learned_final_step)
    return DiffusionModel(FixedSchedule(load_schedule("swiss_roll", "beyond")), GaussianForward, p)


CURVE = swiss_roll_points(N_POINTS)

EXPERIMENT = Experiment(
    name="swiss_roll",
    unit="bits",
    shape=(2,),
    draw=swiss_roll,
    held_out_data=lambda generator: swiss_roll(60_000, generator),
    forward_process=lambda T: GaussianForward(roll_schedule(T)),
    T=40,
    paper={"K": 2.35, "K_minus_L_null": 6.45},
    settings={
        "paper": TrainConfig(paper_model, batch=39 * 25, n_steps=40_000, learning_rate=1e-2),
        "best": TrainConfig(best_model, batch=39 * 50, n_steps=15_000, learning_rate=2e-3),
        "beyond": TrainConfig(
            beyond_model,
            batch=100 * 20,
            n_steps=38_000,
            learning_rate=2e-3,
            loss=final_step_bound_loss,
            ideal=IdealFullCovarianceReverse(CURVE, ROLL_NOISE**2, final_step=learned_final_step),
        ),
    },
    ideal=IdealMixtureReverse(CURVE, ROLL_NOISE**2),
)
