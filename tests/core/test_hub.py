"""L0: finding a base: what is asked of the hub, and what is given in place of a base."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from otter_export.errors import CheckpointError
from otter_export.hub import find_base
from tests import tiny

huggingface_hub = pytest.importorskip("huggingface_hub")

#: What repositories hold beside the model.
STRANGERS = (
    *("consolidated.safetensors", "original/params.json", "onnx/config.json", "README.md"),
    *(
        "model.fp16.safetensors",
        "onnx/tokenizer.json",
        "1_Pooling/config.json",
        "pytorch_model.bin",
    ),
)


class Hub:
    """A repository that gives what is asked for, as `snapshot_download` does."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.given: list[str] = []

    def download(self, name: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        for path in sorted(self.repository.rglob("*")):
            relative = path.relative_to(self.repository).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(relative, p) for p in allow_patterns):
                (self.cache / relative).parent.mkdir(parents=True, exist_ok=True)
                (self.cache / relative).write_bytes(path.read_bytes())
                self.given.append(relative)
        return str(self.cache)


@pytest.mark.parametrize("shards", [1, 2])
def test_only_files_that_are_read_are_asked_for(
    shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tiny.write_base(tmp_path / "repository", shards=shards)
    for name in STRANGERS:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("{}")
    hub = Hub(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    assert find_base("owner/name") == tmp_path / "cache"
    weights = ["model.safetensors"] if shards == 1 else [
        "model.safetensors.index.json",
        *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    ]  # fmt: skip
    assert sorted(hub.given) == sorted(
        ["config.json", "tokenizer.json", "tokenizer_config.json", *weights]
    )


def test_a_cache_that_holds_what_is_read_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the hub's own record of the repository says that is missing."""
    base = tiny.write_base(tmp_path / "base")

    def incomplete(*_: object, **__: object) -> str:
        raise OSError("the cached snapshot is incomplete: chat_template.jinja")

    def cached(_: str, file: str) -> str:
        return str(base / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert find_base("owner/name") == base


def test_a_cache_on_the_disk_is_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--owner--name"
    snapshot = tiny.write_base(folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_base("owner/name") == snapshot


def test_an_old_name_suggests_the_new_one() -> None:
    with pytest.raises(CheckpointError, match=r"hub id .*; did you mean openai-community/gpt2\?"):
        find_base("gpt2")


def test_a_folder_of_the_cache_is_recognised(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--name-1"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "blobs").mkdir()
    for given in (folder, folder / "blobs", folder / "snapshots"):
        with pytest.raises(CheckpointError, match=r"give its hub id owner/name-1, or .*/abc"):
            find_base(str(given))
    with pytest.raises(CheckpointError, match="is the Hugging Face cache; give the hub id"):
        find_base(str(tmp_path))


@pytest.mark.parametrize("page", ["", "/tree/main"])
def test_a_web_address_suggests_its_id(page: str) -> None:
    with pytest.raises(CheckpointError, match=r"did you mean owner/name\?"):
        find_base(f"https://huggingface.co/owner/name{page}")


def test_a_missing_directory_is_no_hub_id() -> None:
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        find_base("missing/")


def test_a_file_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="it is a file: give the directory"):
        find_base(str(tmp_path / "model.gguf"))


def test_what_the_hub_says_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise ValueError("no such repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(CheckpointError, match="'a/b' could not be fetched: no such repository"):
        find_base("a/b")
