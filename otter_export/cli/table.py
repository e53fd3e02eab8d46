"""Plain text for people: aligned tables, sizes and counts."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

from otter_export.quoting import one_line


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Align columns; a column whose cells are all numbers is set to the right.

    Args:
        rows: Cells as text; each row as long as ``header``.
        header: Names of the columns.
    """
    # Names come out of strangers' files.
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] == "-"


def human_bytes(count: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1023.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_count(count: int) -> str:
    """``1234567`` as ``1.23 M``."""
    size = float(count)
    for unit in ("", " K", " M"):
        if size < 999.5:  # what rounds to 1000 belongs to the next unit
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g} G"


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
