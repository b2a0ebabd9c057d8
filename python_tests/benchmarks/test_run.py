"""The harness on a made-up op: wrong results are refused, figures are ordered, rendering is idempotent."""

import json
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("pytest_benchmark")
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks import ceilings, machine, render, run, timing
from benchmarks.timing import MIN_ROUNDS, interleave
from benchmarks.variants import Job, Refused
from vidkernels._case import ROUNDING, Case

CEILINGS = {
    "read_gb_s": 10.0,
    "write_gb_s": 5.0,
    "copy_gb_s": 8.0,
    "gemm_float32_gflop_s": 100.0,
    "gemm_bfloat16_gflop_s": 400.0,
}


def _reference(x, scale):
    return x * scale


class FakeOp:
    """Stands in for an Op: the attributes that the harness uses, without registering anything."""

    def __init__(self, function, name="double_it"):
        self.name = name
        self.function = function
        self.spec = types.SimpleNamespace(arg_names=("x", "scale"), reference=_reference)

    def __call__(self, *args, backend=None):
        return (self.spec.reference if backend == "reference" else self.function)(*args)

    def choose(self, *args):
        return "reference"


def case(grad=("x",)):
    return Case(
        "real_fake",
        lambda g, dtype: (torch.randn(64, 33, generator=g).to(dtype), 2.0),
        grad=grad,
        rtol=ROUNDING,
        bytes=lambda x, scale: (x.nbytes, x.nbytes),
    )


def peers(**functions):
    makers = {label: lambda *args, f=f: lambda: f(*args) for label, f in functions.items()}
    return types.SimpleNamespace(PEERS={"double_it": makers})


def rows(op, module, a_case=None, **kwargs):
    return run.time_ops([(op, a_case or case())], seconds=0.01, peers_of=lambda op: module, **kwargs)


def test_every_dtype_and_pass_gets_a_row():
    got = rows(FakeOp(_reference), peers(usual=lambda x, scale: x + x))
    assert [(r["dtype"], r["pass"]) for r in got] == [
        ("float32", "forward"),
        ("float32", "forward + backward"),
        ("bfloat16", "forward"),
        ("bfloat16", "forward + backward"),
    ]
    run.add_bounds(got, CEILINGS)
    assert got[0]["bound_ms"] == pytest.approx(2 * 64 * 33 * 4 / 8e6)
    assert got[2]["bound_ms"] == pytest.approx(2 * 64 * 33 * 2 / 8e6)
    for row in got:
        assert set(row["variants"]) == {"ours", "usual"}
        for t in row["variants"].values():
            assert t["rounds"] >= MIN_ROUNDS
            assert 0 < t["min_ms"] <= t["q1_ms"] <= t["median_ms"] <= t["q3_ms"]
    assert got[0]["bytes"] == [64 * 33 * 4] * 2
    assert got[1]["bytes"] is None  # nothing declares the backward pass


@pytest.mark.parametrize("error", [lambda x, s: x * s + 1e-3, lambda x, s: x * (s + 1e-4), lambda x, s: x[:1] * s])
def test_wrong_ours_is_refused(error):
    for row in rows(FakeOp(error), peers(usual=_reference)):
        assert row.get("refused", "").startswith("ours: ") or row["dtype"] == "bfloat16"  # whose rounding hides 1e-4
        assert ("variants" in row) == ("refused" not in row)


def test_wrong_peer_is_refused():
    for row in rows(FakeOp(_reference), peers(usual=lambda x, scale: x * scale + 1, careful=_reference)):
        assert row["refused peers"]["usual"].startswith("output 0")
        assert set(row["variants"]) == {"ours", "careful"}


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        return x * scale

    @staticmethod
    def backward(ctx, grad):
        return 2.1 * grad, None


def test_wrong_gradient_is_refused_only_where_it_counts():
    got = rows(FakeOp(_WrongGradient.apply), None)
    assert ["refused" in row for row in got] == [False, True, False, True]
    assert "gradient of x" in got[1]["refused"]


def test_hand_written_gradients_are_checked_and_timed():
    def direct(factor):
        make = lambda x, scale: lambda: ((x * scale,), (torch.full_like(x, factor),))  # noqa: E731
        return types.SimpleNamespace(PEERS={}, DIRECT={"double_it": {"careful": make}})

    job = Job(FakeOp(lambda x, s: (x * s).sum(0)), case(), torch.float32, "forward + backward", direct(2.0))
    with pytest.raises(Refused, match="ours: output 0"):
        job.prepare()
    got = rows(FakeOp(_reference), direct(3.0))
    assert "gradient of x" in got[1]["refused peers"]["careful"]
    assert set(got[1]["variants"]) == {"ours"}


def test_other_random_streams_are_checked_by_their_own_rule():
    module = peers(usual=lambda x, scale: x[0])
    module.SAME = {"double_it": lambda got, expected, args: None if got[0].shape == (33,) else "wrong shape"}
    assert all("usual" in row["variants"] for row in rows(FakeOp(_reference), module, case(grad=())))
    module.SAME = {"double_it": lambda got, expected, args: "never equal"}
    assert rows(FakeOp(_reference), module, case(grad=()))[0]["refused peers"] == {"usual": "never equal"}


