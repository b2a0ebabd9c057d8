"""Pretrain a VideoMAE on two real clips and look at what it has learnt.

    python examples/pretrain_masked_video.py                  # minutes on two CPU cores
    python examples/pretrain_masked_video.py --smoke          # seconds
    python examples/pretrain_masked_video.py --resume         # goes on after Ctrl-C or a crash
    torchrun --nproc-per-node 2 examples/pretrain_masked_video.py --preset small

Writes into --out: checkpoint.pt, log.json, loss.png, reconstruction.png. Two short clips are no dataset: the
model learns them by heart, which is what makes the pictures readable after minutes. The point is that the
whole road works: decode, sample, mask, embed, train, save, resume, look.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from vidkernels import data, methods
from vidkernels.models import VideoViTConfig
from vidkernels.train import TrainConfig, Trainer, fastest_precision

CLIPS = ("bigbuckbunny", "bikes")


@dataclass(frozen=True)
class Preset:
    """A model and the clips that suit it."""

    encoder: VideoViTConfig
    decoder: VideoViTConfig
    tube: tuple[int, int, int]
    frames: int
    size: int
    batch_size: int
    steps: int
    learning_rate: float


PRESETS = {
    "smoke": Preset(
        encoder=VideoViTConfig.tiny(),
        decoder=VideoViTConfig(width=48, depth=1, heads=2),
        tube=(2, 8, 8),
        frames=4,
        size=48,
        batch_size=2,
        steps=6,
        learning_rate=1e-3,
    ),
    "tiny": Preset(
        encoder=VideoViTConfig(width=192, depth=4, heads=3),
        decoder=VideoViTConfig(width=128, depth=3, heads=2),
        tube=(2, 8, 8),
        frames=16,
        size=96,
        batch_size=2,
        steps=1800,
        learning_rate=1.2e-3,
    ),
    "small": Preset(
        encoder=VideoViTConfig.small(),
        decoder=VideoViTConfig(width=192, depth=4, heads=3),
        tube=(2, 16, 16),
        frames=16,
        size=224,
        batch_size=8,
        steps=2000,
        learning_rate=6e-4,
    ),
}
STRIDE = 4


def clips(preset: Preset, mode: str) -> data.VideoClipDataset:
    """Whole-height square clips of the two videos; only the moment is random."""
    return data.VideoClipDataset(
        [data.sample_clip(name) for name in CLIPS],
        data.ClipSampler(preset.frames, STRIDE, mode),
        size=preset.size,
        crop="center",
        flip=0.0,
        clips_per_video=8 * preset.batch_size if mode == "random" else 1,
        short_side=preset.size,
        cache=True,
    )


def build(preset: Preset, device: str) -> torch.nn.Module:
    """A VideoMAE of the preset's size, the same at every start."""
    torch.manual_seed(0)
    method = methods.get("videomae")
    # The paper's positions number all tokens in one row; a short run should not have to learn the grid.
    config = method.Config(preset.encoder, preset.decoder, preset.tube, positions="grid")
    return method(config).to(device)


def reconstruct(model: torch.nn.Module, preset: Preset) -> list[dict[str, torch.Tensor]]:
    """The middle of each video, each under a mask of its own."""
    device = next(model.parameters()).device
    model.eval()
    return [
        model.reconstruct(clip.unsqueeze(0).to(device), torch.Generator(device).manual_seed(2**20 + number))
        for number, clip in enumerate(clips(preset, "center"))
    ]


