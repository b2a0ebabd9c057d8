"""gpu-report and gpu-check: what they read from other tools, what they write, and what they say without a GPU."""

import json
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks import gpu_check, gpu_report
from vidkernels import _native
from vidkernels._case import Case
from vidkernels.testing import all_cases

ROOT = Path(__file__).resolve().parents[2]

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6squarePf' for 'sm_80'
ptxas info    : Function properties for _Z6squarePf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 42 registers, used 1 barriers, 16 bytes cumulative stack size, 256 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z6squarePf' for 'sm_120a'
ptxas info    : Function properties for _Z6squarePf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 0 barriers
"""


def test_ptxas_output_is_read():
    assert gpu_report.parse_ptxas(PTXAS) == [
        ("_Z6squarePf", 80, {"registers": 42, "stack": 16, "spill_stores": 8, "spill_loads": 12, "shared": 256}),
        ("_Z6squarePf", 120, {"registers": 28, "stack": 0, "spill_stores": 0, "spill_loads": 0, "shared": 0}),
    ]


def test_unknown_ptxas_output_is_an_error_not_a_zero():
    with pytest.raises(RuntimeError, match="its output has changed"):
        gpu_report.parse_ptxas("Compiling entry function 'k' for 'sm_80'\nregisters used: 4\n")


@pytest.mark.parametrize(
    "spelling",
    [
        "void vk::(anonymous namespace)::row_kernel<vk::bf16, 4>(vk::bf16 const*, long)",
        "vk::{anonymous}::row_kernel<vk::bf16,4>",
        "void vk::<unnamed>::row_kernel<vk::bf16, 4>(const vk::bf16 *, long)",
    ],
)
def test_compilers_spell_one_kernel_in_different_ways(spelling):
    assert gpu_report.short_name(spelling) == "row_kernel<bf16, 4>"
    assert gpu_report.short_name("k<short unsigned int>") == gpu_report.short_name("void k<unsigned short>(long)")


def test_first_clips_cuts_what_has_a_batch_axis():
    args = (torch.zeros(8, 3), torch.zeros(16, 8), None, 8, torch.zeros(8), torch.tensor(1.0))
    cut = gpu_report.first_clips(args, 8, 2)
    assert [a.shape if isinstance(a, torch.Tensor) else a for a in cut] == [(2, 3), (16, 8), None, 8, (2,), ()]


def traffic_row(**kwargs):
    kernel = {
        "kernel": "k<float>", "load_unique_bytes": 640, "store_unique_bytes": 320, "load_sectors": 40,
        "load_requests": 10, "store_sectors": 16, "store_requests": 4, "bank_conflict_waves": 3,
        "shared_load_requests": 4, "shared_store_requests": 2, "shared_atomic_requests": 0, "atomic_requests": 7,
        "barriers": 2, "atomic_sectors": 4,
    }  # fmt: skip
    row = {"op": "k", "case": "odd", "dtype": "float32", "clips": "2 of 2", "minimum": [600, 320], "kernels": [kernel]}
    return row | kwargs


def test_report_table():
    figures = {"registers": 40, "stack": 0, "spill_stores": 0, "spill_loads": 0, "shared": 128}
    spilling = figures | {"spill_stores": 4, "spill_loads": 8}
    archs = {str(a): spilling if a == 120 else figures for a in gpu_report.ARCHS}
    text = gpu_report.markdown({
        "version": "0", "date": "today", "nvcc": "nvcc 13.0", "left_out": [{"op": "x", "case": "odd", "reason": "why"}],
        "problems": [{"op": "bad", "case": "odd", "report": "race in line 7"}],
        "resources": [{"kernel": "k<float>", "op": "k", "archs": archs}],
        "traffic": [traffic_row(), traffic_row(kernels=traffic_row()["kernels"] * 2, minimum=[0, 640])],
    })  # fmt: skip
    assert "| k | `k<float>` | 40 | 0 / 0 / 0 / 12 | 128 |" in text
    assert "| `k` odd | float32 | 2 of 2 | 0.9 | 1.04 | 2.09 | `k<float>` | 4.00 | 4.00 | 0.50 | 7 | 2 |" in text
    assert "| `k` odd | float32 | 2 of 2 | 0.6 | 3.00 | 6.00 |" in text  # two kernels add up
    assert "- `x` odd: why" in text
    assert "`bad` odd: the emulator found a problem" in text
    assert "race in line 7" in text


class BrokenOp:
    name = "broken"
    spec = types.SimpleNamespace(first_tensor=0)

    def __call__(self, x, backend):
        raise RuntimeError("the SIMT emulator found 1 problem")

    def why_not(self, backend, x):
        return None if x.dtype is torch.float32 else "no bfloat16"


def test_a_problem_is_reported_not_raised(monkeypatch):
    case = Case("odd", lambda g, dtype: (torch.zeros(2, 3, dtype=dtype),), bytes=lambda x: (x.nbytes, 0))
    monkeypatch.setattr(gpu_report, "all_cases", lambda: [(BrokenOp(), case), (BrokenOp(), Case("tiny", case.args))])
    emulator = types.SimpleNamespace(simt_configure=lambda **k: None, simt_reset_counters=lambda: None)
    found = gpu_report.traffic(emulator)
    assert found["problems"] == [{"op": "broken", "case": "odd", "report": "the SIMT emulator found 1 problem"}]
    assert found["left_out"] == [{"op": "broken", "case": "odd", "reason": "no bfloat16"}]
    assert found["traffic"] == []


class SlowOp(BrokenOp):
    """Takes a second per clip, by the clock that the report reads."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(gpu_report.time, "perf_counter", lambda: self.now)

    def __call__(self, x, backend):
        self.calls.append(x.shape[0])
        self.now += 1.0 * x.shape[0]


