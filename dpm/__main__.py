"""The command line: dpm list | train | evaluate | optimum | schedule | sample | baselines |
denoise | inpaint."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from torch import Generator
from tqdm import tqdm

from dpm import datasets, plots, posterior
from dpm.bound import in_bits, mean_and_error
from dpm.experiments import (
    BETA_1,
    EXPERIMENTS,
    Experiment,
    build,
    choose,
    load,
    weights_path,
)
from dpm.files import UserError, read_tensors, refuse_unwritable, write, write_json, write_tensors
from dpm.forward import Binomial, Chain, Gaussian
from dpm.optimum import Optimum, best_K, best_schedule, exact_K
from dpm.posterior import Noisy
from dpm.results import command_line, pace, parzen_table, provenance, report, rivals
from dpm.reverse import Denoise, Diffusion, sample
from dpm.schedules import erase_evenly, geometric
from dpm.train import Draw, Run, choose_device, choose_precision, join, leave, place, refuse_uneven, train


def show(result: dict, as_json: bool) -> None:
    """Print a result as one JSON object, or as a table of its numbers."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for name, value in result.items():
        nested = value.items() if isinstance(value, dict) else [("", value)]
        for inner, number in nested:
            shown = f"{number:.4f}" if isinstance(number, float) else number
            print(f"{name} {inner}".ljust(32), shown)


def list_experiments(args: argparse.Namespace) -> None:
    """`dpm list`: the rows of Table 1 that are here, and whether their weights are shipped."""
    rows: list[dict] = [
        {"experiment": experiment.name, "setting": setting, "unit": experiment.unit}
        | {"paper": experiment.paper, "shipped": weights_path(experiment.name, setting).exists()}
        for experiment in EXPERIMENTS.values()
        for setting in experiment.settings
    ]
    if args.json:
        print(json.dumps({"experiments": rows}, ensure_ascii=False))
        return
    print(f"{'experiment':14}{'setting':10}{'paper K':>10}{'K-L_null':>10}  {'unit':12}{'weights'}")
    for row in rows:
        print(
            f"{row['experiment']:14}{row['setting']:10}"
            f"{row['paper'].get('K', '—'):>10}{row['paper'].get('K_minus_L_null', '—'):>10}  {row['unit']:12}"
            f"{'shipped' if row['shipped'] else 'train them'}"
        )


