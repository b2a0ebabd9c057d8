"""Backbones that methods share. Importing this package imports torch only."""

from .frame_embed import FrameEmbed
from .video_vit import (
    MaskedVideoDecoder,
    VideoViTConfig,
    VideoViTEncoder,
    grid_positions,
    sequence_positions,
)

__all__ = [
    "FrameEmbed",
    "MaskedVideoDecoder",
    "VideoViTConfig",
    "VideoViTEncoder",
    "grid_positions",
    "sequence_positions",
]
