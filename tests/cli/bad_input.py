"""The table of wrong input: what a user did, the command, and its one-line error.

Commands run in a directory that holds ``base/`` (a tiny Llama), ``ckpt/`` (a self-contained
checkpoint of it) and ``engine/`` (a manifest with a dummy model). Add a case where it belongs; a
new topic is a new list, named in `CASES`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Damage = Callable[[Path], object]
TENSOR = "model.layers.0.mlp.up_proj.otter.from_base"
RATED = '{"text": "w3 w4", "score": 1}\n{"text": "w3", "score": 0}\n'


@dataclasses.dataclass(frozen=True)
class Case:
    """One mistake.

    Args:
        name: What is wrong.
        command: Arguments of ``otter-export``.
        error: Regular expression that the error line matches.
        damage: Makes the mistake in the files of the working directory.
    """

    name: str
    command: str
    error: str
    damage: Damage = lambda directory: None


def fields(file: str, **changes: Any) -> Damage:
    """Change top-level fields of a JSON file; None stays null, `...` removes the field."""

    def damage(directory: Path) -> None:
        path = directory / file
        data = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))

    return damage


def signal(**changes: Any) -> Damage:
    """Change the checkpoint's only signal."""
    entry = {"name": "reward", "kind": "value", "activation": "tanh", "bounds": [-1.0, 1.0]}
    return fields("ckpt/otter_config.json", signals=[{**entry, **changes}])


def content(file: str, data: bytes | str) -> Damage:
    """Write a file."""
    encoded = data.encode() if isinstance(data, str) else data

    def damage(directory: Path) -> None:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_bytes(encoded)

    return damage


def head(shape: tuple[int, ...]) -> Damage:
    """Write ``head.safetensors``, a value head."""

    def damage(directory: Path) -> None:
        weight = np.zeros(shape, np.float32)
        save_file({"v_head.summary.weight": weight}, directory / "head.safetensors")

    return damage


def removed(*files: str) -> Damage:
    """Remove files."""
    return lambda directory: [(directory / file).unlink() for file in files]


