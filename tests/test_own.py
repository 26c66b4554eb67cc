"""Training and measuring on a user's own data: the four kinds by the command, closed forms, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from dpm import baselines, evaluation
from dpm.bound import prior_cross_entropy_gap
from dpm.data.folder import read_data
from dpm.errors import UserError
from dpm.experiments import own
from dpm.experiments.own import RECIPES, choose, n_scales, own_experiment, read_choices, split
from dpm.experiments.registry import build_model
from dpm.experiments.shipped import weights_path
from dpm.files import read_tensors, write_tensors


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """An MCGSM as it starts, of few windows, and few timesteps of pictures: how good they are is checked elsewhere."""
    monkeypatch.setattr(baselines, "fit_mcgsm", lambda mcgsm, windows, generator: mcgsm)
    monkeypatch.setattr(baselines, "MIN_WINDOWS", 100)
    monkeypatch.setattr(evaluation, "N_EVALUATIONS", 200)


def random(seed=0):
    return np.random.default_rng(seed)


def save(path, array):
    np.save(path, array)
    return path


def grey_array(tmp):
    return save(tmp / "grey.npy", random().integers(0, 256, (30, 8, 8), dtype=np.uint8))


def colour_folder(tmp):
    (tmp / "colours").mkdir()
    for k, picture in enumerate(random().integers(0, 256, (20, 12, 16, 3), dtype=np.uint8)):
        Image.fromarray(picture).save(tmp / "colours" / f"{k}.png")
    return tmp / "colours"


def points(tmp):
    return save(tmp / "points.npy", (random().standard_normal((100, 2)) * [2, 5] + [7, 1]).astype(np.float32))


def bits(tmp):
    return save(tmp / "bits.npy", random().random((100, 6)) < 0.3)


KINDS = {  # maker of the data, words of `dpm train`, shape of one sample in x⁰, yardsticks
    "grey pictures": (grey_array, ["--batch", 8], (1, 8, 8), {"mcgsm", "gaussian"}),
    "a folder of colour": (colour_folder, ["--size", 8, "--batch", 8], (3, 8, 8), {"gaussian"}),
    "points": (points, [], (2,), {"gaussian"}),
    "bits": (bits, [], (6,), {"independent"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_data_is_trained_measured_and_sampled(kind, dpm, tmp_path):
    """The weights alone tell `evaluate` and `sample` all that `train` was told; samples can be data again."""
    make, words, shape, yardsticks = KINDS[kind]
    data, run = make(tmp_path), tmp_path / "run"
    status, out, _ = dpm("train", "--data", data, *words, "--T", 8, "--steps", 2, "--out", run, "--json")
    trained = json.loads(out)
    assert status == 0 and trained["experiment"] == data.stem and trained["T"] == 8
    assert {name.removeprefix("K_over_").removesuffix("_bits") for name in trained if "K_over" in name} == {
        name for yardstick in yardsticks for name in (yardstick, f"{yardstick}_stderr")
    }
    n_held_out = len(read_data(data, read_choices(run / "weights.safetensors").size)[1]) // 5
    assert trained["held_out"] == n_held_out and trained["K_stderr_bits"] > 0
    measured = json.loads(dpm("evaluate", "--data", data, "--checkpoint", run / "weights.safetensors", "--json")[1])
    assert {name: value for name, value in measured.items() if name != "provenance"} == {
        name: value for name, value in trained.items() if name != "provenance"
    }
    assert measured["K_minus_L_null_bits"] == measured["K_bits"] - measured["L_null_bits"]
    assert ("bits_per_dimension" in measured) == (len(shape) == 3)
    words = ["--checkpoint", run / "checkpoint.safetensors", "-n", 11, "--json"]
    status, out, _ = dpm("sample", *words, "--out", tmp_path / "again.npy")
    assert status == 0 and json.loads(out)["setting"] == trained["setting"]
    same_kind, again = read_data(tmp_path / "again.npy")
    assert same_kind in kind + " pictures" and again.shape == (11, *shape)
    assert dpm("sample", *words, "--out", tmp_path / "x.png")[0] == 0 and Image.open(tmp_path / "x.png").size[0] > 100
    for command in ("denoise", "inpaint"):
        status, out, err = dpm(command, "--data", data, *words, "--out", tmp_path / f"{command}.png")
        if len(shape) == 3:
            assert status == 0 and json.loads(out)["n"] == n_held_out and (tmp_path / f"{command}.png").exists()
        else:
            assert status == 2 and "has no pictures to restore" in err


@pytest.mark.parametrize(("kind", "network"), [(kind, name) for kind in RECIPES for name in RECIPES[kind]])
def test_every_network_starts_at_the_forward_kernel(kind, network, tmp_path):
    """Where it keeps π, so that K = L_null; on pictures whose sides halve never, once, or more often than is used."""
    shapes = {"pictures": [(1, 9, 7), (3, 16, 6), (1, 64, 64)], "points": [(3,)], "bits": [(60,)]}[kind]
    for shape in shapes:
        samples = {
            "pictures": random().integers(0, 256, (10, *shape[1:], shape[0]), dtype=np.uint8),
            "points": random().random((10, *shape)),
            "bits": random().random((10, *shape)) < 0.2,
        }[kind]
        choices, data = choose(save(tmp_path / "x.npy", samples), network=network, T=6)
        experiment = own_experiment(choices, data)
        assert experiment.kind == kind and experiment.shape == shape
        model, x0 = build_model(experiment.settings[network]), experiment.draw(4, torch.Generator())
        q, t = model.forward_process(), torch.tensor([2, 6, 3, 5])
        p, kernel = model.p(q, x0, t), q.transition(x0, t)
        assert torch.allclose(p.mean, kernel.mean, atol=1e-5) and torch.allclose(p.variance, kernel.variance, atol=1e-5)
        assert torch.allclose(q.beta, experiment.forward_process(6).beta)


def test_the_first_step_blurs_pictures_by_a_fortieth_of_a_level_and_points_by_their_own_bound(tmp_path):
    choices, data = choose(grey_array(tmp_path))
    beta = own_experiment(choices, data).forward_process(50).beta
    assert float(beta[1].sqrt()) * choices.scale[0] == pytest.approx(1 / 40)
    q = own_experiment(*choose(points(tmp_path))).forward_process(50)
    assert q.noise_variance[[1, -1]].tolist() == pytest.approx([1e-5, 0.999])


def test_pictures_are_pooled_as_their_sides_allow():
    sizes = {(28, 28): 3, (32, 32): 4, (64, 64): 4, (8, 8): 2, (6, 6): 1, (9, 16): 1, (16, 9): 1, (16, 20): 3}
    assert {size: n_scales((1, *size), most=4) for size in sizes} == sizes


def test_the_held_out_fifth_is_the_same_in_every_run_and_none_of_it_is_trained_on():
    data = torch.arange(103)
    train, test = split(data, 0)
    assert len(test) == 20 and sorted([*train.tolist(), *test.tolist()]) == data.tolist()
    assert torch.equal(split(data, 0)[1], test) and not torch.equal(split(data, 1)[1], test)
    assert test.tolist() != sorted(test.tolist())  # files are often in the order of their classes


def test_the_moments_of_the_prior_are_those_of_the_training_data(tmp_path):
    """(14) takes the cross entropies to π as constants: their mean over the training data is that, exactly."""
    for make in (points, bits, grey_array):
        choices, data = choose(make(tmp_path))
        experiment, train = own_experiment(choices, data), split(data, 0)[0]
        if choices.kind == "pictures":  # dequantised by every half of a level alike
            images = experiment.images(torch.device("cpu"))
            u = (torch.arange(1000).double() + 0.5) / 1000
            x0 = (train.double().view(-1, 1) + u - images.shift) / images.scale
        else:
            x0 = experiment.vectors.standardize(train)
        gap = prior_cross_entropy_gap(experiment.forward_process(10), x0).mean()
        assert float(gap) == pytest.approx(0, abs=1e-6 * x0[0].numel())


def test_a_folder_has_its_whole_name_wherever_it_is_named_from(tmp_path, monkeypatch):
    folder = colour_folder(tmp_path).rename(tmp_path / "bark.v2")
    monkeypatch.chdir(folder)
    assert choose(Path("."))[0].name == choose(folder)[0].name == "bark.v2"


def test_few_samples_are_not_passed_over_more_than_500_times(tmp_path):
    choices, _ = choose(bits(tmp_path))
    assert own_experiment(choices).settings["mlp"].n_steps == 500 * 80 / 1000
    many, _ = choose(save(tmp_path / "x.npy", random().random((50_000, 2)) < 0.5), batch=10)
    assert own_experiment(many).settings["mlp"].n_steps == RECIPES["bits"]["mlp"].n_steps


@pytest.mark.parametrize(("kind", "network"), [(kind, name) for kind in RECIPES for name in RECIPES[kind]])
def test_what_is_not_chosen_is_the_recipe_s(kind, network, tmp_path):
    make = {"pictures": grey_array, "points": points, "bits": bits}[kind]
    choices, _ = choose(make(tmp_path), network=network)
    recipe, config = RECIPES[kind][network], own_experiment(choices).settings[network]
    assert (choices.T, config.batch, config.learning_rate) == (recipe.T, recipe.batch, recipe.learning_rate)
    assert config.precision == (torch.bfloat16 if kind == "pictures" else torch.float32)


def test_rivals_are_fitted_to_the_training_data(tmp_path, monkeypatch):
    """Points against scipy's normal of them, bits against their counts; pictures as many as have the pixels asked."""
    for make, rival in ((points, "gaussian"), (bits, "independent")):
        choices, data = choose(make(tmp_path))
        experiment, (train, test) = own_experiment(choices, data), split(data, choices.split_seed)
        x, y = ((part.double().numpy() - choices.shift) / choices.scale for part in (train, test))
        if rival == "gaussian":
            by_hand = stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(y)
        else:
            by_hand = stats.bernoulli.logpmf(y, (x.sum(0) + 0.5) / (len(x) + 1)).sum(1)
        found = experiment.yardsticks(torch.tensor(y), torch.Generator())
        assert list(found) == [rival] and np.allclose(found[rival], by_hand)
    monkeypatch.setattr(own, "picture_baselines", lambda train, x0, generator: train)
    monkeypatch.setattr(own, "BASELINE_PIXELS", 7 * 64 - 1)
    choices, data = choose(grey_array(tmp_path))
    experiment = own_experiment(choices, data)
    fitted = experiment.images(torch.device("cpu")).to_levels(experiment.yardsticks(None, torch.Generator()))
    assert torch.equal(fitted, split(data, choices.split_seed)[0][:7].long())


