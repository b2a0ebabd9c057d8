"""A small pool of large CPU buffers.

A fresh 70 MB tensor costs more to be given its pages than the kernel takes to fill it. `empty` therefore hands out
tensors whose memory comes back to a free list when the last tensor that views it dies. Memory is mapped with huge
pages where the system grants them. Tensors below `SMALL` and other devices go to torch.empty.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref

import numpy as np
import torch

SMALL = 1 << 20
_HUGE_PAGE = 2 << 20


class BufferPool:
    """Reusable memory blocks of power-of-two-ish sizes, at most `limit` bytes of them lying idle."""

    def __init__(self, limit: int):
        self.limit = limit
        self._free: dict[int, list[np.ndarray]] = {}
        self._idle = 0
        self._lock = threading.RLock()  # a finalizer may run inside take()
        self._owner = os.getpid()

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor of at least `nbytes`, with undefined contents."""
        size = self._rounded(nbytes)
        with self._lock:
            blocks = self._free.get(size)
            block = blocks.pop() if blocks else None
            if block is not None:
                self._idle -= size
        if block is None:
            block = self._map(size)
        view = block.view()
        # torch keeps `view` alive as long as any tensor shares this storage; then the block is free again.
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.from_numpy(view)

    def clear(self) -> None:
        """Return all idle memory to the system."""
        with self._lock:
            self._free.clear()
            self._idle = 0

    @property
    def idle_bytes(self) -> int:
        return self._idle

    def _give_back(self, block: np.ndarray) -> None:
        with self._lock:
            if os.getpid() == self._owner and self._idle + block.nbytes <= self.limit:
                self._free.setdefault(block.nbytes, []).append(block)
                self._idle += block.nbytes

    @staticmethod
    def _rounded(nbytes: int) -> int:
        step = max(_HUGE_PAGE, 1 << max(0, nbytes.bit_length() - 4))  # at most 1/8 is wasted
        return -(-nbytes // step) * step

    @staticmethod
    def _map(size: int) -> np.ndarray:
        # Private: shared memory gets no huge pages and would let a forked child write into its parent's tensors.
        memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(memory, dtype=np.uint8)
        start = -whole.ctypes.data % _HUGE_PAGE
        return whole[start : start + size]


pool = BufferPool(limit=1 << 30)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Like torch.empty; large CPU tensors come from the pool."""
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    if nbytes < SMALL or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return pool.take(nbytes)[:nbytes].view(dtype).view(shape)
