"""The engine's inputs and outputs: tensor names, cache forms, shapes and sizes (docs/engine.md).

Whoever makes, records, binds or checks an engine's tensors takes them from here: graph passes,
converters, executors, verification. A leaf: it knows numbers and names, no file and no library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from otter_export.errors import EngineError

INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
ATTENTION_MASK = "attention_mask"
LOGITS_TO_KEEP = "logits_to_keep"
WRITE_INDICES = "write_indices"
KEPT_ROWS = "kept_rows"
LOGITS = "logits"

#: Caches are inputs of the size of the prefix; the outputs are the new rows alone.
READ_ONLY = "read_only"
#: Caches of a fixed capacity; the model writes the new rows into the slots behind the prefix.
IN_PLACE = "in_place"
#: TensorRT-LLM's runtime has the caches.
TENSORRT_LLM = "tensorrt_llm"
#: vLLM has them.
VLLM = "vllm"

#: What a client of an engine of TensorRT-LLM sets beside `INPUT_IDS`.
TENSORRT_LLM_INPUTS = (
    "last_token_ids",
    "spec_decoding_generation_lengths",
    "spec_decoding_position_offsets",
    "spec_decoding_packed_mask",
    "spec_decoding_use",
)
#: Names that a signal cannot take, because an engine of some target has an input or output of that
#: name. Caches have dots in theirs, which a signal's name cannot have.
RESERVED_NAMES = (
    LOGITS,
    INPUT_IDS,
    POSITION_IDS,
    ATTENTION_MASK,
    LOGITS_TO_KEEP,
    WRITE_INDICES,
    KEPT_ROWS,
    *TENSORRT_LLM_INPUTS,
)


class CacheNames(NamedTuple):
    """The prefixes of one cache's tensors, as inputs and as outputs."""

    past: str
    present: str


