"""A request's guidance: the ``otter_*`` entries of ``SamplingParams.extra_args``.

Over HTTP they are entries of ``vllm_xargs``, whose values are texts, numbers and lists of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from otter_export.arguments import as_number, keep, named_numbers, number
from otter_export.errors import RequestError
from otter_export.quoting import listed, quoted
from otter_export.signals import Scores, Signal, kind_of

PREFIX = "otter_"
#: As large as a Triton model of ours accepts.
_LARGEST_WEIGHT = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """One request's guidance; without arguments it changes nothing.

    Args:
        weight: Of the signal; 0 is decoding without it.
        signal: Its name; None takes the model's first that is a reward.
        weights: Of several signals by name, instead of ``signal`` and ``weight``: also texts
            ``NAME=NUMBER``.
        top_k: Candidates of a token: the likeliest of the base; None or 0 takes all.
        top_p: Of those the smallest set that holds this much of their probability without rewards.
            vLLM's own ``top_k``, ``top_p`` and ``min_p`` count too, and before guidance.
        gate: In nats: rewards count only where the entropy of the base's distribution is at least
            this.
        minimum: Least values of signals by name: candidates below are left out, unless all are.
        rewards: Whether the reward of each token comes back.

    Raises:
        RequestError: A value is out of range.
    """

    weight: float = 0.0
    signal: str | None = None
    weights: Mapping[str, float] | None = None
    top_k: int | None = 8
    top_p: float = 1.0
    gate: float = 0.0
    minimum: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rewards: bool = False

    def __post_init__(self) -> None:
        keep(
            self,
            weight=_weight(f"{PREFIX}weight", self.weight),
            top_k=_top_k(self.top_k),
            top_p=number(f"{PREFIX}top_p", self.top_p, above=0, maximum=1),
            gate=number(f"{PREFIX}gate", self.gate, minimum=0),
            rewards=_flag(self.rewards),
        )
        if self.signal is not None and (not isinstance(self.signal, str) or not self.signal):
            raise RequestError(f"{PREFIX}signal must be a name, got {quoted(self.signal)}")
        if self.weights is not None:
            keep(self, weights=named_numbers(f"{PREFIX}weights", self.weights))
            if self.weight or self.signal is not None:
                raise RequestError(
                    f"{PREFIX}weights name their signals; leave {PREFIX}signal and {PREFIX}weight "
                    "out beside them"
                )
            for name, weight in (self.weights or {}).items():
                _weight(f"{PREFIX}weights of {name}", weight)
        given = {} if self.minimum is None else self.minimum
        keep(self, minimum=named_numbers(f"{PREFIX}minimum", given) if given != {} else {})

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> Guidance:
        """The guidance of a request.

        Raises:
            RequestError: There is no such entry, or a value is out of range.
        """
        given = {k: v for k, v in (extra_args or {}).items() if str(k).startswith(PREFIX)}
        known = {PREFIX + field.name for field in dataclasses.fields(cls)}
        if unknown := set(given) - known:
            raise RequestError(f"there is no {listed(unknown)}; there are {listed(known)}")
        return cls(**{name.removeprefix(PREFIX): value for name, value in given.items()})

    def named_weights(self, signals: Sequence[Signal]) -> dict[str, float]:
        """The weight of each signal that counts, the reported one first.

        Raises:
            RequestError: The model has no such signal, or it is no reward.
        """
        scoring = {s.name: kind_of(s).scores for s in signals if kind_of(s).scores}
        if self.weights is not None:
            weights = dict(self.weights)
        else:
            weights = {self.signal or _default(signals): self.weight}
        for name in (*weights, *self.minimum):
            if name not in scoring:
                raise RequestError(
                    f"the model has no reward {quoted(name)}; its rewards: {', '.join(scoring)}"
                )
        return weights

    def check(self, signals: Sequence[Signal], candidates: int) -> None:
        """Whether an engine can do it.

        Args:
            signals: Its model's.
            candidates: Most candidates that it scores, which ``value`` signals need.

        Raises:
            RequestError: It cannot.
        """
        weights = self.named_weights(signals)
        prefix = {s.name for s in signals if kind_of(s).scores is Scores.PREFIX}
        fed = ({name for name, weight in weights.items() if weight} | set(self.minimum)) & prefix
        if not fed:
            return
        if not candidates:
            raise RequestError(
                f"guidance by {listed(fed)} scores candidates, which this engine was not started "
                "for: see --speculative-config in docs/vllm.md"
            )
        if not self.top_k or self.top_k > candidates:
            raise RequestError(
                f"{PREFIX}top_k must be from 1 to {candidates} with {listed(fed)}, got "
                f"{quoted(self.top_k)}: the engine scores no more"
            )

    def guides(self, weights: Mapping[str, float]) -> bool:
        """Whether rewards can change a choice."""
        return any(weights.values()) or bool(self.minimum)


def _default(signals: Sequence[Signal]) -> str:
    """The first signal that is a reward; an expert guides only where there is no other."""
    found = [s.name for s in signals if kind_of(s).scores and s.kind != "expert"]
    return (found or [s.name for s in signals if kind_of(s).scores])[0]


def _weight(name: str, value: object) -> float:
    return number(name, value, minimum=-_LARGEST_WEIGHT, maximum=_LARGEST_WEIGHT)


def _top_k(value: object) -> int | None:
    if value is None:
        return None
    found = as_number(value)
    if found is None or found != int(found) or not 0 <= found < 1 << 31:
        raise RequestError(f"{PREFIX}top_k must be an integer of at least 0, got {quoted(value)}")
    return int(found) or None


def _flag(value: object) -> bool:
    """HTTP has no truth values there."""
    if isinstance(value, bool):
        return value
    if as_number(value) in (0.0, 1.0):
        return bool(value)
    raise RequestError(f"{PREFIX}rewards must be 0 or 1, got {quoted(value)}")
