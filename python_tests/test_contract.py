"""What every op owes its callers, checked for every op, every named case and every backend that is here."""

import os
from functools import partial

import pytest
import torch

from vidkernels import _backend, _native
from vidkernels._case import ROUNDING
from vidkernels.testing import (
    all_cases,
    arguments,
    assert_close,
    assert_gradient_close,
    results,
    strided_copy,
    to_float64,
)

CASES = all_cases()
SMALL = [(op, case) for op, case in CASES if case.kind != "real"]
REAL = [(op, case) for op, case in CASES if case.kind == "real" and case.oracle]
TINY = [(op, case) for op, case in CASES if case.name == "tiny"]
COMPILED = ("cpu", "simt", "simt_trace", "triton")
ids = lambda pairs: [f"{op.name}-{case.name}" for op, case in pairs]  # noqa: E731


def tensors(value):
    return [v for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, torch.Tensor)]


def expectation(op, case, args):
    """Float64 for a tolerance, the same dtype for equal bits."""
    return results(op, args if case.rtol is None else to_float64(args), op.spec.reference)


def with_grad(op, case, args):
    names = op.spec.arg_names
    return tuple(
        a.detach().clone().requires_grad_() if n in case.grad and isinstance(a, torch.Tensor) else a
        for n, a in zip(names, args, strict=True)
    )


def differentiable(outputs):
    return [o for o in tensors(outputs) if o.requires_grad]


def projection(outputs):
    """A scalar of all outputs; its weights have few bits, so that no dtype rounds them."""
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=g).bfloat16().double().to(o.device) for o in outputs]
    return sum((o.double() * w).sum() for o, w in zip(outputs, weights))


def backprop(op, case, args, backend=None):
    """Gradients of a random projection of the outputs, by argument name."""
    loss = projection(differentiable(op(*args, backend=backend)))
    leaves = {n: a for n, a in zip(op.spec.arg_names, args, strict=True) if n in case.grad and a is not None}
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))


def gradient_rtol(case, *dtypes):
    """A float32 gradient of a bfloat16 computation is no better than bfloat16."""
    return max(4 * ROUNDING[d] if case.grad_rtol is None else case.grad_rtol[d] for d in dtypes)


def need(op, backend, args):
    reason = op.why_not(backend, *args)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(("op", "case"), SMALL, ids=ids(SMALL))
def test_backend_agrees_with_reference(op, case, backend):
    ran = 0
    for dtype in case.dtypes:
        args = arguments(case, dtype)
        if op.why_not(backend, *args) is not None:
            continue
        ran += 1
        expected = expectation(op, case, args)
        for variant in (args, tuple(map(strided_copy, args))):
            actual = results(op, variant, partial(op, backend=backend))
            assert len(actual) == len(expected)
            for i, (a, e) in enumerate(zip(actual, expected)):
                assert_close(
                    a, e, case.rtol and case.rtol[dtype], f"{op.name} {case.name} {backend} {dtype} output {i}"
                )
    if not ran:
        need(op, backend, arguments(case, case.dtypes[0]))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(("op", "case"), [p for p in SMALL if p[1].grad], ids=ids([p for p in SMALL if p[1].grad]))
def test_backend_gradients(op, case, backend):
    ran = 0
    for dtype in case.dtypes:
        args = arguments(case, dtype)
        if op.why_not(backend, *args) is not None:
            continue
        ran += 1
        expected = backprop(op, case, with_grad(op, case, to_float64(args)), "reference")
        actual = backprop(op, case, with_grad(op, case, args), backend)
        for name in expected:
            what = f"{op.name} {case.name} {backend} {dtype} d/d{name}"
            assert_gradient_close(actual[name], expected[name], what, gradient_rtol(case, dtype, actual[name].dtype))
    if not ran:
        need(op, backend, arguments(case, case.dtypes[0]))


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case"), REAL, ids=ids(REAL))
def test_real_sizes(op, case):
    for dtype in case.dtypes:
        args = arguments(case, dtype)
        if op.why_not("cpu", *args) is None:
            for a, e in zip(results(op, args, partial(op, backend="cpu")), expectation(op, case, args), strict=True):
                assert_close(a, e, case.rtol and case.rtol[dtype], f"{op.name} {case.name} {dtype}")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(("op", "case"), CASES, ids=ids(CASES))
