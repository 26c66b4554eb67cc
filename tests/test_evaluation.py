"""A row of Tables 1 and 2 on a tiny case, by other routes; what it lacks of the ideal; what it is compared with."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator

from dpm import baselines, evaluation
from dpm.bound import PaperBound, evaluate, step_kl, trajectory_K
from dpm.data.images import ImageDataset, extract_patches, standardize
from dpm.data.sets import load_digits
from dpm.data.synthetic import ROLL_NOISE, heartbeat, heartbeat_sequences, swiss_roll
from dpm.distributions import kl_divergence
from dpm.entropy import log_marginal_density
from dpm.errors import UserError
from dpm.evaluation import (
    density_baselines,
    edge_step_loss,
    evaluate_beside_ideal,
    evaluate_experiment,
    evaluate_twice,
    held_out_data,
    parzen_row,
    parzen_table,
    stderr_of_draws,
    stderr_of_strata,
)
from dpm.experiments.heartbeat import LENGTH, heartbeat_forward
from dpm.experiments.registry import EXPERIMENTS, build_model, load_model
from dpm.forward import AbsorbingForward, BernoulliForward, GaussianForward
from dpm.ideal import IdealFullCovarianceReverse, IdealMixtureReverse, IdealReverse, enumerate_ideal_K
from dpm.networks.layers import mlp
from dpm.reverse import BitX0Prediction, DiffusionModel, learned_final_step
from dpm.schedules import FixedSchedule, linear_alpha_bar, log_snr_linear
from dpm.units import mean_and_stderr, to_bits


def test_held_out_data_are_fresh_for_every_seed():
    tiny = replace(EXPERIMENTS["swiss_roll"], held_out_data=lambda generator: swiss_roll(7, generator))
    a, again, other = held_out_data(tiny, 0), held_out_data(tiny, 0), held_out_data(tiny, 1)
    assert a.shape == (7, 2) and torch.equal(a, again) and not torch.equal(a, other)
    assert not any(torch.equal(a, tiny.draw(7, Generator().manual_seed(seed))) for seed in range(100))


@pytest.fixture
def tiny():
    """The heartbeat over 10 steps with 200 held-out samples, and an untrained model of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffusionModel(
            FixedSchedule(linear_alpha_bar(10)), heartbeat_forward, BitX0Prediction(mlp(1 + LENGTH, 8, 1, LENGTH))
        )
    return replace(EXPERIMENTS["heartbeat"], held_out_data=lambda generator: heartbeat(200, generator)), model


def test_evaluate_experiment_is_the_row_of_table_1(tiny):
    experiment, model = tiny
    row = evaluate_experiment(experiment, model, seed=4)
    assert row.keys() == {
        *("experiment", "K_bits", "K_stderr_bits", "unit", "L_null_bits", "K_minus_L_null_bits", "K_optimum_bits"),
        *("gap_bits", "gap_stderr_bits", "minus_entropy_bits", "parts_bits", "T", "held_out", "paper"),
        *("lost_bits", "edge_stderr_bits", "K_optimum_stderr_bits", "minus_entropy_stderr_bits"),
        *("K_held_out_bits", "K_held_out_stderr_bits"),
    }
    assert (row["experiment"], row["unit"], row["T"], row["held_out"]) == ("heartbeat", "bits/seq", 10, 200)
    assert row["L_null_bits"] == pytest.approx(-14.43856, abs=5e-6)
    assert row["minus_entropy_bits"] == pytest.approx(-math.log2(5), abs=1e-12)
    assert row["K_minus_L_null_bits"] == pytest.approx(row["K_bits"] - row["L_null_bits"], abs=1e-12)
    assert abs(row["K_minus_L_null_bits"]) < 5 * row["K_stderr_bits"]  # untrained, it keeps π
    parts = row["parts_bits"]
    assert parts["entropy_T"] - parts["kl"] - parts["entropy_1"] - parts["entropy_prior"] == pytest.approx(
        row["K_bits"], abs=1e-10
    )
    assert row["gap_bits"] > 5 * row["gap_stderr_bits"]
    exact = float(to_bits(enumerate_ideal_K(experiment.ideal, model.forward_process())))
    assert row["K_optimum_bits"] == pytest.approx(exact, abs=1e-12) and exact < row["minus_entropy_bits"]
    assert row["K_optimum_stderr_bits"] == row["minus_entropy_stderr_bits"] == row["edge_stderr_bits"] == 0
    assert row["K_bits"] == pytest.approx(exact - row["gap_bits"], abs=1e-12)
    x0 = held_out_data(experiment, 4)
    paths, stderr = mean_and_stderr(to_bits(trajectory_K(model.p, model.forward_process(), x0, Generator())))
    assert row["K_bits"] == pytest.approx(paths, abs=5 * math.hypot(stderr, row["K_stderr_bits"]))
    assert row["K_bits"] == pytest.approx(row["K_held_out_bits"], abs=5 * row["K_held_out_stderr_bits"])
    assert evaluate_experiment(experiment, model, seed=4) == row