def test_data_of_the_same_bytes_and_another_shape_are_other_data():
    x = torch.arange(24.0)
    assert own.fingerprint(x.view(12, 2)) != own.fingerprint(x.view(6, 4))


# Closed forms


def report(dpm, path, run, *words):
    status, out, err = dpm("train", "--data", path, *words, "--out", run, "--json")
    assert status == 0, err
    return json.loads(out)


def test_K_of_independent_normal_coordinates_is_minus_their_entropy_in_their_own_units(dpm, tmp_path):
    """−Σ log₂(σ_i √(2πe)): the network starts at the exact answer, and a shift and scales must not show."""
    sigma = np.array([1e-3, 2.0, 500.0])
    path = save(tmp_path / "x.npy", random().standard_normal((20_000, 3)) * sigma + [3, -1, 1e4])
    found = report(dpm, path, tmp_path / "run", "--T", 100, "--steps", 1)
    minus_entropy = -np.log2(sigma * math.sqrt(2 * math.pi * math.e)).sum()
    assert found["K_stderr_bits"] < 0.05
    assert found["K_own_units_bits"] == pytest.approx(minus_entropy, abs=4 * found["K_stderr_bits"])
    assert found["gaussian_bits"] - found["scale_bits"] == pytest.approx(minus_entropy, abs=0.08)
    assert abs(found["K_over_gaussian_bits"]) < 4 * found["K_over_gaussian_stderr_bits"] + 0.002


