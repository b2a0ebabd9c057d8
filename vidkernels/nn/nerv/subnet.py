"""A tensor of weights that several subnetworks share, learned one after another."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.nerv.subnet import masked_weight, top_k_mask

__all__ = ["SubnetParameter"]

_MOST = 63  # bits of `used`


class SubnetParameter(nn.Module):
    """Weights of which each session keeps those with the largest scores, and that nothing changes once a session is
    done with them.

    While a session is learned, its weights are those of the top share by |score|; the scores learn by the straight-
    through gradient. `finish` writes the mask down and copies the values of the weights it takes first into `stored`,
    a buffer. There a later session can read them but no optimiser can reach them, whatever its momentum and decay:
    what is frozen is frozen by where it lies, not by a gradient of zero.
    Args:
        shape: of the tensor.
        reach: weights are drawn from -reach to reach, scores as well.
        generator: of the first weights and scores.
    Convention: with `step` above 0 the values being learned are its multiples (straight-through gradient); what is
        frozen already stays as it is.
    Shape: `learning(share)` and `finished(session)` give tensors of `shape`.
    Raises:
        ValueError: a session that is not finished, or a 64th one.
    Source: Kang et al. 2023, arXiv 2306.11305, section 3.
    Example:
        >>> layer = SubnetParameter((4, 4), 0.5)
        >>> before = layer.learning(0.25).detach()
        >>> layer.finish(0.25)
        0
        >>> _ = torch.nn.init.zeros_(layer.weight)
        >>> values, mask = layer.finished(0)
        >>> torch.equal(values * mask, before)
        True
    """

    def __init__(self, shape: tuple[int, ...], reach: float, *, generator: torch.Generator | None = None):
        super().__init__()
        self.reach, self.step = reach, 0.0
        self.weight = nn.Parameter(torch.empty(shape))
        self.scores = nn.Parameter(torch.empty(shape))
        self.register_buffer("stored", torch.zeros(shape))
        self.register_buffer("used", torch.zeros(shape, dtype=torch.int64))  # bit s: session s has the weight
        nn.init.uniform_(self.weight, -reach, reach, generator=generator)
        self.draw_scores(generator)

    def draw_scores(self, generator: torch.Generator | None = None) -> None:
        """New scores, so that the next session begins with another choice of weights."""
        nn.init.uniform_(self.scores, -self.reach, self.reach, generator=generator)

    @property
    def frozen(self) -> Tensor:
        """True where a finished session has the weight."""
        return self.used != 0

    @property
    def sessions(self) -> int:
        """How many are finished."""
        return int(self.used.max()).bit_length() if self.used.numel() else 0

    def mask(self, share: float, reuse: bool = True) -> Tensor:
        """True at the weights that the session being learned has now; without `reuse` none that another has."""
        if reuse:
            return top_k_mask(self.scores, share)
        frozen = self.frozen
        return top_k_mask(self.scores.detach().masked_fill(frozen, 0), share) & ~frozen

    def learning(self, share: float, reuse: bool = True) -> Tensor:
        """The weights of the session being learned, zeros elsewhere; differentiable in `weight` and `scores`."""
        whole = torch.where(self.frozen, self.stored, self._rounded())
        return masked_weight(whole, self.scores, self.mask(share, reuse))

    @torch.no_grad()
    def finish(self, share: float, reuse: bool = True, session: int | None = None) -> int:
        """Keep the weights as they are for the session that was learned; returns how many of them are shared."""
        session = self.sessions if session is None else session
        if not 0 <= session < _MOST:
            _check.fail("SubnetParameter", f"expected a session from 0 to {_MOST - 1}.", session=session)
        mask, frozen = self.mask(share, reuse), self.frozen
        self.adopt(session, mask, self._rounded())
        return int((mask & frozen).sum())

    @torch.no_grad()
    def adopt(self, session: int, mask: Tensor, values: Tensor) -> None:
        """Take a session's mask, and the values of those of its weights that no earlier one has."""
        self.stored.copy_(torch.where(mask & ~self.frozen, values, self.stored))
        self.used |= mask.to(torch.int64) << session

    def _rounded(self) -> Tensor:
        if self.step == 0:
            return self.weight
        nearest = (self.weight.detach() / self.step).round() * self.step
        return nearest + (self.weight - self.weight.detach())

    def finished(self, session: int) -> tuple[Tensor, Tensor]:
        """(values, mask) of a finished session; what the mask does not cover is another's."""
        return self.stored, (self.used >> session & 1).bool()

    def taken(self, session: int) -> int:
        """How many weights a finished session was the first to have."""
        earlier = (self.used & ((1 << session) - 1)) != 0
        return int((self.finished(session)[1] & ~earlier).sum())


def reach_of(fan_in: int, share: float) -> float:
    """Bound of the first weights with which a subnetwork's numbers are as large as a whole layer's."""
    return 1 / math.sqrt(fan_in * max(share, 1e-3))
