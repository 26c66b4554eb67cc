"""Absorbing diffusion: bits are masked one after another. Not in the paper; the other heir of its kernel for bits.

Austin et al. 2021 (D3PM, "absorbing state") and the masked diffusion models after them. A mask says nothing, and a bit
that is not masked is certain: so a reverse step has only to say which bits to reveal, and what they are.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpm.distributions import Categorical, Distribution
from dpm.forward.base import ForwardProcess, sum_except_batch
from dpm.schedules import extract

MASK = 0.5  #: the value of a masked bit


class AbsorbingForward(ForwardProcess):
    """With probability β_t a bit is masked, and stays masked; the prior is all masks, so that β_T must be 1.

    With `linear_alpha_bar` each bit is masked at a uniformly distributed step. beta is [T+1], slot 0 is 0. The kernel
    has no detailed balance, and (44) does not exist: the final step is the reverse model's own p(x⁰|x¹).
    """

    states = torch.tensor([0.0, MASK, 1.0], dtype=torch.float64)
    reversible = False

    def __init__(self, beta: Tensor):
        if beta[-1] < 1:
            raise ValueError(f"β_T is {float(beta[-1]):.3g}; the prior is all masks, so the last step must mask with 1")
        super().__init__(beta)
        stays = self.noise_variance[:-1] / self.noise_variance[1:]
        self._prob_stays_masked = pad(stays, (1, 0))  # P(x^{t−1} is masked | x^t is masked), slot 0 unused

    def _law(self, zero: Tensor, masked: Tensor, one: Tensor) -> Categorical:
        probs = torch.stack(torch.broadcast_tensors(zero, masked, one), dim=-1)
        return Categorical(probs, self.states.to(probs))

    def _masked_with(self, x: Tensor, prob: Tensor) -> Categorical:
        """x, each bit of which is masked with this probability; a mask stays one."""
        is_mask = (x == MASK).to(x.dtype)
        return self._law((1 - prob) * (x == 0), is_mask + (1 - is_mask) * prob, (1 - prob) * (x == 1))

    def prior(self, x: Tensor) -> Categorical:
        """π: every bit is masked."""
        return self._masked_with(x, torch.ones_like(x))

    def transition(self, x: Tensor, t: int | Tensor) -> Categorical:
        """q(x^t | x^{t−1}): a bit is masked with probability β_t."""
        return self._masked_with(x, extract(self.beta, t, x))

    def marginal(self, x0: Tensor, t: int | Tensor) -> Categorical:
        """q(x^t | x⁰): a bit is masked with probability 1 − ᾱ_t."""
        return self._masked_with(x0, extract(self.noise_variance, t, x0))

    def posterior_from_moments(
        self, xt: Tensor, mean: Tensor, variance: Tensor | float, t: int | Tensor
    ) -> Categorical:
        """The factored distribution nearest in KL to q(x^{t−1} | x^t); P(x⁰ = 1 | x^t) = mean for the masked bits."""
        mean = mean.clamp(0, 1)  # a sum of probabilities may exceed 1 by a rounding
        is_mask = (xt == MASK).to(xt.dtype)
        stays = extract(self._prob_stays_masked, t, xt)
        zero = (xt == 0) + is_mask * (1 - stays) * (1 - mean)
        return self._law(zero, is_mask * stays, (xt == 1) + is_mask * (1 - stays) * mean)

    def log_likelihood(self, xt: Tensor, points: Tensor, t: int | Tensor) -> Tensor:
        """log q(x^t | x⁰ = point) up to a constant in the point: 0 where all revealed bits agree, −∞ where not."""
        points = points.to(xt)
        disagreements = (xt == 1).to(xt) @ (1 - points).T + (xt == 0).to(xt) @ points.T
        return torch.zeros_like(disagreements).masked_fill(disagreements > 0, -torch.inf)

    def final_step(self, p, x1: Tensor) -> Distribution:
        """p(x⁰|x¹): the reverse model's own kernel at t = 1, which reveals every bit that is still masked."""
        return p(self, x1, 1)

    def transition_entropy(self, x0: Tensor, t: int | Tensor) -> Tensor:
        """H_q(X^t|X^{t−1}) given x⁰, [B] nats: that of masking with β_t, per bit that is not masked yet."""
        per_bit = self.transition(torch.zeros_like(x0), t).entropy()
        return sum_except_batch(per_bit * extract(self.alpha_bar, t - 1, x0))
