"""The contract of a decoding method, and the checks of its options."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from otter_export.arguments import integer, keep
from otter_export.errors import RequestError
from otter_export.quoting import quoted
from otter_export.runtime.engine import FloatArray, IntArray
from otter_export.runtime.sampler import ScoreArray, top_candidates

__all__ = ["DecodingMethod", "ScoreArray", "add_weighted", "top_k_option"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingMethod(abc.ABC):
    """How the next token is chosen among the candidates of one position.

    A method is data and pure functions; it never sees an engine. The loop asks `candidates` for the
    tokens that can be chosen, `guides` whether their rewards count at this place, scores them with
    `combine` and picks one with `choose`.

    Args:
        signal: The signal that is the reward; None takes the engine's first of those `kinds`.
    """

    name: ClassVar[str]
    #: Kinds of signals that are the reward where none is named.
    kinds: ClassVar[tuple[str, ...]] = ("value", "q_value")
    signal: str | None = None

    def __post_init__(self) -> None:
        if self.signal is not None:
            if not isinstance(self.signal, str) or not self.signal:
                raise RequestError(
                    f"signal must be the name of a signal or null, got {quoted(self.signal)}"
                )
            keep(self, signal=str(self.signal))

    @property
    @abc.abstractmethod
    def candidate_count(self) -> int | None:
        """How many of the best next tokens are candidates at most; None: all of them."""

    def candidates(self, logits: FloatArray) -> IntArray:
        """Ids of the candidates, by what the base says of them: ``[k]``, best first.

        All of the vocabulary come in the order of their ids.

        Args:
            logits: ``[V]``, after penalties and bans.

        Raises:
            EngineError: They hold NaN, or no token is possible.
        """
        return top_candidates(logits, self.candidate_count)

    @property
    def parts(self) -> Mapping[str | None, float]:
        """The signals that add up to the reward, each with its factor; None as for `signal`."""
        return {self.signal: 1.0}

    @property
    def floors(self) -> Mapping[str, float]:
        """Least values of signals; candidates below one are left out, unless all are."""
        return {}

    @property
    def needs_rewards(self) -> bool:
        """Whether rewards can change the choice; if not, the winner alone is fed to the engine."""
        return False

    def guides(self, logits: FloatArray) -> bool:
        """Whether rewards take part in the choice of one token; if not, `choose` gets the logits.

        Args:
            logits: ``[V]``, those of the base for this token.
        """
        del logits
        return self.needs_rewards

    @property
    def samples(self) -> bool:
        """Whether it draws at random, so that another seed gives another text."""
        return False

    @property
    def prunes(self) -> bool:
        """Whether candidates that cannot win may be left out.

        A method may say so if only the best score wins and `combine` is monotone in the reward.
        """
        return False

    def unguided(self) -> DecodingMethod:
        """The same decoding without the reward, to compare with."""
        return self

    def combine(self, logits: npt.NDArray[Any], rewards: npt.NDArray[Any]) -> ScoreArray:
        """Scores of candidates; all three ``[k]``.

        Args:
            logits: Their logits.
            rewards: Their rewards, those of several signals added up by `parts`.
        """
        del rewards
        return np.asarray(logits, dtype=np.float64)

    @abc.abstractmethod
    def choose(self, scores: ScoreArray, generator: np.random.Generator) -> int:
        """Index of the winner.

        Args:
            scores: ``[k]``, in the order of falling logits; of ids, if all tokens are candidates.
            generator: The sequence's own; a method draws from it the same number of times for
                every token, so that the choice depends on nothing else.
        """


def add_weighted(logits: npt.NDArray[Any], rewards: npt.NDArray[Any], weight: float) -> ScoreArray:
    """``logits + weight * rewards`` (ARGS, arXiv 2402.01694); all ``[k]``."""
    return np.asarray(logits, np.float64) + weight * np.asarray(rewards, np.float64)


def top_k_option(value: object) -> int:
    """The positive integer, else `RequestError`."""
    return integer(
        "top_k", value, least=1, described="from 1 to the vocabulary size", error=RequestError
    )
