"""From a clip to its visible tokens and back to a loss: masks, embedding, gather, scatter, patch loss."""

from vidkernels.functional.masking.embed import embed_visible_tubes
from vidkernels.functional.masking.loss import masked_patch_loss
from vidkernels.functional.masking.tokens import gather_tokens

__all__ = ["embed_visible_tubes", "gather_tokens", "masked_patch_loss"]
