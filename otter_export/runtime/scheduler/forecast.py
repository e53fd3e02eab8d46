"""Forecast of next tokens' rewards from that of their prefix: it decides costs, never a result."""

from __future__ import annotations

#: The margin as a share of the range between the bounds, and what it is multiplied by after a miss
#: and after a hit. Rewards that keep nothing of their prefix's make one forecast in 70 miss.
_LEAST, _MISSED, _HELD = 0.05, 4.0, 0.98


class Forecast:
    """A next token's reward is near that of its prefix; how near is learned from misses.

    Attributes:
        bounds: What the reward cannot leave.
    """

    def __init__(self, bounds: tuple[float, float]) -> None:
        self.bounds = bounds
        self._margin = _LEAST

    def around(self, reward: float) -> tuple[float, float]:
        """Where the rewards are expected behind a prefix of this reward; NaN: within the bounds."""
        low, high = self.bounds
        margin = self._margin * (high - low)
        return max(low, reward - margin), min(high, reward + margin)

    def learn(self, held: bool) -> None:
        """A forecast held, or missed."""
        self._margin = (
            max(self._margin * _HELD, _LEAST) if held else min(_MISSED * self._margin, 1.0)
        )
