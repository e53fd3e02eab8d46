"""Finding a base model: a directory, or a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from otter_export import base_config
from otter_export.config import read_json
from otter_export.errors import CheckpointError, ConfigError
from otter_export.files import is_directory, is_file

BASE_STEM = "model"
#: Files that travel with a base model beside its weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
#: What is asked of the hub: what is read here, and no more.
_SMALL_FILES = (
    *(base_config.FILE_NAME, base_config.GENERATION_FILE),
    *("tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
_WEIGHTS = f"{BASE_STEM}.safetensors"
_INDEX = f"{BASE_STEM}.safetensors.index.json"
_HUB = "https://huggingface.co/"
#: Names from before repositories had owners.
_RENAMED = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large")},
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}


def find_base(name: str, *, fetch: bool = True) -> Path:
    """A base model by path, or by hub id through huggingface_hub (which honours HF_HUB_OFFLINE).

    Args:
        name: The path or the hub id.
        fetch: Whether it may be fetched, if the hub's cache has it not.

    Raises:
        CheckpointError: It is neither a directory nor a model that can be had.
    """
    path = Path(name)
    if is_directory(path):
        _refuse_cache_folder(path)
        return path
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") != 1:
        hint = f"; did you mean {_RENAMED[name]}?" if name in _RENAMED else ""
        if name.startswith(_HUB):
            hint = f"; did you mean {'/'.join(name.removeprefix(_HUB).split('/')[:2])}?"
        if is_file(path):
            hint = "; it is a file: give the directory that holds it"
        raise CheckpointError(
            f"base model {name!r} is neither a directory nor a hub id (owner/name){hint}"
        )
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError:
        raise CheckpointError(
            f"base model {name!r} is not a local directory; fetching it from the hub needs "
            "huggingface_hub: pip install 'otter-export[build]'"
        ) from None
    try:
        return _fetched(name, fetch)
    except (OSError, ValueError, ConfigError) as error:
        if not fetch:
            raise CheckpointError(
                f"base model {name!r} is not in the hub's cache, and nothing is fetched here; get "
                f"it with: hf download {name}"
            ) from None
        raise CheckpointError(f"base model {name!r} could not be fetched: {error}") from None


def _fetched(name: str, fetch: bool) -> Path:
    """The snapshot of a hub repository with every file that is read, and no other asked for."""
    directory = _snapshot(name, [*_SMALL_FILES, _WEIGHTS, _INDEX], fetch)
    if not (directory / _WEIGHTS).is_file() and (directory / _INDEX).is_file():
        index = read_json(directory / _INDEX, limit_bytes=256 << 20)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if isinstance(weight_map, dict):
            shards = sorted({str(shard) for shard in weight_map.values()})
            if not all((directory / shard).is_file() for shard in shards):
                _snapshot(name, shards, fetch)
    return directory


def _snapshot(name: str, files: Sequence[str], fetch: bool) -> Path:
    """Fetch files of a repository, or find them in the cache.

    The patterns are whole names: ``*.json`` would also match what lies in subfolders. A cache that
    the hub's own record calls incomplete may still hold all that is needed, which whoever opens the
    base will see.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    patterns = [_literal(file) for file in files]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not fetch))
    except OSError:
        cached = try_to_load_from_cache(name, base_config.FILE_NAME)
        if isinstance(cached, str):
            return Path(cached).parent
        raise


def _literal(name: str) -> str:
    """A pattern that matches one name alone, whatever characters it has."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _refuse_cache_folder(path: Path) -> None:
    """A model's folder of the cache holds blobs and snapshots; a base is one of the latter."""
    for folder in (path, path.parent):
        if folder.name.startswith("models--") and (folder / "snapshots").is_dir():
            found = sorted(p for p in (folder / "snapshots").iterdir() if p.is_dir())
            hub_id = folder.name.removeprefix("models--").replace("--", "/", 1)
            snapshot = f", or the snapshot {found[-1]}" if found else ""
            raise CheckpointError(
                f"{path} is a folder of the Hugging Face cache; give its hub id {hub_id}{snapshot}"
            )
    if any(path.glob("models--*")) or any(path.glob("hub/models--*")):
        raise CheckpointError(
            f"{path} is the Hugging Face cache; give the hub id of a model in it (owner/name)"
        )