def tensors(file: str, change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    """Change the tensors of a safetensors file."""

    def damage(directory: Path) -> None:
        found = load_file(directory / file)
        change(found)
        save_file(found, directory / file)

    return damage


def cut(file: str, size: int) -> Damage:
    """Shorten a file to ``size`` bytes, or by ``-size``."""
    return lambda directory: (directory / file).write_bytes((directory / file).read_bytes()[:size])


def sharded(weight_map: dict[str, str]) -> Damage:
    """Put an index in the place of the weights, which become the shard ``s0.safetensors``."""
    index = content("ckpt/model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    return both(
        index, lambda directory: (directory / MODEL).rename(directory / "ckpt/s0.safetensors")
    )


def both(*damages: Damage) -> Damage:
    """Several mistakes."""
    return lambda directory: [damage(directory) for damage in damages]


def header(entries: dict[str, Any], data_bytes: int) -> bytes:
    """A safetensors file with any header."""
    encoded = json.dumps(entries).encode()
    return len(encoded).to_bytes(8, "little") + encoded + b"\0" * data_bytes


def vocabulary(**ids: int) -> Damage:
    """Change ids of the tokenizer's words."""

    def damage(directory: Path) -> None:
        path = directory / "ckpt/tokenizer.json"
        data = json.loads(path.read_text())
        data["model"]["vocab"] |= ids
        path.write_text(json.dumps(data))

    return damage


PICKLE = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04echo\x85R."
CONFIG, BASE_CONFIG, MANIFEST = "ckpt/otter_config.json", "ckpt/config.json", "engine/engine.json"
OTTER, MODEL = "ckpt/otter.safetensors", "ckpt/model.safetensors"

ARGUMENTS = [
    Case("no such command", "biuld ckpt", "No such command 'biuld'"),
    Case("no argument", "inspect", "Missing argument 'PATH'"),
    Case("unknown option", "inspect ckpt --colour", "No such option.*--colour"),
    Case("no such list", "list engines", "'engines' is not one of 'targets', 'signals'"),
    Case("width of zero", "insert base new --hidden-size 0", "0 is not in the range x>=1"),
    Case("width that is no number", "insert base new --hidden-size wide", "not a valid integer"),
    Case("unknown initialisation", "insert base new --init zero", "'zero' is not one of 'copy'"),
    Case(
        "data for no probe",
        "insert base new --data d.jsonl",
        "--data is for --init probe, not --init copy",
    ),
    Case(
        "no such data",
        "insert base new --init probe --data gone.jsonl",
        "gone.jsonl does not exist",
    ),
    Case("unknown dtype", "insert base new --dtype F64", "'F64' is not one of 'F32'"),
    Case("negative seed", "insert base new --seed -1", "-1 is not in the range x>=0"),
    Case("signal without a kind", "insert base new --signal reward", "expected NAME:KIND"),
    Case(
        "unknown kind", "insert base new --signal r:score", "'score' is not known; accepted: value"
    ),
    Case("unknown activation", "insert base new --signal r:value:relu", "'relu' is not known"),
    Case("heads of a value", "insert base new --signal r:value:tanh:2", "of a medusa signal only"),
    Case("bad signal name", "insert base new --signal Reward:value", "name must match"),
    Case("reserved name", "insert base new --signal logits:value", "'logits' is reserved"),
    Case(
        "signal twice",
        "insert base new --signal a:value --signal a:q_value",
        "two signals are named 'a'",
    ),
]

INSERTIONS = [
    Case("no such base", "insert nowhere new", "'nowhere' is neither a directory nor a hub id"),
    Case(
        "base not on the hub", "insert no-one/nothing new", "'no-one/nothing' could not be fetched"
    ),
    Case(
        "base is a file", "insert base/config.json new", "is neither a directory nor a hub id|could"
    ),
    Case("checkpoint exists", "insert base ckpt", "ckpt exists; .* with --force"),
    Case("target is a file", "insert base note --force", "note is not a dir", content("note", "x")),
    Case(
        "force over a base", "insert ckpt base --force", "base is not a directory with otter_config"
    ),
    Case("over itself", "insert ckpt ckpt --force", "ckpt holds the base"),
    Case("no keys left to copy", "insert base new --heads 3", "no wider than the base: key 48"),
    Case(
        "queries without keys",
        "insert base new --heads 4 --key-value-heads 1",
        "4 query heads over 1 key/value heads: a key/value head may have",
    ),
    Case("wider than the base", "insert base new --hidden-size 80", "no wider than the base"),
    Case("too many heads", "insert base new --heads 6", "no wider than the base: query 96 > 64"),
    Case(
        "beyond all widths",
        "insert base new --hidden-size 9999999 --init normal",
        "hidden_size must",
    ),
    Case(
        "no config.json", "insert empty new", "config.json does not exist", content("empty/x", "")
    ),
    Case(
        "unknown architecture",
        "insert base new",
        "'new' has no family; supported: arcee, cohere, cohere2",
        fields("base/config.json", model_type="new"),
    ),
    Case(
        "refused architecture",
        "insert base new",
        "'mixtral' is not supported: its feed-forward is a mixture of experts",
        fields("base/config.json", model_type="mixtral"),
    ),
    Case(
        "no model type",
        "insert base new",
        "model_type must be a string, got None",
        fields("base/config.json", model_type=...),
    ),
    Case(
        "sizes contradict the weights",
        "insert base new",
        r"embed_tokens.weight has shape \[128, 64\], config.json implies \[256, 64\]",
        fields("base/config.json", vocab_size=256),
    ),
    Case(
        "a billion layers",
        "insert base new",
        "num_hidden_layers must be an integer from 1",
        fields("base/config.json", num_hidden_layers=10**9),
    ),
    Case(
        "pickled base",
        "insert base new",
        "as pickles .pytorch_model.bin.*save them as safetensors",
        both(removed("base/model.safetensors"), content("base/pytorch_model.bin", PICKLE)),
    ),
    Case("no delta", "insert base new --from nothing.safetensors", "not a readable safetensors"),
    Case(
        "delta is a pickle",
        "insert base new --from delta.safetensors",
        "delta.safetensors is not a readable safetensors file",
        content("delta.safetensors", PICKLE),
    ),
    Case(
        "delta of another channel",
        "insert base new --from ckpt/otter.safetensors",
        r"up_proj.otter.from_base has shape \[24, 64\], expected \[96, 64\]",
    ),
    Case(
        "delta of a base",
        "insert base new --from base/model.safetensors",
        "embed_tokens.weight is not one of this channel; .*",
    ),
]

SHAPES = [
    Case("no such layer", "insert base new --first-layer 3", "and the base has 2 layers; 2 is a probe"),
    Case("a table inside", "insert base new --first-layer 1 --embedding table", "'table' needs first_layer 0"),
    Case(
        "keys to share",
        "insert base new --init normal --heads 3 --key-value-heads 3 --attention shared",
        "3 key/value heads cannot share the attention of a base that has 2",
    ),
    Case("layer in a file", "inspect ckpt", "first_layer must be an integer", fields(CONFIG, version=2, first_layer="1")),
    Case("attention in a file", "inspect ckpt", "attention is 'none'; accepted: own", fields(CONFIG, version=2, attention="none")),
    Case("no checkpoint", "reshape base new", "base has no otter_config.json: it is not an Otter"),
    Case("all of it trained", "reshape ckpt new", "would lose what was trained: model.layers.0.self_attn.q_proj"),
    Case("a trained layer", "reshape ckpt new --first-layer 1", "would lose what was trained: model.embed_tokens.otter.proj"),
    Case("trained queries", "reshape ckpt new --attention shared", "trained: model.layers.0.self_attn.q_proj.* and 4 more"),
    Case("behind the end", "reshape ckpt new --first-layer 3", "first_layer is 3, and the base has 2 layers"),
    Case("as it is", "reshape ckpt new --first-layer 0 --attention own", "has this shape already"),
    Case("unknown attention", "reshape ckpt new --attention flash", "'flash' is not one of 'own', 'shared'"),
    Case("no row of the embedding", "reshape ckpt new --prompt w9", "token id 500, and the embedding of ckpt has 128 rows", vocabulary(w9=500)),
    Case("no tokenizer", "reshape ckpt new --prompt w9", "ckpt has no usable tokenizer", removed("ckpt/tokenizer.json")),
    Case("reshaped in place", "reshape ckpt ckpt --force", "ckpt holds the checkpoint ckpt; choose another"),
    Case("reshaped over a base", "reshape ckpt base --force", "base is not a directory with otter_config"),
]  # fmt: skip

CONFIGURATIONS = [
    Case("nothing there", "inspect nowhere", "nowhere is not a directory"),
    Case("neither kind", "inspect base", "base has neither otter_config.json .* nor engine.json"),
    Case("not JSON", "inspect ckpt", "otter_config.json is not readable JSON", content(CONFIG, "{")),
    Case("not UTF-8", "inspect ckpt", "is not readable JSON", content(CONFIG, b'{"a": "\xff"}')),
    Case("deep JSON", "inspect ckpt", "is not readable JSON", content(CONFIG, "[" * 100_000)),
    Case("a list", "inspect ckpt", "expected a JSON object, got list", content(CONFIG, "[]")),
    Case("foreign", "inspect ckpt", "format is 'peft'", fields(CONFIG, format="peft")),
    Case("newer", "inspect ckpt", "version 4 is not known.*Upgrade", fields(CONFIG, version=4)),
    Case("text width", "inspect ckpt", "hidden_size must be", fields(CONFIG, hidden_size="16")),
    Case("true width", "inspect ckpt", "head_dim must be", fields(CONFIG, head_dim=True)),
    Case("no width", "inspect ckpt", "num_key_value_heads must be.*None", fields(CONFIG, num_key_value_heads=...)),
    Case("extra field", "inspect ckpt", "unknown field 'lr'", fields(CONFIG, lr=0.1)),
    Case("embedding", "inspect ckpt", "embedding is 'rope'; accepted", fields(CONFIG, embedding="rope")),
    Case("no signals", "inspect ckpt", "at least one signal", fields(CONFIG, signals=[])),
    Case("signal kind", "inspect ckpt", "kind is 'critic'; accepted: value", signal(kind="critic")),
    Case("bounds reversed", "inspect ckpt", "bounds must be null or", signal(bounds=[1, -1])),
    Case("bounds too tight", "inspect ckpt", "are not guaranteed by activation 'tanh'", signal(bounds=[0, 1])),
    Case("bounds of a line", "inspect ckpt", "which gives no bounds", signal(activation="identity")),
    Case("signal field", "inspect ckpt", "unknown field 'loss'", signal(loss="mse")),
    Case("head size", "inspect ckpt", "head_dim is 8, the base's is 16", fields(CONFIG, head_dim=8)),
    Case("head ratio", "inspect ckpt", "4 over 2, and not more", fields(CONFIG, num_attention_heads=4)),
    Case(
        "adapter without its base",
        "inspect ckpt",
        "base model '../gone' is neither a directory nor a hub id",
        fields(CONFIG, base_model_name_or_path="../gone"),
    ),
    Case("base config gone", "inspect ckpt", "config.json does not exist", removed(BASE_CONFIG)),
    Case("base config a list", "inspect ckpt", "expected a JSON object", content(BASE_CONFIG, "[]")),
    Case("kinds of layers", "inspect ckpt", "layer_types must all be", fields(BASE_CONFIG, layer_types=["linear_attention"] * 2)),
]  # fmt: skip

WEIGHTS = [
    Case("no tensors", "inspect ckpt", "has neither otter.safetensors nor", removed(OTTER)),
    Case("empty file", "inspect ckpt", "is not a readable safetensors file", content(OTTER, b"")),
    Case("text", "inspect ckpt", "is not a readable safetensors file", content(OTTER, "hello, world")),
    Case("truncated", "inspect ckpt", "is not a readable safetensors file", cut(MODEL, -100)),
    Case("header cut", "inspect ckpt", "is not a readable safetensors file", cut(OTTER, 40)),
    Case("huge header", "inspect ckpt", "not a readable", content(OTTER, b"\xff" * 8 + b"{}")),
    Case(
        "overlapping tensors",
        "inspect ckpt",
        "is not a readable safetensors file",
        content(
            OTTER,
            header(
                {
                    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
                },
                12,
            ),
        ),
    ),
    Case(
        "tensor missing",
        "inspect ckpt",
        f"tensor {TENSOR} is missing",
        tensors(OTTER, lambda found: found.pop(TENSOR)),
    ),
    Case(
        "tensor left over",
        "inspect ckpt",
        "tensor signals.style.weight is left over",
        tensors(OTTER, lambda found: found.update({"signals.style.weight": np.ones(1)})),
    ),
    Case(
        "tensor of a wrong shape",
        "inspect ckpt",
        r"has shape \[64, 24\], expected \[24, 64\]",
        tensors(OTTER, lambda found: found.update({TENSOR: np.ones((64, 24), np.float32)})),
    ),
    Case(
        "tensor of a wrong dtype",
        "inspect ckpt",
        "has dtype I64; accepted: F32, F16, BF16",
        tensors(OTTER, lambda found: found.update({TENSOR: np.ones((24, 64), np.int64)})),
    ),
    Case(
        "base tensor missing",
        "inspect ckpt",
        "base tensor model.norm.weight is missing",
        tensors(MODEL, lambda found: found.pop("model.norm.weight")),
    ),
    Case("base weights gone", "inspect ckpt", "has neither model.safetensors", removed(MODEL)),
    Case("llama.cpp's weights", "inspect ckpt", "holds model.gguf", lambda d: (d / MODEL).rename(d / "ckpt/model.gguf")),
    Case("index outside", "inspect ckpt", "must lie beside the index", sharded({"a": "../x.safetensors"})),
    Case("index absolute", "inspect ckpt", "must lie beside the index", sharded({"a": "/etc/passwd"})),
    Case("shard gone", "inspect ckpt", "names missing files: s1.safetensors", sharded({"a": "s1.safetensors"})),
    Case("index empty", "inspect ckpt", "no weight_map", sharded({})),
    Case(
        "index of another file",
        "inspect ckpt",
        "index.json names tensors that no shard holds: a",
        sharded({"a": "s0.safetensors"}),
    ),
]  # fmt: skip

ENGINES = [
    Case("not an engine", "generate base --prompt hi", "base has no engine.json: it is not an engine"),
    Case("no such engine", "generate nowhere --prompt hi", "nowhere is not a directory"),
    Case("not JSON", "inspect engine", "is not readable JSON", content(MANIFEST, "engine")),
    Case("foreign", "inspect engine", "not an otter-engine file", content(MANIFEST, "{}")),
    Case("newer", "inspect engine", "version 7 is not known.*Build the engine again", fields(MANIFEST, version=7)),
    Case("no signals", "inspect engine", "malformed.*signals", fields(MANIFEST, signals=...)),
    Case("signal kind", "inspect engine", "kind is None", fields(MANIFEST, signals=[{"name": "r"}])),
    Case("sizes", "inspect engine", "malformed", fields(MANIFEST, base={"vocab_size": 128})),
    Case("endless", "inspect engine", "max_sequence_length must be an integer from 1 to", fields(MANIFEST, max_sequence_length=-1)),
    Case("files a number", "inspect engine", "malformed", fields(MANIFEST, files=3)),
    Case("model gone", "generate engine --prompt hi", "incomplete: model.onnx is missing", removed("engine/model.onnx")),
    Case("model cut", "generate engine --prompt hi", "has 5 bytes, engine.json says 25: .*damaged", cut("engine/model.onnx", 5)),
    Case("model not listed", "inspect engine", "model_file 'other.onnx' is not listed", fields(MANIFEST, model_file="other.onnx")),
    Case(
        "file outside",
        "inspect engine",
        "names '../base/config.json', outside the engine",
        fields(MANIFEST, files=[{"path": "../base/config.json", "size": 1, "sha256": ""}]),
    ),
    Case("model no graph", "generate engine --prompt hi", "model.onnx"),
    Case("unknown target", "generate engine --prompt hi", "unknown .*'tpu'", fields(MANIFEST, target="tpu")),
]  # fmt: skip

_HALF = [{"path": "model\ud800.onnx", "size": 1, "sha256": ""}]
ENGINES += [
    Case("half a character", "inspect engine", "engine.json is malformed: .*half of a surrogate", fields(MANIFEST, files=_HALF)),
    Case("a name with NUL", "inspect engine", "engine.json is malformed: .*character 0", fields(MANIFEST, model_file="a\0b")),
    Case("half a target", "generate engine --prompt w3", "half of a surrogate", fields(MANIFEST, target="\udfff")),
]  # fmt: skip

BENCHMARKS = [
    Case("bench of no engine", "bench base", "base has no engine.json: it is not an engine"),
    Case("bench of a model no graph", "bench engine", "model.onnx"),
    Case("bench without candidates", "bench engine --top-k 0", "top_k must be an integer from 1"),
    Case("bench in no time", "bench engine --seconds 0", "0.0 is not in the range"),
    Case("bench for no number", "bench engine --seconds nan", "nan is not a finite number"),
    Case(
        "bench drawn over a directory",
        "bench engine --plot b.png",
        "cannot write b.png: is a directory; a file is expected there",
        content("b.png/x", ""),
    ),
    Case("bench drawn nowhere", "bench engine --plot b.txt", "the name must end in .png"),
]

GENERATION = [
    Case("no prompt", "generate engine", "give --prompt TEXT or --prompts FILE"),
    Case("unknown method", "generate engine --prompt hi --method beam", "unknown method 'beam'.*known: args-greedy"),
    Case("option of another method", "generate engine --prompt hi --top-p 0.9", "'args-greedy' has no option top_p"),
    Case("no candidates", "generate engine --prompt hi --top-k 0", "top_k must be an integer from 1"),
    Case("endless weight", "generate engine --prompt hi --weight inf", "weight must be a finite number"),
    Case("no tokens", "generate engine --prompt hi --max-tokens 0", "max_tokens must be"),
    Case("low gate", "generate engine --prompt hi --gate -1", "gate must be a finite number at least 0"),
    Case("frozen", "generate engine --prompt hi --method plain --temperature -1", "temperature must be"),
    Case("top-p", "generate engine --prompt hi --method args-stochastic --top-p 2", "top_p must be"),
    Case("weights without a number", "generate engine --prompt hi --weights reward", "weights must be NAME=NUMBER"),
    Case("weight and weights", "generate engine --prompt hi --weight 2 --weights a=1", "leave signal and weight out"),
    Case("wild repetition", "generate engine --prompt hi --repetition-penalty 0", "repetition_penalty must be"),
    Case("no such ban", "generate engine --prompt hi --ban -1", "banned_tokens must be token ids, 0 or more"),
    Case("segments", "generate engine --prompt hi --method plain --temperature 1 --segments 0.5", "segments must be NAME=NUMBER"),
    Case("no prompt file", "generate engine --prompts gone.jsonl", "cannot read the prompts in gone.jsonl"),
    Case("prompts not JSON", "generate engine --prompts p.jsonl", "line 1: not JSON", content("p.jsonl", "hello\n")),
    Case("prompts without", "generate engine --prompts p.jsonl", "line 2: expected an object", content("p.jsonl", '{"prompt": "a"}\n{}\n')),
    Case("no prompts", "generate engine --prompts p.jsonl", "p.jsonl has no prompts", content("p.jsonl", "\n")),
    Case("prompt field", "generate engine --prompts p.jsonl", "unknown field k", content("p.jsonl", '{"prompt": "a", "k": 1}')),
    Case("no threads", "generate engine --prompt hi --threads 0", "threads must be|0 is not in the range"),
    Case("provider", "generate engine --prompt hi --provider tpu", "'tpu' is not one of 'cpu', 'cuda'"),
]  # fmt: skip

SCORING = [
    Case("nothing to score", "score engine", "there is nothing to score; give a RESPONSE or --data FILE.jsonl"),
    Case("no texts", "score engine --data gone.jsonl", "cannot read the texts in gone.jsonl"),
    Case("a text of no response", "score engine --data t.jsonl", "t.jsonl: line 1: expected an object with .response.", content("t.jsonl", '{"prompt": "a"}')),
    Case("steps of nothing", "score engine w3 --separator ''", "separator must be a text of at least one character"),
    Case("a prompt's rewards in text", "generate engine --prompt hi --prompt-rewards", "--prompt-rewards is shown by --json alone"),
]  # fmt: skip

CHATS = [
    Case("a system without a chat", "generate engine w3 --system w4", "--system is for chats; give --chat too"),
    Case("messages of no role", "generate engine --prompts p.jsonl", "line 1: message 1: role must be one of system, user, assistant, got 'cat'", content("p.jsonl", '{"messages": [{"role": "cat", "content": "w3"}]}')),
    Case("messages and a prompt", "generate engine --prompts p.jsonl", 'line 1: expected an object with "prompt" or "messages"', content("p.jsonl", '{"prompt": "w3", "messages": []}')),
    Case("messages that end in an answer", "generate engine --prompts p.jsonl", "line 1: the last message is of role assistant; end with one of role user", content("p.jsonl", '{"messages": [{"role": "assistant", "content": "w3"}]}')),
    Case("no port", "serve engine --port 70000", "cannot listen on 127.0.0.1:70000: .*; give another --port"),
    Case("nothing to serve", "serve gone --port 0", "gone"),
    Case("a chat with no engine", "chat gone", "gone"),
    Case("a model to serve that is no graph", "serve engine --port 0", "model.onnx"),
]  # fmt: skip

IMPORTING = [
    Case("no source", "import gone new", "gone is neither a directory nor a safetensors file"),
    Case("no head", "import base new", "base has no head that is known here. value-head: .*; classifier: .*; medusa: "),
    Case("a pickled head", "import head.bin new", "head.bin is a pickle, .*convert it where it was made", content("head.bin", b"\x80")),
    Case("a head of no base", "import head.safetensors new", "head.safetensors holds a head alone; name its base with --base", head((1, 64))),
    Case("a head of another base", "import head.safetensors new --base base", r"has shape \[1, 32\], this base needs \[1, 64\]", head((1, 32))),
    Case("a label of a value", "import head.safetensors new --base base --label a", "a value head has no labels", head((1, 64))),
    Case("an import over", "import head.safetensors base --base base", "base exists|holds the base", head((1, 64))),
    Case("a base for a teacher", "label --teacher base --data t.jsonl --out o.jsonl", "base is no teacher: its architecture is .LlamaForCausalLM.", content("t.jsonl", '{"text": "w3"}')),
    Case("no data to label", "label --teacher base --data gone.jsonl --out o.jsonl", "cannot read the texts in gone.jsonl"),
    Case("labels from a pipe", "label --teacher base --data - --out o.jsonl", "give --data a file"),
    Case("words and steps", "label --teacher base --data t.jsonl --out o.jsonl --every 2 --separator x", "not both", content("t.jsonl", '{"text": "w3"}')),
]  # fmt: skip

TRAINING = [
    Case("no data", "train ckpt --objective regression", "give --data FILE.jsonl, or a --task for each signal"),
    Case("no such objective", "train ckpt --data d.jsonl --objective ppo", "'ppo' is not one of"),
    Case("tensors to nowhere", "train ckpt --data d.jsonl --objective regression --delta gone/d.safetensors", "cannot write gone/.*: no such file or directory", content("d.jsonl", '{"text": "w3 w4", "score": 1}\n' * 30)),
    Case("a teacher of no pupil", "train ckpt --data d.jsonl --objective regression --teacher reward", "--teacher is for --objective distill, not regression"),
    Case("tried for nobody", "train ckpt --data d.jsonl --objective regression --alternatives 4", "--alternatives is for --objective distill, not regression"),
    Case("one form and the other", "train ckpt --data d.jsonl --task reward=e.jsonl", "--data is for training one signal; with --task, "),
    Case("a task of no file", "train ckpt --task reward:regression", "'reward:regression' is not SIGNAL\\[:OBJECTIVE\\[:WEIGHT\\]\\]=FILE"),
    Case("a task too long", "train ckpt --task reward:regression:1:2=d.jsonl", "is not SIGNAL\\[:OBJECTIVE\\[:WEIGHT\\]\\]=FILE"),
    Case("a task of no weight", "train ckpt --task reward:regression:0=d.jsonl", "the weight must be a number above 0, got '0'"),
    Case("a task of a word's weight", "train ckpt --task reward:regression:heavy=d.jsonl", "the weight must be a number above 0, got 'heavy'"),
    Case("a task by no objective", "train ckpt --task reward:ppo=d.jsonl", "unknown objective 'ppo'; accepted: regression, "),
    Case("a task of no signal", "train ckpt --task style=d.jsonl", "there is no signal 'style'; the checkpoint has reward"),
    Case("a task of another kind", "train ckpt --task reward:drafts=d.jsonl", "'drafts' does not train signal 'reward'.*accepted: regression, pairwise"),
    Case("a signal twice", "train ckpt --task reward=d.jsonl --task reward:pairwise=e.jsonl", "signal reward is trained twice; give it once", both(content("d.jsonl", RATED), content("e.jsonl", '{"chosen": "w3 w4", "rejected": "w5"}\n' * 2))),
    Case("judged by a weight", "train ckpt --data d.jsonl --also-test reward:regression:1=e.jsonl", "is not SIGNAL\\[:OBJECTIVE\\]=FILE"),
    Case("judged by no file", "train ckpt --data d.jsonl --also-test reward=gone.jsonl", "gone.jsonl does not exist", content("d.jsonl", RATED)),
    Case("steps of no length", "train ckpt --data d.jsonl --objective regression --learning-rate nan", "nan is not a finite number"),
    Case("endless steps", "train ckpt --data d.jsonl --objective regression --learning-rate 1e400", "1e400 is not a finite number"),
    Case("no share held out", "train ckpt --data d.jsonl --objective regression --eval-fraction nan", "nan is not a finite number"),
    Case("scores by nothing", "train ckpt --data d.jsonl --objective regression --score-scale nan", "nan is not a finite number"),
    Case("no data file", "train ckpt --data gone.jsonl --objective regression", "gone.jsonl"),
    Case("data not JSON", "train ckpt --data d.jsonl --objective regression", "d.jsonl.*line 1|d.jsonl:1", content("d.jsonl", "good film\n")),
    Case("other objective's data", "train ckpt --data d.jsonl --objective pairwise", "d.jsonl.*chosen", content("d.jsonl", '{"text": "a", "score": 1}\n' * 30)),
    Case("no such signal", "train ckpt --data d.jsonl --objective regression --signal style", "style", content("d.jsonl", '{"text": "w3 w4", "score": 1}\n' * 30)),
    Case("objective of another kind", "train ckpt --data d.jsonl --objective drafts", "'drafts' does not train signal 'reward'.*accepted: regression, pairwise", content("d.jsonl", '{"text": "w3"}\n' * 30)),
    Case("no checkpoint", "train nowhere --data d.jsonl --objective regression", "nowhere", content("d.jsonl", "")),
]  # fmt: skip

BUILDS = [
    Case("no out", "build ckpt", "--out DIR is needed"),
    Case("two outs", "build ckpt one --out two", "two engine directories, one and --out two"),
    Case("no such target", "build ckpt --out new --target onxn", r"unknown target 'onxn' \(did you mean 'onnx'"),
    Case("no such checkpoint", "build nowhere --out new", "nowhere is not a directory"),
    Case("a base", "build base --out new", "is not an Otter checkpoint. Make one with: otter-export insert"),
    Case("no such precision", "build ckpt --out new --precision fp8", "fp8 is not available.*available: fp32"),
    Case("no such provider", "build ckpt --out new --ep tpu", "--ep tpu: target onnx knows cpu, cuda"),
    Case("out exists", "build ckpt --out engine", "engine exists; .*--force"),
    Case("out is the checkpoint", "build ckpt --out ckpt --force", "ckpt is not a directory with engine.json"),
    Case("no length", "build ckpt --out new --max-seq-len 0", "--max-seq-len 0: .* choose 1 to 128"),
    Case("longer than the base", "build ckpt --out new --max-seq-len 4096", "128 positions; choose 1 to 128"),
    Case("option of another target", "build ckpt --out new --sm 80", "--sm is not an option of target onnx; it belongs to: trt"),
    Case("option of no target", "build ckpt --out new --target trt --colour", "No such option.*--colour"),
]  # fmt: skip

_TRT = "build ckpt --out new --target trt"
TENSORRT = [
    Case("onnx's option", f"{_TRT} --ep cuda", "--ep is not an option of target trt; it belongs to: onnx"),
    Case("no such precision", f"{_TRT} --precision fp32", "fp32 is not available for target trt; available: fp16, bf16, int8, int4"),
    Case("no such builder", f"{_TRT} --builder trtexec", "--builder trtexec: .*known: auto, tensorrt-llm, tensorrt, tensorrt-rtx"),
    Case("no sequences", f"{_TRT} --max-batch-size 0", "--max-batch-size 0: choose 1 to 1024"),
    Case("no candidates", f"{_TRT} --max-candidates 0", "--max-candidates 0: choose 1 to 128 candidates"),
    Case("more candidates than tokens", f"{_TRT} --max-candidates 129", "--max-candidates 129: choose 1 to 128"),
    Case("no step", f"{_TRT} --max-step -1", "--max-step -1: choose 1 to 65536"),
    Case("capacity beyond the base", f"{_TRT} --max-seq-len 129", "128 positions; choose 1 to 128"),
    Case("capability in words", f"{_TRT} --sm ada", "--sm ada: expected compute capabilities, as in --sm 80,89,120"),
    Case("capability with a dot", f"{_TRT} --sm 8.9", "--sm 8.9: expected compute capabilities"),
    Case("size in words", f"{_TRT} --max-batch-size many", "'many' is not a valid integer"),
    Case("not an engine of ours", "inspect engine", "capacity|malformed|options", fields(MANIFEST, target="trt", options=[])),
]  # fmt: skip

CASES = {
    "arguments": ARGUMENTS,
    "insertion": INSERTIONS,
    "shape": SHAPES,
    "configuration": CONFIGURATIONS,
    "weights": WEIGHTS,
    "engine": ENGINES,
    "benchmark": BENCHMARKS,
    "generation": GENERATION,
    "scoring": SCORING,
    "chats": CHATS,
    "importing": IMPORTING,
    "training": TRAINING,
    "build": BUILDS,
    "tensorrt": TENSORRT,
}
