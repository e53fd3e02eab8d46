"""Insert a channel into a base model: plan from headers, then write one tensor at a time.

`plan` reads JSON files and safetensors headers only, so that every mistake is reported before
anything is written. `Insertion.write` holds one tensor in memory at a time, whatever the base's
size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from otter_export import config as config_file
from otter_export.arguments import flag, path_argument
from otter_export.base_config import FILE_NAME as BASE_CONFIG
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions, channel_config
from otter_export.checkpoint import OTTER_STEM
from otter_export.config import OtterConfig
from otter_export.errors import CheckpointError, ConfigError
from otter_export.files import SETTINGS_LIMIT, copy_regular, is_file, write_json
from otter_export.hub import TOKENIZER_FILES, find_base
from otter_export.initialization import initial_tensors
from otter_export.manifest import FILE_NAME as ENGINE_FILE
from otter_export.output_directory import check_replaceable, output_directory
from otter_export.probe import Maker, Probe
from otter_export.quoting import quoted
from otter_export.safetensors_io import (
    IDS_DTYPE,
    WEIGHT_DTYPES,
    PlannedTensor,
    TensorStore,
    read_header,
    rounded,
    write_safetensors,
)
from otter_export.shards import Shard, in_shards, write_shards
from otter_export.signals import is_token_ids
from otter_export.tokenizer_file import FILE_NAME as TOKENIZER_FILE
from otter_export.tokenizer_file import read_tokenizer, tokens_beyond


@dataclasses.dataclass(frozen=True)
class Insertion:
    """A checked plan: what `write` will put into the checkpoint directory.

    ``shards`` are the base's tensors where it is unwrapped, else its files are copied. ``notes``
    are what the user should know of the base: files and tensors that are not read.
    """

    destination: Path
    force: bool
    base: BaseModel
    config: OtterConfig
    tensors: tuple[PlannedTensor, ...]
    copied: tuple[Path, ...]
    shards: tuple[Shard, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def inserted_parameters(self) -> int:
        """Number of inserted values."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of tensors and copied files, as `write` reports them to ``progress``."""
        copied = sum(path.stat().st_size for path in self.copied)
        return copied + sum(t.nbytes for part in (self.tensors, *self.shards) for t in part)

    def write(
        self,
        progress: Callable[[int], None] | None = None,
        check: Callable[[Path], None] = lambda directory: None,
    ) -> None:
        """Write the checkpoint; it appears under its name only when it is complete.

        Args:
            progress: Called with the number of bytes just written.
            check: Called with the complete directory before it gets its name; if it raises, nothing
                is left behind.
        """
        marker = config_file.FILE_NAME
        with output_directory(self.destination, marker=marker, force=self.force) as directory:
            for path in self.copied:
                _copy(path, directory / path.name, progress)
            if self.shards:
                write_json(directory / BASE_CONFIG, self.base.plain_config)
                write_shards(directory, self.shards, progress)
            write_safetensors(
                directory / f"{OTTER_STEM}.safetensors", self.tensors, self.metadata, progress
            )
            write_json(directory / marker, self.config.to_json())
            check(directory)


