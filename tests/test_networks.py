"""The networks of Appendix D: each forward pass against its formula written out, and each start against its claim."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch import Generator, nn
from torch.nn.functional import conv2d

from dpm import profiling
from dpm.bound import evaluate
from dpm.forward import BernoulliForward, GaussianForward
from dpm.networks.denoisers import FourierMLP, ImageDenoiser, NoiseLevelExperts
from dpm.networks.layers import (
    EMBEDDING_SIZE,
    MultiScaleSum,
    damped_fourier_features,
    log_odds_rbf,
    mlp,
    noise_embedding,
    rbf,
    time_rbf,
)
from dpm.networks.paper import (
    SOFTPLUS_MEAN,
    SOFTPLUS_VARIANCE,
    BumpReadout,
    ConvPathway,
    DensePathway,
    MultiScaleConv,
    PaperImageNetwork,
    PerTimestepLinear,
    RBFNetwork,
    SigmoidMLP,
    copying_layer,
)
from dpm.networks.unet import ConditionalSequential, MultiScaleBlock, ResidualBlock, UNetLevel, u_net
from dpm.profiling import count_macs, peak_macs_per_second
from dpm.reverse import BitX0Prediction, KernelPerturbation, LogitPrediction, VPrediction
from dpm.schedules import beta_from_alpha_bar, linear_alpha_bar, log_snr_linear


@pytest.fixture(autouse=True)
def same_first_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def point_model(dimensions=2, n_frequencies=3):
    """Our reverse model of points, small."""
    return VPrediction(FourierMLP(dimensions, width=8, n_layers=2, n_frequencies=n_frequencies))


def bit_model(bits):
    """Our reverse model of bits, small."""
    return BitX0Prediction(mlp(1 + bits, width=8, n_layers=2, outputs=bits))


def u_net_model(n_frequencies=0, widths=(4,), depths=(1,)):
    """Our reverse model of grey pictures, a small U-Net."""
    return VPrediction(ImageDenoiser(1, widths[0], u_net(widths, depths), n_frequencies))


def scramble(module, seed=0, size=0.3):
    """Move every parameter off its start."""
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return module


def draws(*shape, seed=1):
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def all_states(bits):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * bits).reshape(-1, bits)


def close(a, b, atol=1e-6):
    return a.shape == b.shape and torch.allclose(a, b, atol=atol, rtol=0)


# Bumps and readouts


def naive_bumps(u, centres, width):
    values = [math.exp(-((u - centre) ** 2) / (2 * width**2)) for centre in centres]
    return [value / sum(values) for value in values]


def test_bumps_are_equation_63():
    g = rbf(torch.tensor([-1.0, 0.3, 7.0]), torch.tensor([-2.0, 0.0, 5.0]), 1.5)
    for row, u in zip(g.tolist(), (-1.0, 0.3, 7.0), strict=True):
        assert row == pytest.approx(naive_bumps(u, (-2, 0, 5), 1.5), abs=1e-6)


@pytest.mark.parametrize(("T", "count"), [(2, 2), (40, 7), (2000, 64)])
def test_odds_bumps_are_equation_63_in_log_t_over_T_minus_t_plus_1(T, count):
    g = log_odds_rbf(T, count)
    assert g.shape == (T + 1, count)
    assert close(g.sum(1), torch.ones(T + 1))
    first, last = -math.log(T), math.log(T)
    width = (last - first) / (count - 1)
    for t in {1, 2, T // 2 + 1, T}:
        naive = naive_bumps(math.log(t / (T - t + 1)), [first + j * width for j in range(count)], width)
        assert g[t].tolist() == pytest.approx(naive, abs=1e-5)
    assert g[1].argmax() == 0 and g[T].argmax() == count - 1


def test_odds_bumps_stay_what_the_shipped_weights_were_trained_with():
    """The heartbeat's 64 bumps over 2000 steps, written down when its weights were made."""
    g = log_odds_rbf(2000, 64)
    assert g[3, :3].tolist() == pytest.approx([1.23e-05, 0.0007135, 0.0151732], abs=1e-6)
    assert g[1234, 30:35].tolist() == pytest.approx([0.0009665, 0.018852, 0.1352767, 0.3571057, 0.3467981], abs=1e-6)


def test_no_basis_functions_are_an_empty_table():
    assert log_odds_rbf(5, 0).shape == (6, 0)


