"""The texts of the example: what the base itself writes behind three kinds of openings.

- ``prose``: the first words of movie snippets (examples/sentiment/material.py has the source);
- ``code``: the heads of functions and classes of Python's installed standard library;
- ``repetitive``: lists and records whose pattern shows after two lines.

A draft is right where the base agrees, so the base's own greedy text is the text to learn from, and
its labels cost nothing. Openings are split by a hash; what is tested was not trained on. Nothing of
it is shipped.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.sentiment.material import Material

#: Openings of each kind to train on, and to test on.
FULL = {"prose": (480, 24), "code": (240, 24), "repetitive": (120, 24)}
QUICK = {"prose": (12, 2), "code": (6, 2), "repetitive": (4, 2)}
#: Tokens that the base writes behind an opening, and openings that it continues at a time.
LENGTH, TOGETHER = 48, 64
#: Of the snippet and of the function that make an opening.
WORDS, CHARACTERS = 7, 160
PATTERNS = (
    "{a}: open at {n}, closed at {m}.\n{b}: open at {n}, closed at {m}.\n{c}:",
    "Q: What is {n} + 1?\nA: {k}\nQ: What is {m} + 1?\nA:",
    '{{"name": "{a}", "age": {n}}}\n{{"name": "{b}", "age": {m}}}\n{{"name":',
    "1. The {a} is red.\n2. The {b} is red.\n3. The {c}",
    "{a},{n},{m}\n{b},{n},{m}\n{c},",
)
NAMES = ("apple", "bell", "cat", "door", "egg", "fish", "gate", "hat", "island", "jar")


def prepare(
    source: Material,
    directory: Path,
    sizes: Mapping[str, tuple[int, int]] = FULL,
    report: Callable[[str], None] = print,
) -> tuple[Path, Path]:
    """Write ``train.jsonl`` and ``test.jsonl`` of ``{"prompt", "text", "domain"}``, if not there.

    Args:
        source: The base model and the snippets.
        directory: Where to.
        sizes: How many openings of each kind train and test.
        report: Receives a line before the slow part.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / "train.jsonl", directory / "test.jsonl"
    if not all(path.is_file() for path in paths):
        report("the base writes texts to learn from")
        for path, part in zip(paths, split(openings(source), sizes), strict=True):
            texts = write(source.base, [text for _, text in part])
            lines = (
                json.dumps({"prompt": prompt, "text": text, "domain": domain}) + "\n"
                for (domain, prompt), text in zip(part, texts, strict=True)
                if text
            )
            path.write_text("".join(lines), encoding="utf-8")
    return paths


def openings(source: Material) -> dict[str, Iterator[str]]:
    """By domain, each in an order of its own that never changes."""
    return {"prose": prose(source.train), "code": _code(), "repetitive": _repetitive()}


def split(
    openings: Mapping[str, Iterator[str]], sizes: Mapping[str, tuple[int, int]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """``(domain, opening)`` to train on and to test on: each opening once."""
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for domain, texts in openings.items():
        trained, tested = sizes[domain]
        taken = list(itertools.islice(_distinct(texts), trained + tested))
        taken.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
        test += [(domain, text) for text in taken[:tested]]
        train += [(domain, text) for text in taken[tested:]]
    return train, test


def write(base: Path, prompts: Sequence[str]) -> list[str]:
    """What the base writes behind each opening, greedily, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), TOGETHER):
        some = order[start : start + TOGETHER]
        tokens = tokenizer([prompts[i] for i in some], return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = model.generate(
                **tokens,
                max_new_tokens=LENGTH,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = ids[:, tokens["input_ids"].shape[1] :]
        texts |= dict(zip(some, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
    return [texts[i] for i in range(len(prompts))]


def prose(snippets: Path) -> Iterator[str]:
    """The first words of each snippet that is longer than they are."""
    with snippets.open(encoding="utf-8") as file:
        for line in file:
            words = str(json.loads(line)["text"]).split()
            if len(words) > WORDS:
                yield " ".join(words[:WORDS])


def _code() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = "".join(lines[node.lineno - 1 : node.end_lineno])
                if len(text) > CHARACTERS:
                    yield text[:CHARACTERS]


def _distinct(texts: Iterator[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text


def _repetitive() -> Iterator[str]:
    for n in range(1, 40):
        for pattern in PATTERNS:
            a, b, c = (NAMES[(n * step + n) % len(NAMES)] for step in (1, 2, 3))
            yield pattern.format(a=a, b=b, c=c, n=n, m=n + 3, k=n + 1)
