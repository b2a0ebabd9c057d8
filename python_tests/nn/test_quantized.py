"""Quantised parameters: modes, gradients, integers, state, copies."""

import copy

import pytest
import torch
from torch import nn

from vidkernels.nn.nerv.quantized import (
    QuantizedParameter,
    fit_spreads,
    integer_values,
    quantize_parameter,
    quantize_weights,
    quantized_parameters,
    rate_bits,
    set_quantization,
)


def model(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 5))
    return net, quantize_weights(net, **options)


def test_float_changes_nothing():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 5))
    net, quantizers = model()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(net(x), plain(x))
    assert rate_bits(net) == 0
    assert list(quantizers) == ["0.weight", "2.weight", "4.weight"]


@pytest.mark.parametrize("mode", ["noise", "round"])
def test_weights_lie_within_a_step(mode):
    net, quantizers = model(mode=mode, generator=torch.Generator().manual_seed(1))
    for name, quantizer, value in quantized_parameters(net):
        step = quantizer.log_step.exp()
        weight = net.get_parameter(name.replace("weight", "parametrizations.weight.original"))
        assert weight is value
        distance = (net.get_submodule(name.rpartition(".")[0]).weight - value).abs() / step
        assert 0 < distance.max().item() <= 0.5 + 1e-5
        assert quantizer is quantizers[name]


def test_integers_are_what_rounding_computes_with():
    net, _ = model(mode="round", initial_bits=5)
    values = integer_values(net)
    assert list(values) == ["0.weight", "2.weight", "4.weight"]
    for name, value in values.items():
        assert torch.equal(value.dequantized(), net.get_submodule(name[0]).weight)
        assert value.values.dtype is torch.int32
        assert int(value.values.abs().max()) == 16  # 2^5 steps over both signs
        assert value.spread.shape == (value.values.shape[0],)


def test_the_axis_of_the_channels():
    module = nn.Module()
    scale = torch.tensor([0.1, 1.0, 10.0])
    module.latents = nn.Parameter(torch.randn(6, 3, 2, 4) * scale.view(1, 3, 1, 1))
    quantizer = quantize_parameter(module, "latents", axis=1, mode="round")
    spread = quantizer.log_spread.exp()
    assert spread.shape == (3,)
    torch.testing.assert_close(spread * quantizer.log_step.exp(), module.parametrizations.latents.original.abs().mean((0, 2, 3)))  # fmt: skip  # noqa: E501
    value = integer_values(module)["latents"]
    assert torch.equal(value.dequantized(), module.latents)
    contexts = value.contexts().view(6, 3, 2, 4)
    assert contexts.dtype is torch.uint8
    assert all(len(contexts[:, c].unique()) == 1 for c in range(3))
    assert contexts[0, :, 0, 0].tolist() == [0, 1, 2]


def test_rate_and_distortion_pull_on_the_step():
    net, quantizers = model(mode="noise", generator=torch.Generator().manual_seed(0))
    x, target = torch.randn(4, 3, 4, 4), torch.randn(4, 5)
    net(x).sub(target).square().mean().backward()
    alone = quantizers["0.weight"].log_step.grad.clone()
    assert alone != 0
    net.zero_grad()
    net(x)
    rate_bits(net).backward()
    for quantizer in quantizers.values():
        assert quantizer.log_step.grad < 0
        assert bool(quantizer.log_spread.grad.isfinite().all())


def test_training_by_the_rate_saves_bits():
    """Fitting a small map: the rate falls to a fraction, the fit stays."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    generator = torch.Generator().manual_seed(1)
    quantize_weights(net, initial_bits=7, generator=generator)
    x = torch.randn(128, 8)
    target = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2], x[:, 3].abs(), x[:, 4]], 1)
    set_quantization(net, "round")
    net(x)
    before = rate_bits(net).item()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for i in range(300):
        if i in (0, 240):
            set_quantization(net, "noise" if i == 0 else "round")
            fit_spreads(net)
        optimizer.zero_grad()
        distortion = (net(x) - target).square().mean()
        (distortion + 3e-5 * rate_bits(net)).backward()
        optimizer.step()
    assert rate_bits(net).item() < 0.5 * before
    assert distortion.item() < 0.15


def test_fitted_spreads_cost_least():
    """Against a search over the spread of each channel, and against the law that the numbers were drawn from."""
    g = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (5, 4000), generator=g) * 2.0 - 1
    own = torch.tensor([0.2, 0.5, 1.0, 3.0, 20.0])
    module = nn.Module()
    module.weight = nn.Parameter(sign * torch.empty(5, 4000).exponential_(generator=g) * own[:, None])
    quantizer = quantize_parameter(module, mode="round")
    with torch.no_grad():
        quantizer.log_step.zero_()
    fit_spreads(module)
    fitted = quantizer.log_spread.detach().clone()
    torch.testing.assert_close(fitted.exp(), own, rtol=0.05, atol=0)
    quantizer.log_spread.grad = None
    module.weight  # noqa: B018
    rate_bits(module).backward()
    assert float((quantizer.log_spread.grad / 4000).abs().max()) < 1e-5


def test_assigning_and_loading():
    net, _ = model(mode="round")
    other, _ = model(mode="round")
    with torch.no_grad():
        net[0].weight = torch.randn(8, 3, 3, 3)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(other(x), net(x))


def test_copies_and_pickles_leave_the_graph_behind(tmp_path):
    net, _ = model(mode="round")
    x = torch.randn(2, 3, 4, 4)
    expected = net(x)
    assert torch.equal(copy.deepcopy(net)(x), expected)


def test_noise_goes_on_where_its_generator_was():
    net, _ = model(mode="noise", generator=torch.Generator().manual_seed(3))
    generator = next(quantized_parameters(net))[1].generator
    state = generator.get_state()
    x = torch.randn(2, 3, 4, 4)
    first = net(x)
    generator.set_state(state)
    assert torch.equal(net(x), first)


def test_all_zeros_and_empty_parameters_do_no_harm():
    module = nn.Module()
    module.zeros = nn.Parameter(torch.zeros(4, 3))
    module.none = nn.Parameter(torch.zeros(0, 3))
    quantize_parameter(module, "zeros", mode="round")
    quantize_parameter(module, "none", mode="round")
    assert torch.equal(module.zeros, torch.zeros(4, 3))
    assert module.none.shape == (0, 3)
    assert rate_bits(module).isfinite()
    assert set(integer_values(module)) == {"zeros", "none"}


def test_what_does_not_fit_is_refused():
    net, quantizers = model()
    with pytest.raises(ValueError, match="quantised already"):
        quantize_weights(net)
    with pytest.raises(ValueError, match="one of float, noise, round"):
        set_quantization(net, "int8")
    with pytest.raises(ValueError, match="nothing in the module is quantised"):
        rate_bits(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="has the axis"):
        QuantizedParameter(torch.zeros(3, 3), axis=2)
    with torch.no_grad():
        net[0].parametrizations.weight.original[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="has NaN"):
        integer_values(net)
    assert quantizers["0.weight"].mode == "float"
