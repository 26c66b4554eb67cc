"""`dpm optimum` and `dpm schedule`: what the ideal reverse model reaches, and the schedule that is best for it."""

import argparse
from functools import partial

import torch
from torch import Generator, Tensor

from dpm.cli.output import print_result, print_written
from dpm.cli.parser import DEFAULT_SETTING
from dpm.data.synthetic import LENGTH, PERIOD, heartbeat, heartbeat_sequences
from dpm.distributed import use_one_thread
from dpm.errors import UserError
from dpm.experiments.base import Experiment
from dpm.experiments.registry import EXPERIMENTS, get_experiment
from dpm.files import check_writable, write_json
from dpm.forward import BIT_KERNELS, ForwardProcess, GaussianForward
from dpm.ideal import IdealReverse, best_schedule, enumerate_ideal_K, ideal_K
from dpm.provenance import provenance
from dpm.schedules import linear_alpha_bar, log_snr_linear
from dpm.training import Draw
from dpm.units import mean_and_stderr, to_bits


def optimum(args: argparse.Namespace) -> None:
    """`dpm optimum`: K*, the most that any network can reach with the untrained forward process of T steps."""
    experiment, p = get_ideal(args.name)
    T = n_timesteps(experiment, args.T)
    q, draw = experiment.forward_process(T), experiment.draw
    if (args.kernel, args.length, args.period) != (None, None, None):
        p, q, draw = other_bits(args, T)
    exact = enumerate_ideal_K(p, q)
    generator = Generator().manual_seed(args.seed)
    if exact is None:
        x0 = draw(min(40_000, max(1_000, 600_000 // T)), generator)  # about as much work for every T
        K, K_stderr = mean_and_stderr(to_bits(ideal_K(p, q, x0, generator)))
    else:
        K, K_stderr = float(to_bits(exact)), 0.0
    if q.states is not None:  # a sum over all sequences
        minus_entropy, entropy_stderr = float(to_bits(p.weights @ p.log_prob(p.points))), 0.0
    else:
        minus_entropy, entropy_stderr = mean_and_stderr(to_bits(p.log_prob(x0)))
    result = {
        "experiment": args.name,
        "T": T,
        "schedule": "untrained",
        "K_optimum_bits": K,
        "K_optimum_stderr_bits": K_stderr,
        "minus_entropy_bits": minus_entropy,
        "minus_entropy_stderr_bits": entropy_stderr,
        "unit": experiment.unit,
    }
    if q.states is not None:
        result["kernel"] = args.kernel or "flipping"
    print_result(result | {"provenance": provenance(args.seed, torch.device("cpu"))}, args.json)


def get_ideal(name: str, setting: str = DEFAULT_SETTING) -> tuple[Experiment, IdealReverse]:
    """An experiment whose ideal reverse model can be computed, and that model; on one thread, which is fastest."""
    experiment, _ = get_experiment(name, setting)
    if experiment.ideal is None:
        known = ", ".join(other for other in EXPERIMENTS if EXPERIMENTS[other].ideal)
        raise UserError(f"the ideal reverse model of {name} is not computed; it is for {known}")
    use_one_thread()
    return experiment, experiment.ideal


def n_timesteps(experiment: Experiment, T: int | None) -> int:
    """--T, or the paper's own."""
    T = experiment.T if T is None else T
    if not 2 <= T <= 100_000:
        raise UserError(f"--T {T}: give 2 steps, the fewest that a bound has, to 100000")
    return T


def other_bits(args: argparse.Namespace, T: int) -> tuple[IdealReverse, ForwardProcess, Draw]:
    """A heartbeat of another length, period or kernel: its ideal reverse model, its forward process, its data."""
    if args.name != "heartbeat":
        raise UserError(f"--kernel, --length and --period are for the heartbeat, not for {args.name}")
    kernel = args.kernel or "flipping"
    if kernel not in BIT_KERNELS:
        raise UserError(f"no kernel named {kernel!r}; there are {', '.join(BIT_KERNELS)}")
    length, period = (LENGTH if args.length is None else args.length), (PERIOD if args.period is None else args.period)
    if not (1 <= length <= 1_000 and 2 <= period <= 1_000):
        raise UserError(f"--length {length} --period {period}: give 1 to 1000 bits, and 2 to 1000 between ones")
    points = heartbeat_sequences(length, period)
    q = BIT_KERNELS[kernel](linear_alpha_bar(T), float(points.mean()))
    return IdealReverse(points), q, partial(heartbeat, length=length, period=period)


def schedule(args: argparse.Namespace) -> None:
    """`dpm schedule`: the schedule that makes K* the highest, beside the best one that is linear in log-SNR."""
    experiment, p = get_ideal(args.name, args.setting)
    T = n_timesteps(experiment, args.T)
    q = experiment.forward_process(T)
    if q.states is not None:
        raise UserError(f"{args.name} is made of bits; a best schedule is computed for real numbers")
    beta_1 = float(q.beta[1])
    if args.out:
        check_writable(args.out)
    generator = Generator().manual_seed(args.seed)
    beta = best_schedule(p, T, beta_1, experiment.draw(1_500, generator), generator)
    x0 = experiment.draw(4_000, generator)

    def K_of(beta: Tensor) -> Tensor:
        return to_bits(ideal_K(p, GaussianForward(beta), x0, Generator().manual_seed(args.seed)))

    rivals = [K_of(log_snr_linear(T, beta_1, percent / 100)) for percent in range(40, 100, 5)]
    K, rival_K = K_of(beta), max(rivals, key=lambda K: float(K.mean()))
    (K_mean, K_stderr), (gain, gain_stderr) = mean_and_stderr(K), mean_and_stderr(K - rival_K)
    result = {"experiment": args.name, "T": T, "unit": experiment.unit}
    result |= {"K_optimum_bits": K_mean, "K_optimum_stderr_bits": K_stderr}
    result |= {"over_best_log_snr_linear_bits": gain, "over_best_log_snr_linear_stderr_bits": gain_stderr}
    result |= {"provenance": provenance(args.seed, torch.device("cpu"))}
    if args.out:
        write_json(args.out, result | {"beta": beta.tolist()})
        print_written(args.out)
    print_result(result, args.json)
