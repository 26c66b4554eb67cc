"""A user's own data, read from a folder of pictures or from a NumPy file of pictures, points or bits.

The type of the numbers says what they are: whole grey levels uint8 are pictures, floats are points, bool are bits. What
cannot be read so is refused with a UserError that names the file. Nothing is unpickled.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from dpm.errors import UserError

PLAIN_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # Pillow's modes of pictures without alpha, as read here
PNG_BIT_DEPTH = 24  # the byte of a PNG that holds it, in the header chunk that must come first


def read_data(path: Path, size: int | None = None) -> tuple[str, Tensor]:
    """What there is at a path, "pictures", "points" or "bits", and all of it.

    Pictures come as `read_images` returns them, points as float64 [N, D], bits as bool [N, D].
    """
    if path.is_dir():
        return "pictures", read_images(path, size)
    array = read_array(path)
    if array.dtype == np.uint8:
        return "pictures", _images_of_array(array, path, size)
    if size is not None:
        raise UserError(f"{path} holds no pictures, so there is nothing to resize; leave out the size")
    if array.dtype.kind == "f":
        return "points", _points_of_array(array, path)
    if array.dtype == np.bool_:
        return "bits", torch.from_numpy(_check_vectors(array, path))
    raise UserError(f"{path} holds {array.dtype} numbers; save pictures as uint8, points as float, bits as bool")


def read_images(path: Path, size: int | None = None) -> Tensor:
    """The pictures of a folder, or of a .npy or .npz file [N, H, W] or [N, H, W, C]: uint8 [N, C, H, W], C 1 or 3.

    With a size each is cropped to the largest square in its middle, which is then reduced to that size.
    """
    path = Path(path)
    return _read_folder(path, size) if path.is_dir() else _images_of_array(read_array(path), path, size)


def read_array(path: Path) -> np.ndarray:
    """The one array of a .npy or .npz file."""
    if not path.exists():
        raise UserError(f"no data at {path}; name a folder of pictures, or a .npy or .npz file")
    if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        raise UserError(f"{path} is neither a folder of pictures nor a .npy or .npz file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) == 1:
                return loaded[loaded.files[0]]
            names = ", ".join(loaded.files)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read {path} ({reason}); save one array of numbers there, no objects") from None
    raise UserError(f"{path} holds several arrays or none ({names}); save the one that is the data")


def _check_vectors(array: np.ndarray, path: Path) -> np.ndarray:
    """The array, contiguous; UserError unless it is [N, D]."""
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{path} has shape {list(array.shape)}; points and bits are [N, D], a sample a row")
    return np.ascontiguousarray(array)


def _points_of_array(array: np.ndarray, path: Path) -> Tensor:
    """Points of an array of floats, in float64; UserError unless they are finite, [N, D], and can have a density."""
    points = torch.from_numpy(_check_vectors(array, path).astype(np.float64))
    bad = (~points.isfinite()).nonzero()
    if len(bad):
        raise UserError(
            f"{path} has {len(bad)} numbers that are not finite, the first in row {int(bad[0, 0])}; take them out"
        )
    if bool((points == points.round()).all()):
        raise UserError(
            f"{path} holds whole numbers only, which have no density; "
            "save zeros and ones as bool, or add uniform noise of one unit"
        )
    return points


# Pictures


def _images_of_array(array: np.ndarray, path: Path, size: int | None) -> Tensor:
    """Pictures [N, H, W] or [N, H, W, C] as [N, C, H, W]."""
    if array.dtype != np.uint8:
        raise UserError(f"{path} holds {array.dtype} numbers; save pictures as uint8, levels 0 to 255")
    if array.ndim == 4 and array.shape[3] in (2, 4):
        raise UserError(f"{path} has {array.shape[3]} channels; take the alpha channel out")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)) or array.size == 0:
        raise UserError(f"{path} has shape {list(array.shape)}; pictures are [N, H, W] or [N, H, W, C], C 1 or 3")
    if size is not None:
        plain = [Image.fromarray(picture[..., 0] if array.shape[3:] == (1,) else picture) for picture in array]
        array = np.stack([np.asarray(crop_and_reduce(picture, size, str(path))) for picture in plain])
    return _channels_first(array)


def _channels_first(array: np.ndarray) -> Tensor:
    """[N, H, W] or [N, H, W, C] → [N, C, H, W]."""
    pictures = torch.from_numpy(np.ascontiguousarray(array))
    return pictures[:, None] if pictures.ndim == 3 else pictures.permute(0, 3, 1, 2).contiguous()


def _read_folder(folder: Path, size: int | None) -> Tensor:
    """The pictures of a folder and of those in it, by name: in colour where one of them is."""
    paths = list_pictures(folder)
    if not paths:
        raise UserError(f"{folder} holds no PNG or JPEG pictures")
    pictures: list[Image.Image] = []
    for path in tqdm(paths, desc="reading", unit="picture", leave=False, disable=None):
        picture = read_picture(path)
        picture = picture if size is None else crop_and_reduce(picture, size, str(path))
        if pictures and picture.size != pictures[0].size:
            sizes = " and ".join(f"{width}×{height}" for width, height in (pictures[0].size, picture.size))
            raise UserError(
                f"{path} differs in size from the pictures before it, {sizes}; "
                "crop them to one size, or give `dpm train` a --size"
            )
        pictures.append(picture)
    mode = "RGB" if any(picture.mode == "RGB" for picture in pictures) else "L"
    return _channels_first(np.stack([np.asarray(picture.convert(mode)) for picture in pictures]))


def list_pictures(folder: Path) -> list[Path]:
    """The PNGs and JPEGs of a folder and of those in it, by name; UserError for a picture of another format.

    Hidden files and folders, and files that are no pictures, are passed over.
    """
    known = Image.registered_extensions()
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in known and path.is_file())
    paths = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    for path in paths:
        if known[path.suffix.lower()] not in ("PNG", "JPEG"):
            raise UserError(f"{path} is no PNG or JPEG; save it as one, or take it out of the folder")
    return paths


def read_picture(path: Path) -> Image.Image:
    """A picture of 8 bits, "L" or "RGB", turned the way its camera was held; UserError for any other."""
    try:
        content = path.read_bytes()
        picture = Image.open(io.BytesIO(content), formats=["PNG", "JPEG"])
        picture.load()
    except Exception as error:  # on damage Pillow raises OSError, SyntaxError, ValueError, zlib.error, and more
        reason = getattr(error, "strerror", None) or str(error).replace("<_io.BytesIO object at ", "<")
        reason = "no such picture in it" if "cannot identify" in reason else reason
        raise UserError(f"{path} is not a whole PNG or JPEG ({reason}); copy it anew, or take it out") from None
    if picture.format == "PNG" and content[PNG_BIT_DEPTH] == 16:
        raise UserError(f"{path} has 16 bits per channel; save it with 8")
    if picture.format == "PNG" and getattr(picture, "is_animated", False):
        raise UserError(f"{path} is animated; save one frame of it")
    if "A" in picture.getbands() or "transparency" in picture.info:
        raise UserError(f"{path} has an alpha channel; save it without transparency")
    if picture.mode not in PLAIN_MODES:
        raise UserError(f"{path} has colours of mode {picture.mode}; save it as grey or RGB")
    return ImageOps.exif_transpose(picture).convert(PLAIN_MODES[picture.mode])


def crop_and_reduce(picture: Image.Image, size: int, name: str) -> Image.Image:
    """The largest square in the middle, reduced to this size: bicubic, with antialiasing.

    UserError where it would be enlarged: what interpolation adds can be predicted, and would count as likelihood.
    """
    width, height = picture.size
    side = min(width, height)
    if side < size:
        raise UserError(f"{name} is {width}×{height}, smaller than {size}×{size}; choose {side} or less")
    left, top = (width - side) // 2, (height - side) // 2
    # cropped first, since a resize of a box looks at pixels outside it
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
