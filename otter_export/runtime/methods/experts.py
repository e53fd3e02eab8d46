"""``experts``: towards an expert and away from an anti-expert, within the base's nucleus."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from otter_export.arguments import keep, number
from otter_export.runtime.engine import FloatArray, IntArray
from otter_export.runtime.methods.base import ScoreArray
from otter_export.runtime.methods.guided import GuidedMethod
from otter_export.runtime.sampler import nucleus, sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts(GuidedMethod):
    """Decode by ``z + weight * (z+ - z-)`` over the tokens that the base finds likely (DExperts).

    ``z`` are the base's logits, ``z+`` and ``z-`` those of an ``expert`` signal's two sides
    (arXiv 2105.03023). One row a step gives all of them. Weight 0 is `Plain` with the same options.

    Args:
        top_k: The best tokens that the nucleus is taken from; None: all.
        top_p: Above 0, at most 1: only the smallest set of tokens that holds at least this much of
            the base's probability can be chosen.
        temperature: None or 0 takes the best; above 0 samples.

    Raises:
        RequestError: An option is out of range.
    """

    name: ClassVar[str] = "experts"
    kinds: ClassVar[tuple[str, ...]] = ("expert",)
    takes_all: ClassVar[bool] = True
    top_k: int | None = None
    top_p: float = 0.9
    temperature: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, top_p=number("top_p", self.top_p, above=0, maximum=1))
        if self.temperature is not None:
            keep(self, temperature=number("temperature", self.temperature, minimum=0))

    @property
    def samples(self) -> bool:
        """With a temperature."""
        return bool(self.temperature)

    def candidates(self, logits: FloatArray) -> IntArray:
        """The nucleus of the k best."""
        return nucleus(logits, super().candidates(logits), self.temperature or 1.0, self.top_p)

    def choose(self, scores: ScoreArray, generator: np.random.Generator) -> int:
        """The first of the best scores when greedy, else one draw from the softmax."""
        if not self.temperature:
            return int(np.argmax(scores))
        return sample(scores, self.temperature, generator)
