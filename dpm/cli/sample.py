"""`dpm sample`, `dpm denoise` and `dpm inpaint`."""

import argparse
import math
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from dpm import reverse
from dpm.cli.ideal import n_timesteps
from dpm.cli.output import print_result
from dpm.distributed import choose_device, use_device
from dpm.errors import UserError
from dpm.experiments.base import Experiment
from dpm.experiments.registry import get_experiment, load_model
from dpm.figures import SAMPLE_PLOTS, plot_image_grid, plot_restorations, to_png
from dpm.files import check_finite, check_writable, write_file, write_tensors
from dpm.forward import ForwardProcess
from dpm.posterior import GaussianLikelihood, RSchedule, annealed, constant, diffused, sample_posterior
from dpm.provenance import command_line, provenance
from dpm.reverse import DiffusionModel
from dpm.units import to_bits

R_SCHEDULES: dict[str, RSchedule] = {"constant": constant, "annealed": annealed, "diffused": diffused}
OLD_R_SCHEDULES = {"fading": "annealed", "carried": "diffused"}  # words of earlier versions, in recorded commands
BATCH = 4_000  # samples whose log q(x⁰) is computed at once


def load_sampler(args: argparse.Namespace) -> tuple[Experiment, DiffusionModel, ForwardProcess, Generator]:
    """What sampling takes: the trained model, its forward process or that of --T steps, and a generator.

    Raises UserError for a bad -n, --T, --checkpoint or --out before anything is drawn.
    """
    experiment, _ = get_experiment(args.name, args.setting)
    if not 1 <= args.n <= 1_000_000:
        raise UserError(f"-n {args.n}: give 1 to 1000000")
    device = choose_device(args.device)
    use_device(device)
    model = load_model(args.name, args.setting, args.checkpoint, device)
    if args.out:
        check_writable(args.out)
    q = model.forward_process()
    if args.T not in (None, q.T):
        if not model.p.any_schedule:
            raise UserError(f"{args.name} --setting {args.setting} knows its own {q.T} steps only; leave out --T")
        q = model.forward_class(experiment.forward_process(n_timesteps(experiment, args.T)).beta.to(device))
    return experiment, model, q, Generator(device).manual_seed(args.seed)


def sample(args: argparse.Namespace) -> None:
    """`dpm sample`: samples of p(x⁰); of bits the share that data could have been, of the roll their mean log q(x⁰)."""
    experiment, model, q, generator = load_sampler(args)
    # pictures in float32, like their networks; what is compared with the truth in float64
    dtype = torch.float32 if experiment.images else torch.float64
    like = torch.zeros(args.n, *experiment.shape, dtype=dtype, device=q.beta.device)
    x = reverse.sample(model.p, q, like, generator).cpu()
    save_samples(args, SAMPLE_PLOTS.get(args.name, plot_image_grid), {"x": x})
    result = {"experiment": args.name, "setting": args.setting, "n": args.n, "T": q.T}
    if experiment.ideal:
        log_q = torch.cat([experiment.ideal.log_prob(batch) for batch in x.split(BATCH)])
        if experiment.ideal.variance:
            result["mean_log_q_bits"] = float(to_bits(log_q).mean())
        else:
            result["possible_share"] = float(log_q.isfinite().double().mean())
    print_result(result | {"provenance": provenance(args.seed, q.beta.device)}, args.json)


def save_samples(args: argparse.Namespace, plot: Callable[..., Figure], arrays: dict[str, Tensor]) -> None:
    """Write what was drawn to --out: as the figure of it, or as arrays in half precision.

    UserError, whether or not it is to be written, where it is not finite.
    """
    check_finite(arrays, args.checkpoint or f"samples of {args.name} --setting {args.setting}")
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
    experiment, model, q, generator = load_sampler(args)
    if experiment.images is None:
        raise UserError(f"{args.name} has no pictures to restore; try digits")
    x0 = (experiment.whole_images or experiment.held_out_data)(generator)[: args.n].float()
    r, seen = observe(x0, generator)
    x, _ = sample_posterior(model.p, q, r, x0, generator, R_SCHEDULES[r_name])
    save_samples(args, plot_restorations, {"x0": x0, "seen": seen, "restored": x})
    result = {"experiment": args.name, "setting": args.setting, "n": len(x0), "r": r_name, "T": q.T}
    result |= {"error_seen": float((seen - x0).square().mean()), "error_restored": float((x - x0).square().mean())}
    print_result(result | {"provenance": provenance(args.seed, q.beta.device)}, args.json)