def test_training_nears_the_gaussian_that_correlated_points_are(dpm, tmp_path):
    """ρ = 0.95: an untrained model lacks ½ log₂ 1/(1−ρ²) = 1.68 bits of −H, a trained one half of it at most."""
    rho = 0.95
    z = random().standard_normal((10_000, 2))
    x = np.stack([z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]], axis=1)
    path = save(tmp_path / "x.npy", x)
    minus_entropy = -0.5 * math.log2((2 * math.pi * math.e) ** 2 * (1 - rho**2))
    before = report(dpm, path, tmp_path / "a", "--T", 40, "--steps", 1)
    after = report(dpm, path, tmp_path / "b", "--T", 40, "--steps", 250, "--learning-rate", 0.01)
    lack = -0.5 * math.log2(1 - rho**2)
    assert before["K_over_gaussian_bits"] == pytest.approx(-lack, abs=0.1)
    assert -0.5 * lack < after["K_over_gaussian_bits"] < 4 * after["K_over_gaussian_stderr_bits"]
    assert after["gaussian_bits"] - after["scale_bits"] == pytest.approx(minus_entropy, abs=4 * after["K_stderr_bits"])


def test_K_of_independent_bits_is_minus_their_entropy(dpm, tmp_path):
    """Ten bits of P(1) = 0.3: −10 h(0.3) = −8.81 bits, where an untrained model is exact."""
    path = save(tmp_path / "x.npy", random().random((10_000, 10)) < 0.3)
    found = report(dpm, path, tmp_path / "run", "--T", 20, "--steps", 1)
    entropy = -10 * (0.3 * math.log2(0.3) + 0.7 * math.log2(0.7))
    assert found["K_bits"] == pytest.approx(-entropy, abs=4 * found["K_stderr_bits"] + 0.02)
    assert found["independent_bits"] == pytest.approx(-entropy, abs=4 * found["K_stderr_bits"] + 0.02)
    assert found["K_own_units_bits"] == found["K_bits"] and found["scale_bits"] == 0