BASE_CACHE = CacheNames("past_key_values", "present")
CHANNEL_CACHE = CacheNames("otter_key_values", "otter_present")
CACHES = (BASE_CACHE, CHANNEL_CACHE)
#: What a cache holds of a layer, by whose attention it is; a shared one reads the base's keys.
CACHE_PARTS: Mapping[str, tuple[str, ...]] = {"own": ("key", "value"), "shared": ("value",)}


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """The tensors of one cache: ``PREFIX.N.key`` and ``PREFIX.N.value`` for each of its layers N.

    Args:
        names: Their prefixes.
        layers: Those that have it: all of the base, the channel from its first layer on.
        parts: Of `CACHE_PARTS`.
        heads: Key/value heads.
        dtype: What they are stored in.
    """

    names: CacheNames
    layers: range
    parts: tuple[str, ...]
    heads: int
    dtype: str

    def pasts(self) -> list[str]:
        """The inputs; slice i of a cache's block is the i-th of them."""
        return self._of_layers(self.names.past)

    def presents(self) -> list[str]:
        """The outputs, in the same order."""
        return self._of_layers(self.names.present)

    def _of_layers(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{part}" for layer in self.layers for part in self.parts]


def is_cache(name: object) -> bool:
    """Whether an input or output of this name is a cache or new rows of one."""
    prefix, dot, _ = str(name).partition(".")
    return bool(dot) and any(prefix in names for names in CACHES)


def present_of(past: str) -> str:
    """The output that continues a cache input: ``present.3.key`` of ``past_key_values.3.key``."""
    prefix, _, rest = past.partition(".")
    names = next(names for names in CACHES if names.past == prefix)
    return f"{names.present}.{rest}"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: its dtype and its shape with named dynamic dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class StepLimits:
    """The sizes that an engine was built for; None where any will do.

    Args:
        max_batch_size: Most sequences of a step.
        max_candidates: Most tokens of a decoding step, and most rows whose logits come out.
        max_step: Most tokens of any step.
        capacity: Slots per sequence of a cache.
    """

    max_batch_size: int | None = None
    max_candidates: int | None = None
    max_step: int | None = None
    capacity: int | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> StepLimits:
        """From the ``options`` of an ``engine.json``.

        Raises:
            EngineError: One is not a positive integer.
        """
        values = {f.name: options.get(f.name) for f in dataclasses.fields(cls)}
        for name, value in values.items():
            if value is not None and (type(value) is not int or value < 1):
                raise EngineError(
                    f"engine.json: option {name} is {value!r}; expected a positive integer. Build "
                    "the engine again"
                )
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class EngineIO:
    """What the tensors of an engine are, by its cache form.

    B sequences, S new tokens each (``step``), R rows whose logits come out (``kept``), e the head
    size, P slots of the prefix (``past``), C the capacity.

    Args:
        cache_form: `READ_ONLY` or `IN_PLACE`.
        caches: Of the base, and of the channel if it has layers; a block of memory for each.
        head_dim: e.
        vocab_size: V.
        signals: Each signal's dimensions behind those of its rows, in the order of the outputs.
        capacity: C of an `IN_PLACE` engine.
    """

    cache_form: str
    caches: tuple[CacheSpec, ...]
    head_dim: int
    vocab_size: int
    signals: Mapping[str, tuple[int, ...]]
    capacity: int | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Logits, and the signals."""
        return (LOGITS, *self.signals)

    def output_shape(self, name: str, batch: int, kept: int) -> tuple[int, ...]:
        """``[B, R, V]`` of logits, or a signal's ``[B, R, ...]``."""
        return (batch, kept, *self.signals.get(name, (self.vocab_size,)))

    def inputs(self) -> dict[str, TensorSpec]:
        """What the model's inputs must be, by name."""
        mask: tuple[int | str, ...] = ("batch", "step", "past + step")
        rows = [TensorSpec(LOGITS_TO_KEEP, "int64", (1,))]
        if self.cache_form == IN_PLACE:
            mask = ("batch", 1, "step", self._slots("past"))
            rows = [
                TensorSpec(WRITE_INDICES, "int64", ("batch",)),
                TensorSpec(KEPT_ROWS, "int64", ("batch", "kept")),
            ]
        specs = [
            TensorSpec(INPUT_IDS, "int64", ("batch", "step")),
            TensorSpec(POSITION_IDS, "int64", ("batch", "step")),
            TensorSpec(ATTENTION_MASK, "bool", mask),
            *rows,
        ]
        slots = self._slots("past")
        for cache in self.caches:
            shape = ("batch", cache.heads, slots, self.head_dim)
            specs += [TensorSpec(name, cache.dtype, shape) for name in cache.pasts()]
        return {spec.name: spec for spec in specs}

    def outputs(self) -> dict[str, TensorSpec]:
        """What the model's outputs must be, by name."""
        specs = []
        for name in self.output_names:
            vocabulary = self.output_shape(name, 1, 1)[2:]
            specs.append(TensorSpec(name, "float32", ("batch", "kept", *vocabulary)))
        slots = self._slots("step")
        for cache in self.caches:
            shape = ("batch", cache.heads, slots, self.head_dim)
            specs += [TensorSpec(name, cache.dtype, shape) for name in cache.presents()]
        return {spec.name: spec for spec in specs}

    def differences(
        self, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
    ) -> list[str]:
        """What a model's tensors are, where they are not as expected.

        Args:
            inputs: The model's, by name; a dimension that is not fixed is a text or None. One that
                is not known is wrong, since it would have to be fed.
            outputs: Likewise; one that is not known is no difference, since nobody asks for it.
        """
        wanted = self.inputs()
        return [
            *_differences("input", wanted, inputs),
            *(f"input {name} is unknown" for name in inputs if name not in wanted),
            *_differences("output", self.outputs(), outputs),
        ]

    def _slots(self, read_only: str) -> int | str:
        """Slots of a cache tensor, which in a `READ_ONLY` engine are the prefix or the step."""
        return read_only if self.cache_form == READ_ONLY else self.capacity or "capacity"


def _differences(
    kind: str, wanted: Mapping[str, TensorSpec], found: Mapping[str, TensorSpec]
) -> Iterator[str]:
    for name, spec in wanted.items():
        actual = found.get(name)
        if actual is None:
            yield f"{kind} {name} is missing"
        elif actual.dtype != spec.dtype:
            yield f"{kind} {name} is {actual.dtype}, expected {spec.dtype}"
        elif not _compatible(actual.shape, spec.shape):
            yield f"{kind} {name} has shape {list(actual.shape)}, expected {list(spec.shape)}"


def _compatible(actual: Sequence[object], wanted: Sequence[object]) -> bool:
    """Equal rank, and equal sizes wherever both are fixed; a name or None is any size."""
    return len(actual) == len(wanted) and all(
        not (isinstance(a, int) and isinstance(w, int)) or a == w
        for a, w in zip(actual, wanted, strict=True)
    )
