"""The reverse process, Section 2.2: each parameterisation against its formula, and samples against the exact p(x⁰)."""

import math

import pytest
import torch
from scipy import stats
from torch import Generator, nn

from dpm.bound import evaluate, trajectory_K
from dpm.data.synthetic import heartbeat_sequences
from dpm.distributions import Bernoulli, Normal
from dpm.forward import AbsorbingForward, BernoulliForward, GaussianForward
from dpm.forward.absorbing import MASK
from dpm.ideal import IdealReverse
from dpm.networks.denoisers import FourierMLP
from dpm.networks.layers import mlp
from dpm.networks.paper import RBFNetwork, SigmoidMLP
from dpm.reverse import (
    BitX0Prediction,
    DiffusionModel,
    EpsPrediction,
    FullCovarianceVPrediction,
    KernelPerturbation,
    LogitPrediction,
    MaskedX0Prediction,
    SymmetricVPrediction,
    VPrediction,
    X0Prediction,
    fixed_point_mean,
    learned_final_step,
    noise_and_denoise,
    sample,
    sample_trajectory,
    shifted_kernel_mean,
)
from dpm.schedules import FixedSchedule, LearnedSchedule, linear_alpha_bar, log_snr_linear
from dpm.units import mean_and_stderr


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(*shape, seed=1):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def off_its_start(p):
    """Give the reverse model other parameters than its first, at which t may not matter."""
    with torch.no_grad():
        for k, parameter in enumerate(p.parameters()):
            parameter.copy_(draws(*parameter.shape, seed=k) / 2)


def broadcast_t(t, x):
    """An int t, or one t per sample, as one per sample: [B]."""
    return torch.as_tensor(t).expand(len(x))


def all_states(bits):
    return torch.cartesian_prod(*[real(0, 1)] * bits).reshape(-1, bits)


class LinearInXT(nn.Module):
    """A network whose answer grows with x and t, so that every output can be written out."""

    def __init__(self, outputs):
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(-1, 1, outputs))

    def forward(self, x, t):
        return self.slope * (1 + x.sum(1, keepdim=True)) + broadcast_t(t, x)[:, None] / 10


