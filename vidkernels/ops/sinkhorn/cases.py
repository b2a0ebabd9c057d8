"""Named inputs of sinkhorn, its scales and its step."""

from __future__ import annotations

import torch

from vidkernels._case import Case

# Twenty times a cosine is a rounded number of up to 30: half a unit in its last place is 1e-6 of the exponential.
_RTOL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}
_ALL = ("scores", "row_mass", "col_mass")


def _cosines(g, batch, rows, cols, dim=24):
    x, y = torch.randn(batch, rows, dim, generator=g), torch.randn(batch, cols, dim, generator=g)
    x, y = torch.nn.functional.normalize(x, dim=2), torch.nn.functional.normalize(y, dim=2)
    return x @ y.mT


def _mass(g, batch, count):
    mass = torch.rand(batch, count, generator=g, dtype=torch.float64) + 0.2
    return mass / mass.sum(1, keepdim=True)


def _args(batch, rows, cols, epsilon=0.05, iterations=3, masses=False, rows_to_one=True, shape=None):
    def args(g, dtype):
        scores = _cosines(g, batch, rows, cols) if rows * cols else torch.zeros(batch, rows, cols)
        if shape is not None:
            scores = shape(scores)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        mass = [_mass(g, batch, n).to(wide) if masses else None for n in (rows, cols)]
        return scores.to(dtype), epsilon, iterations, *mass, rows_to_one

    return args


def _scales(*args, **options):
    make = _args(*args, **options)
    return lambda g, dtype: make(g, dtype)[:5]


def _step(*args, first=False, **options):
    make = _args(*args, **options)

    def step(g, dtype):
        scores, epsilon, _, row_mass, _, _ = make(g, dtype)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        log_v = torch.randn(scores.shape[0], scores.shape[2], generator=g).to(wide)
        return scores, epsilon, row_mass, None if first else log_v

    return step


def _far_rows(scores):
    """Rows whose levels lie hundreds of epsilon apart: only the first column sum may feel that."""
    return scores + 20 * torch.arange(scores.shape[1])[:, None] / scores.shape[1]


def _far_columns(scores):
    """Columns that all samples like, or none; fp32 scales cannot span that."""
    scores = scores + 8 * torch.linspace(-1, 1, scores.shape[2])
    scores[:, 0, 1:4] = -torch.inf
    return scores


def _strided(g, dtype):
    scores, *rest = _args(2, 9, 12, masses=True)(g, dtype)
    return scores.transpose(1, 2).contiguous().transpose(1, 2), *rest


def _bytes(scores, epsilon, iterations, row_mass, col_mass, rows_to_one):
    return (iterations + 1) * scores.numel() * scores.element_size(), scores.numel() * 4


def _potentials(scores):
    """Bytes of a scale for each row and column, and of the rows' labels."""
    batch, rows, cols = scores.shape
    return batch * (12 * rows + 4 * cols)


def _bytes_scales(scores, epsilon, iterations, row_mass, col_mass):
    return (iterations + 1) * scores.numel() * scores.element_size(), _potentials(scores)


def _bytes_step(scores, epsilon, row_mass, col_log):
    known = 0 if col_log is None else col_log.numel() * col_log.element_size()
    return scores.numel() * scores.element_size() + known, _potentials(scores)


def _case(name, args, **options):
    return Case(name, args, **{"rtol": _RTOL} | options)


_TINY = {"epsilon": 0.5, "iterations": 2}
CASES = {
    "sinkhorn": [
        _case("tiny", _args(2, 4, 3, masses=True, rows_to_one=False, **_TINY), grad=_ALL),
        _case("odd", _args(2, 67, 37), grad=("scores",), bytes=_bytes),
        _case("odd_masses", _args(1, 131, 63, 0.1, 4, masses=True), grad=_ALL),
        _case("odd_plan", _args(3, 17, 200, 0.1, masses=True, rows_to_one=False), grad=_ALL),
        _case("odd_one_column", _args(2, 5, 1), grad=("scores",)),
        _case("empty", _args(2, 0, 3)),
        _case("empty_batch", _args(0, 5, 3)),
        _case("strided", _strided, grad=_ALL),
        _case("extreme_rows", _args(1, 70, 33, shape=_far_rows)),
        _case("extreme_columns", _args(1, 70, 33, shape=_far_columns), rtol=_RTOL | {torch.float32: 2e-4}),
        _case("extreme_equal", _args(1, 9, 5, shape=torch.zeros_like)),
        _case("real_swav", _args(1, 4096, 3000, iterations=3), bytes=_bytes, oracle=False),
        _case("real_sigma", _args(1, 4096, 3000, iterations=10), bytes=_bytes, oracle=False),
    ],
    "sinkhorn_scales": [
        _case("tiny", _scales(2, 4, 3, masses=True, **_TINY)),
        _case("odd", _scales(2, 67, 37), bytes=_bytes_scales),
        _case("odd_masses", _scales(1, 131, 63, 0.1, 4, masses=True)),
        _case("empty", _scales(2, 0, 3)),
        _case("extreme_rows", _scales(1, 70, 33, shape=_far_rows)),
        _case("extreme_columns", _scales(1, 70, 33, shape=_far_columns)),
        _case("real_sigma", _scales(1, 4096, 3000, iterations=10), bytes=_bytes_scales, oracle=False),
    ],
    "sinkhorn_step": [
        _case("tiny", _step(2, 4, 3, masses=True, epsilon=0.5)),
        _case("tiny_first", _step(2, 4, 3, masses=True, epsilon=0.5, first=True)),
        _case("odd", _step(2, 67, 37), bytes=_bytes_step),
        _case("odd_first", _step(2, 131, 37, first=True), bytes=_bytes_step),
        _case("extreme_columns", _step(1, 70, 33, shape=_far_columns)),
        _case("extreme_columns_first", _step(1, 70, 33, shape=_far_columns, first=True)),
    ],
}
