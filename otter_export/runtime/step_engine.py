"""`StepEngine`: the `Engine` protocol over an `Executor`, whatever library runs the model.

New rows come out apart, or lie in the slots behind the committed prefix, as the executor has it;
the prefix itself stays as it is until `StepEngine.commit` keeps rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from otter_export import engine_io
from otter_export.draft_tokens import read_draft_tokens
from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import BoolArray, Cache, FloatArray, IntArray, Step
from otter_export.runtime.executor import Executor
from otter_export.runtime.kv_cache import KVCache, Rows
from otter_export.runtime.step_check import check_commit, check_forward
from otter_export.runtime.step_inputs import (
    Padding,
    Tokens,
    check_tree,
    in_place_inputs,
    join_outputs,
    plan_parts,
    read_only_inputs,
)
from otter_export.runtime.tokenizer import JsonTokenizer
from otter_export.signals import Signal
from otter_export.tokenizer_file import FILE_NAME as TOKENIZER_FILE

TokenIds = npt.NDArray[np.int32]


class StepEngine:
    """An engine on one device.

    On the CPU, what a token gets depends on the numbers that it sees and not on the other sequences
    of the batch, bit for bit (docs/batching.md).

    Args:
        directory: Where ``tokenizer.json`` is.
        manifest: The engine's.
        executor: Runs the model.
        token_ids: See `Engine.token_ids`; None reads the directory's ``draft_tokens.safetensors``.
    """

    def __init__(
        self,
        directory: Path,
        manifest: EngineManifest,
        executor: Executor,
        token_ids: Callable[[Signal], TokenIds | None] | None = None,
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._executor = executor
        self._token_ids = token_ids

    @property
    def manifest(self) -> EngineManifest:
        """The content of its ``engine.json``."""
        return self._manifest

    @functools.cached_property
    def tokenizer(self) -> JsonTokenizer:
        """The tokenizer of its directory."""
        return JsonTokenizer(self._directory / TOKENIZER_FILE)

    @property
    def even_steps(self) -> bool:
        """See `Engine.even_steps`."""
        return self._executor.row_rule.even_steps

    @property
    def chains_alike(self) -> bool:
        """See `Engine.chains_alike`."""
        return self._executor.chains_alike

    def token_ids(self, signal: Signal) -> TokenIds | None:
        """See `Engine.token_ids`."""
        if self._token_ids is not None:
            return self._token_ids(signal)
        return read_draft_tokens(self._directory, signal, self._manifest.vocab_size)

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache; see `Engine.new_cache`."""
        if type(batch_size) is not int or batch_size < 0:
            raise EngineError(f"a cache holds 0 or more sequences, got {batch_size!r}")
        return KVCache(self._executor, batch_size)

    def append(self, cache: Cache, sources: Sequence[tuple[Cache, int]]) -> None:
        """Copies of sequences join; see `Engine.append`."""
        cache = self._own(cache)
        taken = [(self._own(source), index) for source, index in sources]
        if any(source is cache for source, _ in taken):
            raise EngineError("a cache cannot take sequences from itself")
        cache.append(taken)

    def select(self, cache: Cache, indices: Sequence[int]) -> None:
        """Keep these sequences, in this order; see `Engine.select`."""
        self._own(cache).select(indices)

    def truncate(self, cache: Cache, lengths: Sequence[int]) -> None:
        """Forget the last tokens; see `Engine.truncate`."""
        self._own(cache).truncate(lengths)

    def forward(
        self,
        cache: Cache,
        input_ids: IntArray,
        position_ids: IntArray,
        tree: BoolArray,
        logits_to_keep: int,
    ) -> Step:
        """Run the model; see `Engine.forward`."""
        cache = self._own(cache)
        check_forward(self._manifest, cache.lengths, input_ids, position_ids, tree, logits_to_keep)
        tokens = Tokens(input_ids, position_ids, tree, logits_to_keep)
        in_place = self._executor.cache_form == engine_io.IN_PLACE
        outputs, rows = (self._run_in_place if in_place else self._run_apart)(cache, tokens)
        return Step(outputs.pop(engine_io.LOGITS), outputs, rows)

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        """Keep rows of a step; see `Engine.commit`."""
        cache, new = self._own(cache), step.rows
        if not isinstance(new, Rows) or new.cache is not cache or new.version != cache.version:
            raise EngineError("a step can be committed once, to the cache that it was run on")
        cache.keep(new, rows, check_commit(self._manifest, cache.lengths, new.width, rows))

    def _run_apart(self, cache: KVCache, tokens: Tokens) -> tuple[dict[str, FloatArray], Rows]:
        """One run; its new rows come out in blocks of their own."""
        batch, step = tokens.input_ids.shape
        kept = tokens.logits_to_keep
        padding = self._padding(batch, step, kept)
        inputs = read_only_inputs(tokens, cache.lengths, cache.slots, padding)
        batch_padded, step_padded, _ = inputs.shape
        blocks = cache.rows_apart(batch_padded, step_padded)
        outputs = self._executor.run(cache.blocks, inputs, blocks)
        asked = padding.asked(batch, kept)
        return {name: array[asked] for name, array in outputs.items()}, Rows(cache, step, blocks)

    def _run_in_place(self, cache: KVCache, tokens: Tokens) -> tuple[dict[str, FloatArray], Rows]:
        """As many runs as the step needs; each writes its rows behind those before it."""
        batch, step = tokens.input_ids.shape
        parts = plan_parts(
            step,
            tokens.logits_to_keep,
            lambda length, kept: self._executor.accepts(batch, length, kept),
        )
        check_tree(tokens.tree, parts)
        paddings = [self._padding(batch, part.step, part.rows) for part in parts]
        rows = cache.rows_in_slots(step, step + paddings[-1].tokens)
        outputs = []
        for part, padding in zip(parts, paddings, strict=True):
            inputs = in_place_inputs(tokens, part, cache.lengths, cache.slots, padding)
            found = self._executor.run(cache.blocks, inputs)
            asked = padding.asked(batch, part.rows)
            outputs.append({name: array[asked] for name, array in found.items()})
        return join_outputs(parts, outputs), rows

    def _padding(self, batch: int, step: int, kept: int) -> Padding:
        """What makes rows even where kernels want pairs."""
        pairs = self._executor.row_rule.pairs
        return Padding.to_pairs(batch, step, kept) if pairs else Padding()

    def _own(self, cache: Cache) -> KVCache:
        if not isinstance(cache, KVCache) or cache.executor is not self._executor:
            raise EngineError(f"the cache was not made by this engine: {type(cache).__name__}")
        return cache
