"""Times every op against what people would run instead, and renders the tables. `python benchmarks/run.py --help`."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

# Appended: an installed vidkernels wins over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
import typer

from benchmarks import ceilings as ceilings_of
from benchmarks import machine as machine_of
from benchmarks import overhead as overhead_of
from benchmarks import render as rendering
from benchmarks.timing import interleave
from benchmarks.variants import PASSES, Job, Refused, load_peers, peers_directory, takes_floats
from vidkernels.testing import all_cases

FORMAT = 1
ROOT = Path(__file__).resolve().parents[1]
THREADS = os.cpu_count() or 1
DTYPES = (torch.float32, torch.bfloat16)

app = typer.Typer(help="Benchmarks of vidkernels; without a command: all of them.", add_completion=False)
Threads = Annotated[int, typer.Option(help="threads for torch and the kernels")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Seconds = Annotated[float, typer.Option(help="time for the rounds of one row")]
Tests = Annotated[bool, typer.Option(help="run the contract tests first and refuse ops that fail them")]


def failing_ops(names: list[str]) -> dict[str, str]:
    """Op -> its first failing contract test, from one pytest run over the cpu and reference backends."""
    chosen = " or ".join(names)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "python_tests/test_contract.py", f"--junit-xml={report}",
                   "-k", f"({chosen}) and not simt and not simt_trace and not triton"]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[1:]])}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not report.exists() or done.returncode not in (0, 1):
            tail = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:] or ["no output"]
            return dict.fromkeys(names, f"the contract tests could not run: {tail[0]}")
        return failures(report.read_text())


def failures(junit_xml: str) -> dict[str, str]:
    """Op -> the name of its first failed or broken test in a JUnit report."""
    found: dict[str, str] = {}
    for case in ElementTree.fromstring(junit_xml).iter("testcase"):
        match = re.search(r"\[(\w+)-", case.get("name", ""))
        if match and (case.find("failure") is not None or case.find("error") is not None):
            found.setdefault(match.group(1), f"{case.get('name')} fails")
    return found


def time_ops(
    pairs: list,
    *,
    device: str = "cpu",
    seconds: float = 1.5,
    red: dict[str, str] | None = None,
    peers_of: Callable | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> list[dict]:
    """One row per op, case, dtype and pass; a row is either timed or refused.

    Args:
        pairs: (op, case) as `vidkernels.testing.all_cases` gives them, `real` cases only.
        device: where the arguments live.
        seconds: for the rounds of one row.
        red: op -> failing test.
        peers_of: op -> module with PEERS, or None; by default the file in `peers/`.
        progress: called with a line per row.
    """
    siblings = {(op.name, case.name): case for op, case in pairs}
    synchronize = torch.cuda.synchronize if device == "cuda" else None
    date = _now()
    rows = []
    for op, case in pairs:
        peers = peers_of(op) if peers_of else load_peers(peers_directory(op))
        has_peers = op.name in getattr(peers, "PEERS", {})
        if op.name.endswith("_backward") and not has_peers:
            continue
        floating = takes_floats(case)
        for dtype in [d for d in DTYPES if d in case.dtypes][: 2 if floating else 1]:
            for direction in PASSES[: 2 if case.grad else 1]:
                row = {"op": op.name, "case": case.name, "dtype": _name(dtype) if floating else "-", "pass": direction}
                progress(" ".join(row.values()))
                row["date"] = date
                rows.append(row)
                reason = (red or {}).get(op.name) or (red or {}).get(f"{op.name}_backward")
                if reason:
                    row["refused"] = reason
                    continue
                job = Job(op, case, dtype, direction, peers, device)
                try:
                    job.prepare()
                except Refused as error:
                    row["refused"] = str(error)
                    continue
                backward = siblings.get((f"{op.name}_backward", case.name))
                moved, flops = job.work({case.name: backward} if backward else {})
                row |= {"backend": op.choose(*job.args), "bytes": list(moved) if moved else None, "flops": flops}
                functions, before = job.with_fresh()
                row["refused peers"] = job.refused
                row["variants"] = interleave(functions, before=before, seconds=seconds, synchronize=synchronize)
    return rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write(machine: dict, **sections) -> Path:
    """Merge sections into this machine's file; ops that were not run this time keep their rows."""
    path = machine_of.results_file(machine)
    document = json.loads(path.read_text()) if path.exists() else {"format": FORMAT}
    rows = sections.pop("ops", None)
    if rows is not None:
        done = {row["op"] for row in rows}
        kept = [row for row in document.get("ops", []) if row["op"] not in done]
        document["ops"] = sorted(kept + rows, key=lambda row: row["op"])
    document |= {"machine": machine, **sections}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def add_bounds(rows: list[dict], ceilings: dict[str, float]) -> None:
    """Give every timed row its `bound_ms` and `bound_by`."""
    for row in rows:
        if "variants" in row:
            row |= ceilings_of.bound(ceilings, row["dtype"], row["bytes"], row["flops"])


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        everything()


