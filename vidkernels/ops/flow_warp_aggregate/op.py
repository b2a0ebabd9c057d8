"""flow_warp_aggregate: neighbour pictures moved by flows and blended by a softmax; and its gradients."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.flow_warp_aggregate import reference


def _rows(x):
    """[B, K, H, W, C] without gaps."""
    return x.permute(0, 1, 3, 4, 2).contiguous()


def _fake(features, flows, logits):
    batch, _, channels, height, width = features.shape
    return features.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)


def _supports(backend, features, *rest):
    if backend != "reference" and features.dtype is torch.float64:
        return f"the {backend} kernel computes in float32"
    return None


def _supports_backward(backend, grad, features, *rest):
    return _supports(backend, features)


def _native(kernel, features, flows, logits):
    batch, _, channels, height, width = features.shape
    out = empty((batch, height, width, channels), features.dtype, features.device)
    kernel(_rows(features), flows.float().contiguous(), logits.float().contiguous(), out)
    return out.permute(0, 3, 1, 2)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx, grad):
    with_features = ctx.needs_input_grad[0]
    by_features, *rest = flow_warp_aggregate_backward(grad, *ctx.saved_tensors, with_features, backend=ctx.vk_backend)
    return by_features if with_features else None, *rest


def _fake_backward(grad, features, flows, logits, with_features):
    batch, neighbours, channels, height, width = features.shape
    batch = batch if with_features else 0
    by_features = features.new_empty(batch, neighbours, height, width, channels).permute(0, 1, 4, 2, 3)
    return by_features, flows.new_empty(flows.shape), logits.new_empty(logits.shape)


def _native_backward(kernel, grad, features, flows, logits, with_features):
    features = _rows(features)
    by_features = empty((features.shape[0] if with_features else 0, *features.shape[1:]), features.dtype, grad.device)
    by_flows = empty(flows.shape, torch.float32, flows.device)
    by_logits = empty(logits.shape, torch.float32, logits.device)
    sums = magnitudes = None
    if with_features and kernel.__name__.endswith("_cuda"):
        sums = torch.empty(features.shape, dtype=torch.int64, device=features.device)
        magnitudes = torch.empty((2, features.shape[0]), dtype=torch.int32, device=features.device)
    grad = grad.to(features.dtype).permute(0, 2, 3, 1).contiguous()
    kernel(grad, features, flows.float().contiguous(), logits.float().contiguous(),
           by_features if with_features else None, by_flows, by_logits, sums, magnitudes)  # fmt: skip
    return by_features.permute(0, 1, 4, 2, 3), by_flows.to(flows.dtype), by_logits.to(logits.dtype)


flow_warp_aggregate = define(
    OpSpec(
        name="flow_warp_aggregate",
        schema="(Tensor features, Tensor flows, Tensor logits) -> Tensor",
        reference=reference.flow_warp_aggregate,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
    )
)

flow_warp_aggregate_backward = define(
    OpSpec(
        name="flow_warp_aggregate_backward",
        schema="(Tensor grad, Tensor features, Tensor flows, Tensor logits, bool with_features) "
        "-> (Tensor, Tensor, Tensor)",
        reference=reference.flow_warp_aggregate_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports_backward,
    )
)
