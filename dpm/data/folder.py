"""A user's own pictures, from a folder of PNGs and JPEGs or from a NumPy file."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dpm.errors import UserError


def read_images(path: Path, size: int | None = None) -> Tensor:
    """The pictures of a folder, or of a .npy or .npz file [N, H, W] or [N, H, W, C]: uint8 [N, C, H, W].

    With a size, those of a folder are cropped to their middle and reduced to it. UserError for anything else.
    """
    try:
        array = _read_folder(path, size) if path.is_dir() else np.load(path, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            (array,) = array.values()
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
            raise ValueError(f"{array.dtype} of shape {list(array.shape)}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"no pictures at {path} ({error}); name a folder of them, or uint8 [N, H, W, C]") from None
    pictures = torch.from_numpy(array)
    return pictures[:, None] if pictures.dim() == 3 else pictures.permute(0, 3, 1, 2).contiguous()


def _read_folder(folder: Path, size: int | None) -> np.ndarray:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    pictures: list[Image.Image] = [Image.open(path) for path in paths]
    if size:
        pictures = [ImageOps.fit(picture, (size, size)) for picture in pictures]
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    return np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
