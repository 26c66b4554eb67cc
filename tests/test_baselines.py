"""The Parzen estimate, the Gaussian of full covariance and the MCGSM, each against another route to its number."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator
from torch.distributions import MultivariateNormal

from dpm import baselines
from dpm.baselines import (
    BANDWIDTHS,
    MCGSM,
    causal_windows,
    fit_full_gaussian,
    fit_mcgsm,
    independent_bits_log_prob,
    largest_patch,
    log_parzen,
    mcgsm_log_prob,
    parzen,
    patch_gaussian_log_prob,
    picture_baselines,
    sample_mcgsm,
)
from dpm.data.images import extract_patches
from dpm.units import mean_and_stderr, to_bits


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


# Parzen estimates


@pytest.mark.parametrize("chunk", [1, 4, 250])
def test_log_parzen_is_a_mean_of_normal_densities_written_out(chunk):
    x, samples, sigma = normal(9, 3), normal(7, 3, seed=1), torch.tensor([0.2, 1.5], dtype=torch.float64)
    found = log_parzen(x, samples, sigma, chunk)
    assert found.shape == (2, 9)
    for k, s in enumerate(sigma.tolist()):
        for i in range(9):
            kernels = [stats.multivariate_normal(mean, s**2 * np.eye(3)).pdf(x[i].numpy()) for mean in samples.numpy()]
            assert float(found[k, i]) == pytest.approx(math.log(np.mean(kernels)), abs=1e-12)


def test_log_parzen_agrees_with_scipy_on_a_line():
    """scipy's width is a factor of the samples' own standard deviation."""
    x, samples = normal(50, 1), normal(40, 1, seed=1)
    other = stats.gaussian_kde(samples[:, 0].numpy(), bw_method=0.3 / float(samples.std()))
    found = log_parzen(x, samples, torch.tensor([0.3]))[0]
    assert found.numpy() == pytest.approx(other.logpdf(x[:, 0].numpy()), abs=1e-6)


def test_log_parzen_of_a_gaussian_is_the_gaussian_widened():
    """Over many samples of N(0, I) the density tends to N(0, (1+σ²) I): within 5 standard errors."""
    x, n, sigma = torch.tensor([[0.0, 0.0], [1.0, -0.5]], dtype=torch.float64), 200_000, 0.5
    found = log_parzen(x, normal(n, 2), torch.tensor([sigma]))[0]

    def peak(variance):  # of two independent coordinates, each N(x; 0, variance)
        return torch.exp(-x.square().sum(1) / (2 * variance)) / (2 * math.pi * variance)

    square = peak(1 + sigma**2 / 2) / (4 * math.pi * sigma**2)  # E of the kernel's square
    error = (square / peak(1 + sigma**2) ** 2 - 1).sqrt() / math.sqrt(n)
    assert bool(((found - peak(1 + sigma**2).log()).abs() < 5 * error).all())
    assert float(error.max()) < 0.005


def test_log_parzen_keeps_its_digits_far_from_zero_and_in_float32():
    """A shift of images and samples changes nothing; a sample's own density is its kernel's peak."""
    x, samples, sigma = normal(5, 784), normal(6, 784, seed=1), torch.tensor([0.1])
    near, far = log_parzen(x, samples, sigma), log_parzen(x + 50, samples + 50, sigma)
    assert far.numpy() == pytest.approx(near.numpy(), rel=1e-9)
    single = samples.float()
    peak = -784 * math.log(0.1 * math.sqrt(2 * math.pi)) - math.log(6)
    assert log_parzen(single, single, sigma.double())[0].tolist() == pytest.approx([peak] * 6, abs=1e-3)


def test_parzen_takes_the_bandwidth_that_validation_likes_best():
    """Samples of N(0, 0.5² I): validation data of other spreads want other bandwidths, whatever the test data are."""
    samples, test = 0.5 * normal(300, 4), normal(50, 4, seed=1)
    chosen = []
    for spread in (0.5, 0.8, 3.0):
        validation = spread * normal(200, 4, seed=2)
        sigma, values = parzen(samples, validation, test)
        means = [float(log_parzen(validation, samples, s[None]).mean()) for s in BANDWIDTHS]
        assert sigma == float(BANDWIDTHS[int(np.argmax(means))])
        assert torch.equal(values, log_parzen(test, samples, torch.tensor([sigma], dtype=torch.float64))[0])
        chosen.append(sigma)
    assert chosen[0] < chosen[1] < chosen[2] == 1


def test_the_published_bandwidths():
    assert len(BANDWIDTHS) == 10
    assert BANDWIDTHS[[0, 2, 9]].tolist() == pytest.approx([0.1, 10 ** (-7 / 9), 1])


# Patches and their Gaussian


def test_full_gaussian_has_the_density_written_out():
    x, y = normal(40, 1, 2, 2) @ normal(2, 2, seed=1) + 3, normal(6, 4, seed=2)
    flat = x.reshape(40, 4).numpy()
    centred = flat - flat.mean(0)
    law = stats.multivariate_normal(flat.mean(0), centred.T @ centred / 40)
    assert fit_full_gaussian(x).log_prob(y).numpy() == pytest.approx(law.logpdf(y.numpy()), abs=1e-10)
    law = stats.norm(flat[:, 0].mean(), flat[:, 0].std())  # of one coordinate
    found = fit_full_gaussian(x.view(40, 4)[:, :1]).log_prob(y[:, :1])
    assert found.numpy() == pytest.approx(law.logpdf(y[:, 0].numpy()), abs=1e-10)


def test_full_gaussian_is_the_likeliest():
    """On its own data its mean log density is minus its entropy, and every nearby Gaussian's is less."""
    x = normal(60, 3) @ normal(3, 3, seed=1)
    best = fit_full_gaussian(x)
    top = float(best.log_prob(x).mean())
    assert top == pytest.approx(-float(best.entropy()), abs=1e-12)
    for factor in (0.98, 1.02):
        assert float(MultivariateNormal(best.mean, factor * best.covariance_matrix).log_prob(x).mean()) < top
        assert float(MultivariateNormal(best.mean + factor / 50, best.covariance_matrix).log_prob(x).mean()) < top


