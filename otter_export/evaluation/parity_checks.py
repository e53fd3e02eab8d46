"""Checks of an engine against the torch reference, and of its base against the unwidened graph."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from otter_export.converters.external_data import MODEL_FILE, save_model
from otter_export.engine_io import LOGITS
from otter_export.evaluation import limits, parity
from otter_export.evaluation.check import CheckResult, Limit, decide, not_run, shortened
from otter_export.evaluation.graph_session import base_logits
from otter_export.evaluation.parity import Disagreement, Floats, difference, top_agreement
from otter_export.evaluation.steps import stack
from otter_export.evaluation.subject import CANDIDATES, Subject
from otter_export.graph.pipeline import lower, onnxruntime
from otter_export.runtime.executors.onnxruntime import open_session

#: Prompts on which the base is compared, each as a whole and as a step of candidates.
_BASE_PROMPTS = 2


def logits(subject: Subject) -> CheckResult:
    """The engine's logits are those of the reference with the engine's own weights."""
    values = stack(subject.outputs)[LOGITS]
    reference = stack([r.stored for r in subject.references])[LOGITS]
    found = difference(values, reference)
    mean = subject.rounds_activations
    rows = parity.disagreements(values, reference)
    # A best token may differ where the reference itself holds the two closer than the engine errs.
    ties = [row for row in rows if row.margin <= found.maximum]
    wrong = [row for row in rows if row.margin > found.maximum]
    result = decide(
        "logits",
        f"engine against torch, {'mean' if mean else 'max'} / spread",
        found.relative_mean if mean else found.relative,
        limits.logits(subject.manifest),
        {
            "max": found.maximum,
            "mean": found.mean,
            "top-1": top_agreement(values, reference, 1),
            "top-10": top_agreement(values, reference, 10),
            "near-ties": len(ties),
            "rows": len(values),
        },
        shortened([*_described(subject, "disagreement", wrong)])
        + shortened([*_described(subject, "near-tie", ties)]),
    )
    return dataclasses.replace(result, passed=result.passed and not wrong)


def signals(subject: Subject) -> CheckResult:
    """Every signal is the reference's."""
    values, reference = stack(subject.outputs), stack([r.stored for r in subject.references])
    names = [signal.name for signal in subject.manifest.signals if signal.name in values]
    if not names:
        return not_run("signals", "the engine has no output for its signals")
    found = {name: difference(values[name], reference[name]) for name in names}
    mean = subject.rounds_activations
    measured = {n: d.relative_mean if mean else d.relative for n, d in found.items()}
    numbers: dict[str, float] = {}
    for name, one in found.items():
        numbers |= {f"{name} max": one.maximum, f"{name} mean": one.mean}
    return decide(
        "signals",
        f"engine against torch, {'mean' if mean else 'max'} / spread, the worst",
        max(measured.values()),
        limits.logits(subject.manifest),
        numbers,
    )


def exact_kernels(subject: Subject) -> CheckResult:
    """The graph itself is right: without rounded activations its outputs are the reference's."""
    if not subject.rounds_activations:
        return not_run("exact kernels", "the engine's kernels do not round activations")
    values = stack(subject.exact_outputs)
    reference = stack([r.stored for r in subject.references[: len(subject.exact_outputs)]])
    found = {name: difference(values[name], reference[name]) for name in values}
    return decide(
        "exact kernels",
        "graph with float32 activations against torch, max / spread",
        max(one.relative for one in found.values()),
        limits.arithmetic(subject.manifest),
        {f"{name} max": one.maximum for name, one in found.items()},
    )


def precision(subject: Subject) -> CheckResult:
    """What storing weights in fewer bits costs, against the checkpoint in float32."""
    if subject.manifest.precision == "fp32":
        return not_run("precision", "the weights are stored as they are")
    values = stack(subject.outputs)
    reference = stack([r.checkpoint for r in subject.references])
    divergence = parity.kl_divergence(reference[LOGITS], values[LOGITS])
    uniform = float(parity.kl_from_uniform(reference[LOGITS]).mean())
    numbers = {
        "KL mean": float(divergence.mean()),
        "KL max": float(divergence.max()),
        "top-1": top_agreement(values[LOGITS], reference[LOGITS], 1),
        "top-10": top_agreement(values[LOGITS], reference[LOGITS], 10),
    }
    for name in values:
        one = difference(values[name], reference[name])
        numbers[f"{name} mean / spread"] = one.relative_mean
    return decide(
        "precision",
        "KL from the float32 checkpoint / KL of a uniform guess",
        numbers["KL mean"] / uniform if uniform else np.inf,
        limits.divergence(subject.manifest),
        numbers,
    )


def base(subject: Subject) -> CheckResult:
    """Base logits are those of the unwidened graph, lowered by the same passes, bit for bit."""
    manifest = subject.manifest
    if manifest.target != "onnx":
        return not_run("base", "the unwidened graph has another cache form than this engine")
    prompts = subject.prompt_ids[:_BASE_PROMPTS]
    subject.release_engines()
    graph = open_session(subject.directory / manifest.model_file, subject.provider)
    widened = [base_logits(graph, prompt, CANDIDATES) for prompt in prompts]
    del graph
    with tempfile.TemporaryDirectory(prefix="otter-verify-") as name:
        pipeline = onnxruntime(manifest.execution_provider)
        alone = lower(subject.checkpoint, pipeline, manifest.precision, widened=False)
        save_model(alone, Path(name))
        graph = open_session(Path(name) / MODEL_FILE, subject.provider)
        expected = [base_logits(graph, prompt, CANDIDATES) for prompt in prompts]
        del graph
    wrong = [_differing(a, b) for a, b in zip(_flat(widened), _flat(expected), strict=True)]
    return decide(
        "base",
        "logits that differ from the unwidened graph's",
        sum(wrong),
        Limit(0, "no base value is computed from the channel"),
        {"logits": sum(a.size for a in _flat(expected)), "forms": 2},
    )


def _flat(forms: Sequence[Sequence[Floats]]) -> list[Floats]:
    return [array for prompt in forms for array in prompt]


def _differing(a: Floats, b: Floats) -> int:
    """How many numbers have other bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return max(a.size, b.size)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return int((np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)).sum())


def _described(subject: Subject, kind: str, rows: Sequence[Disagreement]) -> Iterator[str]:
    """``near-tie: prompt 2, position 5: ' the' over ' a' by 0.0001``."""
    starts = np.cumsum([0, *(len(ids) for ids in subject.prompt_ids)])
    for row in sorted(rows, key=lambda r: -r.margin):
        prompt = int(np.searchsorted(starts, row.row, side="right")) - 1
        expected, got = (subject.tokenizer.decode([t]) for t in (row.expected, row.found))
        yield (
            f"{kind}: prompt {prompt + 1}, position {row.row - starts[prompt]}: "
            f"torch has {expected!r} ({row.expected}) above {got!r} ({row.found}) by "
            f"{row.margin:.2g}"
        )
