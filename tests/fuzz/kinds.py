"""What is fuzzed: for each kind of input, a function that makes one case and tries it.

A case is right if it is accepted, or refused with an `OtterError`. Anything else is a failure.
"""

from __future__ import annotations

import dataclasses
import decimal
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import brought
from tests.fuzz.command import run_command
from tests.fuzz.mutations import (
    AWKWARD,
    changed,
    changed_lines,
    changed_tensors,
    changed_values,
    encoded,
)

Case = Callable[[Random], None]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    Args:
        prepare: Makes what the cases need in a folder of their own, and gives the case.
        cases: How many there are in a full run.
    """

    prepare: Callable[[Path], Case]
    cases: int


def _configs(folder: Path) -> Case:
    """A base's config.json, up to the checkpoint that is inserted into it."""
    from otter_export import insert
    from otter_export.base_model import BaseModel
    from otter_export.channel_options import ChannelOptions
    from otter_export.checkpoint import Checkpoint
    from tests import tiny

    bases = [tiny.write_base(folder / family, family) for family in tiny.CONFIGS]
    documents = [json.loads((base / "config.json").read_text()) for base in bases]
    for document in documents:
        document["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}

    def case(random: Random) -> None:
        index = random.randrange(len(bases))
        content = encoded(random, changed(random, documents[index]))
        (bases[index] / "config.json").write_bytes(content)
        BaseModel.open(bases[index])
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        insert.plan(str(bases[index]), out, ChannelOptions(hidden_size=16)).write()
        Checkpoint.open(out)

    return case


def _public_configs(folder: Path) -> Case:
    """A config.json of each model type that is known, wrappers too, over weights of another."""
    from otter_export.base_model import BaseModel
    from tests import tiny
    from tests.families.hub_configs import PUBLIC

    directory = tiny.write_base(folder / "base")
    documents = [dict(public.config) for public in PUBLIC.values()]

    def case(random: Random) -> None:
        content = encoded(random, changed(random, random.choice(documents)))
        (directory / "config.json").write_bytes(content)
        base = BaseModel.open(directory)
        base.library_config  # noqa: B018  what libraries would get
        base.problems()  # all of them: the weights are of another model

    return case


def _checkpoints(folder: Path) -> Case:
    """A checkpoint's own files, of both versions: config.json of the channel, its tensors."""
    from otter_export.checkpoint import Checkpoint
    from tests import tiny

    return _damaged_checkpoints(
        [
            tiny.write_checkpoint(folder / "old"),
            tiny.write_checkpoint(folder / "new", first_layer=1, attention="shared"),
        ],
        Checkpoint.open,
    )


def _reshapes(folder: Path) -> Case:
    """A checkpoint's own files, up to the checkpoint of another shape."""
    from otter_export import reshape
    from otter_export.checkpoint import Checkpoint
    from tests import tiny

    out = folder / "out"

    def make(directory: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        reshape.plan(Checkpoint.open(directory), out).write()
        Checkpoint.open(out)

    copied = {"initialization": "copy", "adapter": True}
    return _damaged_checkpoints(
        [
            tiny.write_checkpoint(folder / "old", **copied),
            tiny.write_checkpoint(folder / "new", first_layer=1, **copied),
        ],
        make,
    )


def _damaged_checkpoints(directories: list[Path], use: Callable[[Path], object]) -> Case:
    from otter_export.config import FILE_NAME

    files = {d: (d / FILE_NAME, d / "otter.safetensors") for d in directories}
    originals = {file: file.read_bytes() for pair in files.values() for file in pair}

    def case(random: Random) -> None:
        directory = random.choice(directories)
        config, tensors = files[directory]
        for file in (config, tensors):
            file.write_bytes(originals[file])
        what = random.random()
        if what < 0.5:
            document = json.loads(originals[config])
            config.write_bytes(encoded(random, changed(random, document)))
        elif what < 0.8:
            tensors.write_bytes(changed_tensors(random, originals[tensors]))
        else:
            tensors.write_bytes(changed_values(random, originals[tensors]))
        use(directory)

    return case


def _weights(folder: Path) -> Case:
    """A base's safetensors headers and its index of shards."""
    from otter_export import insert
    from otter_export.channel_options import ChannelOptions
    from tests import tiny

    base = tiny.write_base(folder / "base", shards=2)
    index = base / "model.safetensors.index.json"
    shard = min(base.glob("model-*.safetensors"))
    originals = {path: path.read_bytes() for path in (index, shard)}

    def case(random: Random) -> None:
        for path, original in originals.items():
            path.write_bytes(original)
        if random.random() < 0.4:
            index.write_bytes(encoded(random, changed(random, json.loads(originals[index]))))
        else:
            shard.write_bytes(changed_tensors(random, originals[shard]))
        insert.plan(str(base), folder / "out", ChannelOptions(hidden_size=16))

    return case


def _engines(folder: Path) -> Case:
    """An engine's engine.json, up to two tokens of its answer."""
    from otter_export import generate, load_engine

    def use(directory: Path) -> None:
        generate(load_engine(directory, threads=1), "w3 w4", max_tokens=2)

    return _changed_manifests(folder, use)


def _benchmarks(folder: Path) -> Case:
    """An engine's engine.json, up to what ``bench`` says of it."""
    from otter_export import ArgsGreedy, Plain, load_engine
    from otter_export.evaluation.benchmark import Plan, Way, measure
    from otter_export.evaluation.operator_shares import operator_shares
    from otter_export.evaluation.step_bytes import cache_bytes, weight_bytes
    from otter_export.runtime.request import Request

    ways = Way("plain", Plain()), Way("guided", ArgsGreedy(top_k=2))

    def use(directory: Path) -> None:
        engine = load_engine(directory, threads=1)
        measure(engine, Plan(("w3 w4",), ways, 2, 1, (2,), 5.0), lambda name: None)
        weight_bytes(engine.manifest)
        cache_bytes(engine.manifest, 3)
        operator_shares(directory, engine.manifest, Request("w3", max_tokens=3), 1)

    return _changed_manifests(folder, use)


def _changed_manifests(folder: Path, use: Callable[[Path], object]) -> Case:
    from tests.built import build, random_checkpoint

    engine = build(random_checkpoint(folder / "checkpoint"), folder / "engine")
    document = json.loads((engine / "engine.json").read_text())

    def case(random: Random) -> None:
        (engine / "engine.json").write_bytes(encoded(random, changed(random, document)))
        use(engine)

    return case


def _plugins(folder: Path) -> Case:
    """A plugin folder's index of kernels."""
    from otter_export.plugins.cubin_index import CubinIndex
    from tests.plugins.test_cubin_index import CONTENT, _index

    directory = folder / "plugin"
    directory.mkdir()
    _index(directory)
    path = directory / "otter_linear.json"
    document = json.loads(path.read_text())

    def case(random: Random) -> None:
        path.write_bytes(encoded(random, changed(random, document)))
        index = CubinIndex.load(directory)
        for cubin in index.cubins:
            assert index.read(cubin) == CONTENT

    return case


def _tokenizers(folder: Path) -> Case:
    """A tokenizer.json, up to text and back."""
    from otter_export.runtime.tokenizer import JsonTokenizer
    from tests import tiny

    tiny.write_tokenizer(folder, 24)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    pairs = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    pieces = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    models = (
        document,
        document | {"model": pairs},
        document | {"model": pieces},
        document | {"decoder": {"type": "Fuse"}, "normalizer": {"type": "NFC"}},
    )

    def case(random: Random) -> None:
        path.write_bytes(encoded(random, changed(random, random.choice(models))))
        tokenizer = JsonTokenizer(path)
        ids = tokenizer.encode(random.choice(("w3 w4", "", "ab<s>é\u200d", "x" * 3000)))
        tokenizer.decode([*ids, *random.choices(range(30), k=4)])

    return case


def _training_data(folder: Path) -> Case:
    """Training data of each objective."""
    from otter_export.modeling.data import Reader
    from otter_export.signals import Signal

    class Words:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1] * add_special_tokens + [len(word) for word in text.split()]

    path = folder / "data.jsonl"
    records: dict[str, list[dict[str, Any]]] = {
        "regression": [{"text": f"a {i}", "score": i / 8, "prompt": "b"} for i in range(8)],
        "pairwise": [{"prompt": "b", "chosen": f"a {i}", "rejected": "c"} for i in range(8)],
        "experts": [{"text": f"a {i}", "label": "expert", "prompt": "b"} for i in range(8)],
        "drafts": [{"prompt": "b", "response": f"a {i}", "domain": "code"} for i in range(8)],
    }

    def case(random: Random) -> None:
        objective = random.choice(list(records))
        path.write_bytes(changed_lines(random, records[objective]))
        Reader(objective, Signal("reward"), Words(), 2).read(path)

    return case


def _prompts(folder: Path) -> Case:
    """A file of prompts with options."""
    from otter_export.runtime.prompt_file import Defaults, read_prompts

    path = folder / "prompts.jsonl"
    records: list[dict[str, Any]] = [
        {"prompt": "a", "top_k": 3, "weight": 2.0, "max_tokens": 5, "seed": 1, "stop": ["x"]},
        {"prompt": [1, 2], "method": "plain", "temperature": 0.5, "top_p": 0.9},
        {"prompt": "c", "method": "args-stochastic", "signal": "reward", "stop": "y"},
    ]

    def case(random: Random) -> None:
        path.write_bytes(changed_lines(random, records))
        read_prompts(random.choice((path, str(path))), Defaults())

    return case


class _Rude:
    """A value whose own code fails."""

    def _fail(self, *_: object) -> Any:
        raise RuntimeError("no")

    __repr__ = __str__ = __index__ = __float__ = __fspath__ = __len__ = __iter__ = __bool__ = _fail


#: Python's own, besides what JSON can hold.
_OBJECTS: tuple[Any, ...] = (
    *AWKWARD,
    np.int8(3), np.uint64(2**64 - 1), np.float32(0.5), np.float64("nan"), np.bool_(True),
    np.array(3), np.array([1, 2]), np.array([[0.5]]), np.array(["a"]), np.array([None]),
    np.str_("a"), np.datetime64("2020-01-01"), b"a", bytearray(b"a"), (), ("a", "b"), ("a", 1),
    {1, 2}, frozenset(), range(3), 1j, decimal.Decimal("0.5"), 10**5000, [10**5000],
    Path("a"), object(), int, len, ..., _Rude(), [_Rude()],
)  # fmt: skip


def _api(folder: Path) -> Case:
    """Arguments of the Python API."""
    import otter_export as api
    from otter_export import add_signal, insert, reshape
    from otter_export.channel_options import ChannelOptions
    from otter_export.checkpoint import Checkpoint
    from otter_export.modeling.training_config import TrainingConfig
    from otter_export.runtime.scheduler import Limits, Scheduler
    from otter_export.serving.settings import Settings
    from otter_export.signals import Signal
    from tests import tiny
    from tests.dummy_engine import write_engine
    from tests.runtime.fake_engine import FakeEngine, make_manifest

    manifest = make_manifest(vocab_size=32, max_sequence_length=12)
    directory = write_engine(folder / "engine")

    def engine() -> FakeEngine:
        return FakeEngine(manifest)

    def submit(**arguments: Any) -> None:
        scheduler = Scheduler(engine())
        scheduler.submit(**arguments, on_event=lambda event: None)
        while scheduler.step():
            pass

    base = tiny.write_base(folder / "base")
    copied = tiny.write_checkpoint(folder / "ck", base=base, initialization="copy", adapter=True)
    checkpoint, out = Checkpoint.open(copied), folder / "out"

    def channel(**options: Any) -> None:
        insert.plan(base, out, ChannelOptions(**options))

    def signal(**fields: Any) -> None:
        channel(hidden_size=16, signals=(Signal(**fields),))

    widths = {f.name: f.default for f in dataclasses.fields(ChannelOptions)}
    planned = {"base_name": base, "destination": out, "adapter": False, "replacements": None}
    shape = {"first_layer": 1, "attention": "own", "force": False}
    sampling = {"top_k": 4, "temperature": 0.5, "top_p": 0.9, "signal": None}
    guided = {"weight": 1.0, "gate": 0.5}
    running = {"max_tokens": 3, "stop": ("a",), "seed": 1}
    method = api.Plain()
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (api.ArgsGreedy, {"top_k": 4, "prune": True, "signal": None} | guided),
        (api.ArgsStochastic, sampling | guided),
        (api.Plain, sampling),
        (api.Request, {"prompt": [1, 2], "method": method} | running),
        (
            lambda **arguments: api.generate(**arguments),
            {"engine": engine(), "prompts": [[1]], "method": method, "on_event": None} | running,
        ),
        (
            lambda **arguments: list(api.stream(**arguments)),
            {"engine": engine(), "requests": [[1]], "batch_size": 2, "method": method} | running,
        ),
        (api.load_engine, {"directory": str(directory), "provider": "cpu", "threads": 1}),
        (channel, widths | {"hidden_size": 16}),
        (signal, {f.name: getattr(Signal("a"), f.name) for f in dataclasses.fields(Signal)}),
        (insert.plan, planned | {"options": ChannelOptions(16), "force": False}),
        (Checkpoint.open, {"directory": copied}),
        (reshape.plan, {"checkpoint": checkpoint, "destination": str(out)} | shape),
        (
            add_signal.plan,
            {"checkpoint": checkpoint, "destination": out, "signals": (Signal("a"),), "seed": 0},
        ),
        (Settings, dataclasses.asdict(Settings())),
        (TrainingConfig, dataclasses.asdict(TrainingConfig())),
        (Limits, {field.name: 5 for field in dataclasses.fields(Limits)}),
        (submit, {"request": api.Request([1], max_tokens=2), "deadline_seconds": 5}),
    ]

    def case(random: Random) -> None:
        call, arguments = random.choice(calls)
        wrong = random.sample(list(arguments), k=min(len(arguments), random.choice((1, 1, 2))))
        given = {name: random.choice(_OBJECTS) for name in wrong}
        # What the caller's own function raises is the caller's.
        if not callable(given.get("on_event")):
            call(**{**arguments, **given})

    return case


