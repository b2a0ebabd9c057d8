"""Backbones that methods share. Importing this package imports torch only."""

from .video_vit import (
    MaskedVideoDecoder,
    VideoViTConfig,
    VideoViTEncoder,
    grid_positions,
    sequence_positions,
)

__all__ = [
    "MaskedVideoDecoder",
    "VideoViTConfig",
    "VideoViTEncoder",
    "grid_positions",
    "sequence_positions",
]
