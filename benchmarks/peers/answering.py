"""The inside of a competitor's process: a line of JSON for every line of JSON.

Nothing but the standard library, so that any interpreter runs it: a peer has an environment of its
own. A question is ``{"prompt": [ids], "count": n, "options": {...}}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Yields up to so many tokens behind a prompt, by the options of a question.
Generate = Callable[..., Iterator[int]]


def answer(version: str, generate: Generate, threads: int) -> None:
    """Answer questions until there are no more.

    Args:
        version: Of the library, for the record.
        threads: That the library runs on. With one, its CPU time is taken, which other work on the
            machine disturbs less than the time on the clock.
        generate: Takes ``prompt`` (ids), ``count`` and the question's options.
    """
    # Libraries print too; what they print goes to the terminal.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"version": version}), file=answers, flush=True)
    clock = time.process_time if threads == 1 else time.perf_counter
    for line in sys.stdin:
        print(json.dumps(_timed(generate, json.loads(line), clock)), file=answers, flush=True)


def _timed(
    generate: Generate, question: dict[str, Any], clock: Callable[[], float]
) -> dict[str, Any]:
    """Tokens, and the time from the first of them to the last: the prompt's own is left out."""
    tokens, times = [], []
    count = question["count"]
    for token in generate(question["prompt"], count, **question.get("options", {})):
        tokens.append(int(token))
        times.append(clock())
        if len(tokens) == count:
            break
    if len(tokens) < 2:
        return {"error": f"{len(tokens)} tokens came; the time of one takes two"}
    milliseconds = 1e3 * (times[-1] - times[0]) / (len(times) - 1)
    return {"tokens": tokens, "milliseconds": milliseconds, "memory": memory()}


def memory() -> dict[str, int]:
    """Bytes: ``VmHWM``, the peak with mapped files; ``RssAnon``, now and without them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmHWM", "RssAnon")}