def _requests(folder: Path) -> Case:
    """Tensors and parameters of requests to a server."""
    del folder
    from otter_export.serving.parsing import parse_request, read_parameters
    from otter_export.serving.settings import Settings
    from otter_export.serving.tensors import INPUTS, NUMPY_TYPES

    texts = (b"hi", b"", b"\xff", b"a\0b", b"x" * 2_000_000, "text", None, 3, b"plain", b"\x1b[2J")
    sizes = (0, 1, 1, 1, 1, 2, 3, 1000, 1_000_000)

    def tensor(random: Random, data_type: str) -> Any:
        size, kind = random.choice(sizes), NUMPY_TYPES[data_type]
        if random.random() < 0.1:
            kind = random.choice(list(NUMPY_TYPES.values()))
        if kind is np.object_:
            array = np.empty((1, size), dtype=object)
            array.fill(random.choice(texts))
            return array
        if kind is np.bool_:
            return np.full((1, size), random.random() < 0.5)
        raw = random.choice((bytes(8), random.randbytes(8), (3).to_bytes(8, "little")))
        return np.full((1, size), np.frombuffer(raw, kind)[0])

    def case(random: Random) -> None:
        fields = random.sample(INPUTS, k=random.randrange(6))
        tensors = {field.name: tensor(random, field.data_type) for field in fields}
        tensors.setdefault("text_input", np.array([[b"hi"]], object))
        parameters = {"id": "a", "timeout": 5} if random.random() < 0.5 else {}
        if random.random() < 0.1:
            name, count = random.choice(
                (
                    ("stray", 60),
                    ("stray", 5000),
                    ("x" * 1_000_000, 1),
                    ("max_token", 1),
                    ("\ud800", 2),
                )
            )
            parameters = {f"{name}{i}": i for i in range(count)}
        text = encoded(random, changed(random, parameters)).decode("utf-8", "replace")
        parse_request(tensors, Settings(), parameters=read_parameters(text))

    return case


