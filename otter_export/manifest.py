"""``engine.json``: what an engine directory holds and how to drive it (format version 1)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from otter_export import engine_io
from otter_export.config import VERSIONS, OtterConfig, read_json
from otter_export.engine_io import CacheNames, CacheSpec, EngineIO, StepLimits, TensorSpec
from otter_export.errors import ConfigError, EngineError
from otter_export.family import MAX_POSITIONS, size_limit
from otter_export.files import is_directory, is_file, write_json
from otter_export.quoting import quoted
from otter_export.signals import Signal, kind_of

FILE_NAME = "engine.json"
FORMAT = "otter-engine"
VERSION = 1
#: Disagreements that an error names.
_SHOWN = 5
#: What a cache can be stored in.
CACHE_DTYPES = ("float32", "float16", "bfloat16")
#: Fields of a signal that are left out where they are not given.
_WHERE_GIVEN = ("draft_vocab", "residual")


@dataclasses.dataclass(frozen=True)
class EngineFile:
    """One file of the directory, with its size and SHA-256."""

    path: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class BuiltFor:
    """What a runtime needs of an engine's ``options``, read once.

    Args:
        limits: Sizes of its steps.
        builder: What made the model file, where a target has several builders.
        builder_version: Its version.
        compute_capabilities: GPUs that it has code for, as ``8.9``; empty is any.
        plugin_layers: Fused projections that need our plugin.
    """

    limits: StepLimits
    builder: str | None = None
    builder_version: str = ""
    compute_capabilities: tuple[str, ...] = ()
    plugin_layers: int = 0

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> BuiltFor:
        """From the ``options`` of an ``engine.json``.

        Raises:
            EngineError: A size is not a positive integer, or a list is none.
        """
        builder, layers = options.get("builder"), options.get("plugin_layers")
        capabilities = options.get("compute_capabilities") or []
        if not isinstance(capabilities, list | tuple):
            raise EngineError(
                f"engine.json: option compute_capabilities is {capabilities!r:.80}; expected a "
                "list. Build the engine again"
            )
        return cls(
            limits=StepLimits.read(options),
            builder=None if builder is None else str(builder),
            builder_version=str(options.get("builder_version") or ""),
            compute_capabilities=tuple(map(str, capabilities)),
            plugin_layers=layers if type(layers) is int else 0,
        )


@dataclasses.dataclass(frozen=True)
class EngineManifest:
    """Content of ``engine.json``.

    Args:
        target: Registered target that built it: ``onnx``.
        precision: ``fp32``, ``fp16``, ``int8``, ``int4``.
        execution_provider: ``cpu`` or ``cuda``: where it is meant to run.
        cache_form: How the caches move through the graph; see docs/engine.md. ``read_only``: the
            inputs hold the prefix, the outputs the new rows only, and the client writes the rows
            that it keeps.
        model_file: The model inside the directory.
        base: Sizes of the base and its ``model_type``.
        channel: Widths of the channel, and its shape, which older engines do not have.
        signals: Signals, in the order of the outputs.
        max_sequence_length: Longest sequence, prompt and generated tokens together.
        bos_token_id: Token that the base's tokenizer starts a sequence with; None if it adds none.
        eos_token_ids: Tokens that end a sequence.
        inputs, outputs: The graph's I/O, in order.
        files: Every file but engine.json itself.
        builder: Name and version of the builder and of the libraries it used.
        source: The checkpoint: its path as given, and hashes of its config and inserted tensors.
        options: Further build options, for the record; `built_for` has what a runtime needs.
        mends: What was put right in the base graph, by name (docs/upstream.md).
    """

    target: str
    precision: str
    execution_provider: str
    cache_form: str
    model_file: str
    base: Mapping[str, Any]
    channel: Mapping[str, Any]
    signals: tuple[Signal, ...]
    max_sequence_length: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[EngineFile, ...]
    builder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mends: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.base["vocab_size"])

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.base["num_hidden_layers"])

    @property
    def channel_shape(self) -> tuple[int, str]:
        """The layer that the channel begins at, and whose attention it has.

        Engines of older releases do not say it: all of theirs begin at the embeddings.
        """
        return int(self.channel.get("first_layer", 0)), str(self.channel.get("attention", "own"))

    @functools.cached_property
    def built_for(self) -> BuiltFor:
        """What a runtime needs of `options`.

        Raises:
            EngineError: One of them is not valid.
        """
        return BuiltFor.read(self.options)

    @functools.cached_property
    def io(self) -> EngineIO:
        """What the model's inputs and outputs must be."""
        return EngineIO(
            cache_form=self.cache_form,
            caches=self._caches(),
            head_dim=int(self.base["head_dim"]),
            vocab_size=self.vocab_size,
            signals={s.name: kind_of(s).output_dims(s, self.vocab_size) for s in self.signals},
            capacity=self.built_for.limits.capacity,
        )

    def _caches(self) -> tuple[CacheSpec, ...]:
        """Of the base, and of the channel if it has layers."""
        dtypes = {spec.name: spec.dtype for spec in self.inputs}
        first, attention = self.channel_shape

        def spec(names: CacheNames, sizes: Mapping[str, Any], first: int, parts: str) -> CacheSpec:
            layers, heads = range(first, self.num_layers), int(sizes["num_key_value_heads"])
            owned = engine_io.CACHE_PARTS[parts]
            dtype = dtypes.get(f"{names.past}.{first}.{owned[0]}", "missing")
            return CacheSpec(names, layers, owned, heads, dtype)

        base = spec(engine_io.BASE_CACHE, self.base, 0, "own")
        channel = spec(engine_io.CHANNEL_CACHE, self.channel, first, attention)
        return (base, channel) if channel.layers else (base,)

    def check_model(
        self, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
    ) -> None:
        """Compare a loaded model with this manifest, and this manifest with its cache form.

        Args:
            inputs: The model's inputs by name; a dimension that is not fixed is a text or None.
            outputs: Likewise its outputs; more than expected are left unused.

        Raises:
            EngineError: Lists what disagrees.
        """
        problems = [*self._unlisted(), *self.io.differences(inputs, outputs)]
        if problems:
            rest = len(problems) - _SHOWN
            more = f"; and {rest} more" if rest > 0 else ""
            raise EngineError(
                f"{self.model_file} does not match engine.json: {'; '.join(problems[:_SHOWN])}"
                f"{more}. Build the engine again"
            )

    def _unlisted(self) -> Iterator[str]:
        """What a model of this cache form has and this manifest does not list."""
        sides = (
            ("input", self.io.inputs(), self.inputs),
            ("output", self.io.outputs(), self.outputs),
        )
        for side, wanted, specs in sides:
            listed = {spec.name for spec in specs}
            yield from (f"{side} {name} is not listed" for name in wanted if name not in listed)

    def require_form(self, *accepted: str) -> None:
        """Raise `EngineError` unless the engine's caches have one of these forms, and a type."""
        if self.cache_form not in accepted:
            raise EngineError(
                f"engine.json: cache_form is {self.cache_form!r}; target {self.target} runs "
                f"{' and '.join(map(repr, accepted))}. Build the engine again"
            )
        for cache in self.io.caches:
            if cache.dtype not in CACHE_DTYPES:
                raise EngineError(
                    f"engine.json: input {cache.pasts()[0]} is {cache.dtype}; a cache is "
                    f"{', '.join(CACHE_DTYPES)}. Build the engine again"
                )

    def require_sizes(self) -> None:
        """Raise `EngineError` unless the engine has all limits, and room for its sequences."""
        limits = self.built_for.limits
        for name, size in dataclasses.asdict(limits).items():
            if size is None:
                raise EngineError(
                    f"engine.json: option {name} is None; expected a positive integer. Build the "
                    "engine again"
                )
        if limits.capacity is not None and limits.capacity < self.max_sequence_length:
            raise EngineError(
                f"engine.json: capacity {limits.capacity} is below max_sequence_length "
                f"{self.max_sequence_length}. Build the engine again"
            )

    def signal(self, name: str | None) -> Signal:
        """The signal of that name; None takes the only (or first) one.

        Raises:
            EngineError: There is no such signal.
        """
        if name is None:
            return self.signals[0]
        for signal in self.signals:
            if signal.name == name:
                return signal
        known = ", ".join(s.name for s in self.signals)
        raise EngineError(f"the engine has no signal {quoted(name)}; its signals: {known}")

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        data = dataclasses.asdict(self)
        config = {"format": FORMAT, "version": VERSION, **data}
        config["signals"] = [
            {k: v for k, v in dataclasses.asdict(s).items() if v or k not in _WHERE_GIVEN}
            for s in self.signals
        ]
        return config

    def save(self, directory: Path) -> None:
        """Write ``engine.json``."""
        write_json(directory / FILE_NAME, self.to_json())

    @classmethod
    def load(cls, directory: Path) -> EngineManifest:
        """Read and validate ``directory/engine.json``; checks that files exist with their sizes.

        Raises:
            EngineError: The directory is not an engine, or is incomplete.
        """
        path = directory / FILE_NAME
        if not is_directory(directory):
            raise EngineError(f"{directory} is not a directory; expected an engine directory")
        if not is_file(path, EngineError):
            raise EngineError(
                f"{directory} has no {FILE_NAME}: it is not an engine. "
                "Build one with: otter-export build CKPT --target onnx --out DIR"
            )
        try:
            data = read_json(path)
        except ConfigError as error:
            raise EngineError(str(error)) from None
        manifest = cls._from_json(data, path)
        manifest._check_files(directory)
        _ = manifest.built_for  # read now, so that what is wrong is said now
        return manifest

    @classmethod
    def _from_json(cls, data: Any, path: Path) -> EngineManifest:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise EngineError(f"{path}: not an otter-engine file")
        if data.get("version") != VERSION:
            raise EngineError(
                f"{path}: version {data.get('version')!r} is not known; this release reads version "
                f"{VERSION}. Build the engine again"
            )
        fields = {k: v for k, v in data.items() if k not in ("format", "version")}
        try:
            # The record of the checkpoint may have the bytes of a name that is no text.
            if not _is_text({k: v for k, v in fields.items() if k != "source"}):
                raise ValueError("it has half of a surrogate pair, or the character 0")
            fields["signals"] = _signals(data, str(path))
            for name in ("inputs", "outputs"):
                fields[name] = tuple(
                    TensorSpec(str(t["name"]), str(t["dtype"]), tuple(t["shape"]))
                    for t in fields[name]
                )
            fields["files"] = tuple(
                EngineFile(str(f["path"]), int(f["size"]), str(f["sha256"]))
                for f in fields["files"]
            )
            fields["eos_token_ids"] = tuple(int(i) for i in fields["eos_token_ids"])
            fields["mends"] = tuple(map(str, fields.get("mends", ())))  # older engines have none
            manifest = cls(**fields)
            manifest._check_types()
            sizes = ("vocab_size", "num_hidden_layers", "num_key_value_heads", "head_dim")
            found = [(name, manifest.base[name], size_limit(name)) for name in sizes]
            heads = "num_key_value_heads"
            found.append((f"the channel's {heads}", manifest.channel[heads], size_limit(heads)))
            found.append(("max_sequence_length", manifest.max_sequence_length, MAX_POSITIONS))
            for name, value, limit in found:
                if type(value) is not int or not 0 < value <= limit:
                    raise ValueError(f"{name} must be an integer from 1 to {limit}")
            if manifest.channel_shape[0] > manifest.num_layers:
                raise ValueError(f"first_layer must be at most {manifest.num_layers}")
            return manifest
        except ConfigError as error:
            raise EngineError(str(error)) from None
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise EngineError(f"{path} is malformed: {error!r}. Build the engine again") from None

    def _check_types(self) -> None:
        """Raise TypeError for a field of a wrong JSON type; nested fields are read above."""
        text = ("target", "precision", "execution_provider", "cache_form", "model_file")
        objects = ("base", "channel", "builder", "source", "options")
        for expected, names in ((str, text), (dict, objects)):
            for name in names:
                if not isinstance(getattr(self, name), expected):
                    raise TypeError(f"{name} must be of type {expected.__name__}")
        if type(self.bos_token_id) not in (int, type(None)):
            raise TypeError("bos_token_id must be an integer or null")

    def _check_files(self, directory: Path) -> None:
        built = (directory / FILE_NAME).stat().st_mtime_ns
        for file in self.files:
            path = PurePosixPath(file.path)
            if path.is_absolute() or ".." in path.parts or "\\" in file.path:
                raise EngineError(
                    f"{directory / FILE_NAME} names {file.path!r}, outside the engine"
                )
            actual = directory / path
            if not is_file(actual, EngineError):
                raise EngineError(f"{directory} is incomplete: {file.path} is missing")
            # Libraries name another file of the engine, or none.
            if not os.access(actual, os.R_OK):
                raise EngineError(f"{actual} cannot be read; check its permissions")
            status = actual.stat()
            if status.st_size != file.size:
                raise EngineError(
                    f"{actual} has {status.st_size} bytes, {FILE_NAME} says {file.size}: "
                    "the engine is damaged; build it again"
                )
            # A copy of an engine has no links, and times of its own.
            if status.st_nlink > 1 and status.st_mtime_ns > built:
                raise EngineError(
                    f"{actual} is a link to weights that were written again after the engine was "
                    "built; build it again, without --link if they are to change"
                )
        if self.model_file not in {f.path for f in self.files}:
            raise EngineError(
                f"{directory / FILE_NAME}: model_file {self.model_file!r} is not listed"
            )


def _is_text(value: Any) -> bool:
    """Whether all of a JSON value can be written, shown and given to the system as a name."""
    text = json.dumps(value, ensure_ascii=False)
    # json.dumps keeps lone halves, and escapes 0 (a backslash before it is doubled).
    return not re.search(r"[\ud800-\udfff]|(?<!\\)(?:\\\\)*\\u0000", text)


def _signals(data: Mapping[str, Any], source: str) -> tuple[Signal, ...]:
    """Validate signals by the rules of otter_config.json."""
    channel = data["channel"]
    entries = [dict(s) for s in data["signals"]]
    config = {"format": "otter", "version": VERSIONS[-1], **channel, "signals": entries}
    return OtterConfig.from_json(config, source).signals


def describe_file(
    directory: Path, name: str, progress: Callable[[int], None] | None = None
) -> EngineFile:
    """Size and SHA-256 of a file, read in blocks of 4 MiB."""
    digest = hashlib.sha256()
    path = directory / name
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return EngineFile(name, path.stat().st_size, digest.hexdigest())
