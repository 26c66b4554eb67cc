"""The networks of Appendix D: each forward pass against its formula written out, and each start against its claim."""

import math

import pytest
import torch
from torch import Generator, nn

from dpm.bound import evaluate
from dpm.forward import Binomial, Gaussian
from dpm.networks import (
    BinomialDenoiser,
    GaussianDenoiser,
    StepMLP,
    StepRBF,
    StepReadout,
    bumps,
    copying_layer,
    mlp,
)
from dpm.reverse import BinomialStep, Denoise
from dpm.schedules import erase_evenly, geometric


@pytest.fixture(autouse=True)
def same_first_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


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


@pytest.mark.parametrize(("T", "count"), [(2, 2), (40, 7), (2000, 64)])
def test_bumps_are_equation_63_in_log_t_over_T_minus_t_plus_1(T, count):
    g = bumps(T, count)
    assert g.shape == (T + 1, count)
    assert close(g.sum(1), torch.ones(T + 1))
    first, last = -math.log(T), math.log(T)
    width = (last - first) / (count - 1)
    for t in {1, 2, T // 2 + 1, T}:
        u = math.log(t / (T - t + 1))
        naive = [math.exp(-((u - first - j * width) ** 2) / (2 * width**2)) for j in range(count)]
        assert g[t].tolist() == pytest.approx([value / sum(naive) for value in naive], abs=1e-5)
    assert g[1].argmax() == 0 and g[T].argmax() == count - 1


def test_no_bumps_are_an_empty_table():
    assert bumps(5, 0).shape == (6, 0)


def readout(T=6, inputs=3, outputs=2, ties=4, scale=0.5):
    return StepReadout(draws(T + 1, inputs + 1, outputs, seed=7), ties, scale)


def test_bumps_and_start_are_no_parameters_and_fill_no_weights_file():
    names = {"own", "shared"}
    assert {name for name, _ in readout().named_parameters()} == set(readout().state_dict()) == names


def test_readout_is_its_own_linear_layer_plus_the_smooth_part():
    """own_t + Σ_j g_j(t) V_j, written out sample by sample, the constant 1 last."""
    layer = scramble(readout())
    h, t = draws(5, 3), torch.tensor([1, 6, 3, 3, 2])
    g, shared = bumps(6, 4), layer.shared.view(4, 4, 2)
    naive = []
    for i, s in enumerate(t.tolist()):
        weight = layer.start[s] + 0.5 * layer.own[s] + sum(g[s, j] * shared[j] for j in range(4))
        naive.append(torch.cat([h[i], torch.ones(1)]) @ weight)
    assert close(layer(h, t), torch.stack(naive))


def test_readout_starts_at_start():
    layer, h = readout(), draws(6, 3)
    t = torch.arange(1, 7)
    naive = [torch.cat([h[i], torch.ones(1)]) @ layer.start[i + 1] for i in range(6)]
    assert close(layer(h, t), torch.stack(naive))


@pytest.mark.parametrize("ties", [0, 4])
def test_readout_gives_every_t_a_layer_of_its_own(ties):
    """D.1.1, D.1.2: what is learned at t = 3 alone changes nothing at any other t."""
    layer = scramble(readout(ties=ties))
    h, t = draws(1, 3).expand(6, 3), torch.arange(1, 7)
    before = layer(h, t).detach()
    with torch.no_grad():
        layer.own[3] += draws(4, 2, seed=9)
    changed = (layer(h, t) != before).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_tied_readout_shares_its_smooth_part_over_t():
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
    network, x = scramble(StepRBF(5, inputs=2, units=16, outputs=4)), draws(batch, 2)
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
    network, x, t = StepRBF(5, 2, 16, 4), draws(batch, 2), torch.arange(batch) % 5 + 1
    assert torch.equal(network(x, t), torch.zeros(batch, 4))
    scramble(network)
    assert close(network(x, t), network.readout(network.activations(x), t))
    assert float(network(x, t).detach().abs().min()) > 0
    assert float(network(100 * x, t).detach().abs().max()) < 10  # no activation, and normalised: bounded


def test_mlp_of_the_heartbeat_is_three_layers_of_50_sigmoid_units_shared_over_t():
    """D.1.2, written out from the weights."""
    q = Binomial(erase_evenly(7), 0.2)
    network = scramble(StepMLP(q, 20, width=50, layers=3, ties=4), size=0.05)
    x, t = torch.randint(2, (6, 20), generator=Generator().manual_seed(0)).float(), torch.tensor([1, 7, 3, 3, 2, 5])
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if name.startswith("hidden")]
    assert shapes == [(50, 20), (50,), (50, 50), (50,), (50, 50), (50,)]
    h = x
    for layer in network.hidden:
        h = 1 / (1 + torch.exp(-(h @ layer.weight.T + layer.bias)))
    assert close(network.activations(x), h - 0.5)
    assert close(network(x, t), network.readout(h - 0.5, t), atol=1e-4)
    assert network(x[:1], t[:1]).shape == (1, 20)


