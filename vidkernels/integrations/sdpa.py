"""Token merging for any stack of blocks whose attention is torch's scaled_dot_product_attention.

    patch = apply_token_merging(model.blocks, 0.33)     # a third of the tokens is left after the last block
    model(clip); patch.size(), patch.source()
    patch.remove()

Nothing of a block is rewritten: while it runs, its calls of scaled_dot_product_attention get log(size) as a bias, and
their keys say which tokens are alike. `vidkernels.integrations.timm` and `.transformers` build on this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vidkernels import _check
from vidkernels.functional.tokens.attention import proportional_attention
from vidkernels.nn.tokens.merging import TokenMerging

__all__ = ["MergingPatch", "apply_token_merging", "key_metric", "watch_attention"]

# attend(block, x, *args, **kwargs): the block up to the residual of its attention; feed(block, x): the rest.
Halves = tuple[Callable[..., Tensor], Callable[[nn.Module, Tensor], Tensor]]


class watch_attention(TorchFunctionMode):
    """Context in which every self-attention gets log(size) as bias, and leaves its keys in a list.

    Args:
        size: [B, N] or None for no bias.
        keys: where the keys go, [B, H, N, d] each; `key_metric(keys)` compares tokens by them.
    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
        >>> keys = []
        >>> with watch_attention(torch.ones(1, 4), keys):
        ...     out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        >>> key_metric(keys).shape
        torch.Size([1, 4, 8])
    """

    def __init__(self, size: Tensor | None, keys: list[Tensor]):
        super().__init__()
        self.size, self.keys = size, keys

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if attn_mask is not None or is_causal or enable_gqa or query.dim() != 4 or query.shape[2] != key.shape[2]:
            _check.fail(
                "token merging", "expected plain self-attention [B, H, N, d], without mask or shared keys.",
                query=query, key=key, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa,
            )  # fmt: skip
        self.keys.append(key.detach())
        return proportional_attention(query, key, value, self.size, dropout_p=dropout_p, scale=scale)


def key_metric(keys: Sequence[Tensor]) -> Tensor:
    """[B, N, C]: keys averaged over the heads; of several attentions (differential, parallel) side by side."""
    if not keys:
        _check.fail("token merging", "a block ran without calling torch's scaled_dot_product_attention.",
                    "switch the model to its SDPA attention: attn_implementation='sdpa' in transformers, "
                    "timm.layers.set_fused_attn(True) before the model is built.", error=RuntimeError)  # fmt: skip
    means = [key.mean(1) for key in keys]
    return means[0] if len(means) == 1 else torch.cat(means, 2)


class MergingPatch:
    """What `apply_token_merging` did to a model, and the way back.

    Convention: `size` and `source` tell of the last forward, see nn.TokenMerging.
    Args:
        merging: the layer that all blocks share.
        modules: what was changed.
    Example:
        >>> block = nn.TransformerEncoderLayer(8, 2)
        >>> MergingPatch(TokenMerging(1, depth=1), []).size() is None
        True
    """

    def __init__(self, merging: TokenMerging, modules: Sequence[nn.Module]):
        self.merging, self.modules = merging, list(modules)

    def size(self, layer: int | None = None) -> Tensor | None:
        return self.merging.size(layer)

    def source(self, layer: int | None = None) -> Tensor | None:
        return self.merging.source(layer)

    def remove(self) -> None:
        """Make the model what it was. Calling it again does nothing."""
        for module in self.modules:
            unpatch(module)
        self.modules.clear()

    def __enter__(self) -> MergingPatch:
        return self

    def __exit__(self, *exception) -> None:
        self.remove()


def apply_token_merging(
    blocks: Iterable[nn.Module],
    r: int | float | Sequence[int],
    *,
    halves: Halves | Sequence[Halves | None] | None = None,
    protect: int = 0,
    schedule: str = "constant",
    pairing: str = "alternate",
    grid: Sequence[int] | None = None,
    track_source: bool = False,
    proportional: bool = True,
    unmerge: bool = True,
) -> MergingPatch:
    """Make the blocks of a transformer merge alike tokens as they go, ToMe's way, without training.

    Convention: a block takes tokens [B, N, D] first and returns tokens, or a tuple that begins with them. The patch
        replaces the class of each block by a subclass: weights, names and hooks stay, checkpoints too.
    Args:
        blocks: in the order in which they run.
        r: pairs per block, one number per block, or the share of tokens left at the end; see nn.TokenMerging.
        halves: `(attend, feed)`, or one such pair per block. `attend(block, x, *args, **kwargs)` is the block up to and
            with the residual of its attention, `feed(block, x)` the rest; the merge comes between. None merges after
            the block, which any block allows and which saves less, as its MLP still sees all tokens.
        protect: tokens in front that never merge.
        schedule, pairing, grid: see nn.TokenMerging.
        track_source: keep the source maps (`unmerge` keeps them anyway).
        proportional: attention biased by log(size).
        unmerge: give every token back after the last block. All shapes outside stay as they were, and a mean over the
            tokens weighs each merged one by its size. False leaves the merged tokens.
    Returns:
        patch: `remove()` takes it back; also a context manager.
    Raises:
        ValueError: no blocks, blocks that are patched already, arguments of nn.TokenMerging that do not fit. While
            running: RuntimeError from a block that does not call scaled_dot_product_attention; ValueError for masks.
    Backends: as functional.bipartite_soft_matching and merge_tokens; torch.compile(fullgraph=True) works.
    Source: Bolya et al. 2022, arXiv 2210.09461; differs: unmerge, and works on any block.
    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, x):
        ...         heads = x.unflatten(2, (2, -1)).transpose(1, 2)
        ...         return x + F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        >>> blocks = nn.Sequential(Block(), Block())
        >>> with apply_token_merging(blocks, 2, unmerge=False):
        ...     blocks(torch.randn(1, 10, 8)).shape
        torch.Size([1, 6, 8])
    """
    name = "apply_token_merging"
    blocks = list(blocks)
    if not blocks:
        _check.fail(name, "expected at least one block.", blocks=blocks)
    if halves is None or callable(halves[0]):
        halves = [halves] * len(blocks)
    merging = TokenMerging(
        r, len(blocks), schedule=schedule, protect=protect, pairing=pairing, grid=grid, proportional=proportional,
        track_source=track_source or unmerge,
    )  # fmt: skip
    refuse_patched(name, blocks)
    for layer, (block, pair) in enumerate(zip(blocks, halves, strict=True)):
        # In a tuple, so that the layer does not become a child of every block.
        block._vk_merging = (merging, layer, unmerge and layer == len(blocks) - 1)
        patch_class(block, _merging_forward, pair)
    return MergingPatch(merging, blocks)


def _merging_forward(cls: type[nn.Module], halves: Halves | None) -> Callable:
    attend, feed = halves or (cls.forward, None)

    def forward(self, x: Tensor, *args, **kwargs):
        merging, layer, unmerge = self._vk_merging
        keys: list[Tensor] = []
        with watch_attention(merging.size(layer) if merging.proportional else None, keys):
            out = attend(self, x, *args, **kwargs)
        x, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        x = merging(x, key_metric(keys), layer)
        if feed is not None:
            x = feed(self, x)
        if unmerge:
            x = merging.unmerge(x)
        return x if rest is None else (x, *rest)

    return forward


def refuse_patched(name: str, modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if hasattr(type(module), "_vk_original"):
            _check.fail(name, f"{type(module).__name__} merges tokens already.", "call remove() of the first patch.")


def patch_class(module: nn.Module, make_forward: Callable, *details) -> None:
    """Give one module another forward, `make_forward(its class, *details)`."""
    module.__class__ = _subclass(type(module), make_forward, details)


@functools.lru_cache(maxsize=256)
def _subclass(cls: type, make_forward: Callable, details: tuple) -> type:
    body = {"forward": make_forward(cls, *details), "_vk_original": cls, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), body)


def unpatch(module: nn.Module) -> None:
    module.__class__ = type(module)._vk_original
    if hasattr(module, "_vk_merging"):
        del module._vk_merging
