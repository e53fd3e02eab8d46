"""A case's base, checkpoint and engines; each is made once, when a cell first needs it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.modeling.otter_model import OtterModel, load_reference
from otter_export.runtime.engine import Engine
from tests import built, tiny
from tests.families import bases

#: Of one batch: shorter than the window, as long, and much longer.
LENGTHS = (3, bases.WINDOW, 12, 21, 33)
#: Generated: prompts that begin inside of the window end outside.
NEW_TOKENS = 12
#: Longest sequence of the engines; all positions of the base with the fewest.
LENGTH = 64
CHANNEL = {"hidden_size": 16, "intermediate_size": 24, "heads": 2}


def prompts() -> list[list[int]]:
    """Known tokens, of each length."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in LENGTHS]


@dataclasses.dataclass
class Made:
    """What the cells of one case share; read only.

    Args:
        case: Which base.
        root: Where its directories are made.
        channel: The shape of `checkpoint`, where it is not the default.
    """

    case: bases.Case
    root: Path
    channel: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _engines: dict[str, Path] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def base(self) -> Path:
        """The base as transformers writes it."""
        return bases.write_base(self.case, self.root / "base")

    def shaped(self, first_layer: int, attention: str = "own") -> Made:
        """The same base, and a channel of another shape."""
        shape = {"first_layer": first_layer, "attention": attention}
        other = Made(self.case, self.root / f"{attention}-from-{first_layer}", shape)
        other.__dict__["base"] = self.base
        return other

    @functools.cached_property
    def hugging_face(self) -> Any:
        """The base as transformers loads it."""
        import transformers

        model: Any = transformers.AutoModelForCausalLM.from_pretrained(self.base)
        return model.eval()

    def insert(self, name: str, **channel: Any) -> Checkpoint:
        """A new checkpoint over the base, with both kinds of signals."""
        signals = (tiny.REWARD, tiny.NEXT)
        options = {**CHANNEL, "signals": signals, **channel}
        tiny.write_checkpoint(self.root / name, base=self.base, **options)
        return Checkpoint.open(self.root / name)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """One in which every inserted tensor is random."""
        self.insert("checkpoint", **self.channel)
        # Bases of four layers too: gains compound, and with them the rounding of half precision.
        built.randomize(self.root / "checkpoint", gain=0.5)
        return Checkpoint.open(self.root / "checkpoint")

    @functools.cached_property
    def reference(self) -> OtterModel:
        """The torch reference of `checkpoint`."""
        return load_reference(self.checkpoint)

    def onnx(self, precision: str = "fp32") -> Path:
        """Directory of an engine of target ``onnx``."""
        if precision not in self._engines:
            directory = self.root / f"onnx-{precision}"
            request = {"precision": precision, "max_sequence_length": LENGTH}
            self._engines[precision] = built.build(self.checkpoint, directory, **request)
        return self._engines[precision]

    @functools.cached_property
    def engine(self) -> Engine:
        """The fp32 engine of target ``onnx``."""
        return load_engine(self.onnx(), threads=1)

    def torch_outputs(self, ids: Sequence[Sequence[int]]) -> dict[str, built.Array]:
        """Logits and signals of the reference for whole sequences, by name."""
        with torch.no_grad():
            output = self.reference(torch.tensor(ids))
        values = {"logits": output.logits, **output.signals}
        return {name: value.numpy() for name, value in values.items()}
