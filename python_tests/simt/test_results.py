"""What kernels compute in the emulator: collectives, atomics, reductions, asynchronous copies, tensor-core tiles."""

import ctypes
import math

import numpy as np
import pytest


def run(module, name, x, y, variant=0):
    getattr(module, f"selftest_{name}")(np.ascontiguousarray(x), y, variant)
    return y


def shuffled(v, source):
    return np.array([v[s] for s in source])


def test_shuffles(simt):
    v = np.arange(32, dtype=np.int32) * 3 + 1
    out = run(simt, "shuffle", v, np.zeros(9 * 32, np.int32)).reshape(9, 32)
    lanes = range(32)
    expected = [
        [t * 7 % 32 for t in lanes],
        [t - 3 if t >= 3 else t for t in lanes],
        [t + 5 if t + 5 < 32 else t for t in lanes],
        [t ^ 9 for t in lanes],
        [t // 8 * 8 + 2 for t in lanes],
        [t - 3 if t % 8 >= 3 else t for t in lanes],
        [t + 3 if t % 8 + 3 < 8 else t for t in lanes],
        [t ^ 3 for t in lanes],
        [31] * 32,
    ]
    for row, source in zip(out, expected):
        np.testing.assert_array_equal(row, shuffled(v, source))


def test_votes_and_active_mask(simt):
    v = np.arange(32, dtype=np.int32)
    out = run(simt, "vote", v, np.zeros(4 * 32, np.int32)).reshape(4, 32)
    assert set(out[0].view(np.uint32)) == {0xAAAAAAAA}
    assert set(out[1]) == {1}
    assert set(out[2]) == {1}
    np.testing.assert_array_equal(out[3], [11 + 300 if t % 3 == 0 else 0 for t in range(32)])


def test_reducing_barriers(simt):
    v = np.arange(128, dtype=np.int32)
    out = run(simt, "barrier_reduce", v, np.zeros(128, np.int32))
    assert set(out) == {64 + 1000 + 10000}


def atomic_expected(v, start):
    y = start.copy()
    y[0] += v.sum()
    y[1] |= np.bitwise_or.reduce(1 << (v & 31))
    y[2] = max(y[2], v.max())
    y[3] = min(y[3], v.min())
    y[4:6].view(np.uint64)[0] += v.sum()
    y[6:7].view(np.float32)[0] += v.sum()
    y[7] += 2 * len(v)
    y[8] = 17
    y[9] &= ~np.bitwise_or.reduce(1 << (v & 7))
    y[10] ^= np.bitwise_xor.reduce(v)
    return y


@pytest.mark.parametrize("threads", [1, 2])
def test_atomics(simt, threads):
    simt.simt_configure(seed=3, threads=threads)
    v = (np.arange(512, dtype=np.int32) * 7) % 101
    start = np.array([5, 1, 50, 50, 9, 0, 0, 1, 0, 0xFF, 3, 0], np.int32)
    out = run(simt, "atomic", v, start.copy())
    np.testing.assert_array_equal(out, atomic_expected(v, start))


def test_reductions(simt):
    rng = np.random.default_rng(0)
    x = rng.integers(-100, 100, 512).astype(np.float32)
    out = run(simt, "reduce", x, np.zeros(4 * 512, np.float32)).reshape(4, 128, 4)
    blocks = x.reshape(4, 128)
    np.testing.assert_array_equal(out[:, :, 0], np.broadcast_to(blocks.sum(1, keepdims=True), (4, 128)))
    np.testing.assert_array_equal(out[:, :, 1], np.broadcast_to(blocks.max(1, keepdims=True), (4, 128)))
    np.testing.assert_array_equal(out[:, :, 2], np.broadcast_to(blocks.min(1, keepdims=True), (4, 128)))
    scan = blocks.reshape(4, 4, 32).cumsum(2).reshape(4, 128) + 8000
    np.testing.assert_array_equal(out[:, :, 3], scan)


def test_memset_before_a_kernel(simt):
    x = np.arange(-100, 156, dtype=np.int32)
    assert run(simt, "count", x, np.full(1, -1, np.int32)) == 155
    with pytest.raises(RuntimeError, match="memset_async of 8 bytes does not lie in a writable buffer"):
        run(simt, "count", x, np.zeros(1, np.int32), 1)


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_asynchronous_pipeline(simt, tiles):
    x = np.arange(2 * tiles * 512, dtype=np.float32) % 13
    out = run(simt, "pipeline", x, np.zeros(2, np.float32), tiles)
    np.testing.assert_array_equal(out, x.reshape(2, -1).sum(1))


def test_large_dynamic_shared_memory(simt):
    x = np.arange(30000, dtype=np.float32)  # 117 KiB
    np.testing.assert_array_equal(run(simt, "dynamic_shared", x, np.zeros_like(x)), x[::-1])


def test_three_dimensional_indices(simt):
    out = run(simt, "index", np.zeros(1, np.int32), np.zeros(12 * 30, np.int32)).reshape(2, 2, 3, 2, 3, 5)
    bz, by, bx, tz, ty, tx = np.indices(out.shape)
    np.testing.assert_array_equal(out, tx + 10 * ty + 100 * tz + 1000 * bx + 10000 * by + 100000 * bz)


def signed(x):
    return ctypes.c_int32(x & 0xFFFFFFFF).value


def test_intrinsics(simt):
    a, b = 0x12F48680, -77
    ub = b & 0xFFFFFFFF
    out = run(simt, "intrinsics", np.array([a, b], np.int32), np.zeros(17, np.int32))
    bytes_a, bytes_b = (v.to_bytes(4, "little") for v in (a, ub))
    s = [c - 256 if c > 127 else c for c in bytes_a], [c - 256 if c > 127 else c for c in bytes_b]
    pool = bytes_a + bytes_b
    # selector 0x7a10: bytes 0 and 1, the sign of byte 2 replicated, byte 7
    permuted = bytes([pool[0], pool[1], 0xFF if pool[2] & 0x80 else 0, pool[7]])
    expected = [
        a.bit_count(),
        (a & -a).bit_length(),
        32 - a.bit_length(),
        signed(int(f"{a:032b}"[::-1], 2)),
        signed(int.from_bytes(permuted, "little")),
        7 + sum(x * y for x, y in zip(*s)),
        7 + sum(x * y for x, y in zip(bytes_a, bytes_b)),
        signed(a * ub >> 32),
        signed(a * b >> 32),
        signed(((ub << 32 | a) << 12) >> 32),
        np.float32(0.25).view(np.int32),
        min(a, b),
        max(a, b),
        [3, 1, 4, 1][b & 3],
        2,
        b,
        np.float32(math.exp(0)).view(np.int32),
    ]
    np.testing.assert_array_equal(out, expected)


def to_bits16(values, kind):
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma_16_bit(simt, kind):
    rng = np.random.default_rng(1)
    # multiples of 1/8 below 16: exact in both formats, and their sums of products exact in fp32
    a, b = (rng.integers(-64, 64, shape) / 8 for shape in ((16, 16), (16, 8)))
    c = rng.integers(-50, 50, (16, 8)).astype(np.float32)
    x = np.concatenate([to_bits16(a, kind).ravel(), to_bits16(b.T, kind).ravel(), c.view(np.uint16).ravel()])
    d = run(simt, f"mma_{kind}", x, np.zeros((16, 8), np.float32))
    np.testing.assert_array_equal(d, a @ b + c)


def test_mma_tf32(simt):
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-512, 512, shape).astype(np.float32) / 16 for shape in ((16, 8), (8, 8)))
    c = rng.integers(-50, 50, (16, 8)).astype(np.float32)
    x = np.concatenate([a.ravel(), b.T.ravel(), c.ravel()])
    np.testing.assert_array_equal(run(simt, "mma_tf32", x, np.zeros((16, 8), np.float32)), a @ b + c)
    # operands are rounded to 10 mantissa bits: 1 + 2^-11 is a tie and goes away from zero, a bit less goes down
    for value, rounded in [(1 + 2**-11, 1 + 2**-10), (1 + 2**-11 - 2**-20, 1.0), (-1 - 2**-11, -1 - 2**-10)]:
        x = np.concatenate([np.full(128, value), np.eye(8).ravel(), np.zeros(128)]).astype(np.float32)
        d = run(simt, "mma_tf32", x, np.zeros((16, 8), np.float32))
        np.testing.assert_array_equal(d, np.full((16, 8), rounded, np.float32))


