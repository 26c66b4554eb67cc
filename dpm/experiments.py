"""Tables 1 and 2 as settings: for each row its data, its models, and the paper's numbers."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from dpm import datasets
from dpm.bound import evaluate, in_bits, log_null, mean_and_error, per_sample
from dpm.entropy import log_density
from dpm.files import UserError, load_into, read_tensors, take
from dpm.forward import Binomial, Chain, Gaussian, everywhere
from dpm.networks import BinomialDenoiser, GaussianDenoiser, StepMLP, StepRBF
from dpm.optimum import BlurredOptimum, Optimum, exact_K
from dpm.reverse import BinomialStep, Denoise, Diffusion, GaussianStep
from dpm.schedules import Fixed, Learned, erase_evenly, geometric

DATA = Path(__file__).parent.parent / "data"
COMPARED = 4_000  # held-out samples on which a model and the optimum meet the same noise


@dataclass(frozen=True)
class Setting:
    """One way to train an experiment: the model, and how long and how fast to climb."""

    build: Callable[[], Diffusion]
    batch: int
    steps: int
    rate: float


@dataclass(frozen=True)
class Experiment:
    """A row of Table 1: `draw` makes fresh data, `chain` the untrained forward chain of any T, `optimum` its best K."""

    name: str
    unit: str
    draw: Callable[[int, Generator], Tensor]
    chain: Callable[[int], Chain]
    T: int
    optimum: Optimum
    held_out: int  # fresh samples that bring the standard error of K below 0.01 bits
    paper: dict[str, float]
    settings: dict[str, Setting] = field(default_factory=dict)


BETA_1 = 1e-4  # fixed, Section 2.4.1; below the roll's noise variance 4e-4, so that the edge step blurs less than it
RATE = 0.2  # of ones under π, D.1.2: the heartbeat's own


def roll_schedule(T: int) -> Tensor:
    """The roll's rates before learning: β_1 as stated, half a percent of signal variance left at T."""
    return geometric(T, BETA_1, 0.995)


def roll_paper() -> Diffusion:
    """D.1.1: 16 normalised RBF units, a readout for each t, diagonal Σ through a sigmoid; β_2…T learned."""
    return Diffusion(Learned(roll_schedule(40)), Gaussian, GaussianStep(StepRBF(40, 2, 16, 4)))


def roll_ours() -> Diffusion:
    """A denoiser in the place of f_μ and f_Σ; the rates that make K* the highest, as `dpm schedule` recorded them."""
    beta = torch.tensor(json.loads(schedule_path("swiss_roll").read_text())["beta"], dtype=torch.float64)
    return Diffusion(Fixed(beta), Gaussian, Denoise(GaussianDenoiser(2, width=128, layers=3, octaves=4)))


heartbeat_chain = partial(Binomial, rate=RATE)


def heartbeat_paper() -> Diffusion:
    """D.1.2: three hidden layers of 50 sigmoid units, a readout for each t, sigmoid output."""
    q = heartbeat_chain(erase_evenly(2000))
    return Diffusion(Fixed(q.beta), heartbeat_chain, BinomialStep(StepMLP(q, 20, width=50, layers=3, ties=64)))


def heartbeat_ours() -> Diffusion:
    """A denoiser in the place of f_b."""
    return Diffusion(Fixed(erase_evenly(2000)), heartbeat_chain, Denoise(BinomialDenoiser(20, width=128, layers=2)))


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="swiss_roll",
            unit="bits",
            draw=datasets.swiss_roll,
            chain=lambda T: Gaussian(roll_schedule(T)),
            T=40,
            optimum=BlurredOptimum(datasets.roll_points(2000), datasets.ROLL_NOISE**2),
            held_out=60_000,
            paper={"K": 2.35, "K_minus_L_null": 6.45},
            settings={
                "paper": Setting(roll_paper, batch=39 * 25, steps=40_000, rate=1e-2),
                "ours": Setting(roll_ours, batch=39 * 50, steps=15_000, rate=2e-3),
            },
        ),
        Experiment(
            name="heartbeat",
            unit="bits/seq",
            draw=datasets.heartbeat,
            chain=lambda T: heartbeat_chain(erase_evenly(T)),
            T=2000,
            optimum=Optimum(datasets.heartbeat_sequences()),
            held_out=4_000,
            paper={"K": -2.414, "K_minus_L_null": 12.024},
            settings={
                "paper": Setting(heartbeat_paper, batch=1999 * 2, steps=40_000, rate=5e-3),
                "ours": Setting(heartbeat_ours, batch=1000, steps=20_000, rate=2e-3),
            },
        ),
    )
}


def choose(name: str, setting: str) -> tuple[Experiment, Setting]:
    """The experiment and setting of these names; UserError lists those there are."""
    if name not in EXPERIMENTS:
        raise UserError(f"no experiment named {name!r}; there are {', '.join(EXPERIMENTS)}")
    settings = EXPERIMENTS[name].settings
    if setting not in settings:
        raise UserError(f"{name} has no setting {setting!r}; it has {', '.join(settings)}")
    return EXPERIMENTS[name], settings[setting]


