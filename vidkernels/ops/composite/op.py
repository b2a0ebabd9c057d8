"""composite: front-to-back "over" along rays; its backward needs no division, so alpha = 1 is no special case."""

from __future__ import annotations

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.composite import reference


def _fake(values, alpha):
    rays, samples, channels = values.shape
    return values.new_empty(rays, channels), values.new_empty(rays, samples), values.new_empty(rays)


def _native(kernel, values, alpha):
    rays, samples, channels = values.shape
    shapes = ((rays, channels), (rays, samples), (rays,))
    outputs = tuple(empty(shape, values.dtype, values.device) for shape in shapes)
    kernel(values.contiguous(), alpha.contiguous(), *outputs)
    return outputs


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.set_materialize_grads(False)  # mostly only `out` is used; no zeros of the weights' size for that


def _backward(ctx, *grads):
    if all(g is None for g in grads):
        return None, None
    return composite_backward(*grads, *ctx.saved_tensors, backend=ctx.vk_backend)


def _fake_backward(grad_out, grad_weights, grad_transmittance, values, alpha):
    return values.new_empty(values.shape), alpha.new_empty(alpha.shape)


def _native_backward(kernel, grad_out, grad_weights, grad_transmittance, values, alpha):
    outputs = tuple(empty(t.shape, t.dtype, t.device) for t in (values, alpha))
    grads = (None if g is None else g.contiguous() for g in (grad_out, grad_weights, grad_transmittance))
    kernel(*grads, values.contiguous(), alpha.contiguous(), *outputs)
    return outputs


composite = define(
    OpSpec(
        name="composite",
        schema="(Tensor values, Tensor alpha) -> (Tensor, Tensor, Tensor)",
        reference=reference.composite,
        fake=_fake,
        native=_native,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
        batched=("values", "alpha"),
    )
)

composite_backward = define(
    OpSpec(
        name="composite_backward",
        schema="(Tensor? grad_out, Tensor? grad_weights, Tensor? grad_transmittance, Tensor values, Tensor alpha)"
        " -> (Tensor, Tensor)",
        reference=reference.composite_backward,
        fake=_fake_backward,
        native=_native_backward,
        batched=("grad_out", "grad_weights", "grad_transmittance", "values", "alpha"),
    )
)