def test_L_null_of_a_masking_model_is_of_the_prior_of_the_experiment(tiny):
    """That of even bits, 1 bit each; under its own prior, all masks, no data have a probability."""
    points = heartbeat_sequences(4, 2)
    experiment = replace(
        tiny[0],
        ideal=IdealReverse(points),
        forward_process=lambda T: BernoulliForward(linear_alpha_bar(T), 0.5),
        held_out_data=lambda generator: points.repeat(10, 1),
    )
    model = DiffusionModel(FixedSchedule(linear_alpha_bar(3)), AbsorbingForward, experiment.ideal)
    assert evaluate_experiment(experiment, model)["L_null_bits"] == pytest.approx(-4)


@pytest.mark.parametrize("kernel", [partial(BernoulliForward, prior_prob=0.5), AbsorbingForward])
def test_K_of_bits_beside_the_ideal_is_K_over_every_state(kernel):
    """A model that errs, by enumeration of every x⁰ and x^t; masks have no edge step, and lose nothing there."""
    points, states = heartbeat_sequences(4, 2), kernel(linear_alpha_bar(6)).states
    q, ideal = kernel(linear_alpha_bar(6)), IdealReverse(points)
    xt = torch.cartesian_prod(*[states] * 4).repeat(2, 1)
    x0 = points.repeat_interleave(len(states) ** 4, 0)

    def p(q, xt, t):
        mean, variance = ideal.predict_x0(q, xt, t)
        return q.posterior_from_moments(xt, 0.1 + 0.7 * mean, variance, t)

    def mean_over_states(values, t):
        weight = q.marginal(x0, t).log_prob(xt).sum(1).exp() / len(points)
        return float(torch.where(weight > 0, weight * values, 0.0).sum())

    if q.reversible:
        at_T, at_1, prior = q.entropy_constants(points)
        K = float((at_T - at_1 - prior).mean())
    else:
        K = mean_over_states(p(q, xt, 1).log_prob(x0).sum(1), 1)
    for t in range(2, q.T + 1):
        K -= mean_over_states(kl_divergence(q.posterior(xt, x0, t), p(q, xt, t)).sum(1), t)
    row = evaluate_beside_ideal(ideal, p, q, q, points.repeat(50, 1), Generator().manual_seed(0))
    assert row["K_bits"] == pytest.approx(float(to_bits(torch.tensor(K))), abs=4 * row["K_stderr_bits"])
    assert 0 < row["K_stderr_bits"] < 0.05 < row["gap_bits"]
    assert sum(row["lost_bits"].values()) == pytest.approx(row["minus_entropy_bits"] - row["K_bits"], abs=1e-12)
    assert (row["lost_bits"]["edge"] > 0) == q.reversible
    parts = row["parts_bits"]
    of_parts = (1, -1, -1, -1) if q.reversible else (-1, -1, -1)
    names = ("entropy_T", "kl", "entropy_1", "entropy_prior") if q.reversible else ("reconstruction", "kl", "prior_kl")
    assert sum(sign * parts[name] for sign, name in zip(of_parts, names, strict=True)) == pytest.approx(row["K_bits"])


