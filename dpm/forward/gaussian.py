"""Gaussian diffusion, Table App.1, left column: x^t shrinks towards 0 and gains normal noise."""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from dpm.distributions import MultivariateNormal, Normal
from dpm.forward.base import ForwardProcess
from dpm.schedules import extract


class PosteriorCoefficients(NamedTuple):
    """q(x^{t−1}|x^t,x⁰) = N(x0 · x⁰ + xt · x^t, variance): the numbers of that sentence."""

    x0: Tensor  #: weight of x⁰ in the mean
    xt: Tensor  #: weight of x^t in the mean
    variance: Tensor  #: "β̃_t" of later papers


class GaussianForward(ForwardProcess):
    """q(x^t|x^{t−1}) = N(x^{t−1} √(1−β_t), β_t I), with prior π = N(0, I). beta is [T+1], slot 0 is 0."""

    def __init__(self, beta: Tensor):
        super().__init__(beta)
        self.log_snr = self.log_alpha_bar - self.noise_variance.log()  #: log ᾱ_t/(1−ᾱ_t), [T+1]; slot 0 is ∞
        noise, previous_noise = self.noise_variance[1:], self.noise_variance[:-1]
        x0_weight = self.alpha_bar[:-1].sqrt() * beta[1:] / noise
        xt_weight = (1 - beta[1:]).sqrt() * previous_noise / noise
        variance = beta[1:] * previous_noise / noise
        self._posterior_table = pad(torch.stack([x0_weight, xt_weight, variance]), (1, 0))  # [3, T+1], slot 0 unused

    @property
    def posterior_coefficients(self) -> PosteriorCoefficients:
        """The coefficients of q(x^{t−1}|x^t,x⁰) for all t, [T+1] each; slot 0 is unused."""
        return PosteriorCoefficients(*self._posterior_table)

    def extract_posterior_coefficients(self, t: int | Tensor, x: Tensor) -> PosteriorCoefficients:
        """The coefficients at timestep t, shaped to broadcast with x."""
        return PosteriorCoefficients(*(extract(table, t, x) for table in self._posterior_table))

    def sample_noise(self, x: Tensor, generator: Generator) -> Tensor:
        """Standard normal noise, shaped like x."""
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def prior(self, x: Tensor) -> Normal:
        """π = N(0, I), equation (1)."""
        return Normal(torch.zeros_like(x), torch.ones_like(x))

    def transition(self, x: Tensor, t: int | Tensor) -> Normal:
        """q(x^t | x^{t−1}) = N(x^{t−1} √(1−β_t), β_t I), equation (2)."""
        beta = extract(self.beta, t, x)
        return Normal(x * (1 - beta).sqrt(), beta)

    def marginal(self, x0: Tensor, t: int | Tensor) -> Normal:
        """q(x^t | x⁰) = N(x⁰ √ᾱ_t, (1−ᾱ_t) I)."""
        return Normal(x0 * extract(self.alpha_bar, t, x0).sqrt(), extract(self.noise_variance, t, x0))

    def posterior_from_moments(self, xt: Tensor, mean: Tensor, variance: Tensor | float, t: int | Tensor) -> Normal:
        """The Gaussian nearest in KL to q(x^{t−1} | x^t), given mean and variance of each entry of x⁰ | x^t."""
        weight = self.extract_posterior_coefficients(t, xt)
        return Normal(weight.x0 * mean + weight.xt * xt, weight.variance + weight.x0**2 * variance)

    def posterior_from_covariance(
        self, xt: Tensor, mean: Tensor, covariance: Tensor, t: int | Tensor
    ) -> MultivariateNormal:
        """The Gaussian of full covariance nearest in KL to q(x^{t−1} | x^t), for mean [B, D] and covariance [B, D, D]
        of x⁰ | x^t."""
        given_mean = self.posterior_from_moments(xt, mean, 0.0, t)
        x0_weight = self.extract_posterior_coefficients(t, xt).x0[..., None]
        of_posterior = torch.diag_embed(given_mean.variance.expand_as(xt))
        return MultivariateNormal(given_mean.mean, of_posterior + x0_weight**2 * covariance)

    def log_likelihood(self, xt: Tensor, points: Tensor, t: int | Tensor, variance: float = 0.0) -> Tensor:
        """log q(x^t | x⁰ ~ N(point, variance · I)) up to a constant in the point: [B, D], [M, D] → [B, M] nats."""
        alpha_bar, noise_variance = extract(self.alpha_bar, t, xt), extract(self.noise_variance, t, xt)
        inner = alpha_bar.sqrt() * (xt @ points.T) - alpha_bar / 2 * points.square().sum(1)
        return inner / (alpha_bar * variance + noise_variance)

    def entropy_constants(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_q(X^T|X⁰), H_q(X¹|X⁰) and H_p(X^T) of (14), [B] nats each, the same for every x⁰."""
        variances = torch.stack([self.noise_variance[-1], self.noise_variance[1], self.beta.new_ones(())])
        per_entry = 0.5 * (2 * math.pi * math.e * variances).log()
        at_T, at_1, prior = (x0[0].numel() * per_entry).to(x0.dtype)[:, None].expand(3, len(x0)).unbind()
        return at_T, at_1, prior

    def blurred_marginal(self, points: Tensor, variance: float, t: int | Tensor) -> Normal:
        """q(x^t) for x⁰ ~ N(point, variance · I)."""
        marginal = self.marginal(points, t)
        return Normal(marginal.mean, marginal.variance + extract(self.alpha_bar, t, points) * variance)
