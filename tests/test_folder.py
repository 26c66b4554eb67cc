"""A user's own data as they are read: pictures, points and bits, and what is refused by its name."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dpm.data.folder import list_pictures, read_data, read_images
from dpm.data.vectors import VectorDataset, standardize_points
from dpm.errors import UserError
from dpm.experiments.own import choose

RANDOM = np.random.default_rng(0)


def grey(n=12, height=6, width=6):
    return RANDOM.integers(0, 256, (n, height, width), dtype=np.uint8)


def save_pictures(folder, pictures, suffix=".png", **options):
    """Write pictures as files 00.png, 01.png, …; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{k:02}{suffix}", **options)
    return folder


def save(path, array, **options):
    np.save(path, array, **options)
    return path


# What is read


def test_pictures_of_a_folder_and_of_a_file_are_the_same_pictures(tmp_path):
    """In the order of their names, through folders; files that are hidden or no pictures are passed over."""
    pictures = grey()
    folder = save_pictures(tmp_path / "folder" / "a", pictures[:5]).parent
    save_pictures(folder / "b", pictures[5:])
    (folder / "labels.csv").write_text("x")
    (folder / ".hidden.png").write_bytes(b"no picture")
    save_pictures(folder / ".ipynb_checkpoints" / "c", pictures[:2])
    kind, found = read_data(folder)
    assert kind == "pictures" and found.dtype == torch.uint8 and torch.equal(found[:, 0], torch.tensor(pictures))
    for array in (pictures, pictures[..., None]):
        assert torch.equal(read_images(save(tmp_path / "x.npy", array)), found)
    np.savez(tmp_path / "x.npz", anything=pictures)
    assert torch.equal(read_images(tmp_path / "x.npz"), found)
    assert torch.equal(read_images((tmp_path / "x.npy").rename(tmp_path / "X.NPY")), found)
    assert torch.equal(read_images(folder.rename(tmp_path / ".folder")), found)  # hidden, but it was asked for


def test_one_picture_in_colour_makes_all_of_them_colour(tmp_path):
    folder = save_pictures(tmp_path / "x", grey())
    colour = RANDOM.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(colour).save(folder / "99.png")
    Image.fromarray(np.eye(6) > 0).save(folder / "98.png")  # black and white
    found = read_images(folder)
    assert found.shape == (14, 3, 6, 6) and torch.equal(found[-1], torch.tensor(colour).permute(2, 0, 1))
    assert bool((found[:-1] == found[:-1, :1]).all()) and torch.equal(found[-2, 0], 255 * torch.eye(6).byte())
    array = RANDOM.integers(0, 256, (11, 4, 5, 3), dtype=np.uint8)
    assert torch.equal(read_images(save(tmp_path / "c.npy", array)), torch.tensor(array).permute(0, 3, 1, 2))


@pytest.mark.parametrize("form", ["folder", "array"])
def test_a_size_takes_the_square_in_the_middle_and_averages_it(form, tmp_path):
    """A square of four plain quarters between stripes that are cut off: each quarter keeps its grey away from edges."""
    picture = np.full((40, 64), 255, np.uint8)
    picture[:, 12:52] = np.kron(np.array([[10, 60], [110, 160]], np.uint8), np.ones((20, 20), np.uint8))
    pictures = np.stack([picture] * 10)
    path = save_pictures(tmp_path / "x", pictures) if form == "folder" else save(tmp_path / "x.npy", pictures)
    small = read_images(path, size=10)
    assert small.shape == (10, 1, 10, 10)
    assert small[0, 0, ::9, ::9].flatten().tolist() == pytest.approx([10, 60, 110, 160], abs=1)
    assert read_images(path).shape == (10, 1, 40, 64)


def test_a_picture_of_just_the_size_is_left_as_it_is(tmp_path):
    pictures = grey()
    assert torch.equal(read_images(save_pictures(tmp_path / "x", pictures), size=6)[:, 0], torch.tensor(pictures))


