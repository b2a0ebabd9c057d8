"""decode_splats: equal bytes on every road, golden hashes that pin the specification, distance from float64."""

import hashlib
import math
import os
import subprocess
import sys

import pytest
import torch

from vidkernels import _native
from vidkernels.functional.splatting.decode import decode_splats
from vidkernels.ops.decode_splats.cases import extreme, inputs

# Changing one of these numbers means a new version of the format: files written before decode to other bytes.
GOLDEN = {
    "many": "bfb387a6376ff2f43686faa677e8ab1a6ba964d0ca05c76e74647e6696a20a97",
    "wide": "f054750d26d52d6a168fd1299d10196b1c8baac75c36b9106520e38689e22307",
    "grey": "ca684a20da8dc29b913cafa48b6564a45f9c3ecd514725e3e2013e0a9f03ce9e",
    "extreme": "3bb480c0bab012a69261eee6a48beba533d52a9b27aaccc078ef67ce2dc6ccb7",
}
ISAS = ("v2", "v3", "v4")


def lattice(count, height, width, channels, step):
    """Inputs by integer arithmetic only, so that they are the same under every version of torch."""

    def numbers(first, low, high):
        word = (torch.arange(first, first + count, dtype=torch.int64) * 1103515245 + 12345) * 69069 % (1 << 31)
        return low + (high - low) * (word // 128).double() / (1 << 24)

    at = iter(range(0, 100 * step, step))
    means = torch.stack((numbers(next(at), -9, width + 9), numbers(next(at), -9, height + 9)), 1)
    cholesky = torch.stack((numbers(next(at), 0.3, 9), numbers(next(at), -6, 6), numbers(next(at), 0.3, 9)), 1)
    colors = torch.stack([numbers(next(at), -0.1, 0.35) for _ in range(channels)], 1)
    background = torch.tensor([0.125, 0.25, 0.5, 0.0625][:channels])
    return means.float(), cholesky.float(), colors.float(), background, height, width, 0.5


def golden_inputs(name):
    if name == "extreme":
        args = list(extreme(torch.Generator().manual_seed(0), torch.float32))
        args[2] = torch.where(args[2].abs() < 1, torch.linspace(0.01, 0.2, args[2].numel()).reshape(-1, 2), args[2])
        return tuple(args)
    return {
        "many": lattice(700, 97, 131, 3, 1009),
        "wide": lattice(90, 5, 300, 4, 211),
        "grey": lattice(300, 64, 128, 1, 499),
    }[name]


def run(args, backend=None):
    means, cholesky, colors, background, height, width, center = args
    return decode_splats(
        means, cholesky, colors, size=(height, width), background=background, pixel_center=center, backend=backend
    )


def digest(image):
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def in_float64(args):
    means, cholesky, colors, background, height, width, center = (
        a.double() if isinstance(a, torch.Tensor) else a for a in args
    )
    x = torch.arange(width, dtype=torch.float64) + center
    y = torch.arange(height, dtype=torch.float64) + center
    image = background.expand(height, width, -1).clone()
    for (mx, my), (l11, l21, l22), color in zip(means.tolist(), cholesky.tolist(), colors):
        z1 = (x - mx) / l11
        z2 = ((y - my)[:, None] - l21 * z1) / l22
        sigma = (z1.square() + z2.square()) / 2
        image += torch.where(sigma <= math.log(255), torch.exp(-sigma), 0.0)[..., None] * color
    return 255 * image.clamp(0, 1)


@pytest.mark.parametrize("backend", ["reference", "cpu", "simt"])
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes(name, backend):
    if backend == "cpu" and _native.module("_C") is None:
        pytest.skip(_native.why_missing("_C"))
    if backend == "simt" and _native.module("_simt") is None:
        pytest.skip(_native.why_missing("_simt"))
    assert digest(run(golden_inputs(name), backend)) == GOLDEN[name]


@pytest.mark.skipif(_native.module("_C") is None, reason="needs the compiled module")
@pytest.mark.parametrize("isa", ISAS)
def test_golden_bytes_on_every_instruction_set(isa):
    """In a process of its own: the set is chosen once. A machine without it runs the next lower one."""
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_decode_splats as t, torch\n"
        "for threads in (1, 2):\n"
        "    torch.set_num_threads(threads)\n"
        "    for name in sorted(t.GOLDEN): print(name, t.digest(t.run(t.golden_inputs(name), 'cpu')))\n"
        "print(t.digest(t.run(t.inputs(3000, 203, 301)(torch.Generator().manual_seed(1), torch.float32), 'cpu')))"
    )
    environment = {**os.environ, "VIDKERNELS_ISA": isa}
    lines = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert lines[:8] == 2 * [f"{name} {GOLDEN[name]}" for name in sorted(GOLDEN)]
    assert lines[8] == digest(run(inputs(3000, 203, 301)(torch.Generator().manual_seed(1), torch.float32), "cpu"))


def test_threads_do_not_show(one_and_two_threads):
    args = inputs(5000, 240, 333)(torch.Generator().manual_seed(2), torch.float32)
    assert torch.equal(*one_and_two_threads(lambda: run(args)))


@pytest.mark.parametrize("seed", range(4))
def test_compiled_equals_the_specification(seed):
    g = torch.Generator().manual_seed(seed)
    args = inputs(400, 50 + 31 * seed, 190 - 37 * seed, 1 + seed, 0.3 * 2**seed, 0.25 * seed)(g, torch.float32)
    assert torch.equal(run(args), run(args, "reference"))


