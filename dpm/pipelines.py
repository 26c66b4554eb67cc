"""Pipelines that the package `diffusers` saved, as forward process and reverse model."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpm.adapters import PretrainedReverse, fixed_large, fixed_small, forward_process, learned_range
from dpm.errors import UserError
from dpm.files import read_json
from dpm.forward import GaussianForward

NETWORKS = ("UNet2DModel",)
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
PREDICTION_TYPES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCE_TYPES = {
    "fixed_small": fixed_small,
    "fixed_small_log": fixed_small,
    "fixed_large": fixed_large,
    "learned_range": learned_range,
}
WEIGHTS = "diffusion_pytorch_model"


class Pipeline(NamedTuple):
    """What `load_pipeline` read."""

    q: GaussianForward  #: its noise schedule
    p: PretrainedReverse  #: its network
    shape: tuple[int | None, ...]  #: (C, H, W) of its pictures; None for a size that the folder does not say


def load_pipeline(folder: Path, device: torch.device, clip: tuple[float, float] | None = None) -> Pipeline:
    """Read a pipeline that `diffusers` saved: an unconditional U-Net of pictures, with a DDPM or DDIM scheduler.

    Network and scheduler are looked for in the folder's `unet` and `scheduler`, or else in the folder itself. A DDIM
    scheduler names no variance and gets `fixed_small`, its own at η = 1. `clip_sample` and `thresholding` are not read:
    give `clip` to score the model as a clipping scheduler samples it. Nothing is downloaded, nothing unpickled.
    UserError where `diffusers` is not installed or the folder holds something else.
    """
    unet, scheduler = (folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler"))
    network_config = read_config(unet / "config.json", NETWORKS)
    scheduler_config = read_config(scheduler / "scheduler_config.json", SCHEDULERS)
    predicts = translate(PREDICTION_TYPES, scheduler_config.get("prediction_type", "epsilon"), scheduler)
    variance = translate(VARIANCE_TYPES, scheduler_config.get("variance_type", "fixed_small"), scheduler)
    if network_config.get("class_embed_type") or network_config.get("num_class_embeds"):
        raise UserError(f"{unet} wants a class beside the picture; score it from Python, as a PretrainedReverse")
    if not (unet / f"{WEIGHTS}.safetensors").is_file():
        found = f"{WEIGHTS}.bin, whose pickles could run code" if (unet / f"{WEIGHTS}.bin").exists() else "no weights"
        raise UserError(f"{unet} holds {found}; save the pipeline anew, with safe_serialization=True")
    network, beta = build(unet, scheduler_config)
    network.to(device).eval().requires_grad_(False)

    def call(x: Tensor, step: Tensor) -> Tensor:
        return network(x, step).sample

    size = network_config.get("sample_size")
    height, width = size if isinstance(size, list) else (size, size)
    p = PretrainedReverse(call, predicts, variance, clip)
    return Pipeline(forward_process(beta.to(device)), p, (network_config.get("in_channels", 3), height, width))


def read_config(path: Path, classes: tuple[str, ...]) -> dict:
    """A configuration of one of these classes. UserError where there is none, or another's."""
    config = read_json(path, "name a folder that save_pretrained of a diffusers pipeline wrote")
    found = config.get("_class_name")
    if found not in classes:
        raise UserError(f"{path} is of a {found}; give a folder whose class is {' or '.join(classes)}")
    return config


def translate(names: dict[str, Any], name: str, path: Path) -> Any:
    """What a name in a configuration stands for. UserError where it is unknown."""
    if name not in names:
        raise UserError(f"{path} names {name!r}, which has no likelihood here; known are {', '.join(names)}")
    return names[name]


def build(unet: Path, scheduler_config: dict) -> tuple[torch.nn.Module, Tensor]:
    """The network of a folder, with its weights, and β_1…T. UserError where they do not fit its configuration."""
    try:
        import diffusers  # an optional extra, and slow to import
    except ImportError:
        raise UserError("the package diffusers reads saved pipelines; pip install diffusers") from None
    try:
        network, found = diffusers.UNet2DModel.from_pretrained(
            unet, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        beta = getattr(diffusers, scheduler_config["_class_name"]).from_config(scheduler_config).betas
    except Exception as error:  # of any kind: the package checks little itself
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{unet} cannot be built ({reason}); copy the folder anew") from None
    if wrong := [name for names in found.values() for name in names]:
        raise UserError(f"the weights in {unet} do not fit its config.json ({wrong[0]}); copy the folder anew")
    return network, beta