def test_mma_of_bytes(simt):
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 256, (16, 32)).astype(np.uint8), rng.integers(-128, 128, (32, 8)).astype(np.int8)
    a[0], b[:, 0], b[:, 1] = 255, 127, -128
    c = rng.integers(-(1 << 31), 1 << 31, (16, 8)).astype(np.int32)
    x = np.concatenate([a.ravel().view(np.int32), np.ascontiguousarray(b.T).ravel().view(np.int32), c.ravel()])
    d = run(simt, "mma_bytes", x, np.zeros((16, 8), np.int32))
    expected = a.astype(np.int64) @ b.astype(np.int64) + c
    np.testing.assert_array_equal(d, ((expected + (1 << 31)) % (1 << 32) - (1 << 31)).astype(np.int32))  # sums wrap


def test_ldmatrix_feeds_mma(simt):
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-64, 64, shape) / 8 for shape in ((16, 16), (16, 8)))
    x = np.concatenate([to_bits16(a, "f16").ravel(), to_bits16(b, "f16").ravel()])
    np.testing.assert_array_equal(run(simt, "ldmatrix", x, np.zeros((16, 8), np.float32)), a @ b)


@pytest.mark.parametrize(
    ("name", "tiles", "transposed"), [("x4", 4, 0), ("x4_trans", 4, 1), ("x2", 2, 0), ("x2_trans", 2, 1)]
)
def test_ldmatrix_registers(simt, name, tiles, transposed):
    rows = np.arange(32 * 8, dtype=np.uint16)
    out = run(simt, f"ldmatrix_{name}", rows, np.zeros(32 * 4, np.uint32)).reshape(32, 4)
    expected = np.zeros((32, 4), np.uint32)
    for i, tile in enumerate(rows.reshape(4, 8, 8)[:tiles]):
        tile = tile.T if transposed else tile
        for lane in range(32):
            low, high = tile[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].astype(np.uint32)
            expected[lane, i] = low | high << 16
    np.testing.assert_array_equal(out, expected)


DETERMINISTIC = {"reduce": (4 * 4096, 0), "pipeline": (4, 2), "bank_padded": (1024, 0), "dynamic_shared": (4096, 0)}


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("threads", [1, 2])
def test_deterministic_kernels_do_not_depend_on_the_order(simt, name, threads):
    size, variant = DETERMINISTIC[name]
    x = np.random.default_rng(4).standard_normal(4096).astype(np.float32)
    first = run(simt, name, x, np.zeros(size, np.float32), variant)
    for seed in (1, 2, 3):
        simt.simt_configure(seed=seed, threads=threads)
        again = run(simt, name, x, np.zeros(size, np.float32), variant)
        np.testing.assert_array_equal(first.view(np.uint32), again.view(np.uint32))


def test_permuted_order_reveals_order_dependent_sums(simt):
    x = np.random.default_rng(5).standard_normal(4096).astype(np.float32)
    results = set()
    for seed in range(6):
        simt.simt_configure(seed=seed)
        results.add(run(simt, "racy_sum", x, np.zeros(1, np.float32)).tobytes())
        assert run(simt, "racy_sum", x, np.zeros(1, np.float32)).tobytes() in results  # one seed, one order
    assert len(results) > 1
