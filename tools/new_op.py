"""Start an op from the canonical one: copy every file of gather_tokens under a new name. It builds and passes as it is.

python tools/new_op.py merge_rows [--root DIR]
"""

from __future__ import annotations

import argparse
import keyword
import re
import shutil
import subprocess
import sys
from pathlib import Path

CANONICAL = "gather_tokens"
PLACES = ("csrc/ops/{op}", "vidkernels/ops/{op}", "csrc/selftest/test_{op}.cpp", "python_tests/ops/test_{op}.py")


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def renamed(text: str, name: str) -> str:
    return text.replace(CANONICAL, name).replace(camel(CANONICAL), camel(name))


def sources(root: Path) -> list[Path]:
    found = []
    for place in PLACES:
        path = root / place.format(op=CANONICAL)
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [p for p in found if p.suffix in (".h", ".cpp", ".cu", ".py")]


def refuse(name: str, root: Path) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        return f"expected NAME in snake_case, like merge_rows, got {name!r}"
    for place in PLACES:
        if (root / place.format(op=name)).exists():
            return f"{place.format(op=name)} is already there"
    return None


def tidy(files: list[Path]) -> None:
    """A longer or shorter name moves line breaks and the order of imports."""
    python = [str(f) for f in files if f.suffix == ".py"]
    for arguments in (["check", "--fix-only"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *arguments, "-q", *python], check=True)
    if clang_format := shutil.which("clang-format"):
        subprocess.run([clang_format, "-i", *(str(f) for f in files if f.suffix != ".py")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="", metavar="NAME")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args()
    reason = refuse(options.name, options.root)
    if reason is not None:
        parser.error(reason)
    written = []
    for path in sources(options.root):
        target = options.root / renamed(str(path.relative_to(options.root)), options.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(renamed(path.read_text(), options.name))
        written.append(target)
        print(target.relative_to(options.root))
    tidy(written)
    print("Next: make test. Then CONTRIBUTING.md, 'Adding an op', says what to change in which order.")


if __name__ == "__main__":
    main()
