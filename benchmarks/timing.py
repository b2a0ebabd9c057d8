"""Interleaved timing of several functions that do the same job; pytest-benchmark's statistics."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence

from pytest_benchmark.stats import Stats

MIN_ROUNDS = 7
LONG_CALL = 1.0  # seconds; what takes longer takes part in the first three rounds only
VERY_LONG_CALL = 8.0  # in the first round only
MAX_ROUNDS = 41
ROUND_SECONDS = 1e-3
"""Calls shorter than this are repeated inside a round, or the clock would be part of the figure."""


def turns(labels: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, label) of functions that take turns, in an order that rotates from round to round; no garbage is
    collected meanwhile."""
    labels = list(labels)
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for r in range(rounds):
            for label in labels[r % len(labels) :] + labels[: r % len(labels)]:
                yield r, label
    finally:
        if was_enabled:
            gc.enable()


def interleave(
    functions: dict[str, Callable[[], object]],
    *,
    before: dict[str, Callable[[], object]] | None = None,
    seconds: float = 2.0,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, dict]:
    """Time the functions in turn, in an order that rotates from round to round.

    Args:
        functions: label -> call without arguments. Its result is dropped inside the timing.
        before: label -> what runs before each timed call, outside the timing; such a call is never repeated in a round.
        seconds: what the rounds should take together; at least MIN_ROUNDS are run however long they take, but fewer of
            a function that takes longer than LONG_CALL.
        synchronize: waits for the device; called before the clock is read.
    Returns:
        label -> {median_ms, q1_ms, q3_ms, min_ms, rounds, inner}.
    """
    before = before or {}
    synchronize = synchronize or (lambda: None)

    def once(label: str, inner: int) -> float:
        function, prepare = functions[label], before.get(label)
        if prepare is not None:
            prepare()
        synchronize()
        start = time.perf_counter()
        for _ in range(inner):
            function()
        synchronize()
        return time.perf_counter() - start

    inner, took = {}, {}
    for label in functions:
        first = once(label, 1)  # warms caches, pools and lazy initialisation
        if first < LONG_CALL:
            first = once(label, 1)
        repeat = 1 if label in before else max(1, round(ROUND_SECONDS / max(first, 1e-9)))
        if repeat > 1:  # the second call of a quick function still tells little: adjust once
            repeat = max(1, round(repeat * ROUND_SECONDS / max(once(label, repeat), 1e-9)))
        inner[label], took[label] = repeat, first * repeat
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / max(sum(took.values()), 1e-9))))
    most = {label: 1 if t > VERY_LONG_CALL else 3 if t > LONG_CALL else rounds for label, t in took.items()}

    stats = {label: Stats() for label in functions}
    for r, label in turns(list(functions), rounds):
        if r < most[label]:
            stats[label].update(once(label, inner[label]) / inner[label])
    return {label: _summary(s, inner[label]) for label, s in stats.items()}


def _summary(stats: Stats, inner: int) -> dict:
    return {
        "median_ms": 1e3 * stats.median,
        "q1_ms": 1e3 * stats.q1,
        "q3_ms": 1e3 * stats.q3,
        "min_ms": 1e3 * stats.min,
        "rounds": stats.rounds,
        "inner": inner,
    }
