"""Pairs of snippets of which people liked one better: made from ratings, not from comparisons.

Nobody was asked which of two snippets is the better one. Some twenty people rated each by itself
(examples/sentiment/material.py has the source); of two whose mean ratings are at least two of the
eight points apart, the higher one counts as chosen. So a pair says that people like it clearly
better, and nothing of two that are alike. Each snippet is in one pair at most.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

#: Of scores, which are ratings divided by 4.
MARGIN = 0.5


def pairs(snippets: Iterable[dict[str, Any]], margin: float = MARGIN) -> Iterator[dict[str, str]]:
    """Lines of pairwise training, each of the two first snippets left that differ enough.

    Args:
        snippets: Lines of ``{"text", "score"}``, with a ``prompt`` or without, in any order.
        margin: The least difference of scores.
    """
    waiting: list[dict[str, Any]] = []
    for snippet in snippets:
        score = snippet["score"]
        found = next((w for w in waiting if abs(w["score"] - score) >= margin), None)
        if found is None:
            waiting.append(snippet)
            continue
        waiting.remove(found)
        chosen, rejected = sorted((found, snippet), key=lambda one: -float(one["score"]))
        # Both follow the prompt that the chosen one has, as answers to one question would.
        prompt = chosen.get("prompt", "")
        texts = (
            (f" {one['text'].strip()}" if prompt else one["text"].strip())
            for one in (chosen, rejected)
        )
        yield dict(zip(("prompt", "chosen", "rejected"), (prompt, *texts), strict=True))


def write(snippets: Path, path: Path, limit: int | None = None) -> int:
    """Write the pairs of a file of snippets as JSON lines; returns their number.

    Args:
        snippets: Of `examples.sentiment.material`: in the order of a hash.
        path: Where to.
        limit: The most snippets that are read.
    """
    with snippets.open(encoding="utf-8") as file:
        found = list(pairs([json.loads(line) for line in file][:limit]))
    path.write_text("".join(json.dumps(pair) + "\n" for pair in found), encoding="utf-8")
    return len(found)
