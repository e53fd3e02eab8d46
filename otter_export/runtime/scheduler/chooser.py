"""The choice of one token: from a row to what is fed for it, and from the answer to the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.quoting import LIMIT, one_line
from otter_export.runtime.engine import FloatArray, IntArray
from otter_export.runtime.methods.base import DecodingMethod, ScoreArray
from otter_export.runtime.request import Candidate
from otter_export.runtime.sampler import possible_winners, score_range, top_candidates
from otter_export.runtime.scheduler.forecast import Forecast
from otter_export.signals import SIGNALS, Scores, Signal, kind_of


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Candidates for the next token, and what to feed to the engine for it.

    Args:
        feed: ``[c]``: token ids to feed: the winner alone if it is known, else as many of the
            candidates, the first ones, as it is expected among.
        candidates: ``[k]``: ids of the candidates.
        logits: ``[k]``: their logits.
        rewards: ``[k]``: their rewards, or None if the step brings them.
        scores: ``[k]``: what the method compared, or None if that takes the rewards of the step.
        winner: Index of the winner among the candidates; None as for ``scores``.
        gated: Whether the method would have used rewards, had its gate been open.
    """

    feed: IntArray
    candidates: IntArray
    logits: FloatArray
    rewards: FloatArray | None = None
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

    Args:
        method: How tokens are chosen.
        signal: The reward.
        seed: Of the request's own random generator; None draws one.
    """

    def __init__(self, method: DecodingMethod, signal: Signal, seed: int | None) -> None:
        self.signal = signal
        self._method = method
        self._scores_next = kind_of(signal).scores is Scores.NEXT
        self._generator = np.random.Generator(np.random.PCG64(seed))
        bounds = signal.bounds if method.prunes else None
        self._forecast = None if bounds is None else Forecast(bounds)

    def propose(self, logits: FloatArray, signals: Mapping[str, FloatArray]) -> Proposal:
        """What to feed for the next token; draws from the generator at most once.

        Args:
            logits: ``[V]``, of the last token's row.
            signals: What the engine gives for that row, by name.

        Raises:
            EngineError: They are not finite.
        """
        method, signal = self._method, signals[self.signal.name]
        ids = top_candidates(logits, method.candidate_count)
        chosen = logits[ids]
        # A value scores the token that was fed, the other kinds each that can follow it.
        rewards = signal[ids] if self._scores_next else None
        if not method.guides(logits):
            scores = np.asarray(chosen, np.float64)
            winner = method.choose(scores, self._generator)
            one = slice(winner, winner + 1)
            known = None if rewards is None else rewards[one]
            return Proposal(
                ids[one], ids[one], chosen[one], known, scores[one], 0, gated=method.needs_rewards
            )
        if rewards is not None:
            scores = method.combine(chosen, self._finite(rewards))
            winner = method.choose(scores, self._generator)
            return Proposal(ids[winner : winner + 1], ids, chosen, rewards, scores, winner)
        if self._forecast is not None:
            bounds, expected = self._forecast.bounds, self._forecast.around(float(signal))
            kept = possible_winners(method.combine, chosen, bounds)
            ids, chosen = ids[kept], chosen[kept]
            likely = np.flatnonzero(possible_winners(method.combine, chosen, bounds, expected))
            return Proposal(ids[: likely[-1] + 1], ids, chosen)
        return Proposal(ids, ids, chosen)

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
        rewards, scores, winner, row = proposal.rewards, proposal.scores, proposal.winner, 0
        if rewards is None:
            rewards = answer[self.signal.name]
        self._finite(rewards)
        if scores is None or winner is None:
            scores = self._method.combine(proposal.logits[: len(rewards)], rewards)
            if wider := self._wider(proposal, scores):
                return wider
            winner = row = self._method.choose(scores, self._generator)
        fed = len(scores)
        columns = (proposal.candidates[:fed], proposal.logits[:fed], rewards, scores)
        candidates = tuple(
            Candidate(int(t), float(z), float(r), float(s))
            for t, z, r, s in zip(*columns, strict=True)
        )
        return Choice(candidates, winner, row)

    def _wider(self, proposal: Proposal, scores: ScoreArray) -> Proposal | None:
        """The proposal with candidates that were not fed and can beat these scores, if any can."""
        fed = len(scores)
        if self._forecast is None or fed == len(proposal.candidates):
            return None
        _, best = score_range(self._method.combine, proposal.logits[fed:], self._forecast.bounds)
        # At a tie the first wins, which was fed.
        possible = np.flatnonzero(best > scores.max())
        self._forecast.learn(held=not len(possible))
        if not len(possible):
            return None
        feed = proposal.candidates[: fed + possible[-1] + 1]
        return dataclasses.replace(proposal, feed=feed)

    def _finite(self, rewards: FloatArray) -> FloatArray:
        if not np.isfinite(rewards).all():
            raise EngineError(
                f"the engine returned a {self.signal.name} that is NaN or infinite; check it with: "
                "otter-export verify DIR"
            )
        return rewards


def reward_signal(manifest: EngineManifest, name: str | None) -> Signal:
    """The signal that is the reward; None takes the first that scores next tokens.

    Raises:
        EngineError: There is none, or the named one does not score next tokens.
    """
    usable = [s for s in manifest.signals if kind_of(s).scores]
    described = ", ".join(f"{s.name} ({s.kind})" for s in manifest.signals)
    if name is None and usable:
        return usable[0]
    if name is not None and manifest.signal(name) in usable:
        return manifest.signal(name)
    asked = f"asked for {one_line(name, LIMIT)}; " if name else ""
    scoring = " or ".join(kind for kind in SIGNALS if SIGNALS.load(kind).scores)
    raise EngineError(
        f"decoding needs a signal of kind {scoring}; {asked}the engine's signals: {described}"
    )
