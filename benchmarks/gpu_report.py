"""`make gpu-report`: what can be said about the GPU kernels without a GPU.

Resources: nvcc compiles every csrc/ops/*/*_cuda.cu for each architecture and ptxas tells registers, spills and static
shared memory. Traffic: the traced emulator runs the named cases and counts sectors, bytes touched, bank conflicts and
atomics. Writes results/<version>/gpu-report.{json,md}; ends with 1 if the emulator found something wrong with a kernel.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
import typer

from benchmarks.variants import takes_floats
from vidkernels import _native
from vidkernels._case import Case
from vidkernels._op import Op
from vidkernels._version import __version__
from vidkernels.testing import all_cases, arguments

ROOT = Path(__file__).resolve().parents[1]
ARCHS = (80, 90, 100, 120)
DTYPES = (torch.float32, torch.bfloat16)
CASE_SECONDS = 20.0
FORMAT = 1


# ---- resources


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return next((p for h in homes if h and (p := shutil.which("nvcc", path=f"{h}/bin"))), shutil.which("nvcc"))


def resources(nvcc: str, sources: list[Path]) -> list[dict]:
    """One dict per kernel: {op, kernel, archs: {80: {registers, spill_stores, spill_loads, stack, shared}}}."""
    kernels: dict[tuple[str, str], dict] = {}
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
            # The flags of cmake/cuda.cmake, without --threads: parallel ptxas runs would mix their lines.
            command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-lineinfo", "-DNDEBUG", "-Xptxas=-v",
                       "-I", str(ROOT / "csrc"), *targets, "-c", "-o", f"{folder}/kernels.o", str(source)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc fails on {source.relative_to(ROOT)}:\n{done.stderr[-2000:]}")
        for symbol, arch, figures in parse_ptxas(done.stdout + done.stderr):
            op = source.parent.name
            kernel = kernels.setdefault((op, symbol_name(symbol)), {"op": op, "archs": {}})
            kernel["archs"][str(arch)] = figures
    return [{"kernel": name, **facts} for (_, name), facts in sorted(kernels.items())]


def parse_ptxas(text: str) -> list[tuple[str, int, dict[str, int]]]:
    """(mangled kernel, arch, figures) for every entry function in the output of `ptxas -v`."""
    found = []
    parts = re.split(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'", text)
    for symbol, arch, rest in zip(parts[1::3], parts[2::3], parts[3::3]):

        def number(pattern: str, rest: str = rest) -> int:
            match = re.search(pattern, rest)
            return int(match.group(1)) if match else 0

        figures = {
            "registers": number(r"Used (\d+) registers"),
            "stack": number(r"(\d+) bytes stack frame"),
            "spill_stores": number(r"(\d+) bytes spill stores"),
            "spill_loads": number(r"(\d+) bytes spill loads"),
            "shared": number(r"(\d+) bytes smem"),
        }
        if not figures["registers"]:
            raise RuntimeError(f"ptxas says nothing about {symbol} for sm_{arch}; its output has changed")
        found.append((symbol, int(arch), figures))
    return found


def symbol_name(symbol: str) -> str:
    demangled = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return short_name(demangled)


def short_name(signature: str) -> str:
    """`gather_kernel<uint4>` from any compiler's spelling of a kernel: no namespaces, return type or parameters."""
    text = re.sub(r"\{anonymous\}::|\(anonymous namespace\)::|<unnamed>::|\bvk::", "", signature)
    text = re.sub(r"^void ", "", text)
    text = re.sub(r"\b(short|long) unsigned int\b", r"unsigned \1", text)  # gcc's order
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            text = text[:i]
            break
    return re.sub(r"\s*([<>,])\s*", r"\1", text).replace(",", ", ")


# ---- traffic


def first_clips(args: tuple, batch: int, count: int) -> tuple:
    """The first `count` of `batch` clips: every tensor whose first axis is the batch is cut."""
    return tuple(
        a[:count].contiguous() if isinstance(a, torch.Tensor) and a.dim() > 0 and a.shape[0] == batch else a
        for a in args
    )


