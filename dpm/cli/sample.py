"""`dpm sample`, `dpm denoise` and `dpm inpaint`."""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from dpm import reverse
from dpm.cli.choose import choose_trained
from dpm.cli.ideal import n_timesteps
from dpm.cli.output import print_result, print_written
from dpm.errors import UserError
from dpm.experiments.base import Experiment
from dpm.figures import SAMPLE_PLOTS, plot_point_samples, plot_restorations, to_png
from dpm.files import check_finite, check_writable, write_array, write_file, write_tensors
from dpm.forward import ForwardProcess
from dpm.posterior import GaussianLikelihood, RSchedule, annealed, constant, diffused, sample_posterior
from dpm.provenance import command_line, provenance
from dpm.reverse import DiffusionModel
from dpm.units import to_bits

R_SCHEDULES: dict[str, RSchedule] = {"constant": constant, "annealed": annealed, "diffused": diffused}
OLD_R_SCHEDULES = {"fading": "annealed", "carried": "diffused"}  # words of earlier versions, in recorded commands
BATCH = 4_000  # samples whose log q(x⁰) is computed at once


def load_sampler(args: argparse.Namespace) -> tuple[Experiment, str, DiffusionModel, ForwardProcess, Generator]:
    """What sampling takes: experiment, setting, trained model, its forward process or that of --T steps, a generator.

    Raises UserError for a bad -n, --T, --checkpoint or --out before anything is drawn.
    """
    if not 1 <= args.n <= 1_000_000:
        raise UserError(f"-n {args.n}: give 1 to 1000000")
    experiment, setting, model = choose_trained(args)
    if args.out:
        check_writable(args.out)
    q = model.forward_process()
    device = q.beta.device
    if args.T not in (None, q.T):
        if not model.p.any_schedule:
            raise UserError(f"{experiment.name}, {setting}, knows its own {q.T} steps only; leave out --T")
        q = model.forward_class(experiment.forward_process(n_timesteps(experiment, args.T)).beta.to(device))
    return experiment, setting, model, q, Generator(device).manual_seed(args.seed)


def sample(args: argparse.Namespace) -> None:
    """`dpm sample`: samples of p(x⁰); of bits the share that data could have been, of the roll their mean log q(x⁰)."""
    experiment, setting, model, q, generator = load_sampler(args)
    x = draw_samples(experiment, model, q, args.n, generator)
    check_drawn(args, {"x": x})
    if args.out and args.out.suffix == ".npy":
        write_array(args.out, to_data(experiment, x))
    else:
        save_samples(args, partial(plot_samples, experiment), {"x": x})
    result = {"experiment": experiment.name, "setting": setting, "n": args.n, "T": q.T}
    if experiment.ideal:
        log_q = torch.cat([experiment.ideal.log_prob(batch) for batch in x.split(BATCH)])
        if experiment.ideal.variance:
            result["mean_log_q_bits"] = float(to_bits(log_q).mean())
        else:
            result["possible_share"] = float(log_q.isfinite().double().mean())
    print_result(result | {"provenance": provenance(args.seed, q.beta.device)}, args.json)
    print_written(args.out)


def draw_samples(
    experiment: Experiment, model: DiffusionModel, q: ForwardProcess, n: int, generator: Generator
) -> Tensor:
    """n samples of p(x⁰), on the CPU: pictures in float32, like their networks, what else there is in float64."""
    dtype = torch.float32 if experiment.images else torch.float64
    like = torch.zeros(n, *experiment.shape, dtype=dtype, device=q.beta.device)
    return reverse.sample(model.p, q, like, generator).cpu()


def to_data(experiment: Experiment, x: Tensor) -> Tensor:
    """Samples in the units and the type of the data: pictures [n, H, W] or [n, H, W, C] of levels cut to 0…255."""
    if experiment.images is None:
        return experiment.vectors.to_data(x) if experiment.vectors else x
    levels = experiment.images(x.device).to_levels(x).clamp(0, 255).byte().permute(0, 2, 3, 1)
    return levels[..., 0] if levels.shape[3] == 1 else levels


