"""Checks of what decoding makes of the signals of each kind: drafts, experts, and their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from otter_export.engine_io import LOGITS
from otter_export.evaluation import limits
from otter_export.evaluation.check import CheckResult, Limit, decide, none_may_differ, not_run
from otter_export.evaluation.decoding_checks import first_difference, step_difference
from otter_export.evaluation.parity import difference
from otter_export.evaluation.steps import Rows, feed, rows, stack
from otter_export.evaluation.subject import CANDIDATES, Subject
from otter_export.runtime.drafts import NONE
from otter_export.runtime.drafts.medusa import drafting
from otter_export.runtime.generation import generate
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.methods.experts import Experts
from otter_export.runtime.methods.plain import Plain
from otter_export.runtime.request import Request, Result
from otter_export.signals import Scores, kind_of

#: Prompts of each check.
_PROMPTS = 3
_LOOKUP = "lookup"


def drafts(subject: Subject) -> CheckResult:
    """Drafts change no token: those of prompt lookup, and of each signal that drafts.

    Where the engine's rows do not depend on their neighbours, also of guided and of sampled text;
    elsewhere of greedy text alone, whose first token that differs must be a near-tie.
    """
    exact = subject.engine.chains_alike
    methods: list[DecodingMethod] = [Plain()]
    if exact:
        next_token = _scoring(subject, Scores.NEXT)
        methods += [Plain(temperature=1.0), *(ArgsGreedy(signal=name) for name in next_token[:1])]
    own = [signal.name for signal in drafting(subject.manifest)]
    wrong: list[str] = []
    ties: list[str] = []
    fed = accepted = 0
    for method in methods:
        plain = _run(subject, method)
        for name in (_LOOKUP, *own):
            for index, found in enumerate(_run(subject, method, name)):
                fed, accepted = fed + (found.drafted or 0), accepted + (found.accepted or 0)
                wanted = plain[index].token_ids
                if found.token_ids == wanted:
                    continue
                at = first_difference(found.token_ids, wanted)
                line = f"prompt {index + 1}, {method.name}: {name} changes the text"
                near = not exact and at is not None and _is_tie(subject, index, found, wanted, at)
                (ties if near else wrong).append(line)
    return decide(
        "drafts",
        "sequences that are not those without drafts",
        len(wrong),
        Limit(0, "a draft is kept only where it is what the method chooses"),
        {"drafted": fed, "accepted": accepted, "near-ties": len(ties)},
        [*wrong, *(f"near-tie: {line}" for line in ties)],
    )


def experts(subject: Subject) -> CheckResult:
    """Weight 0 of the experts gives the tokens of plain decoding, greedy and sampled."""
    name = next((s.name for s in subject.manifest.signals if s.kind in Experts.kinds), None)
    if name is None:
        return not_run("experts", "the engine has no expert signal")
    wrong: list[str] = []
    for temperature in (None, 1.0):
        method = Experts(weight=0.0, signal=name, temperature=temperature)
        plain = _run(subject, Plain(temperature=temperature, top_p=method.top_p))
        for index, found in enumerate(_run(subject, method)):
            if found.token_ids != plain[index].token_ids:
                way = "greedy" if temperature is None else "sampled"
                wrong.append(f"prompt {index + 1}, {way}: other tokens than plain decoding")
    return none_may_differ(
        "experts", "sequences that are not plain decoding's", wrong, "a weight of 0 changes nothing"
    )


def values(subject: Subject) -> CheckResult:
    """The values beside the tokens are the engine's own: of all signals that score, added up.

    Text is guided by their sum; what was reported for each token is compared with one pass over
    the whole text.
    """
    names = _scoring(subject, Scores.PREFIX), _scoring(subject, Scores.NEXT)
    if not any(names):
        return not_run("values", "the engine has no signal that scores next tokens")
    weights = dict.fromkeys([*names[0], *names[1]], 1.0)
    method = ArgsGreedy(weights=weights, top_k=min(CANDIDATES, subject.manifest.vocab_size))
    engine = subject.exact_engine
    reported: list[Rows] = []
    whole: list[Rows] = []
    for prompt in subject.step_prompts:
        result = generate(engine, Request(prompt, method, max_tokens=subject.max_tokens))[0]
        tokens = list(result.token_ids)
        text = rows(feed(engine, engine.new_cache(1), [*prompt, *tokens]))
        own = {n: text[n][len(prompt) :] for n in names[0]}
        behind = np.arange(len(prompt) - 1, len(prompt) + len(tokens) - 1)
        whole.append(own | {n: text[n][behind, tokens] for n in names[1]})
        reported.append({n: np.array(result.signals[n], np.float32) for n in weights})
    found, expected = stack(reported), stack(whole)
    worst = {n: difference(found[n], expected[n], subject.spreads[n]) for n in weights}
    return decide(
        "values",
        "beside tokens against one pass over the text, max / spread",
        max(one.relative for one in worst.values()),
        limits.arithmetic(subject.manifest),
        {f"{name} max": one.maximum for name, one in worst.items()},
    )


def _scoring(subject: Subject, scores: Scores) -> list[str]:
    return [s.name for s in subject.manifest.signals if kind_of(s).scores is scores]


def _run(subject: Subject, method: DecodingMethod, drafted: str = NONE) -> list[Result]:
    request = Request([0], method, max_tokens=subject.max_tokens, seed=0, drafts=drafted)
    prompts = subject.prompt_ids[:_PROMPTS]
    return generate(subject.engine, [dataclasses.replace(request, prompt=ids) for ids in prompts])


def _is_tie(subject: Subject, index: int, found: Result, wanted: Sequence[int], at: int) -> bool:
    """Whether greedy tokens differ by no more than the logits do between steps of other widths."""
    engine = subject.engine
    text = [*subject.prompt_ids[index], *wanted[:at]]
    last = rows(feed(engine, engine.new_cache(1), text))[LOGITS][-1]
    margin = abs(float(last[found.token_ids[at]]) - float(last[wanted[at]]))
    return margin <= step_difference(subject).maximum