@pytest.mark.parametrize("full", [False, True])
def test_K_of_points_beside_the_ideal_is_K_of_samples(full):
    """On three blurred points of the plane, by (14) on samples; with the full covariance and a final step of its own,
    and as the paper has it."""
    points = torch.tensor([[1.2, -0.3], [-0.5, 1.0], [-0.7, -0.7]], dtype=torch.float64)
    q, step = GaussianForward(log_snr_linear(6, 1e-2, 0.99)), learned_final_step if full else None
    ideal = (IdealFullCovarianceReverse if full else IdealMixtureReverse)(points, 0.05, final_step=step)
    p = (IdealFullCovarianceReverse if full else IdealMixtureReverse)(1.1 * points, 0.05, final_step=step)
    generator = Generator().manual_seed(0)
    x0 = points.repeat(5_000, 1) + math.sqrt(0.05) * torch.randn(15_000, 2, generator=generator, dtype=torch.float64)
    row = evaluate_beside_ideal(ideal, p, q, q, x0[:50], generator)
    for name, model in (("K", p), ("K_optimum", ideal)):
        K, stderr = mean_and_stderr(to_bits(evaluate(model, q, x0, generator).K))
        assert row[f"{name}_bits"] == pytest.approx(K, abs=4 * math.hypot(stderr, row[f"{name}_stderr_bits"]))
        assert row[f"{name}_stderr_bits"] < 0.01
    assert row["minus_entropy_bits"] == pytest.approx(
        float(to_bits(ideal.log_prob(x0)).mean()), abs=4 * float(to_bits(ideal.log_prob(x0)).std()) / 15_000**0.5
    )
    null = -0.5 * (math.log2(2 * math.pi) * 2 + float(points.square().sum(1).mean() + 0.1) / math.log(2))
    assert row["L_null_bits"] == pytest.approx(null, abs=1e-12)


def test_what_K_lacks_is_split_in_three(tiny):
    """−H(X⁰) − K*, exact for the heartbeat; of it the edge step's, H(X¹) − H(X⁰); and K* − K."""
    experiment, model = tiny
    row = evaluate_experiment(experiment, model, seed=4)
    lost, q, points = row["lost_bits"], model.forward_process(), experiment.ideal.points
    short = row["minus_entropy_bits"] - row["K_optimum_bits"]
    assert lost["edge"] + lost["kernel_and_schedule"] == pytest.approx(short, abs=1e-12)
    assert lost["training"] == row["gap_bits"]
    assert min(lost.values()) > 0
    x1 = q.marginal(points, 1).reparameterize(torch.rand(2_000, 5, 20, generator=Generator().manual_seed(0)))
    after, stderr = mean_and_stderr(-to_bits(log_marginal_density(q, points, x1.flatten(0, 1), 1)))
    assert lost["edge"] == pytest.approx(after - math.log2(5), abs=5 * stderr)


def test_edge_step_of_the_roll_loses_the_entropy_of_its_noise(monkeypatch):
    """H(X¹) − H(X⁰) of the curve, by its width alone: the noise of β₁ across it adds ½log(1 + β₁/noise²)."""
    monkeypatch.setattr(evaluation, "N_ROUNDS", 2)
    experiment = EXPERIMENTS["swiss_roll"]
    lost = edge_step_loss(experiment.ideal, experiment.forward_process(40), Generator().manual_seed(0))
    assert float(lost.mean()) == pytest.approx(0.5 * math.log1p(1e-4 / ROLL_NOISE**2), abs=1e-3)
    assert float(lost.std()) < 1e-3


# Pictures


@pytest.fixture
def small():
    """Twelve held-out digits over 30 steps, and an untrained model of them."""
    experiment = EXPERIMENTS["digits"]
    model = build_model(experiment.settings["best"])
    model.schedule = FixedSchedule(experiment.forward_process(30).beta)
    return replace(experiment, held_out_data=lambda generator: load_digits().held_out_data(generator)[:12]), model