def train_experiment(args: argparse.Namespace) -> None:
    """`dpm train`: climb K, equation (15), then report what the written weights reach."""
    experiment, setting = choose(args.name, args.setting)
    steps = setting.steps if args.steps is None else args.steps
    if steps < 1:
        raise UserError(f"--steps {steps} trains nothing; give 1 or more")
    if args.at_once is not None and args.at_once < 1:
        raise UserError(f"--at-once {args.at_once} holds nothing; give 1 or more")
    device = choose_device(args.device)
    join(device)
    refuse_uneven(setting.batch)
    folder = Path(args.out or f"runs/{args.name}-{args.setting}")
    checkpoint = folder / "checkpoint.safetensors"
    about = {"experiment": args.name, "setting": args.setting, "seed": str(args.seed), "steps": str(steps)}
    about["command"] = command_line()
    precision = choose_precision(setting.precision, device)
    model = load(args.name, args.setting, args.start).requires_grad_() if args.start else build(setting, args.seed)
    like = experiment.draw(1, Generator(device))  # where data are missing, before anything is written
    run = Run(model, device, args.seed, about)
    there = os.path.exists(checkpoint)  # False too where one may not look: saving will say so
    if args.resume and not there:
        raise UserError(
            f"nothing to resume, no checkpoint at {checkpoint}; begin without --resume, or name it by --out"
        )
    if args.resume:
        begun = run.resume(checkpoint)
        about["command"] = f"{begun.get('command', 'a script')}; {command_line()}"
        if run.step > steps:
            raise UserError(f"{checkpoint} is at step {run.step} already; give --steps {run.step} or more")
    elif there:
        refuse_unfinished(checkpoint)
    refuse_unwritable(checkpoint)  # in every process: one that fails alone leaves the others waiting
    rank, processes = place()
    if rank == 0:
        run.save(checkpoint)
    with tqdm(total=steps, initial=run.step, unit="step", disable=rank > 0) as bar:
        for record in train(
            run, experiment.draw, setting.batch, steps, setting.rate, checkpoint, precision, args.at_once
        ):
            bar.update(record.step - bar.n)
            bar.set_postfix_str(f"K {record.K / math.log(2) / experiment.pixels:.3f} {experiment.unit}", refresh=False)
    leave()
    if rank > 0:
        return
    weights = folder / "weights.safetensors"
    write_tensors(weights, half(run.average.module.state_dict()), about)
    model = load(args.name, args.setting, weights, device)  # what is reported is what the file holds
    result = report(experiment, model) | {
        "setting": args.setting,
        "provenance": provenance(args.seed, device, processes) | {"command": about["command"]},
    }
    trained = {"steps": steps, "training_seconds": round(run.seconds, 1), "precision": str(precision)}
    result["provenance"] |= trained | pace(model, like, steps * setting.batch, run.seconds, precision, processes)
    write_json(folder / "results.json", result)
    show(result, args.json)


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Network weights in 16 bits, half the file; float64 schedules whole."""
    return {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}


def refuse_unfinished(checkpoint: Path) -> None:
    """UserError when a new run would overwrite one that was killed before its end; at step 0 nothing is lost."""
    _, about = read_tensors(checkpoint)
    if 0 < int(about.get("step", 0)) < int(about.get("steps", 0)):
        raise UserError(
            f"{checkpoint} is an unfinished run (step {about['step']} of {about['steps']}); "
            "--resume continues it, --out starts elsewhere"
        )


def evaluate_experiment(args: argparse.Namespace) -> None:
    """`dpm evaluate`: a row of Table 1, measured."""
    experiment, _ = choose(args.name, args.setting)
    device = choose_device(args.device)
    model = load(args.name, args.setting, args.checkpoint, device)
    result = report(experiment, model, args.seed) | {"setting": args.setting}
    show(result | {"provenance": provenance(args.seed, device)}, args.json)


def optimum(args: argparse.Namespace) -> None:
    """`dpm optimum`: K*, the most any network can reach with the untrained chain of T steps."""
    experiment, p = exact(args.name)
    T = steps(experiment, args)
    q, draw = experiment.chain(T), experiment.draw
    if args.length is not None or args.period is not None:
        p, q, draw = other_heartbeat(args, T)
    counted = exact_K(p, q) if isinstance(q, Binomial) else None
    generator = Generator().manual_seed(args.seed)
    if counted is None:
        x0 = draw(min(40_000, max(1_000, 600_000 // T)), generator)  # about as much work for every T
        K_best, error = mean_and_error(in_bits(best_K(p, q, x0, generator)))
    else:
        K_best, error = float(in_bits(counted)), 0.0
    if isinstance(q, Binomial):  # the sum over all sequences
        log_q, spread = float(in_bits(p.weights @ p.log_probability(p.points))), 0.0
    else:  # reals, of which nothing is counted
        log_q, spread = mean_and_error(in_bits(p.log_probability(x0)))
    show(
        {
            "experiment": args.name,
            "T": T,
            "K_optimum_bits": K_best,
            "K_optimum_stderr_bits": error,
            "minus_entropy_bits": log_q,
            "minus_entropy_stderr_bits": spread,
            "unit": experiment.unit,
            "provenance": provenance(args.seed, torch.device("cpu")),
        },
        args.json,
    )


def exact(name: str) -> tuple[Experiment, Optimum]:
    """An experiment whose best reverse model is known."""
    experiment, _ = choose(name, "paper")
    if experiment.optimum is None:
        known = ", ".join(other for other in EXPERIMENTS if EXPERIMENTS[other].optimum)
        raise UserError(f"nobody knows the optimum of {name}; it is known for {known}")
    return experiment, experiment.optimum


def steps(experiment: Experiment, args: argparse.Namespace) -> int:
    """--T, or the paper's own."""
    T = experiment.T if args.T is None else args.T
    if not 2 <= T <= 100_000:
        raise UserError(f"--T {T}: give 2 steps, the fewest that a bound has, to 100000")
    return T


