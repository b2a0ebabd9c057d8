"""The bits that training counts are the bytes that the entropy coder writes."""

import pytest
import torch
from torch import nn

from vidkernels.codec.entropy import decode_symbols, encode_symbols
from vidkernels.nn.nerv.quantized import (
    fit_spreads,
    integer_values,
    quantize_parameter,
    quantize_weights,
    rate_bits,
    set_quantization,
)


def coded(values):
    contexts = values.contexts()
    data = encode_symbols(values.values.flatten(), contexts)
    assert torch.equal(torch.from_numpy(decode_symbols(data, len(contexts), contexts)), values.values.flatten())
    return 8 * len(data)


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_laplace_numbers(spread):
    """Spread within two octaves over the channels, as drawn."""
    g = torch.Generator().manual_seed(0)
    own = spread * 2 ** torch.linspace(-1, 1, 16)
    sign = torch.randint(0, 2, (16, 4000), generator=g) * 2.0 - 1
    module = nn.Module()
    module.weight = nn.Parameter(sign * torch.empty(16, 4000).exponential_(generator=g) * own[:, None])
    quantizer = quantize_parameter(module, mode="round")
    with torch.no_grad():
        quantizer.log_step.zero_()
        quantizer.log_spread.copy_(own.log())
    module.weight  # noqa: B018
    estimate = rate_bits(module).item()
    assert coded(integer_values(module)["weight"]) == pytest.approx(estimate, rel=0.02)


def test_weights_after_rate_distortion_training():
    """A small network that has learned a picture: float, noise, rounding, then the coder."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing="ij")
    waves = torch.stack([f(2**k * torch.pi * v) for k in range(4) for v in (x, y) for f in (torch.sin, torch.cos)])
    picture = torch.stack([x * y, (3 * x).sin() * y, ((x**2 + y**2) * 4).cos()])[None]
    layers = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 3, 1)
    net = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
    quantizers = quantize_weights(net, generator=torch.Generator().manual_seed(1))
    laws = [p for quantizer in quantizers.values() for p in quantizer.parameters()]
    others = [p for layer in layers for p in (layer.bias, layer.parametrizations.weight.original)]
    optimizer = torch.optim.Adam([{"params": others, "lr": 1e-2}, {"params": laws, "lr": 0.1}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    for i in range(80):
        if i in (16, 64):
            set_quantization(net, "noise" if i == 16 else "round")
            fit_spreads(net)
        optimizer.zero_grad()
        distortion = (net(waves[None]) - picture).square().mean()
        (distortion + 3e-6 * rate_bits(net)).backward()
        optimizer.step()
        schedule.step()
    fit_spreads(net)
    net(waves[None])
    estimate = rate_bits(net).item()
    written = sum(coded(values) for values in integer_values(net).values())
    assert written == pytest.approx(estimate, rel=0.03)
    assert estimate < 4 * sum(values.values.numel() for values in integer_values(net).values())
    assert distortion.item() < 0.01