def test_gpu_agrees_with_reference(op, case, backend):
    ran = 0
    for dtype in case.dtypes:
        args = arguments(case, dtype)
        on_gpu = tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in args)
        if op.why_not(backend, *on_gpu) is not None:
            continue
        ran += 1
        got = results(op, on_gpu, partial(op, backend=backend))
        for a, e in zip(got, expectation(op, case, args), strict=True):
            assert_close(a.cpu(), e, case.rtol and case.rtol[dtype], f"{op.name} {case.name} {backend} {dtype}")
        if case.grad and case.kind != "real":
            expected = backprop(op, case, with_grad(op, case, to_float64(args)), "reference")
            actual = backprop(op, case, with_grad(op, case, on_gpu), backend)
            for name in expected:
                what = f"{op.name} {case.name} {backend} {dtype} d/d{name}"
                assert_gradient_close(
                    actual[name].cpu(), expected[name], what, gradient_rtol(case, dtype, actual[name].dtype)
                )
    if not ran:
        need(
            op, backend, tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments(case, case.dtypes[0]))
        )


@pytest.mark.parametrize("backend", [None, "reference", "simt"])
@pytest.mark.parametrize(("op", "case"), [p for p in TINY if p[1].grad], ids=ids([p for p in TINY if p[1].grad]))
def test_gradcheck(op, case, backend):
    if torch.float64 not in case.dtypes:
        pytest.skip("no float64 arguments")
    args = arguments(case, torch.float64)
    if backend is not None:
        need(op, backend, args)
    leaves = with_grad(op, case, args)
    inputs = [a for n, a in zip(op.spec.arg_names, leaves, strict=True) if n in case.grad and a is not None]

    def function(*values):
        values = iter(values)
        full = [next(values) if n in case.grad and a is not None else a for n, a in zip(op.spec.arg_names, args)]
        return tuple(differentiable(op(*full, backend=backend)))

    assert torch.autograd.gradcheck(function, inputs, nondet_tol=0.0)


@pytest.mark.parametrize(("op", "case"), SMALL, ids=ids(SMALL))
def test_opcheck(op, case):
    if case.kind not in ("tiny", "odd", "empty"):
        pytest.skip("tiny, odd and empty cases are enough here")
    torch.library.opcheck(op.torch_op, with_grad(op, case, arguments(case, case.dtypes[0])))


@pytest.mark.parametrize(("op", "case"), TINY, ids=ids(TINY))
def test_compiles_without_graph_break(op, case):
    args = arguments(case, case.dtypes[0])
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: op(*a), fullgraph=True, backend="aot_eager")
    for a, e in zip(results(op, args, compiled), results(op, args), strict=True):
        assert torch.equal(a, e)
    if case.grad:
        expected = backprop(op, case, with_grad(op, case, args))
        leaves = with_grad(op, case, args)
        projection(differentiable(compiled(*leaves))).backward()
        for n, a in zip(op.spec.arg_names, leaves, strict=True):
            if n in expected:
                assert_gradient_close(a.grad, expected[n].double(), f"{op.name} compiled d/d{n}")


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case"), TINY, ids=ids(TINY))
def test_compiles_with_inductor(op, case):
    args = with_grad(op, case, arguments(case, case.dtypes[0]))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: op(*a), fullgraph=True)
    for a, e in zip(results(op, args, compiled), results(op, args), strict=True):
        assert torch.equal(a, e)
    if case.grad:
        sum(o.double().sum() for o in differentiable(compiled(*args))).backward()
        assert all(a.grad is not None for n, a in zip(op.spec.arg_names, args) if n in case.grad and a is not None)


