"""What Tables 1 and 2 compare with: the Parzen estimate, a full Gaussian, the MCGSM; and independent bits. In nats."""

import math

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal

from dpm.data.images import extract_patches

BANDWIDTHS = torch.logspace(-1, 0, 10, dtype=torch.float64)  #: the widths σ that Table 2's estimate chooses from


def log_parzen(x: Tensor, samples: Tensor, sigma: Tensor, chunk: int = 250) -> Tensor:
    """log of the mean over samples [n, D] of N(x; sample, σ²I), for x [m, D] and each σ of sigma [k]: [k, m] nats.

    In float64 throughout, since |x|² − 2x·s + |s|² cancels; `chunk` rows of x at once.
    """
    samples = samples.double()
    sigma = sigma.to(samples)[:, None]
    log_norm = x.shape[1] / 2 * (2 * math.pi * sigma.square()).log() + math.log(len(samples))
    rows = []
    for block in x.double().split(chunk):
        squared = torch.cdist(block, samples).square()
        rows.append(torch.stack([(squared / (-2 * s**2)).logsumexp(1) for s in sigma]))
    return torch.cat(rows, dim=1) - log_norm


def parzen(samples: Tensor, validation: Tensor, test: Tensor) -> tuple[float, Tensor]:
    """Parzen estimate of Table 2: the σ of `BANDWIDTHS` that validation likes best, and log density of test, [m] nats.

    As published: images in [0, 1], 10 000 samples [n, D], the first 1000 validation images, the whole test set.
    """
    sigma = BANDWIDTHS[int(log_parzen(validation, samples, BANDWIDTHS).mean(1).argmax())]
    return float(sigma), log_parzen(test, samples, sigma[None])[0]


def fit_full_gaussian(x: Tensor) -> MultivariateNormal:
    """The Gaussian of full covariance that gives x [n, …] the highest likelihood; over x.flatten(1)."""
    x = x.flatten(1)
    return MultivariateNormal(x.mean(0), torch.atleast_2d(x.T.cov(correction=0)))  # of one coordinate it is a number


PATCH = 8  # side of the patches that a Gaussian of pictures describes, where there are enough of them
ENOUGH = 4  # patches per number of a patch: its Gaussian then loses 0.15 bits per number to chance
MIN_WINDOWS = 10_000  # complete windows of training pictures below which an MCGSM would be learned by heart


def patch_gaussian_log_prob(train: Tensor, test: Tensor, side: int = PATCH) -> Tensor:
    """Mean log density of the patches of each picture under a full Gaussian fitted to those of `train`, nats per pixel.

    [n, C, H, W], [m, C, H, W] → [m].
    """
    gaussian, patches = fit_full_gaussian(extract_patches(train, side)), extract_patches(test, side)
    return gaussian.log_prob(patches.flatten(1)).view(len(test), -1).mean(1) / side**2


