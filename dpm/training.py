"""Training by gradient ascent on K, equation (15), or on any other loss: a generator over steps, with checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dpm.bound import Loss, bound_loss, first_learned_timestep, stratified_timesteps
from dpm.distributed import check_batch_splits, rank_and_world_size
from dpm.errors import UserError
from dpm.files import check_tensors, load_state, read_tensors, strip_prefix, write_tensors
from dpm.networks.layers import channels_last
from dpm.reverse import DiffusionModel
from dpm.schedules import check_schedule

Draw = Callable[[int, Generator], Tensor]  #: (n, generator) → x⁰ [n, …], fresh training data
Parameters = tuple[Tensor, ...] | list[Tensor]  #: the parameters of a model

RECORD_EVERY = 50  # steps
CHECKPOINT_SECONDS = 20  # minimum seconds between checkpoints, which are written at records
WARMUP_STEPS = 100  # of the learning rate
EMA_EVERY = 10  # steps between two updates of the averaged weights
LARGEST_NUMBER = 1e15  # of steps or seconds in a checkpoint
EMA_RATE = 0.01  # share of the present weights in such an update, once 900 steps are done


@dataclass(frozen=True)
class Record:
    """Progress of training: the step, and the mean loss per sample since the last record."""

    step: int
    loss: float

    @property
    def K(self) -> float:
        """The estimate of K, nats per sample, where the loss is `bound_loss`."""
        return -self.loss


class Objective(nn.Module):
    """The mean of a loss over a batch: what every process of a run evaluates on its share."""

    def __init__(self, model: DiffusionModel, loss: Loss = bound_loss):
        super().__init__()
        self.model, self.loss = model, loss
        # a process that no step changes is tabulated once
        self.fixed_process = None if list(model.schedule.parameters()) else model.forward_process()

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The mean loss, a number."""
        q = self.fixed_process or self.model.forward_process()
        return self.loss(self.model.p, q, x0, t, noise).mean()


@torch.no_grad()
def ema_update(average: Parameters, present: Parameters, n_updates: Tensor | int) -> None:
    """Exponential moving average of weights, in place: at EMA_RATE, and faster over the first updates."""
    torch._foreach_lerp_(average, present, max(EMA_RATE, 9 / (10 + float(n_updates))))


class TrainState:
    """All that a training run changes, and so all that its checkpoint holds."""

    def __init__(self, model: DiffusionModel, device: torch.device, seed: int, metadata: dict[str, str]):
        self.model, self.metadata, self.step, self.seconds = model.to(device), metadata, 0, 0.0
        for weights in model.parameters():
            weights.data = channels_last(weights.data)
        self.ema = AveragedModel(model, multi_avg_fn=ema_update)
        self.optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
        self.generator = Generator(device).manual_seed(seed)

    def tensors(self, moments: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a checkpoint, with these moments of the optimiser."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        tensors |= {f"optimiser.{i}.{name}": value for i in moments for name, value in moments[i].items()}
        return tensors | {"generator": self.generator.get_state()}

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        metadata = self.metadata | {"step": str(self.step), "seconds": str(self.seconds)}
        write_tensors(path, self.tensors(self.optimiser.state_dict()["state"]), metadata)

    def resume(self, path: Path) -> dict[str, str]:
        """Continue from a checkpoint, bit for bit on a CPU; returns its metadata. UserError where it is another's."""
        tensors, metadata = read_tensors(path)
        self.check_checkpoint(tensors, metadata, path)
        for prefix in ("ema.module.", "model."):  # the averaged weights for their schedule alone
            load_state(self.model, strip_prefix(tensors, prefix), path)
            check_schedule(self.model.schedule(), path)
        load_state(self.ema, strip_prefix(tensors, "ema."), path)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in strip_prefix(tensors, "optimiser.").items():
            index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = channels_last(value)
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        try:
            self.generator.set_state(tensors["generator"])
        except RuntimeError:
            raise UserError(f"{path} holds no state of a random generator; begin anew, or --from its weights") from None
        self.step, self.seconds = int(read_number(metadata, "step", path)), read_number(metadata, "seconds", path)
        return metadata

    def check_checkpoint(self, tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
        """UserError unless a checkpoint read from `path` is of this run, and holds what `save` writes."""
        for key, present in self.metadata.items():
            if key not in ("steps", "command") and metadata.get(key) != present:  # a run may be given more steps
                raise UserError(
                    f"{path} is a run of {key} {metadata.get(key)}, not {present}; resume it as it was begun"
                )
        if "seconds" not in metadata:
            raise UserError(
                f"{path} was written by an older dpm, which kept no time; begin anew, or --from its weights"
            )
        step, generator = int(read_number(metadata, "step", path)), tensors.get("generator")
        if generator is not None and generator.shape != self.generator.get_state().shape:
            raise UserError(f"{path} was begun on another kind of device; resume it there, or choose with --device")
        moments = {
            i: {"step": torch.zeros(()), "exp_avg": weights, "exp_avg_sq": weights}
            for i, weights in enumerate(self.model.parameters())
            if step > 0
        }
        check_tensors(tensors, self.tensors(moments), path)
        took_time = read_number(metadata, "seconds", path) > 0 or step == 0
        if not (took_time and 0 <= int(tensors["ema.n_averaged"]) <= step):
            raise UserError(f"{path}: its seconds or its averages are not those of {step} steps; begin anew")


def read_number(metadata: dict[str, str], key: str, path: Path) -> float:
    """A number in the metadata of a file, from 0 up; UserError where it is none."""
    try:
        number = float(metadata.get(key, ""))
    except ValueError:
        number = math.nan
    if not 0 <= number < LARGEST_NUMBER:
        raise UserError(
            f"{path}: its {key} is {metadata.get(key, '')[:20]!r}, no count; remove the file, or begin anew"
        )
    return number


def learning_rate_at(step: int, n_steps: int, peak: float) -> float:
    """The learning rate: a linear warm-up times a cosine decay to zero."""
    return peak * min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / n_steps)) / 2