def plan(
    base_name: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    options: ChannelOptions,
    *,
    adapter: bool = False,
    replacements: str | os.PathLike[str] | None = None,
    force: bool = False,
    probe: Probe | None = None,
) -> Insertion:
    """Check everything that can be checked before writing.

    Args:
        base_name: Directory of the base, or its hub id.
        destination: Directory that `Insertion.write` will make.
        options: The channel.
        adapter: Name the base in ``otter_config.json`` instead of copying it.
        replacements: A safetensors file with some of the inserted tensors, which replace the
            initial values: a trained channel, shipped without its base.
        force: Whether an existing checkpoint at ``destination`` may be replaced.
        probe: Of the initialisation ``probe``; None draws one.

    Raises:
        OtterError: The base, the widths, the replacements or the destination are unusable.
    """
    path_argument("base_name", base_name, ConfigError)
    # As text: a path would make a hub id of "./owner/name".
    base_name, destination = os.fspath(base_name), path_argument("destination", destination)
    adapter, force = flag("adapter", adapter), flag("force", force)
    if not isinstance(options, ChannelOptions):
        raise ConfigError(f"options must be ChannelOptions, got {quoted(options)}")
    if not isinstance(probe, Probe | None):
        raise ConfigError(f"probe must be a Probe or None, got {quoted(probe)}")
    check_replaceable(destination, marker=config_file.FILE_NAME, force=force)
    directory = find_base(base_name)
    refuse_overlap(destination, directory, "the base")
    _refuse_what_is_no_base(directory)
    base = BaseModel.open(directory)
    base.check_weights()
    notes = tuple(_notes(base))
    named = adapter_name(base_name, destination) if adapter else None
    config = channel_config(base, options, base_name=named)
    return Insertion(
        destination=destination,
        force=force,
        base=base,
        config=config,
        tensors=_planned(config, base, options, replacements, probe),
        copied=() if adapter else base_files(base),
        shards=() if adapter or base.wrapper is None else in_shards(_text_tensors(base)),
        metadata={"format": "pt"},
        notes=notes,
    )


def _refuse_what_is_no_base(directory: Path) -> None:
    """Name what else of this package, or of others, was given in place of a base.

    Raises:
        CheckpointError: An engine, a checkpoint (whose channel would be lost), or an adapter.
    """
    if (directory / ENGINE_FILE).is_file():
        raise CheckpointError(f"{directory} is an engine; a channel is inserted into a base model")
    if (directory / config_file.FILE_NAME).is_file():
        name = OtterConfig.load(directory).base_model_name_or_path
        base = f"its base, {name}" if name else f"a copy without {config_file.FILE_NAME}"
        raise CheckpointError(
            f"{directory} is a checkpoint, which has a channel already; to start a new one, insert "
            f"into {base}"
        )
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory} is a LoRA adapter; merge it into its base first (merge_and_unload())"
        )


