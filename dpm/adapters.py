"""Networks trained elsewhere as reverse models: any callable `network(x, i)`.

    q = forward_process(beta)                                 # β_1…T, T numbers
    p = PretrainedReverse(network, "eps", fixed_small)        # DDPM
    p = PretrainedReverse(network, "eps", learned_range)      # improved DDPM, guided diffusion: 2C output channels

x is [B, C, …] in float32, i a LongTensor [B], i = t − 1: these programs count from 0. A network that is conditioned on
rescaled time, or on a class label y, is wrapped: `lambda x, i: network(x, 1000 / T * i, y)`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from dpm.distributions import Normal
from dpm.errors import UserError
from dpm.forward import GaussianForward
from dpm.reverse import EpsPrediction, FinalStep, VPrediction, X0Prediction
from dpm.schedules import beta_from_alpha_bar, check_schedule, extract

# Noise schedules


def forward_process(beta: Tensor | Sequence[float]) -> GaussianForward:
    """q of another program's β_1…T: T > 1 numbers, the first step first. UserError unless 0 < β_t < 1, and β_T ≤ 1."""
    table = pad(torch.atleast_1d(torch.as_tensor(beta, dtype=torch.float64)), (1, 0))
    return GaussianForward(check_schedule(table, "this list β_1…β_T"))


def forward_process_from_sigma(sigma: Tensor | Sequence[float]) -> GaussianForward:
    """q of a variance-exploding process x = x⁰ + σ_t ε, σ_1…T rising; x^t here is that x times √ᾱ_t, ᾱ_t = 1/(1+σ_t²).

    Use it with `PretrainedReverse(…, variance_exploding=True)`. UserError unless the σ rise from above 0.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    if not bool((pad(sigma, (1, 0)).diff() > 0).all()):
        raise UserError("the noise levels σ_1…σ_T must rise, from above 0; give those of sampling in reverse")
    return forward_process(beta_from_alpha_bar(1 / (1 + sigma.square()))[1:])


# What a network predicts


def x0_from_score(output: Tensor, xt: Tensor, alpha_bar: Tensor, noise_variance: Tensor) -> Tensor:
    """x⁰ = (x^t + (1−ᾱ) ∇log q(x^t))/√ᾱ, from a network that gives the score: Tweedie's formula."""
    return (xt + noise_variance * output) / alpha_bar.sqrt()


#: what a network may predict, and how that becomes x⁰
PREDICTIONS: dict[str, Callable[..., Tensor]] = {
    "eps": EpsPrediction.x0_from,
    "x0": X0Prediction.x0_from,
    "v": VPrediction.x0_from,
    "score": x0_from_score,
}


# The variance of a reverse step

Variance = Callable[..., Tensor]  #: (q, x^t, t, the network's other outputs or None) → Var(x^{t−1}|x^t)


def posterior_variance(q: GaussianForward) -> Tensor:
    """β̃_t of all t, [T+1]. In slot 1, where it is 0, stands β̃_2, as in the published code of Ho et al. (2020)."""
    variance = q.posterior_coefficients.variance
    return torch.cat([variance[:1], variance[2:3], variance[2:]])


def fixed_small(q: GaussianForward, xt: Tensor, t: int | Tensor, other: Tensor | None) -> Tensor:
    """β̃_t, the variance of q(x^{t−1}|x^t,x⁰), and at t = 1 β̃_2."""
    return extract(posterior_variance(q), t, xt)


def fixed_large(q: GaussianForward, xt: Tensor, t: int | Tensor, other: Tensor | None) -> Tensor:
    """β_t, the variance of q(x^t|x^{t−1}), and at t = 1 β̃_2."""
    return extract(torch.cat([posterior_variance(q)[:2], q.beta[2:]]), t, xt)


def learned(q: GaussianForward, xt: Tensor, t: int | Tensor, other: Tensor | None) -> Tensor:
    """The exponential of the network's second C channels."""
    return second_half(other).exp()


def learned_range(q: GaussianForward, xt: Tensor, t: int | Tensor, other: Tensor | None) -> Tensor:
    """Between β̃_t at −1 and β_t at 1 in the log, by the network's second C channels (Nichol and Dhariwal 2021)."""
    low, high = (extract(table.log(), t, xt) for table in (posterior_variance(q), q.beta))
    return torch.lerp(low, high, (second_half(other) + 1) / 2).exp()


