"""GPU traffic of frame_loss and adam_step, counted by the emulator: whole sectors, and little twice."""

import pytest
import torch

from vidkernels import _native
from vidkernels.ops.adam_step.op import adam_step
from vidkernels.ops.frame_loss.op import frame_loss, frame_loss_backward


@pytest.fixture
def trace():
    module = _native.module("_simt_trace")
    if module is None or not hasattr(module, "frame_loss_cuda") or not hasattr(module, "adam_step_cuda"):
        pytest.skip("vidkernels/_simt_trace is not built with frame_loss and adam_step (make build)")
    return module


def traffic(trace, op, args):
    """(bytes of distinct sectors, bytes of all requests) of the op's kernels."""
    trace.simt_reset_counters()
    op(*args, backend="simt_trace")
    kernels = trace.simt_counters()
    touched = sum(k["load_unique_bytes"] + k["store_unique_bytes"] for k in kernels)
    return touched, 32 * sum(k["load_sectors"] + k["store_sectors"] for k in kernels)


def frames(batch, height, width):
    g = torch.Generator().manual_seed(0)
    target = torch.randint(0, 256, (batch, height, width, 3), generator=g, dtype=torch.uint8)
    return torch.rand(target.shape, generator=g), target, None


def test_frame_loss_looks_at_a_picture_once_and_at_its_seams_twice(trace):
    """Six strips of 480 numbers, three bands of 32 rows; windows reach 30 numbers and 10 rows further."""
    images = frames(1, 96, 960)
    numbers = images[0].numel()
    mix = (0.6, 0.2, 0.2)
    touched, requested = traffic(trace, frame_loss, (*images, *mix))
    assert touched <= 1.01 * 5 * numbers
    rows, columns = (42 + 42 + 32) / 96, (480 + 30 + 8) / 480  # seams may cut a sector
    assert requested <= 1.01 * 5 * numbers * rows * columns
    touched, requested = traffic(trace, frame_loss_backward, (torch.ones(()), *images, *mix))
    assert touched <= 1.01 * 9 * numbers
    rows, columns = (42 + 52 + 42) / 96, (480 + 30 + 32 + 8) / 480
    assert requested <= 1.01 * (5 * rows * columns + 4) * numbers


def test_differences_alone_are_one_stream(trace):
    images = frames(2, 64, 256)
    numbers = images[0].numel()
    assert traffic(trace, frame_loss, (*images, 1.0, 1.0, 0.0))[1] <= 1.01 * 5 * numbers
    assert traffic(trace, frame_loss_backward, (torch.ones(()), *images, 1.0, 1.0, 0.0))[1] <= 1.01 * 9 * numbers


def test_adam_moves_28_bytes_for_a_number(trace):
    tensors = torch.rand(4, 4096, 16)
    numbers = (None, 0.1, 0.9, 0.999, 1e-8, 0.0, False, 1)
    assert traffic(trace, adam_step, (*tensors, *numbers)) == (28 * 4096 * 16, 28 * 4096 * 16)


def test_adam_leaves_hidden_rows_in_memory(trace):
    tensors, visible = torch.rand(4, 4096, 16), torch.arange(4096) % 4 == 0
    touched, _ = traffic(trace, adam_step, (*tensors, visible, 0.1, 0.9, 0.999, 1e-8, 0.0, False, 1))
    assert touched == 28 * 1024 * 16 + 4096
