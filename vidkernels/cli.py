"""The command `vidkernels`."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="vidkernels: kernels for video tokens and neural video representations.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


@app.command()
def info(as_json: bool = typer.Option(False, "--json", help="print JSON instead of tables")) -> None:
    """Print version, build, instruction set, devices, and per op which backend would run and why not the others."""
    from vidkernels._info import info as collect

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