@pytest.mark.parametrize(("T", "count"), [(10, 1), (1000, 10), (500, 7)])
def test_time_bumps_are_equation_63_with_centres_evenly_inside_0_T(T, count):
    g = time_rbf(T, count)
    assert g.shape == (T + 1, count) and close(g.sum(1), torch.ones(T + 1))
    centres = [T * (2 * j + 1) / (2 * count) for j in range(count)]
    assert centres[0] > 0 and centres[-1] < T
    for t in {1, 2, T // 3, T}:
        assert g[t].tolist() == pytest.approx(naive_bumps(t, centres, T / count), abs=1e-5)


def readout(T=6, inputs=3, outputs=2, n_shared=4, scale=0.5):
    return PerTimestepLinear(draws(T + 1, inputs + 1, outputs, seed=7), n_shared, scale)


def test_basis_and_init_are_no_parameters_and_fill_no_weights_file():
    names = {"per_timestep", "shared"}
    assert {name for name, _ in readout().named_parameters()} == set(readout().state_dict()) == names


def test_readout_is_a_linear_layer_per_timestep_plus_the_shared_part():
    """per_timestep_t + Σ_j g_j(t) V_j, written out sample by sample, the constant 1 last."""
    layer = scramble(readout())
    h, t = draws(5, 3), torch.tensor([1, 6, 3, 3, 2])
    g, shared = log_odds_rbf(6, 4), layer.shared.view(4, 4, 2)
    naive = []
    for i, s in enumerate(t.tolist()):
        weight = layer.init[s] + 0.5 * layer.per_timestep[s] + sum(g[s, j] * shared[j] for j in range(4))
        naive.append(torch.cat([h[i], torch.ones(1)]) @ weight)
    assert close(layer(h, t), torch.stack(naive))


def test_readout_starts_at_init():
    layer, h = readout(), draws(6, 3)
    t = torch.arange(1, 7)
    naive = [torch.cat([h[i], torch.ones(1)]) @ layer.init[i + 1] for i in range(6)]
    assert close(layer(h, t), torch.stack(naive))


@pytest.mark.parametrize("n_shared", [0, 4])
def test_readout_gives_every_t_a_layer_of_its_own(n_shared):
    """D.1.1, D.1.2: what is learned at t = 3 alone changes nothing at any other t."""
    layer = scramble(readout(n_shared=n_shared))
    h, t = draws(1, 3).expand(6, 3), torch.arange(1, 7)
    before = layer(h, t).detach()
    with torch.no_grad():
        layer.per_timestep[3] += draws(4, 2, seed=9)
    changed = (layer(h, t) != before).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_readout_shares_its_basis_weights_over_t():
    layer = readout()
    h, t = draws(1, 3).expand(6, 3), torch.arange(1, 7)
    before = layer(h, t).detach()
    with torch.no_grad():
        layer.shared += draws(*layer.shared.shape, seed=9)
    assert bool((layer(h, t) != before).any(1).all())


# The paper's two networks


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_rbf_activations_are_normalised_gaussians(batch):
    """D.1.1: exp(−|x−c|²/2w²), each row of sum 1."""
    network, x = scramble(RBFNetwork(5, inputs=2, n_units=16, outputs=4)), draws(batch, 2)
    h = network.activations(x)
    assert h.shape == (batch, 16) and bool((h > 0).all())
    assert close(h.sum(1), torch.ones(batch))
    widths = network.log_width.exp()
    for i in range(batch):
        naive = torch.stack(
            [torch.exp(-((x[i] - network.centres[j]) ** 2).sum() / (2 * widths[j] ** 2)) for j in range(16)]
        )
        assert close(h[i], naive / naive.sum())


@pytest.mark.parametrize("batch", [1, 5])
def test_rbf_network_starts_at_zero_and_reads_its_activations_out(batch):
    network, x, t = RBFNetwork(5, 2, 16, 4), draws(batch, 2), torch.arange(batch) % 5 + 1
    assert torch.equal(network(x, t), torch.zeros(batch, 4))
    scramble(network)
    assert close(network(x, t), network.readout(network.activations(x), t))
    assert float(network(x, t).detach().abs().min()) > 0
    assert float(network(100 * x, t).detach().abs().max()) < 10  # no activation, and normalised: bounded


def test_rbf_centres_start_like_standard_data_and_of_width_1():
    network = RBFNetwork(2, inputs=2, n_units=5_000, outputs=1)
    assert torch.equal(network.log_width, torch.zeros(5_000))
    assert close(network.centres.mean(0).detach(), torch.zeros(2), 0.06)
    assert close(network.centres.std(0).detach(), torch.ones(2), 0.06)


def test_mlp_of_the_heartbeat_is_three_layers_of_50_sigmoid_units_shared_over_t():
    """D.1.2, written out from the weights."""
    q = BernoulliForward(linear_alpha_bar(7), 0.2)
    network = scramble(SigmoidMLP(q, 20, width=50, n_layers=3, n_shared=4), size=0.05)
    x, t = torch.randint(2, (6, 20), generator=Generator().manual_seed(0)).float(), torch.tensor([1, 7, 3, 3, 2, 5])
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if name.startswith("hidden")]
    assert shapes == [(50, 20), (50,), (50, 50), (50,), (50, 50), (50,)]
    h = x
    for layer in network.hidden:
        h = 1 / (1 + torch.exp(-(h @ layer.weight.T + layer.bias)))
    assert close(network.activations(x), h - 0.5)
    assert close(network(x, t), network.readout(h - 0.5, t), atol=1e-4)
    assert network(x[:1], t[:1]).shape == (1, 20)