def _commands(folder: Path) -> Case:
    """Command lines: status 0 or 2, and one visible line of error."""
    from otter_export.cli import main
    from tests import tiny
    from tests.dummy_engine import write_engine

    # Loads torch, which takes longer than a case may.
    importlib.import_module("otter_export.cli.reshape")
    importlib.import_module("transformers.models.llama.modeling_llama")
    # A name without a slash is a place in the working directory.
    os.chdir(folder)
    base, engine = tiny.write_base(folder / "base"), write_engine(folder / "engine")
    checkpoint = tiny.write_checkpoint(folder / "checkpoint", initialization="copy", adapter=True)
    new = [str(base), str(folder / "new"), "--hidden-size", "16"]
    lines: list[list[str]] = [
        ["insert", *new, "--heads", "2"],
        ["insert", *new, "--first-layer", "1", "--attention", "shared"],
        ["reshape", str(checkpoint), str(folder / "new"), "--first-layer", "1", "--prompt", "w3"],
        ["add-signal", str(checkpoint), str(folder / "new"), "--signal", "b:value:tanh"],
        ["bench", str(engine), "--quick", "--top-k", "4", "--seconds", "0.1", "--signal", "reward"],
        ["inspect", str(checkpoint)],
        ["inspect", str(engine), "--json"],
        ["generate", str(engine), "w3", "--max-tokens", "3", "--weight", "2", "--stop", "w4"],
        ["generate", str(engine), "--prompt", "w3", "--method", "plain", "--temperature", "0.5"],
        ["list", "methods"],
        ["triton", str(engine), "--out", str(folder / "repository")],
    ]
    words = (
        *(value for value in AWKWARD if isinstance(value, str) and value not in ("a\0b", "\ud800")),
        # A byte that is no UTF-8, as Python has it.
        "\udcff",
        "--", "-", "--json", "--force", "--method", "--seed", "nan", "-1", "1" * 5000, "--top-k",
        "--x\x1b[31m",
    )  # fmt: skip

    def case(random: Random) -> None:
        line = list(random.choice(lines))
        for _ in range(random.choice((1, 1, 2))):
            at = random.randrange(1, len(line) + 1)
            line[at : at + random.randrange(2)] = random.choices(words, k=random.randrange(1, 3))
        if not any(word in ("..", "../x", "/etc/passwd", "a/../../b") for word in line[2:]):
            run_command(main, line)

    return case


KINDS: dict[str, Kind] = {
    "configs": Kind(_configs, 3000),
    "public configs": Kind(_public_configs, 3000),
    "checkpoints": Kind(_checkpoints, 2000),
    "reshapes": Kind(_reshapes, 1000),
    "weights": Kind(_weights, 2000),
    "engines": Kind(_engines, 1000),
    "benchmarks": Kind(_benchmarks, 300),
    "plugins": Kind(_plugins, 2000),
    "tokenizers": Kind(_tokenizers, 2000),
    "training data": Kind(_training_data, 2000),
    "prompts": Kind(_prompts, 2000),
    "api": Kind(_api, 6000),
    "requests": Kind(_requests, 2000),
    "heads": Kind(brought.heads, 1500),
    "chats": Kind(brought.chats, 3000),
    "bodies": Kind(brought.bodies, 3000),
    "scored texts": Kind(brought.scored_texts, 1000),
    "commands": Kind(_commands, 1000),
}

#: Kinds whose errors are what a command printed, a line each.
LINES = ("commands", "scored texts")