def test_fine_detail_is_averaged_and_not_passed_over(tmp_path):
    """A board of black and white pixels is grey at a quarter of its size, whichever way the array tells its channel."""
    board = np.tile(255 * np.eye(2, dtype=np.uint8), (2, 16, 16))
    for array in (board, board[..., None]):
        small = read_images(save(tmp_path / "x.npy", array), size=8)
        assert small.shape == (2, 1, 8, 8) and float((small.double() - 127.5).abs().max()) <= 1


def test_a_picture_on_a_palette_has_the_colours_of_its_palette(tmp_path):
    indexed = Image.fromarray(np.eye(6, dtype=np.uint8), "P")
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.save(tmp_path / "x.png")
    (found,) = read_images(tmp_path)
    assert found[:, 0, :2].T.tolist() == [[200, 100, 50], [10, 20, 30]]


def test_a_photograph_is_turned_as_its_camera_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    folder = save_pictures(tmp_path / "x", [np.tile(np.uint8([0] * 8 + [255] * 8), (16, 1))] * 10, ".JPEG", exif=exif)
    found = read_images(folder)[0, 0].float()
    assert float(found[:6].mean()) < 20 and float(found[10:].mean()) > 235


def test_a_jpeg_has_no_bit_depth_where_a_png_has_it(tmp_path):
    """A comment that fills the place with 16."""
    jpeg = encoded(Image.fromarray(grey()[0]), "JPEG")
    (tmp_path / "x.jpg").write_bytes(jpeg[:2] + b"\xff\xfe\x00\x22" + bytes([16] * 32) + jpeg[2:])
    (tmp_path / "y.jpg").write_bytes(jpeg)
    commented, plain = read_images(tmp_path)
    assert torch.equal(commented, plain)


def test_points_and_bits_are_told_by_their_type(tmp_path):
    points, bits = RANDOM.standard_normal((12, 3)), RANDOM.random((12, 4)) < 0.5
    points[5, 1] = 2  # one whole number among others is no reason to refuse them
    for dtype in (np.float16, np.float32, np.float64, ">f8"):
        kind, found = read_data(save(tmp_path / "p.npy", points.astype(dtype)))
        assert kind == "points" and found.dtype == torch.float64 and found.tolist() == points.astype(dtype).tolist()
    kind, found = read_data(save(tmp_path / "b.npy", np.asfortranarray(bits)))
    assert kind == "bits" and found.dtype == torch.bool and found.tolist() == bits.tolist()


# Points to x⁰ and back


def test_points_are_standardised_by_the_coordinate_and_come_back():
    x = torch.tensor(RANDOM.standard_normal((500, 3)) * [1e-3, 1.0, 1e4] + [5.0, 0.0, -1e5])
    shift, scale = standardize_points(x)
    vectors = VectorDataset(x, x[:7], shift, scale)
    x0 = vectors.standardize(x)
    assert torch.allclose(x0.mean(0), torch.zeros(3).double(), atol=1e-9)
    assert torch.allclose(x0.square().mean(0), torch.ones(3).double())
    assert torch.allclose(vectors.to_data(x0), x, rtol=1e-12) and vectors.held_out_data(torch.Generator()).shape == (
        7,
        3,
    )
    assert vectors.scale_bits == pytest.approx(np.log2(x.numpy().std(0)).sum())
    drawn = vectors.draw(2000, torch.Generator().manual_seed(0))
    assert len(drawn.unique(dim=0)) == pytest.approx(500 * (1 - np.exp(-4)), rel=0.01)


# What is refused


