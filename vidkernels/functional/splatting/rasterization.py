"""3D Gaussians to images, with gsplat's arguments."""

from __future__ import annotations

import math
from typing import Any

import torch

from vidkernels import _check
from vidkernels.functional.splatting.harmonics import spherical_harmonics
from vidkernels.functional.splatting.project import project_gaussians
from vidkernels.functional.splatting.tiles import isect_offset_encode, isect_tiles
from vidkernels.ops.splat_alpha.op import splat_alpha

__all__ = ["rasterization"]

_NAME = "rasterization"
_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
_TILES = ("tiles_per_gauss", "isect_ids", "flatten_ids", "isect_offsets")


class _Meta(dict):
    """The dictionary of intermediate results. Our renderer needs no tile lists: they are made when asked for."""

    def __missing__(self, key: str):
        if key not in _TILES:
            raise KeyError(key)
        tiles = self["tile_size"], self["tile_width"], self["tile_height"]
        lists = isect_tiles(
            self["means2d"], self["radii"], self["depths"], *tiles, conics=self["conics"], opacities=self["opacities"]
        )
        offsets = isect_offset_encode(lists[1], self["n_batches"] * self["n_cameras"], *tiles[1:])
        lead = self["means2d"].shape[:-2]
        self.update(zip(_TILES, (*lists, offsets.reshape(*lead, *offsets.shape[1:])), strict=True))
        return self[key]


class _KeepAbsolute(torch.autograd.Function):
    """Hands the means on with a twin whose gradient, sum |per-pixel gradient|, becomes the means' `absgrad`."""

    @staticmethod
    def forward(ctx, means2d, holder):
        ctx.holder = holder
        return means2d.view_as(means2d), means2d.new_zeros(means2d.shape)

    @staticmethod
    def backward(ctx, grad, absolute):
        ctx.holder[0].absgrad = absolute.detach()
        return grad, None


def _refuse(condition: Any, message: str, hint: str | None = None) -> None:
    if condition:
        _check.fail(_NAME, message, hint, error=NotImplementedError)


def _checked_colors(colors, means, views, sh_degree):
    """Colours or coefficients with an axis for cameras."""
    tail = 1 if sh_degree is None else 2
    lead, count = means.shape[:-2], means.shape[-2]
    if colors.shape[:-tail] == (*lead, count):
        return colors.unsqueeze(-2 - tail)
    if colors.shape[:-tail] == (*lead, views, count):
        return colors
    axes = "[..., N, D] or [..., C, N, D]" if sh_degree is None else "[..., N, K, 3] or [..., C, N, K, 3]"
    _check.fail(_NAME, f"expected `colors` of shape {axes}.", means=means, colors=colors, sh_degree=sh_degree)