@pytest.mark.parametrize("prior_prob", [0.5, 0.2])
@pytest.mark.parametrize(("T", "bits", "layers"), [(5, 3, 1), (50, 4, 3), (2000, 4, 2)])
def test_mlp_starts_at_the_reversal_that_keeps_pi(T, bits, layers, prior_prob):
    """At every state and t its logits are those of the forward kernel, but for float32 rounding."""
    q = BernoulliForward(linear_alpha_bar(T), prior_prob)
    p = LogitPrediction(SigmoidMLP(q, bits, width=10, n_layers=layers, n_shared=3))
    states = all_states(bits)
    for t in {2, 3, T // 2 + 1, T - 1, T}:
        steps = torch.full((len(states),), t)
        assert close(p(q, states, steps).logits.detach(), q.transition(states, steps).logits, atol=5e-6)


def test_weights_of_one_t_of_the_mlp_learn_fifty_times_more_slowly_than_shared_ones():
    """The slope of a logit in its bias at t is 1/50, and in the shared ones Σ_j g_j(t) = 1."""
    network = SigmoidMLP(BernoulliForward(linear_alpha_bar(7), 0.2), 4, width=6, n_layers=2, n_shared=3)
    network(torch.ones(1, 4), torch.tensor([5]))[0, 2].backward()
    alone, shared = network.readout.per_timestep.grad, network.readout.shared.grad.view(3, 7, 4)
    assert float(alone[5, -1, 2]) == pytest.approx(1 / 50)
    assert float(shared[:, -1, 2].sum()) == pytest.approx(1)


def test_a_network_can_be_built_under_another_default_type():
    q = BernoulliForward(linear_alpha_bar(6), prior_prob=0.2)
    torch.set_default_dtype(torch.float64)
    try:
        p = LogitPrediction(SigmoidMLP(q, 5, width=12, n_layers=3, n_shared=4).float())
    finally:
        torch.set_default_dtype(torch.float32)
    x, t = torch.eye(5, dtype=torch.float64), torch.full((5,), 3)
    assert torch.allclose(p(q, x, t).probs, q.transition(x, t).probs, atol=1e-6)


def test_mlp_starts_at_K_of_the_identity_reversal():
    """So training starts at K = L_null: the same noise gives the same K as the forward kernel, whose K is L_null."""
    q = BernoulliForward(linear_alpha_bar(20), 0.2)
    x0 = all_states(5)
    network = LogitPrediction(SigmoidMLP(q, 5, width=12, n_layers=3, n_shared=4))
    K, same = (
        evaluate(p, q, x0, Generator().manual_seed(1)).K for p in (network, lambda q, xt, t: q.transition(xt, t))
    )
    assert close(K, same, atol=1e-6)


def test_copying_layer_repeats_bits():
    layer = copying_layer(4, 9, n_copies=3)
    x = all_states(4).float()
    copied = torch.sigmoid(layer(x))[:, :3].detach()
    assert torch.equal(copied > 0.5, x[:, :3] > 0.5)
    assert float((copied - x[:, :3]).abs().max()) < 0.02


def test_smooth_mlp_starts_at_zero_with_the_layers_asked_for():
    network = mlp(3, width=8, n_layers=2, outputs=5)
    assert torch.equal(network(draws(4, 3)), torch.zeros(4, 5))
    assert [tuple(m.weight.shape) for m in network if isinstance(m, nn.Linear)] == [(8, 3), (8, 8), (5, 8)]
    scramble(network)
    x = draws(4, 3)
    for m in network:
        x = x @ m.weight.T + m.bias if isinstance(m, nn.Linear) else x / (1 + torch.exp(-x))
    assert close(network(draws(4, 3)), x)


def test_every_parameter_learns():
    """Off its start, each parameter tensor of each network has a gradient."""
    t = torch.tensor([1, 2, 3, 4, 5])
    q, bits = BernoulliForward(linear_alpha_bar(5), 0.2), (draws(5, 4) > 0).float()
    mlp_network = scramble(SigmoidMLP(q, 4, width=6, n_layers=2, n_shared=3), size=0.05)
    rbf = scramble(RBFNetwork(5, 2, 8, 4))
    gaussian = scramble(point_model(n_frequencies=1))
    binomial = scramble(bit_model(4))
    answers = (
        (mlp_network, mlp_network(bits, t)),
        (rbf, rbf(draws(5, 2), t)),
        (gaussian, torch.cat(gaussian.predict_x0(GaussianForward(log_snr_linear(5, 0.01, 0.9)), draws(5, 2), t))),
        (binomial, binomial.predict_x0(q, bits, t)[0]),
    )
    for network, answer in answers:
        assert {name for name, _ in network.named_buffers()} <= {"readout.init", "readout.basis"}
        answer.square().sum().backward()
        for parameter in network.parameters():
            assert parameter.requires_grad
            assert parameter.numel() == 0 or bool(parameter.grad.any())  # where n_shared is 0 nothing is shared


# Denoisers


def test_gaussian_denoiser_starts_at_the_exact_answer_for_normal_data():
    """x⁰ ~ N(0,1): mean and variance of x⁰ given x^t by quadrature over x⁰; the reversal is the forward kernel."""
    q = GaussianForward(log_snr_linear(6, 0.01, 0.95))
    p = point_model()
    xt = draws(5, 2).double()
    x0 = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
    for t in range(1, 7):
        steps = torch.full((5,), t)
        mean, variance = (moment.detach() for moment in p.predict_x0(q, xt, steps))
        assert mean.dtype == variance.dtype == torch.float64
        likelihood = q.marginal(x0, torch.full((len(x0),), t))
        for i in range(5):
            for j in range(2):
                weight = torch.softmax((likelihood.log_prob(xt[i, j]) - x0**2 / 2).flatten(), 0)
                m = (weight @ x0).item()
                assert float(mean[i, j]) == pytest.approx(m, abs=1e-9)
                assert float(variance[i, j]) == pytest.approx((weight @ (x0 - m) ** 2).item(), abs=1e-9)
        if t > 1:
            law, kernel = p(q, xt, steps), q.transition(xt, steps)
            assert close(law.mean.detach(), kernel.mean, 1e-12)
            assert close(law.variance.detach(), kernel.variance.expand_as(xt), 1e-12)


@pytest.mark.parametrize("prior_prob", [0.5, 0.2])
def test_bit_denoiser_starts_at_the_exact_answer_for_independent_bits(prior_prob):
    """P(x⁰=1|x^t) by Bayes' rule, bit by bit; the reversal is the forward kernel, so K starts at L_null."""
    q, states = BernoulliForward(linear_alpha_bar(6), prior_prob), all_states(3)
    p = bit_model(3)
    for t in range(1, 7):
        steps = torch.full((len(states),), t)
        mean, variance = p.predict_x0(q, states, steps)
        one, zero = (
            weight * q.marginal(torch.full_like(states, b), steps).log_prob(states).exp()
            for b, weight in ((1.0, prior_prob), (0.0, 1 - prior_prob))
        )
        assert close(mean.detach(), one / (one + zero), 1e-12)
        assert close(variance.detach(), (mean * (1 - mean)).detach(), 1e-15)
        if t > 1:
            assert close(p(q, states, steps).probs.detach(), q.transition(states, steps).probs, 1e-12)


class Constant(nn.Module):
    """A network of constant output."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor([values])

    def forward(self, features):
        return self.values.expand(len(features), -1)


def test_gaussian_denoiser_predicts_v_and_a_variance_relative_to_the_noise():
    q = GaussianForward(log_snr_linear(6, 0.01, 0.95))
    p = point_model()
    p.network.mlp = Constant(0.5, -1.0, 0.25, -2.0)
    xt = draws(3, 2).double()
    for t in range(1, 7):
        mean, variance = p.predict_x0(q, xt, torch.full((3,), t))
        signal = math.prod(1 - b for b in q.beta[: t + 1].tolist())
        shift = math.sqrt(1 - signal) * torch.tensor([0.5, -1.0], dtype=torch.float64)
        spread = (1 - signal) * torch.tensor([0.25, -2.0], dtype=torch.float64).exp()
        assert close(mean, math.sqrt(signal) * xt - shift, 1e-12)
        assert close(variance, spread.expand(3, 2), 1e-12)


def test_bit_denoiser_adds_to_the_logits():
    q = BernoulliForward(linear_alpha_bar(6), 0.2)
    p = bit_model(2)
    states, t = all_states(2), torch.full((4,), 3)
    before = p.predict_x0(q, states, t)[0].logit()
    p.network = Constant(0.5, -1.0)
    after = p.predict_x0(q, states, t)[0].logit()
    assert close((after - before).detach(), torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(4, 2), 1e-12)


class Recorder(nn.Module):
    """A network that records its input."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, features):
        self.given = features
        return torch.zeros(len(features), self.outputs)


def test_denoisers_condition_their_network_on_the_noise_level():
    """One feature is the same for every x^t and moves one way with t."""
    gaussian, binomial = point_model(), bit_model(2)
    gaussian.network.mlp, binomial.network = recorders = Recorder(4), Recorder(2)
    for q, p, network in (
        (GaussianForward(log_snr_linear(6, 0.01, 0.95)), gaussian, recorders[0]),
        (BernoulliForward(linear_alpha_bar(6), 0.2), binomial, recorders[1]),
    ):
        given = []
        for t in range(1, 7):
            p.predict_x0(q, all_states(2), torch.full((4,), t))
            given.append(network.given)
        features = torch.stack(given)  # [t, sample, feature]
        same = (features == features[:, :1]).all(1).all(0)
        moves = features[:, 0].diff(dim=0).sign()
        assert bool((same & (moves[0] != 0) & (moves == moves[0]).all(0)).any())


def test_gaussian_denoiser_gives_its_network_fourier_features_of_x():
    p, xt = point_model(), draws(5, 2).double()
    p.network.mlp = Recorder(4)
    p.predict_x0(GaussianForward(log_snr_linear(6, 0.01, 0.95)), xt, torch.full((5,), 3))
    columns = list(p.network.mlp.given.T)
    features = [wave(1.5 * 2**k * xt.float()) for k in range(3) for wave in (torch.sin, torch.cos)]
    for feature in torch.cat([xt.float(), *features], 1).T:
        assert any(close(feature, column) for column in columns)
    assert len(columns) == 1 + 2 + 2 * 6


def test_an_mlp_of_points_has_two_outputs_a_coordinate_or_as_many_as_asked_for():
    for asked, found in ((None, 4), (5, 5)):
        assert FourierMLP(2, 8, 2, 3, asked)(draws(3, 2), torch.tensor(0.0)).shape == (3, found)


@pytest.mark.parametrize("batch", [1, 6])
def test_trained_denoisers_depend_on_every_entry_and_on_t(batch):
    gaussian = scramble(point_model())
    binomial = scramble(bit_model(2))
    for q, p, xt in (
        (GaussianForward(log_snr_linear(6, 0.01, 0.95)), gaussian, draws(batch, 2).double()),
        (BernoulliForward(linear_alpha_bar(6), 0.2), binomial, (draws(batch, 2) > 0).double()),
    ):
        t = torch.full((batch,), 3)
        mean, variance = p.predict_x0(q, xt, t)
        assert mean.shape == variance.shape == xt.shape and bool((variance > 0).all())
        other = xt.clone()
        other[:, 1] = 1 - other[:, 1]
        assert bool((p.predict_x0(q, other, t)[0][:, 0] != mean[:, 0]).all())
        assert bool((p.predict_x0(q, xt, t + 1)[0] != mean).all())
        for i in range(batch):  # a sample's answer is its own, whatever its batch
            assert close(p.predict_x0(q, xt[i : i + 1], t[i : i + 1])[0], mean[i : i + 1], 1e-5)


# The networks of images


def picture(*shape, seed=1):
    """Images of variance 1, like x^t halfway to noise: half a random walk over rows and columns, half noise."""
    walk = draws(*shape, seed=seed).cumsum(-1).cumsum(-2)
    walk = (walk - walk.mean((-1, -2), keepdim=True)) / walk.std((-1, -2), keepdim=True)
    return (walk + draws(*shape, seed=seed + 1)) / math.sqrt(2)


def conv_net(T=20, channels=1, J=4, scales=2):
    return PaperImageNetwork(T, channels, [ConvPathway(channels, 5, 2, 3, scales)], width=6, n_layers=2, J=J)


def dense_net(T=20, channels=1, J=4, size=4):
    return PaperImageNetwork(T, channels, [DensePathway(channels, size, 7, 2, 3)], width=6, n_layers=2, J=J)


def both_net(T=20, channels=3, J=4, size=4):
    pathways = [DensePathway(channels, size, 7, 2, 3), ConvPathway(channels, 5, 2, 3, 2)]
    return PaperImageNetwork(T, channels, pathways, width=6, n_layers=2, J=J)


@pytest.mark.parametrize(
    ("kernel", "scales", "size"), [(3, 1, (5, 7)), (3, 2, (4, 6)), (5, 3, (8, 12)), (1, 4, (8, 8))]
)
def test_multi_scale_sum_pools_convolves_upsamples_and_adds(kernel, scales, size):
    """D.2.1's steps 1 to 3, each scale alone: means of blocks, a convolution, every pixel repeated, the sum."""
    layer = scramble(MultiScaleSum(2, 3, kernel, scales, mean=0.4))
    x, total = draws(2, 2, *size), torch.zeros(2, 3, *size)
    for k, convolution in enumerate(layer.convolutions):
        f = 2**k
        blocks = (x - 0.4).reshape(2, 2, size[0] // f, f, size[1] // f, f).mean((3, 5))
        small = conv2d(blocks, convolution.weight, padding=kernel // 2)
        total += small.repeat_interleave(f, 2).repeat_interleave(f, 3)
    assert len(layer.convolutions) == scales
    assert close(layer(x), total + layer.bias.view(1, 3, 1, 1), 1e-5)


def test_multi_scale_layer_ends_in_one_softplus():
    layer, x = scramble(MultiScaleConv(2, 3, 3, 2)), draws(2, 2, 4, 4)
    plain = MultiScaleSum(2, 3, 3, 2)
    plain.load_state_dict(layer.state_dict())
    assert close(layer(x), torch.log(1 + torch.exp(plain(x))), 1e-5)


def test_the_sum_over_scales_sees_further_than_its_kernel():
    """A 3×3 kernel at 3 scales reaches across 8 pixels, and no further than its blocks of 4."""
    layer, x = MultiScaleSum(1, 1, 3, 3), torch.zeros(1, 1, 16, 16)
    x[0, 0, 0, 0] = 1
    reach = (layer(x) != layer(torch.zeros_like(x)))[0, 0]
    assert bool(reach[:8, :8].all()) and not bool(reach[8:].any()) and not bool(reach[:, 8:].any())


@pytest.mark.parametrize("size", [(6, 8), (8, 6), (10, 10)])
def test_images_that_do_not_pool_are_refused_with_the_size_the_scales_and_a_way_out(size):
    layer = MultiScaleConv(1, 2, 3, 3)
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]} do not pool to 3 scales.*multiples of 4") as refusal:
        layer(torch.zeros(1, 1, *size))
    assert "\n" not in str(refusal.value)
    assert MultiScaleConv(1, 2, 3, 2)(torch.zeros(1, 1, *size)).shape == (1, 2, *size)


def test_softplus_moments_by_quadrature():
    def moment(power):
        return quad(lambda a: math.log1p(math.exp(a)) ** power * stats.norm.pdf(a), -12, 12)[0]

    assert pytest.approx(moment(1), abs=1e-7) == SOFTPLUS_MEAN
    assert pytest.approx(moment(2) - moment(1) ** 2, abs=1e-7) == SOFTPLUS_VARIANCE


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_six_multi_scale_layers_keep_the_variance_of_their_signal(scales):
    """What of each layer's output changes from image to image: within a factor of 5, for noise and pictures."""
    for x in (draws(48, 1, 32, 32), picture(48, 1, 32, 32)):
        h = x
        for layer in ConvPathway(1, 32, 6, 3, scales):
            h = layer(h).detach()
            assert 1 / 5 < float(h.var(0).mean()) / SOFTPLUS_VARIANCE < 5
            assert SOFTPLUS_MEAN / 2 < float(h.mean()) < SOFTPLUS_MEAN * 2


def test_one_scale_starts_at_the_moments_it_is_told_of():
    """At kernel 1 and many channels, outputs of mean 0 and variance 1 from inputs of mean 3 and variance ¼."""
    x = 3 + draws(64, 200, 4, 4) / 2
    y = MultiScaleSum(200, 200, 1, 1, mean=3.0, variance=0.25)(x).detach()
    assert float(y.mean()) == pytest.approx(0, abs=0.03)
    assert float(y.var()) == pytest.approx(1, abs=0.05)


def test_dense_pathway_is_tanh_layers_over_the_whole_image():
    layer = scramble(DensePathway(2, 3, 7, 2, 4))
    x = draws(5, 2, 3, 3)
    linear = [m for m in layer if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(7, 18), (7, 7), (36, 7)]
    h = x.reshape(5, 18)
    for m in linear:
        h = torch.tanh(h @ m.weight.T + m.bias)
    assert close(layer(x), h.reshape(5, 4, 3, 3), 1e-5)


def test_tanh_layers_start_with_the_variance_kept():
    """Four layers of 500 over noise, and over pictures: between a third and three times tanh's own variance, 0.39."""
    for x in (draws(200, 1, 8, 8), picture(200, 1, 8, 8)):
        h = x
        for layer in DensePathway(1, 8, 500, 4, 2):
            h = layer(h).detach()
            if isinstance(layer, nn.Tanh):
                assert 0.39 / 3 < float(h.var(0).mean()) < 0.39 * 3


def test_bump_readout_is_equation_62_pixel_by_pixel():
    """Coefficients y_ij of every pixel, stored, then their sum over bumps."""
    layer = scramble(BumpReadout(20, inputs=3, outputs=2, J=4))
    h, t = draws(5, 3, 2, 6), torch.tensor([1, 20, 7, 7, 12])
    y = torch.einsum("jof,bfhw->bjohw", layer.weight, h) + layer.bias[:, :, None, None]
    g = [naive_bumps(s, [2.5, 7.5, 12.5, 17.5], 5) for s in t.tolist()]
    naive = torch.stack([sum(g[i][j] * y[i, j] for j in range(4)) for i in range(5)])
    assert close(layer(h, t), naive, 1e-5)


def test_image_network_puts_its_pathways_side_by_side():
    """Figure D.1, pathway by pathway."""
    network = scramble(both_net())
    x, t = draws(2, 3, 4, 4), torch.tensor([3, 17])
    dense, conv = network.pathways
    h = torch.cat([dense(x), conv(x)], 1)
    for m in network.top:
        h = torch.tanh(h) if isinstance(m, nn.Tanh) else conv2d(h, m.weight, m.bias)
    assert [m.kernel_size for m in network.top if isinstance(m, nn.Conv2d)] == [(1, 1), (1, 1)]
    assert close(network(x, t), network.readout(h, t), 1e-5)


@pytest.mark.parametrize(("network", "channels"), [(dense_net(), 1), (conv_net(), 1), (both_net(), 3)])
def test_image_networks_start_at_zero_so_that_p_starts_at_the_forward_kernel(network, channels):
    x, t = draws(3, channels, 4, 4).double(), torch.tensor([2, 11, 20])
    assert torch.equal(network(x.float(), t), torch.zeros(3, 2 * channels, 4, 4))
    q = GaussianForward(log_snr_linear(20, 0.01, 0.9))
    law, kernel = KernelPerturbation(network)(q, x, t), q.transition(x, t)
    assert close(law.mean.detach(), kernel.mean, 1e-14)
    assert close(law.variance.detach().expand_as(x), kernel.variance.expand_as(x), 1e-14)


@pytest.mark.parametrize(("network", "channels"), [(dense_net(), 1), (conv_net(), 1), (both_net(), 3)])
def test_each_image_has_an_answer_of_its_own_and_its_own_t(network, channels):
    scramble(network)
    x, t = draws(3, channels, 4, 4), torch.tensor([2, 11, 20])
    whole = network(x, t)
    assert whole.shape == (3, 2 * channels, 4, 4)
    for i in range(3):
        assert close(network(x[i : i + 1], t[i : i + 1]), whole[i : i + 1], 1e-5)
    assert bool((network(x, t.flip(0))[::2] != whole[::2]).any())


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (16, 2)])
def test_convolutions_take_images_of_any_size_that_pools(size):
    """And a patch's answer, away from borders, does not depend on what lies far from it."""
    network, t = scramble(conv_net()), torch.tensor([7, 7])
    assert network(draws(2, 1, *size), t).shape == (2, 2, *size)
    wide = draws(2, 1, 32, 32)
    inside = network(wide, t)[:, :, 12:20, 12:20]
    assert close(network(wide[:, :, 4:28, 4:28], t)[:, :, 8:16, 8:16], inside, 1e-5)