def test_red_op_is_not_timed():
    got = rows(FakeOp(_reference), None, red={"double_it_backward": "test_x[double_it_backward-tiny] fails"})
    assert all(row["refused"] == "test_x[double_it_backward-tiny] fails" for row in got)


def test_failures_are_read_from_a_junit_report():
    report = """<testsuites><testsuite>
      <testcase name="test_a[good-tiny-cpu]"/>
      <testcase name="test_a[bad-tiny-cpu]"><failure message="m"/></testcase>
      <testcase name="test_b[bad-odd-cpu]"><failure message="m"/></testcase>
      <testcase name="test_b[skipped-odd-cpu]"><skipped/></testcase>
      <testcase name="test_b[broken-odd-cpu]"><error/></testcase>
    </testsuite></testsuites>"""
    assert run.failures(report) == {"bad": "test_a[bad-tiny-cpu] fails", "broken": "test_b[broken-odd-cpu] fails"}


def test_interleave_prepares_outside_the_timing_and_alternates():
    calls = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    before = {label: lambda label=label: calls.append(f"prepare {label}") for label in functions}
    got = interleave(functions, before=before, seconds=0.0)
    assert got["a"]["rounds"] == got["b"]["rounds"] == MIN_ROUNDS
    assert got["a"]["inner"] == 1
    assert all(calls[i] == f"prepare {calls[i + 1]}" for i in range(0, len(calls), 2))
    timed = calls[1::2][-2 * MIN_ROUNDS :]
    assert timed[:4] == ["a", "b", "b", "a"]  # the order rotates


def test_slow_functions_take_part_in_fewer_rounds(monkeypatch):
    monkeypatch.setattr(timing, "LONG_CALL", 5e-3)
    monkeypatch.setattr(timing, "VERY_LONG_CALL", 5e-2)
    naps = {"quick": 0, "slow": 1e-2, "very slow": 6e-2}
    got = interleave({label: lambda s=s: time.sleep(s) for label, s in naps.items()}, seconds=0.0)
    assert {label: t["rounds"] for label, t in got.items()} == {"quick": MIN_ROUNDS, "slow": 3, "very slow": 1}


def test_bound_takes_the_kinder_memory_model_and_the_harder_limit():
    half_and_half = ceilings.bound(CEILINGS, "float32", (8_000_000, 8_000_000), None)
    assert half_and_half == {"bound_ms": 2.0, "bound_by": "memory"}  # copy at 8 GB/s beats 0.8 + 1.6 ms
    reading = ceilings.bound(CEILINGS, "float32", (10_000_000, 0), 1e7)
    assert reading["bound_ms"] == pytest.approx(1.0)
    assert ceilings.bound(CEILINGS, "bfloat16", (8, 8), 4e8) == {"bound_ms": 1.0, "bound_by": "arithmetic"}
    assert ceilings.bound(CEILINGS, "float32", None, None)["bound_ms"] is None


def document():
    done = rows(FakeOp(_reference), peers(usual=lambda x, scale: x + x, careful=_reference))
    run.add_bounds(done, CEILINGS)
    lost = {"op": "lost", "case": "real_a", "dtype": "float32", "pass": "forward", "date": done[0]["date"]}
    return {
        "format": run.FORMAT,
        "machine": machine.describe(2),
        "command": "python benchmarks/run.py all",
        "ceilings": CEILINGS,
        "ops": [
            *done,
            done[0] | {"op": "half", "refused peers": {"careful": "d | e"}},
            lost | {"refused": "ours: a | b\nc"},
        ],
        "overhead": [{"label": "op", "no_grad_us": 1.0, "grad_us": 2.0, "forward_backward_us": 3.0}],
        "pretrain": {
            "preset": "small",
            "batch": 8,
            "fp32": {
                "vidkernels": {"median_s": 0.01, "min_s": 0.009, "max_s": 0.02, "cpu_s": 0.02, "peak_mb": 100.0},
                "plain": {"median_s": 0.005, "min_s": 0.005, "max_s": 0.005, "cpu_s": 0.01, "peak_mb": 50.0},
            },
        },
    }


