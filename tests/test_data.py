"""The data: moments by dense numerical averages against the closed forms that the module uses."""

import gzip
import hashlib
import io
import math
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.integrate import cumulative_trapezoid, quad
from sklearn import datasets
from torch import Generator

from dpm.data import sets, synthetic
from dpm.data.images import ImageDataset, decode_pictures, extract_patches, standardize
from dpm.data.sets import (
    BARK,
    load_bark,
    load_bark_photographs,
    load_cifar10,
    load_digits,
    load_mnist,
    load_mnist_validation,
)
from dpm.data.synthetic import (
    ROLL_NOISE,
    dead_leaves,
    heartbeat,
    heartbeat_sequences,
    power_law_radii,
    sample_disks,
    swiss_roll,
    swiss_roll_curve,
    swiss_roll_points,
)
from dpm.errors import UserError


def midpoints(count):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def raw_spiral(u):
    """As scikit-learn's make_swiss_roll: t = 1.5π(1+2u), (t cos t, t sin t)."""
    t = [1.5 * math.pi * (1 + 2 * v) for v in u.tolist()]
    return torch.tensor([[a * math.cos(a), a * math.sin(a)] for a in t], dtype=torch.float64)


def test_roll_curve_has_mean_0_and_variance_1():
    """By a midpoint sum of 400 000 points: mean 0 in each coordinate, 1 the mean variance of the two."""
    x = swiss_roll_curve(midpoints(400_000))
    assert x.shape == (400_000, 2) and x.dtype == torch.float64
    assert x.mean(0).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert float(x.square().mean()) == pytest.approx(1, abs=1e-9)


def test_roll_curve_is_the_spiral_moved_and_scaled_by_one_constant():
    u = torch.tensor([0, 0.1, 0.35, 0.5, 0.8, 1.0], dtype=torch.float64)
    x, raw = swiss_roll_curve(u), raw_spiral(u)
    dense = raw_spiral(midpoints(20_000))
    scale = float((dense - dense.mean(0)).square().mean().sqrt())
    assert torch.allclose(x - x[0], (raw - raw[0]) / scale, atol=1e-6, rtol=0)


@pytest.mark.parametrize("noise", [0.0, ROLL_NOISE, 0.3])
def test_swiss_roll_is_the_curve_and_noise_of_total_variance_1(noise):
    """E x² = (1−noise²)·1 + noise², within 5 standard errors; the noise is N(0, noise²) by Kolmogorov-Smirnov."""
    n = 20_000
    x, again = (swiss_roll(n, Generator().manual_seed(0), noise) for _ in range(2))
    assert x.shape == (n, 2) and x.dtype == torch.float64 and torch.equal(x, again)
    square = x.square().mean(1)
    assert float(square.mean()) == pytest.approx(1, abs=5 * float(square.std()) / math.sqrt(n))
    on_curve = swiss_roll(n, Generator().manual_seed(0), 0.0)  # the same points, no noise
    added = x - math.sqrt(1 - noise**2) * on_curve
    if noise:
        assert stats.kstest((added / noise).flatten().numpy(), "norm").pvalue > 1e-3
    else:
        assert not added.any()
    dense = swiss_roll_curve(midpoints(20_000))
    assert float(torch.cdist(on_curve[:50], dense).min(1).values.max()) < 1e-3


