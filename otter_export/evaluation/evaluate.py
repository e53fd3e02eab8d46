"""`evaluate`: what each way to decode gives and costs, on the same prompts, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.arguments import integer
from otter_export.errors import MissingDependencyError, RequestError
from otter_export.evaluation import judge_command
from otter_export.evaluation.base_likelihood import token_losses
from otter_export.evaluation.judge_command import Judge, Wins
from otter_export.evaluation.sentence_embeddings import SentenceEmbedder
from otter_export.evaluation.text_metrics import (
    Interval,
    bootstrap_mean,
    bootstrap_paired_difference,
    bootstrap_perplexity,
    distinct_n,
    repetition,
)
from otter_export.evaluation.written import Written, write
from otter_export.runtime.chat import Chat
from otter_export.runtime.engine import Engine
from otter_export.runtime.generation import BATCH_SIZE, generate
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.methods.plain import Plain
from otter_export.runtime.request import Request, TokenEvent
from otter_export.runtime.scheduler.chooser import reward_signal

Array = npt.NDArray[np.float64]

#: What a text gets by itself, in the order of reports, with what it is.
METRICS: Mapping[str, str] = {
    "reward_end": "reward at the text's last token",
    "reward_mean": "mean reward of its tokens",
    "distinct_1": "share of its tokens that are different ones",
    "distinct_2": "the same of its pairs of tokens",
    "repetition_4": "share of its runs of four tokens that were there before",
    "diversity": "product of distinct_2, distinct_3 and distinct_4",
    "coherence": "cosine of the sentence embeddings of prompt and text",
}
PERPLEXITY = "perplexity"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to decode on one engine.

    Args:
        engine: Its name.
        way: Label of the way.
        method: The way.
        signal: The signal that is the reward; None if the engine has none.
        engine_bytes: Of the engine's files; None for a checkpoint, which has no engine's.
        written: The texts.
        scores: ``[prompts]`` for each of `METRICS` that could be measured.
        losses: ``[tokens]`` for each text: nats of each token under the engine's base.
        wins: Against the first arm; None for that one, and without a judge.
    """

    engine: str
    way: str
    method: DecodingMethod
    signal: str | None
    engine_bytes: int | None
    written: Written
    scores: Mapping[str, Array]
    losses: Sequence[Array]
    wins: Wins | None

    @property
    def label(self) -> str:
        """Of engine and way."""
        return f"{self.engine}: {self.way}"

    def intervals(self) -> dict[str, Interval]:
        """Of each metric and of the perplexity, over prompts."""
        found = {name: bootstrap_mean(values) for name, values in self.scores.items()}
        return {**found, PERPLEXITY: bootstrap_perplexity(self.losses)}

    def over(self, first: Arm) -> dict[str, Interval]:
        """Of each metric, the difference to another arm, prompt by prompt."""
        return {
            name: bootstrap_paired_difference(values, first.scores[name])
            for name, values in self.scores.items()
            if name in first.scores
        }


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All arms, and what was not measured.

    Args:
        arms: The first is the one that the others are compared with.
        skipped: Metrics that are missing, with the reason.
    """

    arms: tuple[Arm, ...]
    skipped: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Every number and text."""
        first = self.arms[0]
        rows = []
        for arm in self.arms:
            row: dict[str, Any] = {
                "engine": arm.engine,
                "way": arm.way,
                "method": {"name": arm.method.name, **dataclasses.asdict(arm.method)},
                "signal": arm.signal,
                "engine_bytes": arm.engine_bytes,
                "tokens": arm.written.tokens,
                "seconds": arm.written.seconds,
                "seconds_per_token": arm.written.seconds / arm.written.tokens,
                "forwards_per_token": arm.written.forwards_per_token,
                "metrics": {n: dataclasses.asdict(i) for n, i in arm.intervals().items()},
            }
            if arm is not first:
                row["over_first"] = {n: dataclasses.asdict(i) for n, i in arm.over(first).items()}
            if arm.wins is not None:
                row["win_rate"] = dataclasses.asdict(bootstrap_mean(arm.wins.share))
                row["judge_agreement"] = arm.wins.agreement
            row["texts"] = _texts(arm)
            rows.append(row)
        return {"arms": rows, "skipped": dict(self.skipped), "what": dict(METRICS)}


