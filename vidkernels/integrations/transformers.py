"""Token merging for the video transformers of Hugging Face transformers: VideoMAE, ViViT, TimeSformer.

from vidkernels.integrations.transformers import apply_token_merging
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.integrations import sdpa
from vidkernels.nn.tokens.merging import TokenMerging

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
    """Make VideoMAE, ViViT or TimeSformer merge alike tokens between attention and MLP of every block.

    Convention: the class token never merges. TimeSformer's divided attention needs every place in every frame: its
        places merge, the same ones in all frames (by the keys of all frames, averaged over the heads), so that `r`
        counts places and both attentions and the MLP get shorter. VideoMAE pretraining: the decoder does not merge.
    Args:
        model: VideoMAEModel, VivitModel, TimesformerModel or a model around one (...ForVideoClassification).
            VideoMAE and ViViT have to run attn_implementation="sdpa", their default.
        r: pairs per block, one number per block, or the share of tokens left at the end (a float).
        schedule: "constant" or "decreasing", see nn.TokenMerging.
        pairing: see functional.bipartite_soft_matching; with divided attention the grid is one frame.
        track_source: keep the source maps (`unmerge` keeps them anyway).
        proportional: attention biased by log(size).
        unmerge: all tokens come back after the last block, so that shapes stay and mean pooling weighs by size.
    Returns:
        patch: `remove()`, `size()`, `source()`; see integrations.sdpa.MergingPatch.
    Raises:
        ImportError: transformers is missing or does not load. TypeError: another model. ValueError: another attention
            implementation.
    Backends: as integrations.sdpa.apply_token_merging.
    Source: Bolya et al. 2022, arXiv 2210.09461; differs: the divided attention, which the paper leaves out.
    Example:
        >>> from transformers import VideoMAEConfig, VideoMAEModel
        >>> from vidkernels.integrations.transformers import apply_token_merging
        >>> model = VideoMAEModel(VideoMAEConfig(image_size=32, num_frames=4, hidden_size=16, intermediate_size=32,
        ...                                      num_hidden_layers=2, num_attention_heads=2)).eval()
        >>> patch = apply_token_merging(model, 0.5)
        >>> model(torch.randn(1, 4, 3, 32, 32)).last_hidden_state.shape, patch.size().shape
        (torch.Size([1, 8, 16]), torch.Size([1, 4]))
    """
    name = "integrations.transformers.apply_token_merging"
    try:
        from transformers import TimesformerModel, VideoMAEModel, VivitModel
    except ImportError as missing:
        raise ImportError(
            f"{name}: transformers could not be imported: {missing}\nHINT: pip install 'vidkernels[transformers]'"
        ) from missing
    found = [m for m in model.modules() if isinstance(m, (TimesformerModel, VideoMAEModel, VivitModel))]
    if len(found) != 1:
        _check.fail(name, f"expected one VideoMAE, ViViT or TimeSformer in the model, found {len(found)}.",
                    error=TypeError, model=type(model).__name__)  # fmt: skip
    model = found[0]
    options = {"schedule": schedule, "pairing": pairing, "track_source": track_source, "proportional": proportional,
               "unmerge": unmerge}  # fmt: skip
    if isinstance(model, TimesformerModel):
        return _patch_timesformer(name, model, r, options)
    if model.config._attn_implementation != "sdpa":
        _check.fail(name, 'expected attn_implementation="sdpa".', 'model.set_attn_implementation("sdpa")',
                    attn_implementation=model.config._attn_implementation)  # fmt: skip
    if isinstance(model, VideoMAEModel):
        blocks, halves, protect = model.encoder.layer, (_attend, _feed_videomae), 0
        tube = (model.config.tubelet_size, model.config.patch_size, model.config.patch_size)
    else:
        blocks, halves, protect = model.layers, (_attend_vivit, _feed_vivit), 1
        tube = model.config.tubelet_size
    clip = (model.config.num_frames, *_pair(model.config.image_size))
    grid = None if pairing == "alternate" else tuple(length // step for length, step in zip(clip, tube))
    return sdpa.apply_token_merging(blocks, r, halves=halves, protect=protect, grid=grid, **options)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _attend(block: nn.Module, x: Tensor, **kwargs) -> Tensor:
    return block.attention(block.layernorm_before(x), **kwargs) + x


def _feed_videomae(block: nn.Module, x: Tensor) -> Tensor:
    return block.output(block.intermediate(block.layernorm_after(x)), x)


def _attend_vivit(block: nn.Module, x: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
    out, _ = block.attention(block.layernorm_before(x), attention_mask, **kwargs)
    return block.dropout(out) + x


def _feed_vivit(block: nn.Module, x: Tensor) -> Tensor:
    return block.dropout(block.mlp(block.layernorm_after(x))) + x


def _patch_timesformer(name: str, model: nn.Module, r, options: dict) -> sdpa.MergingPatch:
    config, blocks = model.config, list(model.encoder.layer)
    sdpa.refuse_patched(name, blocks)
    side = tuple(length // config.patch_size for length in _pair(config.image_size))
    divided = config.attention_type == "divided_space_time"
    frames = config.num_frames if config.attention_type == "joint_space_time" else 1
    grid = None if options["pairing"] == "alternate" else (frames, *side)
    if not divided:
        if frames > 1 and options["pairing"] != "alternate":
            # Its tokens lie (h, w, t), not (t, h, w).
            _check.fail(name, 'joint attention of TimeSformer merges with pairing="alternate" only.', **options)
        patch = sdpa.apply_token_merging(
            blocks, r, halves=(_attend_timesformer, _feed_timesformer), protect=1, grid=grid, **options
        )
    else:
        unmerge = options.pop("unmerge")
        options["track_source"] |= unmerge
        merging = TokenMerging(r, len(blocks), grid=grid, **options)
        for layer, block in enumerate(blocks):
            block._vk_merging = (merging, layer, unmerge and layer == len(blocks) - 1)
            sdpa.patch_class(block, _divided_forward)
        patch = sdpa.MergingPatch(merging, blocks)
    for block in blocks:
        attention = block.attention.attention
        sdpa.patch_class(attention, _sdpa_forward)
        patch.modules.append(attention)
    return patch


def _sdpa_forward(cls: type[nn.Module]) -> Callable:
    """TimesformerSelfAttention writes its attention out; here it calls scaled_dot_product_attention."""

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        if output_attentions:
            _check.fail("token merging", "the fused attention has no weights to return.", output_attentions=True)
        batch, length, _ = hidden_states.shape
        # view, not unflatten: torch.compile cannot trace the latter inside watch_attention.
        qkv = self.qkv(hidden_states).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(*qkv.unbind(0), dropout_p=dropout, scale=self.scale)
        return (out.transpose(1, 2).flatten(2),)

    return forward


def _attend_timesformer(block: nn.Module, x: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
    out = block.attention(block.layernorm_before(x), output_attentions=output_attentions)
    return (x + block.drop_path(out[0]),)


def _feed_timesformer(block: nn.Module, x: Tensor) -> Tensor:
    return x + block.drop_path(block.output(block.intermediate(block.layernorm_after(x))))


def _divided_forward(cls: type[nn.Module]) -> Callable:
    """Time attention along each place, space attention in each frame, MLP. Places merge before the MLP.

    tokens [B, 1 + P * T, D], class token first, then place by place; the places merge as vectors [B, P, T * D].
    """

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        merging, layer, unmerge = self._vk_merging
        batch, length, width = hidden_states.shape
        frames = self.config.num_frames
        places = (length - 1) // frames
        first, x = hidden_states[:, :1], hidden_states[:, 1:]
        along = self.temporal_attention(self.temporal_layernorm(x.reshape(batch * places, frames, width)))[0]
        x = x + self.temporal_dense(self.drop_path(along).reshape(batch, places * frames, width))

        across = x.view(batch, places, frames, width).transpose(1, 2).reshape(batch * frames, places, width)
        across = torch.cat([first.repeat_interleave(frames, 0), across], 1)
        keys: list[Tensor] = []
        with sdpa.watch_attention(_per_frame(merging, layer, frames), keys):
            across = self.attention(self.layernorm_before(across), output_attentions=output_attentions)[0]
        across = self.drop_path(across)
        first = first + across[:, :1].view(batch, frames, width).mean(1, keepdim=True)
        x = x + across[:, 1:].view(batch, frames, places, width).transpose(1, 2).reshape(batch, -1, width)

        # A place is its keys in all frames, side by side.
        metric = sdpa.key_metric(keys)[:, 1:].unflatten(0, (batch, frames)).transpose(1, 2).flatten(2)
        x = merging(x.reshape(batch, places, frames * width), metric, layer).reshape(batch, -1, width)
        x = _feed_timesformer(self, torch.cat([first, x], 1))
        if unmerge:
            first, x = x[:, :1], x[:, 1:].reshape(batch, -1, frames * width)
            x = torch.cat([first, merging.unmerge(x).reshape(batch, -1, width)], 1)
        return (x,)

    return forward


def _per_frame(merging: TokenMerging, layer: int, frames: int) -> Tensor | None:
    """[B * T, 1 + places]: the sizes of the places and, in front, the class token's."""
    size = merging.size(layer) if merging.proportional else None
    return None if size is None else F.pad(size.repeat_interleave(frames, 0), (1, 0), value=1.0)
