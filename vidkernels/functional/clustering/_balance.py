"""Column potentials of a problem whose rows come in blocks, or lie in several processes: K numbers per iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from vidkernels.ops.sinkhorn.op import sinkhorn_step


def column_potential(
    blocks: Callable[[], Iterable[torch.Tensor]],
    rows: int,
    like: torch.Tensor,
    cols: int,
    epsilon: float,
    iterations: int,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """[K] log v after `iterations` updates, the same in every process.

    Args:
        blocks: called once per iteration, gives scores [n, K] that together are this process's rows.
        rows: how many that are; processes may hold different numbers, and none.
        like: a tensor of the dtype and on the device of the result.
        cols: K.
    """
    wide = torch.float64  # K numbers: their exponentials keep the range of a logarithm in float32
    count = torch.tensor([rows], dtype=wide, device=like.device)
    log_v = None
    for _ in range(iterations):
        total = like.new_full((cols,), -torch.inf, dtype=wide)
        for block in blocks():
            given = None if log_v is None else log_v.to(like.dtype)[None]
            total = torch.logaddexp(
                total, sinkhorn_step(block[None], epsilon, None, given, backend=backend)[1][0].to(wide)
            )
        top = total.max().reshape(1)
        if group is not None:
            dist.all_reduce(top, dist.ReduceOp.MAX, group)
        top = top.nan_to_num(neginf=0.0)
        sums = torch.cat([(total - top).exp(), count])
        if group is not None:
            dist.all_reduce(sums, dist.ReduceOp.SUM, group)
        log_sum = sums[:-1].log() + top - sums[-1].log()
        step = -torch.log(torch.tensor(float(cols), dtype=wide, device=like.device)) - log_sum
        log_v = torch.where(log_sum == -torch.inf, log_sum, step if log_v is None else log_v + step)
    return log_v.to(like.dtype)
