"""Training by ascent on K, equation (15): a generator over steps, with checkpoints that a killed run resumes from."""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dpm.bound import estimate, stratified_steps
from dpm.files import UserError, load_into, read_tensors, take, write_tensors
from dpm.networks import channels_last
from dpm.reverse import Diffusion

Draw = Callable[[int, Generator], Tensor]  #: (n, generator) → x⁰ [n, …], fresh training data
Weights = tuple[Tensor, ...] | list[Tensor]  #: the parameters of a model

RECORD_STEPS = 50  # between two records
CHECKPOINT_SECONDS = 20  # between two checkpoints, which fall on records: what a killed run can lose, and a little
WARM_UP = 100  # steps
AVERAGE_STEPS = 10  # between two looks of the averaged weights at the present ones


@dataclass(frozen=True)
class Record:
    """Where training stands: the step, and the mean of the estimates of K, nats a sample, since the last record."""

    step: int
    K: float


class Objective(nn.Module):
    """−K of equation (14), nats a sample, estimated on a batch: what every process of a run evaluates on its share."""

    def __init__(self, model: Diffusion):
        super().__init__()
        self.model = model
        self.fixed = None if list(model.schedule.parameters()) else model.q()  # tables that no step changes

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return -estimate(self.model.p, self.fixed or self.model.q(), x0, t, noise).K.mean()


@torch.no_grad()
def follow(average: Weights, present: Weights, count: Tensor | int) -> None:
    """Move averaged weights to the present ones: by 1 part in 100, by more as long as few have been averaged."""
    torch._foreach_lerp_(average, present, max(0.01, 9 / (10 + float(count))))


class Run:
    """All that a training run changes, and so all that its checkpoint holds."""

    def __init__(self, model: Diffusion, device: torch.device, seed: int, about: dict[str, str]):
        self.model, self.about, self.step, self.seconds = model.to(device), about, 0, 0.0
        for weights in model.parameters():
            weights.data = channels_last(weights.data)
        self.average = AveragedModel(model, multi_avg_fn=follow)
        self.optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
        self.generator = Generator(device).manual_seed(seed)

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        moments = self.optimiser.state_dict()["state"]
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"optimiser.{i}.{name}": value for i in moments for name, value in moments[i].items()}
        about = self.about | {"step": str(self.step), "seconds": str(self.seconds)}
        write_tensors(path, tensors | {"generator": self.generator.get_state()}, about)

    def resume(self, path: Path) -> dict[str, str]:
        """Continue from a checkpoint, bit for bit on the CPU; its header. UserError when it is another run's."""
        tensors, about = read_tensors(path)
        for key, ours in self.about.items():
            if key not in ("steps", "command") and about.get(key) != ours:  # steps may be added to a run
                raise UserError(f"{path} is a run of {key} {about.get(key)}, not {ours}; resume it as it was begun")
        load_into(self.model, take(tensors, "model."), path)
        load_into(self.average, take(tensors, "average."), path)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in take(tensors, "optimiser.").items():
            index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = channels_last(value)
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        if tensors["generator"].shape != self.generator.get_state().shape:
            raise UserError(f"{path} was begun on another kind of device; resume it there, or choose with --device")
        self.generator.set_state(tensors["generator"])
        if "seconds" not in about:
            raise UserError(
                f"{path} was written by an older dpm, which kept no time; begin anew, or --from its weights"
            )
        self.step, self.seconds = int(about["step"]), float(about["seconds"])
        return about


