"""K of `dpm`, `smalldiffusion` and `diffusers` after equal seconds of one CPU core, on the same data.

Each library trains by its own recipe, on draws of one training set in the same units. All are then scored by the same
K, on the same held-out data. Libraries that predict the noise leave two things open that a likelihood needs: the
variance of a reverse step, and the final step. Of three variances and two final steps each gets those that score best
on training data. What each recipe is, and where it had to be filled in, stands beside its function.

Seconds are CPU time of this process, so that other work on the machine takes none of them.
"""

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from dpm.adapters import (
    PretrainedReverse,
    Variance,
    fixed_large,
    fixed_small,
    forward_process_from_sigma,
    measure_x0_error,
    moment_matched,
)
from dpm.bound import evaluate_subsampled
from dpm.evaluation import held_out_data, stderr_of_strata
from dpm.experiments.base import Experiment
from dpm.experiments.registry import EXPERIMENTS, build_model
from dpm.files import to_json, write_json
from dpm.forward import GaussianForward
from dpm.networks.layers import mlp
from dpm.provenance import provenance
from dpm.reverse import DiffusionModel, ReverseModel, learned_final_step
from dpm.scoring import WithFinalStep
from dpm.training import TrainState, train
from dpm.units import to_bits

CPU = torch.device("cpu")
SEED = 0
N_HELD_OUT = 20_000  # samples that K is measured on, at most
N_TIMESTEPS = 50  # of each, at most
N_CHOSEN_ON = {"swiss_roll": 1000, "digits": 64}  # training samples that choose a variance and a final step
TRIAL = 0.1  # share of the seconds that is spent, before the clock starts, on finding how many steps fit
MARGIN = 0.97  # of the steps that would fit: a decay of the learning rate must end within the seconds
FINAL_STEPS = {"(44)": None, "own": learned_final_step}

Draw = Callable[[int], Tensor]  # n → training data, float32
Network = Callable[[Tensor, Tensor], Tensor]  # (x, i) → ε̂, at level i = 0…N−1


# Seconds of CPU time


@dataclass(frozen=True)
class Cost:
    """What a training took."""

    steps: int
    cpu_seconds: float
    parameters: int


def spend(steps: Iterator[int], seconds: float) -> tuple[int, float]:
    """Train until the steps or the seconds end; returns the number of steps, and the seconds."""
    begun, step = time.process_time(), 0
    for step in steps:  # noqa: B007
        if time.process_time() - begun >= seconds:
            break
    return step, time.process_time() - begun


def steps_that_fit(steps: Iterator[int], seconds: float) -> int:
    """How many steps of a training fit into the seconds, by a trial of a part of them."""
    first = next(steps)  # allocates, and is slower
    last, taken = spend(steps, TRIAL * seconds)
    return max(1, int(MARGIN * seconds * (last - first) / taken))


def cost_of(module: nn.Module, steps: Iterator[int], seconds: float) -> Cost:
    """Train a module, and say what that took."""
    return Cost(*spend(steps, seconds), sum(weights.numel() for weights in module.parameters()))


# dpm


def train_dpm(experiment: Experiment, seconds: float) -> tuple[DiffusionModel, Cost]:
    """The setting `best`, with as many steps as fit: the cosine decay of the learning rate ends with the seconds."""
    config = experiment.settings["best"]

    def steps(state: TrainState, n_steps: int) -> Iterator[int]:
        return (record.step for record in train(state, experiment.draw, config.batch, n_steps, config.learning_rate))

    trial, state = (TrainState(build_model(config, SEED), CPU, SEED, {}) for _ in range(2))
    n_steps = steps_that_fit(steps(trial, config.n_steps), seconds)
    cost = cost_of(state.model, steps(state, n_steps), seconds)
    return state.ema.module.requires_grad_(False), cost


# Rivals


@dataclass(frozen=True)
class Rival:
    """A trained network that predicts the noise at N levels, x = x⁰ + σ_i ε, or the same x over √(1+σ_i²)."""

    network: Network
    sigma: Tensor  # [N], rising
    variance_exploding: bool  # whether the network sees x = x⁰ + σ_i ε as it is
    cost: Cost

    def at_levels(self, index: Tensor) -> tuple[GaussianForward, Callable[[Variance], PretrainedReverse]]:
        """Forward process of the levels `index` [T], and the reverse model of a variance."""
        p = partial(PretrainedReverse, lambda x, i: self.network(x, index[i]), "eps")
        return forward_process_from_sigma(self.sigma[index]), partial(p, variance_exploding=self.variance_exploding)


def even_levels(sigma: Tensor, T: int) -> Tensor:
    """Of N levels about T, as evenly spaced in log σ as they come: indices. All where T is N or more."""
    log_sigma = sigma.log()
    wanted = torch.linspace(float(log_sigma[0]), float(log_sigma[-1]), min(T, len(sigma)))
    return torch.arange(len(sigma)) if len(sigma) <= T else (wanted[:, None] - log_sigma).abs().argmin(1).unique()