def plot_samples(experiment: Experiment, x: Tensor) -> Figure:
    """The figure of samples: the user's own points in the units of their data."""
    if experiment.vectors and experiment.kind == "points":
        return plot_point_samples(to_data(experiment, x), experiment.vectors.scale)
    return SAMPLE_PLOTS[experiment.kind](x)


def check_drawn(args: argparse.Namespace, arrays: dict[str, Tensor]) -> None:
    """UserError, whether or not it is to be written, where what was drawn is not finite."""
    check_finite(arrays, args.checkpoint or f"samples of {args.name} --setting {args.setting}")


def save_samples(args: argparse.Namespace, plot: Callable[..., Figure], arrays: dict[str, Tensor]) -> None:
    """Write what was drawn to --out: as the figure of it, or as arrays in half precision."""
    if args.out and args.out.suffix == ".safetensors":
        write_tensors(args.out, {name: x.half() for name, x in arrays.items()}, {"command": command_line()})
    elif args.out:
        write_file(args.out, to_png(plot(*(x.cpu() for x in arrays.values()))))


def denoise(args: argparse.Namespace) -> None:
    """`dpm denoise`: held-out pictures plus normal noise, and a sample of the posterior given those; Figure 3."""
    if not 0 < args.variance <= 1e6:
        raise UserError(f"--variance {args.variance}: give a number above 0, of at most a million")

    def observe(x0: Tensor, generator: Generator) -> tuple[GaussianLikelihood, Tensor]:
        y = x0 + math.sqrt(args.variance) * torch.randn(x0.shape, generator=generator, device=x0.device)
        return GaussianLikelihood(y, torch.full_like(y, args.variance)), y

    restore(args, observe)


def inpaint(args: argparse.Namespace) -> None:
    """`dpm inpaint`: held-out pictures with a square hole, and a sample of the posterior given the rest; Figure 5."""

    def observe(x0: Tensor, generator: Generator) -> tuple[GaussianLikelihood, Tensor]:
        height, width = x0.shape[-2:]
        if not 1 <= args.hole < min(height, width):
            raise UserError(f"--hole {args.hole} does not fit in {height}×{width}; give 1 to {min(height, width) - 1}")
        top, left = (height - args.hole) // 2, (width - args.hole) // 2
        is_missing = torch.zeros_like(x0, dtype=torch.bool)
        is_missing[..., top : top + args.hole, left : left + args.hole] = True
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        variance = torch.zeros_like(x0).masked_fill(is_missing, math.inf)
        return GaussianLikelihood(x0, variance), torch.where(is_missing, noise, x0)

    restore(args, observe)


def restore(args: argparse.Namespace, observe: Callable[..., tuple[GaussianLikelihood, Tensor]]) -> None:
    """Sample x⁰ from the model times the likelihood of an observation of held-out pictures; write and compare them."""
    r_name = OLD_R_SCHEDULES.get(args.r, args.r)
    if r_name not in R_SCHEDULES:
        raise UserError(f"no r(x^t) named {args.r!r}; there are {', '.join(R_SCHEDULES)}")
    experiment, setting, model, q, generator = load_sampler(args)
    if experiment.images is None:
        raise UserError(f"{experiment.name} has no pictures to restore; try digits")
    x0 = (experiment.whole_images or experiment.held_out_data)(generator)[: args.n].float()
    r, seen = observe(x0, generator)
    x, _ = sample_posterior(model.p, q, r, x0, generator, R_SCHEDULES[r_name])
    arrays = {"x0": x0, "seen": seen, "restored": x}
    check_drawn(args, arrays)
    save_samples(args, plot_restorations, arrays)
    result = {"experiment": experiment.name, "setting": setting, "n": len(x0), "r": r_name, "T": q.T}
    result |= {"mse_seen": float((seen - x0).square().mean()), "mse_restored": float((x - x0).square().mean())}
    print_result(result | {"provenance": provenance(args.seed, q.beta.device)}, args.json)
    print_written(args.out)
