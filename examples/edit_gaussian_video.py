"""Turn a clip into Gaussians that move, then read it out and edit it.

    python examples/edit_gaussian_video.py                        # a synthetic clip with exact flow and depth
    python examples/edit_gaussian_video.py --clip bigbuckbunny    # a real one; motion by block matching
    python examples/edit_gaussian_video.py --smoke                # seconds

Writes into --out: fit.png, flow.png, tracks.png, recoloured.png, removed.png, moved.png and log.json; depth.png and
stereo.png where the clip comes with depth.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from vidkernels import data, methods
from vidkernels.methods.splatting.splatter_a_video import Priors


@dataclass(frozen=True)
class Clip:
    """Frames [T, H, W, 3] uint8, what is known about them, and the thing to edit: its mask in some frames."""

    video: torch.Tensor
    priors: Priors
    masks: torch.Tensor
    mask_frames: list[int]


def synthetic(frames: int, size: tuple[int, int]) -> Clip:
    """Sprites over a still background; the nearest one is edited. It moves by more than its size, so that all of the
    background is seen at some time."""
    clip = data.SceneEngine(frames, size, sprites=2, radius=(0.14, 0.2), speed=(3.0, 4.0))(
        torch.Generator().manual_seed(4)
    )
    nearest = int(clip["depth"].flatten().argmin())
    mask = clip["ids"] == clip["ids"].flatten()[nearest]
    priors = Priors(flow=clip["flow"], depth=clip["depth"], labels=clip["ids"])
    return Clip(clip["video"], priors, mask, list(range(frames)))


def real(frames: int, size: tuple[int, int]) -> Clip:
    """A piece of Big Buck Bunny; the rabbit, found by its grey fur in the middle of the piece, is edited."""
    with data.VideoReader(data.sample_clip("bigbuckbunny"), size=size[0]) as reader:
        start = len(reader) // 2
        video = reader[start : start + frames]
    left = (video.shape[2] - size[1]) // 2
    video = video[:, :, left : left + size[1]].contiguous()
    flow, trusted = match_blocks(video)
    picture = video[frames // 2].float()
    grey_fur = (picture.amax(2) - picture.amin(2) < 45) & (picture.mean(2) > 50)
    y, x = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    place = (x > torch.where(y < 0.4, 0.08, 0.21)) & (x < 0.48) & (y > 0.05) & (y < 0.95)
    # A majority of the neighbourhood: no stray pixels of rock or bark.
    mask = F.avg_pool2d((grey_fur & place).float()[None], 5, 1, 2) > 0.5
    return Clip(video, Priors(flow=flow, flow_valid=trusted), mask, [frames // 2])


def match_blocks(video: torch.Tensor, block: int = 9, reach: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel's neighbourhood is found in the next frame: flow [T - 1, 2, H, W], and where to trust it.

    The cheapest whole-pixel step in a window wins; it is trusted where it beats standing still or where standing still
    is nearly exact.
    """
    grey = video.float().mean(3).unsqueeze(1)
    here, there = grey[:-1], F.pad(grey[1:], [reach] * 4, mode="replicate")
    height, width = grey.shape[2:]
    steps = sorted(
        ((dx, dy) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)),
        key=lambda step: step[0] ** 2 + step[1] ** 2,  # of equal costs, the shortest step
    )
    costs = []
    for dx, dy in steps:
        moved = there[:, :, reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        costs.append(F.avg_pool2d((here - moved).abs(), block, 1, block // 2, count_include_pad=False)[:, 0])
    cost, best = torch.stack(costs).min(0)
    flow = torch.tensor(steps, dtype=torch.float32)[best].permute(0, 3, 1, 2).contiguous()
    return flow, (cost < 0.7 * costs[0]) | (costs[0] < 3)


def draw(path: Path, pictures: list[tuple[str, torch.Tensor]], title: str, rows: int = 1) -> None:
    """Pictures [H, W, 3] in rows of equal length."""
    plt = _pyplot()
    columns = len(pictures) // rows
    height, width = pictures[0][1].shape[:2]
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 3.2 * height / width * rows + 0.7), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, picture) in zip(axes.flat, pictures):
        axis.imshow(picture.numpy())
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def colour_wheel(flow: torch.Tensor, largest: float) -> torch.Tensor:
    """Flow [2, H, W] as colours: hue is direction, strength is length."""
    from matplotlib.colors import hsv_to_rgb

    angle = torch.atan2(flow[1], flow[0]) / (2 * torch.pi) + 0.5
    length = (flow.norm(dim=0) / max(largest, 1e-6)).clamp(0, 1)
    hsv = torch.stack([angle, length, torch.ones_like(length)], 2)
    return torch.from_numpy(hsv_to_rgb(hsv.numpy()))


def grey(depth: torch.Tensor) -> torch.Tensor:
    """Depth [H, W] as brightness, near is bright."""
    low, high = depth.amin(), depth.amax()
    return ((high - depth) / (high - low).clamp(min=1e-6)).unsqueeze(2).expand(-1, -1, 3)


def draw_tracks(path: Path, scene: torch.nn.Module, clip: Clip, times: list[float]) -> None:
    """Points on the edited thing and around it, followed from the first frame through all."""
    plt = _pyplot()
    size = tuple(clip.video.shape[1:3])
    y, x = torch.meshgrid(
        torch.arange(size[0] / 12, size[0], size[0] / 6), torch.arange(size[1] / 16, size[1], size[1] / 8),
        indexing="ij",
    )  # fmt: skip
    points = torch.stack([x.flatten(), y.flatten()], 1)
    path_of, visible = scene.tracks(points, times[0], times, size)
    figure, axis = plt.subplots(figsize=(8, 8 * size[0] / size[1] + 0.5), layout="constrained")
    # Pixel (0, 0) covers 0 to 1.
    axis.imshow(scene.video([times[-1]], size)[0].numpy(), extent=(0, size[1], size[0], 0))
    for number in range(len(points)):
        line = path_of[:, number]
        colour = plt.cm.hsv(number / len(points))
        axis.plot(line[:, 0], line[:, 1], color=colour, linewidth=1.5)
        seen = bool(visible[-1, number])
        axis.plot(*line[-1], "o", color=colour, markersize=5, markerfacecolor=colour if seen else "none")
    axis.set(xlim=(0, size[1]), ylim=(size[0], 0), xticks=[], yticks=[])
    axis.set_title("from the first frame to the last; an empty dot is hidden", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", choices=("synthetic", "bigbuckbunny"), default="synthetic")
    parser.add_argument("--smoke", action="store_true", help="a run of seconds, to see that everything works")
    parser.add_argument("--steps", type=int, help="instead of 1000")
    parser.add_argument("--out", type=Path, default=Path("runs/edit_gaussian_video"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    frames, size = (5, (24, 36)) if options.smoke else (16, (96, 144))
    clip = synthetic(frames, size) if options.clip == "synthetic" else real(frames, size)

    method = methods.get("splatter_a_video")
    if options.smoke:
        config = replace(method.Config.tiny(), gaussians=150, max_gaussians=250, steps=80)
    else:
        config = replace(method.Config.small(), gaussians=2500, max_gaussians=5000)
    if options.steps:
        config = replace(config, steps=options.steps)
    model = method(config)
    start = time.perf_counter()
    losses = model.fit(clip.video, priors=clip.priors, generator=torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - start
    scene, size = model.scene, tuple(clip.video.shape[1:3])
    times = torch.linspace(0, 1, frames).tolist()
    fitted = scene.video(times, size)
    psnr = float(10 * torch.log10(255**2 / (fitted.float() - clip.video.float()).square().mean()))

    shown = [round(i * (frames - 1) / 3) for i in range(4)]
    moments = [times[i] for i in shown]
    titles = [f"frame {i}" for i in shown]

    def strip(video: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        return list(zip(titles, video))

    draw(
        options.out / "fit.png",
        strip(clip.video[shown]) + strip(fitted[shown]),
        f"clip, and its Gaussians at {psnr:.1f} dB",
        2,
    )
    flows = [scene.flow(times[i], times[min(i + 1, frames - 1)], size) for i in shown[:-1]]
    priors = [clip.priors.flow[i] for i in shown[:-1]]
    largest = max(float(flow.norm(dim=0).max()) for flow in priors)
    draw(
        options.out / "flow.png",
        [(f"prior, frame {i}", colour_wheel(flow, largest)) for i, flow in zip(shown, priors)]
        + [(f"rendered, frame {i}", colour_wheel(flow, largest)) for i, flow in zip(shown, flows)],
        "optical flow to the next frame",
        rows=2,
    )
    if clip.priors.depth is not None:  # without it, depth is no more than an order
        depths = torch.stack([grey(scene.depth(moment, size)) for moment in moments])
        draw(options.out / "depth.png", strip(depths), "rendered depth, near is bright")
        left, right = scene.stereo(0.5, (size[0] * 2, size[1] * 2), baseline=0.12)
        both = torch.cat([left[..., :1], right[..., 1:]], 2)
        draw(
            options.out / "stereo.png",
            [("left", left), ("right", right), ("for red and cyan glasses", both)],
            "a stereo pair at twice the size",
        )
    draw_tracks(options.out / "tracks.png", scene, clip, times)

    # Without a depth prior, what is behind the mask's surface cannot be told from it.
    tolerance = 1.0 if clip.priors.depth is None else 0.15
    chosen = scene.select_by_mask(clip.masks, [times[i] for i in clip.mask_frames], tolerance=tolerance)
    # Orange, with the shading as it was.
    recoloured = scene.edited(
        chosen, color=lambda colors: colors.mean(1, keepdim=True) * colors.new_tensor([2, 1, 0.2])
    )
    draw(options.out / "recoloured.png", strip(recoloured.video(moments, size)), "the selection recoloured")
    removed = scene.edited(chosen, remove=True)
    title = "the selection removed; what it hides all the time stays black"
    draw(options.out / "removed.png", strip(removed.video(moments, size)), title)
    moved = scene.edited(chosen, shift=(0.3, -0.3, -0.5))
    draw(options.out / "moved.png", strip(moved.video(moments, size)), "the selection moved right, up and to the front")
    log = {
        "clip": options.clip,
        "steps": config.steps,
        "gaussians": scene.count,
        "selected": int(chosen.sum()),
        "seconds": round(seconds, 1),
        "psnr_db": psnr,
        "losses": losses,
    }
    (options.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(f"{scene.count} Gaussians, {psnr:.1f} dB after {seconds:.0f} s; {int(chosen.sum())} of them edited")
    print(f"see {options.out}/*.png")


if __name__ == "__main__":
    main()
