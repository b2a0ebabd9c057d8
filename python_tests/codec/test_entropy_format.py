"""A decoder of its own, written from docs/container.md in plain integers: one symbol, one bit at a time."""

from decimal import Decimal, getcontext

import numpy as np
import pytest

from vidkernels.codec import encode_symbols


class Bits:
    def __init__(self, data):
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, n):
        assert n <= self.left
        got, self.value, self.left = self.value % 2**n, self.value >> n, self.left - n
        return got


def weights(bits, count, p):
    z, out = 0, []
    for _ in range(count):
        d = 0
        while bits.take(1):
            d += 1
        z += d // 2 if d % 2 == 0 else -(d + 1) // 2
        if z == 0:
            out.append(0)
            continue
        kept = min(p, z - 1)
        w = 2 ** (z - 1) + bits.take(kept) * 2 ** (z - 1 - kept)
        out.append(w + 2 ** (z - 1 - kept) // 2 if z - 1 > kept else w)
    return out


def profile(gaussian, level, length):
    getcontext().prec = 50
    w = Decimal(2**level).sqrt().sqrt()
    r = int(((Decimal(-2) / (w * w if gaussian else w)).exp() * 2**48).to_integral_value())
    g, p, out = r * r >> 48 if gaussian else 2**48, 2**48, []
    for _ in range(length):
        out.append(p)
        p, r = p * r >> 48, r * g >> 48
    return out


def read_table(bits, m):
    n = bits.take(8)
    if n == 0:
        return 0, 0, 0, [m]
    low = bits.take(bits.take(6))
    low = low // 2 if low % 2 == 0 else -(low + 1) // 2
    s = bits.take(5) if bits.take(1) else 0
    e = bits.take(7) if bits.take(1) else 0
    if n == 1 and e == 0:
        return low, n, s, [m]
    kind, p = bits.take(2), (0, 1, 2, 4)[bits.take(2)]
    if kind == 0:
        direct = weights(bits, n, p)
    else:
        c, level = bits.take(10), bits.take(6)
        at = [abs(4 * i - c) for i in range(n)]
        first = profile(kind > 1, level, 768)
        if kind < 3:
            direct = [max(1, first[d]) for d in at]
        else:
            second, h = profile(True, bits.take(6), 768), bits.take(3)
            a = (h << 48) // sum(first[d] for d in at)
            b = (8 - h << 48) // sum(second[d] for d in at)
            direct = [max(1, (first[d] * a + second[d] * b) >> 16) for d in at]
    total = sum(direct)
    u = [max((w << 24) // total, 1) if w else 0 for w in direct] + [w << 10 for w in weights(bits, e, p)]
    f = [max(x * m // sum(u), x > 0) for x in u]
    order = sorted(range(len(u)), key=lambda i: -(u[i] * m % sum(u)))
    for i in order[: max(m - sum(f), 0)]:
        f[i] += 1
    while sum(f) > m:
        i = f.index(max(f))
        f[i] -= min(sum(f) - m, max(1, f[i] // 8))
    return low, n, s, f


def decode(data, count, contexts):
    b, lanes, at = 12 + data[0] % 4, (0, 1, 32)[data[0] >> 2], 2
    lengths = []
    for _ in range(2):
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                break
        lengths.append(value)
    bits = Bits(data[at : at + lengths[0]])
    tables = [read_table(bits, 2**b) for _ in range(data[1] + 1)]
    assert bits.left < 8
    assert bits.value == 0
    at += lengths[0]
    states = [int.from_bytes(data[at + 4 * i : at + 4 * i + 4], "little") for i in range(lanes)] or [2**16]
    at += 4 * lanes
    words = [int.from_bytes(data[at + 2 * i : at + 2 * i + 2], "little") for i in range(lengths[1])]
    raw = Bits(data[at + 2 * lengths[1] :])
    tokens = []
    for i in range(count):
        f = tables[contexts[i]][3]
        x = states[i % len(states)]
        slot, token, start = x % 2**b, 0, 0
        while start + f[token] <= slot:
            start, token = start + f[token], token + 1
        x = f[token] * (x >> b) + slot - start
        states[i % len(states)] = x if x >= 2**16 else x << 16 | words.pop(0)
        tokens.append(token)
    assert not words
    assert set(states) == {2**16}
    cut = [raw.take(tables[k][2]) for k in contexts[:count]]
    out = []
    for token, k, bottom in zip(tokens, contexts, cut):
        low, n, s, _ = tables[k]
        if token < n:
            q = low + token
        else:
            exponent, side = divmod(token - n, 2)
            e = raw.take(exponent) + 2**exponent - 1
            q = low - 1 - e if side else low + n + e
        out.append((q << s) + bottom)
    assert raw.left < 8
    assert raw.value == 0
    return out


@pytest.mark.parametrize("bits", [12, 13, 14])
@pytest.mark.parametrize("count", [0, 1, 40, 400, 30_000])
def test_the_documented_format_is_the_written_one(count, bits):
    rng = np.random.default_rng(count + bits)
    columns = [
        rng.laplace(0, 3, count),
        rng.normal(50, 30, count),
        rng.standard_cauchy(count) * 20,
        rng.choice([1, 4, 5, 70000], count, p=[0.5, 0.3, 0.19, 0.01]),
        rng.integers(-5000, 5000, count),
        np.where(rng.random(count) < 0.8, rng.normal(0, 0.8, count), rng.normal(0, 20, count)),
        rng.choice([-(1 << 31), (1 << 31) - 1], count),
        np.full(count, -9),
    ]
    contexts = rng.integers(0, len(columns), count) if count else np.zeros(0, np.int64)
    values = np.round(np.stack(columns)[contexts, np.arange(count)]).clip(-(1 << 31), (1 << 31) - 1).astype(np.int32)
    data = encode_symbols(values, contexts.astype(np.uint8), bits=bits)
    assert decode(data, count, contexts.tolist()) == values.tolist()
    data = encode_symbols(values[:500], bits=bits)
    assert decode(data, len(values[:500]), [0] * count) == values[:500].tolist()
