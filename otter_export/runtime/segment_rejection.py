"""Segment-level rejection: a piece of text whose reward is too low is drawn anew (CARDS).

Cascade reward sampling (arXiv 2406.16306). A segment ends where the base is undecided; its reward
is that of the text up to there, which a ``value`` signal has in the rows that made it. A rejected
segment's rows are dropped, those of the text before it stay.
"""

from __future__ import annotations

import dataclasses
import math
import secrets

import numpy as np

from otter_export.arguments import integer, keep, number
from otter_export.errors import EngineError, RequestError
from otter_export.quoting import quoted
from otter_export.runtime.drafts import NONE
from otter_export.runtime.engine import Engine, FloatArray, Step
from otter_export.runtime.methods.guided import entropy
from otter_export.runtime.prefill import prefill
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.runtime.scheduler.chooser import reward_signal
from otter_export.runtime.scheduler.decode import Decoder
from otter_export.runtime.scheduler.sequence import Sequence
from otter_export.signals import Scores, kind_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentRejection:
    """Where segments end, and which are accepted.

    A segment that ends at token t of at most T has to reach a threshold that rises with the text,
    ``r0 + t / T * (threshold - r0)`` with ``r0 = r(prompt) + start * (threshold - r(prompt))``, and
    never more than ``threshold``. It is accepted with probability
    ``min(1, exp((reward - that) / beta))``.

    Args:
        threshold: Reward wanted at the end of the text.
        start: 0 to 1: where the threshold begins, from the prompt's reward (0) to its end (1).
        beta: At least 0, in the reward's unit: how far below the threshold there is still a chance.
            0 accepts what reaches it, and nothing else.
        entropy: In nats, at least 0: a segment ends where the entropy of the base's next-token
            distribution is this or more.
        shortest: Tokens that a segment has at least, unless the text ends.
        longest: Tokens at which it ends anyway.
        tries: Draws of one segment; if all are rejected, the best of them is taken.
        at_a_time: How many are decoded together. It changes the time, never the text: the first
            that is accepted, in the order of their numbers, is the one.

    Raises:
        RequestError: An option is out of range.
    """

    threshold: float
    start: float = 0.5
    beta: float = 0.1
    entropy: float = 3.0
    shortest: int = 4
    longest: int = 64
    tries: int = 20
    at_a_time: int = 4

    def __post_init__(self) -> None:
        shortest = integer("shortest", self.shortest, least=1)
        keep(
            self,
            threshold=number("threshold", self.threshold),
            start=number("start", self.start, minimum=0, maximum=1),
            beta=number("beta", self.beta, minimum=0),
            entropy=number("entropy", self.entropy, minimum=0),
            shortest=shortest,
            longest=integer("longest", self.longest, least=shortest),
            tries=integer("tries", self.tries, least=1, most=1 << 16),
            at_a_time=integer("at_a_time", self.at_a_time, least=1, most=1024),
        )

    def threshold_at(self, share: float, prompt_reward: float) -> float:
        """What a segment has to reach.

        Args:
            share: 0 to 1: how much of the text there is at its end.
            prompt_reward: The prompt's.
        """
        begin = prompt_reward + self.start * (self.threshold - prompt_reward)
        return min(begin + share * (self.threshold - begin), self.threshold)

    def accepts(self, reward: float, threshold: float, draw: float) -> bool:
        """Whether a segment is accepted.

        Args:
            reward: The reward at its end.
            threshold: What it has to reach.
            draw: At least 0, below 1.
        """
        short = min(reward - threshold, 0.0)
        return short == 0 or (self.beta > 0 and draw < math.exp(short / self.beta))

    def check(self, request: Request) -> None:
        """Raise `RequestError` if a request cannot be continued so, whatever the engine."""
        if not request.method.samples:
            raise RequestError(
                f"segments are drawn anew, and method {request.method.name} draws nothing as it "
                "is; sample, such as with --method plain --temperature 1"
            )
        request.check_generates("segment_rejection")
        if request.drafts != NONE:
            raise RequestError(
                f"segments are decoded without drafts; leave out drafts={quoted(request.drafts)}"
            )


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a text.

    Args:
        tokens: How many it has.
        reward: The reward at its end.
        threshold: What it had to reach.
        tries: Which draw it is, counted from 1; all of them, if none was accepted.
        accepted: False: it is the best of those that were rejected.
    """

    tokens: int
    reward: float
    threshold: float
    tries: int
    accepted: bool


@dataclasses.dataclass(frozen=True)
class SegmentedResult(Result):
    """A result, and what became of its segments.

    Args:
        segments: In order; their tokens add up to the text's.
    """

    segments: tuple[Segment, ...] = ()


def segment_rejection(
    engine: Engine, request: Request, options: SegmentRejection
) -> SegmentedResult:
    """Continue one prompt segment by segment, drawing those anew whose reward is too low.

    Where every first draw is accepted, the text is the one that `generate` makes of the request.

    >>> from otter_export import Plain, Request, SegmentRejection, load_engine, segment_rejection
    >>> engine = load_engine("smollm2-engine")                                   # doctest: +SKIP
    >>> request = Request("The film was", Plain(temperature=1.0), seed=0)        # doctest: +SKIP
    >>> options = SegmentRejection(threshold=0.9)                                # doctest: +SKIP
    >>> print(segment_rejection(engine, request, options).text)                  # doctest: +SKIP

    Args:
        engine: From `load_engine`.
        request: What to continue. Its method has to sample, and the reward that it reports has to
            be a ``value`` signal; it has no drafts. A seed of None draws one.
        options: Where segments end, and which are accepted.

    Returns:
        The text; ``forwards`` counts the passes over all draws, rejected ones too.

    Raises:
        RequestError: An argument is not valid, or the request does not fit.
        EngineError: The engine has no such signal, or fails.
    """
    if not isinstance(request, Request):
        raise RequestError(f"request must be a Request, got {quoted(request)}")
    if not isinstance(options, SegmentRejection):
        raise RequestError(f"options must be a SegmentRejection, got {quoted(options)}")
    options.check(request)
    seed = secrets.randbits(63) if request.seed is None else request.seed
    text = _Draw(0, dataclasses.replace(request, seed=seed), engine)
    signal = reward_signal(engine.manifest, request.method)
    if signal is None or kind_of(signal).scores is not Scores.PREFIX:
        found = f"{signal.name} ({signal.kind})" if signal else "none"
        raise RequestError(
            "segments are judged by a signal of kind value, which scores a text; the first that "
            f"method {request.method.name} reads here: {found}"
        )
    cache, step = prefill(engine, [text.prompt_ids])
    text.start(cache, 0)
    text.propose(step, 0, row=0)
    text.row = step
    prompt_reward = float(step.signals[signal.name][0, 0])
    if not math.isfinite(prompt_reward):
        raise EngineError(
            f"the engine returned a {signal.name} that is NaN or infinite; check it with: "
            "otter-export verify DIR"
        )
    return _Segmenter(engine, options, seed, prompt_reward).run(text)


class _Draw(Sequence):
    """A text with one draw of its newest segment.

    Attributes:
        options: Where segments end; set before it goes on.
        begin: Tokens before the segment.
        index: Of the draw.
        chance: At least 0, below 1: what decides whether it is accepted, where its reward does not.
        row: The engine's answer for the last token, ``[1, 1, ...]``, at the end of a segment.
    """

    options: SegmentRejection
    begin = 0
    index = 0
    chance = 0.0
    row: Step | None = None

    @property
    def reward(self) -> float:
        """That of the text up to its last token."""
        reward = self._winners[-1].reward
        assert reward is not None  # the method reads a signal
        return reward

    def advance(self, step: Step, b: int) -> tuple[list[TokenEvent], list[int]]:
        """As any sequence; looks whether the segment ends at the new token."""
        events, rows = super().advance(step, b)
        if events and self._ends(step.logits[b, rows[-1]]):
            one = (slice(b, b + 1), slice(rows[-1], rows[-1] + 1))
            signals = {name: values[one].copy() for name, values in step.signals.items()}
            self.row = Step(step.logits[one].copy(), signals, None)
        return events, rows

    def _ends(self, logits: FloatArray) -> bool:
        length, options = len(self.token_ids) - self.begin, self.options
        if self.finish_reason is not None or length >= options.longest:
            return True
        return length >= options.shortest and entropy(logits) >= options.entropy


class _Segmenter:
    """Draws the segments of one text.

    Args:
        engine: The engine.
        options: Where segments end, and which are accepted.
        seed: Of the draws.
        prompt_reward: The prompt's reward.
    """

    def __init__(
        self, engine: Engine, options: SegmentRejection, seed: int, prompt_reward: float
    ) -> None:
        self._engine = engine
        self._options = options
        self._seed = seed
        self._prompt_reward = prompt_reward
        self._decoder = Decoder(engine, separate=engine.manifest.execution_provider == "cpu")
        most = engine.manifest.built_for.limits.max_batch_size
        self._at_a_time = min(options.at_a_time, most or options.at_a_time)
        self._segments: list[Segment] = []
        self._passes = 0

    def run(self, text: _Draw) -> SegmentedResult:
        """Draw segments to the end of the text."""
        while text.finish_reason is None:
            text = self._next(text)
        fields = {**vars(text.result()), "forwards": self._passes}
        return SegmentedResult(**fields, segments=tuple(self._segments))

    def _next(self, text: _Draw) -> _Draw:
        """The text with its next segment: the first draw that is accepted, else the best."""
        running: list[_Draw] = []
        begun, end = 0, self._options.tries
        best, best_rank = text, (False, -math.inf, 0)
        while running or begun < end:
            new = range(begun, min(begun + self._at_a_time - len(running), end))
            joining = [self._draw(text, index) for index in new]
            begun, running = begun + len(joining), running + joining
            self._decoder.join(joining)
            self._passes += self._decoder.step()[0]
            for draw in running:
                if draw.error is not None:
                    raise draw.error
                if draw.row is None:
                    continue
                accepted = self._options.accepts(draw.reward, self._threshold(draw), draw.chance)
                # Accepted ones count by their order, the others by their rewards.
                rank = (accepted, 0.0 if accepted else draw.reward, -draw.index)
                if rank > best_rank:
                    best, best_rank = draw, rank
                    self._keep_rows(draw)
                if accepted:
                    # No later one can be the first.
                    end = min(end, draw.index)
            gone = {draw for draw in running if draw.row is not None or draw.index > end}
            self._decoder.remove(gone)
            running = [draw for draw in running if draw not in gone]
        accepted = best_rank[0]
        self._segments.append(
            Segment(
                tokens=len(best.token_ids) - len(text.token_ids),
                reward=best.reward,
                threshold=self._threshold(best),
                tries=best.index + 1 if accepted else self._options.tries,
                accepted=accepted,
            )
        )
        return best

    def _draw(self, text: _Draw, index: int) -> _Draw:
        """A draw of the segment behind a text; the first goes on with the text's own generator."""
        assert text.row is not None  # it ended a segment
        key = np.random.SeedSequence(self._seed, spawn_key=(len(self._segments), index))
        generator = np.random.Generator(np.random.PCG64(key))
        chance = generator.random()
        draw = text.fork(generator if index else None)
        draw.options, draw.begin, draw.row = self._options, len(text.token_ids), None
        draw.index, draw.chance = index, chance
        if index:
            draw.propose(text.row, 0, row=0)
        return draw

    def _threshold(self, draw: _Draw) -> float:
        share = len(draw.token_ids) / (draw.max_length - len(draw.prompt_ids))
        return self._options.threshold_at(share, self._prompt_reward)

    def _keep_rows(self, draw: _Draw) -> None:
        """Copy a draw's rows out of the batch, where a text goes on from them."""
        if draw.finish_reason is None and draw.cache is not None:
            kept = self._engine.new_cache(0)
            self._engine.append(kept, [(draw.cache, draw.cache_index)])
            draw.cache, draw.cache_index = kept, 0