def test_evaluation_of_pictures_is_in_bits_per_pixel(small, monkeypatch):
    """Untrained, the model keeps π: K − L_null is 0 but for the data that π does not know; and K is that of all t."""
    experiment, model = small
    monkeypatch.setattr(evaluation, "N_EVALUATIONS", 12 * 29)
    row = evaluate_experiment(experiment, model, seed=1)
    assert row["unit"] == "bits/pixel" and row["held_out"] == 12 and "K_optimum_bits" not in row
    x0 = held_out_data(experiment, 1)
    K = to_bits(evaluate(model.p, model.forward_process(), x0, Generator().manual_seed(5)).K) / 64
    assert row["K_bits"] == pytest.approx(float(K.mean()), abs=4 * row["K_stderr_bits"])
    assert row["L_null_bits"] == pytest.approx(float(stats.norm.logpdf(x0).mean()) / math.log(2), abs=1e-9)
    assert row["K_minus_L_null_bits"] == pytest.approx(row["K_bits"] - row["L_null_bits"], abs=1e-12)
    assert row["bits_per_dimension"] == pytest.approx(math.log2(load_digits().scale) - row["K_bits"], abs=1e-12)


def test_evaluation_of_pictures_in_batches_is_the_same_in_the_mean(small, monkeypatch):
    experiment, model = small
    monkeypatch.setattr(evaluation, "N_EVALUATIONS", 12 * 10)
    whole = evaluate_experiment(experiment, model, seed=1)
    monkeypatch.setattr(evaluation, "MAX_PIXELS", 5 * 64)
    row = evaluate_experiment(experiment, model, seed=1)
    assert row["held_out"] == 12 and row["L_null_bits"] == pytest.approx(whole["L_null_bits"], abs=1e-12)
    assert row["K_bits"] == pytest.approx(whole["K_bits"], abs=5 * whole["K_stderr_bits"])


def test_pictures_are_evaluated_in_whole_strata_and_at_two_timesteps_at_least(small, monkeypatch):
    """However many pictures there are, and however large one of them is."""
    seen = []

    def estimator(p, q, x, generator, n_timesteps, profile):
        seen.append((len(x), n_timesteps))
        return PaperBound(*torch.zeros(4, len(x)))

    for name, value in (("evaluate_subsampled", estimator), ("pilot_profile", lambda *words: None)):
        monkeypatch.setattr(evaluation, name, value)
    monkeypatch.setattr(evaluation, "N_EVALUATIONS", 20)
    monkeypatch.setattr(evaluation, "MAX_PIXELS", 11 * 64)
    assert len(evaluate_twice(small[1], torch.zeros(25, 1, 8, 8), Generator()).K) == 50
    assert seen == [(20, 2), (5, 2)] * 2
    assert evaluation.image_batch_size(torch.empty(1, 3, 40, 40)) == 1


@pytest.mark.slow
def test_stderr_of_draws_is_what_other_draws_change(small, monkeypatch):
    """K of the same pictures, ten strata, spreads over forty other generators as one evaluation says it would."""
    experiment, model = small
    monkeypatch.setattr(evaluation, "N_EVALUATIONS", 12 * 5)
    x0 = experiment.draw(100, Generator().manual_seed(0))
    seeds = [evaluate_twice(model, x0, Generator().manual_seed(seed)).K for seed in range(40)]
    rounds = to_bits(torch.stack(seeds)).view(40, 2, 100) / 64
    errors = torch.tensor([stderr_of_draws(*both) for both in rounds])
    assert float(rounds.mean((1, 2)).std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.4)
    both = to_bits(evaluate_twice(model, held_out_data(experiment, 3), Generator().manual_seed(3)).K).view(2, 12) / 64
    row = evaluate_experiment(experiment, model, seed=3)
    assert row["K_draws_stderr_bits"] == pytest.approx(stderr_of_draws(*both), rel=1e-6)
    assert row["K_stderr_bits"] == pytest.approx(stats.sem(both.mean(0)))
    patches = replace(load_digits(), patches_per_photograph=4)
    row = evaluate_experiment(replace(experiment, images=lambda device: patches), model, seed=3)
    assert row["K_stderr_bits"] == pytest.approx(stats.sem(both.mean(0).view(3, 4).mean(1)))