def other_heartbeat(args: argparse.Namespace, T: int) -> tuple[Optimum, Binomial, Draw]:
    """The heartbeat of another length and period: its optimum, a chain to its own mean activity, its data."""
    if args.name != "heartbeat":
        raise UserError(f"--length and --period shape the heartbeat, not {args.name}")
    length, period = (20 if args.length is None else args.length), (5 if args.period is None else args.period)
    if not (1 <= length <= 1_000 and 2 <= period <= 1_000):
        raise UserError(f"--length {length} --period {period}: give 1 to 1000 bits, and 2 to 1000 between ones")
    points = datasets.heartbeat_sequences(length, period)
    data = partial(datasets.heartbeat, length=length, period=period)
    return Optimum(points), Binomial(erase_evenly(T), float(points.mean())), data


def schedule(args: argparse.Namespace) -> None:
    """`dpm schedule`: the rates that make K* the highest, beside the best geometric ones, on fresh samples."""
    experiment, p = exact(args.name)
    T = steps(experiment, args)
    if not isinstance(experiment.chain(2), Gaussian):
        raise UserError(f"{args.name} is made of bits; a best schedule is computed for real numbers")
    if args.out:
        refuse_unwritable(args.out)
    generator = Generator().manual_seed(args.seed)
    beta = best_schedule(p, T, BETA_1, experiment.draw(1_500, generator), generator)
    x0 = experiment.draw(4_000, generator)

    def K(beta: torch.Tensor) -> torch.Tensor:
        return in_bits(best_K(p, Gaussian(beta), x0, Generator().manual_seed(args.seed)))

    geometrics = [K(geometric(T, BETA_1, last / 100)) for last in range(40, 100, 5)]
    best, rival = K(beta), max(geometrics, key=lambda K: float(K.mean()))
    (K_best, error), (gain, gain_error) = mean_and_error(best), mean_and_error(best - rival)
    result = {"experiment": args.name, "T": T, "unit": experiment.unit}
    result |= {"K_optimum_bits": K_best, "K_optimum_stderr_bits": error}
    result |= {"over_best_geometric_bits": gain, "over_best_geometric_stderr_bits": gain_error}
    result |= {"provenance": provenance(args.seed, torch.device("cpu"))}
    if args.out:
        write_json(args.out, result | {"beta": beta.tolist()})
    show(result, args.json)


def sample_experiment(args: argparse.Namespace) -> None:
    """`dpm sample`: draws of p(x⁰); of bits the share that data could have been, of the roll their mean log q(x⁰)."""
    experiment, model, q, generator = sampler(args)
    like = torch.zeros(args.n, *experiment.shape, dtype=precision(experiment), device=q.beta.device)
    x = sample(model.p, q, like, generator).cpu()
    keep(args, plots.SAMPLES.get(args.name, plots.image_grid), {"x": x})
    result = {"experiment": args.name, "setting": args.setting, "n": args.n, "T": q.T}
    if experiment.optimum:
        log_q = torch.cat([experiment.optimum.log_probability(some) for some in x.split(4_000)])
        possible = {"possible_share": float(log_q.isfinite().double().mean())}
        result |= {"mean_log_q_bits": float(in_bits(log_q).mean())} if experiment.optimum.variance else possible
    show(result | {"provenance": provenance(args.seed, q.beta.device)}, args.json)


def keep(args: argparse.Namespace, figure: Callable[..., plots.Figure], arrays: dict[str, torch.Tensor]) -> None:
    """What was drawn, to --out: as the figure of it, or, where the file is to be a .safetensors, in half precision."""
    if args.out and args.out.suffix == ".safetensors":
        write_tensors(args.out, {name: x.half() for name, x in arrays.items()}, {"command": command_line()})
    elif args.out:
        write(args.out, plots.png(figure(*(x.cpu() for x in arrays.values()))))


def precision(experiment: Experiment) -> torch.dtype:
    """Of samples: pictures in float32, as their networks; what is held against the truth in float64."""
    return torch.float32 if experiment.images else torch.float64


