"""Counters against what the access pattern says on paper."""

import numpy as np
import pytest


def counters(module, name, x, y, variant=0):
    module.simt_reset_counters()
    getattr(module, f"selftest_{name}")(x, y, variant)
    (only,) = module.simt_counters()
    return only


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (4, 16), (8, 32)])
def test_sectors_per_request(trace, stride, sectors):
    x = np.arange(1024 * stride, dtype=np.float32)
    y = np.zeros(1024, np.float32)
    c = counters(trace, f"copy_stride{stride}", x, y)
    np.testing.assert_array_equal(y, x[::stride])
    warps = 1024 // 32
    assert (c["launches"], c["blocks"], c["threads"]) == (1, 8, 1024)
    assert (c["load_requests"], c["store_requests"]) == (warps, warps)
    assert c["load_sectors"] == warps * sectors
    assert c["store_sectors"] == warps * 4
    assert c["load_bytes"] == c["store_bytes"] == 4096
    assert c["load_unique_bytes"] == min(stride, 8) * 4096
    assert c["store_unique_bytes"] == 4096
    assert c["buffers"]["x"]["load_unique_bytes"] == min(stride, 8) * 4096
    assert c["buffers"]["y"]["store_unique_bytes"] == 4096
    assert c["buffers"]["x"]["store_requests"] == c["buffers"]["y"]["load_requests"] == 0


def test_an_unaligned_array_counts_like_an_aligned_one(trace):
    """NumPy aligns to 16 bytes, a card's allocator to 256: the emulator counts what the card would see."""
    for shift in range(0, 16, 4):
        x = np.zeros(1024 + 16, np.float32)[shift : shift + 1024]
        assert counters(trace, "copy_stride1", x, np.zeros(1024, np.float32))["load_sectors"] == 128


def test_vector_access(trace):
    x = np.arange(2048, dtype=np.float32)
    y = np.zeros(2048, np.float32)
    c = counters(trace, "copy_vec4", x, y)
    assert (c["load_requests"], c["load_sectors"], c["load_bytes"]) == (16, 256, 8192)
    assert (c["store_requests"], c["store_sectors"], c["store_bytes"]) == (16, 256, 8192)
    h = np.arange(2048, dtype=np.uint16)
    out = np.zeros_like(h)
    c = counters(trace, "copy_vec_f16", h, out)
    assert (c["load_requests"], c["load_bytes"], c["store_requests"]) == (8, 4096, 8)
    expected = h.reshape(-1, 8).copy()
    expected[:, 0] = expected[:, 7]
    np.testing.assert_array_equal(out, expected.ravel())


def test_rereading_is_not_unique(trace):
    x = np.arange(64, dtype=np.float32)
    c = counters(trace, "reread", x, np.zeros(512, np.float32))
    assert c["load_requests"] == c["load_sectors"] == 16 * 64  # a broadcast is one sector
    assert c["load_bytes"] == 512 * 64 * 4
    assert c["load_unique_bytes"] == 256
    trace.selftest_reread(x, np.zeros(512, np.float32))  # unique per launch, summed over launches
    (twice,) = trace.simt_counters()
    assert (twice["launches"], twice["load_unique_bytes"]) == (2, 512)


@pytest.mark.parametrize(
    ("name", "waves", "conflicts"), [("bank_padded", 64, 0), ("bank_conflict", 32 + 32 * 32, 32 * 31)]
)
def test_bank_conflicts(trace, name, waves, conflicts):
    x = np.arange(1024, dtype=np.float32)
    y = np.zeros_like(x)
    c = counters(trace, name, x, y)
    np.testing.assert_array_equal(y.reshape(32, 32), x.reshape(32, 32).T)
    assert (c["shared_store_requests"], c["shared_load_requests"]) == (32, 32)
    assert (c["shared_waves"], c["bank_conflict_waves"]) == (waves, conflicts)
    assert c["static_smem_bytes"] == 32 * (33 if name == "bank_padded" else 32) * 4


def test_diverged_lanes(trace):
    """Lane i reads i % 4 times if i is odd: the k-th reads of different lanes are one request."""
    x = np.ones(128, np.float32)
    y = np.zeros(128, np.float32)
    c = counters(trace, "diverged", x, y)
    np.testing.assert_array_equal(y, [i % 4 if i % 2 else 0 for i in range(128)])
    assert c["load_bytes"] == 4 * sum(i % 4 for i in range(128) if i % 2)
    assert c["load_requests"] == 4 * 3
    assert c["store_requests"] == 4


def test_barriers_atomics_and_shared_memory(simt):
    x = np.arange(256, dtype=np.int32)
    c = counters(simt, "atomic", x, np.zeros(16, np.int32))
    assert c["barriers"] == 2 * 2
    # per thread 8 and the loop's compare-and-swaps; two more by the first thread, one exchange where x == 17
    assert c["atomics"] >= 256 * 9 + 2 * 2 + 1
    c = counters(simt, "dynamic_shared", np.ones(3000, np.float32), np.zeros(3000, np.float32))
    assert (c["barriers"], c["dynamic_smem_bytes"]) == (1, 12000)


def test_no_conflicts_in_ldmatrix_of_padded_rows(trace):
    x = np.zeros(16 * 16 + 16 * 8, np.uint16)
    c = counters(trace, "ldmatrix", x, np.zeros(128, np.float32))
    assert c["shared_load_requests"] == 2
    assert c["bank_conflict_waves"] == 0


def test_reset(simt):
    simt.selftest_copy_stride1(np.ones(128, np.float32), np.zeros(128, np.float32))
    assert simt.simt_counters()[0]["kernel"] == "vk::{anonymous}::copy_stride_kernel<1>"
    simt.simt_reset_counters()
    assert simt.simt_counters() == []