def train(
    state: TrainState,
    draw: Draw,
    batch: int,
    n_steps: int,
    learning_rate: float,
    checkpoint: Path | None = None,
    loss: Loss = bound_loss,
    precision: torch.dtype = torch.float32,
    micro_batch: int | None = None,
) -> Iterator[Record]:
    """Minimise a loss with Adam: yields a Record every RECORD_EVERY steps and at the end. Ascent on K is (15).

    `loss(p, q, x0, t, noise)` returns [B]: `bound_loss` is −K, `simple_loss` ‖ε − ε̂‖², or write your own. `precision`
    is that of the networks' products; weights, process and loss keep theirs. Every process draws the whole batch from
    the same generator and keeps its share, so that any number of processes walks the same path. With `micro_batch`
    that many samples are in memory at once, and their gradients add up. UserError when a loss is not finite.
    """
    rank, world_size = rank_and_world_size()
    check_batch_splits(batch)
    objective: nn.Module = Objective(state.model, loss)
    if world_size > 1:
        objective = DistributedDataParallel(objective)
    last_checkpoint, losses, begun = time.monotonic(), [], time.monotonic() - state.seconds
    q = state.model.forward_process()  # for its length and its noise, which training does not change
    above = first_learned_timestep(state.model.p, q) - 1
    while state.step < n_steps:
        x0 = channels_last(draw(batch, state.generator).float())
        t = stratified_timesteps(batch, q.T, state.generator, above)
        noise = q.sample_noise(x0, state.generator)
        local_batch = [values[rank::world_size] for values in (x0, t, noise)]
        losses.append(backward(objective, local_batch, micro_batch or batch, precision))
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate_at(state.step, n_steps, learning_rate)
        state.optimiser.step()
        state.optimiser.zero_grad()
        state.step += 1
        is_last = state.step == n_steps
        if state.step % EMA_EVERY == 0 or is_last:
            state.ema.update_parameters(state.model)
        if state.step % RECORD_EVERY == 0 or is_last:
            means = torch.stack(losses)
            if world_size > 1:
                torch.distributed.all_reduce(means)  # so that all processes record, and all stop, as one
            values = (means / world_size).tolist()
            check_finite(values, state)
            state.seconds = time.monotonic() - begun
            if checkpoint and rank == 0 and (is_last or time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS):
                state.save(checkpoint)
                last_checkpoint = time.monotonic()
            paused = time.monotonic()
            yield Record(state.step, sum(values) / len(values))
            begun += time.monotonic() - paused  # what a caller does with a record is no training
            losses = []


def backward(objective: nn.Module, local_batch: list[Tensor], micro_batch: int, precision: torch.dtype) -> Tensor:
    """Accumulate the gradient of the mean loss over a process's share of the batch; returns that mean.

    Micro-batches are interleaved, so that each has timesteps from the whole range.
    """
    device, size = local_batch[0].device.type, len(local_batch[0])
    n_rounds = math.ceil(size / micro_batch)
    parts = []
    for k in range(n_rounds):
        x0, t, noise = (values[k::n_rounds] for values in local_batch)
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            part = objective(x0, t, noise) * (len(x0) / size)
        part.backward()
        parts.append(part.detach())
    return torch.stack(parts).sum()


def check_finite(losses: list[float], state: TrainState) -> None:
    """UserError naming the first step whose loss, or weights, are not finite, before anything of it is saved."""
    name = f"{state.metadata.get('experiment')} --setting {state.metadata.get('setting')}"
    mend = "the last checkpoint stands: lower the learning rate, or try another --seed"
    for step, loss in enumerate(losses, start=state.step - len(losses) + 1):
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {step} of {name}; {mend}")
    if not all(weights.isfinite().all() for weights in state.model.parameters()):
        raise UserError(f"a weight is not finite after step {state.step} of {name}; {mend}")
