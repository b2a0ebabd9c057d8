"""Posing by a tree of bones, and the way back from a posed point to the rest pose."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidkernels import _check

__all__ = ["bone_transforms", "inverse_skinning"]


def bone_transforms(
    joints: torch.Tensor,
    parents: Sequence[int],
    rotations: torch.Tensor,
    translation: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rigid motion of every bone of a tree: forward kinematics.

    M_k = M_parent(k) [R_k about joint_k], M_root = translation [R_root about joint_root]
    Args:
        joints: [K, 3], where bone k turns, in the rest pose.
        parents: parent of each bone; below its own index, -1 for a root.
        rotations: [..., K, 3, 3], local rotation of each bone; the identity is the rest pose.
        translation: [..., 3], of the roots; None: 0.
    Returns:
        transforms: [..., K, 4, 4], observed coordinates from rest coordinates. Differentiable.
    Raises:
        ValueError: shapes that do not fit; a parent that comes after its child.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Loper et al. 2015, "SMPL", eq. 3 and 4 (without pose blend shapes).
    Example:
        >>> turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
        >>> rotations = torch.stack([turn, torch.eye(3)])
        >>> joints = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
        >>> (bone_transforms(joints, [-1, 0], rotations)[1] @ torch.tensor([2.0, 0, 0, 1])).tolist()
        [0.0, 2.0, 0.0, 1.0]
    """
    bones = len(parents)
    if joints.shape != (bones, 3) or rotations.shape[-3:] != (bones, 3, 3):
        _check.fail("bone_transforms", "expected `joints` [K, 3], `rotations` [..., K, 3, 3] and K `parents`.",
                    joints=joints, rotations=rotations, parents=list(parents))  # fmt: skip
    shift = joints - (rotations @ joints[:, :, None])[..., 0]  # x -> R (x - j) + j
    motions = []
    for k, parent in enumerate(parents):
        if parent >= k:
            _check.fail("bone_transforms", f"expected the parent of bone {k} to come before it.", parents=list(parents))
        rotation, offset = rotations[..., k, :, :], shift[..., k, :]
        if parent < 0:
            offset = offset if translation is None else offset + translation
        else:
            above, base = motions[parent]
            rotation, offset = above @ rotation, (above @ offset[..., None])[..., 0] + base
        motions.append((rotation, offset))
    rotation = torch.stack([r for r, _ in motions], -3)
    offset = torch.stack([o for _, o in motions], -2)
    top = torch.cat([rotation, offset[..., None]], -1)
    row = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, row], -2)


def inverse_skinning(
    points: torch.Tensor, transforms: torch.Tensor, volume: torch.Tensor, bounds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pull observed points back to the rest pose, each bone vouching for its own guess.

    x_k = M_k^-1 x,  w_k = volume_k(x_k),  rest = sum_k w_k x_k / sum_k w_k,  likelihood = sum_k w_k
    Args:
        points: [N, 3], observed.
        transforms: [K, 4, 4], observed from rest coordinates, rigid; see `bone_transforms`.
        volume: [K, D, H, W], skinning weights in the rest pose, not negative, sampled trilinearly over the box, 0
            outside of it; W runs along x, H along y, D along z.
        bounds: [2, 3], lowest and highest corner of that box.
    Returns:
        rest: [N, 3] (the guess of bone 0 where no bone has weight), likelihood: [N], how much the point belongs to the
            figure. Differentiable in everything.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Weng et al. 2022 (HumanNeRF), arXiv 2201.04127, eq. 4 and 5.
    Example:
        >>> volume = torch.ones(1, 2, 2, 2)
        >>> move = torch.eye(4)
        >>> move[0, 3] = 0.5
        >>> bounds = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
        >>> inverse_skinning(torch.tensor([[0.5, 0, 0]]), move[None], volume, bounds)[0].tolist()
        [[0.0, 0.0, 0.0]]
    """
    bones = volume.shape[0]
    if transforms.shape != (bones, 4, 4) or bounds.shape != (2, 3) or points.dim() != 2:
        _check.fail("inverse_skinning", "expected `points` [N, 3], `transforms` [K, 4, 4], `bounds` [2, 3].",
                    points=points, transforms=transforms, volume=volume, bounds=bounds)  # fmt: skip
    rotation, offset = transforms[:, :3, :3], transforms[:, :3, 3]
    guesses = (points[None] - offset[:, None]) @ rotation  # [K, N, 3]: R^T (x - o)
    place = 2 * (guesses - bounds[0]) / (bounds[1] - bounds[0]) - 1
    weights = torch.nn.functional.grid_sample(
        volume[:, None], place[:, None, None], padding_mode="zeros", align_corners=True
    ).view(bones, -1)
    likelihood = weights.sum(0)
    shares = weights / likelihood.clamp(min=1e-8)
    nobody = (likelihood <= 1e-8).to(shares.dtype)
    shares = torch.cat([shares[:1] + nobody, shares[1:]])
    return (shares[..., None] * guesses).sum(0), likelihood
