"""JSON files of results into markdown tables, between markers, so that rendering twice changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"


def render(root: Path) -> list[Path]:
    """Write the short table into README.md and all tables into benchmarks/RESULTS.md; returns the files written.

    Only the newest version with results is shown. README.md takes the CPU machine with most rows; a file without the
    markers is left alone, RESULTS.md is made if it is missing.
    """
    documents = load(root / "benchmarks" / "results")
    if not documents:
        raise FileNotFoundError(f"no results under {root / 'benchmarks' / 'results'}: run benchmarks/run.py all")
    written = []
    readme = root / "README.md"
    if readme.exists() and START in readme.read_text():
        cpu = [d for d in documents if not d["machine"]["gpu"]] or documents
        replace_between_markers(readme, summary(max(cpu, key=lambda d: len(d.get("ops", [])))))
        written.append(readme)
    results = root / "benchmarks" / "RESULTS.md"
    if not results.exists():
        results.write_text(f"# Results\n\nHow they are measured: [README.md](README.md).\n\n{START}\n{END}\n")
    parts = [full(d) for d in documents]
    reports = sorted((root / "benchmarks" / "results" / documents[0]["machine"]["vidkernels"]).glob("gpu-*.md"))
    if reports:
        links = [f"[{p.stem}]({p.relative_to(root / 'benchmarks').as_posix()})" for p in reports]
        parts.append(f"The CUDA kernels: {', '.join(links)}.")
    replace_between_markers(results, "\n\n".join(parts))
    written.append(results)
    return written


def load(directory: Path) -> list[dict]:
    """The machine files of the newest version directory, in the order of their names."""

    def key(path: Path) -> tuple:
        return tuple(int(p) if p.isdigit() else 0 for p in path.name.split("."))

    for version in sorted((p for p in directory.glob("*") if p.is_dir()), key=key, reverse=True):
        documents = [json.loads(p.read_text()) for p in sorted(version.glob("*.json"))]
        documents = [d for d in documents if "machine" in d]
        if documents:
            return documents
    return []


def replace_between_markers(path: Path, text: str) -> None:
    before, rest = path.read_text().split(START, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{START}\n{text.strip()}\n{END}{after}")


def summary(document: dict) -> str:
    """The README's table: one row per op, case, dtype and pass."""
    head = ["op, case", "type", "pass", "ours, ms", "usual", "careful", "of bound"]
    rows = []
    for row in document.get("ops", []):
        rows.append([*_what(row), "refused", "", "", ""] if "refused" in row else _short(row))
    parts = [_setting(document), _table(head, rows), _pretrain(document), _overhead(document)]
    parts.append("`usual` and `careful` say how many times as long those take; wrong: their result is, so they are not "
                 "timed. Method, spread, bounds: [benchmarks/RESULTS.md](benchmarks/RESULTS.md).")  # fmt: skip
    return "\n\n".join(p for p in parts if p)


