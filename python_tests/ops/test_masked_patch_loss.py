"""masked_patch_loss: closed forms and an independent implementation pin the reference; then the kernels' promises."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vidkernels as vk
from vidkernels import _native
from vidkernels.functional import masked_patch_loss
from vidkernels.ops.masked_patch_loss import op as loss_op

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
needs_cpu = pytest.mark.skipif(_native._C is None, reason=f"cpu kernels: {_native.why_missing('_C')}")
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])


def by_hand(pred, frames, index, tube, convention):
    """Loss in float64, tube by tube with slices and population moments; `frames` [B, T, H, W, C] in 0..1."""
    pred, frames, index = pred.double().numpy(), frames.double().numpy(), index.numpy()
    pt, ph, pw = tube
    rows, columns = frames.shape[2] // ph, frames.shape[3] // pw
    total = 0.0
    for b in range(pred.shape[0]):
        for k, n in enumerate(index[b]):
            t, rest = divmod(int(n), rows * columns)
            y, x = divmod(rest, columns)
            box = frames[b, t * pt : (t + 1) * pt, y * ph : (y + 1) * ph, x * pw : (x + 1) * pw]
            target = np.empty_like(box)
            groups = range(box.shape[-1]) if convention == "videomae" else [slice(None)]
            for group in groups:
                values = box[..., group]
                second = np.mean(np.square(values - values.mean())) * values.size / (values.size - 1)
                spread = math.sqrt(second) + 1e-6 if convention == "videomae" else math.sqrt(second + 1e-6)
                target[..., group] = (values - values.mean()) / spread
            total += np.sum((pred[b, k] - target.reshape(-1)) ** 2)
    return total / pred.size


def inputs(batch, grid, tube, channels, masked, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    t, h, w = (n * p for n, p in zip(grid, tube))
    video = torch.randint(0, 256, (batch, t, h, w, channels), generator=g, dtype=torch.uint8)
    index = torch.rand(batch, math.prod(grid), generator=g).argsort(1)[:, :masked]
    pred = torch.randn(batch, masked, math.prod(tube) * channels, generator=g).to(dtype)
    return pred, video, index


# ---- what it computes


@backends
def test_two_pixels_videomae(backend):
    """Pixels 10 and 30 of one channel: mean 20, unbiased std sqrt(200), so the target is -+ 10 / (sqrt(200) + eps)."""
    video = torch.tensor([10, 30], dtype=torch.uint8).reshape(1, 1, 1, 2, 1)
    a = 10 / (math.sqrt(200) + 255e-6)
    pred = torch.tensor([[[0.5, 2.0]]], dtype=torch.float64)
    expected = ((0.5 + a) ** 2 + (2.0 - a) ** 2) / 2
    got = masked_patch_loss(pred, video, torch.tensor([[0]]), tube=(1, 1, 2), backend=backend)
    assert got.dtype is torch.float64
    assert abs(float(got) - expected) < 1e-14


@backends
def test_one_pixel_two_channels_mae_st(backend):
    """Channels are one population: 10 and 30 again, now with the epsilon under the root."""
    video = torch.tensor([10, 30], dtype=torch.uint8).reshape(1, 1, 1, 1, 2)
    a = (10 / 255) / math.sqrt(200 / 255**2 + 1e-6)
    pred = torch.tensor([[[0.5, 2.0]]], dtype=torch.float64)
    expected = ((0.5 + a) ** 2 + (2.0 - a) ** 2) / 2
    got = masked_patch_loss(pred, video, torch.tensor([[0]]), tube=(1, 1, 1), convention="mae_st", backend=backend)
    assert abs(float(got) - expected) < 1e-14


@backends
def test_order_inside_a_tube_and_of_the_tubes(backend):
    """A prediction equal to the target, built with another expression of the order, has no loss."""
    _, video, _ = inputs(1, (2, 2, 3), (2, 4, 2), 3, 12, seed=3)
    x = video.double() / 255
    order = [(t, y, w) for t in range(2) for y in range(2) for w in range(3)]
    tubes = torch.stack([x[0, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 2 * w : 2 * w + 2] for t, y, w in order])
    flat = tubes.reshape(12, 16, 3)
    target = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-6)
    index = torch.tensor([[5, 0, 11, 7]])
    loss = masked_patch_loss(target[index[0]].reshape(1, 4, 48), video, index, tube=(2, 4, 2), backend=backend)
    assert float(loss) < 1e-24


@backends
@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("convention", ["videomae", "mae_st"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_tube_has_target_zero(backend, value, convention, dtype):
    """Exactly zero: any rounding of x - mean would be divided by the epsilon."""
    video = torch.full((1, 2, 16, 16, 3), value, dtype=torch.uint8)
    pred = torch.full((1, 1, 1536), 0.5, dtype=dtype)
    loss = masked_patch_loss(pred, video, torch.tensor([[0]]), convention=convention, backend=backend)
    # x / 255 is not exact, so the reference in float32 may be off by a rounding of the mean over the epsilon
    assert loss.item() == pytest.approx(0.25, rel=0 if backend == "cpu" else 0.1)


@backends
@pytest.mark.parametrize("convention", ["videomae", "mae_st"])
@pytest.mark.parametrize(
    ("grid", "tube", "channels"),
    [((2, 3, 4), (2, 16, 16), 3), ((3, 2, 5), (1, 4, 4), 5), ((2, 3, 3), (2, 7, 5), 17), ((2, 2, 2), (2, 8, 16), 1),
     ((1, 2, 2), (2, 16, 32), 3), ((1, 1, 2), (4, 16, 16), 4), ((1, 2, 2), (8, 40, 16), 3)],
)  # fmt: skip
def test_against_numpy(backend, convention, grid, tube, channels):
    masked = max(1, math.prod(grid) // 2)
    pred, video, index = inputs(2, grid, tube, channels, masked)
    expected = by_hand(pred, video.double() / 255, index, tube, convention)
    loss = masked_patch_loss(pred, video, index, tube=tube, convention=convention, backend=backend)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(expected, rel=2e-6)
    loss = masked_patch_loss(pred.double(), video, index, tube=tube, convention=convention, backend=backend)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@backends
@pytest.mark.parametrize("convention", ["videomae", "mae_st"])
def test_normalised_float_video(backend, convention):
    """mean and std undo the normalisation; without them the video is taken as it is."""
    pred, video, index = inputs(2, (2, 2, 3), (2, 4, 4), 3, 5)
    x = video.double() / 255
    normalised = ((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)
    call = {"tube": (2, 4, 4), "convention": convention, "backend": backend}
    got = masked_patch_loss(pred.double(), normalised, index, mean=MEAN, std=STD, **call)
    assert float(got) == pytest.approx(by_hand(pred, x, index, (2, 4, 4), convention), rel=1e-6)
    got = masked_patch_loss(pred.double(), normalised.contiguous(), index, **call)
    as_is = by_hand(pred, normalised.permute(0, 2, 3, 4, 1), index, (2, 4, 4), convention)
    assert float(got) == pytest.approx(as_is, rel=1e-12)


@backends
def test_uint8_ignores_mean_and_std(backend):
    pred, video, index = inputs(1, (1, 2, 2), (2, 4, 4), 3, 3)
    plain = masked_patch_loss(pred, video, index, tube=(2, 4, 4), backend=backend)
    assert torch.equal(
        plain, masked_patch_loss(pred, video, index, tube=(2, 4, 4), mean=MEAN, std=STD, backend=backend)
    )


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    tube=st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(2, 17)),
    channels=st.integers(1, 7),
    convention=st.sampled_from(["videomae", "mae_st"]),
    seed=st.integers(0, 100),
)
def test_any_size(grid, tube, channels, convention, seed):
    pred, video, index = inputs(2, grid, tube, channels, math.prod(grid), seed=seed)
    loss = masked_patch_loss(pred, video, index, tube=tube, convention=convention)
    assert loss.item() == pytest.approx(by_hand(pred, video.double() / 255, index, tube, convention), rel=5e-6)


# ---- promises of the kernels


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("tube", [(2, 16, 16), (2, 5, 7)])
def test_same_bits_for_any_thread_count(one_and_two_threads, tube, dtype):
    pred, video, index = inputs(3, (3, 5, 7), tube, 3, 61, dtype)

    def run():
        leaf = pred.clone().requires_grad_()
        loss = masked_patch_loss(leaf, video, index, tube=tube, backend="cpu")
        loss.backward()
        return loss.detach(), leaf.grad

    (loss, grad), (loss_two, grad_two) = one_and_two_threads(run)
    assert torch.equal(loss, loss_two)
    assert torch.equal(grad, grad_two)


@needs_cpu
def test_one_pass_and_two_ops_agree_to_the_bit():
    pred, video, index = inputs(3, (3, 5, 7), (2, 16, 16), 3, 61)
    leaf = pred.clone().requires_grad_()
    loss = masked_patch_loss(leaf, video, index, backend="cpu")
    loss.backward()
    rest = (video, index.int(), 2, 16, 16, "videomae", [], [])
    assert torch.equal(loss, loss_op.masked_patch_loss(pred, *rest, backend="cpu"))
    assert torch.equal(leaf.grad, loss_op.masked_patch_loss_backward(torch.ones(()), pred, *rest, backend="cpu"))


@needs_cpu
def test_a_sliced_video_is_read_where_it_lies():
    pred, video, index = inputs(2, (2, 2, 3), (2, 16, 16), 3, 7)
    wide = torch.zeros(2, 5, 35, 50, 4, dtype=torch.uint8)
    view = wide[:, 1:, 2:34, 1:49, 1:]
    view.copy_(video)
    for give in (view, video.flip(2).flip(2)):
        assert torch.equal(
            masked_patch_loss(pred, give, index, backend="cpu"), masked_patch_loss(pred, video, index, backend="cpu")
        )


@backends
@pytest.mark.parametrize("bad", [-1, 8, 2**31 - 1])
def test_index_outside_the_grid(backend, bad):
    pred, video, index = inputs(2, (2, 2, 2), (2, 4, 4), 3, 3)
    index[1, 2] = bad
    with pytest.raises((ValueError, RuntimeError), match=r"outside the 8 tubes|out of bounds|index"):
        masked_patch_loss(pred, video, index, tube=(2, 4, 4), backend=backend)


@backends
def test_no_masked_tubes_is_no_loss(backend):
    pred, video, index = inputs(2, (1, 2, 2), (2, 4, 4), 3, 0)
    leaf = pred.requires_grad_()
    loss = masked_patch_loss(leaf, video, index, tube=(2, 4, 4), backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad.shape == leaf.shape


def test_not_a_number_in_pred_reaches_the_loss():
    pred, video, index = inputs(1, (1, 2, 2), (2, 16, 16), 3, 3)
    pred[0, 1, 700] = float("nan")
    leaf = pred.requires_grad_()
    loss = masked_patch_loss(leaf, video, index)
    loss.backward()
    assert math.isnan(loss.item())
    assert int(leaf.grad.isnan().sum()) == 1


@pytest.mark.parametrize("name", ["usual", "careful"])
@pytest.mark.parametrize("convention", ["videomae", "mae_st"])
@pytest.mark.parametrize("form", ["uint8", "float"])
def test_what_we_are_measured_against_computes_the_same(name, convention, form):
    path = Path(__file__).parents[2] / "benchmarks" / "peers" / "masked_patch_loss.py"
    spec = importlib.util.spec_from_file_location("peers_masked_patch_loss", path)
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    pred, video, index = inputs(2, (2, 3, 4), (2, 8, 8), 3, 15)
    index, statistics = index.sort(1).values, ([], [])
    if form == "float":
        video, statistics = ((video / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3), (MEAN, STD)
    leaf, wide = pred.clone().requires_grad_(), pred.double().requires_grad_()
    loss = peers.PEERS["masked_patch_loss"][name](leaf, video, index, 2, 8, 8, convention, *statistics)()
    loss.backward()
    expected = loss_op.masked_patch_loss(
        wide, video, index.int(), 2, 8, 8, convention, *statistics, backend="reference"
    )  # fmt: skip
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(leaf.grad.double(), wide.grad, rtol=0, atol=1e-5 * float(wide.grad.abs().max()))


# ---- errors and the module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tube": (2, 5, 4)}, "the tube 2 x 5 x 4 does not divide a video of 4 frames, 8 x 12 pixels"),
        ({"tube": (3, 4, 4)}, "the tube 3 x 4 x 4 does not divide"),
        ({"tube": (1, 1, 1)}, "at least two pixels"),
        ({"convention": "mae"}, "'videomae' or 'mae_st', got 'mae'"),
        ({"pred": torch.zeros(2, 5, 95)}, r"expected `pred` of shape \[2, Nm, 96\]"),
        ({"pred": torch.zeros(2, 96)}, r"expected `pred` of shape \[B, Nm, D\]"),
        ({"masked_index": torch.zeros(2, 4, dtype=torch.int32)}, r"`masked_index` of shape \[2, Nm\]"),
        ({"masked_index": torch.zeros(2, 5)}, "expected `masked_index` to hold integers"),
        ({"video": torch.zeros(2, 4, 8, 12, 3, dtype=torch.int32)}, "uint8 or a floating type"),
        ({"video": torch.zeros(2, 4, 8, 12, 3)}, "does not divide"),
        ({"mean": [0.5] * 3}, "both `mean` and `std`"),
        ({"mean": [0.5], "std": [0.5]}, "`mean` and `std` of 3 numbers"),
        ({"pred": torch.zeros(2, 5, 96, dtype=torch.int32)}, "floating dtype"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    pred, video, index = inputs(2, (2, 2, 3), (2, 4, 4), 3, 5)
    call = {"pred": pred, "video": video, "masked_index": index, "tube": (2, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        masked_patch_loss(call.pop("pred"), call.pop("video"), call.pop("masked_index"), **call)


def test_module_is_the_function():
    pred, video, index = inputs(2, (2, 2, 3), (2, 4, 4), 3, 5)
    module = vk.nn.MaskedPatchLoss(tube=(2, 4, 4), convention="mae_st")
    assert torch.equal(
        module(pred, video, index), masked_patch_loss(pred, video, index, tube=(2, 4, 4), convention="mae_st")
    )
    assert "mae_st" in repr(module)
    with pytest.raises(ValueError, match="both"):
        vk.nn.MaskedPatchLoss(mean=MEAN)
    with pytest.raises(ValueError, match="mae_st"):
        vk.nn.MaskedPatchLoss(convention="x")
