"""Token merging for timm's vision transformers: `from vidkernels.integrations.timm import apply_token_merging`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vidkernels import _check
from vidkernels.integrations import sdpa

__all__ = ["apply_token_merging"]


def apply_token_merging(
    model: nn.Module,
    r: int | float | Sequence[int],
    *,
    schedule: str = "constant",
    pairing: str = "alternate",
    track_source: bool = False,
    proportional: bool = True,
    unmerge: bool = True,
) -> sdpa.MergingPatch:
    """Make a timm VisionTransformer merge alike tokens between attention and MLP of every block.

    Convention: class, distillation and register tokens (`model.num_prefix_tokens`) never merge. Blocks that compute
        attention and MLP side by side (ParallelScalingBlock and its kin) merge after the block.
    Args:
        model: timm.models.VisionTransformer (or a model that contains one), built with fused attention, the default.
        r: pairs per block, one number per block, or the share of tokens left at the end (a float).
        schedule: "constant" or "decreasing", see nn.TokenMerging.
        pairing: see functional.bipartite_soft_matching; the grid is that of the patch embedding, one frame.
        track_source: keep the source maps (`unmerge` keeps them anyway).
        proportional: attention biased by log(size).
        unmerge: all tokens come back after the last block, so that shapes stay and mean pooling weighs by size. ToMe
            pools the merged tokens: unmerge=False.
    Returns:
        patch: `remove()`, `size()`, `source()`; see integrations.sdpa.MergingPatch.
    Raises:
        ImportError: timm is missing. TypeError: no VisionTransformer, or blocks of an unknown kind (rotary
            positions and window attention need to know where a token is; merged ones are nowhere).
    Backends: as integrations.sdpa.apply_token_merging.
    Source: Bolya et al. 2022, arXiv 2210.09461.
    Example:
        >>> import timm
        >>> from vidkernels.integrations.timm import apply_token_merging
        >>> model = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
        >>> patch = apply_token_merging(model, 4)
        >>> model(torch.randn(1, 3, 32, 32)).shape, patch.size().shape
        (torch.Size([1, 1000]), torch.Size([1, 9]))
    """
    name = "integrations.timm.apply_token_merging"
    try:
        from timm.models import vision_transformer as vit
    except ImportError as missing:
        raise ImportError(
            f"{name}: timm could not be imported: {missing}\nHINT: pip install 'vidkernels[timm]'"
        ) from missing
    found = [m for m in model.modules() if isinstance(m, vit.VisionTransformer)]
    if len(found) != 1:
        _check.fail(name, f"expected a model with one timm VisionTransformer, found {len(found)}.", error=TypeError,
                    model=type(model).__name__)  # fmt: skip
    model = found[0]
    sdpa.refuse_patched(name, model.blocks)
    halves = []
    for block in model.blocks:
        known = [cls for cls in (vit.Block, vit.ResPostBlock) if type(block) is cls]
        if known:
            halves.append(_PRE_NORM if known[0] is vit.Block else _POST_NORM)
        elif type(block).__name__ in _SIDE_BY_SIDE:
            halves.append(None)
        else:
            _check.fail(name, "a block of a kind that cannot be patched.", error=TypeError, block=type(block).__name__)
    grid = None
    if pairing != "alternate":
        grid = (1, *model.patch_embed.grid_size)
    return sdpa.apply_token_merging(
        model.blocks, r, halves=halves, protect=model.num_prefix_tokens, schedule=schedule, pairing=pairing, grid=grid,
        track_source=track_source, proportional=proportional, unmerge=unmerge,
    )  # fmt: skip


_SIDE_BY_SIDE = ("ParallelScalingBlock", "DiffParallelScalingBlock", "ParallelThingsBlock")


def _attend_pre(block: nn.Module, x: Tensor, **kwargs) -> Tensor:
    return x + block.drop_path1(block.ls1(block.attn(block.norm1(x), **kwargs)))


def _feed_pre(block: nn.Module, x: Tensor) -> Tensor:
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _attend_post(block: nn.Module, x: Tensor, **kwargs) -> Tensor:
    return x + block.drop_path1(block.norm1(block.attn(x, **kwargs)))


def _feed_post(block: nn.Module, x: Tensor) -> Tensor:
    return x + block.drop_path2(block.norm2(block.mlp(x)))


_PRE_NORM, _POST_NORM = (_attend_pre, _feed_pre), (_attend_post, _feed_post)
