"""2D Gaussians to images: accumulated sum, depth-sorted over-compositing, normalised top-k."""

from __future__ import annotations

import torch

from vidkernels import _check

__all__ = ["splat_2d"]

_NAME = "splat_2d"
_MODES = ("sum", "alpha", "topk")
_TOP = 10


def splat_2d(
    means: torch.Tensor,
    cholesky: torch.Tensor,
    colors: torch.Tensor,
    opacities: torch.Tensor | None = None,
    *,
    size: tuple[int, int],
    mode: str = "sum",
    depths: torch.Tensor | None = None,
    background: torch.Tensor | None = None,
    batch_offsets: torch.Tensor | None = None,
    pixel_center: float = 0.5,
    return_meta: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Render 2D Gaussians into an image.

    w_i(p) = o_i exp(-(p - m_i)^T (L_i L_i^T)^-1 (p - m_i) / 2), left out below 1/255
    sum:   image[p] = background + sum_i w_i c_i                                no order, no transmittance
    alpha: image[p] = sum_i T_i a_i c_i + T background, a_i = min(0.99, w_i), T_i = prod_{j before i} (1 - a_j),
           by ascending depth (ties: by index), ending before T would fall to 1e-4
    topk:  image[p] = sum of w_i c_i / (sum of w_i + 1e-4) over the 10 largest w_i; background where there is none
    Convention: means in pixels, x to the right, y down; the centre of pixel (row r, column c) is (c + pixel_center,
        r + pixel_center). L = [[l11, 0], [l21, l22]] is the Cholesky factor of the covariance.
    Args:
        means: [N, 2], float32/float64 (float16/bfloat16 are computed in float32). x, y.
        cholesky: [N, 3], (l11, l21, l22) in pixels.
        colors: [N, C], C from 1 to 512: colours or any features.
        opacities: [N] or None (1).
        size: (H, W) of the image.
        mode: "sum", "alpha" or "topk".
        depths: [N], the order of "alpha" (None: by index). Not differentiable.
        background: [C], or [B, C] with `batch_offsets`; None is black.
        batch_offsets: int64 [B + 1], rising from 0 to N: image b shows Gaussians batch_offsets[b] up to
            batch_offsets[b + 1]. None: one image, without a batch axis.
        pixel_center: 0.5, or 0 for centres on whole numbers (as GaussianImage has them).
        return_meta: also return what else the renderer knows: "alpha" gives {"alpha": [.., H, W]}, "topk" gives
            {"index": [.., H, W, 10] int32, -1 where there are fewer}, "sum" an empty dict.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        image: [H, W, C], or [B, H, W, C]. Differentiable in means, cholesky, colors, opacities and background. A
            Gaussian with non-finite or degenerate parameters shows nowhere and has zero gradients.
    Raises:
        ValueError: shapes that do not fit, an unknown mode, depths without "alpha".
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes (sums in a fixed
        order, for any number of threads).
    Source: sum: Zhang et al. 2024, arXiv 2403.08551, section 3; alpha: Kerbl et al. 2023, arXiv 2308.04079, eq. 3;
        topk: Zhang et al. 2024, arXiv 2407.01866, section 3; differs: exact supports instead of squares of tiles.
    Example:
        >>> image = splat_2d(torch.tensor([[2.5, 1.5]]), torch.tensor([[1.0, 0.0, 1.0]]), torch.ones(1, 3), size=(3, 5))
        >>> image.shape, round(image[1, 2, 0].item(), 4), round(image[1, 3, 0].item(), 4)
        (torch.Size([3, 5, 3]), 1.0, 0.6065)
    """
    _check.is_tensor(_NAME, "means", means, "[N, 2]")
    _check.is_tensor(_NAME, "cholesky", cholesky, "[N, 3]")
    _check.is_tensor(_NAME, "colors", colors, "[N, C]")
    count, channels = colors.shape
    if means.shape != (count, 2) or cholesky.shape != (count, 3):
        _check.fail(_NAME, "expected `means` [N, 2], `cholesky` [N, 3] and `colors` [N, C] of one N.",
                    means=means, cholesky=cholesky, colors=colors)  # fmt: skip
    if not 1 <= channels <= 512:
        _check.fail(_NAME, f"expected 1 to 512 channels, got {channels}.", colors=colors)
    if opacities is not None and opacities.shape != (count,):
        _check.fail(_NAME, "expected `opacities` of shape [N].", colors=colors, opacities=opacities)
    if mode not in _MODES:
        _check.fail(_NAME, f"expected `mode` to be one of {', '.join(_MODES)}, got {mode!r}.")
    if depths is not None and (mode != "alpha" or depths.shape != (count,)):
        _check.fail(_NAME, "expected `depths` of shape [N], with mode='alpha' only.", depths=depths, mode=mode)
    height, width = (int(n) for n in size)
    if height < 1 or width < 1:
        _check.fail(_NAME, "expected `size` (H, W) of at least one pixel.", size=size)
    if batch_offsets is not None and (batch_offsets.dim() != 1 or batch_offsets.dtype is not torch.int64):
        _check.fail(_NAME, "expected `batch_offsets` [B + 1] of dtype int64.", batch_offsets=batch_offsets)
    images = 1 if batch_offsets is None else batch_offsets.shape[0] - 1
    if background is not None:
        if background.shape not in ((channels,), (images, channels)):
            _check.fail(_NAME, "expected `background` of shape [C] or [B, C].", background=background, colors=colors)
        background = background.reshape(-1, channels)
    dtype = torch.promote_types(torch.promote_types(means.dtype, cholesky.dtype), colors.dtype)
    dtype = torch.float64 if dtype is torch.float64 else torch.float32
    means, cholesky, colors = means.to(dtype), cholesky.to(dtype), colors.to(dtype)
    opacities = None if opacities is None else opacities.to(dtype)
    background = None if background is None else background.to(dtype)
    centre = float(pixel_center)
    meta = {}
    if mode == "sum":
        from vidkernels.ops.splat_sum.op import splat_sum

        image = splat_sum(means, cholesky, colors, opacities, background, batch_offsets, height, width, centre,
                          "cholesky", backend=backend)  # fmt: skip
    elif mode == "alpha":
        from vidkernels.ops.splat_alpha.op import splat_alpha

        opacities = means.new_ones(count) if opacities is None else opacities
        depths = means.new_zeros(count) if depths is None else depths.detach().to(dtype)
        image, meta["alpha"], _ = splat_alpha(means, cholesky, colors, opacities, depths, background, batch_offsets,
                                              height, width, centre, "cholesky", None, backend=backend)  # fmt: skip
    else:
        from vidkernels.ops.splat_topk.op import splat_topk

        image, meta["index"] = splat_topk(means, cholesky, colors, opacities, batch_offsets, height, width, _TOP,
                                          centre, "cholesky", backend=backend)  # fmt: skip
        if background is not None:
            image = torch.where(meta["index"][..., :1] < 0, background[:, None, None], image)
    if batch_offsets is None:
        image, meta = image[0], {name: value[0] for name, value in meta.items()}
    return (image, meta) if return_meta else image