def _notes(base: BaseModel) -> Iterator[str]:
    """What of the base is not read, and which tokens it cannot take.

    Raises:
        CheckpointError: It has no tokenizer that can be read.
    """
    index = base.weights.source.with_name(f"{base.weights.source.name}.index.json")
    if is_file(index, CheckpointError):
        yield f"{base.weights.source.name} is read, as transformers does; {index.name} is not"
    extra = base.left_over()
    if base.wrapper is not None:
        yield (
            f"unwrapped: the text model of this {base.wrapper} base is read, and none of its "
            f"{len(extra)} other tensors"
        )
    elif extra:
        more = f" and {len(extra) - 1} more" if extra[1:] else ""
        yield f"the model does not read the stored tensor {extra[0]}{more}"
    if not base.special_token_ids[1]:
        yield "no token ends a text: eos_token_id is absent, or is no id of the embedding's"
    positions = base.dimensions.max_position_embeddings
    if positions < base.data.get("max_position_embeddings", 0):
        yield (
            f"sequences are at most {positions} tokens long, not "
            f"{base.data['max_position_embeddings']}: longer ones rotate by other tables (longrope)"
        )
    path = base.directory / TOKENIZER_FILE
    if not is_file(path, CheckpointError):
        found = [
            name for name in ("tokenizer.model", "vocab.json") if (path.parent / name).is_file()
        ]
        only = f", only {found[0]}" if found else ""
        raise CheckpointError(
            f"{base.directory} has no {TOKENIZER_FILE}{only}; save the fast tokenizer there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        beyond = tokens_beyond(read_tokenizer(path), base.dimensions.vocab_size)
    except (OSError, ConfigError) as error:
        raise CheckpointError(str(error)) from None
    if beyond:
        more = f" and {len(beyond) - 1} more" if beyond[1:] else ""
        yield (
            f"the tokenizer has the token {beyond[0]!r:.40}{more} beyond the embedding's "
            f"{base.dimensions.vocab_size} rows; texts with it cannot be read"
        )


def base_files(base: BaseModel) -> tuple[Path, ...]:
    """The files that make a base self-contained: configuration, tokenizer, weights.

    Those of a wrapper that its text model needs are its tokenizer's alone.
    """
    tokenizer = [
        path
        for path in (base.directory / name for name in TOKENIZER_FILES)
        if is_file(path, CheckpointError)
    ]
    if base.wrapper is not None:
        return tuple(tokenizer)
    weights = {info.file for info in base.weights.values()} | {base.weights.source}
    return (base.directory / BASE_CONFIG, *tokenizer, *sorted(weights))


def _text_tensors(base: BaseModel) -> Iterator[PlannedTensor]:
    """The tensors of a text model under their plain names, as they are stored."""
    for name, info in base.parameters.items():
        read = functools.partial(base.parameters.raw, name)
        yield PlannedTensor(name, info.dtype, info.shape, read)


def _planned(
    config: OtterConfig,
    base: BaseModel,
    options: ChannelOptions,
    replacements: str | os.PathLike[str] | None,
    probe: Probe | None,
) -> tuple[PlannedTensor, ...]:
    initial = list(initial_tensors(config, base, options.seed, probe))
    shapes = {name: shape for name, shape, _ in initial}
    trained = _open_replacements(
        None if replacements is None else path_argument("replacements", replacements), shapes
    )

    def source(name: str, make: Maker) -> Maker:
        # The file may hold another dtype than the checkpoint is to have.
        is_trained = name in trained and not is_token_ids(name)
        return functools.partial(trained.float32, name) if is_trained else make

    remedy = "use --dtype BF16 or F32"
    return tuple(
        planned_tensor(name, shape, source(name, make), options.dtype, remedy)
        for name, shape, make in initial
    )


def planned_tensor(
    name: str, shape: tuple[int, ...], make: Maker, dtype: str, remedy: str
) -> PlannedTensor:
    """An inserted tensor to be written: rounded to ``dtype``, or token ids as they are.

    Args:
        name: Its name.
        shape: What ``make`` returns.
        make: Its values, float32.
        dtype: Of weights.
        remedy: What the user can do if ``dtype`` cannot hold them.
    """
    if is_token_ids(name):
        return PlannedTensor(name, IDS_DTYPE, shape, lambda: make().astype(np.int32))
    return PlannedTensor(name, dtype, shape, lambda: rounded(name, make(), dtype, remedy))


def _open_replacements(path: Path | None, shapes: Mapping[str, Sequence[int]]) -> TensorStore:
    """Open a file of trained tensors; all its problems are reported at once."""
    if path is None:
        return TensorStore({}, Path())
    store = TensorStore(read_header(path), path)
    problems = []
    for name, info in store.items():
        if name not in shapes:
            problems.append(f"tensor {name} is not one of this channel")
        elif info.shape != tuple(shapes[name]):
            expected = list(shapes[name])
            problems.append(f"tensor {name} has shape {list(info.shape)}, expected {expected}")
        elif info.dtype not in WEIGHT_DTYPES:
            accepted = ", ".join(WEIGHT_DTYPES)
            problems.append(f"tensor {name} has dtype {info.dtype}; accepted: {accepted}")
    if not store:
        problems.append("it holds no tensors")
    if problems:
        more = [f"and {len(problems) - 20} more"] if problems[20:] else []
        raise CheckpointError(f"{path}: " + "; ".join(problems[:20] + more))
    return store


def adapter_name(base_name: str, destination: Path) -> str:
    """A local base relative to the checkpoint, so that both can move together; else the hub id."""
    if not Path(base_name).is_dir():
        return base_name
    return os.path.relpath(Path(base_name).resolve(), destination.resolve())


def refuse_overlap(destination: Path, source: Path, what: str) -> None:
    """Writing over what is read, or over a directory that holds it, would delete it.

    Raises:
        CheckpointError: ``destination`` is such a directory.
    """
    target, held = destination.resolve(), source.resolve()
    if target == held or target in held.parents:
        raise CheckpointError(f"{destination} holds {what} {source}; choose another name")


def _copy(source: Path, destination: Path, progress: Callable[[int], None] | None) -> None:
    # The headers of weights have been compared with their sizes; nothing vouches for the others.
    limit = None if source.suffix == ".safetensors" else SETTINGS_LIMIT
    copy_regular(source, destination, progress, limit=limit, error=CheckpointError)