def evaluate(
    engines: Iterable[tuple[str, Engine]],
    prompts: Sequence[str | Chat | Request],
    ways: Mapping[str, DecodingMethod],
    *,
    max_tokens: int = 64,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    judge: Judge | None = None,
    done: Callable[[str], None] = lambda label: None,
) -> Evaluation:
    """Write texts in every way on every engine, and measure them.

    >>> from otter_export import ArgsGreedy, Plain, evaluate, load_engine
    >>> engines = [("int8", load_engine("smollm2-engine"))]                     # doctest: +SKIP
    >>> ways = {"plain": Plain(), "guided": ArgsGreedy(weight=4.0)}             # doctest: +SKIP
    >>> evaluate(engines, ["The film was"], ways).arms[1].intervals()           # doctest: +SKIP

    Args:
        engines: Name and engine, one at a time: an iterator may load each when it is asked for.
        prompts: Texts, chats, or requests whose ``method`` is not used.
        ways: By label; `make_ways` makes them.
        max_tokens: Most tokens of each text; a request brings its own.
        seed: Of the first prompt, the next one is the second's, and so on; a request may bring its
            own.
        batch_size: Most texts that are written at a time.
        judge: Says which of two texts is better, such as a `JudgeCommand`; None: no win rates.
        done: Called with the label of the arm for each text that was written.

    Raises:
        RequestError: There is nothing to do, a prompt or an option is not valid, or the judge
            fails.
        EngineError: An engine has no signal that a way needs, or fails.
    """
    requests = _requests(prompts, max_tokens, seed)
    if not ways:
        raise RequestError("there are no ways to evaluate; give at least one method")
    skipped: dict[str, str] = {}
    try:
        embedder = SentenceEmbedder.installed()
    except MissingDependencyError as error:
        embedder, skipped["coherence"] = None, str(error)
    arms: list[Arm] = []
    for name, engine in engines:
        # All of them before any text is written.
        signals = {way: reward_signal(engine.manifest, method) for way, method in ways.items()}
        # The first pass pays for what is loaded late, and no way should.
        generate(engine, dataclasses.replace(requests[0], max_tokens=1, method=Plain()))
        for way, method in ways.items():
            signal = signals[way]
            own = [dataclasses.replace(request, method=method) for request in requests]
            written = write(
                engine, own, batch_size=batch_size, on_event=_told(done, f"{name}: {way}")
            )
            arm = Arm(
                engine=name,
                way=way,
                method=method,
                signal=None if signal is None else signal.name,
                engine_bytes=sum(file.size for file in engine.manifest.files) or None,
                written=written,
                scores=_scores(written, embedder),
                losses=token_losses(engine, [(r.prompt_ids, r.token_ids) for r in written.results]),
                wins=None,
            )
            if judge is not None and arms:
                arm = dataclasses.replace(arm, wins=_wins(judge, arm, arms[0], seed))
            arms.append(arm)
    if not arms:
        raise RequestError("there are no engines to evaluate; give at least one")
    if any(arm.signal is None for arm in arms):
        skipped["reward_end"] = skipped["reward_mean"] = "an engine has no signal that scores"
    return Evaluation(tuple(arms), skipped)


def _requests(prompts: Sequence[str | Chat | Request], max_tokens: int, seed: int) -> list[Request]:
    seed = integer("seed", seed, least=0)
    if isinstance(prompts, str) or not len(prompts):
        raise RequestError("there are no prompts to evaluate on; give at least one")
    requests = []
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, Request):
            prompt = Request(prompt, max_tokens=max_tokens)
        prompt.check_generates("evaluate")
        own = seed + index if prompt.seed is None else prompt.seed
        requests.append(dataclasses.replace(prompt, seed=own))
    return requests


def _told(done: Callable[[str], None], label: str) -> Callable[[TokenEvent], None]:
    def on_event(event: TokenEvent) -> None:
        if event.finish_reason is not None:
            done(label)

    return on_event


def _scores(written: Written, embedder: SentenceEmbedder | None) -> dict[str, Array]:
    """By metric; without rewards where there are none."""
    ids = [result.token_ids for result in written.results]
    found: dict[str, Array] = {}
    if all(result.rewards for result in written.results):
        found |= {"reward_end": written.last_reward, "reward_mean": written.reward}
    found |= {
        "distinct_1": np.array([distinct_n(tokens, 1) for tokens in ids]),
        "distinct_2": np.array([distinct_n(tokens, 2) for tokens in ids]),
        "repetition_4": np.array([repetition(tokens, 4) for tokens in ids]),
        "diversity": written.diversity,
    }
    if embedder is not None:
        results = written.results
        found["coherence"] = embedder.cosines(
            [result.prompt for result in results], [result.text for result in results]
        )
    return found


def _wins(judge: Judge, arm: Arm, first: Arm, seed: int) -> Wins:
    return judge_command.compare(
        judge,
        [result.prompt for result in arm.written.results],
        [result.text for result in arm.written.results],
        [result.text for result in first.written.results],
        seed=seed,
    )


def _texts(arm: Arm) -> list[dict[str, Any]]:
    """A row for each prompt."""
    rows = []
    for index, result in enumerate(arm.written.results):
        row = {
            "prompt": result.prompt,
            "text": result.text,
            "finish_reason": result.finish_reason,
            "rewards": list(result.rewards),
            "losses": arm.losses[index].tolist(),
            **{name: float(values[index]) for name, values in arm.scores.items()},
        }
        if arm.wins is not None:
            row["win"] = float(arm.wins.share[index])
        rows.append(row)
    return rows
