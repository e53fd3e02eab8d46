"""Inputs, outputs and options of an engine with cache form ``in_place``, and their check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from otter_export.engine_io import TensorSpec
from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends.model_match import compatible, refuse_mismatch
from otter_export.runtime.backends.onnx_contract import PAST, PRESENT, cache_names

CACHE_FORM = "in_place"
INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
ATTENTION_MASK = "attention_mask"
WRITE_INDICES = "write_indices"
KEPT_ROWS = "kept_rows"
LOGITS = "logits"
#: Signal kinds that are an output.
SIGNAL_KINDS = ("value", "q_value")
CACHE_DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The sizes that an engine was built for; ``options`` of its ``engine.json``.

    Args:
        max_batch_size: Most sequences of a step.
        max_candidates: Most tokens of a decoding step, and most rows whose logits come out.
        max_step: Most tokens of any step.
        capacity: Slots per sequence of a cache.
    """

    max_batch_size: int
    max_candidates: int
    max_step: int
    capacity: int

    @classmethod
    def of(cls, manifest: EngineManifest) -> Limits:
        """Read them.

        Raises:
            EngineError: One is missing or not a positive integer, or the cache has another form or
                is too small.
        """
        if manifest.cache_form != CACHE_FORM:
            raise EngineError(
                f"engine.json: cache_form is {manifest.cache_form!r}; target {manifest.target} "
                f"runs {CACHE_FORM!r}. Build the engine again"
            )
        values = {f.name: manifest.options.get(f.name) for f in dataclasses.fields(cls)}
        for name, value in values.items():
            if type(value) is not int or value < 1:
                raise EngineError(
                    f"engine.json: option {name} is {value!r}; expected a positive integer. Build "
                    "the engine again"
                )
        limits = cls(**{name: int(value) for name, value in values.items() if value is not None})
        if limits.capacity < manifest.max_sequence_length:
            raise EngineError(
                f"engine.json: capacity {limits.capacity} is below max_sequence_length "
                f"{manifest.max_sequence_length}. Build the engine again"
            )
        return limits


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """One block of caches: the prefixes of its inputs and outputs, heads, and dtype."""

    past: str
    present: str
    heads: int
    dtype: str


def cache_specs(manifest: EngineManifest) -> tuple[CacheSpec, ...]:
    """The base's and the channel's caches.

    Raises:
        EngineError: A cache is not listed, or its dtype is not one that a cache can have.
    """
    dtypes = {spec.name: spec.dtype for spec in manifest.inputs}
    widths = (manifest.base, manifest.channel)
    specs = []
    for past, present, width in zip(PAST, PRESENT, widths, strict=True):
        dtype = dtypes.get(f"{past}.0.key", "missing")
        if dtype not in CACHE_DTYPES:
            raise EngineError(
                f"engine.json: input {past}.0.key is {dtype}; accepted: {', '.join(CACHE_DTYPES)}. "
                "Build the engine again"
            )
        specs.append(CacheSpec(past, present, int(width["num_key_value_heads"]), dtype))
    return tuple(specs)


def cache_pairs(manifest: EngineManifest) -> Iterator[tuple[str, str]]:
    """Each cache's input and output, which are the same memory."""
    for cache in cache_specs(manifest):
        names = (cache_names(p, manifest.num_layers) for p in (cache.past, cache.present))
        yield from zip(*names, strict=True)


def output_names(manifest: EngineManifest) -> tuple[str, ...]:
    """Logits and the signals that are outputs."""
    signals = (s.name for s in manifest.signals if s.kind in SIGNAL_KINDS)
    return (LOGITS, *signals)


def output_shape(
    manifest: EngineManifest, name: str, batch: int, kept: int
) -> tuple[int, int] | tuple[int, int, int]:
    """``[B, R, V]``, or ``[B, R]`` of a signal of kind ``value``."""
    if name != LOGITS and manifest.signal(name).kind == "value":
        return batch, kept
    return batch, kept, manifest.vocab_size


def expected(
    manifest: EngineManifest, capacity: int
) -> tuple[Mapping[str, TensorSpec], Mapping[str, TensorSpec]]:
    """What the model's inputs and outputs must be, by name."""
    inputs = [
        TensorSpec(INPUT_IDS, "int64", ("batch", "step")),
        TensorSpec(POSITION_IDS, "int64", ("batch", "step")),
        TensorSpec(ATTENTION_MASK, "bool", ("batch", 1, "step", capacity)),
        TensorSpec(WRITE_INDICES, "int64", ("batch",)),
        TensorSpec(KEPT_ROWS, "int64", ("batch", "kept")),
    ]
    outputs = []
    for name in output_names(manifest):
        vocabulary = output_shape(manifest, name, 1, 1)[2:]
        outputs.append(TensorSpec(name, "float32", ("batch", "kept", *vocabulary)))
    for cache in cache_specs(manifest):
        shape = ("batch", cache.heads, capacity, int(manifest.base["head_dim"]))
        for prefix, specs in ((cache.past, inputs), (cache.present, outputs)):
            names = cache_names(prefix, manifest.num_layers)
            specs += [TensorSpec(name, cache.dtype, shape) for name in names]
    return {s.name: s for s in inputs}, {s.name: s for s in outputs}


def check_tensors(
    manifest: EngineManifest, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    """Compare a loaded model's tensors with this contract.

    Args:
        manifest: The content of ``engine.json``.
        inputs: The model's inputs by name; a dimension that is not fixed is a name.
        outputs: Likewise its outputs; more than expected are left unused.

    Raises:
        EngineError: Lists what disagrees.
    """
    wanted_inputs, wanted_outputs = expected(manifest, Limits.of(manifest).capacity)
    problems = [
        *_differences("input", wanted_inputs, inputs),
        *(f"input {name} is unknown" for name in inputs if name not in wanted_inputs),
        *_differences("output", wanted_outputs, outputs),
    ]
    refuse_mismatch(manifest, problems)


def _differences(
    kind: str, wanted: Mapping[str, TensorSpec], found: Mapping[str, TensorSpec]
) -> Iterator[str]:
    for name, spec in wanted.items():
        actual = found.get(name)
        if actual is None:
            yield f"{kind} {name} is missing"
        elif actual.dtype != spec.dtype:
            yield f"{kind} {name} is {actual.dtype}, expected {spec.dtype}"
        elif not compatible(actual.shape, spec.shape):
            yield f"{kind} {name} has shape {list(actual.shape)}, expected {list(spec.shape)}"
