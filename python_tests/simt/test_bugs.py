"""A seeded mistake of every kind is caught with kernel, line, block and thread; its clean twin passes."""

import re

import numpy as np
import pytest

# name -> (kind, elements of x and y, dtype)
TRACED = {
    "race_block": ("shared-race", 384, np.float32),
    "race_warp": ("shared-race", 32, np.float32),
    "race_partial": ("shared-race", 32, np.float32),
    "race_bytes": ("shared-race", 128, np.float32),
    "race_atomic": ("shared-race", 128, np.float32),
    "helper": ("shared-race", 128, np.float32),
    "divergent_exit": ("divergent-barrier", 1000, np.float32),
    "divergent_wait": ("divergent-barrier", 128, np.float32),
    "read_outside": ("out-of-bounds", 1000, np.float32),
    "write_outside": ("out-of-bounds", 1000, np.float32),
    "shared_outside": ("out-of-bounds", 128, np.float32),
    "static_outside": ("out-of-bounds", 128, np.float32),
    "wild_pointer": ("out-of-bounds", 32, np.float32),
    "write_input": ("read-only-write", 128, np.float32),
    "uninitialised_shared": ("uninitialised-read", 128, np.float32),
    "uninitialised_global": ("uninitialised-read", 128, np.float32),
    "async_read": ("missing-async-wait", 512, np.float32),
    "async_overwrite": ("missing-async-wait", 128, np.float32),
    "async_barrier": ("shared-race", 128, np.float32),
    "misaligned": ("misaligned", 516, np.float32),
    "collective_exited": ("collective", 32, np.float32),
    "collective_branch": ("collective", 32, np.float32),
    "collective_mask": ("collective", 32, np.float32),
    "collective_absent": ("collective", 16, np.float32),
    "division": ("crash", 128, np.int32),
    "trap": ("trap", 128, np.float32),
}
# What needs no hooks is caught by the fast build, too.
FAST = {
    "divergent_exit": TRACED["divergent_exit"],
    "divergent_wait": TRACED["divergent_wait"],
    "collective_exited": TRACED["collective_exited"],
    "collective_branch": TRACED["collective_branch"],
    "collective_mask": TRACED["collective_mask"],
    "collective_absent": TRACED["collective_absent"],
    "division": TRACED["division"],
    "trap": TRACED["trap"],
    "wild_pointer": ("crash", 32, np.float32),
}


def arrays(name, size, dtype):
    return np.arange(size, dtype=dtype) % 7, np.zeros(size, dtype)


def problems(text):
    """The report as a list of dicts."""
    found = []
    for block in re.split(r"\n(?=  \[)", text)[1:]:
        fields = dict(re.findall(r"^    (\w+) *: (.*)$", block, re.M))
        found.append({"kind": re.search(r"\[([\w-]+)\]", block)[1], **fields})
    return found


def check_caught(module, name, kind, size, dtype, line):
    x, y = arrays(name, size, dtype)
    with pytest.raises(RuntimeError, match=f"^{name}: the SIMT emulator found") as error:
        getattr(module, f"selftest_{name}")(x, y, 1)
    told = problems(str(error.value))
    place = f"csrc/simt/selftest_bugs.cu:{line}"
    fitting = [
        p for p in told if p["kind"] == kind and re.search(rf"{place}\b", p["line"] + " " + p.get("against", ""))
    ]
    assert fitting, str(error.value)
    for p in fitting:
        assert p["kernel"].endswith(f"{name}_kernel<true>")
        assert re.fullmatch(r"block \(\d+, \d+, \d+\) thread \(\d+, \d+, \d+\)", p["where"])
    return fitting[0], str(error.value)


@pytest.mark.parametrize("name", TRACED)
def test_traced_build_catches(trace, bug_lines, name):
    kind, size, dtype = TRACED[name]
    check_caught(trace, name, kind, size, dtype, bug_lines[name])


@pytest.mark.parametrize("name", FAST)
def test_fast_build_catches(fast, bug_lines, name):
    kind, size, dtype = FAST[name]
    check_caught(fast, name, kind, size, dtype, bug_lines[name])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", TRACED)
def test_clean_twin_passes(simt, name, seed):
    _, size, dtype = TRACED[name]
    simt.simt_configure(seed=seed)
    if name == "collective_absent":
        size = 32
    getattr(simt, f"selftest_{name}")(*arrays(name, size, dtype), 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["race_block", "race_warp", "race_partial", "async_barrier", "helper"])
def test_races_do_not_hide_behind_the_order_of_threads(trace, bug_lines, name, seed):
    kind, size, dtype = TRACED[name]
    trace.simt_configure(seed=seed)
    check_caught(trace, name, kind, size, dtype, bug_lines[name])


def test_report_names_block_thread_buffer(trace, bug_lines):
    problem, text = check_caught(trace, "write_outside", "out-of-bounds", 1000, np.float32, bug_lines["write_outside"])
    assert problem["where"] == "block (7, 0, 0) thread (104, 0, 0)"
    assert "write of 4 bytes at byte 4000 of `y`, which has 4000 bytes" in text
    _, text = check_caught(trace, "race_warp", "shared-race", 32, np.float32, bug_lines["race_warp"])
    assert "of shared `s` is not ordered with the" in text
    _, text = check_caught(trace, "static_outside", "out-of-bounds", 128, np.float32, bug_lines["static_outside"])
    assert "past the end of shared `first`, which has 512 bytes" in text


def test_helper_report_names_the_caller(trace, bug_lines):
    problem, _ = check_caught(trace, "helper", "shared-race", 128, np.float32, bug_lines["helper"])
    assert "csrc/device/vk_reduce.cuh:" in problem["line"]


@pytest.mark.parametrize("name", ["endless", "spin"])
def test_a_kernel_that_never_ends_is_stopped(simt, bug_lines, name):
    simt.simt_configure(timeout=0.4)
    x = np.ones(128, np.float32)
    y = np.zeros(128, np.float32 if name == "endless" else np.int32)
    run = getattr(simt, f"selftest_{name}")
    run(x, y, 0)
    with pytest.raises(RuntimeError, match=r"\[timeout\]") as error:
        run(x, y, 1)
    assert f"selftest_bugs.cu:{bug_lines[name]}" in str(error.value)


def test_stack_overflow_is_an_error(simt):
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    simt.selftest_recursion(x, y, 0)
    with pytest.raises(RuntimeError, match=r"\[crash\] the thread needs more than 128 KiB of stack"):
        simt.selftest_recursion(x, y, 1)


@pytest.mark.parametrize(("variant", "text"), [(1, "1 to 1024 threads"), (2, "grid is empty"), (3, "dynamic shared")])
def test_impossible_launch(simt, variant, text):
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    simt.selftest_launch_limits(x, y, 0)
    with pytest.raises(RuntimeError, match=text):
        simt.selftest_launch_limits(x, y, variant)


@pytest.mark.parametrize("name", ["write_outside", "divergent_exit", "division", "collective_exited"])
def test_works_after_an_error(simt, name):
    """An abandoned block leaves nothing behind: the next launch is right."""
    _, size, dtype = TRACED[name]
    for _ in range(3):
        if name in FAST or "trace" in simt.__name__:
            with pytest.raises(RuntimeError):
                getattr(simt, f"selftest_{name}")(*arrays(name, size, dtype), 1)
        x = np.arange(256, dtype=np.float32)
        y = np.zeros(4 * 256, np.float32)
        simt.selftest_reduce(x, y)
        np.testing.assert_array_equal(y.reshape(2, 128, 4)[:, 0, 0], x.reshape(2, 128).sum(1))
