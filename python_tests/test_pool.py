"""The buffer pool: memory comes back, is never shared by two live tensors, and is given up on request."""

import gc
import os

import pytest
import torch

from vidkernels._pool import SMALL, BufferPool, empty


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def test_memory_is_reused_after_the_last_view_dies():
    pool = BufferPool(limit=1 << 28)
    a = pool.take(3 << 20)
    first, view = address(a), a[100:200].view(10, 10)
    del a
    b = pool.take(3 << 20)
    assert address(b) != first, "the view still holds the memory"
    del view
    c = pool.take(3 << 20)
    assert address(c) == first


def test_live_tensors_never_overlap():
    pool = BufferPool(limit=1 << 28)
    live = [pool.take(1 << 20).fill_(i) for i in range(8)]
    assert all(bool((t == i).all()) for i, t in enumerate(live))


def test_idle_memory_is_bounded_and_cleared():
    pool = BufferPool(limit=8 << 20)
    blocks = [pool.take(4 << 20) for _ in range(5)]
    blocks.clear()
    gc.collect()
    assert pool.idle_bytes <= 8 << 20
    pool.clear()
    assert pool.idle_bytes == 0


def test_survives_autograd_and_outlives_the_pool():
    pool = BufferPool(limit=1 << 28)
    x = pool.take(SMALL).view(torch.float32)
    x.fill_(2.0)
    x.requires_grad_()
    (x * x).sum().backward()
    grad = x.grad
    del pool, x
    assert float(grad[0]) == 4.0


def test_empty_has_shape_dtype_and_alignment():
    for shape, dtype in [((3, 5), torch.float32), ((1024, 1024), torch.bfloat16), ((0, 4), torch.float64)]:
        t = empty(shape, dtype, torch.device("cpu"))
        assert t.shape == shape
        assert t.dtype is dtype
        assert t.is_contiguous()
    assert empty((1 << 20,), torch.float32, torch.device("cpu")).data_ptr() % 64 == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_does_not_write_into_its_parent():
    pool = BufferPool(limit=1 << 28)
    a = pool.take(3 << 20).fill_(1)
    child = os.fork()
    if child == 0:
        a[:16] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert bool((a == 1).all())