def test_K_of_uniform_levels_is_that_of_a_normal_variable_and_above_eight_bits(dpm, tmp_path, monkeypatch):
    """Levels 0…255 alike have 8 bits each; as a normal variable of their variance they cost ½ log₂(2πe 256²/12)."""
    path = save(tmp_path / "x.npy", random().integers(0, 256, (400, 8, 8), dtype=np.uint8))
    monkeypatch.setattr(evaluation, "N_EVALUATIONS", 80 * 60)
    found = report(dpm, path, tmp_path / "run", "--T", 60, "--steps", 1, "--batch", 8)
    as_normal = 0.5 * math.log2(2 * math.pi * math.e * 256**2 / 12)
    assert found["bits_per_dimension"] == pytest.approx(as_normal, abs=4 * found["K_stderr_bits"])
    assert found["bits_per_dimension"] > 8 + 5 * found["K_stderr_bits"]


# One run and another


def test_a_run_is_resumed_without_its_options_and_on_renamed_data(dpm, tmp_path):
    data, run = bits(tmp_path), tmp_path / "run"
    words = ["--out", run, "--json"]
    assert dpm("train", "--data", data, "--T", 7, "--batch", 12, "--learning-rate", 0.01, "--steps", 2, *words)[0] == 0
    data = data.rename(tmp_path / "other.npy")
    status, out, _ = dpm("train", "--data", data, "--steps", 4, "--resume", *words)
    assert status == 0 and json.loads(out)["T"] == 7 and json.loads(out)["experiment"] == "bits"
    choices = read_choices(run / "weights.safetensors")
    assert (choices.T, choices.batch, choices.learning_rate) == (7, 12, 0.01)
    status, _, err = dpm("train", "--data", data, "--steps", 6, "--resume", "--T", 8, *words)
    assert status == 2 and "was begun with T 7, not 8" in err
    assert dpm("train", "--data", data, "--steps", 6, "--resume", "--T", 7, *words)[0] == 0


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_picture_of_own_points_is_in_the_units_of_their_data(dpm, tmp_path, monkeypatch, dimensions):
    """That of `sample` and those of training: the points of the .npy file, and axes that show all of them."""
    drawn = []
    for module in ("sample", "train"):
        monkeypatch.setattr(f"dpm.cli.{module}.to_png", lambda figure: drawn.append(figure) or b"")
    data = random().standard_normal((100, dimensions)) * [300, 5][:dimensions] + [7_000, -1][:dimensions]
    words = ["--T", 5, "--steps", 1, "--sample-every", 1, "--out", tmp_path / "run"]
    assert dpm("train", "--data", save(tmp_path / "x.npy", data), *words)[0] == 0
    for suffix in ("npy", "png"):
        words = ["--checkpoint", tmp_path / "run" / "weights.safetensors", "--out", tmp_path / f"s.{suffix}"]
        assert dpm("sample", *words, "-n", 400)[0] == 0
    assert len(drawn) == 2
    for axes in (figure.axes[0] for figure in drawn):
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert 5_000 < left < 6_800 and 7_200 < right < 9_000
        labels = [axes.get_xlabel(), axes.get_ylabel()][:dimensions]
        assert all("in the data's own units" in label for label in labels)
        assert dimensions == 1 or (-30 < low < -6 and 4 < high < 30)
    if dimensions == 2:
        assert axes.get_aspect() == pytest.approx(300 / 5, rel=0.2)  # a standard deviation is as long across as up
        samples, points = np.load(tmp_path / "s.npy"), drawn[1].axes[0].lines[0].get_xydata()
        assert np.array_equal(points, samples) and left < samples[:, 0].min() and high > samples[:, 1].max()


