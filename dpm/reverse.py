"""The reverse process, Section 2.2 and Appendix B.2: reverse models p, their final step, and ancestral sampling.

A reverse model is anything that is called as p(q, xt, t) and returns the Distribution of x^{t−1}, for t an int or a
LongTensor [B]: one of the classes below, the ideal model of `dpm.ideal`, or a plain function. Its attribute
`final_step`, where it has one, is called as final_step(p, q, x1) and returns the distribution of x⁰ given x¹; where it
has none or None, the forward process's own is taken, which is (44) for the paper's kernels.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Generator, Tensor, nn

from dpm.distributions import Bernoulli, DiscretizedNormal, Distribution, MultivariateNormal, Normal
from dpm.forward import AbsorbingForward, BernoulliForward, ForwardProcess, GaussianForward
from dpm.forward.absorbing import MASK
from dpm.schedules import extract

ReverseModel = Callable[..., Distribution]  #: (q, x^t, t) → the distribution of x^{t−1}
FinalStep = Callable[..., Distribution]  #: (p, q, x¹) → the distribution of x⁰


# Parameterisations


def shifted_kernel_mean(x: Tensor, z: Tensor, sigma: Tensor, beta: Tensor) -> Tensor:
    """f_μ = x √(1−β) + z √β, as in the authors' code: z^μ shifts the forward kernel in units of √β.

    sigma is not used; it is there for `fixed_point_mean`.
    """
    return x * (1 - beta).sqrt() + z * beta.sqrt()


def fixed_point_mean(x: Tensor, z: Tensor, sigma: Tensor, beta: Tensor) -> Tensor:
    """f_μ = (x − z)(1−Σ) + z, equation (65): z^μ is the fixed point of the reverse step."""
    return (x - z) * (1 - sigma) + z


class KernelPerturbation(nn.Module):
    """p(x^{t−1}|x^t) = N(f_μ, f_Σ), both as perturbations of the forward kernel, (64)-(65).

    `network(x^t, t)` → [B, 2D…]: z^μ and z^Σ. f_Σ = σ(z^Σ + σ⁻¹(β_t)), equation (64); f_μ is `shifted_kernel_mean` or
    `fixed_point_mean`. D.1.1 says only that a network gives f_μ; a bare network would have to rebuild the identity
    to within √β_t.
    """

    any_schedule = False  #: the network is told t, so it knows its own schedule only

    def __init__(
        self,
        network: nn.Module,
        mean: Callable[..., Tensor] = shifted_kernel_mean,
        final_step: FinalStep | None = None,
    ):
        super().__init__()
        self.network, self.mean, self.final_step = network, mean, final_step

    def forward(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> Normal:
        """The distribution of x^{t−1}."""
        z_mean, z_variance = self.network(xt.float(), t).to(xt.dtype).chunk(2, dim=1)
        beta = extract(q.beta, t, xt)
        variance = torch.sigmoid(z_variance + beta.logit())
        return Normal(self.mean(xt, z_mean, variance, beta), variance)


class LogitPrediction(nn.Module):
    """p(x^{t−1}|x^t) = B(f_b), D.1.2's form for bits: `network(x^t, t)` → [B, D], the logits of x^{t−1}."""

    any_schedule = False  #: the network is told t, so it knows its own schedule only

    def __init__(self, network: nn.Module, final_step: FinalStep | None = None):
        super().__init__()
        self.network, self.final_step = network, final_step

    def forward(self, q: BernoulliForward, xt: Tensor, t: int | Tensor) -> Bernoulli:
        """The distribution of x^{t−1}."""
        return Bernoulli(self.network(xt.float(), t).to(xt.dtype))


