"""The whole pretraining step of VideoMAE, ours against plain PyTorch: time and peak memory.

python -m benchmarks.pretrain_step [--batch 8] [--preset small] [--rounds 5] [--threads N] [--json FILE]

A step starts from uint8 clips: mask, forward, backward, AdamW. Times are medians of rounds in which the
variants take turns in one process; the peak of resident memory comes from one fresh process per variant that
runs three steps. The peers load the same weights and get the same masks. The cpu column is the processor
time of all threads, which other programs disturb less than the clock. Both precisions are shown, each
against itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vidkernels import methods

# Either "python -m benchmarks.pretrain_step" or run by path.
try:
    from benchmarks.peers.plain_videomae import PlainVideoMAE
    from benchmarks.timing import turns
except ImportError:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from benchmarks.peers.plain_videomae import PlainVideoMAE
    from benchmarks.timing import turns

VARIANTS = ("vidkernels", "plain", "plain+sdpa")


def make_step(
    variant: str,
    precision: str,
    *,
    preset: str = "small",
    batch: int = 8,
    clip_size: tuple[int, int, int] = (16, 224, 224),
) -> Callable[[], float]:
    """A function that makes one training step on a fixed random clip and returns the loss."""
    torch.manual_seed(0)
    cls = methods.get("videomae")
    ours = cls(getattr(cls.Config, preset)())
    clip = torch.randint(0, 256, (batch, *clip_size, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    if variant == "vidkernels":
        model = ours

        def loss() -> torch.Tensor:
            return ours.training_step(clip, generator)["loss"]
    else:
        attention = "fused" if variant.endswith("sdpa") else "explicit"
        model = PlainVideoMAE(ours.config, ours.grid(clip), attention)
        model.load_state_dict(ours.state_dict())

        def loss() -> torch.Tensor:
            return model(model.normalise(clip), ours.mask(clip, generator).to_bool())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def time_step(precision: str, *, rounds: int = 5, variants: tuple[str, ...] = VARIANTS, **size) -> dict:
    """{variant: {median_s, min_s, max_s, cpu_s, first_loss}}, the variants taking turns."""
    steps = {variant: make_step(variant, precision, **size) for variant in variants}
    losses = {variant: step() for variant, step in steps.items()}  # also warms up
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    busy: dict[str, list[float]] = {variant: [] for variant in variants}
    for _, variant in turns(variants, rounds):
        start, work = time.perf_counter(), time.process_time()
        steps[variant]()
        times[variant].append(time.perf_counter() - start)
        busy[variant].append(time.process_time() - work)
    return {
        variant: {
            "median_s": statistics.median(values),
            "min_s": min(values),
            "max_s": max(values),
            "cpu_s": statistics.median(busy[variant]),
            "first_loss": losses[variant],
        }
        for variant, values in times.items()
    }


def peak_memory(variant: str, precision: str, preset: str, batch: int) -> float:
    """MB of resident memory at the worst moment of three steps, in a process of its own."""
    command = [sys.executable, __file__, "--peak", variant, "--precision", precision]
    command += ["--preset", preset, "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _peak_so_far() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a new process inherits from the one that started it.
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="only this one")
    parser.add_argument("--threads", type=int, help="of torch; on a shared machine, take 1 and read the cpu column")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--peak", metavar="VARIANT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = {"preset": options.preset, "batch": options.batch}
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak:
        step = make_step(options.peak, options.precision, **size)
        for _ in range(3):
            step()
        print(_peak_so_far())
        return

    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, **size}
    for precision in (options.precision,) if options.precision else ("fp32", "bf16"):
        rows = time_step(precision, rounds=options.rounds, **size)
        for variant in rows:
            rows[variant]["peak_mb"] = peak_memory(variant, precision, options.preset, options.batch)
        result[precision] = rows
        ours = rows["vidkernels"]
        for variant, row in rows.items():
            print(
                f"{precision}  {variant:11s} {row['median_s'] * 1e3:7.0f} ms [{row['min_s'] * 1e3:.0f}, "
                f"{row['max_s'] * 1e3:.0f}]  {row['median_s'] / ours['median_s']:.2f}x  "
                f"cpu {row['cpu_s'] * 1e3:.0f} ms {row['cpu_s'] / ours['cpu_s']:.2f}x  "
                f"peak {row['peak_mb']:.0f} MB  first loss {row['first_loss']:.5f}"
            )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