def test_images_in_channels_last_get_the_same_answer():
    network, x, t = scramble(both_net()), draws(3, 3, 4, 4), torch.tensor([2, 11, 20])
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    assert close(last, network(x, t), 1e-5)


def test_basis_functions_fill_no_weights_file_of_an_image_network():
    """A weights file holds the parameters and nothing else, though the paper's network keeps its basis in a buffer."""
    assert {name for name, _ in both_net().named_buffers()} == {"readout.basis"}
    for network in (both_net(), denoiser()):
        assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert all(parameter.requires_grad for parameter in both_net().parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wide_dense_pathway_starts_by_passing_the_picture_on(channels):
    """The first outputs are tanh of tanh of tanh of a quarter of the picture, pixel by pixel; the others are not."""
    x = draws(5, channels, 4, 4)
    for width in (16 * channels, 50):  # as wide as the picture is wide enough
        out = DensePathway(channels, 4, width, n_layers=2, outputs=channels + 2)(x)
        assert close(out[:, :channels], (x / 4).tanh().tanh().tanh(), 1e-6)
    assert (out[:, channels:].std(0) > 0.1).all()
    narrow = DensePathway(channels, 4, width=16 * channels - 1, n_layers=2, outputs=channels)(x)
    assert not close(narrow, (x / 4).tanh().tanh().tanh(), 0.1)


# What they cost


def test_cost_of_a_dense_pathway_by_hand():
    """Multiply-adds: every weight once, the 1×1 and bump layers once a pixel. Kept: each layer's input or output."""
    network, (D, pixels) = dense_net(), (16, 16)
    adds, kept = count_macs(network, draws(1, 1, 4, 4), torch.tensor([3]))
    mixing = 4 * 2 * 6  # the weights at t, from those of 4 bumps
    biases = 4 * 2
    assert adds == (D * 7 + 7 * 7 + 7 * 3 * pixels) + pixels * (3 * 6 + 6 * 6) + pixels * 6 * 2 + mixing + biases
    numbers = D + 7 + 7 + 3 * pixels + (6 + 6) * pixels  # x and what each tanh gives
    assert 4 * numbers <= kept <= 4 * numbers + 4 * (3 * pixels) + 200  # the concatenation copies; a row of weights, t


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_cost_of_a_multi_scale_layer_by_hand(scales):
    """Kernel² × inputs × outputs a place, at 8×8, 4×4, … places."""
    adds, kept = count_macs(MultiScaleConv(2, 3, 5, scales), draws(1, 2, 8, 8).requires_grad_())
    assert adds == 25 * 2 * 3 * sum((8 >> k) ** 2 for k in range(scales))
    inputs = 2 * sum((8 >> k) ** 2 for k in range(scales))  # one less its mean, and one a pooling
    assert kept == 4 * (inputs + 3 * 64)  # and what softplus is given


def test_what_a_step_keeps_does_not_grow_with_T_and_grows_with_the_batch():
    small, large = (count_macs(both_net(T=T), draws(1, 3, 4, 4), torch.tensor([3])) for T in (10, 1000))
    assert small == large
    two = count_macs(both_net(), draws(2, 3, 4, 4), torch.tensor([3, 4]))
    assert two[0] == 2 * small[0] and small[1] < two[1] <= 2 * small[1]


def test_peak_is_that_of_the_fastest_product(monkeypatch):
    """Of a hundred all but one take a second, that one half."""
    clock = itertools.accumulate([0.0] + [1.0] * 8 + [0.5] + [1.0] * 190)
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(clock))
    assert peak_macs_per_second(torch.device("cpu"), torch.float32) == pytest.approx(2 * 512**3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_stay_channels_last_from_the_first_layer_on(channels):
    """One channel has no layout of its own; what comes of it must, forwards and back, or every layer copies."""
    x, t = draws(2, channels, 8, 8).requires_grad_(), torch.tensor([3, 4])
    kept, ours, theirs = [], denoiser(channels), ConvPathway(channels, 5, n_layers=3, kernel=3, n_scales=2)
    for layer in [
        layer
        for layer in [*ours.modules(), *theirs]
        if isinstance(layer, MultiScaleSum | MultiScaleBlock | ResidualBlock | UNetLevel)
    ]:
        layer.register_forward_hook(lambda layer, given, out: kept.append(out))
        layer.register_full_backward_hook(lambda layer, back, out: kept.append(out[0]))
    mean, _ = ours.predict_x0(GaussianForward(log_snr_linear(6, 0.01, 0.95)), x, t)
    (mean.square().sum() + theirs(x).square().sum()).backward()
    assert len(kept) == 2 * (2 + 3 + 1 + 3) and all(h.is_contiguous(memory_format=torch.channels_last) for h in kept)


# Our denoiser of images


def denoiser(channels=1):
    """Of both kinds of blocks."""
    blocks = ConditionalSequential([MultiScaleBlock(6, n_scales=2), *u_net((6, 4), (1, 1))])
    return VPrediction(ImageDenoiser(channels, 6, blocks, n_frequencies=2))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_denoiser_starts_at_the_exact_answer_for_normal_data(channels):
    q, p = GaussianForward(log_snr_linear(6, 0.01, 0.95)), denoiser(channels)
    xt, t = draws(5, channels, 4, 4).double(), torch.tensor([1, 2, 3, 5, 6])
    mean, variance = (moment.detach() for moment in p.predict_x0(q, xt, t))
    for i, s in enumerate(t.tolist()):
        signal = math.prod(1 - b for b in q.beta[: s + 1].tolist())
        assert close(mean[i], math.sqrt(signal) * xt[i], 1e-12)
        assert close(variance[i], torch.full_like(xt[i], 1 - signal), 1e-12)
    law, kernel = p(q, xt[1:], t[1:]), q.transition(xt[1:], t[1:])
    assert close(law.mean.detach(), kernel.mean, 1e-12)
    assert close(law.variance.detach(), kernel.variance.expand_as(xt[1:]), 1e-12)


def test_image_denoiser_depends_on_the_noise_level_and_not_on_t():
    """Two forward processes, of 6 steps and of 11, where every other step of one has the noise of the other."""
    p = scramble(denoiser())
    short, long = GaussianForward(log_snr_linear(6, 0.01, 0.95)), GaussianForward(log_snr_linear(11, 0.01, 0.95))
    xt = draws(3, 1, 4, 4).double()
    for t in range(1, 6):
        a = torch.cat(p.predict_x0(short, xt, torch.full((3,), t)))
        assert close(a, torch.cat(p.predict_x0(long, xt, torch.full((3,), 2 * t - 1))), 1e-5)
        assert bool((a != torch.cat(p.predict_x0(long, xt, torch.full((3,), 2 * t)))).any())


def test_image_denoiser_takes_one_t_or_many_and_each_image_alone():
    p, q = scramble(denoiser(3), size=0.1), GaussianForward(log_snr_linear(6, 0.01, 0.95))
    xt, t = draws(3, 3, 8, 4).double(), torch.tensor([2, 4, 6])
    mean, variance = p.predict_x0(q, xt, t)
    assert mean.shape == variance.shape == xt.shape and bool((variance > 0).all())
    for i in range(3):
        one = int(t[i])
        assert close(p.predict_x0(q, xt, one)[0][i], mean[i], 1e-5) and close(
            p.predict_x0(q, xt, one)[1][i], variance[i], 1e-5
        )


def test_image_denoiser_is_finite_where_the_forward_process_leaves_no_signal():
    """β_T = 1: nothing is left of x⁰ in x^T, and the answer is that of hardly anything left."""
    p, xt, t = scramble(denoiser(), size=0.1), draws(2, 1, 4, 4).double(), torch.tensor([4, 4])
    gone, faint = linear_alpha_bar(4), linear_alpha_bar(4)
    faint[4] -= 1e-12
    answers = [torch.cat(p.predict_x0(GaussianForward(beta), xt, t)) for beta in (gone, faint)]
    assert bool(answers[0].isfinite().all()) and close(*answers, 1e-4)


def test_experts_answer_each_for_its_own_noise_levels():
    """At t = 1 and 2 signal prevails, or is as large as noise; at t = 3 and 4 noise prevails, and the other answers."""
    q = GaussianForward(beta_from_alpha_bar(torch.tensor([0.7, 0.5, 0.49, 0.01], dtype=torch.float64)))
    noisy, clear = scramble(denoiser(), size=0.1), scramble(denoiser(), size=0.2)
    xt, t = draws(5, 1, 4, 4).double(), torch.tensor([3, 1, 4, 2, 3])
    experts = VPrediction(NoiseLevelExperts(noisy.network, clear.network, threshold=0.505))
    both = torch.stack(experts.predict_x0(q, xt, t))
    ours, theirs = (torch.stack(p.predict_x0(q, xt, t)) for p in (noisy, clear))
    low = t > 2
    assert close(both[:, low], ours[:, low], 1e-5) and close(both[:, ~low], theirs[:, ~low], 1e-5)
    assert not close(ours, theirs, 1e-2)
    for one, p in ((2, clear), (3, noisy)):
        assert torch.equal(torch.stack(experts.predict_x0(q, xt, one)), torch.stack(p.predict_x0(q, xt, one)))


def test_at_the_threshold_itself_the_expert_of_little_noise_answers():
    x, experts = draws(2, 3), NoiseLevelExperts(lambda x, _: x + 1, lambda x, _: x, threshold=0.5)
    for log_snr in (torch.tensor(0.0), torch.zeros(2, 1)):
        assert torch.equal(experts(x, log_snr), x) and torch.equal(experts(x, log_snr - 1e-6), x + 1)


def test_denoisers_answer_where_nothing_is_left_of_the_signal():
    """β_T = 1: the logarithm of the signal is −∞ there."""
    q, x = GaussianForward(linear_alpha_bar(10)), draws(3, 2)
    for answer in point_model(n_frequencies=1).predict_x0(q, x, torch.tensor([1, 5, 10])):
        assert answer.isfinite().all()


def test_either_of_two_experts_learns_from_its_own_samples_alone():
    q, x = GaussianForward(log_snr_linear(20, 0.01, 0.9)), draws(2, 1, 4, 4)
    for t, n, taught in ((2, 2, "low"), (20, 2, "high"), (2, 1, "low"), (20, 1, "high")):
        high, low = (scramble(denoiser(), size=0.1).network for _ in range(2))
        experts = NoiseLevelExperts(high, low, threshold=0.5)
        torch.cat(VPrediction(experts).predict_x0(q, x[:n], torch.tensor([t, t])[:n])).square().sum().backward()
        for name, parameter in experts.named_parameters():
            assert parameter.grad is not None  # which DDP waits for, be it 0
            assert bool(parameter.grad.any()) == name.startswith(taught)


def test_every_parameter_of_the_image_networks_learns():
    t, q = torch.tensor([2, 11, 20]), GaussianForward(log_snr_linear(20, 0.01, 0.9))
    both, ours = scramble(both_net(), size=0.1), scramble(denoiser(3), size=0.1)
    x = draws(3, 3, 4, 4)
    for network, answer in ((both, both(x, t)), (ours, torch.cat(ours.predict_x0(q, x, t)))):
        answer.square().sum().backward()
        assert all(bool(parameter.grad.any()) for parameter in network.parameters())


@pytest.mark.parametrize(("sizes", "reach"), [(1, 3), (2, 10), (3, 22)])
def test_a_u_net_sees_as_far_as_the_smallest_size_reaches(sizes, reach):
    """The slope of a corner's answer in the pixels of its row: none beyond the convolutions of the coarsest size."""
    network = u_net_model(widths=(4,) * sizes, depths=(1,) * sizes)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.zeros(1, 1, 48, 48, requires_grad=True)
    mean, _ = network.predict_x0(GaussianForward(log_snr_linear(10, 1e-3, 0.9)), x, torch.tensor([5]))
    (slope,) = torch.autograd.grad(mean[0, 0, 0, 0], x)
    assert int(slope[0, 0, 0].nonzero().max()) == reach


def test_fourier_features_are_damped_to_their_mean_under_noise():
    """Averaged over noise, a damped feature of noisy pixels is the feature of clean ones, damped twice."""
    x, variance = draws(1, 1, 2, 2).double(), torch.tensor(0.004, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
    noisy = x + variance.sqrt() * nodes[:, None, None, None]
    clean = damped_fourier_features(x, 2 * variance, n_frequencies=3)
    for clear, seen in zip(clean, damped_fourier_features(noisy, variance, n_frequencies=3), strict=True):
        mean = (weights[:, None, None, None] * seen).sum(0, keepdim=True) / weights.sum()
        assert close(mean, clear, 1e-12)
    assert len(clean) == 6
    assert close(clean[3], (4 * math.pi * x).cos() * math.exp(-((4 * math.pi) ** 2) * 0.004), 1e-12)


def test_a_residual_block_starts_as_the_identity_and_is_conditioned_by_film():
    h, level, block = draws(2, 4, 6, 6), draws(2, EMBEDDING_SIZE), ResidualBlock(4)
    assert torch.equal(block(h, level), h)
    scramble(block)
    scale, shift = (part[:, :, None, None] for part in block.film_layer(level).split(4, dim=1))
    first, second = ((layer.weight, layer.bias) for layer in (block.conv_in, block.conv_out))
    between = conv2d(h * h.sigmoid(), *first, padding=1) * (1 + scale) + shift
    assert close(block(h, level), h + conv2d(between * between.sigmoid(), *second, padding=1), 1e-4)


def test_a_multi_scale_block_starts_as_the_identity_and_is_conditioned_by_film():
    h, level, block = draws(2, 4, 8, 8), draws(2, EMBEDDING_SIZE), MultiScaleBlock(4, n_scales=3)
    assert torch.equal(block(h, level), h)
    assert [layer.kernel_size for layer in block.multi_scale.convolutions] == [(3, 3)] * 3
    scramble(block)
    scale, shift = (part[:, :, None, None] for part in block.film_layer(level).split(4, dim=1))
    between = block.multi_scale(h) * (1 + scale) + shift
    mixed = conv2d(between * between.sigmoid(), block.conv_out.weight, block.conv_out.bias)
    assert close(block(h, level), h + mixed, 1e-4)


def test_a_u_net_has_at_each_size_as_many_blocks_of_its_width_as_asked_for():
    """Two 3×3 convolutions a block, on the way down and on the way up, and once at the smallest size."""
    layers = [layer for layer in u_net((4, 5, 6), (2, 1, 3)).modules() if isinstance(layer, nn.Conv2d)]
    found = Counter(layer.in_channels for layer in layers if layer.kernel_size == (3, 3))
    assert found == {4: 2 * 2 * 2, 5: 2 * 2 * 1, 6: 2 * 3}


def test_a_u_net_level_adds_what_it_makes_of_the_means_of_four_pixels():
    h, level = draws(2, 3, 4, 6), UNetLevel(3, 5, ConditionalSequential())
    means = h.view(2, 3, 2, 2, 3, 2).mean((3, 5))
    inside = conv2d(means, level.conv_in.weight, level.conv_in.bias)
    back = conv2d(inside, level.conv_out.weight, level.conv_out.bias)
    assert close(level(h, draws(2, EMBEDDING_SIZE)), h + back.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_a_u_net_level_refuses_a_size_that_does_not_halve():
    with pytest.raises(ValueError, match="6×5 do not pool to 2 scales"):
        UNetLevel(3, 5, ConditionalSequential())(draws(1, 3, 6, 5), draws(1, EMBEDDING_SIZE))


def test_gaussian_denoiser_is_conditioned_on_a_quarter_of_the_log_snr():
    q, p = GaussianForward(log_snr_linear(6, 0.01, 0.95)), point_model()
    p.network.mlp = Recorder(4)
    p.predict_x0(q, torch.zeros(4, 2).double(), torch.full((4,), 3))
    want = (q.alpha_bar[3] / q.noise_variance[3]).log() / 4
    assert torch.allclose(p.network.mlp.given[:, 2], want.float().expand(4), atol=1e-6)


def test_bit_denoiser_is_conditioned_on_a_quarter_of_the_log_likelihood_ratio_and_on_alpha_bar():
    q, p, xt = BernoulliForward(linear_alpha_bar(6), 0.2), bit_model(2), torch.eye(2).double()
    p.network = Recorder(2)
    t = torch.full((2,), 2)
    p.predict_x0(q, xt, t)
    want = torch.cat([q.log_likelihood_ratio(xt, t) / 4, q.alpha_bar[2].expand(2, 1)], dim=1)
    assert torch.allclose(p.network.given, want.float(), atol=1e-6)


def test_noise_is_embedded_by_rbf_from_minus_8_to_16():
    centres = torch.linspace(-8, 16, 16)
    log_snr = torch.tensor([-9.0, 0.3, 17.0])
    assert EMBEDDING_SIZE == 16
    assert torch.allclose(noise_embedding(log_snr[:, None, None, None]), rbf(log_snr, centres, 24 / 15))
    assert torch.allclose(noise_embedding(log_snr[1]), rbf(log_snr[1:2], centres, 24 / 15))


def test_fourier_features_of_a_picture_are_damped_by_its_noise_level():
    q, p, seen = GaussianForward(log_snr_linear(6, 0.01, 0.95)), u_net_model(n_frequencies=2), []
    p.network.conv_in.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    xt = torch.randn(2, 1, 4, 4, generator=Generator().manual_seed(0)).double()
    p.predict_x0(q, xt, torch.tensor([1, 5]))
    x, noise = xt.float(), q.noise_variance[[1, 5]].float().view(2, 1, 1, 1)
    features = [
        (-((2 * math.pi * 2**k) ** 2) * noise / 2).exp() * wave(2 * math.pi * 2**k * x)
        for k in (0, 1)
        for wave in (torch.sin, torch.cos)
    ]
    assert torch.allclose(seen[0], torch.cat([x, *features], dim=1), atol=1e-4)


def test_the_last_layer_of_the_image_denoiser_is_given_silu():
    q, p, seen = GaussianForward(log_snr_linear(6, 0.01, 0.95)), u_net_model(), []
    p.network.blocks.register_forward_hook(lambda _, x, h: seen.append(h))
    p.network.conv_out.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    p.predict_x0(q, torch.randn(2, 1, 4, 4).double(), torch.tensor([2, 5]))
    assert torch.allclose(seen[1], seen[0] * seen[0].sigmoid(), atol=1e-6)


def test_other_units_of_a_copying_layer_start_four_times_as_large():
    """And without a bias."""
    layer = copying_layer(50, 400, n_copies=20)
    assert not layer.bias[20:].any()
    assert float(layer.weight[20:].detach().std()) == pytest.approx(4 * math.sqrt(2 / 450), rel=0.05)


# One t


def reverse_models():
    """Every kind of reverse model that has a network, off its start: p, q, x^t."""
    gaussian, bernoulli = GaussianForward(log_snr_linear(20, 0.01, 0.9)), BernoulliForward(linear_alpha_bar(20), 0.2)
    points, bits, pictures = draws(3, 2).double(), (draws(3, 4) > 0).double(), draws(3, 3, 4, 4).double()
    experts = NoiseLevelExperts(denoiser(3).network, denoiser(3).network, threshold=0.5)
    return {
        "RBFNetwork": (KernelPerturbation(RBFNetwork(20, 2, 8, 4)), gaussian, points),
        "PaperImageNetwork": (KernelPerturbation(both_net()), gaussian, pictures),
        "SigmoidMLP": (LogitPrediction(SigmoidMLP(bernoulli, 4, 6, n_layers=2, n_shared=3)), bernoulli, bits),
        "FourierMLP": (point_model(), gaussian, points),
        "bits": (bit_model(4), bernoulli, bits),
        "ImageDenoiser": (denoiser(3), gaussian, pictures),
        "NoiseLevelExperts": (VPrediction(experts), gaussian, pictures),
    }


@pytest.mark.parametrize(
    "name",
    ["RBFNetwork", "PaperImageNetwork", "SigmoidMLP", "FourierMLP", "bits", "ImageDenoiser", "NoiseLevelExperts"],
)
def test_an_int_t_and_a_tensor_of_it_give_the_same_reverse_step(name):
    """And t is not ignored: the step before differs."""
    p, q, xt = reverse_models()[name]
    scramble(p, size=0.1)
    for t in (2, 3, 11, 20):
        one, many, other = (p(q, xt, s) for s in (t, torch.full((3,), t), t - 1))
        assert close(one.mean.detach().expand_as(xt), many.mean.detach().expand_as(xt), 1e-6)
        assert close(one.variance.detach().expand_as(xt), many.variance.detach().expand_as(xt), 1e-6)
        assert bool((one.mean != other.mean).any())
