"""From a clip to its visible tokens and back to a loss: masks, embedding, gather, scatter, patch loss."""

from vidkernels.functional.masking.loss import masked_patch_loss
from vidkernels.functional.masking.tokens import gather_tokens

__all__ = ["gather_tokens", "masked_patch_loss"]
