"""The weights inside an ``onnx`` engine, read back and compared with its checkpoint.

The passes that lower a graph append to a weight's name what they did to it: ``_t`` transposed,
``_half`` rounded to float16, ``_int8`` or ``_int4`` quantised, ``_by_GAIN`` multiplied by the gain
of the norm before it. Undoing that needs none of the code
that did it, so that the two can be held against each other. A quantised weight is either packed for
MatMulNBits (ONNX Runtime), or plain codes for DequantizeLinear (TensorRT).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.checkpoint import Checkpoint
from otter_export.evaluation.model_file import load_model, read_tensor
from otter_export.evaluation.stored_codes import Quantized, dequantized, dequantized_linear
from otter_export.safetensors_io import FloatArray
from otter_export.signals import Signal, block_name, kind_of, token_ids_name

_FORMS = {"_int8": 8, "_int4": 4}
#: What belongs to the weight before it, and is read with it.
_BESIDE = ("_scales", "_zero_points")
_GAINED = "_by_"


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """One initializer that holds weights of the checkpoint.

    Args:
        name: Its name in the graph.
        source: Name of the checkpoint's weight in it.
        transposed: It is stored ``[in, out]``.
        bits: 8 or 4 when quantised, else None.
        gain: Name of the checkpoint's weight that its columns are multiplied by, or none.
    """

    name: str
    source: str
    transposed: bool
    bits: int | None
    gain: str = ""


@dataclasses.dataclass(frozen=True)
class Values:
    """What a stored weight stands for.

    Args:
        values: ``[out, in]`` or ``[out]``, float32.
        dtype: What they are stored in.
        quantized: How they were made, if they are quantised.
    """

    values: FloatArray
    dtype: np.dtype[Any]
    quantized: Quantized | None = None


class StoredWeights:
    """The weights of an engine's model; each is read when asked for.

    Args:
        path: The model file; its external data lies beside it.
        names: Names that weights can have, to tell them from other initializers.

    Raises:
        EngineError: The model file cannot be read.
    """

    def __init__(self, path: Path, names: frozenset[str]) -> None:
        self._tensors = {
            str(name): value.const_value
            for name, value in load_model(path).graph.initializers.items()
            if value.const_value is not None
        }
        self._directory = path.parent
        parsed = (_parse(name) for name in self._tensors if not name.endswith(_BESIDE))
        self.weights = tuple(w for w in parsed if {w.source, w.gain or w.source} <= names)

    def find(self, name: str, *, quantized: bool | None = None) -> StoredWeight | None:
        """The initializer that holds ``name``; with ``quantized``, of that form only."""
        for weight in self.weights:
            if weight.source == name and quantized in (None, weight.bits is not None):
                return weight
        return None

    def read(self, weight: StoredWeight, columns: int) -> Values:
        """Values as the checkpoint holds them: ``[out, in]``.

        Args:
            weight: One of `weights`.
            columns: ``in``; quantised rows are padded to whole blocks.
        """
        array = self._numpy(weight.name)
        if weight.bits is None:
            values = array.T if weight.transposed else array
            return Values(values.astype(np.float32, copy=False), array.dtype)
        scales = self._numpy(f"{weight.name}_scales")
        if array.dtype != np.uint8:
            values, quantized = dequantized_linear(weight.bits, array, scales)
            return Values(values, array.dtype, quantized)
        points = f"{weight.name}_zero_points"
        zeros = self._numpy(points) if points in self._tensors else None
        values, quantized = dequantized(weight.bits, array, scales, zeros)
        return Values(values[:, :columns], array.dtype, quantized)

    def _numpy(self, name: str) -> npt.NDArray[Any]:
        return read_tensor(self._tensors[name], self._directory)


def _parse(name: str) -> StoredWeight:
    stem, bits, transposed = name, None, False
    if stem.endswith("_half"):
        stem = stem.removesuffix("_half")
    for suffix, width in _FORMS.items():
        if stem.endswith(suffix):
            stem, bits = stem.removesuffix(suffix), width
    if stem.endswith("_t"):
        stem, transposed = stem.removesuffix("_t"), True
    source, _, gain = stem.partition(_GAINED)
    return StoredWeight(name, source, transposed, bits, gain)


def checkpoint_weights(checkpoint: Checkpoint) -> Mapping[str, Callable[[], FloatArray]]:
    """Every weight of a checkpoint under its name in the graph, ``[out, in]``, read when called."""
    base = checkpoint.base
    found: dict[str, Callable[[], FloatArray]] = {}

    def plain(name: str) -> None:
        if base.has(name):
            found[name] = functools.partial(base.float32, name)

    for name, _ in base.sites.embeddings:
        plain(f"{name}.weight")
    for norm in base.sites.norms:
        found[f"{norm.name}.weight"] = functools.partial(base.norm_weight, norm)
        plain(f"{norm.name}.bias")
    for site in base.sites.projections:
        found[f"{site.graph_name}.weight"] = functools.partial(base.projection, site)
        if base.has(f"{site.parameter}.bias"):
            bias = functools.partial(base.projection_bias, site)
            found[f"{site.graph_name}.bias"] = bias  # type: ignore[assignment]
    head = f"{base.family.output_head}.weight"
    found[head] = functools.partial(base.float32, base.head_name)
    plain(f"{base.family.output_head}.bias")
    for name in checkpoint.tensors:
        found[name] = functools.partial(checkpoint.float32, name)
    for signal in checkpoint.config.signals:
        for part, shape in (("weight", (-1, checkpoint.config.hidden_size)), ("bias", (-1,))):
            name = f"signals.{signal.name}.{part}"
            found[name] = functools.partial(_engine_head, signal, found[name], shape)
        if signal.residual:
            name = f"{block_name(signal)}.weight"
            found[name] = functools.partial(_rows, found[name])
        found.pop(token_ids_name(signal), None)  # no weight: a runtime reads them
    return found


def _rows(read: Callable[[], FloatArray]) -> FloatArray:
    """The blocks of all heads, one below the other."""
    values = read()
    return values.reshape(-1, values.shape[-1])


def _engine_head(
    signal: Signal, read: Callable[[], FloatArray], shape: tuple[int, ...]
) -> FloatArray:
    """The part of a stored head that an engine has."""
    part: FloatArray = kind_of(signal).engine_head(read()).reshape(shape)
    return part


def mismatches(stored: StoredWeights, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """``(initializer or weight, what is wrong)`` for all that is not the checkpoint's.

    Weights in float32 must be equal, those in float16 equal when rounded, quantised ones within
    half a step, with steps no larger than their block needs.
    """
    expected = checkpoint_weights(checkpoint)
    seen: set[str] = set()
    for weight in stored.weights:
        seen |= {weight.source, weight.gain}
        original = expected[weight.source]()
        if weight.gain:
            gain = expected[weight.gain]()
            if gain.shape != original.shape[-1:]:
                yield weight.name, f"has a gain of shape {list(gain.shape)}"
                continue
            original = original * gain
        problem = _problem(stored.read(weight, original.shape[-1]), original)
        if problem:
            yield weight.name, problem
    if checkpoint.base.dimensions.tie_word_embeddings:
        # A tied head may share the embedding's data.
        seen.add(f"{checkpoint.base.family.output_head}.weight")
    for name in expected:
        if name not in seen:
            yield name, "is not in the engine"


def _problem(stored: Values, original: FloatArray) -> str | None:
    if stored.values.size != original.size:
        return f"has shape {list(stored.values.shape)}, expected {list(original.shape)}"
    if stored.quantized is not None:
        return _quantized_problem(stored.quantized, stored.values, original)
    wanted = original.astype(stored.dtype, copy=False).astype(np.float32, copy=False)
    wrong = int((stored.values.reshape(original.shape) != wanted).sum())
    return f"{wrong} of {original.size} values differ" if wrong else None


def _quantized_problem(
    quantized: Quantized, values: FloatArray, original: FloatArray
) -> str | None:
    """Half a step from the checkpoint's value at most; symmetric, the last code may be a step off.

    A step that is larger than its block needs would hide any error, so that is wrong too.
    """
    steps, codes = quantized.steps, quantized.codes
    # The extra 0.1 % is for scale and product, which are rounded to float32.
    slack = np.float32(0.001)
    if quantized.half:
        # Rounded to float16 first, the block's extreme is off by 2**-11 of itself at most.
        slack += np.float32(2 ** (quantized.bits - 1) * 2**-11)
    allowed = steps * (np.float32(0.5) + slack)
    if quantized.symmetric:
        # There is no code for the negative of the block's extreme.
        last = (codes == 0) | (codes == 2**quantized.bits - 1)
        allowed = np.where(last, steps * (1 + slack), allowed)
    distance = _blocks(np.abs(values - original), codes.shape)
    wrong = int((distance > allowed).sum())
    if wrong:
        return f"{wrong} of {original.size} values are further off than rounding allows"
    # In float16, extreme and step are both rounded; below 2**-14 by 2**-25.
    needed = 1.001 * _needed_steps(quantized, original)
    if quantized.half:
        needed = 1.001 * needed + np.float32(2**-25)
    coarse = int((steps > needed).sum())
    return f"{coarse} of {steps.size} steps are larger than their block needs" if coarse else None


def _needed_steps(quantized: Quantized, original: FloatArray) -> FloatArray:
    """The largest step that each block needs, ``[out, blocks, 1]``; any for a block of zeros."""
    blocks = _blocks(original, quantized.codes.shape)
    low = np.minimum(blocks.min(axis=2, keepdims=True), 0)
    high = np.maximum(blocks.max(axis=2, keepdims=True), 0)
    if quantized.symmetric:
        needed = np.maximum(high, -low) / (2 ** (quantized.bits - 1) - 1)
    else:
        needed = (high - low) / (2**quantized.bits - 1)
    return np.where(needed > 0, needed, np.inf).astype(np.float32)


def _blocks(array: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """``[out, in]`` to ``[out, blocks, block size]``, padded with zeros."""
    padded = np.zeros((shape[0], shape[1] * shape[2]), np.float32)
    padded[:, : array.shape[1]] = array
    return padded.reshape(shape)