def test_a_network_goes_on_from_the_weights_of_other_data(dpm, tmp_path):
    first, second = bits(tmp_path), save(tmp_path / "second.npy", random(1).random((80, 6)) < 0.5)
    words = ["--T", 7, "--steps", 1, "--json"]
    assert dpm("train", "--data", first, *words, "--out", tmp_path / "a")[0] == 0
    before = tmp_path / "a" / "weights.safetensors"
    assert dpm("train", "--data", second, *words, "--from", before, "--out", tmp_path / "b")[0] == 0
    a, b = (read_tensors(tmp_path / run / "weights.safetensors")[0] for run in ("a", "b"))
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=1e-3) for name in a)


@pytest.fixture
def trained(dpm, tmp_path):
    """Weights of points, of which every option is as it comes but T."""
    assert dpm("train", "--data", points(tmp_path), "--T", 5, "--steps", 1, "--out", tmp_path / "run", "--json")[0] == 0
    return tmp_path / "run" / "weights.safetensors"


MISTAKES = {
    "an experiment and data": (lambda tmp, f: ["train", "digits", "--data", points(tmp)], "not allowed with argument"),
    "neither": (lambda tmp, f: ["train"], "one of the arguments name --data is required"),
    "nothing to sample": (lambda tmp, f: ["sample"], "name an experiment, or by --checkpoint what"),
    "no checkpoint": (lambda tmp, f: ["evaluate", "--data", points(tmp)], "name an experiment, or by --checkpoint"),
    "other data": (
        lambda tmp, f: ["evaluate", "--data", bits(tmp), "--checkpoint", f],
        "was trained on other data than",
    ),
    "one number changed": (
        lambda tmp, f: [
            "evaluate",
            "--data",
            save(tmp / "y.npy", np.load(tmp / "points.npy") + np.float32(np.eye(100, 2)) * 1e-3),
            "--checkpoint",
            f,
        ],
        "on 100 points of 2, from 'points'",
    ),
    "weights of an experiment": (
        lambda tmp, f: ["evaluate", "--data", points(tmp), "--checkpoint", weights_path("swiss_roll", "best")],
        "holds weights of swiss_roll, not of data of your own",
    ),
    "an experiment's sample from them": (
        lambda tmp, f: ["sample", "swiss_roll", "--setting", "best", "--checkpoint", f],
        "was trained on data of your own, not on swiss_roll",
    ),
    "a setting": (
        lambda tmp, f: ["sample", "--setting", "best", "--checkpoint", f],
        "--setting best is one of a named",
    ),
    "a setting to train": (lambda tmp, f: ["train", "--data", points(tmp), "--setting", "best"], "choose a --network"),
    "a network of another kind": (
        lambda tmp, f: ["train", "--data", points(tmp), "--network", "unet", "--out", tmp / "x"],
        "holds points, for which there is no network 'unet', but mlp and paper",
    ),
    "a choice for an experiment": (
        lambda tmp, f: ["train", "digits", "--learning-rate", "0.1"],
        "--learning-rate is for",
    ),
    "one step": (lambda tmp, f: ["train", "--data", points(tmp), "--T", 1], "no whole number from 2 to 100000"),
    "no learning": (lambda tmp, f: ["train", "--data", points(tmp), "--learning-rate", 0], "'0' is no number above 0"),
    "learning without end": (
        lambda tmp, f: ["train", "--data", points(tmp), "--learning-rate", "inf"],
        "no number above",
    ),
    "an empty batch": (lambda tmp, f: ["train", "--data", points(tmp), "--batch", 0], "no whole number from 1"),
    "broken data": (lambda tmp, f: ["train", "--data", tmp / "none.npy", "--out", tmp / "x"], "no data at"),
    "restored points": (lambda tmp, f: ["denoise", "--data", points(tmp), "--checkpoint", f], "no pictures to restore"),
    "arrays of restorations": (
        lambda tmp, f: ["denoise", "digits", "--out", tmp / "x.npy"],
        "no .png or .safetensors file",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(mistake, dpm, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, expected = MISTAKES[mistake]
    status, out, err = dpm(*words(tmp_path, trained))
    assert status == 2 and out == "" and expected in err and err.startswith("dpm: ") and err.count("\n") == 1
    assert not (tmp_path / "x").exists() and not (tmp_path / "runs").exists()


def test_weights_of_another_version_are_refused(tmp_path, trained):
    for told in ("{", "{}", '{"shape": [2], "kind": "songs"}'):
        write_tensors(tmp_path / "w", {}, {"data": told})
        with pytest.raises(UserError, match="written by another version of dpm"):
            read_choices(tmp_path / "w")