def psnr(result: dict[str, torch.Tensor], tube: tuple[int, int, int]) -> dict[str, float]:
    """PSNR in dB over the masked tubes: of the prediction, and of each tube's own mean colour.

    The prediction is given every tube's true mean and spread, so the mean colour is what it has to beat.
    """
    original, filled = result["original"].float(), result["reconstruction"].float()
    blocks = original.permute(0, 4, 1, 2, 3)
    mean = torch.nn.functional.avg_pool3d(blocks, tube)
    for axis, step in enumerate(tube):
        mean = mean.repeat_interleave(step, 2 + axis)
    changed = result["mask"].view(1, 1, *(n // step for n, step in zip(blocks.shape[2:], tube)))
    for axis, step in enumerate(tube):
        changed = changed.repeat_interleave(step, 2 + axis)
    changed = changed.expand_as(blocks)

    def decibel(other: torch.Tensor) -> float:
        error = (blocks - other)[changed].square().mean()
        return float(10 * torch.log10(255**2 / error))

    return {"prediction": decibel(filled.permute(0, 4, 1, 2, 3)), "mean_colour": decibel(mean)}


def draw_loss(losses: list[float], path: Path) -> None:
    """Every step's loss, and its running mean."""
    plt = _pyplot()
    window = max(1, len(losses) // 50)
    smooth = torch.tensor(losses).unfold(0, window, 1).mean(1)
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(range(1, len(losses) + 1), losses, color="0.8", linewidth=0.8, label="each step")
    axis.plot(range(window, len(losses) + 1), smooth, color="tab:blue", label=f"mean of {window}")
    axis.axhline(1.0, color="tab:red", linewidth=0.8, linestyle=":", label="predicting each tube's mean")
    axis.set(xlabel="step", ylabel="loss on masked tubes (normalised pixels)", title="VideoMAE pretraining")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_sheet(results: list[dict[str, torch.Tensor]], scores: list[dict[str, float]], path: Path) -> None:
    """Rows per video: original, what the encoder sees, reconstruction; columns are frames."""
    plt = _pyplot()
    frames = results[0]["original"].shape[1]
    shown = [round(i * (frames - 1) / 3) for i in range(min(4, frames))]
    rows = [(number, kind) for number in range(len(results)) for kind in ("original", "masked", "reconstruction")]
    figure, axes = plt.subplots(
        len(rows), len(shown), figsize=(2.3 * len(shown), 2.3 * len(rows) + 0.6), layout="constrained"
    )
    for line, (number, kind) in zip(axes, rows):
        for axis, frame in zip(line, shown):
            axis.imshow(results[number][kind][0, frame].cpu().numpy())
            axis.set(xticks=[], yticks=[])
        label = {
            "masked": "90% masked",
            "reconstruction": f"filled in\n{scores[number]['prediction']:.1f} dB",
        }
        line[0].set_ylabel(label.get(kind, CLIPS[number]))
    for axis, frame in zip(axes[0], shown):
        axis.set_title(f"frame {frame}")
    figure.supxlabel(
        "The model predicts each masked tube up to its brightness and contrast; to draw it, those are\n"
        "taken from the original tube, as in the VideoMAE paper. It was trained on these two videos.",
        fontsize=8,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("tiny", "small"), default="tiny")
    parser.add_argument("--smoke", action="store_true", help="a run of seconds, to see that everything works")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: the faster one here")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain_masked_video"))
    parser.add_argument("--resume", action="store_true", help="go on from --out/checkpoint.pt")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    preset = PRESETS["smoke" if options.smoke else options.preset]
    steps = options.steps or preset.steps
    rank = int(os.environ.get("RANK", 0))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)

    model = build(preset, device)
    config = TrainConfig(
        steps=steps,
        batch_size=preset.batch_size,
        learning_rate=preset.learning_rate,
        warmup_steps=max(1, steps // 20),
        precision=options.precision or fastest_precision(device),
        checkpoint_every=max(1, min(100, steps // 3)),
    )
    checkpoint = options.out / "checkpoint.pt"
    trainer = Trainer(model, clips(preset, "random"), config, checkpoint=checkpoint, show_progress=not options.quiet)
    report = trainer.fit(resume=options.resume)
    if rank != 0:
        return
    if report.interrupted:
        print(f"stopped after step {report.step} of {steps}; go on with --resume --out {options.out}")
        return

    results = reconstruct(model, preset)
    scores = [psnr(result, preset.tube) for result in results]
    draw_loss(report.losses, options.out / "loss.png")
    draw_sheet(results, scores, options.out / "reconstruction.png")
    log = {
        "method": "videomae",
        "preset": "smoke" if options.smoke else options.preset,
        "precision": config.precision,
        "parameters": sum(value.numel() for value in model.parameters()),
        "steps": report.step,
        "seconds": round(report.seconds, 1),
        "losses": report.losses,
        "psnr_db": dict(zip(CLIPS, scores)),
    }
    (options.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    last = report.losses[-max(1, steps // 20) :]
    print(f"loss {report.losses[0]:.3f} -> {sum(last) / len(last):.3f} in {report.seconds:.0f} s")
    for name, score in zip(CLIPS, scores):
        print(f"{name}: masked tubes {score['prediction']:.1f} dB, mean colours {score['mean_colour']:.1f} dB")
    print(f"see {options.out}/reconstruction.png and {options.out}/loss.png")


if __name__ == "__main__":
    main()
