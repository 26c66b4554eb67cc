"""Networks trained elsewhere: held against the published algorithm, written out anew, and against known likelihoods."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Generator, nn
from torch.nn.functional import silu

from dpm.adapters import (
    PREDICTIONS,
    PretrainedReverse,
    fixed_large,
    fixed_small,
    forward_process,
    forward_process_from_sigma,
    learned,
    learned_range,
    measure_x0_error,
    moment_matched,
)
from dpm.data.sets import load_digits
from dpm.errors import UserError
from dpm.ideal import IdealReverse
from dpm.reverse import learned_final_step, reverse_step, sample
from dpm.scoring import Levels, score_pictures

VARIANCES = {
    "fixed_small": fixed_small,
    "fixed_large": fixed_large,
    "learned": learned,
    "learned_range": learned_range,
}
T = 40
BETA = torch.linspace(1e-3, 0.2, T, dtype=torch.float64)


class Network(nn.Module):
    """The ideal network of a few pictures, with errors that random weights make; told the step as one more channel."""

    def __init__(self, predicts, points, has_variance):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 1 + has_variance, 3, padding=1)
        self.predicts, self.points, self.alpha_bar = predicts, points, torch.cumprod(1 - BETA, 0)

    def forward(self, x, i):
        assert x.dtype == torch.float32 and i.dtype == torch.long and i.shape == (len(x),)
        signal, noise = (share[i].sqrt().view(-1, 1, 1, 1) for share in (self.alpha_bar, 1 - self.alpha_bar))
        squared = (x[:, None] - signal[:, None] * self.points).square().sum((2, 3, 4))
        x0 = torch.einsum("bm,mchw->bchw", (-squared / (2 * noise[:, 0, 0] ** 2)).softmax(1), self.points)
        ideal = {"eps": (x - signal * x0) / noise, "x0": x0, "v": (signal * x - x0) / noise}
        ideal["score"] = -ideal["eps"] / noise
        time = (i / T).view(-1, 1, 1, 1).expand_as(x)
        error = self.last(silu(self.first(torch.cat([x, time], dim=1))))
        return torch.cat([ideal[self.predicts] + 0.02 * error[:, :1], error[:, 1:] - 3], dim=1).float()


def published_cdf(z):
    """The approximate Φ of the published code."""
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def published_bits(network, beta, x, mean_type, variance_type, clip, generator, cdf=published_cdf):
    """Bits per dimension by the algorithm of Ho et al. (2020) and Nichol and Dhariwal (2021): prior [n], terms [n, T].

    Timesteps count from 0, as theirs do; pictures of 256 levels in [−1, 1].
    """
    beta, x = beta.numpy(), x.numpy()
    alpha_bar = np.cumprod(1 - beta)
    previous = np.append(1.0, alpha_bar[:-1])
    small = beta * (1 - previous) / (1 - alpha_bar)
    small_clipped = np.append(small[1], small[1:])
    from_x0, from_xt = beta * np.sqrt(previous) / (1 - alpha_bar), (1 - previous) * np.sqrt(1 - beta) / (1 - alpha_bar)

    def normal_kl(mean_1, log_var_1, mean_2, log_var_2):
        gap = (mean_1 - mean_2) ** 2 * np.exp(-log_var_2)
        return 0.5 * (-1 + log_var_2 - log_var_1 + np.exp(log_var_1 - log_var_2) + gap)

    def bits(nats):
        return nats.mean(axis=(1, 2, 3)) / math.log(2)

    terms = []
    for i in reversed(range(len(beta))):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).numpy()
        xt = math.sqrt(alpha_bar[i]) * x + math.sqrt(1 - alpha_bar[i]) * noise
        with torch.no_grad():
            output = network(torch.tensor(xt).float(), torch.full((len(x),), i)).double().numpy()
        prediction = output[:, : x.shape[1]]
        if variance_type == "learned":
            log_var = output[:, x.shape[1] :]
        elif variance_type == "learned_range":
            share = (output[:, x.shape[1] :] + 1) / 2
            log_var = share * math.log(beta[i]) + (1 - share) * math.log(small_clipped[i])
        elif variance_type == "fixed_large":
            log_var = math.log(np.append(small[1], beta[1:])[i])
        else:
            log_var = math.log(small_clipped[i])
        if mean_type == "eps":
            prediction = math.sqrt(1 / alpha_bar[i]) * xt - math.sqrt(1 / alpha_bar[i] - 1) * prediction
        if clip:
            prediction = prediction.clip(-1, 1)
        mean = from_x0[i] * prediction + from_xt[i] * xt
        if i > 0:
            true_mean = from_x0[i] * x + from_xt[i] * xt
            terms.append(bits(normal_kl(true_mean, math.log(small_clipped[i]), mean, log_var)))
        else:
            inverse_scale = np.exp(-0.5 * np.asarray(log_var))
            above, below = cdf(inverse_scale * (x - mean + 1 / 255)), cdf(inverse_scale * (x - mean - 1 / 255))
            inner = np.log((above - below).clip(1e-12))
            lowest, highest = np.log(above.clip(1e-12)), np.log((1 - below).clip(1e-12))
            terms.append(bits(-np.where(x < -0.999, lowest, np.where(x > 0.999, highest, inner))))
    prior = bits(normal_kl(math.sqrt(alpha_bar[-1]) * x, math.log(1 - alpha_bar[-1]), 0.0, 0.0))
    return prior, np.stack(terms[::-1], axis=1)


@pytest.fixture(scope="module")
def images():
    return load_digits().test[:16] * 15  # 0 … 240 of 256 levels


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("predicts", ["eps", "x0"])
def test_bits_are_those_of_the_published_algorithm(images, predicts, variance, clip):
    """At common noise; and term by term, once their approximate Φ is replaced by the exact one."""
    q, levels = forward_process(BETA), Levels()
    network = Network(predicts, levels.to_x(images), variance.startswith("learned"))
    p = PretrainedReverse(network, predicts, VARIANCES[variance], (-1, 1) if clip else None)
    found = score_pictures(p, q, images, levels, Generator().manual_seed(1))
    (prior, terms), (_, exact_terms) = (
        published_bits(network, BETA, levels.to_x(images), predicts, variance, clip, Generator().manual_seed(1), cdf)
        for cdf in (published_cdf, ndtr)
    )
    mean, stderr = found.mean_and_stderr
    assert abs(mean - (prior + terms.sum(1)).mean()) < min(3 * stderr, 0.005)
    assert np.allclose(found.prior, prior, rtol=1e-9) and np.allclose(found.kl[:, 2:], terms[:, 1:], rtol=1e-6)
    assert np.allclose(found.final, exact_terms[:, 0], rtol=1e-6) and found.kl[:, :2].abs().max() == 0


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_each_prediction_is_the_same_model_told_otherwise(images, predicts):
    """But for the errors, which are kept out here."""
    x, t, q = Levels().to_x(images), torch.arange(1, 17) * 2, forward_process(BETA)
    xt = q.marginal(x, t).reparameterize(q.sample_noise(x, Generator().manual_seed(0)))
    network = Network(predicts, x, False)
    nn.init.zeros_(network.last.weight), nn.init.zeros_(network.last.bias)
    ideal = IdealReverse(x.flatten(1)).predict_x0(q, xt.flatten(1), t)[0].view_as(x)
    law = PretrainedReverse(network, predicts)(q, xt, t)
    assert torch.allclose(law.mean, q.posterior(xt, ideal, t).mean, atol=1e-5)


def test_a_matched_variance_is_the_best_of_the_single_ones(images):
    """And the error that it is matched to is that of the network, at every step."""
    q, levels = forward_process(BETA), Levels()
    network = Network("eps", levels.to_x(images[:8]), False)  # it knows half of the pictures
    many = levels.to_x(images).repeat(20, 1, 1, 1)
    error = measure_x0_error(PretrainedReverse(network, "eps"), q, many, Generator().manual_seed(0))
    xt = q.marginal(many, 30).reparameterize(q.sample_noise(many, Generator().manual_seed(1)))
    eps = network(xt.float(), torch.full((len(many),), 29)).double()
    by_hand = ((xt - q.noise_variance[30].sqrt() * eps) / q.alpha_bar[30].sqrt() - many).square().mean()
    assert error[0] == 0 and error[1:].min() > 0 and torch.isclose(error[30], by_hand, rtol=0.05)
    bits = {
        variance: score_pictures(
            PretrainedReverse(network, "eps", variance), q, images, levels, Generator().manual_seed(2)
        ).mean_and_stderr[0]
        for variance in (moment_matched(error), fixed_small, fixed_large)
    }
    assert bits.pop(next(iter(bits))) < min(bits.values()) - 0.05


def test_samples_of_an_adapter_are_its_pictures(images):
    """It is a reverse model like any other: ancestral sampling takes it, and finds what its network knows."""
    points = Levels().to_x(images[:4])
    p = PretrainedReverse(Network("x0", points, False), "x0", clip=(-1, 1))
    x = sample(p, forward_process(BETA), torch.zeros(20, 1, 8, 8, dtype=torch.float64), Generator().manual_seed(0))
    nearest = torch.cdist(x.flatten(1), points.flatten(1)).min(1).values / 8
    assert nearest.max() < 0.1 < torch.cdist(points.flatten(1), points.flatten(1)).fill_diagonal_(9).min() / 8


def test_the_final_step_is_the_one_that_is_given_and_without_one_that_of_the_edge():
    x1, q = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 1, 2, 2), forward_process(BETA)
    own, edge = (PretrainedReverse(lambda x, i: x / 2, "eps", final_step=step) for step in (learned_final_step, None))
    assert torch.equal(reverse_step(own, q, x1, 1).mean, own(q, x1, 1).mean)
    assert torch.equal(reverse_step(edge, q, x1, 1).mean, q.final_step(edge, x1).mean)
    assert not torch.allclose(own(q, x1, 1).mean, q.final_step(edge, x1).mean)


def test_mistakes_are_told_in_a_line(images):
    x, q = Levels().to_x(images), forward_process(BETA)
    with pytest.raises(UserError, match=r"predicts 'noise'; name one of eps, x0, v, score"):
        PretrainedReverse(None, "noise")
    with pytest.raises(UserError, match="takes a network of 2C output channels"):
        PretrainedReverse(lambda x, i: x, "eps", learned_range)(q, x, 3)
    for output in (torch.zeros(16, 3, 8, 8), torch.zeros(16, 1, 4, 4), torch.zeros(1, 1, 8, 8)):
        with pytest.raises(UserError, match="C or 2C channels are wanted"):
            PretrainedReverse(lambda x, i, output=output: output, "eps")(q, x, 3)
    with pytest.raises(UserError, match="returns eps, x0 or score"):
        PretrainedReverse(None, "v", variance_exploding=True)
    for beta in ([], [0.1], 0.1, [0.1, 0.0], [0.1, 1.1], [1.0, 0.1], [[0.1, 0.2]]):
        with pytest.raises(UserError, match="this list β_1…β_T holds no noise schedule"):
            forward_process(beta)
    for sigma in ([0.0, 1.0], [2.0, 1.0]):
        with pytest.raises(UserError, match="must rise, from above 0"):
            forward_process_from_sigma(sigma)