# MCGSM


def gaussian_field(n, size, rho, seed=0):
    """Images of covariance ρ^(|rows apart| + |columns apart|), [n, 1, size, size]."""
    lag = torch.arange(size, dtype=torch.float64)
    root = torch.linalg.cholesky(rho ** (lag[:, None] - lag).abs())
    return root @ normal(n, 1, size, size, seed=seed) @ root.T


def new_mcgsm(windows, seed=0, **sizes):
    return MCGSM(windows, Generator().manual_seed(seed), **sizes)


def test_causal_windows_are_the_pixels_before():
    images = torch.arange(2 * 6 * 7, dtype=torch.float64).view(2, 1, 6, 7)
    found = causal_windows(images, above=2, width=5)
    assert found.shape == (2, (6 - 2) * (7 - 4), 13)
    expected = []
    for row in range(2, 6):
        for column in range(2, 5):
            over = images[1, 0, row - 2 : row, column - 2 : column + 3].flatten()
            expected.append(torch.cat([over, images[1, 0, row, column - 2 : column + 1]]))
    assert torch.equal(found[1], torch.stack(expected))


def test_mcgsm_is_the_mixture_written_out():
    windows = normal(30, 4) @ normal(4, 4, seed=1) + 2
    model = new_mcgsm(windows, components=3, scales=2, features=5)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(windows.T.numpy())), (windows - windows.mean(0)).T.numpy()).T
    a, b, beta, alpha, eta = (p.detach().numpy() for p in (model.a, model.b, model.beta, model.alpha, model.eta))
    for row, value in zip(white, model(windows).tolist(), strict=True):
        h, x = np.array([*row[:3], 1.0]), row[3]
        above = below = 0.0
        for c in range(3):
            K = sum(beta[c, m] ** 2 * np.outer(b[m], b[m]) for m in range(5))
            for s in range(2):
                prior = math.exp(eta[c, s] - math.exp(alpha[c, s]) / 2 * (h @ K @ h))
                below += prior
                above += prior * stats.norm(a[c] @ h, math.exp(-alpha[c, s] / 2)).pdf(x)
        scale = np.linalg.cholesky(np.cov(windows.T.numpy()))[-1, -1]
        assert value == pytest.approx(math.log(above / below / scale), abs=1e-10)


def test_mcgsm_integrates_to_one_over_the_pixel():
    windows = normal(500, 5) @ normal(5, 5, seed=1)
    model = new_mcgsm(windows, components=4, scales=3, features=6)
    place = torch.linspace(-400, 400, 80_001, dtype=torch.float64)
    for row in windows[:4]:
        line = torch.cat([row[:-1].expand(len(place), -1), place[:, None]], dim=1)
        assert float(torch.trapezoid(model(line).detach().exp(), place)) == pytest.approx(1, abs=1e-6)


