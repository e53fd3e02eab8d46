"""Shares of the operators in a decoding step's time, from ONNX Runtime's profile."""

from __future__ import annotations

import collections
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from otter_export.manifest import EngineManifest
from otter_export.runtime.executors.onnxruntime import (
    OnnxRuntimeExecutor,
    linked_data,
    open_session,
)
from otter_export.runtime.generation import generate
from otter_export.runtime.request import Request
from otter_export.runtime.step_engine import StepEngine

#: The channel's operators are named after its tensors, or after the rows that it hands out.
CHANNEL_MARKS = (".otter", "otter_present")


@dataclasses.dataclass(frozen=True)
class OperatorShare:
    """The operators of one type.

    Args:
        name: The type, after ONNX Runtime's fusions: ``Gemm``.
        calls: In one step.
        share: Of the time of all operators.
        channel: Of the type's own time, the share of those that the channel added.
    """

    name: str
    calls: float
    share: float
    channel: float


def operator_shares(
    directory: Path, manifest: EngineManifest, request: Request, threads: int | None
) -> list[OperatorShare]:
    """Profile the decoding steps of a request on an ``onnx`` engine on the CPU, loaded once more.

    Args:
        directory: The engine directory.
        manifest: Its ``engine.json``.
        request: What to generate; its last ``max_tokens - 1`` forward passes count.
        threads: Of a forward pass; None takes every core.

    Returns:
        The most expensive type first.

    Raises:
        EngineError: ONNX Runtime cannot load the model, or it fails.
        RequestError: The request does not fit the engine.
    """
    model = directory / manifest.model_file
    with tempfile.TemporaryDirectory() as folder:
        linked, prefix = linked_data(directory, manifest, model), Path(folder) / "profile"
        session = open_session(model, "cpu", threads, data=linked, profile=prefix)
        executor = OnnxRuntimeExecutor(manifest, session, "cpu")
        result = generate(StepEngine(directory, manifest, executor), request)[0]
        profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return shares_of(profile, max(1, result.forwards - 1))


def shares_of(profile: Iterable[Mapping[str, Any]], steps: int) -> list[OperatorShare]:
    """Shares over the last runs of a profile, the most expensive type first.

    Args:
        profile: ONNX Runtime's events: ``cat``, ``name``, ``ts`` and ``dur`` in microseconds.
        steps: How many runs count, from the end.
    """
    events = list(profile)
    begins = sorted(e["ts"] for e in events if e["name"] == "model_run")
    first = begins[-steps:][0]
    spent: dict[str, float] = collections.defaultdict(float)
    channel, calls = spent.copy(), collections.Counter[str]()
    for event in events:
        if event["cat"] != "Node" or event["ts"] < first:
            continue
        name, seconds = event["args"]["op_name"], float(event["dur"])
        spent[name] += seconds
        calls[name] += 1
        if any(mark in event["name"] for mark in CHANNEL_MARKS):
            channel[name] += seconds
    total = sum(spent.values()) or 1.0
    counted = min(steps, len(begins))
    return [
        OperatorShare(name, calls[name] / counted, part / total, channel[name] / (part or 1.0))
        for name, part in sorted(spent.items(), key=lambda item: -item[1])
    ]