class FunctionNetwork(nn.Module):
    """A network that is a plain function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class LinearLogits:
    """A reverse model of bits whose logits are linear in x^t, with weights of their own for each t."""

    def __init__(self, T, bits, seed):
        self.weight, self.bias = draws(T + 1, bits, bits, seed=seed), draws(T + 1, bits, seed=seed + 1)
        self.seen = []

    def __call__(self, q, xt, t):
        t = broadcast_t(t, xt)
        self.seen.append(set(t.tolist()))
        return Bernoulli(torch.einsum("bi,bij->bj", xt, self.weight[t]) + self.bias[t])


class LinearGaussian:
    """A linear-Gaussian reverse model, x^{t−1} ~ N(a_t x^t + b_t, v_t)."""

    def __init__(self, T, seed):
        self.a, self.b, self.v = 0.9 + 0.1 * draws(T + 1, seed=seed), draws(T + 1, seed=seed + 1) / 5, None
        self.v = 0.1 + 0.2 * torch.rand(T + 1, generator=Generator().manual_seed(seed), dtype=torch.float64)

    def __call__(self, q, xt, t):
        t = broadcast_t(t, xt)
        a, b, v = (values[t][:, None] for values in (self.a, self.b, self.v))
        return Normal(a * xt + b, v.expand_as(xt))


def replay(q, noises):
    """The forward process, with the noise of its draws written down beforehand."""
    left = iter(noises)
    q.sample_noise = lambda x, generator: next(left)
    return q


# Parameterisations of p(x^{t−1}|x^t)


def test_kernel_perturbation_is_equation_64_and_an_unbounded_mean():
    q, xt = GaussianForward(log_snr_linear(5, 0.01, 0.9)), draws(6, 2)
    network, t = LinearInXT(4), torch.tensor([2, 3, 4, 5, 2, 5])
    with torch.no_grad():
        law = KernelPerturbation(network)(q, xt, t)
    for i, s in enumerate(t.tolist()):
        b, z = float(q.beta[s]), network(xt[i : i + 1].float(), t[i : i + 1])[0].tolist()
        for j in range(2):
            assert float(law.mean[i, j]) == pytest.approx(
                float(xt[i, j]) * math.sqrt(1 - b) + z[j] * math.sqrt(b), abs=1e-12
            )
            odds = math.exp(z[2 + j]) * b / (1 - b)
            assert float(law.variance[i, j]) == pytest.approx(odds / (1 + odds), rel=1e-10, abs=0)
    assert law.mean.dtype == law.variance.dtype == torch.float64


def test_kernel_perturbation_starts_at_the_forward_kernel():
    q, xt, t = GaussianForward(log_snr_linear(5, 0.01, 0.9)), draws(4, 2), torch.tensor([2, 3, 4, 5])
    network = LinearInXT(4)
    network.forward = lambda x, t: torch.zeros(len(x), 4)
    law, kernel = KernelPerturbation(network)(q, xt, t), q.transition(xt, t)
    assert torch.allclose(law.mean, kernel.mean, atol=1e-14) and torch.allclose(law.variance, kernel.variance)


def test_kernel_perturbation_with_the_mean_of_equation_65():
    """(x − z)(1−Σ) + z = x − Σ(x − z), Σ that of (64), written out number by number."""
    q, xt = GaussianForward(log_snr_linear(5, 0.01, 0.9)), draws(6, 2)
    network, t = LinearInXT(4), torch.tensor([2, 3, 4, 5, 2, 5])
    with torch.no_grad():
        law, other = (KernelPerturbation(network, mean)(q, xt, t) for mean in (fixed_point_mean, shifted_kernel_mean))
    for i, s in enumerate(t.tolist()):
        b, z = float(q.beta[s]), network(xt[i : i + 1].float(), t[i : i + 1])[0].tolist()
        for j in range(2):
            odds = math.exp(z[2 + j]) * b / (1 - b)
            x, sigma = float(xt[i, j]), odds / (1 + odds)
            assert float(law.mean[i, j]) == pytest.approx(x - sigma * (x - z[j]), abs=1e-12)
    assert torch.equal(law.variance, other.variance)


def test_z_is_the_fixed_point_of_65_and_a_shift_in_the_other_mean():
    x, z, sigma, beta = (
        draws(7),
        draws(7, seed=2),
        torch.rand(7, generator=Generator().manual_seed(3)).double(),
        real(0.3),
    )
    assert torch.allclose(fixed_point_mean(z, z, sigma, beta), z, atol=1e-15)
    far = x
    for _ in range(2000):
        far = fixed_point_mean(far, z, sigma.clamp(min=0.02), beta)  # every start is drawn to it
    assert torch.allclose(far, z, atol=1e-12)
    shift = shifted_kernel_mean(x, z, sigma, beta) - shifted_kernel_mean(x, torch.zeros(7), sigma, beta)
    assert torch.allclose(shift, z * math.sqrt(0.3), atol=1e-15)


def test_with_z_at_zero_one_mean_is_the_kernels_and_the_other_shrinks_by_its_square():
    """√(1−β) against 1−β, Σ being β: (65) is the forward kernel only to first order in β."""
    q, xt, t = GaussianForward(log_snr_linear(5, 0.01, 0.9)), draws(4, 2), torch.tensor([2, 3, 4, 5])
    network = LinearInXT(4)
    network.forward = lambda x, t: torch.zeros(len(x), 4)
    ours, paper = (KernelPerturbation(network, mean)(q, xt, t) for mean in (shifted_kernel_mean, fixed_point_mean))
    keep = 1 - q.beta[2:, None]
    assert torch.allclose(ours.mean, xt * keep.sqrt(), atol=1e-14)
    assert torch.allclose(paper.mean, xt * keep, atol=1e-14)


class Pixels(nn.Module):
    """A network of images, [B, C, H, W] → [B, 2C, H, W], linear in all pixels; the same for flat images, [B, D]."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        self.weight = draws(size, 2 * size) / size

    def forward(self, x, t):
        z = (x.flatten(1).double() @ self.weight + broadcast_t(t, x)[:, None] / 20).to(x.dtype)
        return z.view(len(x), 2 * self.shape[0], *self.shape[1:]) if x.dim() > 2 else z


