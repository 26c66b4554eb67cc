"""`dpm score`."""

import argparse

import torch
from torch import Generator, Tensor

from dpm.cli.output import print_result
from dpm.data.folder import read_images
from dpm.distributed import choose_device, use_device
from dpm.errors import UserError
from dpm.pipelines import load_pipeline
from dpm.provenance import provenance
from dpm.scoring import BitsPerDimension, Levels, score_pictures

N_RANGES = 10  # ranges of timesteps over which KL terms are summed


def score(args: argparse.Namespace) -> None:
    """`dpm score`: bits per dimension of pictures under a pipeline that `diffusers` saved."""
    if not 2 <= args.levels <= 256:
        raise UserError(f"--levels {args.levels}: give 2 to 256, the levels of 8 bits")
    images, levels = read_images(args.data), Levels(args.levels)
    n = min(args.n, len(images))
    if n < 2:
        raise UserError(f"{n} pictures have no standard error; give 2 or more, by -n and --data")
    levels.check(images)  # what is wrong with the pictures is reported before the network is built
    device = choose_device(args.device)
    use_device(device)
    pipeline = load_pipeline(args.folder, device, (levels.low, levels.high) if args.clip else None)
    check_shape(images, pipeline.shape)
    sample = images[torch.randperm(len(images), generator=Generator().manual_seed(args.seed))[:n]]
    generator = Generator(device).manual_seed(args.seed)
    bits = score_pictures(pipeline.p, pipeline.q, sample, levels, generator, args.final_step, progress=True)
    check_finite(bits)
    T, (mean, stderr) = pipeline.q.T, bits.mean_and_stderr
    result = {
        "bits_per_dimension": mean,
        "bits_per_dimension_stderr": stderr,
        "parts_bits_per_dimension": {part: float(values.mean()) for part, values in bits.parts.items()},
        "kl_bits_per_dimension_by_timesteps": sum_over_ranges(bits.kl.mean(0)),
        "n": n,
        "T": T,
        "counted": f"an upper bound on -log2 P, at all {T} timesteps, of {n} of {len(images)} pictures",
        "shape": list(images.shape[1:]),
        "levels": levels.n,
        "predicts": pipeline.p.predicts,
        "variance": pipeline.p.variance.__name__,
        "clip": args.clip,
        "final_step": args.final_step,
    }
    print_result(result | {"provenance": provenance(args.seed, device)}, args.json)


def check_shape(images: Tensor, shape: tuple[int | None, ...]) -> None:
    """UserError unless the pictures have the network's channels and size."""
    found = tuple(images.shape[1:])
    if any(wanted not in (None, size) for wanted, size in zip(shape, found, strict=True)):
        raise UserError(f"the pictures are {[*found]}, channels first, the network's {[*shape]}; make them alike")


def check_finite(bits: BitsPerDimension) -> None:
    """UserError where the bound is infinite or no number."""
    if not bits.total.isfinite().all():
        bad = (~bits.kl.isfinite()).any(0).nonzero().flatten().tolist()
        where = f"at t = {bad[0]}" if bad else "in the final step"
        raise UserError(
            f"the bound is not finite {where}: the network cannot be scored with this schedule; "
            "where β_T = 1 it must predict v or x0, and --clip bounds x⁰"
        )


def sum_over_ranges(kl: Tensor) -> dict[str, float]:
    """KL terms [T+1] of t = 2…T, summed over ranges of timesteps: {"2-101": …}."""
    ranges = torch.arange(2, len(kl)).tensor_split(min(N_RANGES, len(kl) - 2))
    return {f"{int(t[0])}-{int(t[-1])}": float(kl[t.to(kl.device)].sum()) for t in ranges}
