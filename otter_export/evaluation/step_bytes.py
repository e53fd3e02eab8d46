"""The floor of a step's time: bytes that it has to read, and how fast this machine reads."""

from __future__ import annotations

import concurrent.futures
import os
import time

import numpy as np

from otter_export.manifest import EngineManifest
from otter_export.precision import ONNX_RUNTIME, choose_precision

#: Read by each thread at a time; far more than the processor's caches hold.
_STREAM_BYTES = 1 << 28
_ROUNDS = 5


def stream_bandwidth(threads: int | None) -> float:
    """Bytes per second that so many threads read from memory together; the best of a few rounds.

    Args:
        threads: None takes every core.
    """
    count = threads or os.cpu_count() or 1
    parts = [np.ones(_STREAM_BYTES // 4 // count, np.float32) for _ in range(count)]
    best = float("inf")
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            # numpy looks for the largest without the interpreter's lock, faster than memory reads.
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / best


def weight_bytes(manifest: EngineManifest) -> int:
    """Bytes of weights that a step on the CPU reads, however many rows it has.

    All that is in the model's files, but for the embedding where it is a tensor of its own: a step
    looks up one row of it for each token.

    Args:
        manifest: Of an ``onnx`` engine.
    """
    stem = manifest.model_file
    stored = sum(
        file.size
        for file in manifest.files
        if file.path.startswith(stem) or file.path.endswith(".safetensors")
    )
    precision = choose_precision(ONNX_RUNTIME["cpu"], manifest.precision, "cpu")
    width = manifest.base.get("hidden_size")  # engine.json need not say it
    embedding = manifest.vocab_size * (width if type(width) is int else 0)
    if precision.half == "embedding":
        return stored - 2 * embedding
    apart = 0 if manifest.base.get("tie_word_embeddings") else 4 * embedding
    # What is stored in float16 is computed in float32, and held in it.
    return (2 if precision.half == "matrices" else 1) * stored - apart


def cache_bytes(manifest: EngineManifest, tokens: int) -> int:
    """Bytes of keys and values of a prefix, which a step reads once for each sequence."""
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    io = manifest.io
    row = sum(len(one.pasts()) * one.heads * io.head_dim * sizes[one.dtype] for one in io.caches)
    return row * tokens
