"""Error texts of this package, after the house's template."""

from __future__ import annotations


def message(where: str, said: str, hint: str = "", **facts) -> str:
    width = max((len(name) for name in facts), default=0)
    lines = [f"{where}: {said}"]
    lines += [f"  {name:<{width}} : {value}" for name, value in facts.items()]
    if hint:
        lines.append(f"HINT: {hint}")
    return "\n".join(lines)
