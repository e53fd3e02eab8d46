"""The inputs and outputs of an ``onnx`` engine with a read-only cache, and their check on load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from otter_export.engine_io import TensorSpec
from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends.model_match import compatible, refuse_mismatch

CACHE_FORM = "read_only"
INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
ATTENTION_MASK = "attention_mask"
LOGITS_TO_KEEP = "logits_to_keep"
LOGITS = "logits"
#: Prefixes of the cache inputs and of the new rows, base and channel.
PAST = ("past_key_values", "otter_key_values")
PRESENT = ("present", "otter_present")

_CACHE_DTYPES = ("float32", "float16")
#: ONNX Runtime's names of element types.
_ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def cache_names(prefix: str, layers: int) -> list[str]:
    """``PREFIX.N.key`` and ``PREFIX.N.value`` for every layer, in the order of a `Block`."""
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def cache_dtypes(manifest: EngineManifest) -> tuple[str, str]:
    """The dtypes of the base cache and of the channel cache, as the manifest's inputs say.

    Raises:
        EngineError: A cache input is missing, or its dtype is not one that a cache can have.
    """
    specs = {spec.name: spec.dtype for spec in manifest.inputs}
    found = [specs.get(f"{prefix}.0.key", "missing") for prefix in PAST]
    for prefix, dtype in zip(PAST, found, strict=True):
        if dtype not in _CACHE_DTYPES:
            raise EngineError(
                f"engine.json: input {prefix}.0.key is {dtype}; a cache is "
                f"{' or '.join(_CACHE_DTYPES)}. Build the engine again"
            )
    return found[0], found[1]


def expected_inputs(manifest: EngineManifest) -> Mapping[str, TensorSpec]:
    """What the model's inputs must be, by name."""
    fixed = [
        TensorSpec(INPUT_IDS, "int64", ("batch", "step")),
        TensorSpec(POSITION_IDS, "int64", ("batch", "step")),
        TensorSpec(ATTENTION_MASK, "bool", ("batch", "step", "past + step")),
        TensorSpec(LOGITS_TO_KEEP, "int64", (1,)),
    ]
    return {spec.name: spec for spec in [*fixed, *_cache_specs(manifest, PAST, "past")]}


def expected_outputs(manifest: EngineManifest) -> Mapping[str, TensorSpec]:
    """What the model's outputs must be, by name."""
    rows = ("batch", "kept")
    vocabulary = (*rows, manifest.vocab_size)
    specs = [TensorSpec(LOGITS, "float32", vocabulary)]
    for signal in manifest.signals:
        shape = rows if signal.kind == "value" else vocabulary
        if signal.kind in ("value", "q_value"):
            specs.append(TensorSpec(signal.name, "float32", shape))
    return {spec.name: spec for spec in [*specs, *_cache_specs(manifest, PRESENT, "step")]}


def _cache_specs(
    manifest: EngineManifest, prefixes: tuple[str, str], slots: str
) -> Iterator[TensorSpec]:
    heads = (manifest.base["num_key_value_heads"], manifest.channel["num_key_value_heads"])
    for prefix, count, dtype in zip(prefixes, heads, cache_dtypes(manifest), strict=True):
        shape = ("batch", count, slots, manifest.base["head_dim"])
        for name in cache_names(prefix, manifest.num_layers):
            yield TensorSpec(name, dtype, shape)


def check_model(manifest: EngineManifest, inputs: list[Any], outputs: list[Any]) -> None:
    """Compare a loaded model with its manifest and with this contract.

    Args:
        manifest: The content of ``engine.json``.
        inputs: ONNX Runtime's descriptions (``name``, ``type``, ``shape``) of the model's inputs.
        outputs: Likewise of its outputs.

    Raises:
        EngineError: Lists what disagrees.
    """
    if manifest.cache_form != CACHE_FORM:
        raise EngineError(
            f"engine.json: cache_form is {manifest.cache_form!r}; this release runs "
            f"{CACHE_FORM!r}. Build the engine again"
        )
    problems = [
        *_differences("input", expected_inputs(manifest), manifest.inputs, inputs),
        *_differences("output", expected_outputs(manifest), manifest.outputs, outputs),
    ]
    refuse_mismatch(manifest, problems)


def _differences(
    kind: str,
    expected: Mapping[str, TensorSpec],
    listed: tuple[TensorSpec, ...],
    actual: list[Any],
) -> Iterator[str]:
    named = {spec.name for spec in listed}
    found = {value.name: value for value in actual}
    for name in expected:
        if name not in named:
            yield f"{kind} {name} is not listed"
        if name not in found:
            yield f"{kind} {name} is missing"
    for name, value in found.items():
        if name not in expected:
            # An output that nobody asked for is not computed; an input must be fed.
            if kind == "input":
                yield f"input {name} is unknown"
            continue
        dtype = _ORT_TYPES.get(value.type, value.type)
        if dtype != expected[name].dtype:
            yield f"{kind} {name} is {dtype}, expected {expected[name].dtype}"
        if not compatible(value.shape, expected[name].shape):
            yield f"{kind} {name} has shape {value.shape}, expected {list(expected[name].shape)}"