def train(
    run: Run,
    draw: Draw,
    batch: int,
    steps: int,
    rate: float,
    checkpoint: Path | None = None,
    precision: torch.dtype = torch.float32,
    at_once: int | None = None,
) -> Iterator[Record]:
    """Ascend K, equation (15), with Adam and averaged weights: a record every RECORD_STEPS steps and at the end.

    Every process draws the whole batch from the same generator and keeps its share, so that any number of processes
    walks the same path. `precision` is that of the networks' products; weights, chain and K keep theirs. Where a
    share is too much for the memory, it takes so many `at_once` and adds up their gradients. UserError when an estimate
    of K is not finite.
    """
    rank, size = place()
    refuse_uneven(batch)
    objective: nn.Module = Objective(run.model)
    if size > 1:
        objective = DistributedDataParallel(objective, forward_sync_buffers=False)
    saved, losses, begun = time.monotonic(), [], time.monotonic() - run.seconds
    q = run.model.q()  # for its length and its noise, which training leaves alone
    while run.step < steps:
        x0 = channels_last(draw(batch, run.generator).float())
        t = stratified_steps(batch, q.T, run.generator)
        share = [every[rank::size] for every in (x0, t, q.noise(x0, run.generator))]
        losses.append(backward(objective, share, at_once or batch, precision))
        for group in run.optimiser.param_groups:
            group["lr"] = rate * min(1, (run.step + 1) / WARM_UP) * (1 + math.cos(math.pi * run.step / steps)) / 2
        run.optimiser.step()
        run.optimiser.zero_grad()
        run.step += 1
        if run.step % AVERAGE_STEPS == 0 or run.step == steps:
            run.average.update_parameters(run.model)
        if run.step % RECORD_STEPS == 0 or run.step == steps:
            means = torch.stack(losses)
            if size > 1:
                torch.distributed.all_reduce(means)  # so that all processes record, and all stop, as one
            values = (means / size).tolist()
            check_finite(values, run)
            run.seconds = time.monotonic() - begun
            if checkpoint and rank == 0 and (run.step == steps or time.monotonic() - saved > CHECKPOINT_SECONDS):
                run.save(checkpoint)
                saved = time.monotonic()
            yield Record(run.step, -sum(values) / len(values))
            losses = []


def backward(objective: nn.Module, share: list[Tensor], at_once: int, precision: torch.dtype) -> Tensor:
    """Gradients of −K of a process's share of the batch, so many samples at once, of all t; returns −K."""
    parts = []
    rounds = math.ceil(len(share[0]) / at_once)
    for some in ([every[k::rounds] for every in share] for k in range(rounds)):
        with torch.autocast(share[0].device.type, precision, enabled=precision != torch.float32):
            part = objective(*some) * (len(some[0]) / len(share[0]))
        part.backward()
        parts.append(part.detach())
    return torch.stack(parts).sum()


def refuse_uneven(batch: int) -> None:
    """UserError when the processes of the run cannot share a batch evenly."""
    _, size = place()
    if batch % size:
        raise UserError(f"a batch of {batch} does not split evenly over {size} processes; choose another number")


def check_finite(values: list[float], run: Run) -> None:
    """UserError naming the first step whose K, or weights, are not finite, before anything of it is saved."""
    name = f"{run.about.get('experiment')} --setting {run.about.get('setting')}"
    mend = "the last checkpoint stands: lower the learning rate, or try another --seed"
    for step, value in enumerate(values, start=run.step - len(values) + 1):
        if not math.isfinite(value):
            raise UserError(f"K is {-value} at step {step} of {name}; {mend}")
    if not all(weights.isfinite().all() for weights in run.model.parameters()):
        raise UserError(f"a weight is not finite after step {run.step} of {name}; {mend}")


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to a device, here and nowhere else; UserError when there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; use --device cpu, or auto to take a GPU only where there is one")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > torch.cuda.device_count():
        raise UserError(f"{processes} processes for {torch.cuda.device_count()} GPUs; start one a GPU, or --device cpu")
    torch.backends.cudnn.allow_tf32 = False  # left to itself a GPU rounds the products of K to ten bits
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)  # or every process would open the first GPU too
    return device


def choose_precision(wanted: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision wanted of the networks' products, or float32 where the machine has no fast products in bfloat16."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wanted if able else torch.float32


def place() -> tuple[int, int]:
    """This process's rank, and the number of processes of the run."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def join(device: torch.device) -> None:
    """Join the other processes when torchrun, or one like it, started this one and gave it a rank."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    """Part from the other processes, all at one time: with nccl one that leaves waits for the rest."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