@pytest.mark.parametrize("mean", [shifted_kernel_mean, fixed_point_mean])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 2, 4)])
def test_images_are_vectors_to_the_bound_and_to_samples(mean, shape):
    """(14), (37)-(39) and p(x⁰) of an image batch, and of the same flattened, with the same noise."""
    q, p = GaussianForward(log_snr_linear(4, 0.01, 0.9)), KernelPerturbation(Pixels(*shape), mean)
    x0 = draws(5, *shape)
    law = p(q, x0, torch.tensor([2, 3, 4, 2, 3]))
    assert law.mean.shape == law.variance.shape == x0.shape
    for weigh in (evaluate, trajectory_K):
        image, flat = (weigh(p, q, x, Generator().manual_seed(0)) for x in (x0, x0.flatten(1)))
        image, flat = (K if weigh is trajectory_K else K.K for K in (image, flat))
        assert image.shape == (5,) and torch.allclose(image, flat, atol=1e-9, rtol=0)
    image, flat = (sample(p, q, x, Generator().manual_seed(0)) for x in (x0, x0.flatten(1)))
    assert image.shape == x0.shape and torch.allclose(image.flatten(1), flat, atol=1e-9, rtol=0)


def test_logit_prediction_is_a_sigmoid_of_the_network():
    q, xt, t = BernoulliForward(linear_alpha_bar(5), 0.2), all_states(2), torch.tensor([2, 3, 4, 5])
    network = LinearInXT(2)
    law = LogitPrediction(network)(q, xt, t)
    assert law.probs.dtype == torch.float64
    assert torch.allclose(law.probs, 1 / (1 + torch.exp(-network(xt.float(), t).double())), atol=1e-15)


def test_symmetric_v_prediction_turns_mirrors_and_negates_with_its_pictures():
    """The mean over a group commutes with it; and a network that commutes already is its own mean."""
    q, generator = GaussianForward(linear_alpha_bar(10)), Generator().manual_seed(0)
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    xt = torch.randn(2, 1, 6, 6, generator=generator)
    plain, averaged = VPrediction(lambda x, log_snr: network(x)), SymmetricVPrediction(lambda x, log_snr: network(x))
    images = {
        "turned": lambda x: x.rot90(1, (2, 3)),
        "mirrored": lambda x: x.flip(3),
        "transposed": lambda x: x.mT,
        "turned the other way": lambda x: x.rot90(-1, (2, 3)),
    }
    for image in images.values():
        for of_image, of_x in zip(averaged.predict_x0(q, image(xt), 5), averaged.predict_x0(q, xt, 5), strict=True):
            torch.testing.assert_close(of_image, image(of_x))
        assert not torch.allclose(plain.predict_x0(q, image(xt), 5)[0], image(plain.predict_x0(q, xt, 5)[0]), atol=0.01)
    (mean, variance), (of_negative, variance_of_negative) = (averaged.predict_x0(q, x, 5) for x in (xt, -xt))
    torch.testing.assert_close(of_negative, -mean)
    torch.testing.assert_close(variance_of_negative, variance)

    def symmetric(x, log_snr):
        return torch.cat([torch.nn.functional.avg_pool2d(x, 3, 1, 1), x.square()], dim=1)

    for own, mean in zip(
        VPrediction(symmetric).predict_x0(q, xt, 5), SymmetricVPrediction(symmetric).predict_x0(q, xt, 5), strict=True
    ):
        torch.testing.assert_close(own, mean)


@pytest.mark.parametrize("t", [3, torch.tensor([2, 3, 4, 5])])
@pytest.mark.parametrize("kind", [X0Prediction, EpsPrediction, VPrediction])
def test_predictions_of_x0_noise_and_v_are_averaged_over(kind, t):
    """One mean and variance of x⁰ given x^t, predicted as x⁰, ε or v: p is the posterior averaged over two places."""
    q, xt = GaussianForward(log_snr_linear(5, 0.01, 0.9)), draws(4, 2)
    times = broadcast_t(t, xt)[:, None]
    signal, noise = q.alpha_bar[times], q.noise_variance[times]
    x0 = xt / 2 + times
    eps = (xt - signal.sqrt() * x0) / noise.sqrt()
    output = {X0Prediction: x0, EpsPrediction: eps, VPrediction: signal.sqrt() * eps - noise.sqrt() * x0}[kind]

    def network(x, log_snr):
        assert x.dtype == log_snr.dtype == torch.float32
        assert torch.allclose(log_snr.double(), (signal / noise).log(), rtol=1e-6)
        return torch.cat([output, (xt.square() / noise).log()], 1)

    p = kind(FunctionNetwork(network))
    law = p(q, xt, t)
    low, high = (q.posterior(xt, x0 + s * xt, t) for s in (-1, 1))  # two places of that mean, variance
    mean = (low.mean + high.mean) / 2
    assert torch.allclose(law.mean, mean, atol=1e-12)
    assert torch.allclose(law.variance, low.variance + (high.mean - mean).square(), atol=1e-12)


