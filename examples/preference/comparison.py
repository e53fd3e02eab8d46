"""ARGS over plain decoding, and with drafts over without: texts, tokens, time.

Every way to decode writes all openings, several together, without drafts and with each drafter; the
tokens must be the same. What it writes is judged against plain decoding with the same truncation
and temperature. Then a few openings are timed, one at a time on one thread.

A draft can be right only at a place where one candidate is left: where the gate is closed, or where
pruning leaves no other (docs/decoding.md). The share of such places is counted; the gain of drafts
stands or falls with it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.drafts import Decoding, measure
from examples.sentiment import judges
from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, TokenEvent
from otter_export.evaluation.text_metrics import bootstrap_paired_difference
from otter_export.evaluation.written import Written
from otter_export.evaluation.written import write as write_texts
from otter_export.runtime.drafts import NONE, draft_names
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod

Array = npt.NDArray[np.float64]

TOP_K, TEMPERATURE, SEED = 8, 0.8, 2026
GREEDY_WEIGHT, STOCHASTIC_WEIGHT = 4.0, 8.0
#: Nats.
GATE = 3.0
#: By name: the way to decode, and the plain one that it is compared with.
PLAIN_GREEDY, PLAIN_SAMPLED = "plain greedy", "plain sampled"
_GREEDY = ArgsGreedy(top_k=TOP_K, weight=GREEDY_WEIGHT)
_STOCHASTIC = ArgsStochastic(top_k=TOP_K, weight=STOCHASTIC_WEIGHT, temperature=TEMPERATURE)
PLAIN: Mapping[str, DecodingMethod] = {
    PLAIN_GREEDY: Plain(),
    PLAIN_SAMPLED: Plain(top_k=TOP_K, temperature=TEMPERATURE),
}
GUIDED: Mapping[str, tuple[DecodingMethod, str]] = {
    "ARGS greedy": (_GREEDY, PLAIN_GREEDY),
    f"ARGS greedy, gate {GATE:g}": (dataclasses.replace(_GREEDY, gate=GATE), PLAIN_GREEDY),
    "ARGS stochastic": (_STOCHASTIC, PLAIN_SAMPLED),
    f"ARGS stochastic, gate {GATE:g}": (
        dataclasses.replace(_STOCHASTIC, gate=GATE),
        PLAIN_SAMPLED,
    ),
}
#: A speed-up below this is not told from none: two runs of one way differ as much.
FASTER = 1.05


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is written.

    Args:
        prompts: Openings.
        tokens: Most tokens behind each.
        together: Openings that decode together.
        timed: Openings that are timed, one at a time.
        rounds: In which all drafters take turns.
    """

    prompts: int = 36
    tokens: int = 32
    together: int = 12
    timed: int = 8
    rounds: int = 2


FULL = Size()
QUICK = Size(prompts=2, tokens=6, together=2, timed=1, rounds=1)


@dataclasses.dataclass(frozen=True)
class Drafted(Written):
    """What one way wrote without drafts, and what drafts change.

    Args:
        single: Share of the tokens that were chosen from one candidate.
        same: By drafter, how many prompts have the same tokens with it.
    """

    single: float
    same: Mapping[str, int]


def write(engine: Engine, prompts: Sequence[str], size: Size) -> dict[str, Drafted]:
    """Write by every way; guided ones with every drafter too."""
    drafters = [name for name in draft_names(engine.manifest) if name != NONE]
    ways: dict[str, tuple[DecodingMethod, list[str]]] = {n: (m, []) for n, m in PLAIN.items()}
    ways |= {name: (method, drafters) for name, (method, _) in GUIDED.items()}
    written = {}
    for name, (method, drafts) in tqdm(ways.items(), "writing", leave=False):
        events: list[TokenEvent] = []

        def run(drafter: str, method: DecodingMethod = method, **listen: Any) -> Written:
            requests = [
                Request(prompt, method, size.tokens, seed=SEED + i, drafts=drafter)
                for i, prompt in enumerate(prompts)
            ]
            return write_texts(engine, requests, batch_size=size.together, **listen)

        one = run(NONE, on_event=events.append)
        same = {
            drafter: sum(a == b for a, b in zip(one.token_ids, run(drafter).token_ids, strict=True))
            for drafter in drafts
        }
        single = np.mean([event.gated or len(event.candidates) == 1 for event in events])
        written[name] = Drafted(**vars(one), single=float(single), same=same)
    return written


