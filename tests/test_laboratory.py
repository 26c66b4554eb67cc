"""The laboratory's mathematics, run in Chromium, is the module's: the same inputs, the same numbers to 1e-9."""

import base64
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, launch
from torch import Generator

from dpm.bound import step_kl
from dpm.data.synthetic import heartbeat_sequences, swiss_roll_points
from dpm.distributions import Normal, kl_divergence
from dpm.experiments.registry import load_model
from dpm.forward import AbsorbingForward, BernoulliForward, GaussianForward
from dpm.ideal import (
    IdealFullCovarianceReverse,
    IdealMixtureReverse,
    IdealReverse,
    best_schedule,
    enumerate_ideal_K,
    ideal_K,
)
from dpm.posterior import GaussianLikelihood, annealed, constant, diffused, posterior_trajectory
from dpm.reverse import sample_trajectory
from dpm.schedules import cosine_alpha_bar, linear_alpha_bar, linear_beta, log_snr_linear

playwright = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parent.parent
SCRIPTS = [ROOT / "_static" / name for name in ("dpm.js", "laboratory.js")]

if not CHROMIUM:
    pytest.skip("no Chromium here, so no script was run; apt-get install chromium", allow_module_level=True)

# What both languages start from: a data set of four points, x⁰ drawn near them, and x^t where they may be.
NOISE = 0.1
POINTS = torch.tensor([[-1.2, 0.3], [0.4, 1.1], [0.9, -0.8], [1.0, -0.7]], dtype=torch.float64)
X0 = POINTS[[0, 1, 2, 3, 0]] + NOISE * torch.randn(5, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
XT = 1.5 * torch.randn(5, 2, generator=Generator().manual_seed(1), dtype=torch.float64)
BETA = log_snr_linear(8, 1e-3, 0.98)

#: what a test writes in JavaScript may use these; `stored` is a generator that returns given noise in its order
PRELUDE = """
const points = Float64Array.from(stored.points), x0 = Float64Array.from(stored.x0), xt = Float64Array.from(stored.xt);
const noise = Float64Array.from(stored.noise || []), q = new dpm.GaussianForward(Float64Array.from(stored.beta));
let used = 0;
const generator = {randn: n => noise.slice(used, used += n)};
const last = job => { let step; do step = job.next(); while (!step.done); return step.value; };
const models = {
  diagonal: new dpm.IdealMixtureReverse(points, stored.variance),
  full: new dpm.IdealFullCovarianceReverse(points, stored.variance),
  "β": new dpm.IdealMeanReverse(points, stored.variance, (q, t) => q.beta[t]),
  "β̃": new dpm.IdealMeanReverse(points, stored.variance, (q, t) => q.posterior_coefficients.variance[t]),
};
"""

ideal = IdealMixtureReverse(POINTS, NOISE**2)
MODELS = {
    "diagonal": ideal,
    "full": IdealFullCovarianceReverse(POINTS, NOISE**2),
    "β": lambda q, xt, t: Normal(ideal(q, xt, t).mean, q.beta[t]),
    "β̃": lambda q, xt, t: Normal(ideal(q, xt, t).mean, q.posterior_coefficients.variance[t]),
}


@pytest.fixture(scope="module")
def run():
    """Evaluate the body of a function of JavaScript on stored inputs: its value, as nested lists."""
    with playwright.sync_playwright() as driver:
        browser = launch(driver)
        page = browser.new_page()
        page.add_script_tag(path=SCRIPTS[0])

        def run(body, **stored):
            inputs = {"points": POINTS, "x0": X0, "xt": XT, "beta": BETA, "variance": NOISE**2} | stored
            flat = {k: v.flatten().tolist() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            code = f"stored => {{ {PRELUDE}\n{body} }}"
            return page.evaluate(f"stored => {{ const f = {code}; return plain(f(stored)); {PLAIN} }}", flat)

        yield run
        browser.close()


PLAIN = """function plain(value) {
  if (ArrayBuffer.isView(value) || Array.isArray(value)) return Array.from(value, plain);
  if (!value || typeof value !== "object") return value;
  const fields = Object.entries(value).filter(([, v]) => typeof v !== "function");
  return Object.fromEntries(fields.map(([k, v]) => [k, plain(v)]));
}"""


def same(found, wanted, rtol=1e-9, atol=0.0):
    """Whether the script's numbers are Python's, in whatever shape."""
    wanted = torch.as_tensor(wanted, dtype=torch.float64).flatten()
    found = torch.tensor(found, dtype=torch.float64).flatten()
    assert len(found) == len(wanted)
    return torch.allclose(found, wanted, rtol=rtol, atol=atol)


def draws(shape, times, seed=0):
    """The noise that a float64 generator of this seed gives in so many draws of one shape."""
    generator = Generator().manual_seed(seed)
    return torch.cat([torch.randn(shape, generator=generator, dtype=torch.float64).flatten() for _ in range(times)])


@pytest.mark.parametrize("T", [20, 40, 1000])
def test_schedules(run, T):
    wanted = [log_snr_linear(T, 1e-4, 0.995), linear_alpha_bar(T), linear_beta(T), cosine_alpha_bar(T)]
    calls = [f"dpm.log_snr_linear({T}, 1e-4)", *(f"dpm.{f}({T})" for f in ("linear_alpha_bar", "linear_beta"))]
    found = run(f"return [{', '.join(calls)}, dpm.cosine_alpha_bar({T})]")
    for beta, other in zip(found, wanted, strict=True):
        assert same(beta, other)


@pytest.mark.parametrize("beta", [BETA, linear_alpha_bar(5), linear_beta(100)], ids=["log-SNR", "ᾱ", "β"])
def test_tables_of_the_forward_process(run, beta):
    q = GaussianForward(beta)
    found = run("return {...q, constants: q.entropy_constants()}", beta=beta)
    assert same(found["alpha_bar"], q.alpha_bar, atol=1e-300) and same(found["noise_variance"], q.noise_variance)
    for name, table in q.posterior_coefficients._asdict().items():
        assert same(found["posterior_coefficients"][name][1:], table[1:])
    assert same(found["constants"], torch.stack([values[0] for values in q.entropy_constants(X0)]), atol=1e-15)


@pytest.mark.parametrize("t", [2, 5, 8])
def test_laws_of_the_forward_process(run, t):
    q = GaussianForward(BETA)
    laws = {"marginal": q.marginal(X0, t), "transition": q.transition(XT, t), "posterior": q.posterior(XT, X0, t)}
    calls = f"marginal: q.marginal(x0, {t}), transition: q.transition(xt, {t}), posterior: q.posterior(xt, x0, {t})"
    found = run(f"return {{{calls}}}")
    for name, law in laws.items():
        assert same(found[name]["mean"], law.mean) and same(found[name]["variance"], float(law.variance))
    other = run(f"return q.marginal(x0, {t}).cross_entropy(q.transition(xt, {t}))")
    assert same(other, q.marginal(X0, t).cross_entropy(q.transition(XT, t)).sum(1))


@pytest.mark.parametrize("t", [1, 2, 5, 8])
def test_the_ideal_mean_variance_and_density(run, t):
    """Moments of x⁰ | x^t; the covariance by its own definition; log q(x^t) as a mixture written out."""
    q = GaussianForward(BETA)
    found = run(f"return models.diagonal.predict_x0(q, xt, {t})")
    mean, variance = ideal.predict_x0(q, XT, t)
    assert same(found["mean"], mean) and same(found["variance"], variance)
    responsibilities, weight, _, _ = ideal.component_posterior(q, XT, t)
    product = responsibilities @ POINTS.prod(1) - (responsibilities @ POINTS).prod(1)
    assert same(found["covariance"], weight**2 * product, atol=1e-14)
    components = q.blurred_marginal(POINTS, NOISE**2, t).log_prob(XT[:, None]).sum(-1)
    assert same(found["log_density"], components.logsumexp(1) - math.log(len(POINTS)))


def test_the_density_of_the_data(run):
    assert same(run("return models.diagonal.log_prob(x0)"), ideal.log_prob(X0))


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("t", [2, 5, 8])
def test_the_kl_of_each_step(run, name, t):
    """For the x^t that the noise makes; as cross entropy less entropy, the latter at a sure x⁰."""
    code = (
        f"const p = models['{name}'], xt = q.marginal(x0, {t}).reparameterize(noise), sure = {{mean: x0, variance: 0}};"
    )
    code += f"return dpm.mean_step_kl(q, xt, {t}, sure, p.law(q, xt, {t}, p.predict_x0(q, xt, {t})))"
    assert same(run(f"{{ {code} }}", noise=XT), step_kl(MODELS[name], GaussianForward(BETA), X0, t, XT))


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("t", [2, 5, 8])
def test_the_kl_averaged_over_x0(run, name, t):
    """Against a sum over the components of x⁰ | x^t, and within each a Gauss-Hermite rule, exact for a square."""
    q = GaussianForward(BETA)
    code = f"const p = models['{name}'], moments = models.diagonal.predict_x0(q, xt, {t});"
    found = run(f"{code} return dpm.mean_step_kl(q, xt, {t}, moments, p.law(q, xt, {t}, moments))")
    responsibilities, weight, gain, variance = ideal.component_posterior(q, XT, t)
    nodes, masses = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(3))
    law, wanted = MODELS[name](q, XT, t), torch.zeros(len(XT), dtype=torch.float64)
    for m, point in enumerate(POINTS):
        for node in torch.cartesian_prod(nodes, nodes):
            mass = (masses[nodes == node[0]] * masses[nodes == node[1]] / masses.sum() ** 2).squeeze()
            x0 = weight * point + gain * XT + variance.sqrt() * node
            kl = kl_divergence(q.posterior(XT, x0, t), law)
            wanted += responsibilities[:, m] * mass * (kl if kl.ndim == 1 else kl.sum(1))
    assert same(found, wanted)


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_ideal_K_for_the_same_noise(run, name):
    noise = draws((5, 2), len(BETA) - 2)
    wanted = ideal_K(MODELS[name], GaussianForward(BETA), X0, Generator().manual_seed(0))
    assert same(run(f"return dpm.ideal_K(models['{name}'], q, x0, generator)", noise=noise), wanted)


def test_the_best_schedule_for_the_same_noise(run):
    wanted = best_schedule(ideal, 6, 1e-3, X0, Generator().manual_seed(0), n_levels=40)
    code = "return last(dpm.best_schedule(models.diagonal, 6, 1e-3, x0, generator, 40))"
    found = run(code, noise=draws((5, 2), 1))
    assert same(found, wanted)


def test_ideal_K_of_the_swiss_roll_is_that_of_the_module_within_its_error(run):
    """Four hundred points, data and noise of the script's own; beside two thousand points of the module."""
    roll, beta = IdealMixtureReverse(swiss_roll_points(2000), 0.02**2), log_snr_linear(40, 1e-4, 0.995)
    assert same(run("return dpm.swiss_roll_points(400)"), swiss_roll_points(400), atol=1e-15)
    code = "const p = new dpm.IdealMixtureReverse(dpm.swiss_roll_points(400), 4e-4), g = new dpm.Generator(0);"
    found = torch.tensor(run(f"{code} return dpm.ideal_K(p, q, dpm.draw(p, 1500, g), g)", beta=beta))
    x0 = swiss_roll_points(1500) + 0.02 * torch.randn(
        1500, 2, generator=Generator().manual_seed(2), dtype=torch.float64
    )
    wanted = ideal_K(roll, GaussianForward(beta), x0, Generator().manual_seed(3))
    stderr = math.sqrt(float(found.var() + wanted.var()) / 1500)
    assert abs(float(found.mean() - wanted.mean())) < 4 * stderr < 0.08


@pytest.mark.parametrize("name", ["diagonal", "β"])
def test_ancestral_samples_from_the_same_noise(run, name):
    wanted = sample_trajectory(MODELS[name], GaussianForward(BETA), X0, Generator().manual_seed(0))
    found = run(f"return [...dpm.sample_trajectory(models['{name}'], q, 5, generator)]", noise=draws((5, 2), len(BETA)))
    for (t, x), (t_wanted, x_wanted) in zip(found, wanted, strict=True):
        assert t == t_wanted and same(x, x_wanted, rtol=1e-8)


def test_a_full_covariance_is_sampled_and_scored_as_itself(run):
    """reparameterize is the Cholesky factor times the noise."""
    law = MODELS["full"](GaussianForward(BETA), XT, 4)
    moments = run("const p = models.full; return p.law(q, xt, 4, p.predict_x0(q, xt, 4))")
    assert same(moments["variance"], law.variance) and same(moments["covariance"], law.covariance[:, 0, 1], atol=1e-16)
    code = "const p = models.full; return p.law(q, xt, 4, p.predict_x0(q, xt, 4)).reparameterize(x0)"
    assert same(run(code), law.reparameterize(X0))


@pytest.mark.parametrize("r_schedule", [constant, annealed, diffused], ids=lambda function: function.__name__)
@pytest.mark.parametrize("variance", [(0.3, math.inf), (0.2, 0.4)])
def test_perturbed_kernels_and_their_weights(run, r_schedule, variance):
    r = GaussianLikelihood(torch.tensor([0.6, -0.2], dtype=torch.float64), torch.tensor(variance, dtype=torch.float64))
    q, generator = GaussianForward(BETA), Generator().manual_seed(0)
    wanted = list(posterior_trajectory(ideal, q, r, X0, generator, r_schedule))
    script_variance = [value if value < math.inf else "Infinity" for value in variance]
    code = f"const r = new dpm.GaussianLikelihood([0.6, -0.2], [{script_variance[0]}, {script_variance[1]}]);"
    code += f"const kept = [], f = dpm.r_schedules.{r_schedule.__name__};"
    code += "for (const [t, x, w] of dpm.posterior_trajectory(models.diagonal, q, r, 5, generator, f))"
    found = run(f"{code} kept.push([t, x, w.slice()]); return kept", noise=draws((5, 2), len(BETA)))
    for (t, x, log_weight), (t_wanted, x_wanted, w_wanted) in zip(found, wanted, strict=True):
        assert t == t_wanted and same(x, x_wanted, rtol=1e-8)
        assert same(log_weight, w_wanted, rtol=1e-7, atol=1e-9)  # sums of terms that cancel


def test_the_exact_posterior_is_bayes_rule_on_a_grid(run):
    """Probabilities of the points, and mean and variance of x⁰, against a sum over a fine grid of the plane."""
    found = run("return dpm.exact_posterior(models.diagonal, new dpm.GaussianLikelihood([0.7, 0.1], [0.2, 0.3]))")
    moments = found["law"]["mean"], found["law"]["variance"]
    axis = torch.arange(-3, 3, 0.01, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    y, variance = torch.tensor([[0.7, 0.1], [0.2, 0.3]], dtype=torch.float64)
    log_r = -0.5 * ((grid - y).square() / variance).sum(1)
    weights = (ideal.log_prob(grid) + log_r).softmax(0)
    probs, means, variances = (torch.tensor(values, dtype=torch.float64) for values in (found["probs"], *moments))
    means, variances = means.view(-1, 2), variances.view(-1, 2)
    assert torch.allclose(probs @ means, weights @ grid, atol=1e-6)
    assert torch.allclose(probs @ (variances + means.square()), weights @ grid.square(), atol=1e-6)


@pytest.mark.parametrize("t", [2, 20, 40])
def test_the_trained_network(run, t):
    """The shipped weights, in float64 on both sides."""
    model = load_model("swiss_roll", "best")
    q, p = model.forward_process(), model.p.double()
    layers = [layer for layer in p.network.mlp if isinstance(layer, torch.nn.Linear)]
    tensors = [tensor.detach().numpy() for layer in layers for tensor in (layer.weight, layer.bias)]
    halves = [base64.b64encode(np.float16(tensor).tobytes()).decode() for tensor in tensors]
    code = "const all = stored.halves.map(dpm.from_float16), layers = [];"
    code += "for (let k = 0; k < all.length; k += 2) layers.push({weight: all[k], bias: all[k + 1]});"
    code += f"return new dpm.VPrediction(dpm.FourierMLP(layers, 4)).predict_x0(q, xt, {t})"
    found = run(code, beta=q.beta, halves=halves)
    alpha_bar, noise_variance, log_snr = q.alpha_bar[t], q.noise_variance[t], q.log_snr[t]
    with torch.no_grad():
        v, log_var = p.network(XT, log_snr).chunk(2, dim=1)
    assert same(found["mean"], p.x0_from(v, XT, alpha_bar, noise_variance))
    assert same(found["variance"], noise_variance * log_var.exp())


@pytest.mark.parametrize("T", [2, 5, 12])
@pytest.mark.parametrize("kernel", ["flipping", "masking"])
def test_the_heartbeat_by_enumeration(run, kernel, T):
    """K*, and P(x⁰_i = 1 | x^t) at a state of x^t, for a short heartbeat and, at a few steps, the paper's."""
    beta = linear_alpha_bar(T)
    q = BernoulliForward(beta, 0.2) if kernel == "flipping" else AbsorbingForward(beta)
    script = "new dpm.BernoulliForward(q.beta, 0.2)" if kernel == "flipping" else "new dpm.AbsorbingForward(q.beta)"
    for period, size in ((3, 2), (5, 4) if T == 2 else (2, 3)):
        points = heartbeat_sequences(period * size, period)
        found = run(f"return last(dpm.enumerate_ideal_K({script}, {period}, {size}))", beta=beta)
        assert same([found], enumerate_ideal_K(IdealReverse(points), q))
    points = heartbeat_sequences(6, 3)
    state = points[1].clone()
    state[0] = 1 if kernel == "flipping" else 0.5
    state[1:4] = torch.tensor([0, 0, 0] if kernel == "flipping" else [0.5, 0.5, 0.5])
    index = torch.searchsorted(q.states, state).tolist()
    mean, _ = IdealReverse(points).predict_x0(q, state[None], 1)
    law = q.posterior_from_moments(state[None], mean, mean, 2)
    probs = law.probs if kernel == "masking" else torch.stack([law.prob_zero, law.probs], dim=-1)
    code = f"const k = {script}, mean = dpm.predict_bits(dpm.heartbeat_sequences(6, 3), k, {index}, 1);"
    code += f"return [mean, mean.map((m, i) => k.posterior_from_moments({index}[i], m, 2))]"
    found_mean, found_law = run(code, beta=beta)
    assert same(found_mean, mean, atol=1e-15) and same(found_law, probs, atol=1e-15)


def test_the_generator_is_seeded_uniform_and_normal(run):
    code = "const g = new dpm.Generator(7), h = new dpm.Generator(7);"
    u, z, again = run(f"{code} return [g.rand(20000), g.randn(20001), (h.rand(20000), h.randn(20001))]")
    assert z == again and z != run("return new dpm.Generator(8).randn(20001)")
    u, z = np.sort(u), np.array(z)
    assert np.abs(u - (np.arange(20000) + 0.5) / 20000).max() < 1.95 / math.sqrt(20000)  # Kolmogorov, one in a thousand
    assert abs(z.mean()) < 4 / 141 and abs(z.var() - 1) < 4 * 1.42 / 141 and abs((z**4).mean() - 3) < 4 * 9.8 / 141
    assert abs((z[1:] * z[:-1]).mean()) < 4 / 141


def test_the_scripts_are_small():
    assert sum(path.stat().st_size for path in SCRIPTS if path.exists()) <= 60_000
