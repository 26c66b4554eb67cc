"""The reverse trajectory, Section 2.2 and Appendix B.2: a reverse model p and how to sample from it.

A reverse model is anything called as p(q, xt, t) that returns the law of x^{t−1}, t ≥ 2: a network, or the exact
optimum. The step from x¹ to x⁰ is set, not learned: equation (44).
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn

from dpm.forward import Bits, Chain, Law, Normal, at_time, everywhere

Reverse = Callable[..., Law]  #: a reverse model: (q, xt, t) → the law of x^{t−1}


def kernel_mean(x: Tensor, z: Tensor, sigma: Tensor, beta: Tensor) -> Tensor:
    """f_μ = x √(1−β) + z √β, of the authors' code: z^μ is a shift, in standard deviations of the kernel."""
    return x * (1 - beta).sqrt() + z * beta.sqrt()


def fixed_point_mean(x: Tensor, z: Tensor, sigma: Tensor, beta: Tensor) -> Tensor:
    """f_μ = (x − z)(1−Σ) + z, equation (65): z^μ is the x that the step leaves where it is."""
    return (x - z) * (1 - sigma) + z


class GaussianStep(nn.Module):
    """p(x^{t−1}|x^t) = N(f_μ, f_Σ), the network's two halves z^μ and z^Σ each perturbing the forward kernel.

    f_Σ = σ(z^Σ + σ⁻¹(β_t)), equation (64); f_μ is one of the two means above. D.1.1 says no more than that a network
    gives f_μ; taken bare, 16 bumps would have to rebuild the identity to within √β_t.
    """

    def __init__(self, network: nn.Module, mean: Callable[..., Tensor] = kernel_mean):
        super().__init__()
        self.network, self.mean = network, mean

    def forward(self, q: Chain, xt: Tensor, t: Tensor) -> Normal:
        shift, spread = self.network(xt.float(), t).to(xt.dtype).chunk(2, dim=1)
        beta = at_time(q.beta, t, xt)
        sigma = torch.sigmoid(spread + beta.logit())
        return Normal(self.mean(xt, shift, sigma, beta), sigma)


class BinomialStep(nn.Module):
    """p(x^{t−1}|x^t) = B(f_b) as D.1.2 has it: f_b is a sigmoid of the network."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, q: Chain, xt: Tensor, t: Tensor) -> Bits:
        return Bits(self.network(xt.float(), t).to(xt.dtype))


class Denoise(nn.Module):
    """p(x^{t−1}|x^t) from a guess of x⁰: the kernel's average over what a denoiser says of x⁰ given x^t. Ours."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, q: Chain, xt: Tensor, t: Tensor) -> Law:
        mean, variance = self.denoiser(q, xt, t)
        return q.average(xt, mean, variance, t)


class Diffusion(nn.Module):
    """A forward chain and the model that reverses it: all that training changes, and all that a weights file holds."""

    def __init__(self, schedule: nn.Module, chain: Callable[[Tensor], Chain], p: nn.Module):
        super().__init__()
        self.schedule, self.chain, self.p = schedule, chain, p

    def q(self) -> Chain:
        """The forward chain at the schedule's present rates."""
        return self.chain(self.schedule())


def edge(q: Chain, x1: Tensor) -> Law:
    """p(x⁰|x¹) = q(x¹|x⁰) π(x⁰)/π(x¹) = T_π(x⁰|x¹; β_1), equation (44)."""
    return q.step(x1, everywhere(1, x1))


def step_back(p: Reverse, q: Chain, xt: Tensor, t: int) -> Law:
    """The law of x^{t−1} given x^t on a reverse trajectory: p's, and at t = 1 that of the edge step (44)."""
    return edge(q, xt) if t == 1 else p(q, xt, everywhere(t, xt))


@torch.no_grad()
def descend(p: Reverse, q: Chain, x: Tensor, t: int, generator: Generator) -> Iterator[tuple[int, Tensor]]:
    """Equation (5) from x^t on: yields (t, x^t), then what p makes of it, down to (0, x⁰)."""
    yield t, x
    for s in range(t, 0, -1):
        x = step_back(p, q, x, s).at(q.noise(x, generator))
        yield s - 1, x


def trajectory(p: Reverse, q: Chain, like: Tensor, generator: Generator) -> Iterator[tuple[int, Tensor]]:
    """Ancestral sampling of p(x^{0…T}), equations (4) and (5): yields (t, x^t) from t = T down to 0."""
    return descend(p, q, q.prior(like).at(q.noise(like, generator)), q.T, generator)


def end(path: Iterator[tuple[int, Tensor]]) -> Tensor:
    """x⁰, the last state of a reverse trajectory."""
    [(_, x0)] = deque(path, maxlen=1)
    return x0


def sample(p: Reverse, q: Chain, like: Tensor, generator: Generator) -> Tensor:
    """Exact samples of p(x⁰), equation (6), shaped like `like`: the end of `trajectory`."""
    return end(trajectory(p, q, like, generator))


def redraw(p: Reverse, q: Chain, x0: Tensor, t: int, generator: Generator) -> Tensor:
    """x⁰ taken to x^t by q and back by p: samples that share with x⁰ what noise leaves of it at t. Ours."""
    xt = q.marginal(x0, everywhere(t, x0)).at(q.noise(x0, generator))
    return end(descend(p, q, xt, t, generator))