@pytest.mark.parametrize(("op", "case"), TINY, ids=ids(TINY))
def test_exports(op, case):
    args = arguments(case, case.dtypes[0])
    constants = {n: a for n, a in zip(op.spec.arg_names, args) if not isinstance(a, torch.Tensor)}

    class Wrapped(torch.nn.Module):
        def forward(self, *given):
            given = iter(given)
            return op(*(constants[n] if n in constants else next(given) for n in op.spec.arg_names))

    program = torch.export.export(Wrapped(), tuple(tensors(args)))
    assert any(node.target is op.torch_op for node in program.graph.nodes)
    exported = program.module()
    for a, e in zip(results(op, args, lambda *given: exported(*tensors(given))), results(op, args), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(("op", "case"), [p for p in TINY if p[1].grad], ids=ids([p for p in TINY if p[1].grad]))
def test_func_grad_and_vmap(op, case):
    args = arguments(case, case.dtypes[0])
    position = op.spec.arg_names.index(case.grad[0])

    def scalar(x):
        outputs = tensors(op(*args[:position], x, *args[position + 1 :]))
        return sum(o.square().sum() for o in outputs if o.is_floating_point())

    x = args[position]
    got = torch.func.grad(scalar)(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(scalar(leaf), leaf)
    assert_gradient_close(got, expected.double(), f"{op.name} func.grad")
    batch = torch.stack([x, x * 0.5 + 0.25, -x])
    mapped = torch.vmap(lambda v: op(*args[:position], v, *args[position + 1 :]))(batch)
    looped = [tensors(op(*args[:position], v, *args[position + 1 :])) for v in batch]
    for i, m in enumerate(tensors(mapped)):
        expected = torch.stack([row[i] for row in looped])
        assert_close(m, expected.double() if m.is_floating_point() else expected, 1e-6, f"{op.name} vmap")
    per_sample = torch.vmap(torch.func.grad(scalar))(batch)
    for p, v in zip(per_sample, batch):
        assert_gradient_close(p, torch.func.grad(scalar)(v).double(), f"{op.name} vmap of grad")


@pytest.mark.parametrize(("op", "case"), TINY, ids=ids(TINY))
def test_autocast_is_the_same_eager_and_compiled(op, case):
    args = arguments(case, case.dtypes[0])
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager = results(op, args)
        compiled = results(op, args, torch.compile(lambda *a: op(*a), fullgraph=True, backend="aot_eager"))
    for a, e in zip(compiled, eager, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)
    if op.spec.autocast == "lower":
        assert any(e.dtype is torch.bfloat16 for e in eager)
    elif op.spec.autocast == "float32":
        assert all(e.dtype is torch.float32 for e in eager if e.is_floating_point())


@pytest.mark.parametrize(("op", "case"), SMALL, ids=ids(SMALL))
def test_same_bits_for_any_thread_count(op, case, one_and_two_threads):
    if not case.thread_bits:
        pytest.skip("torch's matrix product is inside")
    args = arguments(case, case.dtypes[0])
    need(op, "cpu", args)
    for a, b in zip(*one_and_two_threads(lambda: results(op, args)), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize(("op", "case"), SMALL, ids=ids(SMALL))
def test_same_bits_for_any_block_order(op, case):
    args = arguments(case, case.dtypes[0])
    need(op, "simt", args)
    simt = _native.module("_simt")
    runs = []
    try:
        for seed in (0, 1, 7):
            simt.simt_configure(seed=seed)
            runs.append(results(op, args, partial(op, backend="simt")))
    finally:
        simt.simt_configure(seed=0)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize(("op", "case"), TINY, ids=ids(TINY))
def test_forced_backend_never_falls_back(op, case):
    args = arguments(case, case.dtypes[0])
    with pytest.raises(RuntimeError, match=r"backend 'cuda' was asked for") as error:
        op(*args, backend="cuda")
    for name in (*_backend.NAMES, *op.spec.arg_names):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="expected one of"):
        op(*args, backend="fastest")


@pytest.mark.parametrize(("op", "case"), TINY, ids=ids(TINY))
def test_fake_tensors_get_shapes_only(op, case):
    from torch._subclasses import FakeTensorMode

    args = arguments(case, case.dtypes[0])
    with FakeTensorMode() as mode:
        fakes = tensors(op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args)))
    for f, r in zip(fakes, tensors(op(*args)), strict=True):
        assert (f.shape, f.dtype, f.stride()) == (r.shape, r.dtype, r.stride())


@pytest.mark.skipif(not os.environ.get("CI"), reason="only CI must have every module")
def test_ci_runs_every_backend():
    for name in ("_C", "_simt", "_simt_trace"):
        assert _native.module(name) is not None, _native.why_missing(name)