def full(document: dict) -> str:
    """Everything about one machine."""
    machine = document["machine"]
    facts = [f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores"]
    parts = [f"## {facts[0]}", _setting(document), f"Instruction sets: {', '.join(machine['flags']) or 'unknown'}."]
    if "ceilings" in document:
        c = document["ceilings"]
        parts.append(
            f"Measured in the same run: read {c['read_gb_s']:.1f}, write {c['write_gb_s']:.1f}, copy "
            f"{c['copy_gb_s']:.1f} GB/s; GEMM {c['gemm_float32_gflop_s']:.0f} GFLOP/s in float32, "
            f"{c['gemm_bfloat16_gflop_s']:.0f} in bfloat16."
        )
    if document.get("ops"):
        head = ["op, case", "type", "pass", "variant", "ms", "spread", "against ours", "bound, ms", "of bound"]
        usual = {
            _key(row): row["variants"]["usual"]
            for row in document["ops"]
            if row["dtype"] == "float32" and "usual" in row.get("variants", {})
        }
        lines = [line for row in document["ops"] for line in _long(row, usual.get(_key(row)))]
        parts += ["### Ops", _table(head, lines)]
        parts.append(
            "`against ours`: how many times as long as ours. `spread`: first to third quartile. `usual in float32`: "
            "the figure of the float32 row again, for those who would change the type as well."
        )
    for title, text in (("### Pretraining step", _pretrain(document)), ("### Eager overhead", _overhead(document))):
        if text:
            parts += [title, text]
    return "\n\n".join(parts)


def _setting(document: dict) -> str:
    m = document["machine"]
    dates = sorted({row["date"] for row in document.get("ops", [])})
    when = f", {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "") if dates else ""
    return (
        f"{m['gpu'] or m['cpu']}, {m['threads']} threads, torch {m['torch']}, vidkernels {m['vidkernels']}{when}. "
        f"Reproduce: `python benchmarks/run.py {'ops --device cuda' if m['gpu'] else 'all'}`."
    )


def _what(row: dict) -> list[str]:
    return [f"`{row['op']}` {row['case'].removeprefix('real_')}", row["dtype"], row["pass"]]


def _short(row: dict) -> list[str]:
    variants = row["variants"]
    ours = variants["ours"]["median_ms"]
    wrong = dict.fromkeys(row.get("refused peers", ()), "wrong")
    ratios = [_times(variants[v]["median_ms"] / ours) if v in variants else wrong.get(v, "-")
              for v in ("usual", "careful")]  # fmt: skip
    return [*_what(row), _ms(ours), *ratios, _share(row)]


def _key(row: dict) -> tuple[str, str, str]:
    return row["op"], row["case"], row["pass"]


def _long(row: dict, usual_float32: dict | None) -> list[list[str]]:
    if "refused" in row:
        return [[*_what(row), "refused", _plain(row["refused"]), *[""] * 4]]
    ours = row["variants"]["ours"]["median_ms"]
    lines = []
    variants = dict(row["variants"])
    if usual_float32 is not None and row["dtype"] not in ("float32", "-") and "usual float32" not in variants:
        variants["usual in float32"] = usual_float32
    for label, t in variants.items():
        spread = f"{_ms(t['q1_ms'])} .. {_ms(t['q3_ms'])}"
        line = [label, _ms(t["median_ms"]), spread, "" if label == "ours" else _times(t["median_ms"] / ours)]
        bound = [_ms(row["bound_ms"]) if row["bound_ms"] else "-", _share(row)] if label == "ours" else ["", ""]
        lines.append([*(_what(row) if label == "ours" else ["", "", ""]), *line, *bound])
    for label, reason in row.get("refused peers", {}).items():
        lines.append(["", "", "", label, "refused", _plain(reason), *[""] * 3])
    return lines


def _plain(reason: str) -> str:
    return reason.replace("|", "/").replace("\n", " ")


def _share(row: dict) -> str:
    if not row["bound_ms"]:
        return "-"
    return f"{100 * row['bound_ms'] / row['variants']['ours']['median_ms']:.0f}% ({row['bound_by']})"


def _pretrain(document: dict) -> str:
    """The object that pretrain_step.py writes: settings, and per precision a row for each variant, ours first."""
    found = document.get("pretrain", {})
    rows = []
    for precision in ("fp32", "bf16"):
        ours = next(iter(found[precision].values()))["median_s"] if precision in found else None
        for variant, r in found.get(precision, {}).items():
            spread = f"{_ms(1e3 * r['min_s'])} .. {_ms(1e3 * r['max_s'])}"
            step, ratio = _ms(1e3 * r["median_s"]), _times(r["median_s"] / ours)
            rows.append([variant, precision, step, spread, ratio, _ms(1e3 * r["cpu_s"]), f"{r['peak_mb']:.0f}"])
    if not rows:
        return ""
    head = [f"pretraining step, ViT {found['preset']}, batch {found['batch']}", "type", "ms", "min .. max",
            "against ours", "processor, ms", "peak memory, MB"]  # fmt: skip
    return _table(head, rows)


def _overhead(document: dict) -> str:
    if "overhead" not in document:
        return ""
    columns = ("no_grad_us", "grad_us", "forward_backward_us")
    rows = [[r["label"], *(f"{r[c]:.1f}" for c in columns)] for r in document["overhead"]]
    head = ["eager call of a tiny op, us", "without grad", "grad recorded", "forward + backward"]
    return _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ms(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def _times(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}x"