def second_half(other: Tensor | None) -> Tensor:
    """The outputs of a network beside its prediction. UserError where there are none."""
    if other is None:
        raise UserError("a learned variance takes a network of 2C output channels, and this one has C; name another")
    return other


def moment_matched(x0_error: Tensor) -> Variance:
    """The best variance of each timestep, for a network whose x⁰ is off by `x0_error` [T+1] in mean square.

    It is β̃_t plus the error times the squared weight of x⁰ in the mean (Analytic-DPM, Bao et al. 2022), and minimises
    every KL of (14). At t = 1 it is the error itself: best for a density, and nearly so for discretised levels.
    """

    def variance(q: GaussianForward, xt: Tensor, t: int | Tensor, other: Tensor | None) -> Tensor:
        return q.posterior_from_moments(xt, xt, extract(x0_error, t, xt), t).variance

    return variance


# The reverse model


class PretrainedReverse:
    """p(x^{t−1}|x^t) = N(posterior mean at the network's x⁰, variance), of a network trained elsewhere.

    `predicts` is a name of `PREDICTIONS`. `variance` is `fixed_small`, `fixed_large`, `learned`, `learned_range`, or
    what `moment_matched` returns. `clip` is the range (low, high) that the predicted x⁰ is clipped to, None for none.
    With `variance_exploding` the network sees x^t/√ᾱ_t = x⁰ + σ_t ε, and its eps or score belongs to that; q is of
    `forward_process_from_sigma`. `final_step(p, q, x1)` gives p(x⁰|x¹), None the edge step (44).
    """

    any_schedule = False  #: the network is told the step, so it knows its own schedule only

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        predicts: str,
        variance: Variance = fixed_small,
        clip: tuple[float, float] | None = None,
        variance_exploding: bool = False,
        final_step: FinalStep | None = None,
    ):
        if predicts not in PREDICTIONS:
            raise UserError(f"no network predicts {predicts!r}; name one of {', '.join(PREDICTIONS)}")
        if variance_exploding and predicts == "v":
            raise UserError("v belongs to x^t = √ᾱ x⁰ + √(1−ᾱ) ε; wrap the network so that it returns eps, x0 or score")
        self.network, self.predicts, self.variance, self.clip = network, predicts, variance, clip
        self.variance_exploding, self.final_step = variance_exploding, final_step

    def run_network(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction of x⁰, [B, C, …], and the network's other C channels where it has 2C."""
        alpha_bar, noise_variance = extract(q.alpha_bar, t, xt), extract(q.noise_variance, t, xt)
        if self.variance_exploding:  # x^t/√ᾱ = x⁰ + σε, where the signal keeps its size
            scale = alpha_bar
            xt, alpha_bar, noise_variance = xt / scale.sqrt(), torch.ones_like(scale), noise_variance / scale
        step = (t if isinstance(t, Tensor) else torch.full((len(xt),), t, device=xt.device)) - 1
        output = self.network(xt.float(), step).to(xt.dtype)
        n_channels, wanted = xt.shape[1], (len(xt), output.shape[1], *xt.shape[2:])
        if output.shape != wanted or output.shape[1] not in (n_channels, 2 * n_channels):
            raise UserError(f"the network makes {[*output.shape]} of {[*xt.shape]}; C or 2C channels are wanted")
        prediction, *other = output.split(n_channels, dim=1)
        x0 = PREDICTIONS[self.predicts](prediction, xt, alpha_bar, noise_variance)
        return x0 if self.clip is None else x0.clamp(*self.clip), other[0] if other else None

    def __call__(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> Normal:
        x0, other = self.run_network(q, xt, t)
        return Normal(q.posterior_from_moments(xt, x0, 0.0, t).mean, self.variance(q, xt, t, other))


@torch.no_grad()
def measure_x0_error(p: PretrainedReverse, q: GaussianForward, x0: Tensor, generator: Generator) -> Tensor:
    """Mean squared error per entry of the network's x⁰ at each t, [T+1], for `moment_matched`.

    Measured on x⁰ [n, C, …]: take training pictures, not those to be scored.
    """
    error = torch.zeros_like(q.beta)
    for t in range(1, q.T + 1):
        xt = q.marginal(x0, t).reparameterize(q.sample_noise(x0, generator))
        error[t] = (p.run_network(q, xt, t)[0] - x0).square().mean()
    return error
