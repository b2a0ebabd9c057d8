"""The exact profile against integer arithmetic written out, and against the floats that it stands for."""

import numpy as np
import pytest
import torch

from vidkernels.codec.nerv_bits import Quantised
from vidkernels.codec.nerv_families import NETWORKS
from vidkernels.codec.nerv_integer import (
    IntegerDrawer,
    Layer,
    _Activated,
    decode_layers,
    encode_layers,
    integers,
    ranges,
    simulated,
)
from vidkernels.codec.nerv_model import Drawer

CONFIG = {"latent": 4, "channels": [8, 4], "strides": [3, 2, 2]}
SIZE = (21, 30)


def _made(seed):
    """(network, quantised weights, their floats, latents in steps [B, C, h, w])"""
    rng = np.random.default_rng(seed)
    network = NETWORKS["latent"].network(CONFIG, SIZE)
    weights = {}
    for name, shape in network.shapes.items():
        step = 0.02 if name.endswith("weight") else 0.01
        weights[name] = Quantised(np.rint(rng.laplace(0, 9, shape)).clip(-127, 127).astype(np.int32), step)
    floats = {name: torch.from_numpy(q.floats()) for name, q in weights.items()}
    latents = torch.from_numpy(rng.integers(-9, 10, (5, *network.latent_shape))).float()
    return network, weights, floats, latents


def test_layers_against_loops():
    network, weights, floats, latents = _made(0)
    r = ranges(network.layers, floats, latents * 0.3, 9)
    layers = integers(network.layers, weights, 0.3, r)
    x = (latents[0].numpy().astype(int) * r.stretch + 128).clip(1, 255)
    for (name, scale), layer in zip(network.layers, layers, strict=True):
        k, bias = weights[f"{name}.weight"].values, weights[f"{name}.bias"].values
        out, (inputs, height, width) = np.zeros((len(k), *x.shape[1:]), int), x.shape
        for o in range(len(k)):
            for i in range(height):
                for j in range(width):
                    total = (int(bias[o]) * layer.ratio + 128 >> 8) + layer.offset
                    for c in range(inputs):
                        for di in (-1, 0, 1):
                            for dj in (-1, 0, 1):
                                if 0 <= i + di < height and 0 <= j + dj < width:
                                    byte = int(x[c, i + di, j + dj]) - layer.zero
                                    total += int(k[o, c, di + 1, dj + 1]) * byte
                    index = (total * layer.multiplier + (1 << layer.shift - 1)) >> layer.shift
                    out[o, i, j] = layer.table[min(max(index, 0), 255)]
        channels = len(k) // scale**2
        x = out.reshape(channels, scale, scale, height, width).transpose(0, 3, 1, 4, 2)
        x = x.reshape(channels, height * scale, width * scale)
    drawn = IntegerDrawer(network.layers, weights, layers, r.stretch, SIZE).draw(latents[0])
    assert np.array_equal(drawn.numpy(), x.transpose(1, 2, 0)[:21, :30])


@pytest.mark.parametrize("seed", range(4))
def test_integers_draw_what_is_simulated(seed):
    """What training sees is what the file shows, but for values on the edge of rounding."""
    network, weights, floats, latents = _made(seed)
    r = ranges(network.layers, floats, latents * 0.3, 9)
    drawer = IntegerDrawer(network.layers, weights, integers(network.layers, weights, 0.3, r), r.stretch, SIZE)
    drawn = torch.stack([drawer.draw(x) for x in latents])
    seen = network.cut(simulated(network.layers, floats, latents * 0.3, r)).permute(0, 2, 3, 1)
    seen = (seen * 255).round().clamp(0, 255)
    apart = (drawn.float() - seen).abs()
    # A byte that rounds the other way moves pixels by some levels, as large as these weights are; but few do, evenly.
    assert float(apart.mean()) < 0.5
    assert abs(float((drawn.float() - seen).mean())) < 0.1
    plain = Drawer(network, weights, 0.3)
    pictures = torch.stack([plain.draw(x, 0) for x in latents])
    assert float((drawn.float() - pictures.float()).abs().mean()) < 4  # bytes between layers are close to floats
    assert float(pictures.float().std()) > 20


def test_gradients_reach_every_number_through_the_rounding():
    network, _, floats, latents = _made(1)
    r = ranges(network.layers, floats, latents * 0.3, 9)
    leaves = {name: t.clone().requires_grad_() for name, t in floats.items()}
    x = (latents * 0.3).requires_grad_()
    simulated(network.layers, leaves, x, r).square().mean().backward()
    assert all(float(t.grad.abs().sum()) > 0 for t in (*leaves.values(), x))


def test_sums_that_do_not_fit_are_refused():
    network, weights, _, _ = _made(0)
    layers = [Layer(128, 1, (1 << 31) - 1, 20_000, 20, np.arange(256, dtype=np.uint8))] * 3
    with pytest.raises(ValueError, match="32 bits"):
        IntegerDrawer(network.layers, weights, layers, 1, SIZE)


def test_layers_come_back_and_wrong_ones_are_refused():
    table = np.arange(256, dtype=np.uint8)
    layers = [Layer(3, 700, -123456, 17_000, 21, table), Layer(0, 0, 99, 32_767, 1, table[::-1].copy())]
    back, stretch = decode_layers(encode_layers(layers, 5), 2)
    assert stretch == 5
    for a, b in zip(layers, back, strict=True):
        assert (a.zero, a.ratio, a.offset, a.multiplier, a.shift) == (b.zero, b.ratio, b.offset, b.multiplier, b.shift)
        assert np.array_equal(a.table, b.table)
    for wrong in ({"zero": 256}, {"ratio": -1}, {"multiplier": 0}, {"shift": 0}, {"shift": 32}):
        facts = {"zero": 3, "ratio": 7, "offset": 0, "multiplier": 9, "shift": 3, "table": table, **wrong}
        with pytest.raises(ValueError, match="out of range"):
            decode_layers(encode_layers([Layer(**facts)], 5), 1)
    with pytest.raises(ValueError, match="worth"):
        decode_layers(encode_layers(layers, 200), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_of_gelu_and_its_gradient_against_plain_operations(generator, dtype):
    low, step, out, zero = -3.2, 0.03, 0.018, 9
    z = (3 * torch.randn(2, 5, 31, 33, generator=generator)).to(dtype).requires_grad_()
    held = z.float().clamp(low, low + 255 * step)
    y = torch.nn.functional.gelu(held + (((held - low) / step).round() * step + low - held).detach())
    wanted = y + (((y / out + zero).round().clamp(0, 255) - zero) * out - y).detach()
    got = _Activated.apply(z, low, step, out, zero)
    assert torch.equal(got, wanted.to(dtype))
    along = torch.randn(wanted.shape, generator=generator).to(dtype)
    grads = [torch.autograd.grad(x, z, along.to(x.dtype))[0] for x in (got, wanted)]
    torch.testing.assert_close(*grads)
