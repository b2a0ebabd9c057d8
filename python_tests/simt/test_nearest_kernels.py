"""nearest's GPU kernels in the emulator, where its named cases do not lead."""

import pytest
import torch

from vidkernels import _native
from vidkernels.ops.nearest.op import nearest, nearest_op, scratch_bytes
from vidkernels.testing import assert_close


def emulator(name):
    module = _native.module(f"_{name}")
    if module is None or not hasattr(module, "nearest_cuda"):
        pytest.skip(f"vidkernels/_{name} is not built with nearest (make build)")
    return module


@pytest.fixture(autouse=True)
def built():
    emulator("simt")


def gaussian(g, count, length, dim):
    return torch.randn(1, count, dim, generator=g), torch.randn(1, length, dim, generator=g)


def clustered(g, count, length, dim):
    centres = 3 * torch.randn(20, dim, generator=g)

    def around(n):
        return (centres[torch.randint(0, 20, (n,), generator=g)] + 0.1 * torch.randn(n, dim, generator=g))[None]

    return around(count), around(length)


def low_rank(g, count, length, dim):
    basis = torch.randn(3, dim, generator=g)
    return torch.randn(1, count, 3, generator=g) @ basis, torch.randn(1, length, 3, generator=g) @ basis


def offset(g, count, length, dim):
    points, codes = gaussian(g, count, length, dim)
    return points + 10, codes + 10


def near_duplicates(g, count, length, dim):
    return torch.randn(1, count, dim, generator=g), 1 + 1e-4 * torch.randn(1, length, dim, generator=g)


def spread_sizes(g, count, length, dim):
    """Lengths from 1e-15 to 1e15, in one tile of codes."""
    points, codes = gaussian(g, count, length, dim)
    sizes = [10 ** (30 * torch.rand(1, n, 1, generator=g) - 15) for n in (count, length)]
    return points * sizes[0], codes * sizes[1]


def vanishing(g, count, length, dim):
    points, codes = gaussian(g, count, length, dim)
    return points * 1e-21, codes * 1e-21


DATA = (gaussian, clustered, low_rank, offset, near_duplicates, spread_sizes, vanishing)


def same(a, b):
    """Index and value, bit for bit; NaN in equal places."""
    return torch.equal(a[0], b[0]) and torch.equal(a[1].nan_to_num(7e30), b[1].nan_to_num(7e30))


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("data", DATA, ids=lambda f: f.__name__)
def test_screened_is_unscreened_to_the_bit(data, metric, k):
    points, codes = data(torch.Generator().manual_seed(0), 20, 300, 36)
    screened = nearest(points, codes, k, metric, "all", True, backend="simt")
    plain = nearest(points, codes, k, metric, "all", False, backend="simt")
    assert same(screened, plain)
    value, _ = nearest_op.spec.reference(points.double(), codes.double(), k, metric, "all", True)
    assert_close(plain[1], value, 2e-6, f"{data.__name__} {metric} {k}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, 32, 33, 130, 300])
def test_any_number_of_steps_along_the_columns(dim, dtype):
    g = torch.Generator().manual_seed(6)
    points, codes = torch.randn(2, 65, dim, generator=g).to(dtype), torch.randn(1, 257, dim, generator=g).to(dtype)
    index, value = nearest(points, codes, 2, "l2", "all", True, backend="simt")
    expected_value, expected = nearest_op.spec.reference(points.double(), codes.double(), 2, "l2", "all", True)
    assert torch.equal(index, expected)
    assert_close(value, expected_value, 2e-6, f"{dim} columns")


@pytest.mark.parametrize("data", [gaussian, clustered, offset], ids=lambda f: f.__name__)
def test_the_screen_excludes_most_codes(data):
    """Rows of codes that no point evaluates are not read in fp32: the traffic says how well the bound does."""
    trace = emulator("simt_trace")
    points, codes = data(torch.Generator().manual_seed(1), 64, 512, 64)
    trace.simt_reset_counters()
    nearest(points, codes, 1, "l2", "all", True, backend="simt_trace")
    (screen,) = [k for k in trace.simt_counters() if "screen_kernel" in k["kernel"]]
    plain_loads = 512 * 64 * 2 * 2  # two rows of two words per lane for every pair of a point and a code
    assert screen["load_requests"] < plain_loads / 4


@pytest.mark.parametrize("k", [1, 5, 32])
@pytest.mark.parametrize("candidates", ["all", "others", "before"])
def test_parts_of_the_codes_are_joined(candidates, k):
    """Five tiles of codes and few points: several blocks share the codes."""
    g = torch.Generator().manual_seed(2)
    codes = torch.randint(-1, 2, (1, 530, 6), generator=g).float()  # many ties
    points = codes if candidates != "all" else torch.randint(-1, 2, (1, 40, 6), generator=g).float()
    index, value = nearest(points, codes, k, "l2", candidates, True, backend="simt")
    expected_value, expected = nearest_op.spec.reference(points, codes, k, "l2", candidates, True)
    assert torch.equal(index, expected)
    assert torch.equal(value, expected_value)


def test_batches_do_not_mix():
    g = torch.Generator().manual_seed(3)
    points, codes = torch.randn(3, 67, 33, generator=g), torch.randn(3, 150, 33, generator=g)
    together = nearest(points, codes, 3, "cosine", "all", True, backend="simt")
    for b in range(3):
        alone = nearest(points[b : b + 1], codes[b : b + 1], 3, "cosine", "all", True, backend="simt")
        assert same((together[0][b], together[1][b]), (alone[0][0], alone[1][0]))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_nan_and_infinity_beside_ordinary_rows(metric):
    g = torch.Generator().manual_seed(4)
    points, codes = gaussian(g, 70, 140, 8)
    points[0, 5, 1] = points[0, 69, 7] = codes[0, 3, 0] = codes[0, 133, 3] = torch.nan
    codes[0, 17, 2], points[0, 64, 0] = torch.inf, -torch.inf
    codes[0, 100:120] *= 3e18  # their squares are beyond float32
    index, value = nearest(points, codes, 2, metric, "all", True, backend="simt")
    assert same((index, value), nearest(points, codes, 2, metric, "all", False, backend="simt"))
    expected_value, expected = nearest_op.spec.reference(points, codes, 2, metric, "all", True)
    assert torch.equal(value.isnan(), expected_value.isnan())
    assert value[0, [5, 69]].isnan().all()
    ordinary = torch.ones(70, dtype=torch.bool)
    ordinary[64] = False  # infinitely far from everything, on one side or the other
    assert torch.equal(index[0, ordinary], expected[0, ordinary])


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 70, 1, 300, 37), (3, 63, 3, 131, 64), (1, 3, 1, 900, 5)])
@pytest.mark.parametrize("k", [1, 32])
def test_scratch_is_as_large_as_the_kernels_need(sizes, k):
    batch, count, code_batch, length, dim = sizes
    module = emulator("simt")
    points, codes = torch.zeros(batch, count, dim), torch.zeros(code_batch, length, dim)
    index, value = torch.zeros(batch, count, k, dtype=torch.int64), torch.zeros(batch, count, k)
    needed = scratch_bytes(*sizes, k)
    module.nearest_cuda(points, codes, index, value, torch.zeros(needed, dtype=torch.uint8), 0, 0, True)
    with pytest.raises(ValueError, match=f"expected `scratch` of {needed} bytes"):
        module.nearest_cuda(points, codes, index, value, torch.zeros(needed - 16, dtype=torch.uint8), 0, 0, True)