def train_smalldiffusion(model: nn.Module, schedule, draw: Draw, batch: int, lr: float, seconds: float) -> Rival:
    """Its training loop, at its constant learning rate. Weights are averaged as in its examples of pictures."""
    from accelerate import Accelerator
    from smalldiffusion import training_loop
    from torch_ema import ExponentialMovingAverage

    average = ExponentialMovingAverage(model.parameters(), decay=0.999)

    def steps() -> Iterator[int]:
        batches = (draw(batch) for _ in itertools.count())
        loop = training_loop(batches, model, schedule, Accelerator(cpu=True), epochs=1, lr=lr)
        for step, _ in enumerate(loop):
            average.update()
            yield step

    cost = cost_of(model, steps(), seconds)
    average.copy_to()
    model.eval().requires_grad_(False)
    sigma = schedule.sigmas
    return Rival(lambda x, i: model(x, sigma[i].view(-1, *[1] * (x.dim() - 1))), sigma.double(), True, cost)


def smalldiffusion_points(draw: Draw, seconds: float) -> Rival:
    """The recipe of its README for a swiss roll; it trains on a hundred points there, and on fresh ones here."""
    from smalldiffusion import ScheduleLogLinear, TimeInputMLP

    model = TimeInputMLP(hidden_dims=(16, 128, 128, 128, 128, 16))
    schedule = ScheduleLogLinear(N=200, sigma_min=0.005, sigma_max=10)
    return train_smalldiffusion(model, schedule, draw, batch=2048, lr=1e-3, seconds=seconds)


def smalldiffusion_pictures(draw: Draw, seconds: float) -> Rival:
    """Its U-Net and schedule by its example for FashionMNIST, sized so that a minute of one core holds many steps.

    That is the narrowest it can be, with two sizes, a block on each, and batches of 64 in the place of 1024.
    """
    from smalldiffusion import Scaled, ScheduleLogLinear, Unet

    model = Scaled(Unet)(8, 1, 1, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
    schedule = ScheduleLogLinear(N=800, sigma_min=0.01, sigma_max=20)
    return train_smalldiffusion(model, schedule, draw, batch=64, lr=7e-4, seconds=seconds)


def train_diffusers(
    module: nn.Module, predict: Callable[..., Tensor], draw: Draw, batch: int, lr: float, seconds: float
) -> Rival:
    """The loop of its tutorial: AdamW, clipped gradients, a warm-up over a sixth of the steps, then a cosine decay."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup

    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def steps(module: nn.Module, n_steps: int) -> Iterator[int]:
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
        decay = get_cosine_schedule_with_warmup(optimizer, n_steps // 6, n_steps)
        for step in range(1, n_steps + 1):
            x0, timesteps = draw(batch), torch.randint(1000, (batch,))
            noise = torch.randn(x0.shape)
            mse_loss(predict(module, scheduler.add_noise(x0, noise, timesteps), timesteps), noise).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            decay.step()
            optimizer.zero_grad()
            yield step

    n_steps = steps_that_fit(steps(deepcopy(module), 10**6), seconds)
    cost = cost_of(module, steps(module, n_steps), seconds)
    module.eval().requires_grad_(False)
    sigma = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
    return Rival(partial(predict, module), sigma, False, cost)


def diffusers_points(draw: Draw, seconds: float) -> Rival:
    """An MLP on its timestep embedding: it has no network for points, so this one is ours, as wide as the others'."""
    from diffusers.models.embeddings import Timesteps

    embed = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)

    def predict(module: nn.Module, x: Tensor, i: Tensor) -> Tensor:
        return module(torch.cat([x, embed(i)], dim=1))

    network = mlp(inputs=2 + 32, width=128, n_layers=4, outputs=2)
    return train_diffusers(network, predict, draw, batch=2048, lr=1e-3, seconds=seconds)