def test_rendering_is_idempotent_and_keeps_the_text_around(tmp_path):
    results = tmp_path / "benchmarks" / "results" / "0.1.0"
    results.mkdir(parents=True)
    (results / "m.json").write_text(json.dumps(document()))
    (results / "gpu-report.json").write_text("{}")  # another report: not a machine's file
    (results / "gpu-report.md").write_text("# report")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{render.START}\nold\n{render.END}\n\nafter\n")
    assert render.render(tmp_path) == [readme, tmp_path / "benchmarks" / "RESULTS.md"]
    first = readme.read_text(), (tmp_path / "benchmarks" / "RESULTS.md").read_text()
    render.render(tmp_path)
    assert (readme.read_text(), (tmp_path / "benchmarks" / "RESULTS.md").read_text()) == first
    assert first[0].startswith("before\n\n")
    assert first[0].endswith("\n\nafter\n")
    assert "old" not in first[0]
    assert "| plain | fp32 | 5.00 | 5.00 .. 5.00 | 0.50x | 10.0 | 50 |" in first[0]  # a loss is shown like a win
    assert "| refused | ours: a / b c |" in first[1]
    assert "| careful | refused | d / e |" in first[1]
    assert "[gpu-report](results/0.1.0/gpu-report.md)" in first[1]
    for text in first:
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in tables} <= {5, 8, 10}, text


def test_a_readme_without_markers_is_left_alone(tmp_path):
    results = tmp_path / "benchmarks" / "results" / "0.1.0"
    results.mkdir(parents=True)
    (results / "m.json").write_text(json.dumps(document()))
    (tmp_path / "README.md").write_text("mine")
    assert render.render(tmp_path) == [tmp_path / "benchmarks" / "RESULTS.md"]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_newest_version_is_rendered(tmp_path):
    for version in ("0.9.0", "0.10.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "m.json").write_text(json.dumps({"machine": {"vidkernels": version}}))
    (tmp_path / "0.11.0").mkdir()  # no machine yet
    assert [d["machine"]["vidkernels"] for d in render.load(tmp_path)] == ["0.10.0"]


def test_writing_keeps_the_rows_of_other_ops(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    facts = machine.describe(2)
    run._write(facts, ops=[{"op": "a", "case": "old"}, {"op": "b", "case": "x"}], command="c")
    path = run._write(facts, ops=[{"op": "a", "case": "new"}])
    written = json.loads(path.read_text())
    assert written["format"] == run.FORMAT
    assert written["command"] == "c"
    assert written["ops"] == [{"op": "a", "case": "new"}, {"op": "b", "case": "x"}]
    assert written["machine"]["threads"] == 2


def committed_results():
    return sorted((run.ROOT / "benchmarks" / "results").glob("*/*.json"))


def test_committed_results_have_the_schema():
    for path in committed_results():
        found = json.loads(path.read_text())
        if "machine" not in found:
            continue
        assert found["format"] == run.FORMAT, path
        assert {"cpu", "cores", "threads", "flags", "torch", "vidkernels", "build"} <= set(found["machine"]), path
        assert found["machine"]["vidkernels"] == path.parent.name
        for row in found["ops"]:
            assert {"op", "case", "dtype", "pass", "date"} <= set(row), path
            assert "refused" in row or {"bytes", "flops", "bound_ms", "variants"} <= set(row), path


@pytest.mark.parametrize("path", sorted((run.ROOT / "benchmarks" / "peers").glob("*.py")), ids=lambda p: p.stem)
def test_peers_name_ops_that_exist_and_have_both_kinds(path):
    from benchmarks.variants import load_peers
    from vidkernels.testing import all_cases

    names = {op.name for op, case in all_cases() if case.kind == "real"}
    module = load_peers(path.stem)
    for table in ("PEERS", "DIRECT", "SAME", "BYTES", "FLOPS"):
        assert set(getattr(module, table, {})) <= names, f"{table} of {path.name} names an op without a real case"
    for op, makers in getattr(module, "PEERS", {}).items():
        assert "usual" in makers, f"{path.name}: {op} has no usual peer"


def test_slug_names_model_cores_and_instruction_set():
    facts = {"cpu": "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", "cores": 2, "flags": ["avx2", "avx512f"], "gpu": None}
    assert machine.slug(facts) == "intel-xeon-gold-6338-cpu-2c-avx512"
    assert machine.slug(facts | {"gpu": "NVIDIA H100 PCIe"}) == "nvidia-h100-pcie"


CONTRACT = """
import pytest

@pytest.mark.parametrize("x", [1], ids=["good-tiny"])
def test_a(x): pass

@pytest.mark.parametrize("x", [1], ids=["bad-tiny-cpu"])
def test_b(x): assert x == 2

@pytest.mark.parametrize("x", [1], ids=["good-tiny-simt"])
def test_c(x): assert x == 2
"""


def test_contract_tests_decide(tmp_path, monkeypatch):
    (tmp_path / "python_tests").mkdir()
    (tmp_path / "python_tests" / "test_contract.py").write_text(CONTRACT)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.failing_ops(["good", "bad"]) == {"bad": "test_b[bad-tiny-cpu] fails"}
    (tmp_path / "python_tests" / "test_contract.py").write_text("import nothing_of_that_name")
    reasons = run.failing_ops(["good", "bad"])
    assert set(reasons) == {"good", "bad"}
    assert all("could not run" in reason for reason in reasons.values())


def test_unknown_op_is_named():
    done = CliRunner().invoke(run.app, ["ops", "no_such_op"])
    assert done.exit_code == 2
    assert "no_such_op" in done.output
