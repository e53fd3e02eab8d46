"""Requests that no server should accept: drawn from a fixed seed, none of them valid.

`http_bodies` go to ``/generate`` as they are; `grpc_requests` are messages as a client's bug would
make them: wrong types, shapes and bytes, contradictions, extreme numbers, or nothing at all.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tritonclient.grpc import service_pb2

Fields = dict[str, Any]

#: Values that the field must not have, whatever else is in the request; JSON as a client sends it.
_WRONG: dict[str, tuple[Any, ...]] = {
    "text_input": (None, 3, True, {"a": 1}, ["ŵ3", "ŵ4"], [], "ŵ3 " * 3000),
    "input_ids": ([-1], [128], [2**62], [1.5], ["x"], [], "ŵ3", [3] * 3000, {}),
    "stream": (2, "yes", None, [True, False], {}),
    "max_tokens": (0, -1, 2**31, 2**63, 1.5, "8", None, [1, 2], 1_000_000),
    "method": ("", "nothing", "args_greedy", "ARGS-GREEDY", 7, None, "plain\u0000", "p" * 9999),
    "top_k": (0, -5, 129, 65, 2**40, 0.5, "8", None, [8, 8]),
    "reward_weight": ("1", None, {}, [1.0, 2.0], True, 1e31, -1e39),
    "gate": (-0.5, "open", None, [1.0, 1.0], 1e39),
    "temperature": (-0.1, "warm", None, [1.0, 1.0], 1e38, -1e300),
    "top_p": (0.0, -1.0, 1.5, "all", None, [0.5, 0.5]),
    "seed": (-1, 2**64, 1.5, "seed", None, [1, 2]),
    "stop_words": ([1], ["x"] * 99, "y" * 999, {}, [None]),
    "signal": ("nothing", "", 4, None, ["reward", "reward"]),
    "return_candidates": ("no", 3, None, [True, True]),
    "deadline_ms": (0, -3, 1.5, "soon", None, 2**31),
    "weights": (["reward"], ["reward=much"], ["nothing=1"], "=1", [2], ["reward=1"] * 17),
    "minimum": (["reward"], ["nothing=1"], [None], ["reward=1", "reward=2"]),
    "repetition_penalty": (0.0, -1.0, 1e39, "none", None),
    "frequency_penalty": (2.5, "none", None),
    "presence_penalty": (-2.5, [], None),
    "banned_tokens": ([-1], [128], ["x"], [1.5], [3] * 1025, {}),
    "min_tokens": (-1, 1.5, "8", None),
}
#: A right value of the field, to which wrong ones of others are added.
_RIGHT: Fields = {"max_tokens": 2, "top_k": 4, "reward_weight": 1.0, "seed": 1, "stream": False}
#: Names that are near an input's, as a typing error makes them.
_MISSPELT = ("text_imput", "max_token", "topk", "reward_wieght", "temprature", "stop_word", "SEED")


def http_bodies(count: int, seed: int) -> Iterator[bytes]:
    """Bodies for ``/generate`` that must be refused."""
    draw = random.Random(seed)
    makers = (_wrong_value, _wrong_value, _wrong_value, _contradiction, _misspelt, _no_json)
    for _ in range(count):
        yield draw.choice(makers)(draw)


def _some_right(draw: random.Random) -> Fields:
    kept = {name: value for name, value in _RIGHT.items() if draw.random() < 0.4}
    return {"text_input": "ŵ3 ŵ4", **kept}


def _wrong_value(draw: random.Random) -> bytes:
    name = draw.choice(list(_WRONG))
    fields = _some_right(draw)
    if name == "input_ids":
        del fields["text_input"]
    return json.dumps({**fields, name: draw.choice(_WRONG[name])}).encode()


def _contradiction(draw: random.Random) -> bytes:
    fields = draw.choice(
        (
            {},
            {"max_tokens": 4},
            {"text_input": "ŵ3", "input_ids": [3]},
            {"text_input": "ŵ3", "method": "plain", "reward_weight": 2.0},
            {"text_input": "ŵ3", "method": "args-greedy", "temperature": 0.5},
            {"text_input": "ŵ3", "method": "args-greedy", "top_p": 0.5},
        )
    )
    return json.dumps(fields).encode()


def _misspelt(draw: random.Random) -> bytes:
    return json.dumps({**_some_right(draw), draw.choice(_MISSPELT): 1}).encode()


def _no_json(draw: random.Random) -> bytes:
    whole = json.dumps(_some_right(draw), ensure_ascii=False).encode()
    return draw.choice(
        (
            whole[: draw.randint(1, len(whole) - 1)],
            b"[" * draw.randint(1, 5000),
            draw.randbytes(draw.randint(1, 200)),
            b"null",
            b"[]",
            b'"text_input"',
            whole.replace("ŵ".encode(), b"\xff"),
        )
    )


def grpc_requests(count: int, seed: int) -> Iterator[service_pb2.ModelInferRequest]:
    """Messages for the gRPC stream that must be refused."""
    draw = random.Random(seed)
    makers: tuple[Callable[[random.Random], service_pb2.ModelInferRequest], ...] = (
        _wrong_type,
        _wrong_shape,
        _wrong_bytes,
        _not_utf8,
        _extreme,
        _wrong_names,
    )
    for _ in range(count):
        yield draw.choice(makers)(draw)


def message(*tensors: tuple[str, str, list[int], bytes]) -> service_pb2.ModelInferRequest:
    """A message of ``(name, type, shape, raw content)`` tensors."""
    request = service_pb2.ModelInferRequest(model_name="otter")
    for name, kind, shape, content in tensors:
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(content)
    return request


def text(value: bytes = b"w") -> bytes:
    """A BYTES tensor's content: length and bytes."""
    return struct.pack("<I", len(value)) + value


