"""`make gpu-check`: for the owner of a GPU. Builds for that card, runs the gpu tests, compute-sanitizer and the
benchmarks on it, and writes one report file to send along. Ends with 1 if anything failed or no GPU is here.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "synccheck")
KEPT_LINES = 40


def find_gpu() -> dict[str, str] | str:
    """{name, arch, driver} of the first card, or the reason why there is none."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi: no NVIDIA driver is installed"
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode != 0 or not done.stdout.strip():
        return f"nvidia-smi finds no GPU: {(done.stdout + done.stderr).strip()}"
    name, capability, driver = (field.strip() for field in done.stdout.splitlines()[0].split(","))
    return {"name": name, "arch": capability.replace(".", ""), "driver": driver}


def steps(arch: str) -> list[tuple[str, list[str]]]:
    """What is run, in order: (title, command)."""
    python, build = sys.executable, "build/gpu-check"
    tests = [python, "-m", "pytest", "python_tests", "-m", "gpu"]
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "VIDKERNELS_CUDA": "ON",
        "VIDKERNELS_CUDA_ARCHS": f"{arch}-real",
        "VIDKERNELS_INPLACE": "ON",
        "Python_EXECUTABLE": python,
    }
    configure = ["cmake", "-S", ".", "-B", build, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())]
    listed = [
        ("configure", configure),
        ("build", ["cmake", "--build", build]),
        ("tests on the GPU", [*tests, "--runslow", "-rs"]),
    ]
    if shutil.which("compute-sanitizer"):
        for tool in SANITIZERS:
            sanitizer = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--error-exitcode", "1"]
            listed.append((f"compute-sanitizer {tool}", [*sanitizer, *tests, "-k", "tiny"]))
    listed.append(("benchmarks", [python, "benchmarks/run.py", "ops", "--device", "cuda"]))
    return listed


def run(title: str, command: list[str]) -> dict:
    """Run one step, showing its output as it comes."""
    typer.echo(f"== {title}: {' '.join(command)}")
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            typer.echo(line, nl=False)
            lines.append(line)
    return {
        "title": title,
        "command": " ".join(command),
        "code": process.returncode,
        "seconds": time.perf_counter() - start,
        "output": "".join(lines[-KEPT_LINES:]),
    }


def report(gpu: dict[str, str], done: list[dict], missing: list[str]) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"# gpu-check on {gpu['name']}",
        f"sm_{gpu['arch']}, driver {gpu['driver']}, {now}.",
        "\n".join(["| step | result | seconds |", "| --- | --- | --- |"]
                  + [f"| {s['title']} | {'ok' if s['code'] == 0 else 'FAILED'} | {s['seconds']:.0f} |" for s in done]
                  + [f"| {title} | not run | |" for title in missing]),
    ]  # fmt: skip
    for s in done:
        lines.append(f"## {s['title']}\n\n`{s['command']}` ended with {s['code']}:\n\n```\n{s['output'].rstrip()}\n```")
    return "\n\n".join(lines) + "\n"


def main() -> None:
    """Check the CUDA kernels on this machine's GPU and write one report file."""
    gpu = find_gpu()
    if isinstance(gpu, str):
        typer.echo(f"gpu-check: {gpu}.\nNothing was checked. Without a GPU, `make gpu-report` and the emulator's tests "
                   "(make test) say what can be said.", err=True)  # fmt: skip
        raise typer.Exit(1)
    todo = steps(gpu["arch"])
    missing = [] if any("sanitizer" in title for title, _ in todo) else ["compute-sanitizer (not installed)"]
    done = []
    for title, command in todo:
        done.append(run(title, command))
        if done[-1]["code"] != 0 and title in ("configure", "build"):
            missing += [later for later, _ in todo[len(done) :]]
            break
    version = re.search(r'"(.+)"', (ROOT / "vidkernels" / "_version.py").read_text()).group(1)
    folder = ROOT / "benchmarks" / "results" / version
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-check-{re.sub(r'[^a-z0-9]+', '-', gpu['name'].lower())}.md"
    path.write_text(report(gpu, done, missing))
    failed = [s["title"] for s in done if s["code"] != 0]
    typer.echo(f"wrote {path.relative_to(ROOT)}; " + (f"FAILED: {', '.join(failed)}" if failed else "all passed"))
    raise typer.Exit(bool(failed))


if __name__ == "__main__":
    typer.run(main)
