"""Plain torch, the oracle."""

from __future__ import annotations

import torch


def _parts(cholesky):
    """Cholesky numbers, what is left of the variance in time, the variance, and which Gaussians have any."""
    l11, l21, l22, l31, l32, l33 = cholesky.unbind(-1)
    rest = l32 * l32 + l33 * l33
    variance = l31 * l31 + rest
    alive = (rest > 0) & (variance < float("inf"))
    one = torch.ones_like(rest)
    return (l11, l21, l22, l31, l32, l33), torch.where(alive, rest, one), torch.where(alive, variance, one), alive


def _factor(parts):
    """The lower factor of I - u u^T / S, u = (l31, l32): no difference of close numbers in it."""
    (_, _, _, l31, l32, l33), rest, variance, _ = parts
    return (rest / variance).sqrt(), -l31 * l32 / (variance * rest).sqrt(), l33 / rest.sqrt()


def slice_spacetime(means, cholesky, times):
    parts = _parts(cholesky)
    (l11, l21, l22, l31, l32, _), _, variance, alive = parts
    q11, q21, q22 = _factor(parts)
    gain = torch.stack((l11 * l31, l21 * l31 + l22 * l32), -1) / variance[:, None]
    ahead = times[:, None] - means[:, 2]
    flat = torch.where(alive[:, None], torch.stack((l11 * q11, l21 * q11 + l22 * q21, l22 * q22), -1), cholesky[:, :3])
    moved = torch.where(alive[:, None], means[:, :2] + gain * ahead[..., None], means[:, :2])
    weight = torch.where(alive, (-ahead * ahead / (2 * variance)).exp(), 0.0)
    return moved, flat, weight


def slice_spacetime_backward(grad_means2d, grad_cholesky2d, grad_weight, means, cholesky, times):
    parts = _parts(cholesky)
    (l11, l21, l22, l31, l32, l33), rest, variance, alive = parts
    q11, q21, q22 = _factor(parts)
    gain = torch.stack((l11 * l31, l21 * l31 + l22 * l32), -1) / variance[:, None]
    ahead = times[:, None] - means[:, 2]
    slope = grad_weight * (-ahead * ahead / (2 * variance)).exp() * ahead / variance
    to_ahead = torch.where(alive, (grad_means2d * gain).sum(-1) - slope, 0.0)
    grad_means = torch.cat((grad_means2d.sum(0), -to_ahead.sum(0)[:, None]), -1)
    grad_means = torch.where(alive[:, None], grad_means, 0.0)
    to_gain = (grad_means2d * ahead[..., None]).sum(0)
    to_variance = (slope * ahead).sum(0) / (2 * variance) - (to_gain * gain).sum(-1) / variance
    b1, b2 = (to_gain / variance[:, None]).unbind(-1)
    c1, c2, c3 = grad_cholesky2d.unbind(-1)
    to_q11, to_q21, to_q22 = c1 * l11 + c2 * l21, c2 * l22, c3 * l22
    both = (to_q11 * q11 - to_q21 * q21) / 2
    to_variance = to_variance - (to_q11 * q11 + to_q21 * q21) / (2 * variance)
    to_rest = to_variance + (both - to_q22 * q22 / 2) / rest
    share = (variance * rest).sqrt()
    grad_cholesky = torch.stack(
        (
            b1 * l31 + c1 * q11,
            b2 * l31 + c2 * q11,
            b2 * l32 + c2 * q21 + c3 * q22,
            b1 * l11 + b2 * l21 - to_q21 * l32 / share + 2 * l31 * to_variance,
            b2 * l22 - to_q21 * l31 / share + 2 * l32 * to_rest,
            to_q22 / rest.sqrt() + 2 * l33 * to_rest,
        ),
        -1,
    )
    return grad_means, torch.where(alive[:, None], grad_cholesky, 0.0), to_ahead.sum(1)
