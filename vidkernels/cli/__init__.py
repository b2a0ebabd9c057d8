"""The command `vidkernels`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import codec

app = typer.Typer(help="vidkernels: kernels for video tokens and neural video representations.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


codec.register(app)


@app.command()
def info(
    file: Annotated[Path | None, typer.Argument(help="a .vkv file to describe")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """Print version, build, devices, and per op which backend would run and why not the others; or describe a file."""
    from vidkernels._info import info as collect

    if file is not None:
        codec.describe(file, as_json)
        return
    facts = collect()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = Console()
    ops = facts.pop("ops")
    native = facts.pop("native")
    facts |= {f"native {k}": v for k, v in native.items()} if isinstance(native, dict) else {"native": native}
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key, str(value))
    console.print(table)
    table = Table("op", "runs on", "can be forced to", "not available, because", title="backends")
    for name, backends in ops.items():
        able = [b for b, reason in backends.items() if reason is None]
        first = next(b for b in ("cuda", "cpu", "triton", "reference") if b in able)
        reasons = "\n".join(f"{b}: {reason}" for b, reason in backends.items() if reason is not None)
        table.add_row(name, first, ", ".join(b for b in able if b != first), reasons)
    console.print(table)


def main() -> None:
    app()
