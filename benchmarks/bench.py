"""Milliseconds per training step and per sampling step of `dpm`, beside a bare PyTorch loop written by hand.

Both sides share the network, the data, the batch and the optimiser, and must find the same loss. The bare side is what
one would write for a single experiment: the coefficients of the forward process in float32 tables, one look-up per
step, (14) term by term, and no more. The `dpm` side is the real `train` and `sample_trajectory`, with averaged weights,
records, checkpoints and a progress bar. The two take turns, a block each, and the ratio is the median over turns: noise
of the machine hits both sides alike.
"""

import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from dpm.bound import stratified_timesteps
from dpm.experiments.base import TrainConfig
from dpm.experiments.heartbeat import PRIOR_PROB
from dpm.experiments.registry import EXPERIMENTS, build_model
from dpm.reverse import DiffusionModel, LogitPrediction, sample_trajectory
from dpm.training import RECORD_EVERY, Objective, TrainState, train

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # x⁰, t, noise → −K
N_SAMPLES = 1000
BLOCK = RECORD_EVERY  # steps per turn
CPU = torch.device("cpu")


def noise_levels(beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """β_t, 1−ᾱ_{t−1}, 1−ᾱ_t and log ᾱ_t, for t = 1…T."""
    log_alpha_bar = torch.log1p(-beta).cumsum(0)
    noise_variance = -torch.expm1(log_alpha_bar)
    return beta[1:], noise_variance[:-1], noise_variance[1:], log_alpha_bar[1:]


def roll_table(beta: Tensor) -> Tensor:
    """The swiss roll's forward process, a row per t: √ᾱ, √(1−ᾱ), log-SNR/4, and q(x^{t−1}|x^t,x⁰) in three columns."""
    beta, previous, noise, log_alpha_bar = noise_levels(beta)
    columns = [(log_alpha_bar / 2).exp(), noise.sqrt(), (log_alpha_bar - noise.log()) / 4]
    columns += [(1 - previous).sqrt() * beta / noise, (1 - beta).sqrt() * previous / noise, beta * previous / noise]
    return torch.stack(columns, dim=1).float()


def roll_predict_x0(net, xt: Tensor, signal: Tensor, sigma: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    features = [wave(1.5 * 2**k * xt) for k in range(4) for wave in (torch.sin, torch.cos)]
    v, log_var = net(torch.cat([xt, level.expand(len(xt), 1), *features], dim=1)).chunk(2, dim=1)
    return signal * xt - sigma * v, sigma**2 * log_var.exp()


def roll_loss(model: DiffusionModel) -> Loss:
    net, table = model.p.network.mlp, roll_table(model.schedule())

    def loss(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, sigma, level, x0_weight, xt_weight, variance = table[t - 1].split(1, dim=1)
        xt = signal * x0 + sigma * noise
        x0_mean, x0_variance = roll_predict_x0(net, xt, signal, sigma, level)
        gap = x0_weight * x0 + xt_weight * xt - (x0_weight * x0_mean + xt_weight * xt)
        total = variance + x0_weight**2 * x0_variance
        kl = 0.5 * ((total / variance).log() + (variance + gap**2) / total - 1)
        entropies = 2 * (table[-1, 1].log() - table[0, 1].log() - 0.5 * math.log(2 * math.pi * math.e))
        return (len(table) - 1) * kl.sum(1).mean() - entropies

    return loss


@torch.no_grad()
def roll_sample(model: DiffusionModel, generator: Generator) -> Iterator[Tensor]:
    net, table = model.p.network.mlp, roll_table(model.schedule())
    x = torch.randn(N_SAMPLES, 2, generator=generator)
    for signal, sigma, level, x0_weight, xt_weight, variance in table[1:].flip(0):
        x0_mean, x0_variance = roll_predict_x0(net, x, signal, sigma, level)
        noise = torch.randn(N_SAMPLES, 2, generator=generator)
        x = x0_weight * x0_mean + xt_weight * x + (variance + x0_weight**2 * x0_variance).sqrt() * noise
        yield x


def bits_table(beta: Tensor) -> Tensor:
    """The heartbeat's forward process, a row per t, thirteen columns: q(x^t=1|x⁰=b) for b = 0, 1; the log likelihood
    ratio log q(x^t=a|x⁰=1)/q(x^t=a|x⁰=0) for a = 0, 1; q(x^{t−1}=s|x^t=a,x⁰=b) for sab = 000 … 111; ᾱ."""
    beta, previous, noise, log_alpha_bar = noise_levels(beta)
    prior, bit = torch.tensor([1 - PRIOR_PROB, PRIOR_PROB], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    transition, earlier, marginal = (
        (1 - share)[:, None, None] * bit + share[:, None, None] * prior for share in (beta, previous, noise)
    )
    joint = torch.einsum("tbs,tsa->tsab", earlier, transition)
    posterior = (joint / joint.sum(1, keepdim=True)).reshape(-1, 8)
    log_ratio = (marginal[:, 1] / marginal[:, 0]).log()
    return torch.cat([marginal[:, :, 1], log_ratio, posterior, log_alpha_bar[:, None].exp()], dim=1).float()


def mix(zero: Tensor, one: Tensor, bit: Tensor) -> Tensor:
    return (1 - bit) * zero + bit * one


def bits_predict_x0(net, xt: Tensor, row: tuple[Tensor, ...]) -> Tensor:
    log_ratio = mix(row[2], row[3], xt)
    from_others = net(torch.cat([log_ratio / 4, row[12].expand(len(xt), 1)], dim=1))
    return torch.sigmoid(math.log(PRIOR_PROB / (1 - PRIOR_PROB)) + log_ratio + from_others)


def bits_loss(model: DiffusionModel) -> Loss:
    table, p = bits_table(model.schedule()), model.p
    H = lambda r: -r * math.log(r) - (1 - r) * math.log(1 - r)  # noqa: E731
    h0, h1 = (H(float(table[-1, b])) - H(float(table[0, b])) - H(PRIOR_PROB) for b in (0, 1))

    def loss(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        row = table[t - 1].split(1, dim=1)
        xt = (noise < mix(row[0], row[1], x0)).float()
        (zero0, zero1), (one0, one1) = ([mix(row[i + b], row[i + 2 + b], xt) for b in (0, 1)] for i in (4, 8))
        if isinstance(p, LogitPrediction):
            logits = p.network(xt, t)
            log_one, log_zero = logsigmoid(logits), logsigmoid(-logits)
        else:
            mean = bits_predict_x0(p.network, xt, row)
            log_one, log_zero = torch.lerp(one0, one1, mean).log(), torch.lerp(zero0, zero1, mean).log()
        one, zero = torch.lerp(one0, one1, x0), torch.lerp(zero0, zero1, x0)
        kl = one * (one.log() - log_one) + zero * (zero.log() - log_zero)
        return (len(table) - 1) * kl.sum(1).mean() - (h0 * x0.shape[1] + (h1 - h0) * x0.sum(1).mean())

    return loss


@torch.no_grad()
def bits_sample(model: DiffusionModel, generator: Generator) -> Iterator[Tensor]:
    net, table = model.p.network, bits_table(model.schedule())
    draw = partial(torch.rand, N_SAMPLES, 20, generator=generator)
    x = (draw() < PRIOR_PROB).float()
    for row in table[1:].flip(0):
        mean = bits_predict_x0(net, x, row)
        x = (draw() < torch.lerp(mix(row[8], row[10], x), mix(row[9], row[11], x), mean)).float()
        yield x


def bare_train(model: DiffusionModel, loss: Loss, config: TrainConfig, draw, noise_like) -> Iterator[None]:
    """The bare loop: yields after every block."""
    T, generator = len(model.schedule()) - 1, Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate / 100, betas=(0.9, 0.99), fused=True)
    while True:
        for _ in range(BLOCK):
            x0 = draw(config.batch, generator).float()
            t = torch.randint(2, T + 1, (config.batch,), generator=generator)
            optimiser.zero_grad()
            loss(x0, t, noise_like(x0.shape, generator=generator)).backward()
            optimiser.step()
        yield


def dpm_train(state: TrainState, config: TrainConfig, draw, folder: str) -> Iterator[None]:
    """The loop of `dpm train`: yields after every record."""
    with open(os.devnull, "w") as nowhere, tqdm(unit="step", file=nowhere) as bar:
        for record in train(state, draw, config.batch, 10**6, config.learning_rate, Path(folder) / "checkpoint"):
            bar.update(record.step - bar.n)
            bar.set_postfix_str(f"K {record.K:.3f}", refresh=False)
            yield


def check_equal(model: DiffusionModel, loss: Loss, config: TrainConfig, draw) -> None:
    """Both sides find one loss for the same x⁰, t and noise."""
    q, generator = model.forward_process(), Generator().manual_seed(1)
    x0 = draw(config.batch, generator).float()
    t, noise = stratified_timesteps(config.batch, q.T, generator), q.sample_noise(x0, generator)
    torch.testing.assert_close(loss(x0, t, noise), Objective(model)(x0, t, noise), rtol=1e-4, atol=1e-4)


def endless(start: Callable[[], Iterator]) -> Iterator:
    """The steps of one sampling after another."""
    while True:
        yield from start()


def compare(label: str, bare: Iterator, ours: Iterator, pulls: int, turns: int) -> None:
    """Print a line of the table. `pulls` items of an iterator make a block of BLOCK steps; the first turn warms up."""
    pairs = []
    for turn in range(turns + 1):
        seconds = [0.0, 0.0]
        for side in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            for _ in itertools.islice((bare, ours)[side], pulls):
                pass
            seconds[side] = time.perf_counter() - start
        pairs.append(seconds)
    bare_ms, our_ms = (1000 * median(side) / BLOCK for side in zip(*pairs[1:], strict=True))
    print(f"{label:28}{bare_ms:10.3f}{our_ms:10.3f}{median(b / a for a, b in pairs[1:]):10.2f}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'milliseconds per step':28}{'bare':>10}{'dpm':>10}{'ratio':>10}")
    for name, setting, make_loss, sampler, noise_like, turns in (
        ("swiss_roll", "best", roll_loss, roll_sample, torch.randn, 16),
        ("heartbeat", "best", bits_loss, bits_sample, torch.rand, 40),
        ("heartbeat", "paper", bits_loss, None, torch.rand, 8),
    ):
        config, draw = EXPERIMENTS[name].settings[setting], EXPERIMENTS[name].draw
        state = TrainState(build_model(config), CPU, 0, {})
        with tempfile.TemporaryDirectory() as folder:
            ours = dpm_train(state, config, draw, folder)
            next(ours)  # away from the start, where the network's answer is known
            model = deepcopy(state.model)
            loss = make_loss(model)
            check_equal(model, loss, config, draw)
            bare = bare_train(model, loss, config, draw, noise_like)
            compare(f"{name} {setting}, training", bare, ours, 1, turns)
        if sampler:
            model.requires_grad_(False)
            q, like = model.forward_process(), draw(1, Generator().manual_seed(0)).float().expand(N_SAMPLES, -1)
            bare = endless(partial(sampler, model, Generator().manual_seed(0)))
            ours = endless(partial(sample_trajectory, model.p, q, like, Generator().manual_seed(0)))
            compare(f"{name} {setting}, sampling", bare, ours, BLOCK, 2 * turns)


if __name__ == "__main__":
    main()
