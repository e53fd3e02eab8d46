"""Awkward values, and small changes of JSON documents and bytes; all drawn from one generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

#: What JSON can hold where a program expects something else.
AWKWARD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**64, 10**30, -(10**4000),
    0.5, -0.0, 1e-300, 1e13, 1e308, float("nan"), float("inf"),
    "", " ", "a", "0", "1e5", "true", "default", "é", "x" * 300, "x" * 20_000,
    "a\0b", "\x1b[31mred", "\u202eabc", "\ud800",
    "..", "../x", "/etc/passwd", "a/../../b", "C:\\x",
    [], {}, [[]], [0], ["a"], [None], {"a": 1}, {"": {}}, list(range(2000)),
)  # fmt: skip


def changed(random: Random, document: Any) -> Any:
    """A copy of a JSON document with one to three changes anywhere in it."""
    document = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _change(random, document)
    return document


def encoded(random: Random, document: Any) -> bytes:
    """A document as the bytes of a file, which are now and then damaged too."""
    content = json.dumps(document, ensure_ascii=random.random() < 0.7)
    data = content.encode("utf-8", "surrogatepass")
    return damaged(random, data) if random.random() < 0.15 else data


def damaged(random: Random, data: bytes) -> bytes:
    """Bytes after what happens to files: cut, flipped, doubled, of another kind."""
    at = random.randrange(len(data) + 1)
    kind = random.randrange(9)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + random.randbytes(random.randrange(1, 16)) + data[at:]
    if kind == 2:
        flipped = bytearray(data or b"\0")
        for _ in range(random.randrange(1, 8)):
            flipped[random.randrange(len(flipped))] = random.randrange(256)
        return bytes(flipped)
    if kind == 3:
        return data + data
    if kind == 4:
        return b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
    if kind == 5:
        return data.decode("utf-8", "replace").encode("utf-16")
    if kind == 6:
        return random.choice((b"[", b'{"a":')) * random.choice((600, 100_000))
    if kind == 7:
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    return random.choice((b"", b"\0" * 64, b"null", b"{}", b"[]", b'"a"', b"1"))


def changed_tensors(random: Random, original: bytes) -> bytes:
    """A safetensors file with a changed header."""
    size = int.from_bytes(original[:8], "little")
    header = encoded(random, changed(random, json.loads(original[8 : 8 + size])))
    length = len(header) if random.random() < 0.8 else random.choice((0, 1, 2**31, 2**63, 100))
    content = length.to_bytes(8, "little") + header + original[8 + size :]
    return damaged(random, content) if random.random() < 0.1 else content


def changed_values(random: Random, original: bytes) -> bytes:
    """A safetensors file with other values in a place."""
    begin = 8 + int.from_bytes(original[:8], "little")
    at = random.randrange(begin, len(original) - 64)
    bits = random.choice((bytes(64), b"\xff" * 64, b"\x80\x7f" * 32, random.randbytes(64)))
    return original[:at] + bits + original[at + 64 :]


def changed_lines(random: Random, records: list[dict[str, Any]]) -> bytes:
    """A JSON Lines file with a few changed lines."""
    lines = [json.dumps(record).encode() for record in records]
    for _ in range(random.choice((1, 1, 2))):
        index = random.randrange(len(lines))
        lines[index] = encoded(random, changed(random, records[index]))
    content = random.choice((b"\n", b"\n", b"\r\n", b"\n\n \n")).join(lines)
    return damaged(random, content) if random.random() < 0.1 else content


def _change(random: Random, document: Any) -> Any:
    places = list(_places(document))
    if not places or random.random() < 0.02:
        return copy.deepcopy(random.choice(AWKWARD))
    holder, key = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        name = random.choice(("extra", "", "\x1b[2J", "x" * 5000, f"{key}s"))
        holder[name] = copy.deepcopy(holder[key])
    elif kind == 2 and isinstance(holder[key], int | float):
        value = holder[key]
        holder[key] = random.choice((value + 1, -value, value * 2, value // 2, 0, 0.5))
    elif kind == 3 and isinstance(holder[key], str):
        holder[key] += random.choice(("s", " ", "\n", "\0", "/..", "\u200b"))
    else:
        holder[key] = copy.deepcopy(random.choice(AWKWARD))
    return document


def _places(document: Any) -> Any:
    """Each ``(container, key)`` of a document."""
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])
