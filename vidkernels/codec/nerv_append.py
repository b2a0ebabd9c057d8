"""More video behind a finished file: the decoder's weights stay, and what the new frames need is coded as a difference.

Nothing that was in the file changes, so the frames that it had stay what they were, bit for bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch

from .. import _check
from .bits import pack_varint
from .clip import Clip
from .container import ContainerWriter, frame_hash
from .nerv_families import NETWORKS
from .nerv_model import APPENDED, SIDE
from .nerv_plan import stages
from .nerv_train import STAGES, Plan, Trainer
from .nerv_video import NetworkFile
from .protocol import Progress, Source

_GOP = 66
_RATE = 2e-3  # of learning: the weights are good ones already
_EVERY = 50  # steps between two reports


def append(
    path: str | os.PathLike, source: Source, *, steps: int = 2000, price: float = 0.02, gop: int | None = None
) -> Generator[Progress, None, Source]:
    """Fit more frames with the network of `path` and add them to the file. Each step of the generator is a report.

    Args:     path: a `.vkv` file of the model "latent". source: the frames; they are scaled to the file's size.
              steps: of the fit. price: as of `Plan`. gop: frames of a group of pictures.
    Returns:  the source, at the generator's end. Until then the file is what it was, also after an interruption.
    Raises:   ValueError: a file of another model, or one to which 999 videos were appended.
    """
    began, path = time.monotonic(), Path(path)
    from .video import open as open_video

    with open_video(path) as video:
        if not isinstance(video, NetworkFile) or video.reader.chunk(SIDE) is not None:
            _check.fail("append", f"a file of the model {video.model!r} takes no more frames.", path=str(path))
        header, first = video.reader.header, len(video)
        base, used = video.parts[0][1].weights, sum(map(bool, map(APPENDED.fullmatch, video.reader.kinds)))
        end = video.reader.gops[-1].end_pts
    if used == 999:
        _check.fail("append", "the file holds 999 appended videos already.", path=str(path))
    size = (header.height, header.width)
    clip = Clip(replace(source, path=Path(os.path.abspath(source.path)), size=size))
    frames = clip.load(0, len(clip))
    plan = Plan(
        header.config,
        stages(steps, NETWORKS[header.model].shares),
        min(gop or _GOP, len(clip)),
        header.exact,
        rate=_RATE,
        price=price,
    )
    network = NETWORKS[header.model].network(header.config, size, torch.Generator().manual_seed(0))
    trainer, total = Trainer(network, frames, None, plan, base=base), sum(plan.steps)
    for stage in range(len(STAGES)):
        trainer.enter(stage)
        while trainer.into < plan.steps[stage]:
            trainer.step()
            if trainer.at % _EVERY == 0:
                yield Progress(trainer.at, total, len(clip), 0, None, 0, time.monotonic() - began)
    written = trainer.written()
    values = trainer.psnr(written)
    drawer = written.numbers.drawer(network)
    ticks = [round((s - clip.seconds[0]) / header.time_base) for s in clip.seconds]
    with ContainerWriter.append(path) as writer:
        if writer.frames != first:
            _check.fail("append", "the file has grown in the meantime.", path=str(path))
        writer.add_chunk(f"D{used + 1:03}", pack_varint(first) + written.chunk)
        for k, layer in enumerate(written.layers):
            at = k * plan.gop
            latents = torch.from_numpy(written.latents[at : at + plan.gop])
            hashes = [frame_hash(drawer.draw(x, first + at + i)) for i, x in enumerate(latents)]
            writer.add_gop(first + at, [end + t for t in ticks[at : at + len(hashes)]], {0: layer}, hashes)
    size = path.stat().st_size
    yield Progress(total, total, len(clip), 0, sum(values) / len(values), size, time.monotonic() - began)
    return source
