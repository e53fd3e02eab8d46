"""Write the tables of README and docs: ``python -m tools.tables [--check]``.

Those of families come from docs/families.json, which ``make families`` writes, that of decoding
methods from their registry, and the list of files in docs/architecture.md from the modules'
docstrings. Those of benchmarks are copies of what is in benchmarks/results.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import record
from otter_export.runtime.methods import METHODS
from otter_export.signals import SIGNALS
from tools import family_tables
from tools.family_results import Results

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("otter_export", "converters", "plugins")


def registries() -> str:
    """Families by targets, kinds of signals and decoding methods, as Markdown."""
    lines = [family_tables.summary(Results.load()), ""]
    lines += ["| kind of signal | what it predicts | trained by |", "|---|---|---|"]
    for name in SIGNALS:
        kind = SIGNALS.load(name)
        objectives = ", ".join(f"`{one}`" for one in kind.objectives)
        lines.append(f"| `{name}` | {kind.predicts} | {objectives} |")
    lines.append("")
    lines += ["| decoding method | what it does |", "|---|---|"]
    for name in METHODS:
        summary = (METHODS.load(name).__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `{name}` | {summary} |")
    return "\n".join(lines)


def families() -> str:
    """All that `make families` found."""
    return family_tables.page(Results.load())


def files() -> str:
    """Every module with the first line of its docstring, a table for each folder."""
    folders: dict[Path, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py"), key=lambda p: (p.parent, p.name)):
            # Every file begins with its docstring.
            docstring = path.read_text(encoding="utf-8").split('"""')[1]
            summary = docstring.strip().partition("\n\n")[0]
            summary = summary.replace("\n", " ").replace("|", "\\|")
            folder = path.parent.relative_to(ROOT)
            folders.setdefault(folder, []).append(f"| `{path.name}` | {summary} |")
    tables = [
        "\n".join([f"**`{folder.as_posix()}/`**", "", "| file | |", "|---|---|", *rows])
        for folder, rows in folders.items()
    ]
    return "\n\n".join(tables)


def results(*names: str) -> str:
    """Tables of benchmarks, each with its command and machine above it."""
    return "\n".join(
        f"\n{(record.RESULTS / f'{name}.md').read_text(encoding='utf-8').strip()}\n"
        for name in names
    )


def _of_results(page: str, name: str, *records: str) -> tuple[str, str, str, Callable[[], str]]:
    """A table of a page that is a copy of records."""
    return (
        page,
        f"<!-- {name}: by `python -m tools.tables`, from benchmarks/results; "
        "a test compares them -->",
        f"<!-- {name} end -->",
        functools.partial(results, *records),
    )


#: Page, the comment before a table and the one behind it, and what makes the table.
TABLES: tuple[tuple[str, str, str, Callable[[], str]], ...] = (
    (
        "README.md",
        "<!-- tables: by `python -m tools.tables`, from docs/families.json and the registries; "
        "a test compares them -->",
        "<!-- tables end -->",
        registries,
    ),
    (
        "docs/families.md",
        "<!-- tables: by `python -m tools.tables`, from families.json; a test compares them -->",
        "<!-- tables end -->",
        families,
    ),
    _of_results("docs/performance.md", "speed", "peers_speed"),
    _of_results("docs/performance.md", "savings", "peers_time", "peers_space"),
    _of_results("docs/performance.md", "shapes", "shape_quality"),
    _of_results("docs/performance.md", "drafts", "acceleration", "drafts_plain", "drafts_guided"),
    _of_results(
        "docs/performance.md",
        "exact",
        "drafts_exact_int8",
        "drafts_exact_experts",
        "drafts_exact_int4",
        "drafts_exact_fp32",
    ),
    _of_results("docs/performance.md", "segments", "segments"),
    _of_results("docs/gpu.md", "onnxruntime", "gpu_onnxruntime_steps", "gpu_onnxruntime_bench"),
    (
        "docs/architecture.md",
        "<!-- files: by `python -m tools.tables`, from the modules' docstrings; "
        "a test compares them -->",
        "<!-- files end -->",
        files,
    ),
)


def updated(page: str, text: str) -> str:
    """A page with its tables renewed.

    Args:
        page: Its path in the checkout.
        text: Its content.
    """
    for name, begin, end, make in TABLES:
        if name == page:
            head, _, rest = text.partition(begin)
            _, _, tail = rest.partition(end)
            text = f"{head}{begin}\n{make()}\n{end}{tail}"
    return text


def main() -> int:
    """Rewrite the pages, or with ``--check`` say whether they are up to date."""
    stale = 0
    for page in dict.fromkeys(name for name, *_ in TABLES):
        old = (ROOT / page).read_text(encoding="utf-8")
        new = updated(page, old)
        stale |= int(old != new)
        if "--check" not in sys.argv:
            (ROOT / page).write_text(new, encoding="utf-8")
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
