"""Open decoders across a fork.

FFmpeg's decoding threads do not exist in a forked child, so a decoder opened before the fork can neither be used nor
freed there (freeing waits for those threads). In the child every open decoder is therefore put aside, untouched and
kept alive, and its cursor opens a fresh one when asked for a frame.
"""

from __future__ import annotations

import os
import weakref

_cursors: weakref.WeakSet = weakref.WeakSet()
_left_behind: list = []
_registered = False


def watch(cursor) -> None:
    """Call `cursor.abandon()` in every child forked from now on and keep what it returns."""
    global _registered
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
        _registered = True
    _cursors.add(cursor)


def _after_fork() -> None:
    for cursor in list(_cursors):
        _left_behind.append(cursor.abandon())