class PosteriorOfOneGaussian(nn.Module):
    """The outputs of `FullCovarianceVPrediction` that are exact for x⁰ ~ N(0, C): v, and the lower triangle of L."""

    def __init__(self, C):
        super().__init__()
        self.C = C

    def forward(self, x, log_snr):
        alpha_bar = torch.sigmoid(log_snr.double()).reshape(-1, 1, 1)
        gain = alpha_bar.sqrt() * self.C @ torch.linalg.inv(alpha_bar * self.C + (1 - alpha_bar) * torch.eye(2))
        x0 = (gain @ x.double()[..., None])[..., 0]
        covariance = self.C - alpha_bar.sqrt() * gain @ self.C
        L = torch.linalg.cholesky(covariance / (1 - alpha_bar)).expand(len(x), 2, 2)
        v = (alpha_bar.sqrt()[..., 0] * x - x0) / (1 - alpha_bar).sqrt()[..., 0]
        return torch.cat([v, L[:, :1, 0].log(), L[:, 1:, 0], L[:, 1:, 1].log()], dim=1)


def test_full_covariance_is_exact_for_one_gaussian():
    """Every trajectory has log p(x⁰) = log N(x⁰; 0, C), by scipy, and no two differ but by the prior's small error; a
    diagonal covariance cannot. So K is −H(X⁰)."""
    C = real([0.9, 0.7], [0.7, 1.1])
    q = GaussianForward(log_snr_linear(12, 1e-3, 1 - 1e-9))
    x0 = draws(300, 2) @ torch.linalg.cholesky(C).T
    log_density = torch.tensor(stats.multivariate_normal([0, 0], C.numpy()).logpdf(x0.numpy()))
    p = FullCovarianceVPrediction(PosteriorOfOneGaussian(C), learned_final_step)
    assert torch.allclose(trajectory_K(p, q, x0, Generator().manual_seed(0)), log_density, atol=2e-3)
    K, stderr = mean_and_stderr(evaluate(p, q, x0, Generator().manual_seed(1)).K - log_density)
    assert abs(K) < 5 * stderr < 0.5

    def diagonal(q, xt, t):
        return q.posterior_from_moments(xt, *p.predict_x0(q, xt, t), t)

    diagonal.final_step = learned_final_step
    lost, stderr = mean_and_stderr(log_density - trajectory_K(diagonal, q, x0, Generator().manual_seed(0)))
    assert lost > 5 * stderr


@pytest.mark.parametrize("t", [1, 3, torch.tensor([1, 2, 3, 4])])
def test_full_covariance_has_the_mean_and_the_diagonal_of_v_prediction(t):
    """Of the same outputs, where L is diagonal; and the covariance of x⁰ is (1−ᾱ) L Lᵀ, entry by entry."""
    q, x = GaussianForward(log_snr_linear(5, 0.02, 0.95)), draws(4, 2)

    def network(x, log_snr):
        return torch.cat([x.sin(), 0.1 * x[:, :1], 0 * x[:, :1], 0.2 * x[:, 1:]], dim=1)

    def diagonal_network(x, log_snr):
        return torch.cat([x.sin(), 0.2 * x[:, :1], 0.4 * x[:, 1:]], dim=1)

    full, diagonal = FullCovarianceVPrediction(network)(q, x, t), VPrediction(diagonal_network)(q, x, t)
    assert torch.allclose(full.mean, diagonal.mean, atol=1e-6)
    assert torch.allclose(full.covariance, torch.diag_embed(diagonal.variance), rtol=1e-5)
    p = FullCovarianceVPrediction(lambda x, log_snr: real([0, 0, 0.1, 0.4, -0.2]).float().expand(4, 5))
    _, covariance = p.predict_x0_covariance(q, x, t)
    a, b, c = math.exp(0.1), 0.4, math.exp(-0.2)
    for k, s in enumerate(broadcast_t(t, x).tolist()):
        wanted = float(q.noise_variance[s]) * real([a * a, a * b], [a * b, b * b + c * c])
        assert torch.allclose(covariance[k], wanted, atol=1e-6)


