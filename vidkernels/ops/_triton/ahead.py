"""Ahead-of-time compilation: every Triton kernel to a cubin of every architecture, on a machine without a GPU.

An op's triton.py lists `AHEAD`, the variants worth compiling. Run without TRITON_INTERPRET:

    python -m vidkernels.ops._triton.ahead [op ...]      one JSON line per variant and architecture
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100, 120)


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel: argument types ("*fp32", "i32", ...) and values of its constexpr arguments."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4


def variants(names: list[str] | None = None) -> Iterator[tuple[str, Variant]]:
    """(op, variant) of every op with a triton.py, or of the named ones."""
    import vidkernels.ops

    for module in pkgutil.iter_modules(vidkernels.ops.__path__):
        path = Path(vidkernels.ops.__path__[0]) / module.name / "triton.py"
        if path.exists() and (not names or module.name in names):
            for variant in importlib.import_module(f"vidkernels.ops.{module.name}.triton").AHEAD:
                yield module.name, variant


def compile_for(variant: Variant, architecture: int) -> dict[str, Any]:
    """Compile one variant; what the assembler used, read back from the cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=variant.kernel,
        signature={**variant.types, **dict.fromkeys(variant.constants, "constexpr")},
        constexprs=variant.constants,
    )
    options = {"num_warps": variant.num_warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return {"cubin_bytes": len(compiled.asm["cubin"]), **_resources(compiled.asm["cubin"])}


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and spilled local memory per thread, from cuobjdump (it comes with triton)."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text))
    return {name.lower(): int(value) for name, value in found.items()}


def main(names: list[str]) -> None:
    for op, variant in variants(names):
        for architecture in ARCHITECTURES:
            result = {"op": op, "variant": variant.name, "sm": architecture, **compile_for(variant, architecture)}
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
