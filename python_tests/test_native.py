"""The wall in front of the kernels: what the views and checks of the compiled module refuse, and what they take."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vidkernels import _native

_C = _native._C
pytestmark = pytest.mark.skipif(_C is None, reason="no compiled module")


def inputs():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 1]], dtype=torch.int32)
    return tokens, index, torch.full((2, 2, 3), float("nan"))


EXPECTED = torch.tensor([[[9.0, 10, 11], [0, 1, 2]], [[15, 16, 17], [15, 16, 17]]])


def test_takes_torch_tensors():
    tokens, index, out = inputs()
    _C.gather_tokens_cpu(tokens.requires_grad_(), index, out)
    assert torch.equal(out, EXPECTED)


def test_takes_numpy_arrays():
    tokens, index, out = (t.numpy() for t in inputs())
    _C.gather_tokens_cpu(tokens, index, out)
    assert np.array_equal(out, EXPECTED.numpy())


def test_takes_objects_that_only_have_dlpack():
    class Foreign:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **kwargs):
            return self.tensor.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    class Legacy(Foreign):  # a producer from before DLPack 1.0
        def __dlpack__(self):
            return self.tensor.__dlpack__()

    for kind in (Foreign, Legacy):
        tokens, index, out = inputs()
        _C.gather_tokens_cpu(kind(tokens), kind(index), kind(out))
        assert torch.equal(out, EXPECTED)


def test_views_release_what_they_borrow():
    tokens, index, out = (t.numpy() for t in inputs())
    before = [sys.getrefcount(a) for a in (tokens, index, out)]
    for _ in range(100):
        _C.gather_tokens_cpu(tokens, index, out)
    assert [sys.getrefcount(a) for a in (tokens, index, out)] == before


def test_refuses_read_only_output():
    tokens, index, out = (t.numpy() for t in inputs())
    out.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match=r"read-?only"):
        _C.gather_tokens_cpu(tokens, index, out)


def test_read_only_input_is_fine_or_cleanly_refused():
    tokens, index, out = (t.numpy() for t in inputs())
    tokens.flags.writeable = False
    try:
        _C.gather_tokens_cpu(tokens, index, out)
        assert np.array_equal(out, EXPECTED.numpy())
    except BufferError:
        assert np.lib.NumpyVersion(np.__version__) < "2.1.0"  # older numpy exports writable arrays only


def test_refuses_overlapping_output():
    memory = torch.zeros(64)
    tokens, out = memory[:24].view(2, 4, 3), memory[20:32].view(2, 2, 3)
    with pytest.raises(ValueError, match=r"`out` overlaps `tokens` in memory"):
        _C.gather_tokens_cpu(tokens, inputs()[1], out)
    neighbours = memory[24:36].view(2, 2, 3)
    _C.gather_tokens_cpu(tokens, inputs()[1], neighbours)


def test_refuses_fake_meta_and_functional_tensors():
    from torch._subclasses import FakeTensorMode

    _, index, out = inputs()
    with FakeTensorMode():
        fake = torch.empty(2, 4, 3)
        with pytest.raises((ValueError, RuntimeError, TypeError, BufferError)):
            _C.gather_tokens_cpu(fake, index, out)
    with pytest.raises((ValueError, RuntimeError, TypeError, BufferError)):
        _C.gather_tokens_cpu(torch.empty(2, 4, 3, device="meta"), index, out)


def test_refuses_negative_bit_and_complex():
    _, index, out = inputs()
    negative = torch.complex(torch.zeros(2, 4, 3), torch.ones(2, 4, 3)).conj().imag
    assert negative.is_neg()
    with pytest.raises(ValueError, match="negative bit"):
        _C.gather_tokens_cpu(negative, index, out)
    with pytest.raises(TypeError, match="complex"):
        _C.gather_tokens_cpu(torch.zeros(2, 4, 3, dtype=torch.cfloat).conj(), index, out)


def test_lazy_negation_is_resolved_by_the_public_function():
    import vidkernels as vk

    negative = torch.complex(torch.zeros(2, 4, 3), torch.arange(24.0).reshape(2, 4, 3)).conj().imag
    expected = vk.functional.gather_tokens(negative, inputs()[1], backend="reference")
    assert torch.equal(vk.functional.gather_tokens(negative, inputs()[1]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, r"`tokens` of shape \[B, N, D\], got \[2, 4\]"),
        (
            {"tokens": torch.zeros(2, 4, 3, dtype=torch.int32)},
            "`tokens` of dtype float32 or float64 or float16 or bfloat16",
        ),
        ({"tokens": torch.zeros(2, 4, 6)[..., ::2]}, "`tokens` to be contiguous"),
        ({"index": torch.zeros(2, 2, dtype=torch.int64)}, "`index` of dtype int32, got int64"),
        ({"index": torch.zeros(3, 2, dtype=torch.int32)}, r"`index` of shape \[2, \*\], got \[3, 2\]"),
        ({"out": torch.zeros(2, 2, 4)}, r"`out` of shape \[2, 2, 3\], got \[2, 2, 4\]"),
        ({"out": torch.zeros(2, 2, 3, dtype=torch.float16)}, "`out` of dtype float32, got float16"),
        ({"index": torch.tensor([[0, 4], [0, 0]], dtype=torch.int32)}, r"`index`\[0, 1\] is 4, outside the 4 tokens"),
        ({"index": torch.tensor([[0, 0], [-1, 0]], dtype=torch.int32)}, r"`index`\[1, 0\] is -1, outside"),
    ],
)
def test_error_texts(change, message):
    arguments = dict(zip(("tokens", "index", "out"), inputs())) | change
    with pytest.raises(ValueError, match=message):
        _C.gather_tokens_cpu(*arguments.values())


def test_not_a_tensor():
    with pytest.raises(TypeError, match=r"expected a tensor .* got list"):
        _C.gather_tokens_cpu([1.0], inputs()[1], inputs()[2])


SAME_ON_EVERY_ISA = """
import torch, vidkernels as vk
from vidkernels import _native
t = torch.randn(3, 50, 40, generator=torch.Generator().manual_seed(0))
i = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :20].int()
print(_native._C.build_info()["isa"], float(vk.functional.gather_tokens(t, i).double().sum()))
"""


def test_isa_can_be_lowered():
    results = {}
    for isa in ("v2", "v3", "v4"):
        run = subprocess.run(
            [sys.executable, "-c", SAME_ON_EVERY_ISA],
            env=os.environ | {"VIDKERNELS_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        name, value = run.stdout.split()
        results[name] = value
    assert "v2" in results or "base" in results
    assert len(set(results.values())) == 1


# In the child only our kernel runs (and numpy): torch's own parallel operations would hang there.
FORK = """
import os, torch, vidkernels as vk
torch.set_num_threads(2)
t, i = torch.randn(4, 2000, 256), torch.arange(1000, dtype=torch.int32).expand(4, -1).contiguous()
a = vk.functional.gather_tokens(t, i).numpy()
pid = os.fork()
if pid == 0:
    os._exit(0 if (vk.functional.gather_tokens(t, i).numpy() == a).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_does_not_hang():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)
