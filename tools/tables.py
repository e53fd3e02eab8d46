"""Write the README's tables from the registries: ``python tools/tables.py [--check]``."""

from __future__ import annotations

import sys
from pathlib import Path

from otter_export.converters import TARGETS
from otter_export.converters.target import supports_family
from otter_export.families import FAMILIES
from otter_export.runtime.methods import METHODS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- tables: by `python tools/tables.py`; a test compares them with the registries -->"
END = "<!-- tables end -->"


def tables() -> str:
    """Families by targets, and decoding methods, as Markdown."""
    names = TARGETS.names()
    targets = " | ".join(f"`--target {name}`" for name in names)
    lines = [f"| base family | `model_type` | {targets} |"]
    lines.append("|---|---|" + "---|" * len(names))
    loaded = [TARGETS.load(name) for name in names]
    for name in FAMILIES:
        types = ", ".join(f"`{t}`" for t in FAMILIES.load(name).model_types)
        cells = [", ".join(t.precisions) if supports_family(t, name) else "no" for t in loaded]
        lines.append(f"| {name} | {types} | " + " | ".join(cells) + " |")
    lines += ["", "| decoding method | what it does |", "|---|---|"]
    for name in METHODS:
        summary = (METHODS.load(name).__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `{name}` | {summary} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """The README with its tables renewed."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


def main() -> int:
    """Rewrite the README, or with ``--check`` say whether it is up to date."""
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if "--check" in sys.argv:
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
