"""Checks of an engine against itself: steps, caches and decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from otter_export.engine_io import LOGITS
from otter_export.evaluation import limits
from otter_export.evaluation.check import CheckResult, Limit, decide, not_run
from otter_export.evaluation.counting_engine import CountingEngine
from otter_export.evaluation.parity import Difference, difference, top
from otter_export.evaluation.steps import (
    Rows,
    chunks,
    feed,
    feed_and_keep,
    feed_candidates,
    rows,
    stack,
)
from otter_export.evaluation.subject import CANDIDATES, Subject
from otter_export.runtime.engine import Engine
from otter_export.runtime.generation import generate
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.plain import Plain
from otter_export.runtime.prefill import prefill
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.signals import kind_of

#: Prompts of the checks that generate.
_PROMPTS = 3
#: Chunks per prompt; odd, so that they end inside prompts as well as at their ends.
_CHUNKS = 3
#: Two ways to compute the same rows: what is judged, and what it should be.
_Compare = Callable[[Engine, Sequence[list[int]], int], tuple[Rows, Rows]]


def tree_step(subject: Subject) -> CheckResult:
    """Candidates in one step equal forward passes one by one, also in what the cache keeps."""
    return _same_rows(subject, "tree step", "one step of candidates against one by one", _tree_rows)


def chunked_prefill(subject: Subject) -> CheckResult:
    """A prompt fed in chunks, or padded in a batch, equals the prompt fed at once."""
    return _same_rows(subject, "prefill", "chunks against the whole prompt", _chunked_rows)


def weight_zero(subject: Subject) -> CheckResult:
    """Guided decoding with weight 0 gives the tokens of plain decoding.

    Once as it is, and once with all candidates scored, where rows are computed in another shape:
    there the first token that differs must be a near-tie.
    """
    if _scoring(subject) is None:
        return not_run("weight 0", "the engine has no signal that scores next tokens")
    prompts, count = subject.prompt_ids[:_PROMPTS], subject.max_tokens
    top_k = min(CANDIDATES, subject.manifest.vocab_size)
    events: list[list[TokenEvent]] = [[] for _ in prompts]

    def run(method: Plain | ArgsGreedy) -> list[Result]:
        for seen in events:
            seen.clear()
        requests = [Request(ids, method, max_tokens=count) for ids in prompts]
        return generate(subject.engine, requests, on_event=lambda e: events[e.request].append(e))

    plain = run(Plain())
    method = ArgsGreedy(weight=0.0, top_k=top_k, signal=_scoring(subject))
    zero, scored = run(method), run(dataclasses.replace(method, prune=False))
    wrong: list[str] = []
    ties: list[str] = []
    for index, wanted in enumerate(plain):
        if zero[index].token_ids != wanted.token_ids:
            wrong.append(f"prompt {index + 1}: weight 0 gives other tokens than plain decoding")
        at = first_difference(scored[index].token_ids, wanted.token_ids)
        if at is None:
            continue
        margin = _margin(events[index][at], wanted.token_ids[at])
        line = f"prompt {index + 1}, token {at + 1}: margin {margin:.2g}, all candidates scored"
        (ties if margin <= step_difference(subject).maximum else wrong).append(line)
    tokens = sum(len(result.token_ids) for result in plain)
    return decide(
        "weight 0",
        "sequences that are not plain decoding's",
        len(wrong),
        Limit(0, "a weight of 0 changes nothing"),
        {"tokens": tokens, "near-ties": len(ties)},
        [*wrong, *(f"near-tie: {line}" for line in ties)],
    )


def forward_passes(subject: Subject) -> CheckResult:
    """Guided decoding takes one forward pass per generated token after the first."""
    if _scoring(subject) is None:
        return not_run("forward passes", "the engine has no signal that scores next tokens")
    engine = CountingEngine(subject.engine)
    # The prompt's passes are in both, and go: how many they are depends on the engine.
    before, first = _passes(engine, subject, 1)
    passes, tokens = _passes(engine, subject, subject.max_tokens)
    passes, tokens = passes - before, tokens - first
    if not tokens:
        return not_run("forward passes", "the first token ended the text")
    return decide(
        "forward passes",
        "passes more or less than one per token",
        abs(passes - tokens),
        Limit(0, "the winner's row of logits gives the next candidates"),
        {"per token": passes / tokens, "tokens": tokens},
    )


def _scoring(subject: Subject) -> str | None:
    """The first signal that can guide, of any kind."""
    return next((s.name for s in subject.manifest.signals if kind_of(s).scores), None)


def _passes(engine: CountingEngine, subject: Subject, max_tokens: int) -> tuple[int, int]:
    """Forward passes of a guided generation, the prompt's included, and its tokens."""
    engine.forwards = 0
    # Pruned, a step may be repeated with candidates that were expected to lose.
    count = min(CANDIDATES, subject.manifest.vocab_size)
    method = ArgsGreedy(weight=2.0, top_k=count, prune=False, signal=_scoring(subject))
    request = Request(subject.prompt_ids[0], method, max_tokens=max_tokens)
    tokens = len(generate(engine, request)[0].token_ids)
    return engine.forwards, tokens


