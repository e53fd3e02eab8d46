"""The choice of one token: from a row to what is fed for it, and from the answer to the winner."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from otter_export.errors import RequestError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import FloatArray, IntArray
from otter_export.runtime.methods.base import DecodingMethod, ScoreArray
from otter_export.runtime.request import Candidate, Request
from otter_export.runtime.sampler import possible_winners, score_range, top_candidates
from otter_export.runtime.scheduler.forecast import Forecast
from otter_export.runtime.scheduler.reward_sum import RewardSum, Values
from otter_export.signals import Signal

#: Candidates that are reported, the best logits, of a method that takes them from all tokens.
_REPORTED = 64


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Candidates for the next token, and what to feed to the engine for it.

    Args:
        feed: ``[c]``: token ids to feed: the winner alone if it is known, else as many of the
            candidates, the first ones, as it is expected among.
        candidates: ``[k]``: ids of the candidates.
        logits: ``[k]``: their logits, after penalties.
        known: ``[k]`` each: their values of the signals that are known before they are fed.
        scores: ``[k]``: what the method compared, or None if that takes the values of the step.
        winner: Index of the winner among the candidates; None as for ``scores``.
        gated: Whether the method would have used rewards, had its gate been open.
    """

    feed: IntArray
    candidates: IntArray
    logits: FloatArray
    known: Values
    scores: ScoreArray | None = None
    winner: int | None = None
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The next token.

    Args:
        candidates: What was scored, best logit first.
        winner: Its index among the candidates.
        row: Its index among the tokens that were fed.
    """

    candidates: tuple[Candidate, ...]
    winner: int
    row: int


class Chooser:
    """A request's method on an engine's outputs, with what it remembers of the tokens before.

    Penalties and bans come first, then the candidates by the base alone, then the rewards, then the
    choice (docs/decoding.md).

    Args:
        request: Its method, penalties and seed count.
        manifest: Of the engine.
        prompt_length: Tokens of the prompt.

    Raises:
        RequestError: The method or the penalties do not fit the engine.
        EngineError: There is no such signal.
    """

    def __init__(self, request: Request, manifest: EngineManifest, prompt_length: int) -> None:
        self._method = request.method
        self._penalties = request.penalties
        self._penalties.check(manifest.vocab_size)
        self._prompt_length = prompt_length
        self._eos = manifest.eos_token_ids
        self._reward = RewardSum(request.method, manifest)
        self._generator = np.random.Generator(np.random.PCG64(request.seed))
        bounds = self._reward.bounds() if request.method.prunes else None
        self._bounds = bounds
        self._forecasts = {name: Forecast(ends) for name, ends in (bounds or {}).items()}
        if (
            self._reward.fed
            and request.method.candidate_count is None
            and request.method.needs_rewards
        ):
            raise RequestError(
                f"method {request.method.name} scores all tokens, and a signal of kind value "
                f"({min(self._reward.fed)}) only those that are fed; give top_k, such as 8"
            )

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that are reported, that of the reward first."""
        return self._reward.signals

    def drawing_from(self, generator: np.random.Generator) -> Chooser:
        """The same with another random generator."""
        other = copy.copy(self)
        other._generator = generator
        return other

    def propose(
        self, logits: FloatArray, signals: Mapping[str, FloatArray], history: Sequence[int]
    ) -> Proposal:
        """What to feed for the next token; draws from the generator at most once.

        Args:
            logits: ``[V]``, of the last token's row.
            signals: What the engine gives for that row, by name.
            history: Token ids up to that row's: the prompt's, then the generated ones.

        Raises:
            EngineError: They are not finite.
        """
        method, reward = self._method, self._reward
        logits = self._penalties.apply(logits, history, self._prompt_length, self._eos)
        ids = method.candidates(logits)
        chosen, known = logits[ids], reward.known(signals, ids)
        if not method.guides(logits):
            scores = np.asarray(chosen, np.float64)
            winner = method.choose(scores, self._generator)
            one = slice(winner, winner + 1)
            known = _part(known, one)
            gated = method.needs_rewards
            return Proposal(ids[one], ids[one], chosen[one], known, scores[one], 0, gated)
        if not reward.fed:
            values = reward.all_of(known, {}, len(ids))
            scores = method.combine(chosen, reward.total(values))
            winner = self._choose(scores, values)
            return Proposal(ids[winner : winner + 1], ids, chosen, known, scores, winner)
        if self._bounds is None:
            return Proposal(ids, ids, chosen, known)
        low, high = reward.reach(known, self._bounds, len(ids))
        kept = np.flatnonzero(possible_winners(method.combine, chosen, (low, high)))
        ids, chosen, known = ids[kept], chosen[kept], _part(known, kept)
        near = {n: f.around(float(signals[n])) for n, f in self._forecasts.items()}
        expected, bounds = reward.reach(known, near, len(ids)), (low[kept], high[kept])
        likely = np.flatnonzero(possible_winners(method.combine, chosen, bounds, expected))
        return Proposal(ids[: likely[-1] + 1], ids, chosen, known)

    def settle(self, proposal: Proposal, answer: Mapping[str, FloatArray]) -> Choice | Proposal:
        """The winner of a proposal.

        Args:
            proposal: From `propose`, or from here.
            answer: The engine's signals for the tokens that were fed, by name, ``[c, ...]``.

        Returns:
            The choice; or what to propose instead, if candidates that were not fed can win after
            all.

        Raises:
            EngineError: The answer is not finite.
        """
        scores, winner, row = proposal.scores, proposal.winner, 0
        count = len(proposal.feed) if scores is None else len(scores)
        values = self._reward.all_of(proposal.known, answer, count)
        if scores is None or winner is None:
            scores = self._method.combine(proposal.logits[:count], self._reward.total(values))
            if wider := self._wider(proposal, scores):
                return wider
            winner = row = self._choose(scores, values)
        names, columns = list(values), [v.tolist() for v in values.values()]
        ids, logits, listed = proposal.candidates, proposal.logits, scores

        def candidate(i: int) -> Candidate:
            signals = {n: column[i] for n, column in zip(names, columns, strict=True)}
            reward = signals[names[0]] if names else None
            return Candidate(int(ids[i]), float(logits[i]), reward, float(listed[i]), signals)

        shown: Sequence[int] = range(count)
        if self._method.candidate_count is None and count > _REPORTED:
            best = top_candidates(logits, _REPORTED).tolist()
            shown = best if winner in best else [*best, winner]
        return Choice(tuple(candidate(i) for i in shown), shown.index(winner), row)

    def _choose(self, scores: ScoreArray, values: Values) -> int:
        """Index of the winner among the candidates that reach every minimum."""
        allowed = self._reward.allowed(values)
        if allowed is None:
            return self._method.choose(scores, self._generator)
        left = np.flatnonzero(allowed)
        return int(left[self._method.choose(scores[left], self._generator)])

    def _wider(self, proposal: Proposal, scores: ScoreArray) -> Proposal | None:
        """The proposal with candidates that were not fed and can beat these scores, if any can."""
        fed, count = len(scores), len(proposal.candidates)
        if self._bounds is None or fed == count:
            return None
        reach = self._reward.reach(
            _part(proposal.known, slice(fed, None)), self._bounds, count - fed
        )
        _, best = score_range(self._method.combine, proposal.logits[fed:], reach)
        # At a tie the first wins, which was fed.
        possible = np.flatnonzero(best > scores.max())
        for forecast in self._forecasts.values():
            forecast.learn(held=not len(possible))
        if not len(possible):
            return None
        feed = proposal.candidates[: fed + possible[-1] + 1]
        return dataclasses.replace(proposal, feed=feed)


def reward_signal(manifest: EngineManifest, method: DecodingMethod) -> Signal | None:
    """The signal that is reported as the reward; None if the engine has none and needs none.

    Raises:
        EngineError: The method needs one that is not there, or that does not score tokens.
    """
    return next(iter(RewardSum(method, manifest).signals), None)


def _part(values: Values, which: slice | IntArray) -> Values:
    return {name: found[which] for name, found in values.items()}
