"""Adding and removing Gaussians while they are fitted, without losing what the optimiser knows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.nn.splatting.adam import swap_parameter

__all__ = ["DensityControl"]

# A split Gaussian's two halves are smaller than it by this factor, as in 3D Gaussian splatting.
_SHRINK = 1.6


def keep_gaussians(gaussians: nn.ParameterDict, optimizer: torch.optim.Optimizer | None, index: Tensor) -> None:
    """Keep some rows of every parameter, in the order given; the optimiser's moments follow their rows.

    Args:     gaussians: parameters whose first axis counts Gaussians; replaced in place.
              optimizer: holds these parameters, or None. Any whose state tensors have the parameter's shape.
              index: [M] int64, or [N] bool.
    Raises:   IndexError: an index outside.
    Example:
        >>> rows = nn.ParameterDict({"opacities": nn.Parameter(torch.arange(3.0))})
        >>> keep_gaussians(rows, None, torch.tensor([2, 0]))
        >>> rows["opacities"].tolist()
        [2.0, 0.0]
    """
    for name in list(gaussians.keys()):
        replace_parameter(gaussians, optimizer, name, lambda value: value[index])


def append_gaussians(
    gaussians: nn.ParameterDict, optimizer: torch.optim.Optimizer | None, rows: dict[str, Tensor]
) -> None:
    """Append rows to every parameter; the optimiser starts them from zero moments.

    Args:     gaussians: as for `keep_gaussians`.
              optimizer: holds these parameters, or None.
              rows: name -> [M, ...], one entry for each parameter.
    Raises:   ValueError: a parameter without rows, or rows without a parameter.
    Example:
        >>> rows = nn.ParameterDict({"opacities": nn.Parameter(torch.arange(2.0))})
        >>> append_gaussians(rows, None, {"opacities": torch.tensor([5.0])})
        >>> rows["opacities"].tolist()
        [0.0, 1.0, 5.0]
    """
    if set(rows) != set(gaussians.keys()):
        _check.fail("append_gaussians", f"expected rows for {', '.join(gaussians.keys())}.", rows=sorted(rows))
    for name, new in rows.items():
        new = new.to(gaussians[name])
        replace_parameter(
            gaussians,
            optimizer,
            name,
            lambda value, new=new: torch.cat([value, new]),
            lambda value, new=new: torch.cat([value, torch.zeros_like(new)]),
        )


def replace_parameter(
    gaussians: nn.ParameterDict,
    optimizer: torch.optim.Optimizer | None,
    name: str,
    change: Callable[[Tensor], Tensor],
    change_moment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Put change(parameter) in a parameter's place, in the optimiser as well.

    Args:     gaussians: holds the parameter as `name`.
              optimizer: holds it, too, or None.
              change: makes the new value from the old one.
              change_moment: the same for the optimiser's tensors of the parameter's shape; None: `change`.
    Raises:   KeyError: no such parameter.
    Example:
        >>> rows = nn.ParameterDict({"opacities": nn.Parameter(torch.arange(2.0))})
        >>> replace_parameter(rows, None, "opacities", lambda value: value + 1)
        >>> rows["opacities"].tolist()
        [1.0, 2.0]
    """
    gaussians[name] = swap_parameter(optimizer, gaussians[name], change, change_moment)


