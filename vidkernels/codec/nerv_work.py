"""The loop of a fit that may be interrupted at any step: it reports, saves its state, and goes on to the same bytes."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from .. import _check
from .clip import Clip, fingerprint
from .protocol import Progress, Source, state_path

_SAVE_EVERY = 5.0  # seconds
_REPORT_EVERY = 0.2


class Work:
    """A fit in progress, of a trainer that counts its steps.

    trainer: has at, stage and into (steps done, the stage in work, steps done in it), and plan.steps.
    began: time.monotonic() when the fit would have begun without interruptions.
    seen: PSNR and bytes, as they were last looked at; None before.
    """

    trainer: Any
    clip: Clip
    out: Path
    mask: Path | None
    began: float
    seen: tuple[float, int] | None = None
    whole = True  # False while a step is done: half of one is not to be saved

    @property
    def total(self) -> int:
        t = self.trainer
        return t.at - t.into + sum(t.plan.steps[t.stage :])

    def progress(self) -> Progress:
        psnr, size = self.seen or (None, 0)
        elapsed = time.monotonic() - self.began
        return Progress(self.trainer.at, self.total, len(self.clip), 0, psnr, size, elapsed)

    def work(self) -> Generator[Progress, None, Source]:
        self.save()
        saved = shown = time.monotonic()
        trainer = self.trainer
        try:
            while True:
                while trainer.into < trainer.plan.steps[trainer.stage]:
                    self.whole = False
                    self._step()
                    self.whole = True
                    now = time.monotonic()
                    if now - shown > _REPORT_EVERY:
                        yield self.progress()
                        shown = time.monotonic()
                    if now - saved > _SAVE_EVERY:
                        self.save()
                        saved = time.monotonic()
                self.whole = False
                written = self._after_stage()
                self.whole = True
                if written is not None:
                    break
            self.write(written)
        except FloatingPointError as error:
            _check.fail("fit", f"the fit diverged: {error}; the last good numbers are kept in the state.",
                        error=FloatingPointError, state=str(state_path(self.out)))  # fmt: skip
        except BaseException:
            if self.whole:
                self.save()
            raise
        state_path(self.out).unlink(missing_ok=True)
        yield self.progress()
        return self.clip.source

    # ---- what a state says

    def more_facts(self) -> dict:
        """Beside what all fits say."""
        return {}

    @classmethod
    def again(cls, facts: dict, out: Path) -> dict:
        """Arguments of the class that a state's facts stand for."""
        return {}

    def mask_fact(self) -> list[str] | None:
        return None if self.mask is None else [str(self.mask), fingerprint(self.mask)]

    @staticmethod
    def same_mask(facts: dict) -> Path | None:
        """The mask that the fit began with. Raises ValueError where the file has changed."""
        if facts["mask"] is None:
            return None
        mask = Path(facts["mask"][0])
        if fingerprint(mask) != facts["mask"][1]:
            raise ValueError(f"{mask} is no longer the mask that the fit began with")
        return mask

    # ---- what a model adds

    def _step(self) -> None:
        self.trainer.step()

    def _after_stage(self) -> Any:
        """Begin the next stage, or once more the one that missed its goal; at the end, what is to be written."""
        raise NotImplementedError

    def write(self, written: Any) -> None:
        """The file."""
        raise NotImplementedError

    def save(self) -> None:
        """The state file."""
        raise NotImplementedError
