"""Milliseconds a training step and a sampling step of `dpm`, beside a bare PyTorch loop written by hand.

Both sides share the network, the data, the batch and the optimiser, and must find the same loss. The bare side is what
one would write for a single experiment: the chain's coefficients in float32 tables, one look-up a step, (14) term by
term, and no more. The `dpm` side is the real `train` and `trajectory`, with averaged weights, records, checkpoints and
a progress bar. The two take turns, a block each, and the ratio is the median over turns: noise hits both sides alike.
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
from dpm.reverse import DiffusionModel, sample_trajectory
from dpm.training import Objective, TrainState, train


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # x⁰, t, noise → −K
SAMPLES = 1000
BLOCK = 50  # steps, as many as between two records of dpm
CPU = torch.device("cpu")


def rates(beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """β_t, 1−ᾱ_{t−1}, 1−ᾱ_t and log ᾱ_t, for t = 1…T."""
    log_signal = torch.log1p(-beta).cumsum(0)
    noise = -torch.expm1(log_signal)
    return beta[1:], noise[:-1], noise[1:], log_signal[1:]


def roll_table(beta: Tensor) -> Tensor:
    """The swiss roll's chain, a row a step: √ᾱ, √(1−ᾱ), log odds of signal, and q(x^{t−1}|x^t,x⁰) in three columns."""
    beta, before, noise, log_signal = rates(beta)
    columns = [(log_signal / 2).exp(), noise.sqrt(), (log_signal - noise.log()) / 4]
    columns += [(1 - before).sqrt() * beta / noise, (1 - beta).sqrt() * before / noise, beta * before / noise]
    return torch.stack(columns, dim=1).float()


