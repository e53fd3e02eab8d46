"""Options of target ``trt``, and the sizes that follow; imports nothing heavy."""

from __future__ import annotations

import dataclasses

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import BuildRequest, max_sequence_length, option
from otter_export.errors import UnsupportedError

#: Attention reads the whole static cache in every step, so all 128K positions of a long base are
#: not what one wants unasked.
DEFAULT_SEQUENCE_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class TensorRTOptions:
    """Options of target ``trt``.

    Args:
        builder: A registered builder, or ``auto``: the first that is usable here.
        max_batch_size: Most sequences in one step.
        max_candidates: Most candidates of one position in one step.
        max_step: Most tokens of one sequence in one step: the chunk in which prompts are fed.
        sm: Compute capabilities to build for, as ``80,89,120``; None leaves it to the builder.
        plugin: Use the fused projection kernel for `OtterLinear`; False builds the plain form.
        keep_onnx: Leave the lowered model.onnx in the engine directory.
        tensor_parallel: Ranks that share the weights (tensorrt-llm only).
        checkpoint_only: Stop before the engine itself is built (tensorrt-llm only).
    """

    builder: str = option("auto", "auto, tensorrt-rtx, tensorrt or tensorrt-llm.")
    max_batch_size: int = option(8, "Most sequences in one step.")
    max_candidates: int = option(16, "Most candidates of one position in one step.")
    max_step: int = option(512, "Most tokens of a prompt in one step.")
    sm: str | None = option(None, "Compute capabilities: 80,89,120.  [default: the builder's]")
    plugin: bool = option(True, "Build the plain form, without the fused projection kernel.")
    keep_onnx: bool = option(False, "Keep the lowered model.onnx in the engine.")
    tensor_parallel: int = option(1, "Ranks that share the weights (tensorrt-llm only).")
    checkpoint_only: bool = option(False, "Write all but the engine (tensorrt-llm only).")


@dataclasses.dataclass(frozen=True)
class EngineShapes:
    """Sizes of an engine with a static cache.

    Args:
        max_sequence_length: Prompt and generated tokens together.
        max_step: Most new tokens of one sequence in one step.
        max_batch_size: Most sequences in one step.
        max_candidates: Most candidates of one position.
    """

    max_sequence_length: int
    max_step: int
    max_batch_size: int
    max_candidates: int

    @property
    def has_tree(self) -> bool:
        """Whether a step may have several candidates of one position."""
        return self.max_candidates > 1

    @property
    def capacity(self) -> int:
        """Slots of the cache: a full step fits behind a full prefix."""
        return self.max_sequence_length + self.max_step


def engine_shapes(checkpoint: Checkpoint, request: BuildRequest) -> EngineShapes:
    """The sizes that a request asks for.

    Raises:
        UnsupportedError: One of them is not possible.
    """
    options = request.options_as(TensorRTOptions)
    length = max_sequence_length(checkpoint, request, DEFAULT_SEQUENCE_LENGTH)
    vocabulary = checkpoint.base.dimensions.vocab_size
    _in_range("--max-batch-size", options.max_batch_size, 1024, "sequences in one step")
    _in_range("--max-candidates", options.max_candidates, min(vocabulary, 1024), "candidates")
    _in_range("--max-step", options.max_step, 1 << 16, "tokens in one step")
    # A step is never longer than a sequence, but all candidates of a position must fit into one.
    step = max(min(options.max_step, length), options.max_candidates)
    return EngineShapes(length, step, options.max_batch_size, options.max_candidates)


def _in_range(flag: str, value: int, limit: int, what: str) -> None:
    if not 1 <= value <= limit:
        raise UnsupportedError(f"{flag} {value}: choose 1 to {limit} {what}")


def parse_capabilities(text: str) -> tuple[str, ...]:
    """``80,89,120`` as ``("8.0", "8.9", "12.0")``, sorted and without repetition.

    Raises:
        UnsupportedError: It is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 2 <= len(part) <= 3 for part in parts):
        raise UnsupportedError(f"--sm {text}: expected compute capabilities, as in --sm 80,89,120")
    numbers = sorted({int(part) for part in parts})
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)
