"""Texts that one way to decode wrote, and what can be measured of them without a judge."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from otter_export.evaluation.text_metrics import diversity
from otter_export.runtime.engine import Engine
from otter_export.runtime.generation import BATCH_SIZE, generate
from otter_export.runtime.request import Request, Result, TokenEvent

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Written:
    """Results of some requests; arrays have an entry for each.

    Args:
        results: In the order of the requests.
        seconds: From the first prompt to the last token.
    """

    results: tuple[Result, ...]
    seconds: float

    @property
    def texts(self) -> list[str]:
        """With their prompts."""
        return [result.prompt + result.text for result in self.results]

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        """Generated tokens of each text."""
        return [result.token_ids for result in self.results]

    @property
    def reward(self) -> Array:
        """Mean reward of a text's tokens."""
        return np.array([np.mean(result.rewards) for result in self.results])

    @property
    def last_reward(self) -> Array:
        """Reward at the end of a text."""
        return np.array([result.rewards[-1] for result in self.results])

    @property
    def diversity(self) -> Array:
        """`text_metrics.diversity` of a text's tokens."""
        return np.array([diversity(result.token_ids) for result in self.results])

    @property
    def tokens(self) -> int:
        """Generated tokens in all."""
        return sum(len(result.token_ids) for result in self.results)

    @property
    def forwards_per_token(self) -> float:
        """Forward passes after the prompts for each generated token."""
        return sum(result.forwards for result in self.results) / self.tokens


def write(
    engine: Engine,
    requests: Sequence[Request],
    *,
    batch_size: int = BATCH_SIZE,
    on_event: Callable[[TokenEvent], None] | None = None,
) -> Written:
    """Write texts and take the time; arguments and errors as `generate`."""
    started = time.perf_counter()
    results = generate(engine, requests, batch_size=batch_size, on_event=on_event)
    return Written(tuple(results), time.perf_counter() - started)
