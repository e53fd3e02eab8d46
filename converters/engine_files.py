"""What every engine directory holds beside the model: tokenizer files, token ids, provenance."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

from otter_export import __version__
from otter_export import config as config_file
from otter_export.checkpoint import TOKENIZER_FILES, Checkpoint
from otter_export.config import read_json
from otter_export.errors import CheckpointError
from otter_export.manifest import EngineFile, describe_file


def copy_tokenizer(checkpoint: Checkpoint, directory: Path) -> list[str]:
    """Copy the base's tokenizer files; returns their names.

    Raises:
        CheckpointError: There is no tokenizer.json, the only file that the runtime reads.
    """
    source = checkpoint.base.directory
    if not (source / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{source} has no tokenizer.json; save the fast tokenizer there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, directory / name)
    return names


def token_ids(checkpoint: Checkpoint) -> tuple[int | None, tuple[int, ...]]:
    """``(bos, eos ids)``: generation_config.json where it says so, else config.json."""
    path = checkpoint.base.directory / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    data: dict[str, Any] = {**checkpoint.base.data}
    data.update({k: v for k, v in dict(generation).items() if v is not None})
    vocab = checkpoint.base.dimensions.vocab_size

    def valid(value: object) -> TypeGuard[int]:
        return type(value) is int and 0 <= value < vocab

    eos = data.get("eos_token_id")
    listed = eos if isinstance(eos, list) else [eos]
    bos = data.get("bos_token_id")
    return (bos if valid(bos) else None), tuple(i for i in listed if valid(i))


def describe_files(
    directory: Path, names: list[str], progress: Callable[[int], None] | None = None
) -> tuple[EngineFile, ...]:
    """Sizes and hashes of an engine's files."""
    return tuple(describe_file(directory, name, progress) for name in names)


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where an engine came from, without absolute paths of the machine that built it."""
    shards = {info.file.name for info in checkpoint.tensors.values()}
    names = {config_file.FILE_NAME, checkpoint.tensors.source.name, *shards}
    hashes = {name: describe_file(checkpoint.directory, name).sha256 for name in sorted(names)}
    return {"checkpoint": checkpoint.directory.resolve().name, "sha256": hashes}


def channel_widths(checkpoint: Checkpoint) -> dict[str, int]:
    """Sizes of the channel, as ``engine.json`` has them."""
    names = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    return {name: getattr(checkpoint.config, name) for name in names}


def builder(**libraries: str) -> dict[str, str]:
    """Name and version of this builder and of the libraries it used."""
    return {"name": "otter-export", "version": __version__, **libraries}