def diffusers_pictures(draw: Draw, seconds: float) -> Rival:
    """The U-Net, batch and learning rate of the chapter that scores one: small, so that a minute holds many steps."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    predict = lambda module, x, i: module(x, i).sample  # noqa: E731
    return train_diffusers(network, predict, draw, batch=64, lr=2e-3, seconds=seconds)


RIVALS: dict[str, dict[str, Callable[[Draw, float], Rival]]] = {
    "swiss_roll": {"smalldiffusion": smalldiffusion_points, "diffusers": diffusers_points},
    "digits": {"smalldiffusion": smalldiffusion_pictures, "diffusers": diffusers_pictures},
}


# Scores


def score(p: ReverseModel, q: GaussianForward, x0: Tensor) -> Tensor:
    """K of each x⁰ [n], in bits per point or per pixel."""
    n_timesteps, generator = min(q.T - 1, N_TIMESTEPS), Generator().manual_seed(SEED)
    K = [evaluate_subsampled(p, q, batch, generator, n_timesteps).K for batch in x0.split(1000)]
    return to_bits(torch.cat(K)) / x0[0, 0].numel()


@dataclass(frozen=True)
class Choice:
    """What a likelihood needs beside the network."""

    variance: str
    final_step: str


def best_reverse(
    q: GaussianForward, reverse: Callable[[Variance], PretrainedReverse], x0: Tensor
) -> tuple[ReverseModel, Choice]:
    """The reverse model whose variance and final step score best on training data x⁰, and their names."""
    x0_error = measure_x0_error(reverse(fixed_small), q, x0, Generator().manual_seed(SEED))
    variances = {"fixed small": fixed_small, "fixed large": fixed_large, "matched": moment_matched(x0_error)}
    candidates = {
        Choice(variance, final_step): WithFinalStep(reverse(variances[variance]), FINAL_STEPS[final_step])
        for variance, final_step in itertools.product(variances, FINAL_STEPS)
    }
    K = {choice: float(score(p, q, x0).nan_to_num(-torch.inf).mean()) for choice, p in candidates.items()}
    best = max(K, key=K.__getitem__)
    return candidates[best], best


def row_of(name: str, unit: str, library: str, T: int, K: Tensor, K_dpm: Tensor, cost: Cost) -> dict:
    """A row of the table: K on held-out data, and how far dpm's K is ahead on the same samples."""
    row: dict = {"data": name, "library": library, "T": T, "unit": unit}
    row |= {"K_bits": float(K.mean()), "K_stderr_bits": stderr_of_strata(K)}
    row |= {"dpm_ahead_bits": float((K_dpm - K).mean()), "dpm_ahead_stderr_bits": stderr_of_strata(K_dpm - K)}
    return row | asdict(cost)


def rows_of(name: str, seconds: float) -> Iterator[dict]:
    """All rows of one data set, as they are done.

    A rival is scored at all levels that it was trained at, and at about dpm's T where that is less; dpm at its own T,
    and at a rival's where that is more, for its network takes any schedule. A rival is compared with dpm at the same
    T, or at the next larger one.
    """
    experiment = EXPERIMENTS[name]
    x0, row = held_out_data(experiment, SEED)[:N_HELD_OUT], partial(row_of, name, experiment.unit)
    model, cost = train_dpm(experiment, seconds)
    q, as_trained = model.forward_process(), asdict(Choice("learned", "(44)"))
    K_dpm = {q.T: score(model.p, q, x0)}
    yield row("dpm", q.T, K_dpm[q.T], K_dpm[q.T], cost) | as_trained
    for library, train_rival in RIVALS[name].items():
        torch.manual_seed(SEED)  # of the other libraries' networks and noise
        generator = Generator().manual_seed(SEED)
        rival = train_rival(lambda n, g=generator: experiment.draw(n, g).float(), seconds)
        chosen_on = experiment.draw(N_CHOSEN_ON[name], generator)
        for T in sorted({min(q.T, len(rival.sigma)), len(rival.sigma)}):
            if (T_dpm := max(T, q.T)) not in K_dpm:
                K_dpm[T_dpm] = score(model.p, experiment.forward_process(T_dpm), x0)
                yield row("dpm", T_dpm, K_dpm[T_dpm], K_dpm[T_dpm], cost) | as_trained
            q_rival, reverse = rival.at_levels(even_levels(rival.sigma, T))
            p, choice = best_reverse(q_rival, reverse, chosen_on)
            yield row(library, q_rival.T, score(p, q_rival, x0), K_dpm[T_dpm], rival.cost) | asdict(choice)


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


HEADER = f"{'data':11}{'library':15}{'T':>5}{'K':>9}{'error':>7}{'behind':>8}{'error':>7}{'steps':>8}  variance, final"


def format_row(row: dict) -> str:
    """A row as a line under HEADER."""
    K = f"{row['K_bits']:9.3f}{row['K_stderr_bits']:7.3f}"
    behind = f"{row['dpm_ahead_bits']:8.3f}{row['dpm_ahead_stderr_bits']:7.3f}"
    start, end = f"{row['data']:11}{row['library']:15}{row['T']:5}", f"{row['variance']}, {row['final_step']}"
    return f"{start}{K}{behind}{row['steps']:8}  {end}"


def measure(name: str, seconds: float, show: Callable[[dict], None]) -> dict:
    """The record of a data set: its rows, each shown as it is done, and what made them."""
    rows = []
    for row in rows_of(name, seconds):
        show(row)
        rows.append(row)
    made = provenance(SEED, CPU)
    made |= {"command": f"python benchmarks/peers.py {name} --seconds {seconds:g}", "processor": processor()}
    made["versions"] |= {library: version(library) for library in ("smalldiffusion", "diffusers")}
    return {"seconds": seconds, "clock": "CPU time of the process", "rows": rows, "provenance": made}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*RIVALS], help=f"data sets, of {', '.join(RIVALS)} (all)")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of each training (60)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, a record for each data set")
    parser.add_argument("--save", type=Path, help="write each record to peers-NAME.json in this folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    show = (lambda row: None) if args.json else (lambda row: print(format_row(row), flush=True))
    if not args.json:
        print(HEADER)
    records = {name: measure(name, args.seconds, show) for name in args.names}
    if args.json:
        print(to_json(records))
    for name, record in records.items():
        if args.save:
            write_json(args.save / f"peers-{name}.json", record)


if __name__ == "__main__":
    main()