def test_prediction_of_masked_bits_is_the_ideal_where_the_network_is():
    """A table of the logits of every x^t that can be; revealed bits are certain whatever the network says."""
    points, q = heartbeat_sequences(4, 2), AbsorbingForward(linear_alpha_bar(6))
    ideal = IdealReverse(points)
    xt = torch.cartesian_prod(*[q.states] * 4)
    xt = xt[ideal.log_marginal(q, xt, 3) > -math.inf]
    prob_one, _ = ideal.predict_x0(q, xt, 3)

    def network(signs):
        assert signs.unique().tolist() == [-1, 0, 1]
        index = (signs.double() == (2 * xt - 1)[:, None]).all(-1).int().argmax(0)
        return torch.where(xt == MASK, prob_one.logit(), 7.0)[index].float()

    p = MaskedX0Prediction(network)
    for t in (1, 3, torch.full((len(xt),), 5)):
        for of_ideal, of_network in zip(ideal.predict_x0(q, xt, t), p.predict_x0(q, xt, t), strict=True):
            assert torch.allclose(of_ideal, of_network, atol=1e-6)
        assert torch.allclose(ideal(q, xt, t).probs, p(q, xt, t).probs, atol=1e-6)


def test_the_network_is_given_the_log_snr_as_it_is():
    given, q = [], GaussianForward(log_snr_linear(4, 1e-6, 1 - 1e-12))
    p = X0Prediction(lambda x, log_snr: given.append(float(log_snr)) or x.repeat(1, 2))
    for t in range(1, 5):
        p(q, draws(3, 2), t)
    assert given == pytest.approx(q.log_snr[1:].tolist(), rel=1e-6) and given[-1] < -27


def test_diffusion_model_builds_the_forward_process_at_the_present_beta():
    model = DiffusionModel(
        LearnedSchedule(log_snr_linear(5, 0.01, 0.9)), GaussianForward, KernelPerturbation(LinearInXT(4))
    )
    assert isinstance(model.forward_process(), GaussianForward) and model.forward_process().T == 5
    before = model.forward_process().beta.detach().clone()
    with torch.no_grad():
        model.schedule.logits += 1
    assert torch.equal(model.forward_process().beta[:2], before[:2]) and bool(
        (model.forward_process().beta[2:] > before[2:]).all()
    )
    other = DiffusionModel(
        LearnedSchedule(log_snr_linear(5, 0.02, 0.8)), GaussianForward, KernelPerturbation(LinearInXT(4))
    )
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.forward_process().beta, model.forward_process().beta)
    assert {name.split(".")[0] for name in model.state_dict()} == {"schedule", "p"}
    assert list(DiffusionModel(FixedSchedule(linear_alpha_bar(3)), BernoulliForward, nn.Identity()).parameters()) == []


# The final step (44), the paper's "edge step"


@pytest.mark.parametrize("prior_prob", [0.5, 0.2])
def test_final_step_of_bits_is_equation_44(prior_prob):
    """q(x¹|x⁰) π(x⁰)/π(x¹), which is already normalised over x⁰."""
    q, both = BernoulliForward(linear_alpha_bar(4), prior_prob), real(0, 1)[:, None]
    one = torch.ones(2, dtype=torch.long)
    prior = q.prior(both).log_prob(both).exp()
    for x1 in (0.0, 1.0):
        weight = q.transition(both, one).log_prob(torch.full_like(both, x1)).exp() * prior
        assert float(weight.sum()) == pytest.approx(prior_prob if x1 else 1 - prior_prob, abs=1e-14)
        assert float(q.final_step(None, real(x1)[:, None]).probs) == pytest.approx(
            float(weight[1] / weight.sum()), abs=1e-14
        )


def test_final_step_of_gaussians_is_equation_44():
    q, x0, x1 = GaussianForward(log_snr_linear(4, 0.03, 0.9)), draws(7, 2), draws(7, 2, seed=2)
    naive = q.transition(x0, torch.ones(7).long()).log_prob(x1) + q.prior(x0).log_prob(x0) - q.prior(x1).log_prob(x1)
    assert torch.allclose(q.final_step(None, x1).log_prob(x0), naive, atol=1e-10, rtol=0)


# Ancestral sampling, equations (4) and (5)