def test_mcgsm_holds_the_conditional_of_a_gaussian_scale_mixture():
    """Windows N(0, s²C), s one of two: log p(x|h) by the model's formula and as joint density over that of h."""
    mix, spread = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.4, 1.7], dtype=torch.float64)
    root = normal(4, 4, seed=1).tril()
    root.diagonal().abs_().add_(0.5)
    windows = normal(50, 4, seed=2) @ root.T
    model = new_mcgsm(windows, components=1, scales=2, features=3)
    model.mean.zero_()
    model.root.copy_(root)
    with torch.no_grad():
        model.a.zero_()
        model.b.copy_(torch.eye(3, 4))
        model.beta.fill_(1)
        model.alpha.copy_(-2 * spread.log()[None])
        model.eta.copy_((mix.log() - 3 * spread.log())[None])

    def joint(x, root):
        zero = torch.zeros(len(root), dtype=torch.float64)
        each = [MultivariateNormal(zero, scale_tril=s * root).log_prob(x) for s in spread]
        return (torch.stack(each) + mix.log()[:, None]).logsumexp(0)

    expected = joint(windows, root) - joint(windows[:, :-1], root[:-1, :-1])
    assert model(windows).tolist() == pytest.approx(expected.tolist(), abs=1e-10)


@pytest.mark.slow
def test_fitted_mcgsm_learns_a_gaussian_scale_mixture():
    """To within 0.01 bits of the truth on fresh windows; one Gaussian is 0.2 short of it."""
    root = 0.9 ** (torch.arange(4.0).double()[:, None] - torch.arange(4.0)).abs()
    root, n = torch.linalg.cholesky(root), 40_000
    spread = torch.where(
        torch.rand(n, generator=Generator().manual_seed(3), dtype=torch.float64) < 0.5, 0.2, 1.4
    ).double()
    windows = spread[:, None] * (normal(n, 4, seed=2) @ root.T)

    def log_joint(x, root):
        zero = torch.zeros(len(root), dtype=torch.float64)
        each = [MultivariateNormal(zero, scale_tril=s * root).log_prob(x) for s in (0.2, 1.4)]
        return torch.stack(each).logsumexp(0)

    train, test = windows[: n // 2], windows[n // 2 :]
    truth = float((log_joint(test, root) - log_joint(test[:, :-1], root[:-1, :-1])).mean())
    model = new_mcgsm(train, components=2, scales=3, features=6)
    fit_mcgsm(model, train, Generator().manual_seed(1), n_steps=1500, batch=1000)
    found = float(model(test).detach().mean())
    gaussian = fit_full_gaussian(train)
    one = gaussian.log_prob(test) - fit_full_gaussian(train[:, :-1]).log_prob(test[:, :-1])
    assert truth - 0.01 * math.log(2) < found < truth + 0.005
    assert float(one.mean()) < truth - 0.2 * math.log(2)


def test_fitted_mcgsm_reaches_the_entropy_rate_of_a_gaussian_field():
    """x_ij given all before it is N(·, (1−ρ²)²): held-out bits per pixel within 0.01 and 5 standard errors."""
    rho = 0.8
    train, test = gaussian_field(60, 24, rho), gaussian_field(200, 24, rho, seed=1)
    windows = causal_windows(train).flatten(0, 1)
    model = new_mcgsm(windows, components=2, scales=2, features=8)
    fit_mcgsm(model, windows, Generator().manual_seed(1), n_steps=400, batch=1000)
    bits, error = mean_and_stderr(to_bits(mcgsm_log_prob(model, test)))
    truth = -0.5 * math.log2(2 * math.pi * math.e * (1 - rho**2) ** 2)
    assert bits == pytest.approx(truth, abs=0.01 + 5 * error)
    assert error < 0.004


def test_a_step_raises_the_likelihood_of_mcgsm_and_seeds_repeat():
    windows = normal(1000, 5) * normal(1000, 1, seed=1)
    before = float(new_mcgsm(windows)(windows).detach().mean())
    fits = [
        fit_mcgsm(new_mcgsm(windows), windows, Generator().manual_seed(s), n_steps=1, batch=1000) for s in (0, 0, 1)
    ]
    first, same, other = (fit(windows).detach() for fit in fits)
    assert float(first.mean()) > before
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_the_learning_rate_of_fitting_falls_linearly():
    """An Adam step moves no parameter by more than the learning rate, and some by all of it: 0.03, then half of it."""
    windows = normal(1000, 5) * normal(1000, 1, seed=1)
    two = [fit_mcgsm(new_mcgsm(windows), windows, Generator().manual_seed(0), n_steps=s, batch=1000) for s in (1, 2)]
    start, one, both = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (new_mcgsm(windows), *two))
    assert float((one - start).abs().max()) == pytest.approx(0.03, rel=0.01)
    assert float((both - one).abs().max()) == pytest.approx(0.015, rel=0.01)


def test_mcgsm_log_prob_is_a_mean_over_each_image():
    images = gaussian_field(3, 12, 0.5)
    windows = causal_windows(images)
    model = new_mcgsm(windows.flatten(0, 1), components=2)
    expected = [float(model(windows[i]).detach().mean()) for i in range(3)]
    assert mcgsm_log_prob(model, images).tolist() == pytest.approx(expected, abs=1e-12)


