"""A two-stream, two-layer decoder with the I/O of an ``onnx`` engine, and the same in numpy (L4).

It is written for these tests, not by the converter: a random model, whose streams attend with
caches of their own. `TinyModel.reference` recomputes whole sequences without any cache.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import tokenizers

from otter_export import engine_io
from otter_export.engine_io import TensorSpec
from otter_export.manifest import EngineManifest, describe_file
from otter_export.signals import Signal

LAYERS, VOCAB, HEAD = 2, 32, 8
#: 31 characters, tokens 1 to 31.
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,!\u20ac"
SIGNALS = (Signal("reward"), Signal("future", kind="q_value"))
#: Prefix of the cache inputs and outputs, heads and hidden size of each stream.
STREAMS = {"base": (2, 16), "channel": (1, 8)}


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """Weights by name; `save` writes an engine directory."""

    weights: dict[str, np.ndarray] = dataclasses.field(repr=False)
    dtype: str
    max_sequence_length: int

    def save(self, directory: Path) -> EngineManifest:
        """Write ``model.onnx``, ``tokenizer.json`` and ``engine.json``."""
        directory.mkdir(exist_ok=True)
        manifest = make_manifest(self.dtype, self.max_sequence_length)
        ir.save(build_graph(self, manifest), directory / "model.onnx")
        make_tokenizer().save(str(directory / "tokenizer.json"))
        files = tuple(describe_file(directory, n) for n in ("model.onnx", "tokenizer.json"))
        manifest = dataclasses.replace(manifest, files=files)
        manifest.save(directory)
        return manifest

    def reference(self, ids: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits ``[S, V]`` and signals of a whole causal sequence, in float64."""
        w = {name: array.astype(np.float64) for name, array in self.weights.items()}
        x = {"base": w["embed"][ids] + w["positions"][: len(ids)]}
        x["channel"] = x["base"] @ w["project"]
        for layer in range(LAYERS):
            x = {s: x[s] + self._attend(w, f"{s}.{layer}", s, x[s]) for s in STREAMS}
        future = np.tanh(x["channel"] @ w["head.future"])
        signals = {"reward": np.tanh(x["channel"] @ w["head.reward"])[:, 0], "future": future}
        return x["base"] @ w["head"], signals

    def _attend(
        self, w: dict[str, np.ndarray], stem: str, stream: str, x: np.ndarray
    ) -> np.ndarray:
        heads = STREAMS[stream][0]
        q, k, v = (
            (x @ w[f"{stem}.{part}"]).reshape(len(x), heads, HEAD).transpose(1, 0, 2)
            for part in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(HEAD)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out = (scores / scores.sum(-1, keepdims=True)) @ v
        return out.transpose(1, 0, 2).reshape(len(x), -1) @ w[f"{stem}.o"]


def make_model(seed: int = 0, dtype: str = "float32", max_sequence_length: int = 80) -> TinyModel:
    generator = np.random.default_rng(seed)
    d, channel = STREAMS["base"][1], STREAMS["channel"][1]
    shapes = {
        "embed": (VOCAB, d),
        "positions": (max_sequence_length, d),
        "project": (d, channel),
        "head": (d, VOCAB),
        "head.reward": (channel, 1),
        "head.future": (channel, VOCAB),
    }
    for stream, (heads, size) in STREAMS.items():
        for layer in range(LAYERS):
            for part in "qkv":
                shapes[f"{stream}.{layer}.{part}"] = (size, heads * HEAD)
            shapes[f"{stream}.{layer}.o"] = (heads * HEAD, size)
    weights = {
        n: (generator.standard_normal(s) * 0.35).astype(np.float32) for n, s in shapes.items()
    }
    return TinyModel(weights, dtype, max_sequence_length)


def make_manifest(dtype: str, max_sequence_length: int) -> EngineManifest:
    cache = tuple(
        TensorSpec(name, dtype, ("batch", 1, "past", HEAD))
        for names in engine_io.CACHES
        for name in engine_io.CacheSpec(names, range(LAYERS), ("key", "value"), 1, dtype).pasts()
    )
    manifest = EngineManifest(
        target="onnx",
        precision="fp32",
        execution_provider="cpu",
        cache_form="read_only",
        model_file="model.onnx",
        base={
            "vocab_size": VOCAB,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": STREAMS["base"][0],
            "head_dim": HEAD,
        },
        channel={
            "hidden_size": STREAMS["channel"][1],
            "intermediate_size": 4,
            "num_attention_heads": 1,
            "num_key_value_heads": STREAMS["channel"][0],
            "head_dim": HEAD,
        },
        signals=SIGNALS,
        max_sequence_length=max_sequence_length,
        bos_token_id=None,
        eos_token_ids=(0,),
        inputs=cache,
        outputs=(),
        files=(),
    )
    inputs = tuple(manifest.io.inputs().values())
    outputs = tuple(manifest.io.outputs().values())
    return dataclasses.replace(manifest, inputs=inputs, outputs=outputs)


def make_tokenizer() -> tokenizers.Tokenizer:
    """One token per character of ``CHARACTERS``; token 0 is special and ends a sequence."""
    vocabulary = {character: i for i, character in enumerate(["<eos>", *CHARACTERS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return tokenizer


class _Builder:
    """Emits nodes; attention in float32 whatever the cache's type is."""

    def __init__(self, model: TinyModel, values: dict[str, ir.Value]) -> None:
        self.tape = ir.tape.Tape()
        self.dtype = ir.DataType[model.dtype.replace("float32", "float").upper()]
        self.values = values
        self.outputs: dict[str, ir.Value] = {}
        for name, array in model.weights.items():
            self.values[name] = self.tape.initializer(ir.tensor(array, name=name))

    def constant(self, value: object, dtype: type = np.int64) -> ir.Value:
        name = f"constant_{len(self.tape.initializers)}"
        return self.tape.initializer(ir.tensor(np.array(value, dtype), name=name))

    def op(self, name: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        return self.tape.op(name, list(inputs), attributes)  # type: ignore[arg-type]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", value, to=int(dtype))

    def heads(self, x: ir.Value, weight: str, heads: int) -> ir.Value:
        y = self.op("MatMul", x, self.values[weight])
        y = self.op("Reshape", y, self.constant([0, 0, heads, HEAD]))
        return self.op("Transpose", y, perm=[0, 2, 1, 3])

    def attend(self, x: ir.Value, stream: str, layer: int, past: str, present: str) -> ir.Value:
        stem, heads = f"{stream}.{layer}", STREAMS[stream][0]
        q = self.heads(x, f"{stem}.q", heads)
        seen = []
        for part, weight in (("key", "k"), ("value", "v")):
            new = self.cast(self.heads(x, f"{stem}.{weight}", heads), self.dtype)
            self.outputs[f"{present}.{layer}.{part}"] = new
            old = self.values[f"{past}.{layer}.{part}"]
            joined = self.op("Concat", old, new, axis=2)
            seen.append(self.cast(joined, ir.DataType.FLOAT))
        keys = self.op("Transpose", seen[0], perm=[0, 1, 3, 2])
        scores = self.op("MatMul", q, keys)
        scores = self.op("Mul", scores, self.constant(1 / np.sqrt(HEAD), np.float32))
        mask = self.op("Unsqueeze", self.values["attention_mask"], self.constant([1]))
        # Minus infinity: an all-masked row is NaN, as in a graph that does not guard against it.
        scores = self.op("Where", mask, scores, self.constant(-np.inf, np.float32))
        out = self.op("MatMul", self.op("Softmax", scores, axis=-1), seen[1])
        out = self.op("Transpose", out, perm=[0, 2, 1, 3])
        out = self.op("Reshape", out, self.constant([0, 0, heads * HEAD]))
        return self.op("Add", x, self.op("MatMul", out, self.values[f"{stem}.o"]))


def build_graph(model: TinyModel, manifest: EngineManifest) -> ir.Model:
    """The ONNX model."""
    kinds = {"float32": "FLOAT", "float16": "FLOAT16", "int64": "INT64", "bool": "BOOL"}

    def value(spec: TensorSpec) -> ir.Value:
        dtype = ir.TensorType(ir.DataType[kinds[spec.dtype]])
        return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=dtype)

    inputs = {spec.name: value(spec) for spec in manifest.inputs}
    b = _Builder(model, dict(inputs))
    embedded = b.op("Gather", b.values["embed"], b.values["input_ids"])
    placed = b.op("Gather", b.values["positions"], b.values["position_ids"])
    x = {"base": b.op("Add", embedded, placed)}
    x["channel"] = b.op("MatMul", x["base"], b.values["project"])
    for layer in range(LAYERS):
        for stream, (past, present) in zip(STREAMS, engine_io.CACHES, strict=True):
            x[stream] = b.attend(x[stream], stream, layer, past, present)
    first = b.op("Neg", b.values["logits_to_keep"])
    kept = {s: b.op("Slice", x[s], first, b.constant([1 << 60]), b.constant([1])) for s in STREAMS}
    reward = b.op("Tanh", b.op("MatMul", kept["channel"], b.values["head.reward"]))
    b.outputs["logits"] = b.op("MatMul", kept["base"], b.values["head"])
    b.outputs["reward"] = b.op("Squeeze", reward, b.constant([2]))
    b.outputs["future"] = b.op("Tanh", b.op("MatMul", kept["channel"], b.values["head.future"]))
    outputs = []
    for spec in manifest.outputs:
        made = b.outputs[spec.name]
        declared = value(spec)
        made.name, made.shape, made.type = declared.name, declared.shape, declared.type
        outputs.append(made)
    graph = ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=b.tape.nodes,
        initializers=b.tape.initializers,
        opset_imports={"": 18},
        name="tiny",
    )
    return ir.Model(graph, ir_version=10)


def edit_manifest(directory: Path, **changes: object) -> None:
    """Change fields of ``engine.json``."""
    path = directory / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