def traffic_of(op: Op, case: Case, dtype: torch.dtype, emulator) -> dict:
    """Run one case in the traced emulator; `real` cases with as many clips as CASE_SECONDS allow."""
    args = arguments(case, dtype)
    batch = next((a.shape[0] for a in args if isinstance(a, torch.Tensor) and a.dim() > 1), 1)
    clips, seconds, kernels = batch, 0.0, []

    def run(cut: tuple) -> tuple[float, list[dict]]:
        emulator.simt_reset_counters()
        start = time.perf_counter()
        op(*cut, backend="simt_trace")
        return time.perf_counter() - start, emulator.simt_counters()

    if case.kind == "real":
        clips = 1
        seconds, kernels = run(first_clips(args, batch, 1))
        affordable = min(batch, int(CASE_SECONDS / max(seconds, 1e-6)))
        if affordable > 1:
            clips = affordable
    if clips > 1 or not kernels:
        seconds, kernels = run(first_clips(args, batch, clips))
    cut = first_clips(args, batch, clips)
    return {
        "op": op.name,
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch.") if takes_floats(case) else "-",
        "clips": "all" if clips == batch else f"{clips} of {batch}",
        "seconds": round(seconds, 2),
        "minimum": list(case.bytes(*cut)),
        "kernels": [k | {"kernel": short_name(k["kernel"])} for k in kernels],
    }


def touched(row: dict) -> int:
    """Bytes of all 32-byte sectors that the row's kernels read and wrote, each sector once per launch."""
    return sum(k["load_unique_bytes"] + k["store_unique_bytes"] for k in row["kernels"])


def requested(row: dict) -> int:
    """Bytes of the sectors of every request, repeated ones as often as they are asked for."""
    return sum(32 * k[f"{kind}_sectors"] for k in row["kernels"] for kind in ("load", "store", "atomic"))


def traffic(emulator, progress=lambda text: None) -> dict[str, list[dict]]:
    """Rows for the `odd*` and `real*` cases that declare their bytes; what was left out, and why; problems found."""
    rows, left_out, problems = [], [], []
    emulator.simt_configure(seed=0, threads=os.cpu_count() or 1)
    for op, case in all_cases():
        if case.kind not in ("odd", "real") or case.bytes is None:
            continue
        dtypes = [d for d in DTYPES if d in case.dtypes]
        for dtype in dtypes if takes_floats(case) else dtypes[:1]:
            reason = op.why_not("simt_trace", *arguments(case, dtype)) if case.oracle else "too long for the emulator"
            if reason is not None:
                left_out.append({"op": op.name, "case": case.name, "reason": reason})
                continue
            try:
                row = traffic_of(op, case, dtype, emulator)
            except RuntimeError as error:  # what the emulator found wrong with a kernel
                problems.append({"op": op.name, "case": case.name, "report": str(error)})
                progress(f"{op.name} {case.name}: {error}")
                continue
            progress(f"{op.name} {case.name} {row['dtype']}: {row['clips']} clips in {row['seconds']} s")
            rows.append(row)
    return {"traffic": rows, "left_out": left_out, "problems": problems}


# ---- markdown


