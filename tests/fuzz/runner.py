"""Runs fuzz cases in processes of their own, with limits, and counts what happened.

    python -m tests.fuzz.runner [--cases 0.1] [--seed 0] [KIND ...]

Each case is drawn from the seed, its kind and its number alone, so that a failure is repeated by
``--only NUMBER``. A worker that takes too long or dies is replaced, and goes on behind that case.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from otter_export.errors import OtterError
from tests.fuzz.kinds import KINDS, LINES

#: Of processor time: one case may take so long, the first longer, since libraries are loaded.
CASE_SECONDS = 10.0
START_SECONDS = 60.0
#: A busy machine may give a worker no time for long; who waits for a pipe does so for ever.
WAITING_SECONDS = 60.0
#: Memory that a worker may have allocated at once.
MEMORY_BYTES = 2 << 30
_SHOWN = 5


@dataclasses.dataclass
class Figures:
    """What the cases of one kind did.

    Attributes:
        accepted, refused: Cases that are right.
        failures: Number of the case, and what it raised.
        hangs: Numbers of cases that took too long.
        peak_bytes: The largest resident size of a worker.
        changed: Files outside of the cases' own folder that are new, gone or different.
        seconds: All cases together.
    """

    accepted: int = 0
    refused: int = 0
    failures: dict[int, str] = dataclasses.field(default_factory=dict)
    hangs: list[int] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    changed: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether nothing went wrong."""
        wrong = self.failures or self.hangs or self.changed
        return not wrong and self.peak_bytes < MEMORY_BYTES


def fuzz(kind: str, numbers: range, seed: int = 0) -> Figures:
    """Run cases of a kind.

    Args:
        kind: A key of `KINDS`.
        numbers: Which cases.
        seed: Of all of them.
    """
    figures, started = Figures(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        root = Path(name)
        for folder in ("outside", "home", "tmp", "cwd"):
            (root / folder).mkdir()
        (root / "outside" / "canary").write_text("nobody writes here")
        before = _snapshot(root)
        while numbers:
            numbers = _work(kind, numbers, seed, root, figures)
        after = _snapshot(root)
    figures.changed = sorted(p for p in before | after if before.get(p) != after.get(p))
    figures.seconds = time.monotonic() - started
    return figures


def _work(kind: str, numbers: range, seed: int, root: Path, figures: Figures) -> range:
    """One worker; returns the cases that are left for the next."""
    command = [sys.executable, "-m", "tests.fuzz.runner", "--worker", kind]
    command += [str(seed), str(numbers.start), str(numbers.stop), str(root)]
    home = {"HOME": root / "home", "TMPDIR": root / "tmp", "XDG_CACHE_HOME": root / "home" / "c"}
    environment = {**os.environ, **{name: str(path) for name, path in home.items()}}
    environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "HF_HUB_OFFLINE": "1"}
    environment |= {"ORT_DISABLE_TELEMETRY": "1"}
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            cwd=root / "cwd",
        ) as worker,
        selectors.DefaultSelector() as selector,
    ):  # fmt: skip
        assert worker.stdout is not None
        selector.register(worker.stdout, selectors.EVENT_READ)
        current = numbers.start
        while current < numbers.stop:
            if not selector.select(START_SECONDS + WAITING_SECONDS):
                worker.kill()
                figures.hangs.append(current)
                return range(current + 1, numbers.stop)
            line = worker.stdout.readline()
            if not line:
                if (status := worker.wait()) == -signal.SIGPROF:
                    figures.hangs.append(current)
                else:
                    figures.failures[current] = f"the process ended with {status}"
                return range(current + 1, numbers.stop)
            _count(figures, current, json.loads(line))
            current += 1
    return range(0)


def _count(figures: Figures, number: int, report: dict[str, Any]) -> None:
    figures.peak_bytes = max(figures.peak_bytes, report["peak"])
    if report["outcome"] == "accepted":
        figures.accepted += 1
    elif report["outcome"] == "refused":
        figures.refused += 1
    else:
        figures.failures[number] = report["outcome"]


def _snapshot(root: Path) -> dict[str, str]:
    """Digests of all files that no case may touch."""
    found = {}
    for folder in ("outside", "home", "cwd"):
        for path in sorted((root / folder).rglob("*")):
            content = path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return found


def worker(kind: str, seed: int, start: int, stop: int, root: Path) -> None:
    """Run cases one after the other; a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # What the code under test prints goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    case = KINDS[kind].prepare(Path(tempfile.mkdtemp(dir=root / "tmp")))
    for number in range(start, stop):
        # The timer's signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS + START_SECONDS * (number == start))
        try:
            case(Random(f"{seed}/{kind}/{number}"))
            outcome = "accepted"
        except OtterError as error:
            outcome = "refused" if str(error).isprintable() or kind in LINES else repr(error)
        except KeyboardInterrupt:
            raise
        # Panics of libraries are BaseException.
        except BaseException as error:
            outcome = f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]!r}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        reports.write(json.dumps({"outcome": outcome, "peak": peak}) + "\n")
        reports.flush()


def table(results: dict[str, Figures]) -> str:
    """The figures, as Markdown."""
    head = ("kind", "cases", "accepted", "refused", "failed", "hung", "files", "peak MB", "s")
    rows = [head, tuple("---" for _ in head)]
    for kind, f in results.items():
        cases = f.accepted + f.refused + len(f.failures) + len(f.hangs)
        numbers = (cases, f.accepted, f.refused, len(f.failures), len(f.hangs), len(f.changed))
        rows.append((kind, *map(str, numbers), f"{f.peak_bytes >> 20}", f"{f.seconds:.0f}"))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> int:
    """The command line; status 1 if a case went wrong."""
    parser = argparse.ArgumentParser(description="Fuzz the formats, the API and the requests.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--cases", type=float, default=1.0, help="share of the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, in this process, with its traceback")
    arguments = parser.parse_args()
    chosen = arguments.kinds or list(KINDS)
    if arguments.only is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            case = KINDS[chosen[0]].prepare(Path(name))
            case(Random(f"{arguments.seed}/{chosen[0]}/{arguments.only}"))
        return 0
    results = {}
    for kind in chosen:
        count = max(1, round(arguments.cases * KINDS[kind].cases))
        results[kind] = figures = fuzz(kind, range(count), arguments.seed)
        for number, failure in list(figures.failures.items())[:_SHOWN]:
            print(f"{kind} {number}: {failure}", file=sys.stderr)
        for number in figures.hangs[:_SHOWN]:
            print(f"{kind} {number}: did not end in {CASE_SECONDS:g} s", file=sys.stderr)
        for path in figures.changed[:_SHOWN]:
            print(f"{kind}: {path} was changed", file=sys.stderr)
    print(table(results))
    return 0 if all(figures.right for figures in results.values()) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, seed, start, stop, root = sys.argv[2:]
        worker(kind, int(seed), int(start), int(stop), Path(root))
    else:
        sys.exit(main())
