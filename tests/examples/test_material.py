"""L0: the demo's material: splits that never overlap, and archives that are not what they seem."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from examples.sentiment import material
from otter_export.errors import OtterError

TEXTS = [f"A film of number {i}." for i in range(400)]


def write_archive(path: Path, lines: list[str]) -> Path:
    """An archive laid out as that of vaderSentiment 3.3.2."""

    def packed(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    inner = packed(material.SNIPPETS, "".join(f"{line}\n" for line in lines).encode())
    path.write_bytes(packed(material.INNER_ARCHIVE, inner))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    lines = [f"{i}\t{(i % 9) - 4}\t{text} " for i, text in enumerate(TEXTS)]
    return write_archive(tmp_path / "archive.tar.gz", [*lines, f"400\t1.5\t{TEXTS[0]}"])


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_splits_are_disjoint_complete_and_scaled(tmp_path: Path, archive: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "SmolLM2-135M-Instruct").mkdir(parents=True)  # the base is not what is tested
    made = material.prepare(cache, archive)
    splits = {name: read(getattr(made, name)) for name in ("train", "probe", "test")}
    texts = [str(line["text"]).strip() for lines in splits.values() for line in lines]
    assert sorted(texts) == sorted(TEXTS)
    for name, lines in splits.items():
        for line in lines:
            text = str(line["text"]).strip()
            assert material.split_of(text) == name
            assert line["score"] == ((TEXTS.index(text) % 9) - 4) / 4
    # Only what is trained on has prompts; about a third of it has one.
    assert all("prompt" not in line for line in splits["probe"] + splits["test"])
    prompts = [line["prompt"] for line in splits["train"] if "prompt" in line]
    assert set(prompts) == set(material.STUBS)
    assert 0.2 < len(prompts) / len(splits["train"]) < 0.5
    assert not list(cache.glob(".*"))


def test_splits_do_not_depend_on_the_order(tmp_path: Path, archive: Path) -> None:
    lines = [f"{i}\t{(i % 9) - 4}\t{text}" for i, text in enumerate(TEXTS)]
    other = write_archive(tmp_path / "other.tar.gz", lines[::-1])
    contents = []
    for name, source in (("one", archive), ("two", other)):
        (tmp_path / name / "SmolLM2-135M-Instruct").mkdir(parents=True)
        made = material.prepare(tmp_path / name, source)
        contents.append([path.read_bytes() for path in (made.train, made.probe, made.test)])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("content", [b"", b"not a tar file", None])
def test_a_wrong_archive_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "archive.tar.gz"
    if content is None:
        with tarfile.open(path, "w:gz"):
            pass
    else:
        path.write_bytes(content)
    with pytest.raises(OtterError, match="is not the source archive of vaderSentiment"):
        list(material.read_snippets(path))


def test_a_missing_archive_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "ROOT", tmp_path)
    monkeypatch.setenv("OTTER_EXPORT_CACHE", str(tmp_path))
    with pytest.raises(OtterError, match="pip download"):
        material.find_archive()