def test_mcgsm_draws_from_the_density_it_states():
    """Many draws given one window: the probability integral transform of each, by quadrature, is uniform."""
    windows = normal(500, 4) @ normal(4, 4, seed=1) + 2
    model = new_mcgsm(windows, components=3, scales=2, features=5)
    with torch.no_grad():
        model.a.mul_(200)  # components that differ
    x = model.draw(windows[:1].expand(20_000, -1), Generator().manual_seed(0)).detach().numpy()
    place = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    density = model(torch.cat([windows[:1, :-1].expand(len(place), -1), place[:, None]], dim=1)).detach().exp()
    below = torch.cumulative_trapezoid(density, place).numpy()
    assert stats.kstest(x, lambda v: np.interp(v, place[1:].numpy(), below)).pvalue > 1e-3


def test_sampled_mcgsm_continues_a_gaussian_field():
    """An MCGSM that is a field's own conditional, inside borders of zeros: far from them, the field's covariance."""
    rho = 0.5
    model = new_mcgsm(causal_windows(gaussian_field(200, 24, rho)).flatten(0, 1), components=1, scales=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    images = torch.zeros(300, 1, 24, 24, dtype=torch.float64)
    sampled = sample_mcgsm(model, images, Generator().manual_seed(0))
    inside = sampled[:, 0, 8:, 8:-8]
    assert float(inside.square().mean()) == pytest.approx(1, abs=0.05)
    assert float((inside[:, 1:] * inside[:, :-1]).mean()) == pytest.approx(rho, abs=0.04)
    assert float((inside[..., 1:] * inside[..., :-1]).mean()) == pytest.approx(rho, abs=0.04)
    assert not sampled[:, :, :3].any() and not sampled[..., :3].any() and not sampled[..., -3:].any()
    assert not images.any()
    assert bool(sampled[:, :, 3:, 3:-3].all())


def test_mcgsm_is_as_large_and_as_long_fitted_as_reported():
    size = {name: one.default for name, one in inspect.signature(MCGSM).parameters.items()}
    assert (size["components"], size["scales"], size["features"]) == (12, 4, 32)
    fit = inspect.signature(fit_mcgsm).parameters
    assert (fit["n_steps"].default, fit["batch"].default) == (3000, 2000)


def test_experts_of_mcgsm_start_narrow_and_of_many_widths():
    """α ~ N(1, 2²): narrower starts end in poorer optima."""
    windows = torch.randn(50, 4, generator=Generator().manual_seed(0))
    alpha = MCGSM(windows, Generator().manual_seed(1), components=100, scales=50).alpha.detach()
    assert float(alpha.mean()) == pytest.approx(1, abs=5 * 2 / math.sqrt(5000))
    assert float(alpha.std()) == pytest.approx(2, rel=5 / math.sqrt(2 * 5000))


# Rivals on a user's own pictures and bits


def test_independent_bits_are_counted():
    """Half a 0 and half a 1 beside three bits seen: (0.5 + ones)/4, and a column never 1 is still possible."""
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).double()
    test = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    expected = [math.log(2.5 / 4) + math.log(3.5 / 4), math.log(1.5 / 4) + math.log(0.5 / 4)]
    assert independent_bits_log_prob(train, test).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("n", "side"), [(192, 4), (54, 3), (8, 2), (7, 1)])
def test_patches_are_as_large_as_their_number_allows(n, side):
    """In colour, 6×4: four times a patch's numbers are 192 patches of 4×4, 108 of 3×3, 48 of 2×2; against scipy."""
    train, test = normal(n, 3, 6, 4), normal(2, 3, 6, 4, seed=1)
    train[:, 1] += 0.5 * train[:, 0]
    assert largest_patch(train) == side and largest_patch(train[:-1]) < max(side, 2)
    x, y = (extract_patches(z, side).flatten(1).numpy() for z in (train, test))
    law = stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True))
    by_pixel = law.logpdf(y).reshape(2, -1).mean(1) / side**2
    assert patch_gaussian_log_prob(train, test, side).tolist() == pytest.approx(by_pixel.tolist())


def test_only_grey_pictures_with_enough_windows_have_an_mcgsm(monkeypatch):
    """10 000 windows; 5×8 pixels have two rows of two."""
    monkeypatch.setattr(baselines, "fit_mcgsm", lambda mcgsm, windows, generator: mcgsm)
    shapes = {(2500, 1, 5, 8): True, (2499, 1, 5, 8): False, (2500, 3, 5, 8): False, (9999, 1, 3, 9): False}
    for shape, has_one in shapes.items():
        scores = picture_baselines(normal(*shape), normal(3, *shape[1:], seed=1), Generator().manual_seed(0))
        assert set(scores) == ({"gaussian", "mcgsm"} if has_one else {"gaussian"})
        assert all(score.shape == (3,) for score in scores.values())