@app.command()
def ops(
    names: Annotated[list[str] | None, typer.Argument(help="ops to time; all by default")] = None,
    threads: Threads = THREADS,
    device: Device = "cpu",
    seconds: Seconds = 1.5,
    tests: Tests = True,
) -> None:
    """Time ops against their peers on the `real` cases."""
    torch.set_num_threads(threads)
    pairs = [(op, case) for op, case in all_cases() if case.kind == "real"]
    known = {op.name for op, _ in pairs}
    if names and set(names) - known:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(set(names) - known))}; known: {', '.join(sorted(known))}")
    wanted = [p for p in pairs if not names or p[0].name.removesuffix("_backward") in names or p[0].name in names]
    red = failing_ops(sorted({op.name for op, _ in wanted})) if tests else {}
    machine = machine_of.describe(threads, device)
    # A shared machine drifts: the bounds take the better of a measurement before and one after the ops.
    before = ceilings_of.measure(device)
    rows, command = [], "python benchmarks/run.py " + " ".join(sys.argv[1:])
    for _, pairs in itertools.groupby(wanted, key=lambda pair: pair[0].name.removesuffix("_backward")):
        rows += time_ops(list(pairs), device=device, seconds=seconds, red=red, progress=typer.echo)
        add_bounds(rows, before)
        _write(machine, command=command, ceilings=before, ops=rows)  # what an interruption leaves
    after = ceilings_of.measure(device)
    ceilings = {name: max(before[name], after[name]) for name in before}
    add_bounds(rows, ceilings)
    path = _write(machine, command=command, ceilings=ceilings, ops=rows)
    typer.echo(f"wrote {path.relative_to(ROOT)}")
    for row in rows:
        what = f"REFUSED {row['op']} {row['case']} {row['dtype']} {row['pass']}: "
        if "refused" in row:
            typer.echo(what + row["refused"], err=True)
        for label, reason in row.get("refused peers", {}).items():
            typer.echo(f"{what}{label}: {reason}", err=True)


@app.command()
def overhead(threads: Threads = THREADS) -> None:
    """Time the eager overhead of a tiny op."""
    torch.set_num_threads(threads)
    path = _write(machine_of.describe(threads), overhead=overhead_of.measure())
    typer.echo(f"wrote {path.relative_to(ROOT)}")


@app.command()
def pretrain(threads: Threads = THREADS) -> None:
    """Run pretrain_step.py and keep its result."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "pretrain.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "pretrain_step.py"), "--json", str(report)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path[1:])}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        path = _write(machine_of.describe(threads), pretrain=json.loads(report.read_text()))
    typer.echo(f"wrote {path.relative_to(ROOT)}")


@app.command()
def render() -> None:
    """Write the tables into README.md and benchmarks/RESULTS.md from the JSON files."""
    for path in rendering.render(ROOT):
        typer.echo(f"rendered {path.relative_to(ROOT)}")


@app.command(name="all")
def everything(threads: Threads = THREADS, seconds: Seconds = 1.5, tests: Tests = True) -> None:
    """Ops, overhead, pretraining step, tables."""
    ops(None, threads, "cpu", seconds, tests)
    overhead(threads)
    if (ROOT / "benchmarks" / "pretrain_step.py").exists():
        pretrain(threads)
    render()


if __name__ == "__main__":
    app()
