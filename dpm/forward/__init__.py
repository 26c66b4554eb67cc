"""The forward processes: Gaussian and Bernoulli diffusion of the paper, and absorbing diffusion.

To add one, write a file with a subclass of `ForwardProcess`; a kernel for bits is offered by `--kernel` once it stands
in `BIT_KERNELS`.
"""

from collections.abc import Callable

from torch import Tensor

from dpm.forward.absorbing import AbsorbingForward
from dpm.forward.base import ForwardProcess, sum_except_batch
from dpm.forward.bernoulli import BernoulliForward
from dpm.forward.gaussian import GaussianForward, PosteriorCoefficients

#: kernels for bits by name: (β, prior probability of a 1) → process
BIT_KERNELS: dict[str, Callable[[Tensor, float], ForwardProcess]] = {
    "flipping": BernoulliForward,
    "masking": lambda beta, prior_prob: AbsorbingForward(beta),
}

__all__ = [
    "BIT_KERNELS",
    "AbsorbingForward",
    "BernoulliForward",
    "ForwardProcess",
    "GaussianForward",
    "PosteriorCoefficients",
    "sum_except_batch",
]
