"""Token merging as a layer: how many pairs, where, and what became of every token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.tokens.attention import proportional_attention
from vidkernels.functional.tokens.merging import MergePlan, bipartite_soft_matching, merge_tokens, unmerge_tokens

__all__ = ["ProportionalAttention", "TokenMerging"]

_SCHEDULES = ("constant", "decreasing")


class TokenMerging(nn.Module):
    """Merge alike tokens between the attention and the MLP of every block of a transformer (ToMe).

    One instance serves all blocks of a model. It has no parameters; it remembers, until the next clip, the token sizes
    at each block and, with track_source, where every token went.
        out = x + merging.attend(query, key, value, layer)     attention, biased by the sizes
        out = merging(out, key.mean(1), layer)                 the merge
        out = out + mlp(out)
    Args:
        r: pairs merged per block (an int), or one number per block (a list of `depth`), or the share of the tokens that
            is left after the last block (a float in (0, 1]).
        depth: number of blocks.
        schedule: how an int or a float is shared out: "constant", or "decreasing", from twice the mean in the first
            block to none in the last. A block can merge at most half of its tokens; what it could not take, the
            following ones do if `r` is a share.
        protect: tokens in front that never merge: class, distillation and register tokens.
        pairing: who may join whom, see functional.bipartite_soft_matching. The pairings in space and time hold for the
            first merge; what it leaves is no grid any more, and from there on it is "alternate".
        grid: (T, H, W) of the unprotected tokens, for the pairings in space and time.
        proportional: attend with log(size) as bias.
        track_source: keep the source maps, which `unmerge` needs.
    Shape: x [B, N, D], metric [B, N, C] (compared by cosine), layer 0..depth-1 -> [B, N - pairs, D].
    Source: Bolya et al. 2022, arXiv 2210.09461, section 3; differs: no random matching, a share instead of a count.
    Example:
        >>> merging = TokenMerging(0.5, depth=2, track_source=True)
        >>> x = torch.randn(1, 8, 4)
        >>> for layer in range(2):
        ...     x = merging(x, x, layer)
        >>> x.shape, merging.size().sum().item(), merging.unmerge(x).shape
        (torch.Size([1, 4, 4]), 8.0, torch.Size([1, 8, 4]))
    """

    def __init__(
        self,
        r: int | float | Sequence[int],
        depth: int,
        *,
        schedule: str = "constant",
        protect: int = 0,
        pairing: str = "alternate",
        grid: Sequence[int] | None = None,
        proportional: bool = True,
        track_source: bool = False,
    ):
        super().__init__()
        if schedule not in _SCHEDULES:
            _check.fail("TokenMerging", f"expected `schedule` to be one of {', '.join(_SCHEDULES)}.", schedule=schedule)
        if pairing != "alternate" and grid is None:
            _check.fail("TokenMerging", f'pairing="{pairing}" needs `grid`, (T, H, W) of the tokens.', grid=grid)
        self.share, self.pairs = _parse(r, depth, schedule)
        self.depth, self.schedule, self.protect = depth, schedule, protect
        self.pairing, self.grid = pairing, None if grid is None else tuple(grid)
        self.proportional, self.track_source = proportional, track_source
        # Entry i is about the tokens that come into block i: a block may run a second time (checkpointing) and finds
        # what it found before.
        self._sizes: list[Tensor | None] = [None] * (depth + 1)
        self._sources: list[Tensor | None] = [None] * (depth + 1)
        self._length = 0

    def extra_repr(self) -> str:
        amount = f"share={self.share}, schedule={self.schedule!r}" if self.pairs is None else f"pairs={self.pairs}"
        return f"{amount}, protect={self.protect}, pairing={self.pairing!r}"

    def size(self, layer: int | None = None) -> Tensor | None:
        """[B, n] float32: how many tokens each one stands for, on the way into block `layer` (None: at the end).
        None where nothing has merged yet."""
        return self._sizes[self.depth if layer is None else layer]

    def source(self, layer: int | None = None) -> Tensor | None:
        """[B, N] int32: the place of every token of the clip among those that come into block `layer` (None: at the
        end). None where nothing has merged yet, or without track_source."""
        return self._sources[self.depth if layer is None else layer]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, **options) -> Tensor:
        """functional.proportional_attention with the sizes of this block."""
        size = self.size(layer) if self.proportional else None
        return proportional_attention(query, key, value, size, **options)

    def forward(self, x: Tensor, metric: Tensor, layer: int) -> Tensor:
        if layer == 0:
            self._length = x.shape[1]
        pairs = self._count(x.shape[1], layer)
        size, source = self._sizes[layer], self._sources[layer]
        if pairs > 0:
            plan = self._plan(metric, pairs)
            count = x.shape[1]
            x, size = merge_tokens(x, plan, size)
            if self.track_source:
                source = plan.source if source is None else MergePlan(source, count).then(plan).source
        self._sizes[layer + 1], self._sources[layer + 1] = size, source
        return x

    def unmerge(self, x: Tensor) -> Tensor:
        """[B, n, D] after the last block -> [B, N, D]: every token gets what it became."""
        source = self.source()
        if source is None:
            if self._sizes[self.depth] is not None:
                _check.fail("TokenMerging.unmerge", "the source maps were not kept.", "track_source=True keeps them.")
            return x
        return unmerge_tokens(x, MergePlan(source, x.shape[1]))

    def _plan(self, metric: Tensor, pairs: int) -> MergePlan:
        whole = self.grid is not None and metric.shape[1] == self.protect + math.prod(self.grid)
        pairing = self.pairing if whole else "alternate"
        return bipartite_soft_matching(
            metric.detach(), pairs, protect=self.protect, pairing=pairing, grid=self.grid if whole else None
        )

    def _count(self, length: int, layer: int) -> int:
        """Pairs to merge in this block, of `length` tokens."""
        if self.pairs is not None:
            return min(self.pairs[layer], max(length - self.protect, 0) // 2)
        start = max(self._length - self.protect, 0)
        surplus = length - self.protect - math.ceil(self.share * start)
        left = self.depth - layer  # blocks, this one among them
        if surplus <= 0:
            return 0
        if self.schedule == "constant":
            now = -(-surplus // left)
        else:  # weights left - 1, left - 2, ..., 0; in the last block whatever remains
            now = surplus if left == 1 else -(-2 * surplus // left)
        return min(now, surplus, (length - self.protect) // 2)


def _parse(r: int | float | Sequence[int], depth: int, schedule: str) -> tuple[float | None, list[int] | None]:
    """(share, None) or (None, pairs per block)."""
    if isinstance(r, float):
        if not 0 < r <= 1:
            _check.fail("TokenMerging", "expected a float `r`, the share of the tokens to keep, in (0, 1].", r=r,
                        hint="a number of pairs per block is an int.")  # fmt: skip
        return r, None
    if isinstance(r, int):
        if r < 0:
            _check.fail("TokenMerging", "expected `r` to be at least 0.", r=r)
        if schedule == "constant" or depth == 1:
            return None, [r] * depth
        return None, [2 * r * (depth - 1 - layer) // (depth - 1) for layer in range(depth)]
    pairs = [int(count) for count in r]
    if len(pairs) != depth or min(pairs, default=0) < 0:
        _check.fail("TokenMerging", "expected one number >= 0 per block.", r=list(r), depth=depth)
    return None, pairs


class ProportionalAttention(nn.Module):
    """Multi-head self-attention that knows how many tokens each token stands for.

    Args:
        dim: width of a token.
        heads: attention heads.
        qkv_bias: learn a bias of query, key and value.
        dropout: of the attention weights, while training.
    Shape: x [B, N, D], size [B, N] or None -> [B, N, D]; with need_metric also the key's mean over the heads
        [B, N, D / heads], what token merging compares.
    Source: Bolya et al. 2022, arXiv 2210.09461, equation 1.
    Example:
        >>> attention = ProportionalAttention(16, heads=2)
        >>> out, metric = attention(torch.randn(1, 5, 16), torch.tensor([[1, 2, 1, 1, 4]]), need_metric=True)
        >>> out.shape, metric.shape
        (torch.Size([1, 5, 16]), torch.Size([1, 5, 8]))
    """

    def __init__(self, dim: int, heads: int = 8, *, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            _check.fail("ProportionalAttention", "expected `dim` divisible by `heads`.", dim=dim, heads=heads)
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, size: Tensor | None = None, *, need_metric: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        out = proportional_attention(query, key, value, size, dropout_p=dropout)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return (out, key.mean(1)) if need_metric else out