@pytest.mark.parametrize("T", [1, 2, 5])
def test_trajectory_goes_from_T_to_0_by_prior_model_and_final_step(T):
    """(4) and (5), replayed with noise written down: x^T from π, then p for t = T…2, then T_π(x⁰|x¹; β_1)."""
    q, p, noises = (
        GaussianForward(log_snr_linear(T, 0.05, 0.9) if T > 1 else real(0, 0.3)),
        LinearGaussian(T, seed=3),
        draws(T + 1, 6, 2),
    )
    path = list(sample_trajectory(p, replay(q, noises), torch.zeros(6, 2).double(), Generator()))
    assert [t for t, _ in path] == list(range(T, -1, -1))
    x = noises[0]
    assert torch.equal(path[0][1], x)
    for (_, after), t, noise in zip(path[1:], range(T, 0, -1), noises[1:], strict=True):
        b = float(q.beta[1])
        x = p.a[t] * x + p.b[t] + p.v[t].sqrt() * noise if t > 1 else math.sqrt(1 - b) * x + math.sqrt(b) * noise
        assert torch.allclose(after, x, atol=1e-13, rtol=0)


@pytest.mark.parametrize("T", [1, 2, 4])
def test_the_model_is_asked_for_t_from_T_to_2_only(T):
    p = LinearLogits(T, 2, seed=0)
    sample(p, BernoulliForward(linear_alpha_bar(T), 0.2), torch.zeros(3, 2).double(), Generator().manual_seed(0))
    assert p.seen == [{t} for t in range(T, 1, -1)]


def test_sample_is_the_end_of_a_trajectory_and_repeats_with_its_seed():
    q, p, like = BernoulliForward(linear_alpha_bar(4), 0.2), LinearLogits(4, 3, seed=5), torch.zeros(50, 3).double()
    *_, (t, end) = sample_trajectory(p, q, like, Generator().manual_seed(1))
    assert t == 0 and end.dtype == torch.float64
    assert torch.equal(sample(p, q, like, Generator().manual_seed(1)), end)
    assert not torch.equal(sample(p, q, like, Generator().manual_seed(2)), end)


def test_noise_and_denoise_keeps_what_noise_left_of_it():
    """q up to t, then q's own kernel down: of x⁰ ~ N(0, 1), ᾱ_t is left, and the law stays; 5 standard errors."""
    q, x0, t = GaussianForward(log_snr_linear(8, 0.02, 0.97)), draws(40_000, 1), 5
    x = noise_and_denoise(lambda q, x, t: q.transition(x, t), q, x0, t, Generator().manual_seed(0))
    left = float((1 - q.beta[1 : t + 1]).prod())
    assert 0.3 < left < 0.9
    assert float((x * x0).mean()) == pytest.approx(left, abs=5 * math.sqrt((1 + left**2) / len(x)))
    assert float(x.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / len(x)))


def test_sampling_records_no_gradient():
    model = DiffusionModel(
        LearnedSchedule(log_snr_linear(3, 0.01, 0.9)), GaussianForward, KernelPerturbation(LinearInXT(4))
    )
    path = sample_trajectory(model.p, model.forward_process(), torch.zeros(2, 2).double(), Generator().manual_seed(0))
    assert not any(x.requires_grad for _, x in path)


@pytest.mark.parametrize(("prior_prob", "seed"), [(0.5, 0), (0.2, 10), (0.2, 20)])
def test_samples_of_bits_have_the_probabilities_of_their_reverse_process(prior_prob, seed):
    """p(x⁰), equation (6), by summing over all trajectories of 2 bits; counts within 5 standard errors."""
    T, n, states = 3, 40_000, all_states(2)
    q, p = BernoulliForward(linear_alpha_bar(T), prior_prob), LinearLogits(T, 2, seed)
    probability = q.prior(states).log_prob(states).sum(1).exp()
    for t in range(T, 0, -1):
        steps = torch.full((4,), t)
        law = p(q, states, steps) if t > 1 else q.transition(states, steps)
        probability = probability @ law.log_prob(states[:, None]).sum(-1).exp().T
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    x0 = sample(p, q, torch.zeros(n, 2).double(), Generator().manual_seed(seed))
    share = torch.bincount((x0 @ real(2, 1)).long(), minlength=4) / n
    errors = (probability * (1 - probability) / n).sqrt()
    assert bool(((share - probability).abs() < 5 * errors).all())
    assert float((probability - probability.mean()).abs().max()) > 0.1  # the model is far from uniform


