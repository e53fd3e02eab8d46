"""``plain``: the base model's own decoding; rewards are reported, never used."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from otter_export.arguments import keep, number
from otter_export.runtime.engine import FloatArray, IntArray
from otter_export.runtime.methods.base import DecodingMethod, ScoreArray, top_k_option
from otter_export.runtime.sampler import nucleus, sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(DecodingMethod):
    """Greedy decoding, or sampling when a temperature is given.

    Args:
        temperature: None or 0 takes the best logit; above 0 samples.
        top_k: Sample from this many of the best tokens; None samples from all.
        top_p: Above 0, at most 1: sample from the smallest set of tokens that holds at least this
            probability.

    Raises:
        RequestError: An option is out of range.
    """

    name: ClassVar[str] = "plain"
    temperature: float | None = None
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None:
            keep(self, temperature=number("temperature", self.temperature, minimum=0))
        if self.top_k is not None:
            keep(self, top_k=top_k_option(self.top_k))
        keep(self, top_p=number("top_p", self.top_p, above=0, maximum=1))

    @property
    def candidate_count(self) -> int | None:
        """1 when greedy, else `top_k`."""
        return self.top_k if self.temperature else 1

    @property
    def samples(self) -> bool:
        """With a temperature."""
        return bool(self.temperature)

    def candidates(self, logits: FloatArray) -> IntArray:
        """The best token when greedy, else the nucleus of the k best."""
        found = super().candidates(logits)
        return nucleus(logits, found, self.temperature, self.top_p) if self.temperature else found

    def choose(self, scores: ScoreArray, generator: np.random.Generator) -> int:
        """The first (best) candidate when greedy, else one draw from the softmax."""
        if not self.temperature:
            return 0
        return sample(scores, self.temperature, generator)