def test_standard_errors_are_of_strata_where_there_are_ten_and_of_samples_where_not():
    """Samples that move together within their stratum: 120 of them have the error of 12 means."""
    shared = torch.randn(12, generator=Generator().manual_seed(0), dtype=torch.float64)
    own = torch.randn(12, 10, generator=Generator().manual_seed(1), dtype=torch.float64)
    values = (shared[:, None] + 0.1 * own).flatten()
    assert stderr_of_strata(values) == pytest.approx(stats.sem(values.view(12, 10).mean(1)))
    assert stderr_of_strata(values[:99]) == pytest.approx(stats.sem(values[:99]))
    assert 0 < stderr_of_strata(values[:2]) < 1


def test_density_baselines_are_measured_on_all_that_is_held_out(monkeypatch):
    """The Gaussian of 8×8 patches against scipy's, on pictures of four patches each; the MCGSM as it starts; and K of
    an untrained model above it, on the same pictures."""
    monkeypatch.setattr(baselines, "fit_mcgsm", lambda mcgsm, windows, generator: mcgsm)
    monkeypatch.setattr(evaluation, "N_EVALUATIONS", 6 * 50)
    train, test = (
        torch.randint(0, 256, (n, 1, 16, 16), generator=Generator().manual_seed(n), dtype=torch.uint8) for n in (50, 6)
    )
    images = replace(standardize(train, test), patches_per_photograph=2)
    model = build_model(EXPERIMENTS["digits"].settings["best"])
    row = density_baselines(images, model, Generator().manual_seed(3))
    generator = Generator().manual_seed(3)
    x, y = images.draw(400, generator), images.held_out_data(generator)
    x, y = (extract_patches(z, 8).flatten(1).numpy() for z in (x, y))
    law = stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True))
    by_picture = law.logpdf(y).reshape(6, 4).mean(1) / 64 / math.log(2)
    assert row["gaussian_bits"] == pytest.approx(by_picture.mean(), abs=1e-9)
    by_photograph = (by_picture[::2] + by_picture[1::2]) / 2
    assert row["gaussian_stderr_bits"] == pytest.approx(stats.sem(by_photograph), abs=1e-9)
    assert math.isfinite(row["mcgsm_bits"]) and row["mcgsm_stderr_bits"] > 0
    null = float(stats.norm.logpdf(y).mean()) / math.log(2)  # what an untrained model reaches, but for its edge
    assert row["K_over_mcgsm_bits"] == pytest.approx(null - row["mcgsm_bits"], abs=0.05)
    assert 0 < row["K_over_mcgsm_stderr_bits"] < 1


@pytest.mark.slow
def test_parzen_table_tells_where_samples_and_digits_part():
    """The shipped 8×8 digits: number counts, what is redrawn from little noise loses little, and K's terms add up."""
    small, model, q = load_digits(), load_model("digits", "best"), EXPERIMENTS["digits"].forward_process(50)
    brighter = {name: getattr(small, name) * 15 for name in ("train", "test", "shift", "scale")}  # of 256 levels
    images = replace(small, **brighter)
    validation = images.test[:100]
    table = parzen_table(images, validation, model, q, 400, Generator().manual_seed(0))
    perfect, redrawn, above = table["perfect_bits_of"], table["redrawn_bits"], table["kl_above_bits"]
    assert (table["n"], table["T"]) == (400, 50) and list(perfect) == [200, 100, 50]
    assert table["perfect_parzen_bits"] > perfect[200] > perfect[100] > perfect[50]
    assert list(redrawn) == list(above) == [30, 35, 40, 45]
    assert perfect[50] - 4 < redrawn[30] < perfect[50] and max(redrawn.values()) == redrawn[30]
    x0 = images.held_out_data(Generator().manual_seed(1))
    noise = q.sample_noise(x0, Generator().manual_seed(2))
    for t, bits in above.items():
        terms = sum(step_kl(model.p, q, x0, s, noise) for s in range(t + 1, 51))
        assert bits == pytest.approx(float(to_bits(terms).mean()), rel=0.1)


