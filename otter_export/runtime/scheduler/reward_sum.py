"""The reward of a request on an engine: which of its signals add up to it, and how."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.quoting import LIMIT, one_line
from otter_export.runtime.engine import BoolArray, FloatArray, IntArray
from otter_export.runtime.methods.base import DecodingMethod, ScoreArray
from otter_export.signals import SIGNALS, Scores, Signal, kind_of

#: Values of signals by name, one for each candidate: ``[k]`` each.
Values = Mapping[str, FloatArray]


class RewardSum:
    """A method's signals, found in an engine.

    Args:
        method: How tokens are chosen.
        manifest: The engine's signals.

    Attributes:
        signals: Those that are read; the first is what is reported as the reward. None, where
            nothing scores tokens and the method does without.
        fed: Names of those that score a token when it was fed, and not before.

    Raises:
        EngineError: A signal is not there, or does not score tokens.
    """

    def __init__(self, method: DecodingMethod, manifest: EngineManifest) -> None:
        found = [(_find(manifest, method, name), factor) for name, factor in method.parts.items()]
        self._factors = {signal.name: factor for signal, factor in found if signal}
        read = {signal.name: signal for signal, _ in found if signal}
        read |= {n: s for n in method.floors if (s := _find(manifest, method, n))}
        self.signals: tuple[Signal, ...] = tuple(read.values())
        self.fed = frozenset(n for n, s in read.items() if kind_of(s).scores is Scores.PREFIX)
        self._floors = method.floors

    def bounds(self) -> dict[str, tuple[float, float]] | None:
        """What the signals in `fed` cannot leave; None if one that counts has no bounds."""
        counting = {s.name: s for s in self.signals if s.name in self.fed}
        found = {
            # A factor of 0 makes nothing of whatever it is.
            name: signal.bounds if self._factors.get(name) else (0.0, 0.0)
            for name, signal in counting.items()
        }
        return {n: b for n, b in found.items() if b} if None not in found.values() else None

    def known(self, signals: Mapping[str, FloatArray], ids: IntArray) -> Values:
        """What the row before the candidates says of them.

        Args:
            signals: That row's, by name.
            ids: ``[k]``: the candidates.
        """
        return {s.name: signals[s.name][ids] for s in self.signals if s.name not in self.fed}

    def all_of(self, known: Values, answer: Mapping[str, FloatArray], fed: int) -> Values:
        """Values of the first candidates.

        Args:
            known: From `known`.
            answer: The engine's signals for the candidates that were fed, by name.
            fed: How many candidates there are values of.

        Raises:
            EngineError: They are not finite.
        """
        values = {
            s.name: (answer[s.name] if s.name in self.fed else known[s.name])[:fed]
            for s in self.signals
        }
        for name, found in values.items():
            if not np.isfinite(found).all():
                raise EngineError(
                    f"the engine returned a {name} that is NaN or infinite; check it with: "
                    "otter-export verify DIR"
                )
        return values

    def total(self, values: Values) -> ScoreArray:
        """The reward of each candidate, ``[k]``."""
        total = np.zeros(len(next(iter(values.values()))))
        for name, factor in self._factors.items():
            total = total + factor * np.asarray(values[name], np.float64)
        return total

    def reach(
        self, known: Values, ends: Mapping[str, tuple[float, float]], count: int
    ) -> tuple[ScoreArray, ScoreArray]:
        """Least and greatest reward of each candidate, ``[k]`` each.

        Added up in the order of `total`, whose roundings are monotone: so the range is exact.

        Args:
            known: From `known`.
            ends: Least and greatest value of each signal in `fed`.
            count: k.
        """
        low, high = np.zeros(count), np.zeros(count)
        for name, factor in self._factors.items():
            least, most = ends[name] if name in self.fed else (known[name], known[name])
            one, other = (
                factor * np.asarray(least, np.float64),
                factor * np.asarray(most, np.float64),
            )
            low, high = low + np.minimum(one, other), high + np.maximum(one, other)
        return low, high

    def allowed(self, values: Values) -> BoolArray | None:
        """``[k]``: which candidates reach every minimum; None: all, or none does."""
        if not self._floors:
            return None
        passed = np.logical_and.reduce([values[n] >= floor for n, floor in self._floors.items()])
        return passed if passed.any() and not passed.all() else None


def _find(manifest: EngineManifest, method: DecodingMethod, name: str | None) -> Signal | None:
    """A named signal, or the first that scores tokens and suits the method."""
    scoring = [s for s in manifest.signals if kind_of(s).scores]
    if name is not None:
        if (signal := manifest.signal(name)) in scoring:
            return signal
    else:
        suiting = [s for s in scoring if s.kind in method.kinds]
        # Rewards that are only reported may be of any kind, or absent.
        if suiting or not method.needs_rewards:
            return next(iter((*suiting, *scoring)), None)
    kinds = method.kinds if name is None else [k for k in SIGNALS if SIGNALS.load(k).scores]
    described = ", ".join(f"{s.name} ({s.kind})" for s in manifest.signals)
    asked = f"asked for {one_line(name, LIMIT)}; " if name else ""
    raise EngineError(
        f"method {method.name} needs a signal of kind {' or '.join(kinds)}; {asked}the engine's "
        f"signals: {described}"
    )
