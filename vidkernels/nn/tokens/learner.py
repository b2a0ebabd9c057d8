"""TokenLearner and TokenFuser: a few learned tokens instead of a grid of them, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.tokens.learner import fuse_tokens, pool_tokens

__all__ = ["TokenFuser", "TokenLearner"]

_FORMS = ("v1", "v1.1")


class TokenLearner(nn.Module):
    """Learn S tokens of a frame (or of a whole clip): maps made from the tokens weigh the positions.

    v1:   LayerNorm, three 3 x 3 convolutions with GELU, a fourth one, sigmoid; mean over the positions.
    v1.1: LayerNorm, MLP (C -> bottleneck -> S, GELU), softmax over the positions; sum over them.
    Convention: the last `axes` axes of the grid are pooled, those before stay: a [B, T, H, W, C] clip gives
        [B, T, S, C] with axes=2 (S tokens per frame, as in the paper) and [B, S, C] with axes=3. The convolutions of v1
        have as many axes.
    Args:
        dim: channels C.
        tokens: S.
        form: "v1" or "v1.1".
        axes: pooled axes of the grid.
        bottleneck: hidden width of v1.1.
        pooling: "mean" or "sum"; None takes the published one of the form.
        dropout: after the hidden layer of v1.1.
    Source: Ryoo et al. 2021, arXiv 2106.11297, section 2.1; v1.1 as in the authors' code.
    Example:
        >>> TokenLearner(16, 8)(torch.randn(2, 4, 14, 14, 16)).shape
        torch.Size([2, 4, 8, 16])
        >>> TokenLearner(16, 8, form="v1", axes=3)(torch.randn(2, 4 * 7 * 7, 16), grid=(4, 7, 7)).shape
        torch.Size([2, 8, 16])
    """

    def __init__(
        self,
        dim: int,
        tokens: int = 8,
        *,
        form: str = "v1.1",
        axes: int = 2,
        bottleneck: int = 64,
        pooling: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if form not in _FORMS or axes not in (1, 2, 3):
            _check.fail("TokenLearner", "expected `form` 'v1' or 'v1.1' and 1, 2 or 3 `axes`.", form=form, axes=axes)
        self.form, self.axes, self.tokens = form, axes, tokens
        self.pooling = pooling or ("mean" if form == "v1" else "sum")
        self.norm = nn.LayerNorm(dim)
        if form == "v1":
            conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
            self.convs = nn.ModuleList(
                conv(dim if i == 0 else tokens, tokens, 3, padding=1, bias=False) for i in range(4)
            )
        else:
            self.mlp = nn.Sequential(
                nn.Linear(dim, bottleneck), nn.GELU(), nn.Dropout(dropout), nn.Linear(bottleneck, tokens)
            )

    def logits(self, x: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """Maps before the activation, [..., P, S], positions in raster order."""
        return self._logits(self._shaped(x, grid))

    def maps(self, x: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """The weights of the positions, [..., S, P]: sigmoid in v1, softmax over P in v1.1."""
        logits = self.logits(x, grid)
        return (logits.sigmoid() if self.form == "v1" else logits.softmax(-2)).transpose(-1, -2)

    def forward(self, x: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """[B, *grid, C], or [B, N, C] with the grid given, -> [B, *(the axes that stay), S, C]."""
        x = self._shaped(x, grid)
        flat = x.flatten(-1 - self.axes, -2)
        activation = "sigmoid" if self.form == "v1" else "softmax"
        return pool_tokens(flat, self._logits(x), activation=activation, pooling=self.pooling)

    def _logits(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if self.form == "v1.1":
            return self.mlp(h).flatten(-1 - self.axes, -2)
        lead, size = h.shape[: -1 - self.axes], h.shape[-1 - self.axes : -1]
        if h.numel() == 0:  # convolutions refuse an empty picture
            return h.new_zeros(*lead, math.prod(size), self.tokens)
        h = h.reshape(-1, *h.shape[-1 - self.axes :]).movedim(-1, 1)
        for conv in self.convs[:-1]:
            h = F.gelu(conv(h))
        return self.convs[-1](h).flatten(2).transpose(1, 2).reshape(*lead, math.prod(size), self.tokens)

    def _shaped(self, x: Tensor, grid: Sequence[int] | None) -> Tensor:
        if grid is not None and x.dim() == 3 and math.prod(grid) == x.shape[1]:
            x = x.unflatten(1, tuple(grid))
        elif grid is not None:
            _check.fail("TokenLearner", "expected [B, N, C] tokens with N the product of `grid`.",
                        x=x, grid=tuple(grid))  # fmt: skip
        if x.dim() < self.axes + 2 or x.shape[-1] != self.norm.normalized_shape[0]:
            _check.fail("TokenLearner", f"expected [B, *grid, C] with {self.axes} or more axes in the grid.",
                        "pass flat tokens [B, N, C] together with `grid`.",
                        x=x, channels=self.norm.normalized_shape[0])  # fmt: skip
        return x

    def extra_repr(self) -> str:
        return f"tokens={self.tokens}, form={self.form!r}, axes={self.axes}, pooling={self.pooling!r}"


class TokenFuser(nn.Module):
    """Put learned tokens back on the grid they came from: mix them across S, spread them by maps made from the grid.

    y = x + sigmoid(M(LayerNorm(x))) @ (W LayerNorm(tokens)), W: S -> S, M: MLP C -> bottleneck -> S.
    Args:
        dim: channels C.
        tokens: S.
        bottleneck: hidden width of the maps' MLP; None: one linear map, as in the paper's formula.
    Source: Ryoo et al. 2021, arXiv 2106.11297, section 2.2.
    Example:
        >>> TokenFuser(16, 8)(torch.randn(2, 4, 8, 16), torch.randn(2, 4, 14, 14, 16)).shape
        torch.Size([2, 4, 14, 14, 16])
    """

    def __init__(self, dim: int, tokens: int = 8, *, bottleneck: int | None = 64):
        super().__init__()
        self.norm_tokens, self.norm_grid = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix = nn.Linear(tokens, tokens)
        if bottleneck is None:
            self.maps: nn.Module = nn.Linear(dim, tokens)
        else:
            self.maps = nn.Sequential(nn.Linear(dim, bottleneck), nn.GELU(), nn.Linear(bottleneck, tokens))

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens [*lead, S, C] and x [*lead, *grid, C] -> the shape of x."""
        lead = tokens.dim() - 2
        if tokens.dim() < 3 or x.dim() <= lead or x.shape[:lead] != tokens.shape[:lead]:
            _check.fail("TokenFuser", "expected `tokens` [*lead, S, C] and `x` [*lead, *grid, C].", tokens=tokens, x=x)
        mixed = self.mix(self.norm_tokens(tokens).transpose(-1, -2)).transpose(-1, -2)
        flat = x.flatten(lead, -2) if x.dim() > lead + 1 else x.unsqueeze(lead)
        return fuse_tokens(mixed, flat, self.maps(self.norm_grid(flat))).view(x.shape)
