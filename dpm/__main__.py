"""The command line: dpm list | train | evaluate | optimum | sample."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch
from torch import Generator
from tqdm import tqdm

from dpm import plots
from dpm.bound import evaluate, in_bits, mean_and_error
from dpm.experiments import (
    EXPERIMENTS,
    build,
    choose,
    held_out,
    load,
    provenance,
    report,
    weights_path,
)
from dpm.files import UserError, read_tensors, refuse_unwritable, write, write_json, write_tensors
from dpm.reverse import sample
from dpm.train import Run, choose_device, join, place, refuse_uneven, train


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
    print(f"{'experiment':14}{'setting':10}{'paper K':>10}{'K-L_null':>10}  {'unit':10}{'weights'}")
    for row in rows:
        print(
            f"{row['experiment']:14}{row['setting']:10}"
            f"{row['paper']['K']:>10}{row['paper']['K_minus_L_null']:>10}  {row['unit']:10}"
            f"{'shipped' if row['shipped'] else 'train them'}"
        )


def train_experiment(args: argparse.Namespace) -> None:
    """`dpm train`: climb K, equation (15), then report what the written weights reach."""
    experiment, setting = choose(args.name, args.setting)
    steps = setting.steps if args.steps is None else args.steps
    if steps < 1:
        raise UserError(f"--steps {steps} trains nothing; give 1 or more")
    device = choose_device(args.device)
    join(device)
    refuse_uneven(setting.batch)
    folder = Path(args.out or f"runs/{args.name}-{args.setting}")
    checkpoint = folder / "checkpoint.safetensors"
    about = {"experiment": args.name, "setting": args.setting, "seed": str(args.seed), "steps": str(steps)}
    run = Run(build(setting, args.seed), device, args.seed, about)
    there = os.path.exists(checkpoint)  # False too where one may not look: saving will say so
    if args.resume and not there:
        raise UserError(
            f"nothing to resume, no checkpoint at {checkpoint}; begin without --resume, or name it by --out"
        )
    if args.resume:
        run.resume(checkpoint)
    elif there:
        refuse_unfinished(checkpoint)
    first = place()[0] == 0
    if first:
        run.save(checkpoint)
    started, begin = time.monotonic(), run.step
    with tqdm(total=steps, initial=run.step, unit="step", disable=not first) as bar:
        for record in train(run, experiment.draw, setting.batch, steps, setting.rate, checkpoint):
            bar.update(record.step - bar.n)
            bar.set_postfix_str(f"K {float(in_bits(torch.tensor(record.K))):.3f} {experiment.unit}", refresh=False)
    if not first:
        return
    seconds = time.monotonic() - started
    weights = folder / "weights.safetensors"
    write_tensors(weights, half(run.average.module.state_dict()), about)
    model = load(args.name, args.setting, weights, device)  # what is reported is what the file holds
    result = report(experiment, model) | {
        "setting": args.setting,
        "provenance": provenance(sys.argv[1:], args.seed, device),
    }
    result["provenance"] |= {"steps": steps - begin, "training_seconds": round(seconds, 1)}
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
    show(result | {"provenance": provenance(sys.argv[1:], args.seed, device)}, args.json)


def optimum(args: argparse.Namespace) -> None:
    """`dpm optimum`: K*, the most any network can reach with the untrained chain of T steps."""
    experiment, _ = choose(args.name, "paper")
    T = experiment.T if args.T is None else args.T
    if not 2 <= T <= 100_000:
        raise UserError(f"--T {T}: give 2 steps, the fewest that a bound has, to 100000")
    q, x0 = experiment.chain(T), held_out(experiment, args.seed)[:4_000]
    K, error = mean_and_error(in_bits(evaluate(experiment.optimum, q, x0, Generator().manual_seed(args.seed)).K))
    show(
        {
            "experiment": args.name,
            "T": T,
            "K_optimum_bits": K,
            "K_optimum_stderr_bits": error,
            "minus_entropy_bits": float(in_bits(experiment.optimum.log_probability(x0)).mean()),
            "unit": experiment.unit,
            "provenance": provenance(sys.argv[1:], args.seed, torch.device("cpu")),
        },
        args.json,
    )


def sample_experiment(args: argparse.Namespace) -> None:
    """`dpm sample`: draws of p(x⁰), and the share of them that the data could have been."""
    experiment, _ = choose(args.name, args.setting)
    if not 1 <= args.n <= 1_000_000:
        raise UserError(f"-n {args.n}: give 1 to 1000000")
    device = choose_device(args.device)
    model = load(args.name, args.setting, args.checkpoint, device)
    if args.out:
        refuse_unwritable(args.out)
    generator = Generator(device).manual_seed(args.seed)
    like = experiment.draw(1, generator).expand(args.n, -1)
    x = sample(model.p, model.q(), like, generator).cpu()
    if args.out:
        write(args.out, plots.png(plots.SAMPLES[args.name](x)))
    log_q = in_bits(experiment.optimum.log_probability(x))
    result = {"experiment": args.name, "setting": args.setting, "n": args.n}
    result |= {"possible_share": float(log_q.isfinite().double().mean())}
    show(result | {"provenance": provenance(sys.argv[1:], args.seed, device)}, args.json)


def seed(text: str) -> int:
    """A seed that every generator takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return int(text)


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
        if name in ("train", "evaluate", "sample"):
            one.add_argument("--setting", default="paper", help="paper (as published, the default) or ours")
            one.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
        if name in ("evaluate", "sample"):
            one.add_argument("--checkpoint", type=Path, help="weights to use in place of the shipped ones")
        return one

    command("list", list_experiments, "experiments, settings, the paper's numbers, shipped weights")
    training = command("train", train_experiment, "climb K; writes checkpoint, weights and results.json")
    training.add_argument("--steps", type=int, help="in place of the setting's own number")
    training.add_argument("--out", type=Path, help="folder, runs/NAME-SETTING when not given")
    training.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    command("evaluate", evaluate_experiment, "K on held-out data, its parts, L_null and K*")
    command("optimum", optimum, "K* and −H(X⁰)").add_argument("--T", type=int, help="number of steps")
    sampling = command("sample", sample_experiment, "draw from p(x⁰)")
    sampling.add_argument("-n", type=int, default=16, help="how many")
    sampling.add_argument("--out", type=Path, help="a PNG of the samples")
    return top


def main() -> int:
    """Run one command; a mistake of the user's is one line on stderr and exit status 2."""
    try:
        args = parser().parse_args()
        args.run(args)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one speaks
            print(f"dpm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dpm: stopped; if it was training, the same command with --resume goes on", file=sys.stderr)
        return 130
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