def test_real_cases_run_as_many_clips_as_time_allows(monkeypatch):
    op = SlowOp(monkeypatch)
    case = Case("real_a", lambda g, dtype: (torch.zeros(64, 3, dtype=dtype),), bytes=lambda x: (x.nbytes, 0))
    emulator = types.SimpleNamespace(simt_reset_counters=lambda: None, simt_counters=lambda: [{"kernel": "k<float>"}])
    row = gpu_report.traffic_of(op, case, torch.float32, emulator)
    assert op.calls == [1, 20]
    assert row["clips"] == "20 of 64"
    assert row["minimum"] == [20 * 3 * 4, 0]


def test_traffic_of_the_canonical_op_is_exact():
    emulator = _native.module("_simt_trace")
    if emulator is None:
        pytest.skip(_native.why_missing("_simt_trace"))
    op, case = next((o, c) for o, c in all_cases() if (o.name, c.name) == ("gather_tokens", "odd_wide"))
    row = gpu_report.traffic_of(op, case, torch.float32, emulator)
    (kernel,) = row["kernels"]
    assert kernel["kernel"] == "gather_tokens_forward_kernel<uint4>"
    # [2, 67, 64] float32, 31 rows each of 256 bytes: 8 sectors a row, nothing to waste; the index ends inside a sector.
    assert kernel["load_unique_bytes"] == 2 * 31 * 256 + 256
    assert gpu_report.touched(row) == 2 * 2 * 31 * 256 + 256
    assert row["minimum"] == [2 * 31 * 256 + 2 * 31 * 4, 2 * 31 * 256]
    assert kernel["store_sectors"] == 2 * 31 * 8


def test_report_without_emulator_says_so(monkeypatch, capsys):
    monkeypatch.setattr(_native, "module", lambda name: None)
    with pytest.raises(gpu_report.typer.Exit) as stop:
        gpu_report.main()
    assert stop.value.exit_code == 1
    assert "needs the emulator" in capsys.readouterr().err


def test_committed_reports_have_the_schema():
    for path in (ROOT / "benchmarks" / "results").glob("*/gpu-report.json"):
        found = json.loads(path.read_text())
        assert found["format"] == gpu_report.FORMAT
        assert found["version"] == path.parent.name
        assert all(set(k["archs"]) == set(map(str, gpu_report.ARCHS)) for k in found["resources"]), path
        assert {row["op"] for row in found["traffic"]}, path
        assert path.with_suffix(".md").read_text() == gpu_report.markdown(found), f"{path}: edited by hand"


# ---- gpu-check


def fake_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_check_without_a_gpu_says_so_and_fails(tmp_path):
    environment = {"PATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no NVIDIA driver is installed" in done.stderr
    fake_tool(tmp_path, "nvidia-smi", "echo 'No devices were found'; exit 6")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No devices were found" in done.stderr


def test_check_reads_the_card_and_plans_for_it(tmp_path, monkeypatch):
    fake_tool(tmp_path, "nvidia-smi", "echo 'NVIDIA H100 PCIe, 9.0, 570.1'; echo 'NVIDIA A100, 8.0, 570.1'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_check.find_gpu() == {"name": "NVIDIA H100 PCIe", "arch": "90", "driver": "570.1"}
    titles = [title for title, _ in gpu_check.steps("90")]
    assert titles == ["configure", "build", "tests on the GPU", "benchmarks"]
    fake_tool(tmp_path, "compute-sanitizer", "exit 0")
    plan = dict(gpu_check.steps("90"))
    assert "-DVIDKERNELS_CUDA_ARCHS=90-real" in plan["configure"]
    assert {f"compute-sanitizer {tool}" for tool in gpu_check.SANITIZERS} <= set(plan)


@pytest.mark.parametrize(("broken", "code"), [(None, 0), ("tests", 1), ("build", 1)])
def test_check_runs_the_steps_and_writes_one_file(tmp_path, monkeypatch, capsys, broken, code):
    (tmp_path / "vidkernels").mkdir()
    (tmp_path / "vidkernels" / "_version.py").write_text('__version__ = "1.2.3"\n')
    say = [sys.executable, "-c", "import sys; print('said', sys.argv[1]); sys.exit(sys.argv[1] == sys.argv[2])"]
    plan = [(title, [*say, title, str(broken)]) for title in ("configure", "build", "tests", "benchmarks")]
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: {"name": "Card X", "arch": "90", "driver": "1"})
    monkeypatch.setattr(gpu_check, "steps", lambda arch: plan)
    with pytest.raises(gpu_check.typer.Exit) as stop:
        gpu_check.main()
    assert stop.value.exit_code == code
    text = (tmp_path / "benchmarks" / "results" / "1.2.3" / "gpu-check-card-x.md").read_text()
    assert "| configure | ok |" in text
    assert "| compute-sanitizer (not installed) | not run | |" in text
    assert ("said benchmarks" in text) == (broken != "build")
    assert (f"| {broken} | FAILED |" in text) == (broken is not None)
    assert ("| tests | not run | |" in text) == (broken == "build")