def test_parzen_row_takes_pictures_back_to_the_unit_interval():
    """By loops over a few pictures, at the bandwidth that is best for the validation pictures."""
    levels = torch.randint(0, 256, (12, 1, 2, 2), generator=Generator().manual_seed(0), dtype=torch.uint8)
    images = standardize(levels[:4], levels[4:8])
    samples = images.dequantize(levels[:4], Generator().manual_seed(1))
    row = parzen_row(images, samples, levels[8:])
    shades = (samples * images.scale + images.shift - 0.5).clamp(0, 255).flatten(1).numpy() / 255
    assert np.abs(shades - levels[:4].flatten(1).numpy() / 255).max() <= 0.5 / 255 + 1e-9

    def score(x, sigma):
        kernels = [[stats.norm.pdf(one, centre, sigma).prod() for centre in shades] for one in x]
        return np.log2(np.mean(kernels, axis=1))

    validation, test = (part.flatten(1).numpy() / 255 for part in (levels[8:], images.test))
    sigma = max(np.logspace(-1, 0, 10), key=lambda sigma: score(validation, sigma).mean())
    assert row["parzen_sigma"] == pytest.approx(sigma)
    assert row["parzen_bits"] == pytest.approx(score(test, sigma).mean(), abs=1e-9)


def test_pictures_say_their_label_shift_and_scale():
    images = ImageDataset(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), 120.0, 64.0, "JPEG")
    assert evaluation.image_units(images, 3.0) == {
        "bits_per_dimension": 5.0,
        "shift_levels": 120.0,
        "scale_levels": 64.0,
        "label": "JPEG",
    }


def test_parzen_takes_the_first_thousand(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "parzen", lambda *x: seen.extend(map(len, x)) or (1.0, torch.zeros(2)))
    levels = torch.zeros(1200, 1, 2, 2).to(torch.uint8)
    evaluation.parzen_row(ImageDataset(levels, levels, 0.0, 1.0), levels[:5].double(), levels)
    assert seen == [5, 1000, 1200]


def test_what_lies_above_t_is_of_held_out_digits_and_what_is_redrawn_of_training_ones(small, monkeypatch):
    levels = torch.randint(0, 256, (16, 1, 2, 2), generator=Generator().manual_seed(0), dtype=torch.uint8)
    images, seen = standardize(levels, levels[:5].flip(0)), {"above": [], "redrawn": []}

    def above(p, q, x0, t, generator):
        seen["above"].append(images.to_levels(x0))
        return torch.zeros(len(x0))

    def redrawn(p, q, x0, t, generator):
        seen["redrawn"].append(images.to_levels(x0))
        return x0

    for name, stub in (("kl_above", above), ("noise_and_denoise", redrawn), ("sample", lambda p, q, x, generator: x)):
        monkeypatch.setattr(evaluation, name, stub)
    q = GaussianForward(log_snr_linear(10, 1e-2, 0.9))
    parzen_table(images, levels[:4], small[1], q, 16, Generator().manual_seed(0))
    assert len(seen["above"]) == 4 and all(torch.equal(x, images.test.long()) for x in seen["above"])
    assert [len(x) for x in seen["redrawn"]] == [2] * 4


def test_too_few_digits_are_refused():
    for n in (7, 1101):
        with pytest.raises(UserError, match="-n"):
            evaluation.parzen_table(load_digits(), None, None, None, n, Generator())


def test_edge_step_loss_of_data_whose_moments_are_not_the_prior_s():
    q, points = BernoulliForward(linear_alpha_bar(4), 0.1), heartbeat_sequences(4, 4)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4)
    log_step = q.transition(points, 1).log_prob(states[:, None]).sum(-1).T  # [x0, x1]
    joint = log_step.exp() / 4
    log_post = (joint / joint.sum(0)).log()
    log_edge = torch.stack([q.final_step(None, states).log_prob(x).sum(-1) for x in points])
    want = float((joint * (log_post - log_edge)).sum())
    lost = edge_step_loss(IdealReverse(points), q, Generator())
    assert lost.tolist() == pytest.approx([want] * len(lost), abs=1e-12)
