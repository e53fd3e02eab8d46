"""Checks of what an engine is made of: its files, its checkpoint, its weights."""

from __future__ import annotations

import dataclasses

from otter_export.converters.engine_directory import source_of
from otter_export.evaluation.check import CheckResult, none_may_differ
from otter_export.evaluation.model_file import external_files, load_model
from otter_export.evaluation.stored_weights import mismatches
from otter_export.evaluation.subject import Subject
from otter_export.manifest import FILE_NAME, describe_file
from otter_export.tokenizer_file import FILE_NAME as TOKENIZER_FILE


def files(subject: Subject) -> CheckResult:
    """Every file has the SHA-256 of engine.json, and every file that is read is listed there."""
    listed = {file.path: file for file in subject.manifest.files}
    wrong = [
        f"{name} is not what was built: its SHA-256 differs"
        for name, file in listed.items()
        if describe_file(subject.directory, name).sha256 != file.sha256
    ]
    if not wrong:
        wrong = [
            f"{name} is read by the engine and not listed in {FILE_NAME}"
            for name in sorted(_read_files(subject) - set(listed))
        ]
    reason = "an engine is its files, bit for bit"
    return none_may_differ("files", "files that differ", wrong, reason, files=len(listed))


def _read_files(subject: Subject) -> set[str]:
    """What the runtime opens: the model, its external data, the tokenizer."""
    model = load_model(subject.directory / subject.manifest.model_file)
    return {subject.manifest.model_file, TOKENIZER_FILE, *external_files(model)}


def source(subject: Subject) -> CheckResult:
    """Checkpoint and base are the ones that the engine was built from."""
    recorded = dict(subject.manifest.source.get("sha256") or {})
    actual = source_of(subject.checkpoint)["sha256"]
    wrong = [
        f"{name} of {subject.checkpoint.directory} is not what the engine was built from"
        for name, digest in actual.items()
        if recorded.get(name) != digest
    ]
    sizes = dataclasses.asdict(subject.checkpoint.base.dimensions)
    wrong += [
        f"{name} of the base {subject.checkpoint.base.directory} is {sizes[name]}, the engine was "
        f"built with {value}"
        for name, value in subject.manifest.base.items()
        if name in sizes and sizes[name] != value
    ]
    reason = "parity with another checkpoint means nothing"
    return none_may_differ("source", "differences", wrong, reason, files=len(actual))


def finite(subject: Subject) -> CheckResult:
    """No weight of the checkpoint, inserted or base, is NaN or infinite."""
    wrong = [f"{name} holds NaN or infinity" for name in subject.checkpoint.non_finite()]
    count = len(subject.checkpoint.tensors) + len(subject.checkpoint.base.tensors)
    reason = "one such weight spoils every output"
    return none_may_differ("finite", "tensors with NaN or infinity", wrong, reason, tensors=count)


def weights(subject: Subject) -> CheckResult:
    """The engine's weights are the checkpoint's: equal, or as near as their precision allows."""
    found = mismatches(subject.stored, subject.checkpoint)
    wrong = [f"{name} {problem}" for name, problem in found]
    reason = "float32 is equal, float16 rounded once, int8 and int4 within half a step"
    count = len(subject.stored.weights)
    return none_may_differ("weights", "tensors that differ", wrong, reason, tensors=count)
