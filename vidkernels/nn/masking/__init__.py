<<<<<<< HEAD
"""Modules of the masking family."""

__all__: list[str] = []
=======
"""Modules of masked video pretraining."""

from vidkernels.nn.masking.loss import MaskedPatchLoss

__all__ = ["MaskedPatchLoss"]
>>>>>>> 936a873 (feat(masked_patch_loss): reference, op, function and module)