class X0Prediction(nn.Module):
    """p(x^{t−1}|x^t) from a prediction of x⁰: the posterior averaged over mean and variance of x⁰ given x^t. Ours.

    `network(x^t, log_snr)` → [B, 2D…]: the prediction, and the log of Var(x⁰|x^t)/(1−ᾱ_t). `log_snr` is a number, or
    [B, 1, …]. Since the network is conditioned on the log-SNR and not on t, a trained one works with any schedule.
    """

    any_schedule = True

    def __init__(self, network: nn.Module, final_step: FinalStep | None = None):
        super().__init__()
        self.network, self.final_step = network, final_step

    @staticmethod
    def x0_from(output: Tensor, xt: Tensor, alpha_bar: Tensor, noise_variance: Tensor) -> Tensor:
        """The prediction of x⁰ that the network's output stands for."""
        return output

    def call_network(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> Tensor:
        """What the network returns for x^t, in the dtype of x^t."""
        log_snr = extract(q.log_snr, t, xt).float().clamp(min=-99)  # finite where β_T = 1 leaves no signal
        return self.network(xt.float(), log_snr).to(xt.dtype)

    def predict_x0(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each entry of x⁰ given x^t."""
        alpha_bar, noise_variance = extract(q.alpha_bar, t, xt), extract(q.noise_variance, t, xt)
        output, log_var = self.call_network(q, xt, t).chunk(2, dim=1)
        return self.x0_from(output, xt, alpha_bar, noise_variance), noise_variance * log_var.exp()

    def forward(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> Distribution:
        """The distribution of x^{t−1}."""
        return q.posterior_from_moments(xt, *self.predict_x0(q, xt, t), t)


class EpsPrediction(X0Prediction):
    """The same from a prediction of the noise: x^t = √ᾱ x⁰ + √(1−ᾱ) ε (Ho et al. 2020)."""

    @staticmethod
    def x0_from(output: Tensor, xt: Tensor, alpha_bar: Tensor, noise_variance: Tensor) -> Tensor:
        """x⁰ = (x^t − √(1−ᾱ) ε)/√ᾱ."""
        return (xt - noise_variance.sqrt() * output) / alpha_bar.sqrt()


class VPrediction(X0Prediction):
    """The same from a prediction of v = √ᾱ ε − √(1−ᾱ) x⁰ (Salimans and Ho 2022).

    A network that returns zeros is exact for x⁰ ~ N(0, I), so that training may start there.
    """

    @staticmethod
    def x0_from(output: Tensor, xt: Tensor, alpha_bar: Tensor, noise_variance: Tensor) -> Tensor:
        """x⁰ = √ᾱ x^t − √(1−ᾱ) v."""
        return alpha_bar.sqrt() * xt - noise_variance.sqrt() * output


class SymmetricVPrediction(VPrediction):
    """The same for square pictures that are as likely turned, mirrored or negated: the mean over these sixteen. Ours.

    Outputs for x^t in each of its images are taken back and averaged, so that p has the symmetries of the data.
    """

    def call_network(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> Tensor:
        """The mean over the images of x^t of v and log variance, in the dtype of x^t."""
        outputs = []
        for n_turns, mirrored, sign in product(range(4), (False, True), (1, -1)):
            image = sign * xt.rot90(n_turns, (2, 3))
            v, log_var = super().call_network(q, image.flip(3) if mirrored else image, t).chunk(2, dim=1)
            output = torch.cat([sign * v, log_var], dim=1)
            outputs.append((output.flip(3) if mirrored else output).rot90(-n_turns, (2, 3)))
        return torch.stack(outputs).mean(0)


class FullCovarianceVPrediction(VPrediction):
    """The same for points x [B, D], with the full covariance of x⁰ given x^t. Ours.

    `network(x^t, log_snr)` → [B, D + D(D+1)/2]: v, and the lower triangle of L, row by row, where
    Cov(x⁰|x^t) = (1−ᾱ_t) L Lᵀ; of its diagonal the logarithms. A network that returns zeros is exact for N(0, I).
    """

    def predict_x0_covariance(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, D] and covariance [B, D, D] of x⁰ given x^t."""
        alpha_bar, noise_variance = extract(q.alpha_bar, t, xt), extract(q.noise_variance, t, xt)
        dimensions = xt.shape[1]
        output, triangle = self.call_network(q, xt, t).tensor_split([dimensions], dim=1)
        rows, columns = torch.tril_indices(dimensions, dimensions, device=xt.device)
        factor = torch.where(rows == columns, triangle.exp(), triangle)
        L = xt.new_zeros(len(xt), dimensions, dimensions)
        L[:, rows, columns] = factor
        return self.x0_from(output, xt, alpha_bar, noise_variance), noise_variance[..., None] * (L @ L.mT)

    def predict_x0(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each entry of x⁰ given x^t."""
        mean, covariance = self.predict_x0_covariance(q, xt, t)
        return mean, covariance.diagonal(dim1=1, dim2=2)

    def forward(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> MultivariateNormal:
        """The distribution of x^{t−1}."""
        return q.posterior_from_covariance(xt, *self.predict_x0_covariance(q, xt, t), t)


class BitX0Prediction(nn.Module):
    """The same for bits: P(x⁰_i = 1 | x^t) by Bayes' rule from the prior, from x^t_i, and from the other bits. Ours.

    `network` maps [B, D+1], the log likelihood ratio of each bit over 4 and ᾱ_t, to [B, D]: what the other bits add to
    the logit. A network that returns zeros is exact for independent bits of the prior.
    """

    any_schedule = True

    def __init__(self, network: nn.Module, final_step: FinalStep | None = None):
        super().__init__()
        self.network, self.final_step = network, final_step

    def predict_x0(self, q: BernoulliForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each bit of x⁰ given x^t."""
        ratio = q.log_likelihood_ratio(xt, t)
        alpha_bar = extract(q.alpha_bar, t, xt).expand(len(xt), 1)
        from_others = self.network(torch.cat([ratio / 4, alpha_bar], dim=1).float()).to(xt.dtype)
        mean = torch.sigmoid(q.prior_logit + ratio + from_others)
        return mean, mean * (1 - mean)

    def forward(self, q: BernoulliForward, xt: Tensor, t: int | Tensor) -> Distribution:
        """The distribution of x^{t−1}."""
        return q.posterior_from_moments(xt, *self.predict_x0(q, xt, t), t)


class MaskedX0Prediction(nn.Module):
    """The same for masked bits: P(x⁰_i = 1 | x^t) of a masked bit from those that are not masked (Austin et al. 2021).

    `network` maps [B, D], where a bit 0 is −1, a mask 0 and a bit 1 is 1, to logits [B, D]. It is not told t: a mask
    says nothing of the bit under it, so that q(x⁰|x^t) depends on the other bits alone.
    """

    any_schedule = True

    def __init__(self, network: nn.Module, final_step: FinalStep | None = None):
        super().__init__()
        self.network, self.final_step = network, final_step

    def predict_x0(self, q: AbsorbingForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each bit of x⁰ given x^t."""
        prob_one = torch.sigmoid(self.network((2 * xt - 1).float()).to(xt.dtype))
        mean = torch.where(xt == MASK, prob_one, xt)
        return mean, mean * (1 - mean)

    def forward(self, q: AbsorbingForward, xt: Tensor, t: int | Tensor) -> Distribution:
        """The distribution of x^{t−1}."""
        return q.posterior_from_moments(xt, *self.predict_x0(q, xt, t), t)


class DiffusionModel(nn.Module):
    """A noise schedule, a kernel and a reverse model: all that training changes, and all that a weights file holds."""

    def __init__(self, schedule: nn.Module, forward_class: Callable[[Tensor], ForwardProcess], p: nn.Module):
        super().__init__()
        self.schedule, self.forward_class, self.p = schedule, forward_class, p

    def forward_process(self) -> ForwardProcess:
        """q with the schedule's present β."""
        return self.forward_class(self.schedule())


# The final step p(x⁰|x¹)


def final_step(p: ReverseModel, q: ForwardProcess, x1: Tensor) -> Distribution:
    """p(x⁰|x¹): the reverse model's own, or else the forward process's, which is the "edge step" (44) in the paper."""
    own = getattr(p, "final_step", None)
    return own(p, q, x1) if own else q.final_step(p, x1)


def has_edge_step(p: ReverseModel, q: ForwardProcess) -> bool:
    """Whether the final step p(x⁰|x¹) is the forward kernel itself, (44): set, and not learned."""
    return q.reversible and getattr(p, "final_step", None) is None


def learned_final_step(p: ReverseModel, q: ForwardProcess, x1: Tensor) -> Distribution:
    """p(x⁰|x¹) by the model's own kernel at t = 1: a learned Gaussian or Bernoulli in the place of (44)."""
    return p(q, x1, 1)


class DiscretizedFinalStep:
    """p(x⁰|x¹) for data on levels: the model's own Gaussian at t = 1, integrated over each level's bin.

    Then K bounds the log probability of the levels themselves, with no dequantisation noise (Ho et al. 2020, DDPM).
    """

    def __init__(self, bin_width: float, low: float, high: float):
        self.bin_width, self.low, self.high = bin_width, low, high

    def __call__(self, p: ReverseModel, q: ForwardProcess, x1: Tensor) -> DiscretizedNormal:
        return DiscretizedNormal(p(q, x1, 1), self.bin_width, self.low, self.high)


# Sampling


def reverse_step(p: ReverseModel, q: ForwardProcess, xt: Tensor, t: int) -> Distribution:
    """The distribution of x^{t−1} given x^t: the reverse model's, and at t = 1 the final step."""
    return final_step(p, q, xt) if t == 1 else p(q, xt, t)


@torch.no_grad()
def ancestral_loop(
    p: ReverseModel, q: ForwardProcess, xt: Tensor, t: int, generator: Generator
) -> Iterator[tuple[int, Tensor]]:
    """Equation (5) from x^t on: yields (t, x^t), then every later state down to (0, x⁰)."""
    yield t, xt
    for s in range(t, 0, -1):
        xt = reverse_step(p, q, xt, s).reparameterize(q.sample_noise(xt, generator))
        yield s - 1, xt


def sample_trajectory(
    p: ReverseModel, q: ForwardProcess, like: Tensor, generator: Generator
) -> Iterator[tuple[int, Tensor]]:
    """Ancestral sampling of p(x^{0…T}), equations (4) and (5): yields (t, x^t) from t = T down to 0."""
    xT = q.prior(like).reparameterize(q.sample_noise(like, generator))
    return ancestral_loop(p, q, xT, q.T, generator)


def last_state(trajectory: Iterator[tuple[int, Tensor]]) -> Tensor:
    """x⁰, the end of a reverse trajectory."""
    [(_, x0)] = deque(trajectory, maxlen=1)
    return x0


def sample(p: ReverseModel, q: ForwardProcess, like: Tensor, generator: Generator) -> Tensor:
    """Exact samples of p(x⁰), equation (6), shaped like `like`, by ancestral sampling."""
    return last_state(sample_trajectory(p, q, like, generator))


def noise_and_denoise(p: ReverseModel, q: ForwardProcess, x0: Tensor, t: int, generator: Generator) -> Tensor:
    """Take x⁰ to x^t by q and back by p: samples that share with x⁰ what the noise leaves of it at t. Ours."""
    xt = q.marginal(x0, t).reparameterize(q.sample_noise(x0, generator))
    return last_state(ancestral_loop(p, q, xt, t, generator))
