"""The card of a method: what it reproduces, and how faithfully."""

from __future__ import annotations

import re
from dataclasses import dataclass

FAMILIES = (
    "masked_video",
    "contrastive",
    "clustering",
    "distillation",
    "correspondence",
    "prediction",
    "nerv",
    "splatting",
    "codec",
    "tokens",
)
FIDELITIES = ("exact", "simplified", "partial")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")


@dataclass(frozen=True)
class Card:
    """What a method file says about itself.

    Args:     title: the paper's title.
              arxiv: its arXiv id, e.g. "2203.12602".
              year: of first publication.
              family: the folder the file lives in, one of FAMILIES.
              ops: names of the `vidkernels.functional` entries it runs on.
              fidelity: "exact" (same computation as the paper's code), "simplified" or "partial".
              differs: what is not as in the paper; required unless the fidelity is "exact".
    Raises:   ValueError: a field is malformed, so a wrong card fails when its file is imported.
    """

    title: str
    arxiv: str
    year: int
    family: str
    ops: tuple[str, ...]
    fidelity: str
    differs: str = ""

    def __post_init__(self) -> None:
        if not _ARXIV.fullmatch(self.arxiv):
            raise self._error("an arXiv id such as '2203.12602'", "arxiv", self.arxiv)
        if self.family not in FAMILIES:
            raise self._error(f"one of {', '.join(FAMILIES)}", "family", self.family)
        if self.fidelity not in FIDELITIES:
            raise self._error(f"one of {', '.join(FIDELITIES)}", "fidelity", self.fidelity)
        if self.fidelity != "exact" and not self.differs:
            raise self._error("a sentence on what differs, since the fidelity is not exact", "differs", "")

    def _error(self, expected: str, field: str, value: str) -> ValueError:
        return ValueError(
            f"Card: expected `{field}` to be {expected}, got {value!r}.\n  title : {self.title}\n"
            "HINT: correct CARD in the method's file."
        )
