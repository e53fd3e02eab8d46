"""The `Engine` protocol on ONNX Runtime; the graph's I/O is in `onnx_contract`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from otter_export.errors import EngineError, MissingDependencyError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import onnx_contract as contract
from otter_export.runtime.backends.cache_block import Block, HostBlock
from otter_export.runtime.engine import BoolArray, Cache, FloatArray, IntArray, Step
from otter_export.runtime.step_check import check_commit, check_forward
from otter_export.runtime.tokenizer import FILE_NAME as TOKENIZER_FILE
from otter_export.runtime.tokenizer import JsonTokenizer

#: Capacity is a multiple of this many slots, so that the graph sees few different shapes.
SLOTS = 32
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_BlockShape = tuple[int, int, int, int, int]


def load(
    directory: Path, manifest: EngineManifest, provider: str, threads: int | None
) -> OnnxRuntimeEngine:
    """Load the model of an engine directory and check it against the manifest.

    Raises:
        EngineError: ONNX Runtime cannot load the model, or it does not match the manifest.
        MissingDependencyError: The provider is not in the installed ONNX Runtime.
    """
    if provider not in _PROVIDERS:
        raise EngineError(
            f"engine.json: execution_provider is {provider!r}; accepted: {', '.join(_PROVIDERS)}"
        )
    if _PROVIDERS[provider] not in ort.get_available_providers():
        raise MissingDependencyError("onnxruntime-gpu", "cuda", f"provider {provider!r}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    path = directory / manifest.model_file
    try:
        session = ort.InferenceSession(str(path), options, providers=[_PROVIDERS[provider]])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot load {path}: {error}") from None
    contract.check_model(manifest, session.get_inputs(), session.get_outputs())
    return OnnxRuntimeEngine(directory, manifest, session, provider)


class OnnxCache:
    """Key/value rows of a batch, in blocks of ``capacity`` slots, bound to the graph in place.

    Args:
        base: Rows of the base's heads.
        channel: Rows of the channel's heads.
        lengths: ``[B]``: slots in use.
        binding: ONNX Runtime's binding of this cache's memory.
    """

    def __init__(self, base: Block, channel: Block, lengths: IntArray, binding: Any) -> None:
        self.base = base
        self.channel = channel
        self.lengths = lengths
        self.binding = binding
        #: Counts commits, to recognise a step that was run on an earlier state.
        self.version = 0
        #: Rows whose memory is bound as outputs.
        self.bound: _Rows | None = None

    @property
    def capacity(self) -> int:
        """Slots per sequence."""
        return self.base.shape[3]


@dataclasses.dataclass
class _Rows:
    """New rows of one step: the two blocks that the graph wrote, S slots each."""

    cache: OnnxCache
    version: int
    base: Block
    channel: Block

    @property
    def width(self) -> int:
        """S."""
        return self.base.shape[3]


class OnnxRuntimeEngine:
    """An engine on ONNX Runtime; made by `load`."""

    def __init__(
        self, directory: Path, manifest: EngineManifest, session: Any, provider: str
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._session = session
        self._device = provider
        self._dtypes = [np.dtype(name) for name in contract.cache_dtypes(manifest)]
        widths = (manifest.base, manifest.channel)
        self._heads = [width["num_key_value_heads"] for width in widths]
        self._signals = [s for s in manifest.signals if s.kind in ("value", "q_value")]

    @property
    def manifest(self) -> EngineManifest:
        """The content of its ``engine.json``."""
        return self._manifest

    @functools.cached_property
    def tokenizer(self) -> JsonTokenizer:
        """The tokenizer of its directory."""
        return JsonTokenizer(self._directory / TOKENIZER_FILE)

    def new_cache(self, batch_size: int) -> OnnxCache:
        """An empty cache; see `Engine.new_cache`."""
        if type(batch_size) is not int or batch_size < 1:
            raise EngineError(f"a cache holds at least 1 sequence, got {batch_size!r}")
        return self._cache(np.zeros(batch_size, np.int64), SLOTS)

    def gather(self, sources: Sequence[tuple[Cache, int]]) -> OnnxCache:
        """Copies of sequences in a new cache; see `Engine.gather`."""
        if not sources:
            raise EngineError("a cache holds at least 1 sequence, got no sources")
        taken = [(_own(cache), index) for cache, index in sources]
        lengths = np.array([cache.lengths[index] for cache, index in taken], np.int64)
        result = self._cache(lengths, _slots(int(lengths.max())))
        for b, (cache, index) in enumerate(taken):
            used = range(int(lengths[b]))
            result.base.put(b, 0, cache.base, index, used)
            result.channel.put(b, 0, cache.channel, index, used)
        result.base.wait()
        return result

    def forward(
        self,
        cache: Cache,
        input_ids: IntArray,
        position_ids: IntArray,
        tree: BoolArray,
        logits_to_keep: int,
    ) -> Step:
        """Run the model; see `Engine.forward`."""
        cache = _own(cache)
        check_forward(self._manifest, cache.lengths, input_ids, position_ids, tree, logits_to_keep)
        batch, width = input_ids.shape
        inputs = {
            contract.INPUT_IDS: np.ascontiguousarray(input_ids),
            contract.POSITION_IDS: np.ascontiguousarray(position_ids),
            contract.ATTENTION_MASK: _mask(cache, tree),
            contract.LOGITS_TO_KEEP: np.array([logits_to_keep], np.int64),
        }
        rows = self._bind_rows(cache, width)
        logits: FloatArray = np.empty(
            (batch, logits_to_keep, self._manifest.vocab_size), np.float32
        )
        signals: dict[str, FloatArray] = {
            s.name: np.empty(logits.shape[: 2 if s.kind == "value" else 3], np.float32)
            for s in self._signals
        }
        for name, array in inputs.items():
            cache.binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, out in {contract.LOGITS: logits, **signals}.items():
            cache.binding.bind_output(name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        try:
            self._session.run_with_iobinding(cache.binding)
            cache.binding.synchronize_outputs()
        except Exception as error:
            raise EngineError(f"the model failed in ONNX Runtime: {error}") from None
        return Step(logits, signals, rows)

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        """Keep rows of a step; see `Engine.commit`."""
        cache, new = _own(cache), step.rows
        if not isinstance(new, _Rows) or new.cache is not cache or new.version != cache.version:
            raise EngineError("a step can be committed once, to the cache that it was run on")
        lengths = check_commit(self._manifest, cache.lengths, new.width, rows)
        if lengths.max() > cache.capacity:
            self._grow(cache, int(lengths.max()))
        for b, kept in enumerate(rows):
            if len(kept):
                start = int(cache.lengths[b])
                cache.base.put(b, start, new.base, b, kept)
                cache.channel.put(b, start, new.channel, b, kept)
        cache.base.wait()
        cache.lengths = lengths
        cache.version += 1

    def _cache(self, lengths: IntArray, capacity: int) -> OnnxCache:
        base, channel = self._blocks(len(lengths), capacity)
        cache = OnnxCache(base, channel, lengths, self._session.io_binding())
        self._bind_past(cache)
        return cache

    def _blocks(self, batch: int, slots: int) -> tuple[Block, Block]:
        head_dim = self._manifest.base["head_dim"]
        shapes: list[_BlockShape] = [
            (2 * self._manifest.num_layers, batch, heads, slots, head_dim) for heads in self._heads
        ]
        blocks = [self._block(s, d) for s, d in zip(shapes, self._dtypes, strict=True)]
        return blocks[0], blocks[1]

    def _block(self, shape: _BlockShape, dtype: np.dtype[Any]) -> Block:
        if self._device == "cuda":
            from otter_export.runtime.backends.device_block import DeviceBlock

            return DeviceBlock(shape, dtype)
        return HostBlock(shape, dtype)

    def _grow(self, cache: OnnxCache, needed: int) -> None:
        """Move to larger blocks: an eighth more at least, so that copying stays amortised.

        Attention reads the whole capacity, so doubling would cost more than it saves.
        """
        limit = _slots(self._manifest.max_sequence_length)
        capacity = min(_slots(max(needed, cache.capacity + cache.capacity // 8)), limit)
        old = (cache.base, cache.channel)
        cache.base, cache.channel = self._blocks(len(cache.lengths), capacity)
        for b, length in enumerate(cache.lengths):
            cache.base.put(b, 0, old[0], b, range(int(length)))
            cache.channel.put(b, 0, old[1], b, range(int(length)))
        self._bind_past(cache)

    def _bind_past(self, cache: OnnxCache) -> None:
        for prefix, block in zip(contract.PAST, (cache.base, cache.channel), strict=True):
            shape = block.shape[1:]
            for index, name in enumerate(contract.cache_names(prefix, self._manifest.num_layers)):
                cache.binding.bind_input(
                    name, block.device, 0, block.dtype, shape, block.address(index)
                )

    def _bind_rows(self, cache: OnnxCache, width: int) -> _Rows:
        """Memory for the new rows, bound as outputs."""
        bound = cache.bound
        # Rows of an earlier state cannot be committed any more, so their memory is free.
        if bound is not None and bound.version != cache.version and bound.width == width:
            cache.bound = dataclasses.replace(bound, version=cache.version)
            return cache.bound
        blocks = self._blocks(len(cache.lengths), width)
        for prefix, block in zip(contract.PRESENT, blocks, strict=True):
            shape = block.shape[1:]
            for index, name in enumerate(contract.cache_names(prefix, self._manifest.num_layers)):
                cache.binding.bind_output(
                    name, block.device, 0, block.dtype, shape, block.address(index)
                )
        cache.bound = _Rows(cache, cache.version, *blocks)
        return cache.bound


def _own(cache: Cache) -> OnnxCache:
    if not isinstance(cache, OnnxCache):
        raise EngineError(f"the cache was not made by this engine: {type(cache).__name__}")
    return cache


def _slots(length: int) -> int:
    """Capacity for ``length`` tokens."""
    return max(SLOTS, -(-length // SLOTS) * SLOTS)


def _mask(cache: OnnxCache, tree: BoolArray) -> BoolArray:
    """``[B, S, capacity + S]``: which keys each new token sees."""
    batch, width, _ = tree.shape
    mask = np.zeros((batch, width, cache.capacity + width), np.bool_)
    mask[:, :, : cache.capacity] = (np.arange(cache.capacity) < cache.lengths[:, None])[:, None, :]
    mask[:, :, cache.capacity :] = tree
    # A softmax over nothing is NaN, and a padding row's NaN would spread through 0 * NaN.
    mask[:, :, cache.capacity :] |= np.eye(width, dtype=np.bool_)
    return mask
