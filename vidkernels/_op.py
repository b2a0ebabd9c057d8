"""One declaration per op gives the torch.library registration and the fast eager path. The only such place.

An `OpSpec` names the schema once; `define` registers it (implementation, fake, autograd, vmap, autocast) and returns
a callable with two roads to the same kernel:

    torch.compile, export, fake tensors, subclasses, modes   -> torch.ops.vidkernels.<name>   (~10 us)
    torch.func transforms                                    -> an autograd.Function with setup_context and vmap
    everything else                                          -> the kernel, or a plain autograd.Function (~2 us)

The second road exists because register_autograd ops fail under torch.func.grad (torch 2.13), the third because most
calls need none of the machinery. Private torch names used here are covered by python_tests/test_op.py.

An op may change tensors in place, marked `Tensor(a!)` in its schema; it then returns nothing and has no derivative.

Every schema gets a last argument `str? backend=None`, so that a forced backend survives compilation and reaches the
backward pass.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack

from vidkernels import _backend, _native

_Tensor = torch.Tensor
_Parameter = torch.nn.Parameter
_is_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled
_autocast_enabled = torch.is_autocast_enabled

registry: dict[str, Op] = {}
_library = torch.library.Library("vidkernels", "DEF")


@dataclass(frozen=True)
class OpSpec:
    """What an op is.

    name: torch.ops.vidkernels.<name>; native kernels are called <name>_cpu and <name>_cuda.
    schema: torch schema without the name and without `backend`, e.g. "(Tensor tokens, Tensor index) -> Tensor".
        The first plain `Tensor` (not `Tensor?`) decides the device; every op has one. `Tensor(a!)` is changed in place.
    reference: plain torch, the oracle; works on every device and dtype.
    fake: the same signature, returns empty outputs of the right shape and dtype.
    native: native(kernel, *args) allocates outputs, calls `kernel(...)` and returns them; one function serves cpu,
        cuda and simt, because their kernels share a signature.
    triton: "module:function" with the reference's signature, imported at first use.
    supports: supports(backend, *args) -> None, or the reason why that backend cannot take these arguments.
    setup_context, backward: as for torch.autograd.Function; `inputs` ends with the backend. `backward` returns one
        gradient per schema argument (without the backend's).
    autocast: "float32" or "lower" (the autocast dtype) casts floating-point arguments; None leaves them.
    plain: plain(op, default) -> what plain eager calls that need a gradient apply instead of `default`, with the
        same arguments; for an op that can compute its gradient beside its result.
    batched: names of arguments whose first axis is the batch; vmap folds into it if only these are mapped and all
        outputs have the batch first. Otherwise vmap loops.
    """

    name: str
    schema: str
    reference: Callable
    fake: Callable
    native: Callable | None = None
    triton: str | None = None
    supports: Callable[..., str | None] | None = None
    setup_context: Callable | None = None
    backward: Callable | None = None
    autocast: str | None = None
    plain: Callable[[Op, Callable], Callable] | None = None
    batched: tuple[str, ...] = ()
    arg_names: tuple[str, ...] = field(init=False)
    first_tensor: int = field(init=False)
    changed: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        arguments = [a.strip() for a in self.schema[1 : self.schema.rindex(") ->")].split(", ") if a.strip()]
        object.__setattr__(self, "arg_names", tuple(a.split("=")[0].split()[-1] for a in arguments))
        tensors = [i for i, a in enumerate(arguments) if a.startswith(("Tensor ", "Tensor("))]
        object.__setattr__(self, "first_tensor", tensors[0])
        object.__setattr__(self, "changed", tuple(i for i in tensors if "!" in arguments[i].split()[0]))


class Op:
    """A defined op: call it with the schema's arguments in order (and `backend=`)."""

    def __init__(self, spec: OpSpec):
        self.spec = spec
        self.name = spec.name
        self._native_cpu = getattr(_native._C, f"{spec.name}_cpu", None)
        self._native_cuda = getattr(_native._C, f"{spec.name}_cuda", None)
        head, tail = spec.schema.rsplit(") ->", 1)
        separator = ", " if spec.arg_names else ""
        _library.define(f"{spec.name}{head}{separator}str? backend=None) ->{tail}", tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(spec.name, lambda *a: self.run(*self._split(a)), "CompositeExplicitAutograd")
        torch.library.register_fake(f"vidkernels::{spec.name}", lambda *a: spec.fake(*self._split(a)[0]), lib=_library)
        self.torch_op = getattr(torch.ops.vidkernels, spec.name).default
        self._casts = spec.autocast is not None
        self._apply_plain = _plain_function(self).apply
        if spec.plain is not None:
            self._apply_plain = spec.plain(self, self._apply_plain)
        self._functorch_function = _functorch_function(self)
        if spec.backward is not None:
            torch.library.register_autograd(
                f"vidkernels::{spec.name}", self._backward, setup_context=self._setup_context, lib=_library
            )
        if not spec.changed:
            torch.library.register_vmap(f"vidkernels::{spec.name}", self._vmap, lib=_library)
        if spec.autocast is not None:
            for device in ("cpu", "cuda"):
                _library.impl(spec.name, self._autocast_kernel(device), f"Autocast{device.upper()}")
        self.__name__ = self.__qualname__ = spec.name

    # ---- the roads

    def __call__(self, *args, backend: str | None = None):
        if backend is None:
            backend = _backend.forced
        if _is_compiling():
            return self.torch_op(*args, backend)
        if peek_interpreter_stack() is not None:
            if self.spec.changed:
                raise RuntimeError(f"{self.name}: changes its arguments in place; torch.func cannot follow that.")
            return self._functorch_function.apply(*args, _backend.checked(backend))
        wants_grad = False
        for a in args:
            kind = type(a)
            if kind is _Tensor or kind is _Parameter:
                if a.requires_grad:
                    wants_grad = True
            elif isinstance(a, _Tensor):
                return self.torch_op(*args, _backend.checked(backend))
        if _len_torch_dispatch_stack() or _len_torch_function_stack():
            return self.torch_op(*args, _backend.checked(backend))
        if self._casts:
            device = args[self.spec.first_tensor].device.type
            if _autocast_enabled(device):
                args = self._autocast_cast(args, device)
        if wants_grad and _grad_enabled():
            if self.spec.changed:
                raise RuntimeError(f"{self.name}: changes its arguments in place; call it under torch.no_grad().")
            return self._apply_plain(*args, _backend.checked(backend))
        return self.run(args, backend)

    def run(self, args: tuple, name: str | None):
        """Pick the backend for these arguments and run it. Below autograd: nothing is recorded."""
        spec = self.spec
        if spec.changed:  # a graph that saved one of them must notice
            torch.autograd.graph.increment_version([args[i] for i in spec.changed])
        if name is None:
            tensor = args[spec.first_tensor]
            kernel = self._native_cpu if tensor.is_cpu else self._native_cuda if tensor.is_cuda else None
            if kernel is not None and (
                spec.supports is None or spec.supports("cpu" if tensor.is_cpu else "cuda", *args) is None
            ):
                return spec.native(kernel, *args)
            name = self.choose(*args)
        else:
            reason = self.why_not(_backend.checked(name), *args)
            if reason is not None:
                self._refuse(name, args)
        device = args[spec.first_tensor].device.type
        if _autocast_enabled(device):  # casting is settled above this floor, by `autocast` of the spec
            with torch.autocast(device, enabled=False):
                return self._implementation(name)(*args)
        return self._implementation(name)(*args)

    # ---- backends

    def why_not(self, name: str, *args) -> str | None:
        """None if backend `name` would run with these arguments, else the reason (no arguments: in general)."""
        spec = self.spec
        device = args[spec.first_tensor].device.type if args else None
        if name == "reference":
            return None
        if name == "triton":
            if spec.triton is None:
                return "no Triton kernel for this op"
            try:
                importlib.import_module("triton")
            except ImportError as error:
                return f"triton cannot be imported: {error}"
            from triton import knobs

            if device not in (None, "cuda") and not knobs.runtime.interpret:
                return f"tensors are on {device}; Triton needs CUDA (or TRITON_INTERPRET=1 set before its import)"
            if device is None and not torch.cuda.is_available() and not knobs.runtime.interpret:
                return "no CUDA device"
        else:
            module = {"cpu": "_C", "cuda": "_C", "simt": "_simt", "simt_trace": "_simt_trace"}[name]
            wanted = "cpu" if name == "cpu" else "cuda"
            if _native.module(module) is None:
                return _native.why_missing(module)
            if not hasattr(_native.module(module), f"{self.name}_{wanted}"):
                return f"vidkernels.{module} was built without {self.name}_{wanted}"
            if device is None and name == "cuda" and _native._C.device_count()[0] == 0:
                return _native._C.device_count()[1]
            if device is not None and device != ("cuda" if name == "cuda" else "cpu"):
                return f"tensors are on {device}"
        return spec.supports(name, *args) if args and spec.supports is not None else None

    def choose(self, *args) -> str:
        """The backend that runs if none is forced."""
        return next(n for n in ("cuda", "cpu", "triton", "reference") if self._eligible(n, *args))

    def explain(self, *args) -> dict[str, str | None]:
        """Backend -> None if it could run with these arguments, else why not."""
        return {name: self.why_not(name, *args) for name in _backend.NAMES}

    def _eligible(self, name: str, *args) -> bool:
        if name == "triton" and not args[self.spec.first_tensor].is_cuda:
            return False  # the interpreter is for tests, never a choice
        return self.why_not(name, *args) is None

    def _refuse(self, name: str, args: tuple):
        from vidkernels._check import describe

        lines = [f"{self.name}: backend {name!r} was asked for and cannot run."]
        lines += [f"  {n} : {describe(a)}" for n, a in zip(self.spec.arg_names, args, strict=True)]
        lines += [f"  backend {n}: {reason or 'would run'}" for n, reason in self.explain(*args).items()]
        raise RuntimeError("\n".join(lines))

    def _implementation(self, name: str) -> Callable:
        spec = self.spec
        if name == "reference":
            return spec.reference
        if name == "triton":
            module, function = spec.triton.split(":")
            return getattr(importlib.import_module(module), function)
        module = _native.module({"simt": "_simt", "simt_trace": "_simt_trace"}.get(name, "_C"))
        kernel = getattr(module, f"{self.name}_{'cpu' if name == 'cpu' else 'cuda'}")
        return lambda *args: spec.native(kernel, *args)

    # ---- autograd, vmap, autocast

    def _split(self, args: tuple) -> tuple[tuple, str | None]:
        n = len(self.spec.arg_names)
        return args[:n], args[n] if len(args) > n else None

    def _setup_context(self, ctx, inputs, output):
        ctx.vk_backend = self._split(inputs)[1]
        if self.spec.setup_context is not None:
            self.spec.setup_context(ctx, inputs, output)

    def _backward(self, ctx, *grads):
        if self.spec.backward is None:
            raise RuntimeError(f"{self.name}: no derivative is defined (double backward is not supported).")
        gradients = self.spec.backward(ctx, *grads)
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        return (*gradients, None)

    def _vmap(self, info, in_dims, *args):
        """Fold the mapped axis into the batch where only batched arguments are mapped, else loop."""
        size, names = info.batch_size, (*self.spec.arg_names, "backend")
        in_dims = [d if isinstance(d, int) else None for d in in_dims]  # a list of numbers comes with a list of Nones
        mapped = {n for n, d in zip(names, in_dims) if d is not None}
        moved = [a if d is None else a.movedim(d, 0) for a, d in zip(args, in_dims)]
        if mapped <= set(self.spec.batched):
            folded = []
            for name, a, d in zip(names, moved, in_dims):
                if name in self.spec.batched and isinstance(a, _Tensor):
                    a = a.expand(size, *a.shape) if d is None else a
                    batch = a.shape[1]
                    a = a.reshape(size * batch, *a.shape[2:])
                folded.append(a)
            outputs = self._bare(*folded)
            split = [o.reshape(size, batch, *o.shape[1:]) for o in _as_tuple(outputs)]
        else:
            each = [
                _as_tuple(self._bare(*(a if d is None else a[i] for a, d in zip(moved, in_dims)))) for i in range(size)
            ]
            split = [torch.stack(column) for column in zip(*each)]
        if len(split) == 1:
            return split[0], 0
        return tuple(split), (0,) * len(split)

    def _bare(self, *args):
        args, backend = self._split(args)
        return self(*args, backend=backend)

    def _autocast_cast(self, args: tuple, device: str) -> tuple:
        dtype = torch.float32 if self.spec.autocast == "float32" else torch.get_autocast_dtype(device)
        return tuple(
            a.to(dtype) if isinstance(a, _Tensor) and a.is_floating_point() and a.dtype is not torch.float64 else a
            for a in args
        )

    def _autocast_kernel(self, device: str) -> Callable:
        def cast_and_call(*args):
            args, backend = self._split(args)
            cast = self._autocast_cast(args, device)
            with torch.autocast(device_type=device, enabled=False):
                return self.torch_op(*cast, backend)

        return cast_and_call


def _as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _plain_function(op: Op) -> type[torch.autograd.Function]:
    """The quick autograd.Function: forward fills the context itself."""
    setup_context = op.spec.setup_context

    def forward(ctx, *args):
        backend = ctx.vk_backend = args[-1]
        output = op.run(args[:-1], backend)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    return type(f"{op.name}_plain", (torch.autograd.Function,), _methods(forward=forward, backward=op._backward))


def _functorch_function(op: Op) -> type[torch.autograd.Function]:
    """The composable one: torch.func.grad and vmap peel one level and come back to the op."""
    methods = _methods(forward=op._bare, setup_context=op._setup_context, backward=op._backward, vmap=op._vmap)
    return type(f"{op.name}_functorch", (torch.autograd.Function,), methods)


def _methods(**functions: Callable) -> dict[str, staticmethod]:
    return {name: staticmethod(f) for name, f in functions.items()}


def define(spec: OpSpec) -> Op:
    """Register an op once; the returned Op is what functional code calls."""
    op = Op(spec)
    registry[spec.name] = op
    return op