def sampler(args: argparse.Namespace) -> tuple[Experiment, Diffusion, Chain, Generator]:
    """What drawing takes: the trained model, its chain or that of --T steps, a generator; --out is looked at first."""
    experiment, _ = choose(args.name, args.setting)
    if not 1 <= args.n <= 1_000_000:
        raise UserError(f"-n {args.n}: give 1 to 1000000")
    device = choose_device(args.device)
    model = load(args.name, args.setting, args.checkpoint, device)
    if args.out:
        refuse_unwritable(args.out)
    q = model.q()
    if args.T not in (None, q.T):
        if not isinstance(model.p, Denoise):
            raise UserError(f"{args.name} --setting {args.setting} knows its own {q.T} steps only; leave out --T")
        q = model.chain(experiment.chain(steps(experiment, args)).beta.to(device))
    return experiment, model, q, Generator(device).manual_seed(args.seed)


PARZEN = 10_000  # samples of Table 2's protocol


def baselines(args: argparse.Namespace) -> None:
    """`dpm baselines`: what Table 2 holds the model against, on the same pictures.

    Grey pictures get an MCGSM and a Gaussian; MNIST the Parzen estimate, of -n samples and of as many training digits.
    """
    experiment, _ = choose(args.name, args.setting)
    if experiment.images is None or experiment.shape[0] != 1:
        raise UserError(f"{args.name} has no grey pictures; bark, dead_leaves, digits and mnist have")
    if args.name != "mnist" and (args.n, args.T) != (PARZEN, None):
        raise UserError(f"no sample of {args.name} is drawn for its baselines; leave out -n and --T")
    _, model, q, generator = sampler(args)
    images = experiment.images(generator.device)
    if args.name == "mnist":
        validation = datasets.mnist_validation(generator.device)
        result = parzen_table(images, validation, model, q, args.n, generator)
    else:
        result = rivals(images, model, generator)
    result = {"experiment": args.name} | result | {"provenance": provenance(args.seed, generator.device)}
    if args.out:
        write_json(args.out, result)
    show(result, args.json)


def denoise(args: argparse.Namespace) -> None:
    """`dpm denoise`: held-out pictures plus normal noise, and a sample of the posterior given those; Figure 3."""
    if not 0 < args.variance <= 1e6:
        raise UserError(f"--variance {args.variance}: give a number above 0, of at most a million")

    def look(x0: torch.Tensor, generator: Generator) -> tuple[Noisy, torch.Tensor]:
        y = x0 + math.sqrt(args.variance) * torch.randn(x0.shape, generator=generator, device=x0.device)
        return Noisy(y, torch.full_like(y, args.variance)), y

    restore(args, look)


def inpaint(args: argparse.Namespace) -> None:
    """`dpm inpaint`: held-out pictures with a square hole, and a sample of the posterior given the rest; Figure 5."""

    def look(x0: torch.Tensor, generator: Generator) -> tuple[Noisy, torch.Tensor]:
        height, width = x0.shape[-2:]
        if not 1 <= args.hole < min(height, width):
            raise UserError(f"--hole {args.hole} does not fit in {height}×{width}; give 1 to {min(height, width) - 1}")
        top, left = (height - args.hole) // 2, (width - args.hole) // 2
        missing = torch.zeros_like(x0)
        missing[..., top : top + args.hole, left : left + args.hole] = 1
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        return Noisy(x0, torch.where(missing > 0, math.inf, 0.0)), torch.where(missing > 0, noise, x0)

    restore(args, look)


def restore(args: argparse.Namespace, look: Callable[..., tuple[Noisy, torch.Tensor]]) -> None:
    """Draw x⁰ from the model times what a look at held-out pictures says of them; write all three, print the errors."""
    experiment, model, q, generator = sampler(args)
    if experiment.images is None:
        raise UserError(f"{args.name} has no pictures to restore; try digits")
    x0 = (experiment.whole or experiment.held_out)(generator)[: args.n].float()
    r, seen = look(x0, generator)
    x, _ = posterior.sample(model.p, q, r, x0, generator, CHOICES[args.r])
    keep(args, plots.restoration, {"x0": x0, "seen": seen, "restored": x})
    result = {"experiment": args.name, "setting": args.setting, "n": len(x0), "r": args.r, "T": q.T}
    result |= {"error_seen": float((seen - x0).square().mean()), "error_restored": float((x - x0).square().mean())}
    show(result | {"provenance": provenance(args.seed, q.beta.device)}, args.json)


