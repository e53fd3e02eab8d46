"""An engine directory with a valid engine.json and a model file that is no graph.

For everything that happens before a model is loaded: manifests, ``inspect``, bad input.
"""

from __future__ import annotations

from pathlib import Path

from otter_export.engine_io import TensorSpec
from otter_export.manifest import EngineManifest, describe_file
from otter_export.signals import Signal
from tests.tiny import LLAMA, write_tokenizer

MODEL_BYTES = b"this is not an ONNX graph"
_SIZES = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


def write_engine(directory: Path) -> Path:
    """Write the directory; a second call restores it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(MODEL_BYTES)
    write_tokenizer(directory, LLAMA["vocab_size"])
    manifest(directory).save(directory)
    return directory


def manifest(directory: Path) -> EngineManifest:
    """The manifest of a tiny widened Llama with one bounded signal."""
    layers = range(LLAMA["num_hidden_layers"])
    cache = ("batch", 2, "past", 16)
    caches = [
        TensorSpec(f"{stream}.{i}.{part}", "float32", cache)
        for i in layers
        for stream in ("past_key_values", "otter_key_values")
        for part in ("key", "value")
    ]
    return EngineManifest(
        target="onnx",
        precision="fp32",
        execution_provider="cpu",
        cache_form="read_only",
        model_file="model.onnx",
        base={name: LLAMA[name] for name in _SIZES},
        channel={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        signals=(Signal("reward"),),
        mends=("phantom_biases",),
        max_sequence_length=64,
        bos_token_id=None,
        eos_token_ids=(2,),
        inputs=(
            TensorSpec("input_ids", "int64", ("batch", "sequence")),
            TensorSpec("position_ids", "int64", ("batch", "sequence")),
            TensorSpec("attention_mask", "bool", ("batch", 1, "sequence", "total")),
            *caches,
        ),
        outputs=(
            TensorSpec("logits", "float32", ("batch", "rows", 128)),
            TensorSpec("reward", "float32", ("batch", "rows")),
        ),
        files=tuple(describe_file(directory, n) for n in ("model.onnx", "tokenizer.json")),
        builder={"otter-export": "0.1.0"},
        source={"path": "checkpoint"},
    )
