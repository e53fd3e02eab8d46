"""Rotary settings, read from a Hugging Face configuration."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import torch


class PositionEmbeddingType(enum.IntEnum):
    learned_absolute = 0
    rope_gptj = 1
    rope_gpt_neox = 2


@dataclasses.dataclass
class RopeParams:
    dim: int
    theta: float
    scaling: dict[str, Any]

    @staticmethod
    def from_config(config: Any) -> RopeParams:
        given = dict(getattr(config, "rope_scaling", None) or {})
        theta = given.pop("rope_theta", None) or getattr(config, "rope_theta", 10000.0)
        return RopeParams(config.head_dim, theta, given)

    def frequencies(self) -> torch.Tensor:
        """``[dim / 2]``; scalings ``linear`` and ``llama3`` as published."""
        frequencies = self.theta ** -(torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        kind = self.scaling.get("rope_type", self.scaling.get("type", "default"))
        if kind == "linear":
            frequencies = frequencies / self.scaling["factor"]
        elif kind == "llama3":
            low, high = self.scaling["low_freq_factor"], self.scaling["high_freq_factor"]
            original = self.scaling["original_max_position_embeddings"]
            turns = original * frequencies / (2 * math.pi)
            smooth = ((turns - low) / (high - low)).clamp(0, 1)
            frequencies = (1 - smooth) * frequencies / self.scaling["factor"] + smooth * frequencies
        else:
            assert kind == "default"
        return frequencies.float()


@dataclasses.dataclass
class PositionalEmbeddingParams:
    type: PositionEmbeddingType
    rope: RopeParams


@dataclasses.dataclass
class AttentionMetadata:
    """Packed sequences, each from its first token."""

    seq_lens_cuda: torch.Tensor
