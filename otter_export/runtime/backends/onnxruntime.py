"""The `Engine` protocol on ONNX Runtime; the graph's I/O is in `onnx_contract`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from otter_export.errors import EngineError, MissingDependencyError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import onnx_contract as contract
from otter_export.runtime.backends.cache_block import Block, BlockShape, HostBlock
from otter_export.runtime.backends.onnx_cache import OnnxCache, Rows
from otter_export.runtime.engine import BoolArray, Cache, FloatArray, IntArray, Step
from otter_export.runtime.step_check import check_commit, check_forward
from otter_export.runtime.tokenizer import FILE_NAME as TOKENIZER_FILE
from otter_export.runtime.tokenizer import JsonTokenizer

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: Precisions whose CPU kernels take rows in pairs and treat an odd last row differently.
_PAIRED = ("int8", "int4")


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


class OnnxRuntimeEngine:
    """An engine on ONNX Runtime; made by `load`.

    On the CPU, what a token gets depends on the numbers that it sees and not on the other sequences
    of the batch, bit for bit: products with packed weights treat every row alike, whatever the
    number of rows. The int8 and int4 kernels do so for pairs of rows, so an odd number of rows is
    made even by padding that nobody sees and that is not returned.
    """

    def __init__(
        self, directory: Path, manifest: EngineManifest, session: Any, provider: str
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._session = session
        self._device = provider
        self._paired = provider == "cpu" and manifest.precision in _PAIRED
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
        if type(batch_size) is not int or batch_size < 0:
            raise EngineError(f"a cache holds at least 0 sequences, got {batch_size!r}")
        limit = self._manifest.max_sequence_length
        return OnnxCache(self._blocks, limit, batch_size, self._session.io_binding())

    def append(self, cache: Cache, sources: Sequence[tuple[Cache, int]]) -> None:
        """Copies of sequences join; see `Engine.append`."""
        _own(cache).append([(_own(source), index) for source, index in sources])

    def select(self, cache: Cache, indices: Sequence[int]) -> None:
        """Keep these sequences; see `Engine.select`."""
        _own(cache).select(indices)

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
        pad = _padding(batch, width, logits_to_keep) if self._paired else _Padding()
        batch, width = batch + pad.sequences, width + pad.tokens
        kept = logits_to_keep + pad.kept
        inputs = {
            contract.INPUT_IDS: pad.apply(input_ids),
            contract.POSITION_IDS: pad.apply(position_ids),
            contract.ATTENTION_MASK: _mask(cache, tree, pad),
            contract.LOGITS_TO_KEEP: np.array([kept], np.int64),
        }
        self._bind_past(cache, batch)
        rows = self._bind_rows(cache, batch, width)
        outputs = self._outputs(batch, kept)
        for name, array in inputs.items():
            cache.binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, out in outputs.items():
            cache.binding.bind_output(name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        try:
            self._session.run_with_iobinding(cache.binding)
            cache.binding.synchronize_outputs()
        except Exception as error:
            raise EngineError(f"the model failed in ONNX Runtime: {error}") from None
        first = pad.kept - pad.tokens
        asked = np.s_[: len(input_ids), first : first + logits_to_keep]
        signals = {s.name: outputs[s.name][asked] for s in self._signals}
        return Step(outputs[contract.LOGITS][asked], signals, rows)

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        """Keep rows of a step; see `Engine.commit`."""
        cache, new = _own(cache), step.rows
        if not isinstance(new, Rows) or new.cache is not cache or new.version != cache.version:
            raise EngineError("a step can be committed once, to the cache that it was run on")
        cache.keep(new, rows, check_commit(self._manifest, cache.lengths, new.width, rows))

    def _blocks(self, batch: int, slots: int) -> tuple[Block, Block]:
        head_dim = self._manifest.base["head_dim"]
        shapes: list[BlockShape] = [
            (2 * self._manifest.num_layers, batch, heads, slots, head_dim) for heads in self._heads
        ]
        blocks = [self._block(s, d) for s, d in zip(shapes, self._dtypes, strict=True)]
        return blocks[0], blocks[1]

    def _block(self, shape: BlockShape, dtype: np.dtype[Any]) -> Block:
        if self._device == "cuda":
            from otter_export.runtime.backends.device_block import DeviceBlock

            return DeviceBlock(shape, dtype)
        return HostBlock(shape, dtype)

    def _outputs(self, batch: int, kept: int) -> dict[str, FloatArray]:
        """Memory for logits and signals, by the names of the outputs."""
        shape = (batch, kept, self._manifest.vocab_size)
        shapes = {s.name: shape[: 2 if s.kind == "value" else 3] for s in self._signals}
        return {n: np.empty(s, np.float32) for n, s in {contract.LOGITS: shape, **shapes}.items()}

    def _bind_past(self, cache: OnnxCache, batch: int) -> None:
        for prefix, block in zip(contract.PAST, cache.blocks, strict=True):
            self._bind(cache, cache.binding.bind_input, prefix, block, batch)

    def _bind_rows(self, cache: OnnxCache, batch: int, width: int) -> Rows:
        """Memory for the new rows, bound as outputs."""
        # Rows of an earlier state cannot be committed any more, so their memory is free.
        rows = cache.rows
        if rows and rows.version != cache.version and rows.blocks[0].room >= batch * width:
            for block in rows.blocks:
                block.arrange(batch, width)
            cache.rows = Rows(cache, cache.version, rows.blocks)
        else:
            cache.rows = Rows(cache, cache.version, self._blocks(batch, width))
        for prefix, block in zip(contract.PRESENT, cache.rows.blocks, strict=True):
            self._bind(cache, cache.binding.bind_output, prefix, block, batch)
        return cache.rows

    def _bind(
        self, cache: OnnxCache, bind: Callable[..., None], prefix: str, block: Block, batch: int
    ) -> None:
        """Bind the first ``batch`` sequences of a block, unless they are bound already."""
        shape = (batch, *block.shape[2:])
        last = block.shape[0] - 1
        state = (shape, block.address(0), block.address(last))
        if cache.bound.get(prefix) == state:
            return
        cache.bound[prefix] = state
        for index, name in enumerate(contract.cache_names(prefix, self._manifest.num_layers)):
            bind(name, block.device, 0, block.dtype, shape, block.address(index))


def _own(cache: Cache) -> OnnxCache:
    if not isinstance(cache, OnnxCache):
        raise EngineError(f"the cache was not made by this engine: {type(cache).__name__}")
    return cache


@dataclasses.dataclass(frozen=True)
class _Padding:
    """What is added to a step so that its numbers of rows are even; nobody sees it.

    Args:
        sequences: Sequences behind the last; the cache has room for one.
        tokens: Tokens behind the last of each sequence.
        kept: Rows of logits and signals, ``tokens`` at the end among them.
    """

    sequences: int = 0
    tokens: int = 0
    kept: int = 0

    def apply(self, array: IntArray) -> IntArray:
        """``[B, S]`` padded with its own last values."""
        if not self.sequences and not self.tokens:
            return np.ascontiguousarray(array)
        return np.pad(array, ((0, self.sequences), (0, self.tokens)), mode="edge")


def _padding(batch: int, width: int, kept: int) -> _Padding:
    """The least that makes ``batch * width`` and ``batch * kept`` even."""
    if batch % 2 == 0:
        return _Padding()
    if width == 1:
        return _Padding(sequences=1)
    tokens = width % 2
    return _Padding(tokens=tokens, kept=tokens + (kept + tokens) % 2)


def _mask(cache: OnnxCache, tree: BoolArray, pad: _Padding) -> BoolArray:
    """``[B, S, capacity + S]``: which keys each new token sees; what pads sees itself at least."""
    batch, width, _ = tree.shape
    shape = (batch + pad.sequences, width + pad.tokens)
    mask = np.zeros((*shape, cache.capacity + shape[1]), np.bool_)
    prefix = np.arange(cache.capacity) < cache.lengths[:, None]
    mask[:batch, :, : cache.capacity] = prefix[:, None, :]
    new = mask[:, :, cache.capacity :]
    new[:batch, :width, :width] = tree
    # A softmax over nothing is NaN, and a padding row's NaN would spread through 0 * NaN.
    new |= np.eye(shape[1], dtype=np.bool_)
    return mask