def markdown(report: dict) -> str:
    parts = [
        f"# GPU kernels of vidkernels {report['version']}, without a GPU",
        f"{report['date']}; {report['nvcc']}. Made by `make gpu-report`; traffic is counted by the emulator, and says "
        "nothing about time.",
        "## Resources",
        "Per architecture (sm_" + ", sm_".join(map(str, ARCHS)) + "): registers per thread; bytes of spill stores + "
        "loads; bytes of static shared memory.",
        _table(["op", "kernel", "registers", "spills", "shared"], [_resource_row(k) for k in report["resources"]]),
        "## Traffic",
        "Minimum: the bytes that the case declares, read and written. Touched: whole 32-byte sectors, each counted "
        "once per launch, as if every cache held everything. Requested: what the warps ask for, as if nothing were "
        "cached. "
        "Sectors per load and store: 32-byte sectors that one warp instruction asks for (a full warp of 4-byte "
        "elements: 4 at best, of 16-byte elements: 16). Conflicts: extra shared-memory waves per shared request. "
        "`odd` cases pay for the rest of the sectors at the ends of rows. Ops of several kernels add the traffic of "
        "what they hand from one to the next.",
        _table(
            ["op, case", "type", "clips", "minimum, KB", "touched / minimum", "requested / minimum", "kernel",
             "sectors per load", "per store", "conflicts", "global atomics", "barriers"],
            [line for row in report["traffic"] for line in _traffic_rows(row)],
        ),
    ]  # fmt: skip
    for p in report["problems"]:
        parts.append(f"**`{p['op']}` {p['case']}: the emulator found a problem.**\n\n```\n{p['report']}\n```")
    left_out: dict[tuple[str, str], list[str]] = {}
    for r in report["left_out"]:
        left_out.setdefault((r["op"], r["reason"]), []).append(r["case"])
    if left_out:
        lines = [f"- `{op}` {', '.join(dict.fromkeys(cases))}: {why}" for (op, why), cases in left_out.items()]
        parts += ["Left out:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _resource_row(kernel: dict) -> list[str]:
    archs = kernel["archs"]

    def per_arch(value) -> str:
        values = [value(archs[str(a)]) if str(a) in archs else "-" for a in ARCHS]
        return str(values[0]) if len(set(values)) == 1 else " / ".join(map(str, values))

    return [
        kernel["op"],
        f"`{kernel['kernel']}`",
        per_arch(lambda f: f["registers"]),
        per_arch(lambda f: f["spill_stores"] + f["spill_loads"]),
        per_arch(lambda f: f["shared"]),
    ]


def _traffic_rows(row: dict) -> list[list[str]]:
    minimum = sum(row["minimum"])
    sizes = [f"{minimum / 1e3:.1f}", *(f"{amount / minimum:.2f}" for amount in (touched(row), requested(row)))]
    lines = []
    for i, k in enumerate(row["kernels"]):
        requests = sum(k[f"shared_{kind}_requests"] for kind in ("load", "store", "atomic"))
        head = [f"`{row['op']}` {row['case']}", row["dtype"], row["clips"], *sizes] if i == 0 else [""] * 6
        lines.append([
            *head,
            f"`{k['kernel']}`",
            _per(k["load_sectors"], k["load_requests"]),
            _per(k["store_sectors"], k["store_requests"]),
            _per(k["bank_conflict_waves"], requests),
            str(k["atomic_requests"]),
            str(k["barriers"]),
        ])  # fmt: skip
    return lines


def _per(amount: int, requests: int) -> str:
    return f"{amount / requests:.2f}" if requests else "-"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Write the report; exits with 1 and the reason if the compiler or the emulator is missing."""
    nvcc, emulator = find_nvcc(), _native.module("_simt_trace")
    if emulator is None:
        typer.echo(f"gpu-report needs the emulator: {_native.why_missing('_simt_trace')}", err=True)
        raise typer.Exit(1)
    if nvcc is None:
        typer.echo("gpu-report needs nvcc (a toolkit, or pip install 'vidkernels[cuda-toolchain]')", err=True)
        raise typer.Exit(1)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    report = {
        "format": FORMAT,
        "version": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "nvcc": "nvcc " + re.search(r"release ([\d.]+)", version).group(1),
        "resources": resources(nvcc, sorted(ROOT.glob("csrc/ops/*/*_cuda.cu"))),
    }
    report |= traffic(emulator, typer.echo)
    folder = ROOT / "benchmarks" / "results" / __version__
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "gpu-report.md").write_text(markdown(report))
    typer.echo(f"wrote {folder.relative_to(ROOT)}/gpu-report.md and .json")
    raise typer.Exit(bool(report["problems"]))


if __name__ == "__main__":
    typer.run(main)
