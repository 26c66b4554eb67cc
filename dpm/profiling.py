"""What a network costs, and what a machine can do: multiply-accumulate operations, memory, throughput."""

import time

import torch
from torch import Generator, Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dpm.reverse import DiffusionModel
from dpm.training import Objective


def peak_macs_per_second(device: torch.device, precision: torch.dtype) -> float:
    """Multiply-accumulates per second in a matrix product, the best of many: the machine's peak, measured."""
    side = 8192 if device.type == "cuda" else 512  # large enough to keep it busy, small enough not to be interrupted
    a = torch.ones(side, side, dtype=precision, device=device)

    def seconds() -> float:
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # reading a number waits for a GPU
        return time.perf_counter() - started

    return side**3 / min(seconds() for _ in range(100))


def count_macs(network: nn.Module, *inputs: object) -> tuple[int, int]:
    """Multiply-accumulates of one call, and the bytes it keeps for the backward pass, weights and tables excluded."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(*inputs)  # held, so that no address in memory is counted twice
    del output
    return counter.get_total_flops() // 2, sum(size for address, size in kept.items() if address not in own)


def throughput(
    model: DiffusionModel, like: Tensor, n_samples: int, seconds: float, precision: torch.dtype, n_processes: int
) -> dict[str, float]:
    """Training samples per second, and the fraction that this was of the machines' measured peak."""
    x0, q = like.float(), model.forward_process()
    t = torch.full((len(x0),), 2, device=x0.device)
    macs, _ = count_macs(Objective(model), x0, t, q.sample_noise(x0, Generator(x0.device)))
    rate, peak = n_samples / seconds, n_processes * peak_macs_per_second(x0.device, precision)
    return {"samples_per_second": rate, "fraction_of_peak": 3 * macs * rate / peak}  # backward costs twice forward
