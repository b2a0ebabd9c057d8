"""The patch embedding layer that embeds only what the mask leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from vidkernels import functional


def _sincos(length: int, dim: int) -> torch.Tensor:
    """[N, D]: sines in the even, cosines in the odd columns, over the raster number of the tube (VideoMAE)."""
    place = torch.arange(length, dtype=torch.float64)[:, None]
    column = torch.arange(dim)
    angle = place / 10000.0 ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


class VisibleTubeEmbed(nn.Module):
    """Conv3d patch embedding plus position of the visible tubes; see functional.embed_visible_tubes.

    Args:
        in_channels: channels of the clip.
        dim: width of a token.
        tube: frames, rows and columns of one tube; (1, p, p) for images.
        grid: tubes of a clip along (t, h, w); sizes the position table, so None is allowed without one.
        mean: per channel, in units of 0..1; None means 0.
        std: per channel, in units of 0..1; None means 1.
        position: "learned" (a parameter), "sincos" (a fixed buffer, 1-D over raster order as in VideoMAE), None, or a
            tensor [N, D] or [1, N, D] (a parameter stays a parameter, another tensor becomes a buffer).
        bias: learn a bias.
    Example:
        >>> embed = VisibleTubeEmbed(dim=8, tube=(2, 4, 4), grid=(1, 2, 2))
        >>> embed(torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8), torch.tensor([[0, 3]])).shape
        torch.Size([1, 2, 8])
    """

    def __init__(
        self,
        in_channels: int = 3,
        dim: int = 768,
        tube: Sequence[int] = (2, 16, 16),
        grid: Sequence[int] | None = (8, 14, 14),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        position: str | torch.Tensor | None = "learned",
        bias: bool = True,
    ):
        super().__init__()
        self.tube = tuple(tube)
        self.grid = None if grid is None else tuple(grid)
        self.mean = None if mean is None else tuple(float(m) for m in mean)
        self.std = None if std is None else tuple(float(s) for s in std)
        self.weight = nn.Parameter(torch.empty(dim, in_channels, *self.tube))
        self.register_parameter("bias", nn.Parameter(torch.empty(dim)) if bias else None)
        self._set_position(position, dim)
        self.reset_parameters()

    def _set_position(self, position, dim: int) -> None:
        if isinstance(position, torch.Tensor):
            table = position[0] if position.dim() == 3 else position
            keep = isinstance(position, nn.Parameter) and position.requires_grad
            table = table.detach().clone()
            if keep:
                self.position = nn.Parameter(table)
            else:
                self.register_buffer("position", table)
        elif position is None:
            self.register_parameter("position", None)
        elif position not in ("learned", "sincos"):
            raise ValueError(
                f'VisibleTubeEmbed: expected `position` "learned", "sincos", None or a tensor, got {position!r}.'
            )
        elif self.grid is None:
            raise ValueError(
                f'VisibleTubeEmbed: position="{position}" needs `grid`, the tubes of a clip along (t, h, w).'
            )
        elif position == "learned":
            self.position = nn.Parameter(torch.empty(math.prod(self.grid), dim))
            nn.init.trunc_normal_(self.position, std=0.02)
        else:
            self.register_buffer("position", _sincos(math.prod(self.grid), dim))

    def reset_parameters(self) -> None:
        """Xavier over the flattened kernel, as for a linear layer (He et al. 2022)."""
        nn.init.xavier_uniform_(self.weight.view(self.weight.shape[0], -1))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_conv3d(
        cls,
        conv: nn.Module,
        *,
        grid: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        position: str | torch.Tensor | None = None,
    ) -> VisibleTubeEmbed:
        """A layer with the (copied) weights of a patch embedding.

        Args:
            conv: nn.Conv3d, nn.Conv2d (becomes a one-frame tube), or a module that holds one as `projection`
                (transformers) or `proj` (timm). Its stride must be its kernel.
            grid, mean, std, position: as for the constructor; pass the position table of the model here, without
                its class token.
        """
        for name in ("projection", "proj"):
            conv = getattr(conv, name, conv)
        if not isinstance(conv, nn.Conv2d | nn.Conv3d):
            raise TypeError(
                f"VisibleTubeEmbed.from_conv3d: expected Conv3d, Conv2d or patch embedding, got {type(conv).__name__}."
            )
        plain = conv.stride == conv.kernel_size and conv.groups == 1 and set(conv.dilation) == {1}
        if not plain or conv.padding not in ("valid", (0,) * len(conv.kernel_size)):
            raise ValueError(
                f"VisibleTubeEmbed.from_conv3d: expected stride = kernel, no padding, dilation or groups, got {conv}."
            )
        weight = conv.weight.detach()
        weight = weight.unsqueeze(2) if weight.dim() == 4 else weight
        layer = cls(
            conv.in_channels, conv.out_channels, weight.shape[2:], grid, mean, std, position, conv.bias is not None
        )
        layer.to(weight)
        layer.weight.data = weight.clone()
        if conv.bias is not None:
            layer.bias.data = conv.bias.detach().clone()
        return layer

    def forward(self, video: torch.Tensor, visible_index: torch.Tensor | None = None) -> torch.Tensor:
        """[B, Nv, D] tokens of the visible tubes; of all tubes in raster order without an index."""
        if visible_index is None:
            size = video.shape[1:4] if video.dtype is torch.uint8 else video.shape[2:]
            length = math.prod(n // p for n, p in zip(size, self.tube))
            visible_index = torch.arange(length, dtype=torch.int32, device=video.device).expand(video.shape[0], length)
        return functional.embed_visible_tubes(
            video, self.weight, self.bias, visible_index,
            tube=self.tube, mean=self.mean, std=self.std, position=self.position,
        )  # fmt: skip

    def extra_repr(self) -> str:
        dim, channels = self.weight.shape[:2]
        return f"{channels}, {dim}, tube={self.tube}, grid={self.grid}, mean={self.mean}, std={self.std}"
