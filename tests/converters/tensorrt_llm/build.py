"""Engine directories of builder tensorrt-llm, and the reference that they are held against."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import Availability, BuildPlan, BuildRequest
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.converters.tensorrt_llm import engine
from otter_export.modeling.otter_model import OtterModel, load_reference

ABSENT = Availability("tensorrt-llm", False, None, True, "the package is not installed")
#: Divisible by 4 ranks, channel included.
WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 96}


def planned(
    checkpoint: Checkpoint,
    tp: int = 1,
    precision: str = "fp32",
    availability: Availability = ABSENT,
    **options: Any,
) -> BuildPlan:
    """The plan of a build; ``options`` are those of target trt."""
    options = {"checkpoint_only": True, "max_candidates": 4, **options}
    chosen = TensorRTOptions(tensor_parallel=tp, **options)
    request = BuildRequest(precision, None, chosen)
    return engine.plan(checkpoint, request, availability)


def built(checkpoint: Checkpoint, directory: Path, tp: int = 1, precision: str = "fp32") -> Path:
    """Everything but the engine, written into ``directory``."""
    directory.mkdir()
    planned(checkpoint, tp, precision).write(directory, None).save(directory)
    return directory


def reference(checkpoint: Checkpoint, ids: list[int]) -> dict[str, torch.Tensor]:
    """The torch reference's logits and signals of every token of one sequence, without padding."""
    with torch.no_grad():
        output = _model(checkpoint.directory)(torch.tensor([ids]))
    signals = {name: value[0] for name, value in output.signals.items()}
    return {"logits": output.logits[0], **signals}


@functools.lru_cache(maxsize=1)
def _model(directory: Path) -> OtterModel:
    return load_reference(Checkpoint.open(directory))
