"""The op layer itself: which road a call takes, and that every road ends at the same kernel."""

import subprocess
import sys

import pytest
import torch

import vidkernels as vk
from vidkernels import _backend, _op
from vidkernels.ops.adam_step.op import adam_step
from vidkernels.ops.gather_tokens.op import gather_tokens


@pytest.fixture
def call():
    return torch.randn(2, 5, 3), torch.tensor([[0, 4], [1, 2]], dtype=torch.int32)


@pytest.fixture
def roads(monkeypatch):
    """The roads that calls took."""
    taken = []
    plain, functorch, dispatcher = gather_tokens._apply_plain, gather_tokens._functorch_function, gather_tokens.torch_op

    class Functorch:
        @staticmethod
        def apply(*args):
            taken.append("functorch")
            return functorch.apply(*args)

    def through_torch(*args):
        taken.append("torch")
        return dispatcher(*args)

    monkeypatch.setattr(gather_tokens, "_apply_plain", lambda *a: (taken.append("plain"), plain(*a))[1])
    monkeypatch.setattr(gather_tokens, "_functorch_function", Functorch)
    monkeypatch.setattr(gather_tokens, "torch_op", through_torch)
    return taken


def test_plain_tensors_take_the_short_road(call, roads):
    tokens, index = call
    gather_tokens(tokens, index)
    assert roads == []
    gather_tokens(tokens.requires_grad_(), index)
    gather_tokens(torch.nn.Parameter(tokens.detach()), index)
    assert roads == ["plain", "plain"]
    with torch.no_grad():
        gather_tokens(tokens, index)
    assert roads == ["plain", "plain"]


def test_transforms_take_the_functorch_road(call, roads):
    tokens, index = call
    torch.func.grad(lambda t: gather_tokens(t, index).sum())(tokens)
    assert roads[0] == "functorch"


def test_subclasses_and_modes_take_the_dispatcher(call, roads):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sub(torch.Tensor):
        pass

    class Recorder(TorchDispatchMode):
        seen: list = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    tokens, index = call
    out = gather_tokens(tokens.as_subclass(Sub), index)
    assert isinstance(out, Sub)
    with Recorder() as recorder:
        gather_tokens(tokens, index)
    assert roads == ["torch", "torch"]
    assert "vidkernels.gather_tokens.default" in recorder.seen


def test_make_fx_sees_the_op(call):
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda t, i: gather_tokens(t, i))(*call).graph
    assert any(node.target is gather_tokens.torch_op for node in graph.nodes)


def test_backward_runs_on_the_forced_backend(call, monkeypatch):
    tokens, index = call
    used = []
    backward = _op.registry["gather_tokens_backward"]
    run = backward.run
    monkeypatch.setattr(backward, "run", lambda args, name: (used.append(name), run(args, name))[1])
    gather_tokens(tokens.requires_grad_(), index, backend="reference").sum().backward()
    with vk.backend("reference"):
        out = gather_tokens(tokens, index)
    out.sum().backward()  # outside the block: the choice travels with the graph
    gather_tokens(tokens, index).sum().backward()
    assert used == ["reference", "reference", None]


def test_compiled_code_honours_a_forced_backend(call):
    torch._dynamo.reset()
    compiled = torch.compile(lambda t, i: gather_tokens(t, i), fullgraph=True, backend="aot_eager")
    compiled(*call)
    with vk.backend("cuda"), pytest.raises(RuntimeError, match="asked for and cannot run"):
        compiled(*call)
    compiled(*call)
    assert _backend.forced is None


def test_vmap_folds_the_batch_when_it_can(call, monkeypatch):
    tokens, index = call
    calls = []
    run = gather_tokens.run
    monkeypatch.setattr(gather_tokens, "run", lambda args, name: (calls.append(args[0].shape), run(args, name))[1])
    torch.vmap(gather_tokens, in_dims=(0, None))(torch.stack([tokens] * 4), index)
    assert calls == [torch.Size([8, 5, 3])]


def test_an_op_without_derivative_says_so():
    op = _op.registry["gather_tokens_backward"]
    bare = _op.Op.__new__(_op.Op)
    bare.spec, bare.name = _op.OpSpec("nothing", "(Tensor a) -> Tensor", None, None), "nothing"
    with pytest.raises(RuntimeError, match="no derivative is defined"):
        bare._backward(None, torch.ones(1))
    assert op.spec.backward is not None


def test_schema_is_the_single_source_of_names():
    spec = _op.OpSpec(
        "x", "(int n, Tensor? maybe, Tensor a, float[] mean, str mode='u') -> (Tensor, Tensor)", None, None
    )
    assert spec.arg_names == ("n", "maybe", "a", "mean", "mode")
    assert spec.first_tensor == 2
    assert str(gather_tokens.torch_op._schema).endswith("str? backend=None) -> Tensor")


def test_schema_says_what_is_changed():
    spec = _op.OpSpec("x", "(Tensor? a, Tensor(a!) b, Tensor c, Tensor(b!) d, int e) -> ()", None, None)
    assert spec.arg_names == ("a", "b", "c", "d", "e")
    assert (spec.first_tensor, spec.changed) == (1, (1, 3))
    assert gather_tokens.spec.changed == ()
    assert [a.alias_info.is_write for a in adam_step.torch_op._schema.arguments if a.alias_info] == [True] * 3


def step_of(param):
    return param, torch.ones(3), torch.zeros(3), torch.zeros(3), None, 0.5, 0.9, 0.999, 1e-8, 0.0, False, 1


@pytest.mark.parametrize("road", ["short", "dispatcher", "reference", "compiled"])
def test_a_change_in_place_is_seen_by_graphs_that_saved_the_tensor(road):
    call = {
        "short": adam_step,
        "dispatcher": lambda *a: adam_step.torch_op(*a, None),
        "reference": lambda *a: adam_step(*a, backend="reference"),
        "compiled": torch.compile(lambda *a: adam_step(*a), fullgraph=True, backend="aot_eager"),
    }[road]
    leaf = torch.zeros(3, requires_grad=True)
    loss = leaf.exp().mul(leaf).sum()
    with torch.no_grad():
        call(*step_of(leaf))
    assert torch.allclose(leaf, torch.full((3,), -0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_op_that_changes_its_arguments_has_no_derivative():
    leaf = torch.zeros(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"adam_step: changes its arguments in place; call it under torch\.no_grad"):
        adam_step(*step_of(leaf))
    with pytest.raises(RuntimeError, match=r"torch\.func cannot follow"):
        torch.vmap(lambda p: adam_step(*step_of(p)))(torch.zeros(2, 3))
    assert leaf.abs().max() == 0


WITHOUT_NATIVE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in ("vidkernels._C", "vidkernels._simt", "vidkernels._simt_trace"):
            raise ImportError("blocked for this test")
sys.meta_path.insert(0, Block())
import torch, vidkernels as vk
t = torch.randn(2, 5, 3, requires_grad=True)
out = vk.functional.gather_tokens(t, torch.tensor([[0, 4], [1, 2]]))
out.sum().backward()
assert torch.equal(out[0, 1], t[0, 4]) and float(t.grad.sum()) == 12.0
facts = vk.info()
assert "blocked for this test" in facts["native"]
assert "blocked for this test" in facts["ops"]["gather_tokens"]["cpu"]
"""


def test_works_without_the_compiled_module():
    subprocess.run([sys.executable, "-c", WITHOUT_NATIVE], check=True)
