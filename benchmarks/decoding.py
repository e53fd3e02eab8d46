"""Guided decoding against plain, and one tree step against k separate forwards: ratios in one run.

    python benchmarks/decoding.py ENGINE [--tokens 24] [--repeats 3] [--json]

Two questions, all on one engine, interleaved, best of the repeats:

- What does guidance cost over plain decoding, for k candidates, with and without exact pruning?
- What does the tree step save over running the k candidates one by one on the same engine (what a
  loop without a tree mask has to do)?
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from otter_export import ArgsGreedy, Plain, generate, load_engine
from otter_export.runtime.engine import Engine

PROMPTS = ("The movie was", "I watched this film last night and")
WEIGHT = 4.0


@click.command()
@click.argument("engine", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=24, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--top-k", "counts", multiple=True, type=int, default=(2, 4, 8), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(engine: Path, tokens: int, repeats: int, counts: tuple[int, ...], as_json: bool) -> None:
    """Time decoding on ENGINE and print milliseconds per token and ratios to plain decoding."""
    loaded = load_engine(engine)
    runs: dict[str, Callable[[], float]] = {"plain": lambda: decode(loaded, Plain(), tokens)}
    for k in counts:
        pruned = ArgsGreedy(top_k=k, weight=WEIGHT)
        whole = ArgsGreedy(top_k=k, weight=WEIGHT, prune=False)
        runs[f"guided k={k}, pruned"] = lambda m=pruned: decode(loaded, m, tokens)  # type: ignore[misc]
        runs[f"guided k={k}"] = lambda m=whole: decode(loaded, m, tokens)  # type: ignore[misc]
        runs[f"one by one k={k}"] = lambda k=k: one_by_one(loaded, k, tokens)  # type: ignore[misc]
    best = {name: float("inf") for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            best[name] = min(best[name], run())
    rows = {name: {"ms": 1e3 * s, "ratio": s / best["plain"]} for name, s in best.items()}
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(f"{'':22} {'ms/token':>9} {'/ plain':>8}")
    for name, row in rows.items():
        click.echo(f"{name:22} {row['ms']:9.1f} {row['ratio']:8.2f}")


def decode(engine: Engine, method: Plain | ArgsGreedy, tokens: int) -> float:
    """Seconds per generated token, one prompt at a time, as a user waits for it."""
    started, count = time.perf_counter(), 0
    for prompt in PROMPTS:
        count += len(generate(engine, prompt, method, max_tokens=tokens)[0].token_ids)
    return (time.perf_counter() - started) / count


def one_by_one(engine: Engine, k: int, tokens: int) -> float:
    """Seconds per token when each candidate is a forward of its own, then the winner is kept.

    The cache is shared all the same; a loop that copies it k times is slower still.
    """
    started, count = time.perf_counter(), 0
    tree = np.ones((1, 1, 1), np.bool_)
    for prompt in PROMPTS:
        cache = engine.new_cache(1)
        ids = np.array([engine.tokenizer.encode(prompt)], np.int64)
        size = ids.shape[1]
        causal = np.tril(np.ones((1, size, size), np.bool_))
        step = engine.forward(cache, ids, np.arange(size)[None], causal, 1)
        engine.commit(cache, step, [list(range(size))])
        logits = step.logits[0, -1]
        for _ in range(tokens):
            best = np.argpartition(-logits, k)[:k]
            position = np.array([[int(cache.lengths[0])]])
            steps = [
                engine.forward(cache, np.array([[token]], np.int64), position, tree, 1)
                for token in best
            ]
            rewards = [float(s.signals["reward"][0, -1]) for s in steps]
            winner = int(np.argmax(logits[best] + WEIGHT * np.array(rewards)))
            engine.commit(cache, steps[winner], [[0]])
            logits = steps[winner].logits[0, -1]
            count += 1
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