@pytest.mark.parametrize("rate", [0.5, 0.2])
@pytest.mark.parametrize(("T", "bits", "layers"), [(5, 3, 1), (50, 4, 3), (2000, 4, 2)])
def test_mlp_starts_at_the_reversal_that_keeps_pi(T, bits, layers, rate):
    """At every state and t its logits are those of the forward kernel, but for float32 rounding."""
    q = Binomial(erase_evenly(T), rate)
    p = BinomialStep(StepMLP(q, bits, width=10, layers=layers, ties=3))
    states = all_states(bits)
    for t in {2, 3, T // 2 + 1, T - 1, T}:
        steps = torch.full((len(states),), t)
        assert close(p(q, states, steps).logits.detach(), q.step(states, steps).logits, atol=5e-6)


def test_mlp_starts_at_K_of_the_identity_reversal():
    """So training starts at K = L_null: the same noise gives the same K as the forward kernel, whose K is L_null."""
    q = Binomial(erase_evenly(20), 0.2)
    x0 = all_states(5)
    network = BinomialStep(StepMLP(q, 5, width=12, layers=3, ties=4))
    K, same = (evaluate(p, q, x0, Generator().manual_seed(1)).K for p in (network, lambda q, xt, t: q.step(xt, t)))
    assert close(K, same, atol=1e-6)


def test_copying_layer_repeats_bits():
    layer = copying_layer(4, 9, copies=3)
    x = all_states(4).float()
    copied = torch.sigmoid(layer(x))[:, :3].detach()
    assert torch.equal(copied > 0.5, x[:, :3] > 0.5)
    assert float((copied - x[:, :3]).abs().max()) < 0.02


def test_smooth_mlp_starts_at_zero_with_the_layers_asked_for():
    network = mlp(3, width=8, layers=2, outputs=5)
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
    q, bits = Binomial(erase_evenly(5), 0.2), (draws(5, 4) > 0).float()
    mlp_network = scramble(StepMLP(q, 4, width=6, layers=2, ties=3), size=0.05)
    rbf = scramble(StepRBF(5, 2, 8, 4))
    gaussian = scramble(GaussianDenoiser(2, width=8, layers=2, octaves=1))
    binomial = scramble(BinomialDenoiser(4, width=8, layers=2))
    answers = (
        (mlp_network, mlp_network(bits, t)),
        (rbf, rbf(draws(5, 2), t)),
        (gaussian, torch.cat(gaussian(Gaussian(geometric(5, 0.01, 0.9)), draws(5, 2), t))),
        (binomial, binomial(q, bits, t)[0]),
    )
    for network, answer in answers:
        assert {name for name, _ in network.named_buffers()} <= {"readout.start", "readout.bumps"}
        answer.square().sum().backward()
        for parameter in network.parameters():
            assert parameter.requires_grad
            assert parameter.numel() == 0 or bool(parameter.grad.any())  # without ties nothing is shared


# Denoisers


def test_gaussian_denoiser_starts_at_the_exact_answer_for_normal_data():
    """x⁰ ~ N(0,1): mean and variance of x⁰ given x^t by quadrature over x⁰; the reversal is the forward kernel."""
    q = Gaussian(geometric(6, 0.01, 0.95))
    p = GaussianDenoiser(2, width=8, layers=2, octaves=3)
    xt = draws(5, 2).double()
    x0 = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
    for t in range(1, 7):
        steps = torch.full((5,), t)
        mean, variance = (moment.detach() for moment in p(q, xt, steps))
        assert mean.dtype == variance.dtype == torch.float64
        likelihood = q.marginal(x0, torch.full((len(x0),), t))
        for i in range(5):
            for j in range(2):
                weight = torch.softmax((likelihood.log_prob(xt[i, j]) - x0**2 / 2).flatten(), 0)
                m = (weight @ x0).item()
                assert float(mean[i, j]) == pytest.approx(m, abs=1e-9)
                assert float(variance[i, j]) == pytest.approx((weight @ (x0 - m) ** 2).item(), abs=1e-9)
        if t > 1:
            law, kernel = Denoise(p)(q, xt, steps), q.step(xt, steps)
            assert close(law.mean.detach(), kernel.mean, 1e-12)
            assert close(law.variance.detach(), kernel.variance, 1e-12)


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_binomial_denoiser_starts_at_the_exact_answer_for_independent_bits(rate):
    """P(x⁰=1|x^t) by Bayes' rule, bit by bit; the reversal is the forward kernel, so K starts at L_null."""
    q, states = Binomial(erase_evenly(6), rate), all_states(3)
    p = BinomialDenoiser(3, width=8, layers=2)
    for t in range(1, 7):
        steps = torch.full((len(states),), t)
        mean, variance = p(q, states, steps)
        one, zero = (
            weight * q.marginal(torch.full_like(states, b), steps).log_prob(states).exp()
            for b, weight in ((1.0, rate), (0.0, 1 - rate))
        )
        assert close(mean.detach(), one / (one + zero), 1e-12)
        assert close(variance.detach(), (mean * (1 - mean)).detach(), 1e-15)
        if t > 1:
            assert close(Denoise(p)(q, states, steps).probs.detach(), q.step(states, steps).probs, 1e-12)


class Says(nn.Module):
    """A network that always answers the same."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor([values])

    def forward(self, features):
        return self.values.expand(len(features), -1)


def test_gaussian_denoiser_moves_in_units_of_the_noise_left():
    q = Gaussian(geometric(6, 0.01, 0.95))
    p = GaussianDenoiser(2, width=8, layers=2, octaves=3)
    p.mlp = Says(0.5, -1.0, 0.25, -2.0)
    xt = draws(3, 2).double()
    for t in range(1, 7):
        mean, variance = p(q, xt, torch.full((3,), t))
        signal = math.prod(1 - b for b in q.beta[: t + 1].tolist())
        shift = math.sqrt(1 - signal) * torch.tensor([0.5, -1.0], dtype=torch.float64)
        spread = (1 - signal) * torch.tensor([0.25, -2.0], dtype=torch.float64).exp()
        assert close(mean, math.sqrt(signal) * xt + shift, 1e-12)
        assert close(variance, spread.expand(3, 2), 1e-12)


def test_binomial_denoiser_adds_log_odds():
    q = Binomial(erase_evenly(6), 0.2)
    p = BinomialDenoiser(2, width=8, layers=2)
    states, t = all_states(2), torch.full((4,), 3)
    before = p(q, states, t)[0].logit()
    p.mlp = Says(0.5, -1.0)
    after = p(q, states, t)[0].logit()
    assert close((after - before).detach(), torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(4, 2), 1e-12)


class Listens(nn.Module):
    """A network that notes what it is told."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, features):
        self.told = features
        return torch.zeros(len(features), self.outputs)


def test_denoisers_tell_their_network_the_level_of_the_noise():
    """One feature is the same for every x^t and moves one way with t."""
    gaussian, binomial = GaussianDenoiser(2, width=8, layers=2, octaves=3), BinomialDenoiser(2, width=8, layers=2)
    gaussian.mlp, binomial.mlp = Listens(4), Listens(2)
    for q, p in ((Gaussian(geometric(6, 0.01, 0.95)), gaussian), (Binomial(erase_evenly(6), 0.2), binomial)):
        told = []
        for t in range(1, 7):
            p(q, all_states(2), torch.full((4,), t))
            told.append(p.mlp.told)
        features = torch.stack(told)  # [t, sample, feature]
        same = (features == features[:, :1]).all(1).all(0)
        moves = features[:, 0].diff(dim=0).sign()
        assert bool((same & (moves[0] != 0) & (moves == moves[0]).all(0)).any())


def test_gaussian_denoiser_tells_its_network_waves_of_x():
    p, xt = GaussianDenoiser(2, width=8, layers=2, octaves=3), draws(5, 2).double()
    p.mlp = Listens(4)
    p(Gaussian(geometric(6, 0.01, 0.95)), xt, torch.full((5,), 3))
    columns = list(p.mlp.told.T)
    waves = [wave(1.5 * 2**k * xt.float()) for k in range(3) for wave in (torch.sin, torch.cos)]
    for column in torch.cat([xt.float(), *waves], 1).T:
        assert any(close(column, told) for told in columns)
    assert len(columns) == 1 + 2 + 2 * 6


@pytest.mark.parametrize("batch", [1, 6])
def test_trained_denoisers_hear_every_entry_and_t(batch):
    gaussian = scramble(GaussianDenoiser(2, width=8, layers=2, octaves=3))
    binomial = scramble(BinomialDenoiser(2, width=8, layers=2))
    for q, p, xt in (
        (Gaussian(geometric(6, 0.01, 0.95)), gaussian, draws(batch, 2).double()),
        (Binomial(erase_evenly(6), 0.2), binomial, (draws(batch, 2) > 0).double()),
    ):
        t = torch.full((batch,), 3)
        mean, variance = p(q, xt, t)
        assert mean.shape == variance.shape == xt.shape and bool((variance > 0).all())
        other = xt.clone()
        other[:, 1] = 1 - other[:, 1]
        assert bool((p(q, other, t)[0][:, 0] != mean[:, 0]).all())
        assert bool((p(q, xt, t + 1)[0] != mean).all())
        for i in range(batch):  # a sample's answer is its own, whatever its batch
            assert close(p(q, xt[i : i + 1], t[i : i + 1])[0], mean[i : i + 1], 1e-5)
