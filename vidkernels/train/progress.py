"""The progress bar of the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(total: int, done: int, visible: bool) -> Iterator[Callable[[int, float], None]]:
    """A function `show(step, loss)` that moves the bar; does nothing if not visible."""
    if not visible:
        yield lambda step, loss: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=total, completed=done, loss="-")
        smooth: float | None = None

        def show(step: int, loss: float) -> None:
            # Masks make single losses noisy; the bar shows a running mean.
            nonlocal smooth
            smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
            bar.update(task, completed=step, loss=f"{smooth:.4f}")

        yield show