def timed(engine: Engine, prompts: Sequence[str], size: Size) -> dict[str, list[dict[str, Any]]]:
    """By guided way, a row of `benchmarks.drafts.measure` for each drafter."""
    alone = functools.partial(
        Decoding,
        engine,
        prompts=prompts[: size.timed],
        tokens=size.tokens,
        clock=time.process_time,
    )
    found = {}
    for name, (method, _) in tqdm(GUIDED.items(), "timing", leave=False):
        ways = {drafts: alone(drafts, method=method) for drafts in draft_names(engine.manifest)}
        found[name] = [dict(row) for row in measure(ways, size.rounds)]
    return found


def compare(base: Path, written: Mapping[str, Drafted]) -> dict[str, dict[str, Any]]:
    """Means of each way, and of guided ones the differences to their plain one.

    A difference is its mean and its 95 % bootstrap interval over prompts.
    """
    verdicts = judges.judge(base, {name: one.texts for name, one in written.items()})
    scores = {
        name: {"reward": one.reward, "vader": verdicts[name].vader, "probe": verdicts[name].probe}
        for name, one in written.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for name, one in written.items():
        found[name] = {judge: float(values.mean()) for judge, values in scores[name].items()}
        found[name] |= {"perplexity": verdicts[name].perplexity, "single": one.single}
        if name in GUIDED:
            plain = scores[GUIDED[name][1]]
            intervals = {
                judge: bootstrap_paired_difference(values, plain[judge], seed=SEED)
                for judge, values in scores[name].items()
            }
            found[name]["over plain"] = {j: [i.mean, i.low, i.high] for j, i in intervals.items()}
            found[name]["same"] = dict(one.same)
    return found


def quality(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each way, then the differences to plain."""
    lines = [f"{'':24} {'reward':>7} {'VADER':>7} {'probe':>7} {'base ppl':>9}"]
    for name, row in found.items():
        lines.append(
            f"{name:24} {row['reward']:7.3f} {row['vader']:7.3f} {row['probe']:7.3f} "
            f"{row['perplexity']:9.1f}"
        )
    lines.append("over plain decoding alike, with 95 % intervals over prompts:")
    for name, row in found.items():
        if "over plain" in row:
            cells = (
                f"{j} {m:+.3f} [{a:+.3f}, {b:+.3f}]" for j, (m, a, b) in row["over plain"].items()
            )
            lines.append(f"  {name:22} {',  '.join(cells)}")
    return "\n".join(lines)


def drafts(
    found: Mapping[str, Mapping[str, Any]],
    times: Mapping[str, Sequence[Mapping[str, Any]]],
    prompts: int,
) -> str:
    """A line for each way and drafter, and which of them pay."""
    lines = [
        f"{'':24} {'drafts':>7} {'forwards a token':>17} {'right':>6} {'speed-up':>9} "
        f"{'same together':>14} {'alone':>8}"
    ]
    for name, rows in times.items():
        for row in rows:
            same = found[name]["same"].get(row["drafts"])
            together = "" if same is None else f"{same} of {prompts}"
            right = "" if row["right"] is None else f"{row['right']:.2f}"
            lines.append(
                f"{name:24} {row['drafts']:>7} {1 / row['tokens a pass']:17.3f} {right:>6} "
                f"{row['speed-up']:9.2f} {together:>14} {row['same']:>8}"
            )
    return "\n".join([*lines, *_verdicts(found, times)])


def _verdicts(
    found: Mapping[str, Mapping[str, Any]], times: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[str]:
    for name, rows in times.items():
        none, *others = rows
        best = max(others, key=lambda row: float(row["speed-up"]))
        fewer = best["tokens a pass"] > none["tokens a pass"]
        faster = "faster" if fewer and best["speed-up"] >= FASTER else "no faster"
        yield (
            f"  {name}: {found[name]['single']:.0%} of its tokens had one candidate; {faster} with "
            f"drafts ({best['drafts']}: {best['speed-up']:.2f})"
        )
