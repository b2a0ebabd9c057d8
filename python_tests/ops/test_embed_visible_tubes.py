"""embed_visible_tubes against an independent float64 golden, closed forms, and its error texts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vidkernels as vk
from benchmarks.peers import embed_visible_tubes as peers
from vidkernels.ops.embed_visible_tubes.op import embed_visible_tubes as op
from vidkernels.testing import assert_close, assert_gradient_close

BACKENDS = ("reference", "cpu", "simt")
MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.25)


def golden(video, weight, bias, index, tube, mean, std, position):
    """Token by token in numpy float64, from the definition; knows nothing of the library's layouts."""
    pixels = video.numpy().astype(np.float64)
    if video.dtype is torch.uint8:
        pixels = pixels / 255
    else:
        pixels = pixels.transpose(0, 2, 3, 4, 1)
    pixels = (pixels - np.array(mean)) / np.array(std)
    kernel = weight.detach().double().numpy()
    pt, ph, pw = tube
    _, rows, columns = (n // p for n, p in zip(pixels.shape[1:4], tube))
    out = np.zeros((*index.shape, kernel.shape[0]))
    for b, k in np.ndindex(*index.shape):
        n = int(index[b, k])
        t, y, x = n // (rows * columns) * pt, n // columns % rows * ph, n % columns * pw
        patch = pixels[b, t : t + pt, y : y + ph, x : x + pw]
        out[b, k] = np.einsum("tyxc,dctyx->d", patch, kernel)
        if bias is not None:
            out[b, k] += bias.detach().double().numpy()
        if position is not None:
            out[b, k] += position.detach().double().numpy()[n]
    return torch.from_numpy(out)


def problem(seed, tube, grid, channels, dim, visible, batch=2, floating=False, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    t, h, w = (n * p for n, p in zip(grid, tube))
    length = grid[0] * grid[1] * grid[2]
    if floating:
        video = torch.rand(batch, channels, t, h, w, generator=g).to(dtype)
    else:
        video = torch.randint(0, 256, (batch, t, h, w, channels), generator=g, dtype=torch.uint8)
    weight = torch.randn(dim, channels, *tube, generator=g).mul(0.1).to(dtype)
    bias, position = torch.randn(dim, generator=g).to(dtype), torch.randn(length, dim, generator=g).to(dtype)
    index = torch.rand(batch, length, generator=g).argsort(1)[:, :visible]
    return video, weight, bias, index, position


def need(backend):
    reason = op.why_not(backend)
    if reason is not None:
        pytest.skip(reason)


GOLDEN = {
    "videomae patch": ((2, 16, 16), (2, 2, 3), 3, 20, 5),
    "patch 14, image": ((1, 14, 14), (1, 3, 2), 3, 9, 4),
    "one channel, odd grid": ((3, 5, 7), (3, 1, 5), 1, 7, 6),
    "two channels": ((2, 4, 8), (1, 5, 3), 2, 33, 11),
    "four channels": ((1, 3, 4), (2, 3, 3), 4, 5, 13),
    "seven channels": ((2, 2, 3), (2, 2, 2), 7, 6, 3),
    "one pixel": ((1, 1, 1), (3, 4, 5), 3, 4, 17),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("floating", [False, True], ids=["uint8", "float"])
@pytest.mark.parametrize("name", GOLDEN)
def test_matches_the_definition(name, floating, backend):
    need(backend)
    tube, grid, channels, dim, visible = GOLDEN[name]
    video, weight, bias, index, position = problem(1, tube, grid, channels, dim, visible, floating=floating)
    mean, std = (MEAN * 2)[:channels], (STD * 2)[:channels]
    expected = golden(video, weight, bias, index, tube, mean, std, position)
    actual = vk.functional.embed_visible_tubes(
        video, weight, bias, index, tube=tube, mean=mean, std=std, position=position[None], backend=backend
    )
    assert_close(actual, expected, 2e-6, name)
    bare = vk.functional.embed_visible_tubes(video, weight, None, index, tube=tube, backend=backend)
    assert_close(bare, golden(video, weight, None, index, tube, [0.0] * channels, [1.0] * channels, None), 2e-6, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0, 1, 127, 128, 255])
def test_constant_clip_has_a_closed_form(value, backend):
    """Every tube of a constant clip gives sum over c of (value/255 - mean_c)/std_c * sum of the kernel's channel c."""
    need(backend)
    _, weight, bias, index, _ = problem(2, (2, 4, 4), (2, 3, 2), 3, 12, 7)
    video = torch.full((2, 4, 12, 8, 3), value, dtype=torch.uint8)
    level = (value / 255 - torch.tensor(MEAN[:3]).double()) / torch.tensor(STD[:3]).double()
    row = weight.double().sum((2, 3, 4)) @ level + bias.double()
    actual = vk.functional.embed_visible_tubes(
        video, weight, bias, index, tube=(2, 4, 4), mean=MEAN[:3], std=STD[:3], backend=backend
    )
    assert_close(actual, row.expand(2, 7, 12), 2e-6)


def test_all_tubes_equal_conv3d():
    video, weight, bias, _, _ = problem(3, (2, 4, 6), (2, 3, 2), 3, 10, 1)
    clip = ((video.permute(0, 4, 1, 2, 3).double() / 255) - 0.45) / 0.225
    conv = torch.nn.functional.conv3d(clip, weight.double(), bias.double(), stride=(2, 4, 6))
    index = torch.arange(12).expand(2, 12)
    actual = vk.functional.embed_visible_tubes(video, weight, bias, index, tube=(2, 4, 6), mean=0.45, std=0.225)
    assert_close(actual, conv.flatten(2).transpose(1, 2), 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("floating", [False, True], ids=["uint8", "float"])
def test_gradients_of_the_convolution(floating, backend):
    """Against autograd through conv3d in float64; repeated indices add up."""
    need(backend)
    tube = (2, 4, 3)
    video, weight, bias, index, position = problem(4, tube, (2, 3, 3), 3, 21, 8, floating=floating)
    index[:, 1] = index[:, 0]
    leaves = [x.clone().requires_grad_() for x in (weight, bias, position)]
    out = vk.functional.embed_visible_tubes(
        video, leaves[0], leaves[1], index, tube=tube, mean=MEAN[:3], std=STD[:3], position=leaves[2], backend=backend
    )
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    actual = torch.autograd.grad(out, leaves, grad)
    wide = [x.double().requires_grad_() for x in (weight, bias, position)]
    clip = video.double() if floating else video.permute(0, 4, 1, 2, 3).double() / 255
    clip = (clip - torch.tensor(MEAN[:3]).double().view(3, 1, 1, 1)) / torch.tensor(STD[:3]).double().view(3, 1, 1, 1)
    tokens = torch.nn.functional.conv3d(clip, wide[0], wide[1], stride=tube).flatten(2).transpose(1, 2) + wide[2]
    picked = torch.stack([tokens[b, index[b]] for b in range(2)])
    expected = torch.autograd.grad(picked, wide, grad.double())
    for a, e, name in zip(actual, expected, ("weight", "bias", "position")):
        assert_gradient_close(a, e, name)


def test_only_what_needs_a_gradient_gets_one():
    video, weight, bias, index, position = problem(6, (1, 2, 2), (1, 2, 3), 2, 5, 4)
    bias.requires_grad_()
    vk.functional.embed_visible_tubes(video, weight, bias, index, tube=(1, 2, 2), position=position).sum().backward()
    assert_close(bias.grad, torch.full((5,), 8.0, dtype=torch.float64), 1e-7)
    assert weight.grad is None
    assert position.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", ["noise", "dark"])
def test_bf16_is_at_least_as_accurate_as_torch(level, backend):
    """Error against the float64 result of the same bf16 weight; torch rounds the normalised pixels, we do not."""
    need(backend)
    video, weight, bias, index, position = problem(7, (2, 16, 16), (2, 3, 3), 3, 64, 9, dtype=torch.bfloat16)
    if level == "dark":
        video = video // 32
    expected = golden(video, weight, bias, index, (2, 16, 16), MEAN[:3], STD[:3], position)
    ours = vk.functional.embed_visible_tubes(
        video, weight, bias, index, mean=MEAN[:3], std=STD[:3], position=position, backend=backend
    )
    mean, std = (torch.tensor(v[:3]).view(3, 1, 1, 1) for v in (MEAN, STD))
    clip = ((video.permute(0, 4, 1, 2, 3).float() / 255 - mean) / std).bfloat16()
    every = torch.nn.functional.conv3d(clip, weight, bias, stride=(2, 16, 16)).flatten(2).transpose(1, 2) + position
    theirs = torch.stack([every[b, index[b]] for b in range(2)])

    def error(x):
        return float((x.double() - expected).pow(2).mean().sqrt())

    assert ours.dtype is torch.bfloat16
    assert error(ours) <= error(theirs)


def test_half_keeps_small_weights():
    """1 / (255 * std) alone would push a float16 weight into the denormals."""
    video, weight, bias, index, _ = problem(8, (2, 8, 8), (1, 3, 3), 3, 16, 5, dtype=torch.float16)
    weight = weight * 0.02
    expected = golden(video, weight, bias, index, (2, 8, 8), MEAN[:3], STD[:3], None)
    actual = vk.functional.embed_visible_tubes(video, weight, bias, index, tube=(2, 8, 8), mean=MEAN[:3], std=STD[:3])
    assert_close(actual, expected, 1.5e-3)


def test_autocast_returns_its_dtype_and_float32_gradients():
    video, weight, bias, index, position = problem(9, (2, 4, 4), (1, 3, 3), 3, 16, 5)
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vk.functional.embed_visible_tubes(video, weight, bias, index, tube=(2, 4, 4), position=position)
    assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    assert weight.grad.dtype is torch.float32


def test_frames_and_rows_may_have_gaps():
    """A clip that samples every third frame and crops rows is read in place."""
    whole, weight, bias, index, _ = problem(10, (2, 4, 4), (6, 3, 5), 3, 8, 11)
    video = whole[:, ::3, 2:10, 4:16]
    index = index % 12
    expected = golden(video, weight, bias, index, (2, 4, 4), [0] * 3, [1] * 3, None)
    actual = vk.functional.embed_visible_tubes(video, weight, bias, index, tube=(2, 4, 4))
    assert_close(actual, expected, 2e-6)
    flat = whole.permute(0, 4, 1, 2, 3).float().div(255).contiguous()[:, :, ::3, 2:10, 4:16]
    assert_close(vk.functional.embed_visible_tubes(flat, weight, bias, index, tube=(2, 4, 4)), expected, 2e-6)
    planar = whole.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)[:, ::3, 2:10, 4:16]
    assert_close(vk.functional.embed_visible_tubes(planar, weight, bias, index, tube=(2, 4, 4)), expected, 2e-6)


@settings(max_examples=25, deadline=None)
@given(
    tube=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 5),
    dim=st.integers(1, 40),
    floating=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_size(tube, grid, channels, dim, floating, seed):
    visible = 1 + seed % (grid[0] * grid[1] * grid[2])
    video, weight, bias, index, position = problem(seed, tube, grid, channels, dim, visible, floating=floating)
    expected = golden(video, weight, bias, index, tube, [0.4] * channels, [0.3] * channels, position)
    actual = vk.functional.embed_visible_tubes(
        video, weight, bias, index, tube=tube, mean=0.4, std=0.3, position=position
    )
    assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize("name", ["usual", "careful", "usual_float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peers_compute_the_same(name, dtype):
    video, weight, bias, index, position = problem(11, (2, 4, 4), (2, 3, 3), 3, 16, 6, dtype=dtype)
    index = index.sort(1).values  # a boolean mask keeps raster order
    expected = golden(video, weight, bias, index, (2, 4, 4), MEAN[:3], STD[:3], position)
    actual = getattr(peers, name)(video, weight, bias, index, position, [2, 4, 4], list(MEAN[:3]), list(STD[:3]))()
    assert_close(actual, expected, 2e-6 if dtype is torch.float32 else 2.5e-2)


ERRORS = {
    "frames": ({"video": torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8)}, "not a whole number of tubes"),
    "weight": ({"weight": torch.zeros(5, 3, 4, 4)}, r"expected `weight` of shape \[D, C, pt, ph, pw\]"),
    "tube": ({"tube": (2, 4, 4)}, r"expected `weight` of shape \[D, C, 2, 4, 4\]"),
    "channels": ({"video": torch.zeros(1, 2, 4, 4, 4, dtype=torch.uint8)}, "has 4 channels"),
    "integer video": ({"video": torch.zeros(1, 2, 4, 4, 3, dtype=torch.int64)}, "in uint8 or"),
    "batch": ({"visible_index": torch.zeros(2, 1, dtype=torch.int32)}, "differ in batch size"),
    "float index": ({"visible_index": torch.zeros(1, 1)}, "to hold integers"),
    "mean": ({"mean": (0.5, 0.5)}, r"one `mean` per channel \(3\), got 2"),
    "std": ({"std": 0.0}, "`std` to be positive"),
    "bias": ({"bias": torch.zeros(6)}, r"expected `bias` of shape \[5\]"),
    "position": ({"position": torch.zeros(5, 5)}, r"expected `position` of shape \[4, 5\]"),
    "dtype": ({"bias": torch.zeros(5, dtype=torch.float64)}, "`bias` and `weight` differ in dtype"),
    "video dtype": ({"video": torch.zeros(1, 3, 2, 4, 4).double()}, "`video` and `weight` differ in dtype"),
    "video gradient": ({"video": torch.zeros(1, 3, 2, 4, 4, requires_grad=True)}, "not differentiable"),
    "outside": ({"visible_index": torch.tensor([[0, 4]])}, r"`visible_index`\[0, 1\] is 4, outside the 4 tubes"),
    "negative": ({"visible_index": torch.tensor([[-1]])}, r"`visible_index`\[0, 0\] is -1, outside the 4 tubes"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name):
    changes, message = ERRORS[name]
    if "outside" in message:
        need("cpu")
    arguments = {
        "video": torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8),
        "weight": torch.zeros(5, 3, 2, 2, 2),
        "bias": None,
        "visible_index": torch.tensor([[0, 3]]),
        "tube": (2, 2, 2),
    }
    with pytest.raises(ValueError, match=message) as error:
        vk.functional.embed_visible_tubes(**(arguments | changes))
    assert str(error.value).startswith("embed_visible_tubes: ")


def test_an_index_outside_never_crashes_the_gpu_kernel():
    need("simt")
    video, weight, bias, index, position = problem(12, (1, 4, 4), (1, 3, 3), 3, 16, 5)
    index[0, 2], index[1, 4] = 9, -1
    out = vk.functional.embed_visible_tubes(
        video, weight, bias, index, tube=(1, 4, 4), position=position, backend="simt"
    )
    assert_close(out[0, 2], bias.double(), 1e-7)
    assert_close(out[1, 4], bias.double(), 1e-7)


@pytest.mark.parametrize("quick", [True, False])
def test_half_precision_products_with_and_without_instructions_for_them(quick, monkeypatch):
    from vidkernels.ops.embed_visible_tubes import op

    monkeypatch.setattr(op, "multiplies", lambda dtype, device: quick)
    g = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=g, dtype=torch.uint8)
    index = torch.stack([torch.randperm(8, generator=g)[:5] for _ in range(2)]).int()
    fixed = (2, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.2)
    leaves = [0.02 * torch.randn(24, 3, 2, 16, 16, generator=g), torch.randn(24, generator=g)]

    def run(dtype, backend):
        weight, bias = (x.to(torch.bfloat16).to(dtype).requires_grad_() for x in leaves)
        out = op.embed_visible_tubes(video, weight, bias, index, None, *fixed, backend=backend)
        cotangent = torch.linspace(-1, 1, out.numel()).to(torch.bfloat16).to(dtype).view_as(out)
        return out, *torch.autograd.grad(out, (weight, bias), cotangent)

    for ours, exact in zip(run(torch.bfloat16, "cpu"), run(torch.float64, "reference")):
        assert (ours.double() - exact).abs().max() <= 2**-7 * exact.abs().max()