def rasterization(
    means: torch.Tensor,
    quats: torch.Tensor | None,
    scales: torch.Tensor | None,
    opacities: torch.Tensor,
    colors: torch.Tensor,
    viewmats: torch.Tensor,
    Ks: torch.Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: torch.Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: torch.Tensor | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    radial_coeffs: torch.Tensor | None = None,
    tangential_coeffs: torch.Tensor | None = None,
    thin_prism_coeffs: torch.Tensor | None = None,
    ftheta_coeffs: Any = None,
    rolling_shutter: Any = None,
    viewmats_rs: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Render 3D Gaussians in every camera: project, sort by depth, composite front to back. gsplat's signature.

    alpha_i = min(0.99, o_i exp(-sigma_i)), left out below 1/255; image = sum_i c_i alpha_i prod_{j < i} (1 - alpha_j)
    Convention: as `project_gaussians`: cameras look along +z, pixel centres at + 0.5, quaternions (w, x, y, z).
    Args:
        means: [..., N, 3]. quats: [..., N, 4]. scales: [..., N, 3]. opacities: [..., N].
        colors: [..., (C,) N, D], or with sh_degree coefficients [..., (C,) N, K, 3]: the colour is then
            max(0, 0.5 + value in the direction from the camera to the mean).
        viewmats: [..., C, 4, 4]. Ks: [..., C, 3, 3]. width, height: of the images.
        near_plane, far_plane, radius_clip, eps2d, camera_model, covars: see `project_gaussians`.
        sh_degree: bands of spherical harmonics to use, 0..4; None: colours as they are.
        backgrounds: [..., C, D], what shows through; depths have 0 there.
        render_mode: "RGB"; "D" adds up depth, "ED" divides that by alpha; "RGB+D" and "RGB+ED" append it.
        absgrad: after a backward pass meta["means2d"].absgrad holds the sums of |per-pixel gradients|.
        rasterize_mode: "antialiased" multiplies opacities by the compensations of `project_gaussians`.
        tile_size: of the tile lists in the result; the renderer does not depend on it.
        packed, channel_chunk, segmented: taken and without effect: results always have all C x N pairs, and all
            channels are rendered at once.
        sparse_grad, distributed, with_ut, with_eval3d, ..._coeffs, rolling_shutter, viewmats_rs: refused if set.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        renders: [..., C, height, width, X], X = D, 1 or D + 1. alphas: [..., C, height, width, 1].
        meta: means2d (keeps its gradient), conics, depths, radii, opacities [..., C, N, ...] (opacity 0 where radii
            are 0), tile_width, tile_height, tile_size, width, height, n_batches, n_cameras, batch_ids, camera_ids,
            gaussian_ids (None: not packed); tiles_per_gauss, isect_ids, flatten_ids and isect_offsets are made when
            first asked for with meta[...]. Images are differentiable in all floating arguments, cameras included.
    Raises:
        ValueError: shapes that do not fit, unknown modes. NotImplementedError: an option that is refused.
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes.
    Source: Ye et al. 2024, "gsplat", arXiv 2409.06765; Kerbl et al. 2023, arXiv 2308.04079; differs: gradients to Ks;
        radii do not shrink with the opacity; the support is the exact ellipse; compensations are at least 0.005.
    Example:
        >>> K = torch.tensor([[[50.0, 0, 8], [0, 50, 6], [0, 0, 1]]])
        >>> image, alpha, meta = rasterization(
        ...     torch.tensor([[0.01, 0.01, 1.0]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.05),
        ...     torch.tensor([0.8]), torch.tensor([[1.0, 0.5, 0.25]]), torch.eye(4)[None], K, 16, 12)
        >>> image.shape, [round(x, 3) for x in image[0, 6, 8].tolist()]
        (torch.Size([1, 12, 16, 3]), [0.8, 0.4, 0.2])
    """
    _refuse(distributed, "distributed=True is not supported.", "render a part of the cameras on every rank.")
    _refuse(sparse_grad, "sparse_grad=True is not supported: gradients are dense.")
    _refuse(with_ut or with_eval3d, "with_ut and with_eval3d are not supported: the projection is EWA.")
    lens = (radial_coeffs, tangential_coeffs, thin_prism_coeffs, ftheta_coeffs, viewmats_rs)
    _refuse(any(x is not None for x in lens), "lens distortion and rolling shutter are not supported.")
    _refuse(
        rolling_shutter is not None and getattr(rolling_shutter, "name", rolling_shutter) != "GLOBAL",
        "rolling shutters are not supported.",
    )
    _refuse(camera_model in ("fisheye", "ftheta"), f"camera_model={camera_model!r} is not supported.")
    if render_mode not in _MODES or rasterize_mode not in ("classic", "antialiased"):
        _check.fail(_NAME, f"expected `render_mode` to be one of {', '.join(_MODES)} and `rasterize_mode` to be "
                    "'classic' or 'antialiased'.", render_mode=render_mode, rasterize_mode=rasterize_mode)  # fmt: skip
    if covars is not None:
        quats = scales = None
    seen = project_gaussians(
        means, quats, scales, viewmats, Ks, width, height, covars=covars, eps2d=eps2d, near_plane=near_plane,
        far_plane=far_plane, radius_clip=radius_clip, camera_model=camera_model, backend=backend,
    )  # fmt: skip
    means2d, conics, depths, radii, compensations = seen
    lead, count, views = means.shape[:-2], means.shape[-2], viewmats.shape[-3]
    if opacities.shape != (*lead, count):
        _check.fail(_NAME, "expected `opacities` of shape [..., N].", means=means, opacities=opacities)
    visible = (radii > 0).all(-1)
    opacities = opacities.to(means2d.dtype).unsqueeze(-2)
    if rasterize_mode == "antialiased":
        opacities = opacities * compensations
    opacities = torch.where(visible, opacities, 0.0)
    colors = _shown(colors, means, viewmats, visible, sh_degree).to(means2d.dtype)
    if backgrounds is not None:
        if backgrounds.shape != (*lead, views, colors.shape[-1]):
            _check.fail(_NAME, "expected `backgrounds` of shape [..., C, D].", backgrounds=backgrounds, colors=colors)
        backgrounds = backgrounds.to(means2d.dtype)
    if render_mode != "RGB":
        keep = slice(0, colors.shape[-1] if "RGB" in render_mode else 0)
        colors = torch.cat((colors[..., keep], depths[..., None]), -1)
        if backgrounds is not None:
            backgrounds = torch.cat((backgrounds[..., keep], torch.zeros_like(backgrounds[..., :1])), -1)
    if means2d.requires_grad:
        means2d.retain_grad()
    meta = _Meta(
        batch_ids=None, camera_ids=None, gaussian_ids=None, radii=radii, means2d=means2d, depths=depths, conics=conics,
        opacities=opacities, tile_width=-(-width // tile_size), tile_height=-(-height // tile_size), width=width,
        height=height, tile_size=tile_size, n_batches=math.prod(lead), n_cameras=views,
    )  # fmt: skip
    images, alphas = _composite(
        means2d, conics, colors, opacities, depths, backgrounds, height, width, absgrad, backend
    )
    if render_mode.endswith("ED"):
        images = torch.cat((images[..., :-1], images[..., -1:] / alphas.clamp(min=1e-10)), -1)
    return images, alphas, meta


def _shown(colors, means, viewmats, visible, sh_degree):
    """[..., C, N, D]: what each camera sees of each Gaussian."""
    colors = _checked_colors(colors, means, viewmats.shape[-3], sh_degree)
    if sh_degree is None:
        return colors.expand(*visible.shape, colors.shape[-1])
    # The camera's centre; solved for, because a viewmat with a scale in it is not a rotation.
    centres = -torch.linalg.solve(viewmats[..., :3, :3], viewmats[..., :3, 3:])[..., 0]
    directions = means.unsqueeze(-3) - centres.unsqueeze(-2)
    return (spherical_harmonics(sh_degree, directions, colors, visible) + 0.5).clamp(min=0)


def _composite(means2d, conics, colors, opacities, depths, backgrounds, height, width, absgrad, backend):
    """Every camera is an image of its own."""
    *lead, count, channels = colors.shape
    images = math.prod(lead)
    probe = None
    if absgrad and means2d.requires_grad and torch.is_grad_enabled():
        means2d, probe = _KeepAbsolute.apply(means2d, [means2d])
        probe = probe.reshape(-1, 2)
    offsets = None if images == 1 else torch.arange(images + 1, device=colors.device) * count
    backgrounds = None if backgrounds is None else backgrounds.reshape(images, channels)
    rendered, alphas, _ = splat_alpha(
        means2d.reshape(-1, 2), conics.reshape(-1, 3), colors.reshape(-1, channels), opacities.reshape(-1),
        depths.detach().reshape(-1), backgrounds, offsets, height, width, 0.5, "conic", probe, backend=backend,
    )  # fmt: skip
    return rendered.reshape(*lead, height, width, channels), alphas.reshape(*lead, height, width, 1)