_PROMPT = ("text_input", "BYTES", [1, 1], text("ŵ3".encode()))
#: Fixed-size inputs with their types and sizes in bytes.
_NUMBERS = {
    "max_tokens": ("INT32", 4),
    "top_k": ("INT32", 4),
    "reward_weight": ("FP32", 4),
    "gate": ("FP32", 4),
    "temperature": ("FP32", 4),
    "seed": ("UINT64", 8),
    "stream": ("BOOL", 1),
}
_SIZES = {"INT8": 1, "INT32": 4, "INT64": 8, "UINT64": 8, "FP32": 4, "FP64": 8, "BOOL": 1}


def _wrong_type(draw: random.Random) -> service_pb2.ModelInferRequest:
    name, (right, _) = draw.choice(list(_NUMBERS.items()))
    kind = draw.choice([k for k in _SIZES if k != right])
    return message(_PROMPT, (name, kind, [1, 1], bytes(_SIZES[kind])))


def _wrong_shape(draw: random.Random) -> service_pb2.ModelInferRequest:
    name, (kind, size) = draw.choice(list(_NUMBERS.items()))
    shape = draw.choice([[2], [1], [1, 2], [0, 1], [1, 0], [1, 1, 1], [-1, 1], [1, 2**40], []])
    count = 1
    for dimension in shape:
        count *= dimension
    content = bytes(size * count) if 0 <= count < 100 else bytes(size)
    return message(_PROMPT, (name, kind, shape, content))


def _wrong_bytes(draw: random.Random) -> service_pb2.ModelInferRequest:
    if draw.random() < 0.5:
        name, (kind, size) = draw.choice(list(_NUMBERS.items()))
        content = draw.randbytes(draw.choice([n for n in range(20) if n != size]))
        return message(_PROMPT, (name, kind, [1, 1], content))
    content = draw.choice(
        (
            b"",
            b"\x05",
            struct.pack("<I", 9) + b"short",
            struct.pack("<I", 2**32 - 1) + b"w3",
            text(b"w3") + b"left over",
            text(b"w3") + text(b"w4"),
        )
    )
    return message(("text_input", "BYTES", [1, 1], content))


def _not_utf8(draw: random.Random) -> service_pb2.ModelInferRequest:
    bad = text(draw.choice((b"\xff", b"\xc3", b"w3 \x80", "ŵ".encode()[:1], b"\xed\xa0\x80")))
    name = draw.choice(("text_input", "method", "stop_words", "signal"))
    if name == "text_input":
        return message((name, "BYTES", [1, 1], bad))
    return message(_PROMPT, (name, "BYTES", [1, 1], bad))


def _extreme(draw: random.Random) -> service_pb2.ModelInferRequest:
    nan, infinite = float("nan"), float("inf")
    name, kind, content = draw.choice(
        (
            ("reward_weight", "FP32", struct.pack("<f", draw.choice((nan, infinite, -infinite)))),
            ("temperature", "FP32", struct.pack("<f", draw.choice((nan, infinite, -1.0)))),
            ("top_p", "FP32", struct.pack("<f", draw.choice((nan, 0.0, 1.5)))),
            ("max_tokens", "INT32", struct.pack("<i", draw.choice((0, -(2**31), 2**31 - 1)))),
            ("top_k", "INT32", struct.pack("<i", draw.choice((0, -(2**31), 2**31 - 1)))),
        )
    )
    return message(_PROMPT, (name, kind, [1, 1], content))


def _wrong_names(draw: random.Random) -> service_pb2.ModelInferRequest:
    return draw.choice(
        (
            message(),
            message(("nothing", "INT32", [1, 1], bytes(4))),
            message(_PROMPT, ("nothing", "INT32", [1, 1], bytes(4))),
            message(_PROMPT, ("input_ids", "INT64", [1, 1], bytes(8))),
            message(("input_ids", "INT64", [1, 0], b"")),
            message(("input_ids", "INT64", [1, 1], struct.pack("<q", 2**62))),
            message(_PROMPT, ("method", "BYTES", [1, 1], text(b"nothing"))),
        )
    )
