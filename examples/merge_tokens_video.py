"""See which tokens of a clip merge: every merged token in its own colour, over time.

    python examples/merge_tokens_video.py                            # Big Buck Bunny, colours of the patches decide
    python examples/merge_tokens_video.py --checkpoint runs/demo/checkpoint.pt    # the encoder that `make demo` trains
    python examples/merge_tokens_video.py --smoke                    # seconds, a synthetic clip

Writes into --out: merged.png (frames, merged tokens drawn in their mean colour with the borders between them, token
sizes) and log.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.nn import functional as F

import vidkernels as vk
from vidkernels.models.video_vit import VideoViTConfig, VideoViTEncoder, grid_positions
from vidkernels.nn.tokens.merging import TokenMerging
from vidkernels.train.checkpoint import load_checkpoint

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_clip(clip: str, frames: int, size: int, stride: int = 1) -> torch.Tensor:
    """[T, size, size, 3] uint8, from the middle of the video."""
    if clip == "synthetic":
        engine = vk.data.SceneEngine(frames, (size, size), sprites=3)
        return engine(torch.Generator().manual_seed(4))["video"]
    path = clip if Path(clip).exists() else vk.data.sample_clip(clip)
    with vk.data.VideoReader(path, size=size) as reader:
        start = max(0, (len(reader) - frames * stride) // 2)
        video = reader[start : start + frames * stride : stride]
    left = (video.shape[2] - size) // 2
    return video[:, :, left : left + size].contiguous()


def patch_colours(video: torch.Tensor, tube: tuple[int, int, int]) -> torch.Tensor:
    """[1, N, C]: what merges without a network. A 4 x 4 thumbnail of every tube, colours centred so that a cosine
    compares them as a distance would."""
    t, h, w = tube
    x = video.permute(3, 0, 1, 2).float() / 255 - 0.5
    x = F.avg_pool3d(x, (t, h // 4, w // 4), (t, h // 4, w // 4))  # [3, T', 4 H', 4 W']
    x = x.unfold(2, 4, 4).unfold(3, 4, 4)  # [3, T', H', W', 4, 4]
    # A constant beside the colours: dark grey and light grey point the same way without it.
    return F.pad(x.permute(1, 2, 3, 0, 4, 5).flatten(3).flatten(0, 2), (0, 1), value=1.0).unsqueeze(0)


def merge_features(features: torch.Tensor, share: float, steps: int) -> TokenMerging:
    """Merge step by step, by the features themselves."""
    merging, x = TokenMerging(share, steps, track_source=True), features
    for layer in range(steps):
        x = merging(x, x, layer)
    return merging


class Encoder(torch.nn.Module):
    """Embedding and encoder of a VideoMAE checkpoint; sizes are in the weights, a head has 64 channels."""

    def __init__(self, checkpoint: Path):
        super().__init__()
        weights = load_checkpoint(checkpoint)["model"]
        width, _, *self.tube = weights["embed.weight"].shape
        depth = len({name.split(".")[2] for name in weights if name.startswith("encoder.blocks.")})
        config = VideoViTConfig(width=width, depth=depth, heads=width // 64)
        self.embed = vk.nn.VisibleTubeEmbed(dim=width, tube=self.tube, grid=None, mean=MEAN, std=STD, position=None)
        self.encoder = VideoViTEncoder(config)
        self.load_state_dict({name: w for name, w in weights.items() if name.startswith(("embed.", "encoder."))})

    @torch.no_grad()
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        grid = tuple(length // step for length, step in zip(video.shape, self.tube))
        positions = grid_positions(grid, self.encoder.config.width)
        return self.encoder(self.embed(video.unsqueeze(0)) + positions)


def paint(video: torch.Tensor, source: torch.Tensor, tube: tuple[int, int, int]) -> torch.Tensor:
    """[T', H, W, 3] uint8: every merged token in the mean colour of its pixels, with the borders drawn."""
    t, h, w = tube
    frames, height, width, _ = video.shape
    grid = (frames // t, height // h, width // w)
    tubes = video.float().view(grid[0], t, grid[1], h, grid[2], w, 3).permute(0, 2, 4, 6, 1, 3, 5).flatten(4).mean(4)
    colour, size = torch.zeros(int(source.max()) + 1, 3), torch.zeros(int(source.max()) + 1, 1)
    index = source.long()
    colour.index_add_(0, index, tubes.reshape(-1, 3))
    size.index_add_(0, index, torch.ones(len(index), 1))
    picture = (colour / size)[index].view(*grid, 3)
    picture = picture.repeat_interleave(h, 1).repeat_interleave(w, 2)
    places = source.view(grid).repeat_interleave(h, 1).repeat_interleave(w, 2)
    border = torch.zeros_like(places, dtype=torch.bool)
    border[:, 1:] |= places[:, 1:] != places[:, :-1]
    border[:, :, 1:] |= places[:, :, 1:] != places[:, :, :-1]
    return picture.masked_fill(border[..., None], 255).byte()


def draw(video: torch.Tensor, merging: TokenMerging, tube: tuple[int, int, int], path: Path, shown: int = 6) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    source = merging.source()[0]
    t, h, w = tube
    grid = (video.shape[0] // t, video.shape[1] // h, video.shape[2] // w)
    merged = paint(video, source, tube)
    # The same colour in two frames is the same token.
    generator = torch.Generator().manual_seed(3)
    hues = torch.rand(int(source.max()) + 1, 3, generator=generator) * 0.8 + 0.2
    size = merging.size()[0]
    hues[size == 1] = 0.12
    tokens = hues[source.long()].view(*grid, 3)
    steps = torch.linspace(0, grid[0] - 1, min(shown, grid[0])).round().int().tolist()
    rows = ("clip", "merged", "same colour: one token")
    figure, axes = plt.subplots(3, len(steps), figsize=(2.4 * len(steps), 7.4), squeeze=False, layout="constrained")
    for column, step in enumerate(steps):
        for axis, picture in zip(axes[:, column], (video[step * t], merged[step], tokens[step])):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0, column].set_title(f"frame {step * t}")
    for axis, label in zip(axes[:, 0], rows):
        axis.set_ylabel(label)
    figure.suptitle(f"{len(source)} tokens -> {len(size)}; the largest stands for {int(size.max())}, dark = unmerged")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="bigbuckbunny", help="bigbuckbunny, bikes, synthetic, or a file")
    parser.add_argument("--share", type=float, default=0.1, help="of the tokens that are left")
    parser.add_argument("--checkpoint", type=Path, help="of examples/pretrain_masked_video.py")
    parser.add_argument("--out", type=Path, default=Path("runs/merge"))
    parser.add_argument("--smoke", action="store_true", help="small and synthetic")
    options = parser.parse_args(arguments)
    frames, size, tube = (4, 64, (2, 16, 16)) if options.smoke else (16, 224, (2, 16, 16))
    if options.smoke:
        options.clip = "synthetic"
    if options.checkpoint is None:
        video = read_clip(options.clip, frames, size)
        merging = merge_features(patch_colours(video, tube), options.share, steps=6)
    else:
        model = Encoder(options.checkpoint)
        tube = model.tube
        video = read_clip(options.clip, frames, 12 * tube[1], stride=4)  # as its training saw clips
        merging = TokenMerging(options.share, model.encoder.config.depth, track_source=True)
        model.encoder.merging = merging
        model(video)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(video, merging, tube, options.out / "merged.png")
    source, sizes = merging.source()[0], merging.size()[0]
    places = len(source) // (frames // tube[0])
    first = torch.arange(len(source)) // places
    spans = [int(first[source == place].unique().numel()) for place in range(len(sizes))]
    log = {
        "tokens": len(source),
        "merged": len(sizes),
        "largest": int(sizes.max()),
        "in_several_frames": sum(span > 1 for span in spans) / len(spans),
    }
    (options.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(
        f"{log['tokens']} tokens -> {log['merged']}, the largest stands for {log['largest']}, "
        f"{log['in_several_frames']:.0%} of them reach over frames; {options.out / 'merged.png'}"
    )


if __name__ == "__main__":
    main()