def roll_guess(net, xt: Tensor, signal: Tensor, sigma: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    waves = [wave(1.5 * 2**k * xt) for k in range(4) for wave in (torch.sin, torch.cos)]
    shift, spread = net(torch.cat([xt, level.expand(len(xt), 1), *waves], dim=1)).chunk(2, dim=1)
    return signal * xt + sigma * shift, sigma**2 * spread.exp()


def roll_loss(model: DiffusionModel) -> Loss:
    net, table = model.p.predict_x0.mlp, roll_table(model.schedule())

    def loss(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, sigma, level, from_x0, from_xt, variance = table[t - 1].split(1, dim=1)
        xt = signal * x0 + sigma * noise
        mean, spread = roll_guess(net, xt, signal, sigma, level)
        gap = from_x0 * x0 + from_xt * xt - (from_x0 * mean + from_xt * xt)
        total = variance + from_x0**2 * spread
        kl = 0.5 * ((total / variance).log() + (variance + gap**2) / total - 1)
        entropies = 2 * (table[-1, 1].log() - table[0, 1].log() - 0.5 * math.log(2 * math.pi * math.e))
        return (len(table) - 1) * kl.sum(1).mean() - entropies

    return loss


@torch.no_grad()
def roll_sample(model: DiffusionModel, generator: Generator) -> Iterator[Tensor]:
    table = roll_table(model.schedule())
    x = torch.randn(SAMPLES, 2, generator=generator)
    for signal, sigma, level, from_x0, from_xt, variance in table[1:].flip(0):
        mean, spread = roll_guess(model.p.predict_x0.mlp, x, signal, sigma, level)
        noise = torch.randn(SAMPLES, 2, generator=generator)
        x = from_x0 * mean + from_xt * x + (variance + from_x0**2 * spread).sqrt() * noise
        yield x


def bits_table(beta: Tensor) -> Tensor:
    """The heartbeat's chain, a row a step, thirteen columns: q(x^t=1|x⁰=b) for b = 0, 1; the evidence of x^t = a,
    log q(a|1)/q(a|0), for a = 0, 1; q(x^{t−1}=s|x^t=a,x⁰=b) for sab = 000 … 111; ᾱ."""
    beta, before, noise, log_signal = rates(beta)
    rate, bit = torch.tensor([1 - PRIOR_PROB, PRIOR_PROB], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    step, earlier, marginal = ((1 - e)[:, None, None] * bit + e[:, None, None] * rate for e in (beta, before, noise))
    joint = torch.einsum("tbs,tsa->tsab", earlier, step)
    posterior = (joint / joint.sum(1, keepdim=True)).reshape(-1, 8)
    evidence = (marginal[:, 1] / marginal[:, 0]).log()
    return torch.cat([marginal[:, :, 1], evidence, posterior, log_signal[:, None].exp()], dim=1).float()


def mix(zero: Tensor, one: Tensor, bit: Tensor) -> Tensor:
    return (1 - bit) * zero + bit * one


def bits_guess(net, xt: Tensor, row: tuple[Tensor, ...]) -> Tensor:
    evidence = mix(row[2], row[3], xt)
    seen = torch.cat([evidence / 4, row[12].expand(len(xt), 1)], dim=1)
    return torch.sigmoid(math.log(PRIOR_PROB / (1 - PRIOR_PROB)) + evidence + net(seen))


def bits_loss(model: DiffusionModel) -> Loss:
    table, p = bits_table(model.schedule.beta), model.p
    H = lambda r: -r * math.log(r) - (1 - r) * math.log(1 - r)  # noqa: E731
    h0, h1 = (H(float(table[-1, b])) - H(float(table[0, b])) - H(PRIOR_PROB) for b in (0, 1))

    def loss(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        row = table[t - 1].split(1, dim=1)
        xt = (noise < mix(row[0], row[1], x0)).float()
        (off0, off1), (on0, on1) = ([mix(row[i + b], row[i + 2 + b], xt) for b in (0, 1)] for i in (4, 8))
        if hasattr(p, "network"):
            logits = p.network(xt, t)
            log_on, log_off = logsigmoid(logits), logsigmoid(-logits)
        else:
            mean = bits_guess(p.predict_x0.mlp, xt, row)
            log_on, log_off = torch.lerp(on0, on1, mean).log(), torch.lerp(off0, off1, mean).log()
        on, off = torch.lerp(on0, on1, x0), torch.lerp(off0, off1, x0)
        kl = on * (on.log() - log_on) + off * (off.log() - log_off)
        return (len(table) - 1) * kl.sum(1).mean() - (h0 * x0.shape[1] + (h1 - h0) * x0.sum(1).mean())

    return loss


@torch.no_grad()
def bits_sample(model: DiffusionModel, generator: Generator) -> Iterator[Tensor]:
    table, net = bits_table(model.schedule.beta), model.p.predict_x0.mlp
    draw = partial(torch.rand, SAMPLES, 20, generator=generator)
    x = (draw() < PRIOR_PROB).float()
    for row in table[1:].flip(0):
        mean = bits_guess(net, x, row)
        x = (draw() < torch.lerp(mix(row[8], row[10], x), mix(row[9], row[11], x), mean)).float()
        yield x


def bare_train(model: DiffusionModel, loss: Loss, setting: TrainConfig, draw, noise_like) -> Iterator[None]:
    """Yields after every block."""
    T, generator = len(model.schedule()) - 1, Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=setting.learning_rate / 100, betas=(0.9, 0.99), fused=True)
    while True:
        for _ in range(BLOCK):
            x0 = draw(setting.batch, generator).float()
            t = torch.randint(2, T + 1, (setting.batch,), generator=generator)
            optimiser.zero_grad()
            loss(x0, t, noise_like(x0.shape, generator=generator)).backward()
            optimiser.step()
        yield


def dpm_train(run: TrainState, setting: TrainConfig, draw, folder: str) -> Iterator[None]:
    """The loop of `dpm train`: yields after every record."""
    with open(os.devnull, "w") as nowhere, tqdm(unit="step", file=nowhere) as bar:
        for record in train(run, draw, setting.batch, 10**6, setting.learning_rate, Path(folder) / "checkpoint"):
            bar.update(record.step - bar.n)
            bar.set_postfix_str(f"K {record.K:.3f}", refresh=False)
            yield


def check_equal(model: DiffusionModel, loss: Loss, setting: TrainConfig, draw) -> None:
    """Both sides find one loss for the same x⁰, t and noise."""
    q, generator = model.forward_process(), Generator().manual_seed(1)
    x0 = draw(setting.batch, generator).float()
    t, noise = stratified_timesteps(setting.batch, q.T, generator), q.sample_noise(x0, generator)
    torch.testing.assert_close(loss(x0, t, noise), Objective(model)(x0, t, noise), rtol=1e-4, atol=1e-4)


def endless(start: Callable[[], Iterator]) -> Iterator:
    """The steps of one sampling after another."""
    while True:
        yield from start()


def compare(label: str, bare: Iterator, ours: Iterator, pulls: int, turns: int) -> None:
    """A line of the table. A block is so many pulls of an iterator, and 50 steps; the first turn warms up."""
    pairs = []
    for turn in range(turns + 1):
        seconds = [0.0, 0.0]
        for side in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            for _ in itertools.islice((bare, ours)[side], pulls):
                pass
            seconds[side] = time.perf_counter() - start
        pairs.append(seconds)
    slow, fast = (1000 * median(side) / BLOCK for side in zip(*pairs[1:], strict=True))
    print(f"{label:28}{slow:10.3f}{fast:10.3f}{median(b / a for a, b in pairs[1:]):10.2f}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'milliseconds a step':28}{'bare':>10}{'dpm':>10}{'ratio':>10}")
    for name, key, make_loss, sampler, noise_like, turns in (
        ("swiss_roll", "ours", roll_loss, roll_sample, torch.randn, 16),
        ("heartbeat", "ours", bits_loss, bits_sample, torch.rand, 40),
        ("heartbeat", "paper", bits_loss, None, torch.rand, 8),
    ):
        setting, draw = EXPERIMENTS[name].settings[key], EXPERIMENTS[name].draw
        run = TrainState(build_model(setting), CPU, 0, {})
        with tempfile.TemporaryDirectory() as folder:
            ours = dpm_train(run, setting, draw, folder)
            next(ours)  # away from the start, where the network's answer is known
            model = deepcopy(run.model)
            loss = make_loss(model)
            check_equal(model, loss, setting, draw)
            bare = bare_train(model, loss, setting, draw, noise_like)
            compare(f"{name} {key}, training", bare, ours, 1, turns)
        if sampler:
            model.requires_grad_(False)
            like = draw(1, Generator().manual_seed(0)).float().expand(SAMPLES, -1)
            bare = endless(partial(sampler, model, Generator().manual_seed(0)))
            ours = endless(
                partial(sample_trajectory, model.p, model.forward_process(), like, Generator().manual_seed(0))
            )
            compare(f"{name} {key}, sampling", bare, ours, BLOCK, 2 * turns)


if __name__ == "__main__":
    main()
