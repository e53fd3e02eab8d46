"""Drafts: tokens a pass, and the speed against the same engine without drafts.

    python -m benchmarks.drafts [ENGINE] [--method plain] [--tokens 48] [--threads 1]

Prompts of three kinds (prose, text that repeats itself, code) are continued by every drafter that
the engine has, one prompt at a time or several together. All ways take turns, and a way's time is
divided by that without drafts of the same round; the prompt is in both. *Same* counts the prompts
whose tokens are those without drafts, which should be all. Writes drafts.json and drafts.md into
benchmarks/results. With one thread CPU time is counted instead of wall time, which other work on
the machine disturbs less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.record import REPOSITORY, Row, in_turns, write
from otter_export import Plain, Request, Result, generate, load_engine
from otter_export.runtime.drafts import NONE, draft_names
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods import METHODS, make_method, method_options
from otter_export.runtime.methods.base import DecodingMethod

PROMPTS = {
    "prose": (
        "The old lighthouse at the end of the bay had been empty for years when",
        "A good way to begin the day is",
        "Scientists who study the deep sea have found that",
        "My grandmother told me a story about a fox who",
    ),
    "repetitive": (
        "Monday: open at 9, closed at 5. Tuesday: open at 9, closed at 5. Wednesday: open at 9,",
        "one apple, two apples, three apples, one pear, two pears, three pears, one plum,",
        "Q: What is 1 + 1? A: 2. Q: What is 1 + 2? A: 3. Q: What is 1 + 3? A: 4. Q: What is",
        "red is a colour, green is a colour, blue is a colour, and yellow",
    ),
    "code": (
        "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(",
        "for i in range(10):\n    for j in range(10):\n        print(i, j)\n\nfor i in range(",
        '{"name": "Ada", "age": 36}\n{"name": "Alan", "age": 41}\n{"name": "Grace",',
        "import numpy as np\n\nx = np.zeros((3, 3))\ny = np.ones((3, 3))\nz = np.",
    ),
}


@click.command()
@click.argument(
    "directory",
    type=click.Path(path_type=Path, exists=True),
    default=REPOSITORY / "build" / "demo" / "engine-int8",
)
@click.option("--method", default="plain", show_default=True, help=", ".join(METHODS) + ".")
@click.option("--temperature", type=float)
@click.option("--weight", type=float)
@click.option("--top-k", type=int)
@click.option("--signal")
@click.option("--prompts", "count", default=4, show_default=True, help="Of each kind, at most 4.")
@click.option("--together", default=1, show_default=True, help="Prompts at a time.")
@click.option("--tokens", default=48, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, help="[default: OMP_NUM_THREADS, else all cores]")
@click.option("--name", default="drafts", show_default=True, help="Of the files that are written.")
def main(
    directory: Path,
    method: str,
    count: int,
    together: int,
    tokens: int,
    rounds: int,
    threads: int | None,
    name: str,
    **options: Any,
) -> None:
    """Measure drafts on the engine in DIRECTORY (default: the demo's)."""
    engine = load_engine(directory, threads=threads)
    given = {option: value for option, value in options.items() if value is not None}
    chosen = make_method(method, {k: v for k, v in given.items() if k in method_options(method)})
    clock = time.process_time if threads == 1 else time.perf_counter
    rows = []
    for kind, prompts in PROMPTS.items():
        ways = {
            drafts: Decoding(
                engine,
                drafts,
                prompts[:count],
                method=chosen,
                tokens=tokens,
                together=together,
                clock=clock,
            )
            for drafts in draft_names(engine.manifest)
        }
        rows += [{"text": kind, **row} for row in measure(ways, rounds)]
    path = write(
        name,
        rows,
        engine=directory.name,
        method=method,
        options=given,
        prompts=count,
        together=together,
        tokens=tokens,
        rounds=rounds,
        threads=threads,
    )
    click.echo(path.with_suffix(".md").read_text(encoding="utf-8"))


class Decoding:
    """Continues prompts with one drafter, and keeps what came of it the last time.

    Args:
        engine: Which decodes.
        drafts: The drafter, as of a request.
        prompts: To continue, by `Plain` unless ``method`` says otherwise.
        method: How tokens are chosen.
        tokens: Of each prompt, at most.
        together: Prompts at a time.
        clock: Seconds.

    Attributes:
        results: Of the last call.
    """

    def __init__(
        self,
        engine: Engine,
        drafts: str,
        prompts: Sequence[str],
        *,
        method: DecodingMethod | None = None,
        tokens: int,
        together: int = 1,
        clock: Callable[[], float],
    ) -> None:
        chosen = Plain() if method is None else method
        self._requests = [
            Request(prompt, chosen, tokens, seed=i, drafts=drafts)
            for i, prompt in enumerate(prompts)
        ]
        self._engine, self._together, self._clock = engine, together, clock
        self.results: list[Result] = []

    def __call__(self) -> float:
        """Decode; returns milliseconds a token."""
        started = self._clock()
        self.results = generate(self._engine, self._requests, batch_size=self._together)
        seconds = self._clock() - started
        return 1e3 * seconds / sum(len(result.token_ids) for result in self.results)


def measure(
    ways: Mapping[str, Decoding],
    rounds: int,
    others: Mapping[str, Callable[[], float]] | None = None,
) -> list[Row]:
    """A row for each way: what it drafts, what of it is right, and what that is worth.

    Args:
        ways: By name, `NONE` among them.
        rounds: See `in_turns`.
        others: What is timed with them, in milliseconds a token.
    """
    turns = in_turns({**ways, **(others or {})}, rounds=rounds, against=NONE)
    plain = ways[NONE].results
    return [
        {
            "drafts": turn["name"],
            **(_counts(ways[turn["name"]].results, plain) if turn["name"] in ways else {}),
            "speed-up": 1 / turn["ratio"],
            "ms a token": turn["median"],
        }
        for turn in turns
    ]


def _counts(results: Sequence[Result], plain: Sequence[Result]) -> Row:
    tokens = sum(len(result.token_ids) for result in results)
    drafted = sum(result.drafted or 0 for result in results)
    accepted = sum(result.accepted or 0 for result in results)
    same = [a.token_ids == b.token_ids for a, b in zip(results, plain, strict=True)]
    return {
        "tokens a pass": tokens / sum(result.forwards for result in results),
        "right": accepted / drafted if drafted else None,
        "same": f"{sum(same)} of {len(same)}",
    }


if __name__ == "__main__":
    main()
