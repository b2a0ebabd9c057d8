"""MergePlan: which tokens become one. A map of int32, never a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree

from vidkernels import _check

__all__ = ["MergePlan"]


@dataclass(frozen=True)
class MergePlan:
    """Where every token goes when some of them are merged.

    merged[b, m] = mean of the tokens n with source[b, n] == m
    Convention: places [0, count) are the merged tokens in order; a place that no token names is empty (size 0).
    Args:
        source: [B, N] int32, the place of every token, in [0, count).
        count: places of the result; a Python number, so shapes never wait for a device.
    Returns:
        plan: frozen; a pytree, so torch.compile and torch.export take and return it. `then`, `sizes`, `used`,
            `trim` and `identity` work on it.
    Example:
        >>> plan = MergePlan(torch.tensor([[0, 1, 1]], dtype=torch.int32), 2)
        >>> plan.sizes().tolist()
        [[1.0, 2.0]]
        >>> plan.then(MergePlan(torch.tensor([[0, 0]], dtype=torch.int32), 1)).source.tolist()
        [[0, 0, 0]]
    """

    source: torch.Tensor
    count: int

    @staticmethod
    def identity(batch: int, length: int, device: torch.device | str | None = None) -> MergePlan:
        """The plan that merges nothing."""
        order = torch.arange(length, dtype=torch.int32, device=device)
        return MergePlan(order.expand(batch, length).contiguous(), length)

    def then(self, following: MergePlan) -> MergePlan:
        """This plan and, on its result, another: one plan from the tokens before both to those after both."""
        if following.source.shape != (self.source.shape[0], self.count):
            _check.fail(
                "MergePlan.then",
                f"expected `following` to be a plan of {self.count} tokens, what this one leaves, of the same batch.",
                source=self.source, following=following.source,
            )  # fmt: skip
        return MergePlan(following.source.gather(1, self.source.long()), following.count)

    def sizes(self) -> torch.Tensor:
        """[B, count] float32: how many tokens each merged one stands for. Exact."""
        total = torch.zeros(self.source.shape[0], self.count, dtype=torch.int32, device=self.source.device)
        return total.scatter_add_(1, self.source.long(), torch.ones_like(self.source)).float()

    def used(self) -> torch.Tensor:
        """[B] int32: places up to the last one that some token names. Below `count` only after a threshold."""
        if self.source.shape[1] == 0:
            return self.source.new_zeros(self.source.shape[0])
        return self.source.amax(1) + 1

    def trim(self) -> MergePlan:
        """The same plan without the places that are empty in the whole batch. Waits for the device, and the count then
        depends on the data: for eager code."""
        used = self.used()
        return MergePlan(self.source, int(used.max()) if used.numel() else 0)


pytree.register_pytree_node(
    MergePlan,
    lambda plan: ([plan.source], plan.count),
    lambda leaves, count: MergePlan(leaves[0], count),
    serialized_type_name="vidkernels.MergePlan",
    to_dumpable_context=lambda count: count,
    from_dumpable_context=lambda count: count,
)
