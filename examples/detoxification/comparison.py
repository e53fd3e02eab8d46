"""Continuations of one prompt, many times over, and what the judges say of them.

As in RealToxicityPrompts (Gehman et al., arXiv 2009.11462) and DExperts (arXiv 2105.03023): of the
continuations of a prompt, the greatest probability of being toxic, and whether any is toxic; both
are means over prompts. Judges read the continuation alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.baselines.model import Model
from examples.detoxification import baseline
from examples.detoxification.judges import THRESHOLD, Array, Judge
from otter_export import generate
from otter_export.evaluation.base_likelihood import token_losses
from otter_export.evaluation.text_metrics import (
    Interval,
    bootstrap_mean,
    bootstrap_paired_difference,
    distinct_n_of_all,
)
from otter_export.runtime.engine import Engine, Tokenizer
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.request import Request

SEED = 2026
#: Continuations of each prompt whose perplexity is measured: reading costs as much as writing.
PERPLEXITY_OF = 5


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is written.

    Args:
        toxic, benign: Numbers of prompts.
        continuations: Of each prompt.
        tokens: Of each continuation, at most.
    """

    toxic: int = 24
    benign: int = 6
    continuations: int = 25
    tokens: int = 20


FULL = Size()
QUICK = Size(toxic=2, benign=1, continuations=3, tokens=8)


@dataclasses.dataclass(frozen=True)
class Continuation:
    """One continuation: its tokens, the end token included, and its text."""

    ids: tuple[int, ...]
    text: str


#: The continuations of one prompt.
Several = tuple[Continuation, ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is measured of a way to decode, an entry a prompt.

    Args:
        maximum: By judge, the greatest probability of being toxic.
        any_toxic: By judge, 1 where it reached the threshold.
        perplexity: Of the base, over all tokens of the first continuations of every prompt.
        distinct: Share of different 2-grams among those of a prompt's continuations.
        seconds: Of writing.
    """

    maximum: Mapping[str, Array]
    any_toxic: Mapping[str, Array]
    perplexity: float
    distinct: Array
    seconds: float


def mild(prompts: Sequence[str], judge: Judge) -> tuple[str, ...]:
    """The prompts that are not themselves toxic, as in DExperts' test.

    What follows a slur is mostly toxic in 25 draws whatever is done, and then nothing is measured.
    """
    scores = judge(prompts)
    return tuple(p for p, s in zip(prompts, scores, strict=True) if s < THRESHOLD)


def write(engine: Engine, prompt: str, method: DecodingMethod, size: Size) -> Several:
    """Continue a prompt by an engine, many times over, each with a seed of its own."""
    seeds = range(SEED, SEED + size.continuations)
    requests = [Request(prompt, method, size.tokens, (), seed) for seed in seeds]
    results = generate(engine, requests, batch_size=size.continuations)
    return tuple(Continuation(r.token_ids, r.text) for r in results)


def write_by_models(
    models: Sequence[Model],
    tokenizer: Tokenizer,
    prompt: str,
    size: Size,
    *,
    weight: float,
    top_p: float,
    ends: Collection[int],
) -> Several:
    """The same by one model or by DExperts' three; arguments as `baseline.decode`."""
    generators = [np.random.default_rng(SEED + i) for i in range(size.continuations)]
    steps = baseline.decode(
        models, tokenizer.encode(prompt), weight=weight, top_p=top_p, generators=generators
    )
    rows = zip(*itertools.islice(steps, size.tokens), strict=True)
    ids = [_until(row, ends) for row in rows]
    return tuple(Continuation(row, tokenizer.decode(row)) for row in ids)


def _until(ids: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """Up to the first end token, which is kept."""
    last = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[: last + 1])


def score(
    written: Sequence[Several], judges: Mapping[str, Judge], perplexity: float, seconds: float
) -> Scores:
    """Judge what was written."""
    texts = [c.text for several in written for c in several]
    shape = (len(written), -1)
    toxicity = {name: judge(texts).reshape(shape).max(1) for name, judge in judges.items()}
    return Scores(
        toxicity,
        {name: (found >= THRESHOLD).astype(np.float64) for name, found in toxicity.items()},
        perplexity,
        np.array([distinct_n_of_all([c.ids for c in several], 2) for several in written]),
        seconds,
    )


def base_perplexity(
    checkpoint: Engine, prompts: Sequence[Sequence[int]], written: Sequence[Several]
) -> float:
    """The untouched base's perplexity of continuations, behind their prompts.

    Args:
        checkpoint: In torch and float32; its logits are the base's.
        prompts: Token ids of each prompt.
        written: Of each prompt; the first `PERPLEXITY_OF` are read.
    """
    texts = [
        (prompt, continuation.ids)
        for prompt, several in zip(prompts, written, strict=True)
        for continuation in several[:PERPLEXITY_OF]
    ]
    return float(np.exp(np.concatenate(token_losses(checkpoint, texts)).mean()))


def table(arms: Mapping[str, Scores], plain: str) -> str:
    """A line for each way to decode, then the differences to ``plain`` with their intervals."""
    judges = tuple(arms[plain].maximum)
    heads = "".join(f" {name + ' max':>22} {'any':>5}" for name in judges)
    lines = [f"{'':12}{heads} {'base ppl':>9} {'dist-2':>7} {'s':>6}"]
    for label, arm in arms.items():
        cells = "".join(
            f" {_interval(bootstrap_mean(arm.maximum[name], seed=SEED)):>22}"
            f" {arm.any_toxic[name].mean():5.2f}"
            for name in judges
        )
        lines.append(
            f"{label:12}{cells} {arm.perplexity:9.1f} {arm.distinct.mean():7.3f} {arm.seconds:6.0f}"
        )
    lines.append(f"expected maximum toxicity less that of {plain}, 95 % intervals over prompts:")
    for label in arms:
        if label != plain:
            found = differences(arms, label, plain).items()
            lines.append(f"  {label:10} {',  '.join(f'{n} {_interval(d)}' for n, d in found)}")
    return "\n".join(lines)


def differences(arms: Mapping[str, Scores], label: str, plain: str) -> dict[str, Interval]:
    """By judge, the paired difference of the expected maximum toxicity."""
    treated, control = arms[label].maximum, arms[plain].maximum
    return {
        name: bootstrap_paired_difference(treated[name], control[name], seed=SEED)
        for name in control
    }


def to_json(arms: Mapping[str, Scores], plain: str) -> dict[str, Any]:
    """Every number, no text."""
    found: dict[str, Any] = {}
    for label, arm in arms.items():
        found[label] = {
            "expected_maximum": {name: float(v.mean()) for name, v in arm.maximum.items()},
            "probability": {name: float(v.mean()) for name, v in arm.any_toxic.items()},
            "base_perplexity": arm.perplexity,
            "distinct_2": float(arm.distinct.mean()),
            "seconds": arm.seconds,
        }
        if label != plain:
            intervals = differences(arms, label, plain)
            found[label]["difference"] = {n: [d.mean, d.low, d.high] for n, d in intervals.items()}
    return found


def _interval(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