CHOICES = {"constant": posterior.constant, "fading": posterior.fading, "carried": posterior.carried}


def seed(text: str) -> int:
    """A seed that every generator takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return int(text)


def picture(text: str) -> Path:
    """A file that `keep` knows how to write."""
    if Path(text).suffix not in (".png", ".safetensors"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a .png nor a .safetensors file")
    return Path(text)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other mistake is said."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def parser() -> Parser:
    """The words of the command line."""
    top = Parser(prog="dpm", description="Train and check the experiments of the diffusion paper (2015).")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, about: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about)
        one.set_defaults(run=run)
        one.add_argument("--json", action="store_true", help="print one JSON object")
        if name != "list":
            one.add_argument("name", help="an experiment, see `dpm list`")
            one.add_argument("--seed", type=seed, default=0)
        if name in ("train", "evaluate", "sample", "baselines", "denoise", "inpaint"):
            one.add_argument("--setting", default="paper", help="paper (as published, the default), ours, cpu")
            one.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
        if name in ("evaluate", "sample", "baselines", "denoise", "inpaint"):
            one.add_argument("--checkpoint", type=Path, help="weights to use in place of the shipped ones")
        if name in ("sample", "baselines", "denoise", "inpaint"):
            one.add_argument("-n", type=int, default=PARZEN if name == "baselines" else 16, help="how many")
        if name in ("sample", "denoise", "inpaint"):
            one.add_argument("--out", type=picture, help="a .png of them, or a .safetensors file")
        if name in ("optimum", "schedule", "sample", "baselines", "denoise", "inpaint"):
            one.add_argument("--T", type=int, help="number of steps")
        if name in ("denoise", "inpaint"):
            one.add_argument("--r", choices=list(CHOICES), default="constant", help="r(x^t), Section 2.5.4")
        return one

    command("list", list_experiments, "experiments, settings, the paper's numbers, shipped weights")
    training = command("train", train_experiment, "climb K; writes checkpoint, weights and results.json")
    training.add_argument("--steps", type=int, help="in place of the setting's own number")
    training.add_argument("--out", type=Path, help="folder, runs/NAME-SETTING when not given")
    training.add_argument("--at-once", type=int, help="samples in memory at once, of those of a step; all if not given")
    begin = training.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    begin.add_argument("--from", dest="start", type=Path, help="weights to go on from, such as those in data/weights")
    command("evaluate", evaluate_experiment, "K on held-out data, its parts, L_null and K*")
    best = command("optimum", optimum, "K* and −H(X⁰)")
    best.add_argument("--length", type=int, help="bits of another heartbeat")
    best.add_argument("--period", type=int, help="bits from one of its ones to the next")
    rates = command("schedule", schedule, "the rates that make K* the highest")
    rates.add_argument("--out", type=Path, help="a JSON file for them")
    command("sample", sample_experiment, "draw from p(x⁰)")
    table = command("baselines", baselines, "MCGSM and Gaussian, or the Parzen estimate, on the same pictures")
    table.add_argument("--save", dest="out", type=Path, help="a JSON file for the result")
    noisy = command("denoise", denoise, "restore held-out pictures from noise")
    noisy.add_argument("--variance", type=float, default=1.0, help="of the noise; 1 is that of the data")
    holes = command("inpaint", inpaint, "restore held-out pictures from a hole in their middle")
    holes.add_argument("--hole", type=int, default=4, help="its side, in pixels")
    return top


def main() -> int:
    """Run one command; a mistake of the user's is one line on stderr and exit status 2."""
    try:
        args = parser().parse_args()
        args.run(args)
        sys.stdout.flush()
    except UserError as error:
        return say(str(error), 2)
    except torch.OutOfMemoryError:
        return say("the memory of the GPU is too small; give a smaller --at-once, or a smaller -n", 2)
    except KeyboardInterrupt:
        return say("stopped; if it was training, the same command goes on with --resume in place of any --from", 130)
    except BrokenPipeError:  # whoever reads has seen enough; the flush at the end must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return 0


def say(message: str, status: int) -> int:
    """One line on stderr, from one of several processes."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"dpm: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
