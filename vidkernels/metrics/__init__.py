"""How close two clips are, and how far apart two rate-distortion curves: PSNR, SSIM, MS-SSIM, BD-rate."""

from .bjontegaard import bd_psnr, bd_rate
from .distortion import frame_psnr, psnr
from .similarity import ms_ssim, ssim

__all__ = ["bd_psnr", "bd_rate", "frame_psnr", "ms_ssim", "psnr", "ssim"]