def build(setting: Setting, seed: int = 0) -> Diffusion:
    """A fresh model whose first weights depend on the seed alone; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = setting.build()
    model.p.float()  # schedules are float64, networks float32, whatever the default type
    return model


def weights_path(name: str, setting: str) -> Path:
    """Where the repository ships the weights of an experiment's setting."""
    return DATA / "weights" / f"{name}-{setting}.safetensors"


def schedule_path(name: str) -> Path:
    """Where the repository ships the best rates of an experiment, as `dpm schedule` wrote them."""
    return DATA / "schedules" / f"{name}.json"


def recorded(name: str, setting: str) -> dict:
    """The result that the repository ships: what `dpm train` wrote when it made the shipped weights."""
    return json.loads((DATA / "results" / f"{name}-{setting}.json").read_text())


def load(name: str, setting: str, path: Path | None = None, device: torch.device | str = "cpu") -> Diffusion:
    """The trained model of a setting, from the shipped weights or from a file that `dpm train` wrote."""
    path = path or weights_path(name, setting)
    tensors, _ = read_tensors(path)
    model = build(choose(name, setting)[1])
    load_into(model, take(tensors, "average.module.") or tensors, path)
    return model.to(device).requires_grad_(False)


def held_out(experiment: Experiment, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Fresh samples for evaluation, which no run of `train` with a seed below 10 000 has drawn."""
    return experiment.draw(experiment.held_out, Generator(device).manual_seed(10_000 + seed))


def report(experiment: Experiment, model: Diffusion, seed: int = 0) -> dict:
    """The row of Table 1: K of (14) and its parts, L_null, and what no network can pass, all in bits a sample.

    The gap K* − K is a mean difference on the first samples with the same noise, which varies far less than either; K*
    is exact where all states can be counted, and K plus the gap elsewhere. What K lacks of −H(X⁰) is split in three.
    """
    q = model.q()
    device = q.beta.device
    x0 = held_out(experiment, seed, device)
    generator = Generator(device).manual_seed(seed)
    bounds = [evaluate(model.p, q, some, generator) for some in x0.split(COMPARED)]
    best = evaluate(experiment.optimum, q, x0[:COMPARED], Generator(device).manual_seed(seed)).K
    gap, gap_error = mean_and_error(in_bits(best - bounds[0].K))
    K, error = mean_and_error(in_bits(torch.cat([bound.K for bound in bounds])))
    null = float(in_bits(log_null(q, x0)).mean())
    truth = float(in_bits(torch.cat([experiment.optimum.log_probability(some) for some in x0.split(COMPARED)])).mean())
    counted = exact_K(experiment.optimum, q) if isinstance(q, Binomial) else None
    best_K = K + gap if counted is None else float(in_bits(counted))
    edges = [lost_at_the_edge(experiment.optimum, q, some, generator) for some in x0.split(COMPARED)]
    edge, edge_error = mean_and_error(in_bits(torch.cat(edges)))
    parts = {
        name: float(in_bits(torch.cat([vars(bound)[name] for bound in bounds])).mean()) for name in vars(bounds[0])
    }
    return {
        "experiment": experiment.name,
        "K_bits": K,
        "K_stderr_bits": error,
        "unit": experiment.unit,
        "L_null_bits": null,
        "K_minus_L_null_bits": K - null,
        "K_optimum_bits": best_K,
        "gap_bits": gap,
        "gap_stderr_bits": gap_error,
        "minus_entropy_bits": truth,
        "lost_bits": {"edge": edge, "kernel_and_schedule": truth - best_K - edge, "training": gap},
        "edge_stderr_bits": edge_error,
        "parts_bits": parts,
        "T": q.T,
        "held_out": len(x0),
        "paper": experiment.paper,
    }


def lost_at_the_edge(p: Optimum, q: Chain, x0: Tensor, generator: Generator) -> Tensor:
    """KL( q(x⁰|x¹) ‖ p(x⁰|x¹) ) of the edge step (44), [B] nats whose mean is H_q(X¹|X⁰) − H_q(X⁰|X¹) for data that π
    knows: of both its logarithms q(x¹|x⁰) is a factor, and its analytic mean takes the noise out."""
    steps = everywhere(1, x0)
    law = q.step(x0, steps)
    x1 = law.at(q.noise(x0, generator))
    about_x0 = p.log_probability(x0) + per_sample(law.log_prob(x1)) - log_density(q, p.points, x1, 1, p.variance)
    return about_x0 + per_sample(law.entropy()) + log_null(q, x1) - log_null(q, x0)


def provenance(command: list[str], seed: int, device: torch.device) -> dict:
    """What made a result: command, seed, device, versions, git revision, date."""
    return {
        "command": " ".join(["dpm", *command]),
        "seed": seed,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "revision": revision(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def revision() -> str:
    """The git revision of the source, with a + when it has been changed since; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        git = partial(subprocess.run, cwd=here, capture_output=True, text=True, check=True)
        changed = "+" if git(["git", "status", "--porcelain", "--", "."]).stdout else ""
        return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