def largest_patch(train: Tensor) -> int:
    """The largest side up to 8 at which pictures [n, C, H, W] have four patches per number of a patch; 1 where none."""
    n, channels, height, width = train.shape
    sides = range(min(PATCH, height, width), 1, -1)
    n_patches = {side: n * (height // side) * (width // side) for side in sides}
    return next((side for side in sides if n_patches[side] >= ENOUGH * channels * side**2), 1)


def independent_bits_log_prob(train: Tensor, test: Tensor) -> Tensor:
    """log probability of bits [m, D] that are independent, each 1 as often as in `train` [n, D]: [m] nats.

    Half a 0 and half a 1 are added to the count of each (Krichevsky and Trofimov 1981), so that none is impossible.
    """
    return Bernoulli((train.sum(0) + 0.5) / (len(train) + 1)).log_prob(test).sum(1)


ROWS_ABOVE, COLUMNS_BESIDE = 3, 3  # the causal neighbourhood of a pixel


def causal_windows(images: Tensor, above: int = ROWS_ABOVE, width: int = 2 * COLUMNS_BESIDE + 1) -> Tensor:
    """The pixels before each pixel in reading order, then the pixel: [n, 1, H, W] → [n, pixels, D+1].

    D = above·width + width//2: `above` rows of `width`, centred over the pixel, and width//2 pixels to its left. Only
    pixels whose window lies in the image whole: none of the first `above` rows, nor of width//2 columns at a side.
    """
    windows = nn.functional.unfold(images, (above + 1, width))
    return windows[:, : above * width + width // 2 + 1].mT


class MCGSM(nn.Module):
    """Mixture of conditional Gaussian scale mixtures, Table 2 (Theis, Hosseini, Bethge 2012): p(pixel | pixels before).

    p(x|h) = Σ_{c,s} p(c,s|h) N(x; a_cᵀh, e^{−α_cs}), p(c,s|h) ∝ exp(η_cs − ½ e^{α_cs} Σ_m β_cm² (b_mᵀh)²).
    h and x are the windows' entries and pixel made white by the Cholesky factor `root` of the covariance of `windows`
    [n, D+1]; h ends in a 1.
    """

    mean: Tensor
    root: Tensor

    def __init__(
        self, windows: Tensor, generator: Generator, components: int = 12, scales: int = 4, features: int = 32
    ):
        super().__init__()
        self.register_buffer("mean", windows.mean(0))
        self.register_buffer("root", torch.linalg.cholesky(windows.T.cov()))
        inputs = windows.shape[1]

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=windows.dtype, device=windows.device)

        self.a = nn.Parameter(draw(components, inputs) / 100)
        self.b = nn.Parameter(draw(features, inputs) / math.sqrt(inputs))
        self.beta = nn.Parameter(draw(components, features) / math.sqrt(features))
        self.alpha = nn.Parameter(1 + 2 * draw(components, scales))  # narrower starts end in poorer optima
        self.eta = nn.Parameter(draw(components, scales) / 10)

    def whitened(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """h [n, D+1] and x [n] of windows [n, D+1]."""
        white = torch.linalg.solve_triangular(self.root, (windows - self.mean).T, upper=False).T
        return nn.functional.pad(white[:, :-1], (0, 1), value=1.0), white[:, -1]

    def gate(self, h: Tensor) -> Tensor:
        """log p(c,s|h) but for its constant: [n, c, s]."""
        energy = (h @ self.b.T).square() @ self.beta.square().T  # hᵀK_c h, [n, c]
        return self.eta - 0.5 * self.alpha.exp() * energy[:, :, None]

    def forward(self, windows: Tensor) -> Tensor:
        """log p(pixel | pixels before) of windows [n, D+1], [n] nats."""
        h, x = self.whitened(windows)
        gate = self.gate(h)
        squared = (x[:, None] - h @ self.a.T).square()  # [n, c]
        expert = 0.5 * (self.alpha - math.log(2 * math.pi) - self.alpha.exp() * squared[:, :, None])
        mixed = (gate + expert).flatten(1).logsumexp(1) - gate.flatten(1).logsumexp(1)
        return mixed - self.root[-1, -1].log()  # per unit of the pixel, not of x

    def draw(self, windows: Tensor, generator: Generator) -> Tensor:
        """Pixels drawn given the pixels before, the windows' own pixel ignored: [n, D+1] → [n]."""
        h, _ = self.whitened(windows)
        component = torch.multinomial(self.gate(h).flatten(1).softmax(1), 1, generator=generator)[:, 0]
        c = component // self.alpha.shape[1]
        noise = torch.randn(len(h), generator=generator, dtype=h.dtype, device=h.device)
        x = (h * self.a[c]).sum(1) + (-self.alpha.flatten()[component] / 2).exp() * noise
        return self.mean[-1] + h[:, :-1] @ self.root[-1, :-1] + self.root[-1, -1] * x  # h without its 1


def fit_mcgsm(model: MCGSM, windows: Tensor, generator: Generator, n_steps: int = 3000, batch: int = 2000) -> MCGSM:
    """Fit by maximum likelihood to windows [n, D+1]: Adam, with a learning rate that falls linearly to zero."""
    adam = torch.optim.Adam(model.parameters(), lr=0.03)
    scheduler = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, n_steps)
    for _ in range(n_steps):
        index = torch.randint(len(windows), (batch,), generator=generator, device=windows.device)
        adam.zero_grad()
        (-model(windows[index]).mean()).backward()
        adam.step()
        scheduler.step()
    return model


@torch.no_grad()
def mcgsm_log_prob(model: MCGSM, images: Tensor) -> Tensor:
    """log p(pixel | causal neighbours), mean over a picture's complete windows: [n, 1, H, W] → [n] nats per pixel."""
    return torch.stack([model(causal_windows(image[None])[0]).mean() for image in images])


@torch.no_grad()
def sample_mcgsm(model: MCGSM, images: Tensor, generator: Generator) -> Tensor:
    """Draw every pixel that has a complete window, in reading order, and keep the borders: Figure 4, middle.

    After a border of zeros the first rows and columns are unlike the data; draw larger and crop.
    """
    images = images.clone()
    for row in range(ROWS_ABOVE, images.shape[2]):
        for column in range(COLUMNS_BESIDE, images.shape[3] - COLUMNS_BESIDE):
            rows = slice(row - ROWS_ABOVE, row + 1)
            columns = slice(column - COLUMNS_BESIDE, column + COLUMNS_BESIDE + 1)
            window = causal_windows(images[:, :, rows, columns])[:, 0]
            images[:, 0, row, column] = model.draw(window, generator)
    return images


def fitted_mcgsm_log_prob(train: Tensor, test: Tensor, generator: Generator) -> Tensor:
    """`mcgsm_log_prob` of grey pictures [m, 1, H, W] by an MCGSM fitted to others [n, 1, H, W]: [m] nats per pixel."""
    windows = causal_windows(train).flatten(0, 1)
    return mcgsm_log_prob(fit_mcgsm(MCGSM(windows, generator), windows, generator), test)


def picture_baselines(train: Tensor, test: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Rivals of any pictures, fitted to x⁰ `train`, no picture twice: log density of each of `test`, nats per pixel.

    A full Gaussian of patches, and an MCGSM of grey pictures that have enough windows. [n, C, H, W], [m, …] → [m] each.
    """
    n, channels, height, width = train.shape
    scores = {"gaussian": patch_gaussian_log_prob(train, test, largest_patch(train))}
    n_windows = n * max(0, height - ROWS_ABOVE) * max(0, width - 2 * COLUMNS_BESIDE)
    if channels == 1 and n_windows >= MIN_WINDOWS:
        scores["mcgsm"] = fitted_mcgsm_log_prob(train, test, generator)
    return scores
