"""A competitor's process: an engine of this project."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.answering import answer
from otter_export import Request, TokenEvent, __version__, load_engine, stream
from otter_export.runtime.methods import make_method


def main() -> None:
    """Load the engine and answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    engine = load_engine(options.engine, threads=options.threads)

    def generate(prompt: list[int], count: int, method: str, **chosen: Any) -> Iterator[int]:
        request = Request(prompt, make_method(method, chosen), max_tokens=count)
        events = (e for e in stream(engine, request) if isinstance(e, TokenEvent))
        return (event.token_id for event in events)

    answer(__version__, generate, options.threads)


if __name__ == "__main__":
    main()
