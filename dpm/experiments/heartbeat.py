"""The binary heartbeat, Section 3.1.2 and Appendix D.1.2: sequences of 20 bits."""

from functools import partial

from dpm.data.synthetic import LENGTH, heartbeat, heartbeat_sequences
from dpm.experiments.base import Experiment, TrainConfig
from dpm.forward import AbsorbingForward, BernoulliForward
from dpm.ideal import IdealReverse
from dpm.networks.layers import mlp
from dpm.networks.paper import SigmoidMLP
from dpm.reverse import BitX0Prediction, DiffusionModel, LogitPrediction, MaskedX0Prediction
from dpm.schedules import FixedSchedule, linear_alpha_bar, power_alpha_bar

PRIOR_PROB = 0.2  #: of a 1 under π, D.1.2: the heartbeat's own mean activity
heartbeat_forward = partial(BernoulliForward, prior_prob=PRIOR_PROB)


def paper_model() -> DiffusionModel:
    """D.1.2: three hidden layers of 50 sigmoid units, a readout per timestep, sigmoid output."""
    q = heartbeat_forward(linear_alpha_bar(2000))
    p = LogitPrediction(SigmoidMLP(q, LENGTH, width=50, n_layers=3, n_shared=64))
    return DiffusionModel(FixedSchedule(q.beta), heartbeat_forward, p)


def best_model() -> DiffusionModel:
    """x⁰-prediction by an MLP, which sees the bits and the noise level."""
    p = BitX0Prediction(mlp(1 + LENGTH, width=128, n_layers=2, outputs=LENGTH))
    return DiffusionModel(FixedSchedule(linear_alpha_bar(2000)), heartbeat_forward, p)


def beyond_model() -> DiffusionModel:
    """Masks in place of flips, and an MLP that predicts the masked bits from the others."""
    p = MaskedX0Prediction(mlp(LENGTH, width=128, n_layers=2, outputs=LENGTH))
    return DiffusionModel(FixedSchedule(power_alpha_bar(2000, 2)), AbsorbingForward, p)


EXPERIMENT = Experiment(
    name="heartbeat",
    unit="bits/seq",
    shape=(LENGTH,),
    draw=heartbeat,
    held_out_data=lambda generator: heartbeat(4_000, generator),
    forward_process=lambda T: heartbeat_forward(linear_alpha_bar(T)),
    T=2000,
    paper={"K": -2.414, "K_minus_L_null": 12.024},
    settings={
        "paper": TrainConfig(paper_model, batch=1999 * 2, n_steps=40_000, learning_rate=5e-3),
        "best": TrainConfig(best_model, batch=1000, n_steps=20_000, learning_rate=2e-3),
        "beyond": TrainConfig(beyond_model, batch=2000, n_steps=8_000, learning_rate=2e-3),
    },
    ideal=IdealReverse(heartbeat_sequences()),
)
