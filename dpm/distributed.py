"""Devices, precisions and processes: which GPU, which floats, which rank."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed

from dpm.errors import UserError
from dpm.files import lock_folder


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; with torchrun, each process gets a GPU of its own.

    Raises UserError when there is no such device, or fewer GPUs than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; use --device cpu, or auto to take a GPU only where there is one")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if n_processes > torch.cuda.device_count():
        raise UserError(
            f"{n_processes} processes for {torch.cuda.device_count()} GPUs; start one per GPU, or --device cpu"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def use_device(device: torch.device) -> None:
    """Make a GPU the process's own, with full float32 products. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # TF32 would round the products of K to ten bits
        torch.cuda.set_device(device)  # or every process would open the first GPU too


def use_one_thread() -> None:
    """One thread, for work too small to share among several, unless OMP_NUM_THREADS asks for another number."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def choose_precision(wanted: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision wanted for a network's products, or float32 where bfloat16 is slow: on a CPU, before AVX-512."""
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wanted if is_fast else torch.float32


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank, and the number of processes of the run."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def all_ranks(holds: bool) -> bool:
    """Whether something holds in every process of the run, which all learn at the same time."""
    if not torch.distributed.is_initialized():
        return holds
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(holds), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


def init_distributed(device: torch.device) -> None:
    """Join the other processes where torchrun, or a launcher like it, gave this one a rank."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def close_distributed() -> None:
    """Leave the process group. Every process calls it at the same point: with nccl the first to leave waits for all."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_batch_splits(batch: int) -> None:
    """UserError unless the processes of the run can share a batch evenly."""
    _, world_size = rank_and_world_size()
    if batch % world_size:
        raise UserError(f"a batch of {batch} does not split evenly over {world_size} processes; choose another number")


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from a folder while this one is in the block; the first process locks it for all.

    UserError in every process when another run holds it, or when it cannot be made.
    """
    rank, _ = rank_and_world_size()
    with ExitStack() as stack:
        refusal = None
        try:
            if rank == 0:
                stack.enter_context(lock_folder(folder))
        except UserError as error:
            refusal = error
        if not all_ranks(refusal is None):
            raise refusal or UserError(f"the first process was refused {folder}")
        yield