def test_thin_tilted_ellipses_lose_no_pixel():
    """Spans are computed in float32 with a margin; long thin Gaussians are where it could be too small."""
    g = torch.Generator().manual_seed(9)
    n = 300
    length = 10 ** (torch.rand(n, 2, generator=g) * 4 - 1)
    cholesky = torch.stack((length[:, 0], (torch.rand(n, generator=g) - 0.5) * 600, length[:, 1]), 1)
    means = torch.rand(n, 2, generator=g) * torch.tensor([420.0, 260.0]) - 60
    args = means, cholesky, torch.full((n, 1), 0.02), torch.zeros(1), 140, 300, 0.5
    assert torch.equal(run(args), run(args, "reference"))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_within_one_level_of_float64(name):
    args = golden_inputs(name)
    if name == "extreme":
        pytest.skip("not finite")
    exact = in_float64(args)
    assert float((run(args).double() - exact).abs().max()) <= 1.0
    assert float((run(args).double() - exact).abs().mean()) < 0.27  # rounding alone gives 0.25


def test_the_exponential_is_within_6e_5():
    """Weights of 250: a level is 1.6e-5 of the exponential. One Gaussian, samples along x, in windows of its range."""
    n = 4096
    for k in range(10, 250, 10):
        args = torch.tensor([[0.0, 0.5]]), torch.tensor([[n / 3.329, 0.0, 1.0]]), torch.tensor([[250.0]])
        image = decode_splats(*args, size=(1, n), background=torch.tensor([-float(k)]))
        x = torch.arange(n, dtype=torch.float64) + 0.5
        exact = 255 * (250 * torch.exp(-((x * 3.329 / n) ** 2) / 2) - k)
        seen = (exact > 1) & (exact < 254) & (x < n * 0.99)
        error = (image.flatten().double() - exact)[seen].abs().max()
        assert float(error) <= 0.5 + 6e-5 * 250 * 255


def test_closed_forms():
    one = torch.ones(1, 1)
    assert decode_splats(torch.full((1, 2), 0.5), torch.tensor([[1.0, 0, 1]]), one, size=(1, 1)).item() == 255
    third = decode_splats(torch.full((1, 2), 0.5), torch.tensor([[1.0, 0, 1]]), one / 3, size=(1, 1))
    assert third.item() == 85  # exp(0) is exactly 1
    row = decode_splats(torch.tensor([[10.5, 0.5]]), torch.tensor([[1.0, 0, 1]]), one * 200, size=(1, 21)).flatten()
    assert row.nonzero().flatten().tolist() == list(range(7, 14))  # 3^2 / 2 < ln 255 < 4^2 / 2
    assert torch.equal(row, row.flip(0))


def test_ties_round_to_even():
    background = torch.tensor([0.5 / 255, 1.5 / 255, 2.5 / 255])
    none = torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(0, 3)
    assert decode_splats(*none, size=(1, 1), background=background).flatten().tolist() == [0, 2, 2]


def test_order_is_part_of_the_contract():
    """2^24 + 1 - 2^24 in float32 depends on the order; ascending index leaves 0, the reverse 1."""
    colors = torch.tensor([[2.0**24], [1.0], [-(2.0**24)]])
    at, shape = torch.full((3, 2), 0.5), torch.tensor([[1.0, 0, 1]]).repeat(3, 1)
    values = [decode_splats(at, shape, c, size=(1, 1)).item() for c in (colors, colors[[0, 2, 1]])]
    assert values == [0, 255]


def test_numbers_that_are_not_finite_stay_out():
    nan, inf = float("nan"), float("inf")
    good = torch.tensor([[4.0, 4]]), torch.tensor([[2.0, 0.5, 2]]), torch.tensor([[0.5, 0.25]])
    alone = decode_splats(*good, size=(9, 9))
    for which, value in ((0, nan), (0, inf), (1, nan), (1, -inf), (2, nan), (2, inf)):
        bad = [x.clone() for x in good]
        bad[which][0, -1] = value
        both = [torch.cat((b, a, b)) for a, b in zip(good, bad)]
        assert torch.equal(decode_splats(*both, size=(9, 9)), alone)
    flat = torch.cat((good[1], torch.tensor([[0.0, 1, 1], [1, 1, 0]])))
    assert torch.equal(decode_splats(good[0].repeat(3, 1), flat, good[2].repeat(3, 1), size=(9, 9)), alone)
    none = torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(0, 3)
    background = torch.tensor([nan, inf, -inf])
    assert decode_splats(*none, size=(1, 1), background=background).flatten().tolist() == [0, 255, 0]


def test_subnormal_flushing_does_not_show():
    args = golden_inputs("extreme")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        flushed = run(args, "cpu"), run(args, "reference")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(flushed[0], run(args))
    assert torch.equal(flushed[1], run(args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(4)}, r"expected `means` of shape \[N, 2\]"),
        ({"means": torch.zeros(3, 2)}, "of one N"),
        ({"cholesky": torch.zeros(4, 2)}, "of one N"),
        ({"colors": torch.zeros(4, 5)}, "1 to 4 channels"),
        ({"background": torch.zeros(2)}, r"`background` of shape \[C\]"),
        ({"size": (70000, 2)}, "sides from 0 to 65536"),
        ({"size": (2, -1)}, "sides from 0 to 65536"),
        ({"pixel_center": float("nan")}, "finite `pixel_center`"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    call = {"means": torch.zeros(4, 2), "cholesky": torch.ones(4, 3), "colors": torch.ones(4, 3), "size": (5, 5)}
    call |= change
    with pytest.raises(ValueError, match=message):
        decode_splats(call.pop("means"), call.pop("cholesky"), call.pop("colors"), **call)
