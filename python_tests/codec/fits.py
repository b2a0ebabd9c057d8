"""Running a fit to its end, and what its file must hold."""

import numpy as np
import torch

from vidkernels.codec import gaussian
from vidkernels.codec import open as open_vkv
from vidkernels.codec.protocol import Goal, Source


def run(work):
    """All that a fit reports, and what it returns."""
    reports = []
    while True:
        try:
            reports.append(next(work))
        except StopIteration as end:
            return reports, end.value


def fit(path, out, goal=None, gop=None, **cut):
    return run(gaussian.fit(Source(path, **cut), out, goal or Goal(psnr=30.0), gop=gop))


def psnr(a, b):
    return 10 * np.log10(255**2 / float((a.float() - b.float()).square().mean()))


def whole(out, frames):
    """The file says what its encoder saw, in every frame."""
    with open_vkv(out) as video:
        report = video.verify()
        assert report.profile == "exact"
        assert report.ok
        assert report.mismatches == ()
        assert report.frames == report.checked_frames == report.hashed_frames == len(video) == frames
        return torch.stack(list(video))
