"""Runs in turns, and a record of them with the machine: JSON, a table, a plot.

    rows = in_turns({"genai": ask_genai, "ours": ask_ours}, rounds=7, against="genai")
    write("peers", [{"model": "135M", **row} for row in rows], libraries=("onnxruntime",))

A competitor is a function that does its work once and returns what it measured, such as
milliseconds per token; it may well sit in another process.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Column names and values of one line of a table, in order.
Row = Mapping[str, Any]
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
#: What every record names, whatever else a benchmark uses.
LIBRARIES = ("numpy", "onnxruntime")
MAX_PLOT_BYTES = 100_000


def in_turns(
    runs: Mapping[str, Callable[[], float]], *, rounds: int, against: str, warmup: int = 1
) -> list[dict[str, Any]]:
    """Run all competitors one after another, several times over.

    Args:
        runs: By name; each does its work once and returns the figure, such as milliseconds.
        rounds: How often each one is counted.
        against: The competitor that ratios divide by.
        warmup: Rounds before these, which are dropped.

    Returns:
        A row for each, with ``name``, ``median``, ``p10`` (of the figures) and ``ratio``: the
        median of its figure over that of ``against`` in the same round. Other work on the machine
        that slows a round slows both, so the ratio moves less than the figures do.

    Raises:
        KeyError: No competitor is called ``against``.
        ValueError: There are no rounds.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    if against not in runs:
        raise KeyError(against)
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            figure = run()
            if turn >= warmup:
                figures[name].append(figure)
    return [
        {
            "name": name,
            "median": statistics.median(own),
            "p10": float(np.percentile(own, 10)),
            "ratio": statistics.median(a / b for a, b in zip(own, figures[against], strict=True)),
        }
        for name, own in figures.items()
    ]


def write(
    name: str,
    rows: Sequence[Row],
    *,
    libraries: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    figure: Any = None,
    folder: Path = RESULTS,
    **details: Any,
) -> Path:
    """Write a record: ``NAME.json``, ``NAME.md`` and, with a figure, ``NAME.png``.

    Args:
        name: Of the files, without a suffix.
        rows: The table. Columns are the keys of all rows, in the order in which they appear.
        libraries: Installed distributions whose versions count, beside `LIBRARIES`.
        versions: Of what is not installed in this environment, such as a peer of its own.
        figure: A matplotlib figure.
        folder: Where the files go.
        **details: What else the JSON says, such as prompts and settings.

    Returns:
        The path of the JSON.

    Raises:
        importlib.metadata.PackageNotFoundError: A library is not installed.
        ValueError: The plot takes more than `MAX_PLOT_BYTES`.
    """
    found = {library: importlib.metadata.version(library) for library in (*LIBRARIES, *libraries)}
    report = {
        "command": command(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **found, **(versions or {})},
        **details,
        "rows": [dict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    ran_on = report["machine"]
    processors = ", ".join([*ran_on.get("gpus", ()), ran_on["processor"]])
    head = (
        f"`{report['command']}`, on {processors}, {ran_on['cores']} cores,"
        f" {ran_on['memory_bytes'] / 2**30:.0f} GiB;"
        f" {', '.join(f'{k} {v}' for k, v in report['versions'].items())}\n\n"
    )
    (folder / f"{name}.md").write_text(head + table(rows), encoding="utf-8")
    if figure is not None:
        plot = folder / f"{name}.png"
        figure.savefig(plot, dpi=80)
        if (size := plot.stat().st_size) > MAX_PLOT_BYTES:
            plot.unlink()
            raise ValueError(f"{plot.name} takes {size} bytes; draw less or smaller")
    return path


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; a value that a row does not have is left empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_shown(row.get(column)) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: object) -> str:
    """A cell: three digits of a small number, whole large ones."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def command() -> str:
    """The command line that runs, without paths of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # `python -m benchmarks.x` has a module's name; `python benchmarks/x.py` a path.
    program = (
        f"-m {spec.name.removesuffix('.__main__')}" if spec is not None else _relative(sys.argv[0])
    )
    return " ".join(["python", program, *map(_relative, sys.argv[1:])])


def _relative(argument: str) -> str:
    """An argument; an absolute path in it as it is seen from the repository, else by its name."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    inside = path.is_relative_to(REPOSITORY)
    return option + equals + (str(path.relative_to(REPOSITORY)) if inside else path.name)


def machine() -> dict[str, Any]:
    """The processor's name, the cores that this process may use, the memory, and any GPUs."""
    found = gpus()
    return {
        **({"gpus": found} if found else {}),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.system(),
    }


def gpus() -> list[str]:
    """Names and drivers of NVIDIA's GPUs, by ``nvidia-smi``; none where it is not."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip().replace(", ", ", driver ") for line in said.splitlines()]


def processor() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