def sixteen_bits(folder, mode):
    save_pictures(folder, grey())
    if mode == "grey":
        Image.fromarray(RANDOM.integers(0, 65536, (6, 6), dtype=np.uint16)).save(folder / "07.png")
    else:  # Pillow reads such a file as 8 bits, and writes none: here is one of 1×1, by hand
        import struct
        import zlib

        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")
        (folder / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return folder


def with_file(folder, name, content):
    """Twelve pictures and one more file."""
    save_pictures(folder, grey())
    (folder / name).write_bytes(content)
    return folder


def encoded(picture, format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def frames():
    return [Image.fromarray(picture) for picture in grey(3)]


def animated(format):
    first, *rest = frames()
    return encoded(first, format, save_all=True, append_images=rest)


def constant_column(n=20):
    points = RANDOM.standard_normal((n, 3))
    points[:, 1] = 0.1
    return points


def dependent():
    points = RANDOM.standard_normal((50, 3))
    points[:, 2] = points[:, 0] - 3 * points[:, 1]
    return points


def not_finite(value):
    points = RANDOM.standard_normal((20, 2))
    points[13, 1] = value
    return points


def pickled(path):
    path.write_bytes(pickle.dumps([1, 2, 3]))
    return path


def several(path):
    np.savez(path, x=grey(), y=np.arange(12))
    return path


def truncated(path):
    save(path, grey(40))
    path.write_bytes(path.read_bytes()[:300])
    return path


REFUSED = {  # a function of a folder that makes the data, what the line says, and a size
    "missing path": (lambda tmp: tmp / "nowhere", "no data at"),
    "a text file": (lambda tmp: [*tmp.glob("x")] or pickled(tmp / "x.csv"), "neither a folder of pictures nor"),
    "an empty folder": (lambda tmp: tmp, "holds no PNG or JPEG"),
    "one picture": (lambda tmp: save_pictures(tmp / "d", grey(1)), "has 1 samples; give 10 or more"),
    "few pictures in an array": (lambda tmp: save(tmp / "d.npy", grey(9)), "has 9 samples"),
    "few points": (lambda tmp: save(tmp / "d.npy", RANDOM.random((3, 2))), "has 3 samples"),
    "mixed sizes": (
        lambda tmp: with_file(tmp / "d", "99.png", encoded(Image.new("L", (5, 6)), "PNG")),
        "6×6 and 5×6; crop them to one size",
    ),
    "smaller than the size": (lambda tmp: save_pictures(tmp / "d", grey()), "00.png is 6×6, smaller than 8×8", 8),
    "an array smaller than the size": (lambda tmp: save(tmp / "d.npy", grey()), "is 6×6, smaller than 8×8", 8),
    "16 bits": (lambda tmp: sixteen_bits(tmp / "d", "grey"), "07.png has 16 bits"),
    "16 bits in colour": (lambda tmp: sixteen_bits(tmp / "d", "colour"), "07.png has 16 bits"),
    "an alpha channel": (
        lambda tmp: with_file(tmp / "d", "99.png", encoded(Image.new("RGBA", (6, 6)), "PNG")),
        "99.png has an alpha channel",
    ),
    "a transparent colour": (
        lambda tmp: with_file(tmp / "d", "99.png", encoded(Image.new("L", (6, 6)), "PNG", transparency=3)),
        "99.png has an alpha channel",
    ),
    "an alpha channel in an array": (
        lambda tmp: save(tmp / "d.npy", RANDOM.integers(0, 256, (12, 6, 6, 4), dtype=np.uint8)),
        "4 channels; take the alpha channel out",
    ),
    "an animated GIF": (lambda tmp: with_file(tmp / "d", "99.gif", animated("GIF")), "99.gif is no PNG or JPEG"),
    "a GIF by another name": (lambda tmp: with_file(tmp / "d", "99.png", animated("GIF")), "not a whole PNG or JPEG"),
    "an animated PNG": (lambda tmp: with_file(tmp / "d", "99.png", animated("PNG")), "99.png is animated"),
    "inks": (lambda tmp: with_file(tmp / "d", "9.jpg", encoded(Image.new("CMYK", (6, 6)), "JPEG")), "of mode CMYK"),
    "a corrupt picture": (lambda tmp: with_file(tmp / "d", "99.png", b"\x89PNG\r\n\x1a\nxx"), "99.png is not a whole"),
    "half a picture": (
        lambda tmp: with_file(tmp / "d", "99.jpg", encoded(Image.fromarray(grey(1, 99, 99)[0]), "JPEG")[:3000]),
        "99.jpg is not a whole PNG or JPEG",
    ),
    "an empty file": (lambda tmp: with_file(tmp / "d", "99.png", b""), "99.png is not a whole PNG or JPEG"),
    "a picture that is a folder": (lambda tmp: save_pictures(tmp / "d" / "x.png", grey(2)).parent, "has 2 samples"),
    "objects": (lambda tmp: save(tmp / "d.npy", np.array([{}] * 12), allow_pickle=True), "no objects"),
    "a pickle": (lambda tmp: pickled(tmp / "d.npy"), "cannot read"),
    "half an array": (lambda tmp: truncated(tmp / "d.npy"), "cannot read"),
    "no zip file": (lambda tmp: with_file(tmp, "d.npz", b"PK\x03\x04 and no more") / "d.npz", "cannot read"),
    "several arrays": (lambda tmp: several(tmp / "d.npz"), "several arrays or none (x, y)"),
    "whole numbers of another type": (lambda tmp: save(tmp / "d.npy", np.arange(24).reshape(12, 2)), "int64 numbers"),
    "complex numbers": (lambda tmp: save(tmp / "d.npy", np.ones((12, 2), complex)), "complex128 numbers"),
    "text": (lambda tmp: save(tmp / "d.npy", np.array([["a", "b"]] * 12)), "<U1 numbers"),
    "channels first": (lambda tmp: save(tmp / "d.npy", np.zeros((12, 3, 6, 6), np.uint8)), "has shape [12, 3, 6, 6]"),
    "a list of numbers": (lambda tmp: save(tmp / "d.npy", RANDOM.random(12)), "has shape [12]"),
    "float pictures": (lambda tmp: save(tmp / "d.npy", RANDOM.random((12, 6, 6))), "points and bits are [N, D]"),
    "no coordinates": (lambda tmp: save(tmp / "d.npy", RANDOM.random((12, 0))), "has shape [12, 0]"),
    "no pixels": (lambda tmp: save(tmp / "d.npy", grey(12, 0, 5)), "has shape [12, 0, 5]"),
    "NaN": (lambda tmp: save(tmp / "d.npy", not_finite(np.nan)), "1 numbers that are not finite, the first in row 13"),
    "infinity": (lambda tmp: save(tmp / "d.npy", not_finite(np.inf)), "the first in row 13"),
    "whole numbers as floats": (lambda tmp: save(tmp / "d.npy", np.eye(12)), "save zeros and ones as bool"),
    "a size for points": (lambda tmp: save(tmp / "d.npy", RANDOM.random((12, 2))), "holds no pictures", 8),
    "constant pictures": (lambda tmp: save(tmp / "d.npy", np.full((12, 5, 5), 7, np.uint8)), "are the same"),
    "constant bits": (lambda tmp: save(tmp / "d.npy", np.ones((12, 5), bool)), "are the same"),
    "a constant coordinate": (lambda tmp: save(tmp / "d.npy", constant_column()), "is constant"),
    "dependent coordinates": (lambda tmp: save(tmp / "d.npy", dependent()), "span 2 of 3 dimensions"),
    "fewer points than coordinates": (lambda tmp: save(tmp / "d.npy", RANDOM.random((12, 10))), "span 9 of 10"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_is_wrong_with_the_data_is_said_by_its_name(mistake, tmp_path):
    make, expected, *size = REFUSED[mistake]
    path = make(tmp_path)
    with pytest.raises(UserError) as refusal:
        choose(path, *size)
    message = str(refusal.value)
    assert expected in message and str(path) in message and "\n" not in message and len(message) < 300 + len(str(path))


def test_a_folder_lists_its_pictures_by_name(tmp_path):
    save_pictures(tmp_path, grey(3), ".jpeg")
    assert [path.name for path in list_pictures(tmp_path)] == ["00.jpeg", "01.jpeg", "02.jpeg"]
