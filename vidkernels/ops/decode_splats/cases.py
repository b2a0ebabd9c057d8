"""Named inputs of decode_splats. Equal bits everywhere: rtol is None."""

from __future__ import annotations

import torch

from vidkernels._case import Case


def inputs(count: int, height: int, width: int, channels: int = 3, size: float = 0.7, center: float = 0.5):
    """`count` Gaussians of random shape; `size` is their mean deviation times sqrt(count / pixels)."""

    def args(g, dtype):
        scale = size * (height * width / max(1, count)) ** 0.5
        means = torch.rand(count, 2, generator=g) * torch.tensor([float(width), float(height)])
        # l11, l22 > 0.4 px
        log = torch.randn(count, 2, generator=g) * 0.5
        diagonal = (scale * 2.0 ** (log * 1.4427)).clamp_min(0.4)
        shear = torch.randn(count, generator=g) * scale * 0.6
        cholesky = torch.stack((diagonal[:, 0], shear, diagonal[:, 1]), 1)
        colors = torch.rand(count, channels, generator=g) * 0.3 - 0.05
        background = torch.linspace(0.1, 0.4, channels)
        return means, cholesky, colors, background, height, width, center

    return args


def extreme(g, dtype):
    """Everything that must contribute nothing, or everywhere, or in one pixel."""
    nan, inf = float("nan"), float("inf")
    rows = [
        # x, y, l11, l21, l22
        (5, 5, 2, 0.5, 2), (nan, 5, 2, 0, 2), (5, inf, 2, 0, 2), (5, 5, nan, 0, 2), (5, 5, 2, nan, 2),
        (5, 5, 2, 0, -inf), (5, 5, 0, 0, 2), (5, 5, 2, 1, 0), (5, 5, -3, 1, -2), (9, 8, 1e-30, 0, 1e-30),
        (9.5, 8.5, 1e-20, 0, 1e-20), (7.5, 3.5, 0.01, 0, 0.01), (3, 3, 1e6, 0, 1e6), (3, 3, 1e25, 1e25, 1e25),
        (1e30, 3, 1e30, 0, 1e30), (-40, 12, 15, 0, 3), (500, 500, 2, 0, 2), (20, 10, 900, 900, 0.3),
        (20, 10, 0.3, 900, 0.5), (20, 10, 300, -300, 1e-3), (4, 4, 3e38, 3e38, 3e38), (11, 11, 1, 1e38, 1),
        (20, 10, 5e4, 5e4, 1),
    ]  # fmt: skip
    table = torch.tensor(rows, dtype=torch.float32)
    colors = torch.rand(len(rows), 2, generator=g) * 0.2
    colors[8, 1] = 3e38
    colors[15, 0] = nan
    return table[:, :2], table[:, 2:], colors, torch.tensor([0.2, 0.1]), 21, 37, 0.5


def _bytes(means, cholesky, colors, background, height, width, center):
    return 4 * (means.numel() + cholesky.numel() + colors.numel()), height * width * colors.shape[1]


def _case(name, args, measured=None):
    return Case(name, args, dtypes=(torch.float32,), bytes=measured)


def _empty_background(g, dtype):
    return torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(0, 3), torch.tensor([-1.0, 0.5, 7.0]), 5, 6, 0.5


CASES = {
    "decode_splats": [
        _case("tiny", inputs(7, 9, 11), _bytes),
        _case("tiny_pixel", inputs(3, 1, 1, channels=1)),
        _case("odd", inputs(63, 37, 131)),
        _case("odd_grey", inputs(131, 67, 41, channels=1, size=0.4)),
        _case("odd_pair", inputs(40, 33, 67, channels=2, center=0.0)),
        _case("odd_four", inputs(91, 33, 70, channels=4, size=2.0, center=0.3)),
        _case("empty", _empty_background),
        _case("empty_image", inputs(3, 0, 5)),
        _case("extreme", extreme),
        _case("real_720p_20k", inputs(20000, 720, 1280), _bytes),
    ]
}
