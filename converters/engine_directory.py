"""The files of every engine directory beside the model: tokenizer, drafts, ``engine.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export import __version__
from otter_export import config as config_file
from otter_export.checkpoint import Checkpoint
from otter_export.draft_tokens import write_draft_tokens
from otter_export.errors import CheckpointError, ConfigError
from otter_export.files import SETTINGS_LIMIT, copy_regular, is_file
from otter_export.hub import TOKENIZER_FILES
from otter_export.manifest import EngineFile, EngineManifest, describe_file
from otter_export.tokenizer_file import read_tokenizer

#: What ``engine.json`` has of the channel.
_CHANNEL_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "first_layer",
    "attention",
)


def copy_tokenizer(checkpoint: Checkpoint, directory: Path) -> list[str]:
    """Copy the base's tokenizer files; returns their names.

    Raises:
        CheckpointError: There is no tokenizer.json, or it cannot be read; a file is too large.
    """
    source = checkpoint.base.directory
    if not is_file(source / "tokenizer.json", CheckpointError):
        raise CheckpointError(
            f"{source} has no tokenizer.json; save the fast tokenizer there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        read_tokenizer(source / "tokenizer.json")
    except (OSError, ConfigError) as error:
        raise CheckpointError(str(error)) from None
    names = [name for name in TOKENIZER_FILES if is_file(source / name, CheckpointError)]
    for name in names:
        copy_regular(source / name, directory / name, limit=SETTINGS_LIMIT, error=CheckpointError)
    return names


def engine_manifest(
    checkpoint: Checkpoint,
    directory: Path,
    files: Sequence[str | EngineFile],
    *,
    libraries: Mapping[str, str] | None = None,
    **fields: Any,
) -> EngineManifest:
    """The manifest of an engine whose files are written, but for the tokens that it drafts.

    Args:
        checkpoint: What was built.
        directory: The engine directory.
        files: Everything in it; those named alone are read for their hashes.
        libraries: Versions of what built it.
        fields: The fields of `EngineManifest` that are the target's own.
    """
    bos, eos = checkpoint.base.special_token_ids
    config = checkpoint.config
    drafted = {signal: checkpoint.token_ids(signal) for signal in config.signals}
    return EngineManifest(
        base=dataclasses.asdict(checkpoint.base.dimensions),
        channel={name: getattr(config, name) for name in _CHANNEL_FIELDS},
        signals=config.signals,
        bos_token_id=bos,
        eos_token_ids=eos,
        files=tuple(
            file if isinstance(file, EngineFile) else describe_file(directory, file)
            for file in (*files, *write_draft_tokens(drafted, directory))
        ),
        builder={"name": "otter-export", "version": __version__, **(libraries or {})},
        source=source_of(checkpoint),
        **fields,
    )


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where an engine came from, without absolute paths of the machine that built it."""
    shards = {info.file.name for info in checkpoint.tensors.values()}
    names = {config_file.FILE_NAME, checkpoint.tensors.source.name, *shards}
    hashes = {name: describe_file(checkpoint.directory, name).sha256 for name in sorted(names)}
    return {"checkpoint": checkpoint.directory.resolve().name, "sha256": hashes}