def _same_rows(subject: Subject, name: str, what: str, compare: _Compare) -> CheckResult:
    """Judge the exact engine; of one whose kernels round, report also what it gives as it runs."""
    arguments = subject.step_prompts, subject.step_width
    worst = _worst(subject, *compare(subject.exact_engine, *arguments))
    numbers = {"max": worst.maximum}
    if subject.rounds_activations:
        numbers["as it runs"] = _worst(subject, *compare(subject.engine, *arguments)).relative
    return decide(
        name, f"{what}, max / spread", worst.relative, limits.arithmetic(subject.manifest), numbers
    )


def _worst(subject: Subject, values: Rows, reference: Rows) -> Difference:
    found = (difference(values[n], reference[n], subject.spreads[n]) for n in reference)
    return max(found, key=lambda d: d.relative)


def step_difference(subject: Subject) -> Difference:
    """Of logits: one step of candidates against single steps, as the engine runs."""
    values, reference = _tree_rows(subject.engine, subject.step_prompts, CANDIDATES)
    return difference(values[LOGITS], reference[LOGITS], subject.spreads[LOGITS])


def _tree_rows(engine: Engine, prompts: Sequence[list[int]], width: int) -> tuple[Rows, Rows]:
    """Candidates together, and a token after the kept one; against one by one."""
    together: list[Rows] = []
    single: list[Rows] = []
    for prompt in prompts:
        cache = engine.new_cache(1)
        logits = feed_and_keep(engine, cache, prompt)[LOGITS]
        tokens = top(logits[-1:], width)[0].tolist()
        single += [rows(feed(engine, cache, [token])) for token in tokens]
        step = feed_candidates(engine, cache, tokens)
        together.append(rows(step))
        # Not the first row, so that a commit that takes the wrong one is seen.
        kept = len(tokens) - 1
        engine.commit(cache, step, [[kept]])
        together.append(rows(feed(engine, cache, tokens[:1])))
        whole = rows(feed(engine, engine.new_cache(1), [*prompt, tokens[kept], tokens[0]]))
        single.append({name: values[-1:] for name, values in whole.items()})
    return stack(together), stack(single)


def _chunked_rows(engine: Engine, prompts: Sequence[list[int]], _: int) -> tuple[Rows, Rows]:
    """Prompts in chunks, and their last rows from a padded batch; against prompts at once."""
    chunked: list[Rows] = []
    whole: list[Rows] = []
    for prompt in prompts:
        cache = engine.new_cache(1)
        size = -(-len(prompt) // _CHUNKS)
        chunked += [feed_and_keep(engine, cache, part) for part in chunks(prompt, size)]
        whole.append(rows(feed(engine, engine.new_cache(1), prompt)))
    last = [{name: values[-1:] for name, values in part.items()} for part in whole]
    longest = max(len(prompt) for prompt in prompts)
    step = prefill(engine, prompts, -(-longest // _CHUNKS))[1]
    batch = {LOGITS: step.logits[:, -1], **{n: v[:, -1] for n, v in step.signals.items()}}
    return stack([*chunked, batch]), stack([*whole, *last])


def first_difference(found: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Index of the first token that differs; None if one sequence begins with the other."""
    pairs = zip(found, wanted, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def _margin(event: TokenEvent, token: int) -> float:
    """How far apart the logits of the chosen token and of ``token`` were; infinite if unknown."""
    logits = {candidate.token_id: candidate.logit for candidate in event.candidates}
    return abs(logits[event.token_id] - logits.get(token, -np.inf))