def test_samples_of_a_linear_gaussian_reverse_process_have_its_moments():
    """Mean and variance of p(x⁰) composed step by step; 5 standard errors of n samples."""
    T, n = 5, 40_000
    q, p = GaussianForward(log_snr_linear(T, 0.05, 0.9)), LinearGaussian(T, seed=7)
    mean, variance = 0.0, 1.0
    for t in range(T, 1, -1):
        a, b, v = float(p.a[t]), float(p.b[t]), float(p.v[t])
        mean, variance = a * mean + b, a**2 * variance + v
    keep = 1 - float(q.beta[1])
    mean, variance = math.sqrt(keep) * mean, keep * variance + 1 - keep
    x0 = sample(p, q, torch.zeros(n, 1).double(), Generator().manual_seed(7))
    assert float(x0.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(x0.var()) == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / n))


def test_the_ideal_model_samples_heartbeats():
    """T = 50: what is left to fail is the final step, which flips 0.128 bits a sequence, and the factored kernel."""
    points, n = heartbeat_sequences(), 2_000
    q, p = BernoulliForward(linear_alpha_bar(50), 0.2), IdealReverse(points)
    path = dict(sample_trajectory(p, q, torch.zeros(n, 20).double(), Generator().manual_seed(0)))
    valid = p.log_prob(path[0]).isfinite()
    final_step_right = (1 - 0.8 / 50) ** 4 * (1 - 0.2 / 50) ** 16
    assert final_step_right - 0.1 < float(valid.double().mean()) < final_step_right + 0.03
    counts = (path[0][valid][:, None] == points).all(-1).sum(0)
    assert bool(((counts / counts.sum() - 0.2).abs() < 5 * math.sqrt(0.16 / int(counts.sum()))).all())
    assert float(p.log_prob(path[50]).isfinite().double().mean()) < 0.01  # it began as noise


# One t for the batch, or one per sample


@pytest.mark.parametrize("t", [2, 3, 5])
@pytest.mark.parametrize(
    "p",
    [
        LogitPrediction(LinearInXT(3)),
        LogitPrediction(SigmoidMLP(BernoulliForward(linear_alpha_bar(5), 0.2), 3, width=4, n_layers=2, n_shared=2)),
        BitX0Prediction(mlp(4, width=4, n_layers=1, outputs=3)),
    ],
    ids=["LogitPrediction", "SigmoidMLP", "BitX0Prediction"],
)
def test_one_t_for_a_batch_of_bits_is_that_t_for_each(p, t):
    q, xt = BernoulliForward(linear_alpha_bar(5), 0.2), all_states(3)
    off_its_start(p)
    with torch.no_grad():
        alike, each, other = p(q, xt, t), p(q, xt, torch.full((8,), t)), p(q, xt, 4)
    assert alike.logits.shape == xt.shape and torch.allclose(alike.logits, each.logits, atol=1e-5, rtol=0)
    assert float((alike.logits - other.logits).abs().max()) > 1e-3  # and t matters


@pytest.mark.parametrize("t", [2, 3, 5])
@pytest.mark.parametrize(
    "p",
    [
        KernelPerturbation(LinearInXT(4)),
        KernelPerturbation(RBFNetwork(5, inputs=2, n_units=4, outputs=4), fixed_point_mean),
        X0Prediction(FourierMLP(2, width=4, n_layers=1, n_frequencies=1)),
        EpsPrediction(FourierMLP(2, width=4, n_layers=1, n_frequencies=1)),
        VPrediction(FourierMLP(2, width=4, n_layers=1, n_frequencies=1)),
    ],
    ids=["KernelPerturbation", "RBFNetwork", "X0Prediction", "EpsPrediction", "VPrediction"],
)
def test_one_t_for_a_batch_of_reals_is_that_t_for_each(p, t):
    q, xt = GaussianForward(log_snr_linear(5, 0.01, 0.9)), draws(6, 2)
    off_its_start(p)
    with torch.no_grad():
        alike, each, other = p(q, xt, t), p(q, xt, torch.full((6,), t)), p(q, xt, 4)
    assert alike.mean.shape == each.mean.shape == xt.shape
    assert torch.allclose(alike.mean, each.mean, atol=1e-5, rtol=0)
    assert torch.allclose(alike.stddev, each.stddev, atol=1e-5, rtol=0)
    assert float((alike.mean - other.mean).abs().max()) > 1e-3
