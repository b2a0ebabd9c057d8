"""From a clip to its visible tokens and back to a loss: masks, embedding, gather, scatter, patch loss."""

from vidkernels.functional.masking.embed import embed_visible_tubes
from vidkernels.functional.masking.loss import masked_patch_loss
from vidkernels.functional.masking.masks import (
    block_mask,
    random_mask,
    running_cell_mask,
    score_mask,
    tube_mask,
)
from vidkernels.functional.masking.token_mask import TokenMask
from vidkernels.functional.masking.tokens import gather_tokens, scatter_tokens

__all__ = [
    "TokenMask",
    "block_mask",
    "embed_visible_tubes",
    "gather_tokens",
    "masked_patch_loss",
    "random_mask",
    "running_cell_mask",
    "scatter_tokens",
    "score_mask",
    "tube_mask",
]