def sample_error(error: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Distinct pixels, drawn in proportion to their error.

    Args:     error: [H, W], not negative. Pixels without error are never drawn.
              count: at most this many.
              generator: source of the draw.
    Returns:  pixels [M, 2] float (x, y), pixel centres, M = min(count, pixels with error).
    Raises:   RuntimeError: a negative `count`.
    Example:
        >>> sample_error(torch.tensor([[0.0, 2.0]]), 5)
        tensor([[1.5000, 0.5000]])
    """
    weight = error.detach().flatten().double()
    count = min(count, int((weight > 0).sum()))
    if count == 0:
        return torch.zeros(0, 2, dtype=error.dtype, device=error.device)
    # Gumbel's trick: the largest of log-weight plus noise are a draw without replacement, of any length.
    noise = torch.rand(weight.shape, generator=generator, dtype=weight.dtype, device=weight.device)
    chosen = (weight.log() - (-noise.clamp(min=1e-300).log()).log()).topk(count).indices
    width = error.shape[1]
    return torch.stack([chosen % width, chosen // width], 1).to(error.dtype) + 0.5


class DensityControl:
    """Adaptive density of Gaussians: clone and split where the picture pulls, prune the transparent.

        every step     : observe the length of the gradient of each centre on the screen
        every so often : mean gradient > threshold -> clone if small, else split in two; opacity < floor -> prune
        now and then   : reset opacities, so that what is not needed fades
    Convention: gradients are in units of half the frame (as the 2e-4 of the source), scales in scene units.

    Args:     gaussians: `log_scales` [N, 3], `quats` [N, 4], `opacities` [N] logits and others, replaced in place.
              optimizer: holds them.
              centre: name of the positions, [N, 3] or [N, K, 3].
              threshold: mean screen gradient from which a Gaussian is doubled.
              split_scale: largest standard deviation from which it is split instead of cloned.
              min_opacity: below it, a Gaussian is pruned.
              max_count: never grow beyond it; the strongest gradients come first.
    Raises:   RuntimeError: `observe` got centres without a gradient.
    Source:   Kerbl et al. 2023, arXiv 2308.04079, section 5.2 (thresholds of Sun et al. 2024, arXiv 2406.13870).
    Example:
        >>> sizes = {"means": (2, 3), "log_scales": (2, 3), "quats": (2, 4), "opacities": (2,)}
        >>> rows = torch.nn.ParameterDict({k: torch.nn.Parameter(torch.ones(v)) for k, v in sizes.items()})
        >>> control = DensityControl(rows, torch.optim.Adam(rows.values()))
        >>> control.prune(torch.tensor([True, False]))
        1
    """

    def __init__(
        self,
        gaussians: nn.ParameterDict,
        optimizer: torch.optim.Optimizer,
        *,
        centre: str = "means",
        threshold: float = 2e-4,
        split_scale: float = 0.05,
        min_opacity: float = 0.05,
        max_count: int = 1 << 20,
    ):
        self.gaussians, self.optimizer, self.centre = gaussians, optimizer, centre
        self.threshold, self.split_scale = threshold, split_scale
        self.min_opacity, self.max_count = min_opacity, max_count
        self._forget()

    def _forget(self) -> None:
        like = self.gaussians["opacities"]
        self._sum, self._seen = torch.zeros_like(like, requires_grad=False), torch.zeros_like(like, requires_grad=False)

    def observe(self, means2d: Tensor, size: tuple[int, int]) -> None:
        """Add the gradient that the last backward pass left in `means2d` (which needs `retain_grad()`).

        Args:     means2d: [N, 2] or [1, N, 2] centres in pixels, of a picture of `size` (height, width).
        """
        if means2d.grad is None:
            _check.fail(
                "DensityControl.observe", "expected `means2d` to hold a gradient.",
                hint="call means2d.retain_grad() before loss.backward().", error=RuntimeError, means2d=means2d,
            )  # fmt: skip
        half = means2d.grad.new_tensor([size[1] / 2, size[0] / 2])
        length = (means2d.grad.reshape(-1, 2) * half).norm(dim=1)
        self._sum += length
        self._seen += length > 0

    @torch.no_grad()
    def densify(self, generator: torch.Generator | None = None) -> dict[str, int]:
        """Clone, split and prune on what was observed since the last call; returns how many of each."""
        rows = self.gaussians
        gradient = self._sum / self._seen.clamp(min=1)
        wanted = gradient > self.threshold
        room = max(0, self.max_count - len(gradient))
        if int(wanted.sum()) > room:
            strongest = gradient.topk(min(room, len(gradient))).indices
            wanted = torch.zeros_like(wanted).index_fill_(0, strongest, True) & wanted
        large = rows["log_scales"].exp().amax(1) > self.split_scale
        clone, split = wanted & ~large, wanted & large
        new = {name: torch.cat([value[clone], value[split], value[split]]) for name, value in rows.items()}
        halves = new["log_scales"][int(clone.sum()) :]
        offset = self._offsets(new["quats"][int(clone.sum()) :], halves.exp(), generator)
        place = new[self.centre][int(clone.sum()) :]
        place += offset.view(-1, *[1] * (place.dim() - 2), 3)
        halves -= torch.tensor(_SHRINK).log()
        append_gaussians(rows, self.optimizer, new)
        gone = torch.cat([split, split.new_zeros(len(new["opacities"]))])
        keep_gaussians(rows, self.optimizer, ~gone)
        pruned = self.prune()
        return {"cloned": int(clone.sum()), "split": int(split.sum()), "pruned": pruned}

    @staticmethod
    def _offsets(quats: Tensor, scales: Tensor, generator: torch.Generator | None) -> Tensor:
        """One draw from each Gaussian around its centre."""
        draw = scales * torch.randn(scales.shape, generator=generator, dtype=scales.dtype, device=scales.device)
        q = torch.nn.functional.normalize(quats, dim=1)
        real, axis = q[:, :1], q[:, 1:]
        # Rotating a vector by a unit quaternion (w, u): v + 2 u x (u x v + w v).
        return draw + 2 * torch.linalg.cross(axis, torch.linalg.cross(axis, draw) + real * draw)

    @torch.no_grad()
    def prune(self, also: Tensor | None = None) -> int:
        """Take out what is nearly transparent, and rows marked in `also` [N] bool; returns how many."""
        gone = self.gaussians["opacities"].sigmoid() < self.min_opacity
        gone = gone if also is None else gone | also
        if gone.all():
            # A video needs at least one Gaussian; the most opaque one stays.
            gone[self.gaussians["opacities"].argmax()] = False
        if gone.any():
            keep_gaussians(self.gaussians, self.optimizer, ~gone)
        self._forget()
        return int(gone.sum())

    @torch.no_grad()
    def insert(self, rows: dict[str, Tensor]) -> int:
        """Append Gaussians, no more than `max_count` allows; returns how many. What was observed is forgotten."""
        room = max(0, self.max_count - self.gaussians["opacities"].shape[0])
        rows = {name: value[:room] for name, value in rows.items()}
        append_gaussians(self.gaussians, self.optimizer, rows)
        self._forget()
        return len(rows["opacities"])

    @torch.no_grad()
    def reset_opacity(self, ceiling: float = 0.1) -> None:
        """Lower all opacities to `ceiling` at most, and forget the optimiser's moments of them."""
        value = self.gaussians["opacities"]
        value.clamp_(max=torch.logit(torch.tensor(ceiling)).item())
        for moment in self.optimizer.state.get(value, {}).values():
            if torch.is_tensor(moment) and moment.shape == value.shape:
                moment.zero_()