def test_swiss_roll_draws_points_of_the_curve_uniformly():
    on_curve = swiss_roll(4_000, Generator().manual_seed(3), 0.0)
    nearest = torch.cdist(on_curve, swiss_roll_curve(midpoints(2_000))).argmin(1)
    assert stats.kstest((nearest.numpy() + 0.5) / 2_000, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("noise", [0.0, ROLL_NOISE, 0.3])
def test_roll_points_are_midpoints_of_the_curve_inside_the_roll(noise):
    points = swiss_roll_points(7, noise)
    u = torch.tensor([1, 3, 5, 7, 9, 11, 13], dtype=torch.float64) / 14
    assert torch.allclose(points, math.sqrt(1 - noise**2) * swiss_roll_curve(u), atol=1e-14, rtol=0)
    dense = swiss_roll_points(200_000, noise)
    assert float(dense.square().mean()) == pytest.approx(1 - noise**2, abs=1e-8)  # the noise adds the rest


def test_there_are_exactly_five_heartbeats_of_mean_activity_one_fifth():
    """D.1.2: 20 bits, a 1 every 5th bin."""
    sequences = heartbeat_sequences()
    naive = {tuple(float(i % 5 == phase) for i in range(20)) for phase in range(5)}
    assert sequences.shape == (5, 20) and sequences.dtype == torch.float64
    assert {tuple(s) for s in sequences.tolist()} == naive and len(naive) == 5
    assert sequences.mean(1).tolist() == [0.2] * 5 and sequences.mean(0).tolist() == pytest.approx([0.2] * 20)


def test_heartbeats_have_uniform_phases():
    x, again = (heartbeat(10_000, Generator().manual_seed(0)) for _ in range(2))
    assert x.shape == (10_000, 20) and torch.equal(x, again)
    same = (x[:, None] == heartbeat_sequences()).all(-1)
    assert bool((same.sum(1) == 1).all())
    assert stats.chisquare(same.sum(0).numpy()).pvalue > 1e-3
    assert float(x.mean()) == pytest.approx(0.2, abs=1e-12)


def test_heartbeats_of_another_length_and_period():
    x = heartbeat(100, Generator().manual_seed(0), length=6, period=3)
    assert {tuple(s) for s in x.tolist()} == {(1, 0, 0) * 2, (0, 1, 0) * 2, (0, 0, 1) * 2}


# Images


def pixels(*shape, levels=200, seed=0):
    return torch.randint(levels, shape, generator=Generator().manual_seed(seed)).to(torch.uint8)


def test_digits_are_all_of_scikit_learns_in_order():
    data, raw = load_digits(), torch.tensor(datasets.load_digits().images)
    assert data.train.shape == (1100, 1, 8, 8) and data.test.shape == (697, 1, 8, 8)
    assert torch.equal(torch.cat([data.train, data.test])[:, 0].double(), raw)
    assert data.train.dtype == torch.uint8 and (int(raw.min()), int(raw.max())) == (0, 16)


def test_digits_held_out_are_of_every_kind_and_none_is_a_training_image():
    data, kinds = load_digits(), torch.tensor(datasets.load_digits().target)[1100:]
    assert int(kinds.bincount(minlength=10).min()) >= 25
    assert float(torch.cdist(data.train.flatten(1).double(), data.test.flatten(1).double()).min()) > 0


@pytest.mark.parametrize("data", [load_digits(), standardize(pixels(40, 3, 4, 4), pixels(5, 3, 4, 4, seed=1))])
def test_standardised_data_have_mean_0_and_variance_1_with_noise_of_one_level(data):
    """The mean over u of each pixel's first and second power, by Gauss-Legendre's two points, exact for squares."""
    level = data.train.double()
    nodes = [level + 0.5 - math.sqrt(1 / 12), level + 0.5 + math.sqrt(1 / 12)]
    x = torch.stack([(node - data.shift) / data.scale for node in nodes])
    assert float(x.mean()) == pytest.approx(0, abs=1e-12)
    assert float(x.square().mean()) == pytest.approx(1, abs=1e-12)


def test_dequantisation_noise_fills_exactly_one_level_evenly():
    data = load_digits()
    x = data.held_out_data(Generator().manual_seed(0))
    noise = (x * data.scale + data.shift - data.test).flatten()
    assert x.shape == (697, 1, 8, 8) and x.dtype == torch.float64
    assert stats.kstest(noise.numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(data.to_levels(x), data.test.long())
    assert not torch.equal(x, data.held_out_data(Generator().manual_seed(1)))
    assert torch.equal(x, data.held_out_data(Generator().manual_seed(0)))


def test_levels_of_samples_outside_the_data_stay_outside():
    data = load_digits()
    x = (torch.tensor([-0.5, 0.0, 0.99, 16.5, 17.5], dtype=torch.float64) - data.shift) / data.scale + 1e-9
    assert data.to_levels(x).tolist() == [-1, 0, 0, 16, 17]


def test_draws_are_training_images_each_equally_often_with_fresh_noise():
    train = torch.arange(6, dtype=torch.uint8).repeat_interleave(8).view(6, 2, 2, 2) * 9
    data = standardize(train, train[:1])
    x, again = (data.draw(6000, Generator().manual_seed(0)) for _ in range(2))
    assert x.shape == (6000, 2, 2, 2) and x.dtype == torch.float64 and torch.equal(x, again)
    level = data.to_levels(x)
    assert bool((level == level[:, :1, :1, :1]).all())
    assert stats.chisquare((level[:, 0, 0, 0] // 9).bincount(minlength=6).numpy()).pvalue > 1e-3
    assert len(x.unique()) == x.numel()


# Images that are downloaded

CPU = torch.device("cpu")
DOWNLOADED = [load_mnist, load_mnist_validation, load_cifar10, load_bark, load_bark_photographs]


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A folder of our own as DPM_DATA, an empty cache, no network."""
    monkeypatch.setenv("DPM_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    for name in ("MNIST", "CIFAR10"):
        monkeypatch.setattr(sets, name, "http://127.0.0.1:1/")
    (tmp_path / "data").mkdir()
    for load in DOWNLOADED:
        load.cache_clear()
    yield tmp_path / "data"
    for load in DOWNLOADED:
        load.cache_clear()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def sha256(*contents):
    return hashlib.sha256(b"".join(contents)).hexdigest()


def jpeg(picture):
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_mnist_is_read_past_the_header_and_split(data_folder, monkeypatch):
    """60 000 training images, each of one grey, its number modulo 251: the first 50 000, then the validation set."""
    numbers = (torch.arange(60_000) % 251).to(torch.uint8)
    test = pixels(7, 1, 28, 28)
    for part, images in (("train", numbers.repeat_interleave(784)), ("t10k", test)):
        content = b"IDX header, 16 b" + images.numpy().tobytes()
        put(data_folder / "mnist" / f"{part}-images-idx3-ubyte.gz", gzip.compress(content, 1))
        monkeypatch.setattr(sets, {"train": "MNIST_TRAIN", "t10k": "MNIST_TEST"}[part], sha256(content))
    data, validation = load_mnist(CPU), load_mnist_validation(CPU)
    assert data.train.shape == (50_000, 1, 28, 28) and validation.shape == (10_000, 1, 28, 28)
    greys = torch.cat([data.train, validation])
    assert torch.equal(greys.amin((1, 2, 3)), numbers) and torch.equal(greys.amax((1, 2, 3)), numbers)
    assert torch.equal(data.test, test) and data.test.dtype == data.train.dtype == torch.uint8
    assert data.shift == pytest.approx(float(numbers[:50_000].double().mean()) + 0.5, abs=1e-9)  # no validation in it
    assert load_mnist(CPU) is data and data.label == ""


def cifar10_records(pictures):
    classes = torch.arange(len(pictures), dtype=torch.uint8)[:, None]
    return torch.cat([classes, pictures.flatten(1)], dim=1).numpy().tobytes()


def test_cifar10_is_read_from_the_binary_archive(data_folder, monkeypatch):
    """Also with the mirror beside it."""
    train, test = pixels(10, 3, 32, 32), pixels(2, 3, 32, 32, seed=1)
    batches = {f"data_batch_{i + 1}": cifar10_records(train[2 * i : 2 * i + 2]) for i in range(5)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in {"test_batch": cifar10_records(test), **dict(reversed(batches.items()))}.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    put(data_folder / "cifar10" / "cifar-10-binary.tar.gz", packed.getvalue())
    (data_folder / "cifar10-jpeg").mkdir()
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz: its content has SHA-256"):
        load_cifar10(CPU)
    monkeypatch.setattr(sets, "CIFAR10_PACKED", sha256(packed.getvalue()))
    data = load_cifar10(CPU)
    assert torch.equal(data.train, train) and torch.equal(data.test, test) and data.label == ""


def test_the_jpeg_mirror_of_cifar10_says_so(data_folder, monkeypatch):
    """One image a class, of one colour each, so that JPEG hardly changes it."""
    colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200]], dtype=torch.uint8)
    train = colours[:, :, None, None].expand(3, 3, 32, 32)
    for part, images, constant in (("train", train, "MIRROR_TRAIN"), ("test", train[:2], "MIRROR_TEST")):
        files = [jpeg(image) for image in images]
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for kind, file in zip("abc", files):  # noqa: B905
                archive.writestr(f"{part}/{kind}/0000.jpg", file)
        put(data_folder / "cifar10-jpeg" / f"{part}.zip", packed.getvalue())
        monkeypatch.setattr(sets, constant, sha256(*files))
    data = load_cifar10(CPU)
    assert data.train.shape == (3, 3, 32, 32) and data.test.shape == (2, 3, 32, 32)
    assert int((data.train.int() - train.int()).abs().max()) <= 3
    assert data.label == "JPEG mirror, not comparable"
    (data_folder / "cifar10-jpeg" / "test.zip").unlink()
    load_cifar10.cache_clear()
    with pytest.raises(
        UserError, match=r"^cannot use [^\n]*test.zip: No such file or directory; put a whole copy there"
    ):
        load_cifar10(CPU)


def test_bark_holds_out_the_last_fifth_of_each_species(data_folder, monkeypatch):
    """Ten photographs a species, each of one grey: the last two are held out."""
    files, greys = [], {}
    for s, species in enumerate(BARK):
        for i in range(10):
            level = 6 * (10 * s + i)
            files.append(jpeg(torch.full((3, 404, 303), level, dtype=torch.uint8)))
            put(data_folder / "bark" / species / f"IMG_{i}.JPG", files[-1])
            greys.setdefault(i >= 8, []).append(level)
    with pytest.raises(
        UserError, match=r"^cannot use [^\n]*bark: its content [^\n]*; put whole copies of cananga_odorata"
    ):
        load_bark(CPU)
    monkeypatch.setattr(sets, "BARK_SHA256", sha256(*files))
    train, test = load_bark_photographs(CPU)
    assert train.shape == (32, 1, 404, 303) and test.shape == (8, 1, 404, 303)
    assert train[:, 0, 0, 0].tolist() == greys[False] and test[:, 0, 0, 0].tolist() == greys[True]
    data = load_bark(CPU)
    assert data.train[::24, 0, 0, 0].tolist() == greys[False] and data.test[::24, 0, 0, 0].tolist() == greys[True]
    assert data.train.shape == (768, 1, 64, 64) and data.test.dtype == torch.uint8
    assert data.mean_per_photograph(data.test[:, 0, 0, 0].double()).tolist() == greys[True]
    (data_folder / "bark" / BARK[2] / "IMG_3.JPG").unlink()
    load_bark_photographs.cache_clear()
    with pytest.raises(UserError, match="its content has SHA-256"):
        load_bark_photographs(CPU)


def test_grey_is_the_luma_of_itu_r_601():
    colours = pixels(3, 8, 9, levels=256)
    file = io.BytesIO()
    Image.fromarray(colours.permute(1, 2, 0).numpy()).save(file, "PNG")  # keeps every level
    grey, colour = decode_pictures([file.getvalue()], "L"), decode_pictures([file.getvalue()] * 2, "RGB")
    assert torch.equal(colour[1], colours) and grey.shape == (1, 1, 8, 9)
    luma = torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), colours.float(), dims=1)
    assert float((grey[0, 0] - luma).abs().max()) < 0.51


@pytest.mark.parametrize(("height", "width", "size"), [(13, 10, 4), (8, 8, 8), (404, 303, 64)])
def test_patches_tile_the_middle_of_each_photograph(height, width, size):
    photographs = pixels(2, 1, height, width)
    squares = extract_patches(photographs, size)
    rows, columns = height // size, width // size
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    naive = [
        photographs[n, :, top + size * r :, left + size * c :][:, :size, :size]
        for n in range(2)
        for r in range(rows)
        for c in range(columns)
    ]
    assert torch.equal(squares, torch.stack(naive))


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_mnist, "mnist/train-images-idx3-ubyte.gz"),
        (load_cifar10, "cifar10/cifar-10-binary.tar.gz"),
        (load_bark, "bark/cananga_odorata"),
    ],
)
def test_a_set_that_is_nowhere_is_one_clear_line(data_folder, load, name):
    with pytest.raises(UserError, match=rf"^[^\n]*; [^\n]*set DPM_DATA to a folder that holds {name}[^\n]*$"):
        load(CPU)
    assert not [path for path in data_folder.parent.rglob("*") if path.is_file()]


def needs(name):
    """Skip where DPM_DATA does not hold the real set: tests download nothing."""
    if not (Path(os.environ.get("DPM_DATA") or "/nowhere") / name).exists():
        pytest.skip(f"DPM_DATA holds no {name}")


def test_the_real_mnist():
    """Its mean and standard deviation as known by all, 0.1307 and 0.3081 of 255, are of all 60 000."""
    needs("mnist")
    data, validation = load_mnist(CPU), load_mnist_validation(CPU)
    assert data.train.shape == (50_000, 1, 28, 28) and data.test.shape == (10_000, 1, 28, 28)
    share = torch.cat([data.train, validation]).double() / 255
    assert (float(share.mean()), float(share.std())) == pytest.approx((0.1307, 0.3081), abs=5e-5)
    assert (data.shift, data.scale) == pytest.approx((33.895, 78.667), abs=1e-3)


def test_the_real_cifar10():
    """Its channel means as known by all: 0.4914, 0.4822, 0.4465 of 255."""
    needs("cifar10/cifar-10-binary.tar.gz")
    data = load_cifar10(CPU)
    assert data.train.shape == (50_000, 3, 32, 32) and data.test.shape == (10_000, 3, 32, 32) and data.label == ""
    assert (data.train.double().mean((0, 2, 3)) / 255).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


def test_the_jpeg_mirror_at_hand():
    """JPEG leaves the mean colours nearly as they were; every tenth image is of one class."""
    needs("cifar10-jpeg")
    if (Path(os.environ["DPM_DATA"]) / "cifar10" / "cifar-10-binary.tar.gz").exists():
        pytest.skip("DPM_DATA holds the real CIFAR-10, which comes first")
    data = load_cifar10(CPU)
    assert data.train.shape == (50_000, 3, 32, 32) and data.test.shape == (10_000, 3, 32, 32)
    means = torch.stack([data.train[i::10].float().mean((0, 2, 3)) for i in range(10)]) / 255
    assert means.mean(0).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)
    assert float(means[:, 2].max() - means[:, 2].min()) > 0.1  # the sky behind aeroplanes, the grass under frogs
    assert data.label == "JPEG mirror, not comparable"


def test_the_real_bark():
    """No photograph is on both sides; neighbours by name are more alike than others: why the last fifth is held out."""
    needs("bark")
    train, test = load_bark_photographs(CPU)
    assert train.shape == (333, 1, 404, 303) and test.shape == (81, 1, 404, 303)
    assert load_bark(CPU).train.shape == (7992, 1, 64, 64) and load_bark(CPU).test.shape == (1944, 1, 64, 64)
    thumbs = torch.nn.functional.avg_pool2d(train[-78:].double(), 10).flatten(1)  # one species
    thumbs = (thumbs - thumbs.mean(1, keepdim=True)) / thumbs.std(1, keepdim=True)
    alike = thumbs @ thumbs.T / thumbs.shape[1]
    assert float(alike.diagonal(1).mean()) > 0.3 > 0.2 > float(alike.diagonal(20).mean())


# Dead leaves


@pytest.mark.parametrize("power", [1, 2, 3])
def test_power_law_is_the_density_it_names(power):
    u = torch.rand(20_000, generator=Generator().manual_seed(power), dtype=torch.float64)
    table = np.linspace(0.5, 9, 2001)
    shares = cumulative_trapezoid(table**-power, table, initial=0)
    r = power_law_radii(u, power, 0.5, 9.0)
    assert stats.kstest(r.numpy(), lambda v: np.interp(v, table, shares / shares[-1])).pvalue > 1e-3
    ends = power_law_radii(torch.tensor([0.0, 1.0], dtype=torch.float64), power, 0.5, 9.0)
    assert ends.tolist() == pytest.approx([0.5, 9.0])


def test_radii_of_leaves_centred_in_the_window_have_density_r_to_the_minus_3():
    """The dead leaves of Table 2. Of all that can touch, those centred inside are the plane's own, of
    P(R < r) = (a⁻² − r⁻²)/(a⁻² − b⁻²)."""
    size, a, b = 6, 1.0, 16.0
    r, y, x = sample_disks((100_000,), size, a, b, Generator().manual_seed(0))
    inside = (y > 0) & (y < size) & (x > 0) & (x < size)
    assert int(inside.sum()) > 20_000
    cdf = lambda v: (a**-2 - v**-2) / (a**-2 - b**-2)  # noqa: E731
    assert stats.kstest(r[inside].numpy(), cdf).pvalue > 1e-3
    for place in (y, x):
        assert stats.kstest(place[inside].numpy() / size, "uniform").pvalue > 1e-3
        assert stats.kstest(((place + r) / (size + 2 * r)).numpy(), "uniform").pvalue > 1e-3


def test_dead_leaves_are_the_first_disk_over_each_pixel(monkeypatch):
    """The same disks, written down and laid one by one from back to front."""
    laid = []

    def noted(*arguments):
        laid.append(sample_disks(*arguments))
        return laid[-1]

    monkeypatch.setattr(synthetic, "sample_disks", noted)
    images = dead_leaves(3, 16, Generator().manual_seed(4), 1.0, 8.0)
    assert images.shape == (3, 1, 16, 16) and images.dtype == torch.uint8
    r, y, x = torch.cat(laid, dim=2).tolist()
    for i in range(3):
        top = [[-1] * 16 for _ in range(16)]
        for k in reversed(range(len(r[i]))):
            for row in range(16):
                for column in range(16):
                    if (row + 0.5 - y[i][k]) ** 2 + (column + 0.5 - x[i][k]) ** 2 < r[i][k] ** 2:
                        top[row][column] = k
        grey = {}
        for row in range(16):
            for column in range(16):
                assert top[row][column] >= 0  # no pixel is empty
                grey.setdefault(top[row][column], set()).add(int(images[i, 0, row, column]))
        assert all(len(greys) == 1 for greys in grey.values()) and len(grey) > 10


def overlap(d, a, b):
    """Mean area, up to a factor, in which a disk of density ∝ r⁻³ meets itself moved by d."""

    def lens(r):
        return 2 * r**2 * math.acos(d / (2 * r)) - d / 2 * math.sqrt(4 * r**2 - d**2) if d < 2 * r else 0.0

    return quad(lambda r: lens(r) * r**-3, max(a, d / 2), b, limit=200)[0]


def variogram(images, lag):
    """Mean of half the squared difference along rows and columns, in units of the greys' variance: [n]."""
    x = images[:, 0].double()
    squares = [(x[:, lag:] - x[:, :-lag]).square(), (x[:, :, lag:] - x[:, :, :-lag]).square()]
    return torch.stack([s.mean((1, 2)) for s in squares]).mean(0) / 2 / ((256**2 - 1) / 12)


@pytest.mark.parametrize(("a", "b"), [(1.0, 16.0), (2.0, 8.0)])
def test_dead_leaves_have_the_covariance_of_an_endless_plane_of_them(a, b):
    """Two points share a leaf with chance γ(d)/(2γ(0) − γ(d)), γ the mean overlap: 5 standard errors, every lag."""
    images = dead_leaves(600, 16, Generator().manual_seed(0), a, b)
    for lag in (1, 2, 4, 8, 15):
        shared = overlap(lag, a, b)
        expected = 1 - shared / (2 * overlap(0, a, b) - shared)
        found = variogram(images, lag)
        assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / math.sqrt(600))


def test_dead_leaves_look_alike_at_twice_the_size():
    """Cut-offs and distances doubled, every second pixel taken: the same law."""
    small, large = (dead_leaves(500, 16 * k, Generator().manual_seed(k), k, 8.0 * k)[..., ::k, ::k] for k in (1, 2))
    for lag in (1, 3, 9):
        one, two = variogram(small, lag), variogram(large, lag)
        error = math.sqrt((float(one.var()) + float(two.var())) / 500)
        assert float(one.mean()) == pytest.approx(float(two.mean()), abs=5 * error)


def test_a_pixel_of_dead_leaves_is_of_any_grey_equally_often():
    images = dead_leaves(4000, 2, Generator().manual_seed(1), 1.0, 8.0)
    assert stats.chisquare((images[:, 0, 0, 0] // 16).bincount(minlength=16).numpy()).pvalue > 1e-3
    assert int(images.min()) == 0 and int(images.max()) == 255


def test_dead_leaves_repeat_with_their_seed():
    one, same, other = (dead_leaves(3, 16, Generator().manual_seed(s), 1.0, 8.0) for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_noise_on_dead_leaves_is_normal_rounded_and_cut_to_8_bits():
    """The same leaves with and without: away from black and white the difference has variance σ² + 1/12."""
    plain, noisy = (dead_leaves(50, 16, Generator().manual_seed(2), 1.0, 8.0, noise) for noise in (0.0, 4.0))
    middle = (plain > 30) & (plain < 225)
    difference = (noisy.double() - plain.double())[middle]
    n = len(difference)
    assert float(difference.mean()) == pytest.approx(0, abs=5 * 4 / math.sqrt(n))
    assert float(difference.var()) == pytest.approx(16 + 1 / 12, rel=5 * math.sqrt(2 / n))
    assert bool((noisy[plain == 255] > 200).all()) and bool((noisy[plain == 0] < 55).all())  # cut, not wrapped round


def test_dead_leaves_do_not_depend_on_the_default_type():
    draws = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        draws.append(dead_leaves(2, 16, Generator().manual_seed(0), 1, 32, noise=2.0))
    torch.set_default_dtype(torch.float32)
    assert torch.equal(*draws)


def test_patches_of_colour_images_tile_them():
    images = torch.arange(2 * 3 * 5 * 7).view(2, 3, 5, 7)
    expected = [images[n, :, i : i + 2, j : j + 2] for n in (0, 1) for i in (0, 2) for j in (0, 2, 4)]
    assert torch.equal(extract_patches(images, 2), torch.stack(expected))


def test_bark_squares_are_of_all_held_out_photographs(monkeypatch):
    photographs = torch.arange(12).to(torch.uint8)[:, None, None, None].expand(12, 1, 5, 4)
    images = ImageDataset(photographs, photographs, 0.0, 1.0)
    monkeypatch.setattr(sets, "load_bark_photographs", lambda device: (100 + photographs, photographs))
    monkeypatch.setattr(sets, "load_bark", lambda device: images)
    squares = sets.load_bark_squares(Generator(), 3)
    assert squares.shape == (12, 1, 3, 3) and images.to_levels(squares)[:, 0, 0, 0].tolist() == list(range(12))


def test_the_frozen_dead_leaves_are_those_of_the_book_and_other_leaves_are_held_out(monkeypatch):
    asked = []

    def few(n, size, generator, **how):
        asked.append((n, size, how))
        return dead_leaves(4, size, generator, **how)

    monkeypatch.setattr(sets, "dead_leaves", few)
    data = sets.load_dead_leaves.__wrapped__()
    assert asked == [(1500, 64, {"smallest": 1, "largest": 128, "noise": 3.6})] * 2
    assert not (data.train[:, None] == data.test).flatten(2).all(2).any()
