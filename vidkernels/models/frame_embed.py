"""Frames as tokens, each frame by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vidkernels.models.video_vit import grid_positions
from vidkernels.nn.masking.embed import VisibleTubeEmbed


class FrameEmbed(VisibleTubeEmbed):
    """The patches of every frame as tokens, with their place in the frame but not the frame's in the clip.

    Args:     dim: width of a token, even. patch: height and width of a patch. mean, std: of the colours, in 0..1.
              positions: add the sin-cos table of places.
    Shape:    [B, T, H, W, 3] uint8, H and W multiples of `patch` -> [B, T, (H / patch) * (W / patch), dim].
    Raises:   ValueError: a clip of another shape, type or size.
    Source:   Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1, frame by frame; positions: `grid_positions`.
    Example:
        >>> FrameEmbed(16, 4)(torch.zeros(2, 3, 8, 12, 3, dtype=torch.uint8)).shape
        torch.Size([2, 3, 6, 16])
    """

    def __init__(self, dim: int, patch: int, mean: Sequence[float], std: Sequence[float], *, positions: bool = True):
        super().__init__(dim=dim, tube=(1, patch, patch), grid=None, mean=mean, std=std, position=None)
        self.patch, self.positions = patch, positions

    def places(self, clip: Tensor) -> tuple[int, int]:
        """Patches of a frame along height and width; refuses a clip that it cannot embed."""
        fits = clip.dim() == 5 and clip.shape[4] == 3 and str(clip.dtype) == "torch.uint8"
        if not fits or clip.shape[2] % self.patch or clip.shape[3] % self.patch:
            raise ValueError(
                f"FrameEmbed: expected `clip` [B, T, H, W, 3] uint8, H and W multiples of {self.patch}, got "
                f"{list(clip.shape)} {str(clip.dtype).removeprefix('torch.')}.\nHINT: crop or resample the clip."
            )
        return clip.shape[2] // self.patch, clip.shape[3] // self.patch

    def forward(self, clip: Tensor) -> Tensor:
        places = self.places(clip)
        x = super().forward(clip.flatten(0, 1)[:, None])
        if self.positions:
            x = x + grid_positions((1, *places), x.shape[2]).to(x)
        return x.unflatten(0, clip.shape[:2])
