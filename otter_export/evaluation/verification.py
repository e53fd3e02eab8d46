"""Verification of an engine: the list of checks, and their run."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otter_export.boundary import errors_as
from otter_export.checkpoint import Checkpoint
from otter_export.errors import (
    EngineError,
    MissingDependencyError,
    OtterError,
    RequestError,
    VerificationError,
)
from otter_export.evaluation import decoding_checks, file_checks, parity_checks, signal_checks
from otter_export.evaluation.check import CheckResult, not_run
from otter_export.evaluation.kept_graph import verifiable
from otter_export.evaluation.subject import Options, Subject
from otter_export.manifest import FILE_NAME, EngineManifest


@dataclasses.dataclass(frozen=True)
class Check:
    """One entry of the list.

    Args:
        name: As in the report.
        run: The check.
        essential: If it fails, nothing after it is worth measuring.
        quick: Part of a quick verification.
    """

    name: str
    run: Callable[[Subject], CheckResult]
    essential: bool = False
    quick: bool = True


#: In order. Checks that run engines come before those that need torch or a second graph, so that
#: memory holds one large model at a time.
CHECKS = (
    Check("files", file_checks.files, essential=True),
    Check("source", file_checks.source, essential=True),
    Check("finite", file_checks.finite, essential=True),
    Check("weights", file_checks.weights),
    Check("tree step", decoding_checks.tree_step),
    Check("prefill", decoding_checks.chunked_prefill),
    Check("weight 0", decoding_checks.weight_zero),
    Check("forward passes", decoding_checks.forward_passes),
    Check("drafts", signal_checks.drafts),
    Check("experts", signal_checks.experts),
    Check("values", signal_checks.values),
    Check("logits", parity_checks.logits),
    Check("signals", parity_checks.signals),
    Check("exact kernels", parity_checks.exact_kernels, quick=False),
    Check("precision", parity_checks.precision),
    Check("base", parity_checks.base, quick=False),
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a verification found."""

    directory: Path
    checkpoint: Path
    precision: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(r.name for r in self.results if r.passed is False)

    def raise_for_failures(self) -> None:
        """Raise `VerificationError` if a check failed."""
        if self.failed:
            ran = sum(r.passed is not None for r in self.results)
            raise VerificationError(
                f"{self.directory}: {len(self.failed)} of {ran} checks failed: "
                f"{', '.join(self.failed)}; {self.cause}"
            )

    @property
    def cause(self) -> str:
        """What the first failure found, or what the passed checks leave as its cause."""
        failed = next(result for result in self.results if result.passed is False)
        if failed.notes:
            return failed.notes[0]
        known = {result.name: result.passed for result in self.results}
        if known.get("weights") and failed.name in ("logits", "signals"):
            return (
                "the engine stores the checkpoint's weights, so it computes otherwise: a setting "
                "of config.json was changed since the build, or the engine's kernels round"
            )
        return f"{failed.what} is {failed.measured}"

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "engine": str(self.directory),
            "checkpoint": str(self.checkpoint),
            "precision": self.precision,
            "passed": not self.failed,
            "checks": [result.to_json() for result in self.results],
        }


def verify(
    directory: Path,
    checkpoint: Path | None,
    options: Options,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Run all checks of an engine against its checkpoint.

    Args:
        directory: The engine.
        checkpoint: What it was built from; None looks beside the engine.
        options: Prompts and thoroughness.
        progress: Called with the name of each check as it starts.

    Raises:
        OtterError: The engine or the checkpoint cannot be opened at all.
    """
    _require_reference()
    manifest = EngineManifest.load(directory)
    source = find_checkpoint(directory, manifest) if checkpoint is None else checkpoint
    manifest, options = verifiable(directory, manifest, options)
    subject = Subject(directory, manifest, Checkpoint.open(source), options)
    results: list[CheckResult] = []
    stopped: str | None = None
    for check in CHECKS:
        if progress is not None:
            progress(check.name)
        if stopped is not None:
            results.append(not_run(check.name, f"the check '{stopped}' failed"))
        elif options.quick and not check.quick:
            results.append(not_run(check.name, "left out by --quick"))
        else:
            results.append(_run(check, subject))
            if check.essential and not results[-1].passed:
                stopped = check.name
    return Report(directory, source, manifest.precision, tuple(results))


def _run(check: Check, subject: Subject) -> CheckResult:
    """Run a check; an engine that fails in it has failed it."""
    started = time.perf_counter()
    try:
        # A model whose hashes agree may still hold anything, and numpy and torch say so in their
        # own ways.
        with errors_as(EngineError, "the check could not be made"):
            result = check.run(subject)
    except (MissingDependencyError, RequestError):
        raise
    except OtterError as error:
        result = CheckResult(check.name, False, notes=(str(error),))
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def _is_name(name: str) -> bool:
    """Whether a recorded name is that of a directory, and no path."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and "\0" not in name and Path(name).name == name


def _require_reference() -> None:
    """Raise before the work starts if the torch reference cannot be had."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "build", "the torch reference")


def find_checkpoint(directory: Path, manifest: EngineManifest) -> Path:
    """The checkpoint beside an engine that bears the recorded name and has the recorded hashes.

    Raises:
        EngineError: There is none; says how to name it.
    """
    name = manifest.source.get("checkpoint")
    hint = f"name it: otter-export verify {directory} --checkpoint CKPT"
    if not isinstance(name, str) or not _is_name(name):
        raise EngineError(f"{directory / FILE_NAME} does not name its checkpoint; {hint}")
    beside = directory.resolve().parent / name
    if not beside.is_dir():
        raise EngineError(f"the checkpoint {name!r} of {directory} is not at {beside}; {hint}")
    subject = Subject(directory, manifest, Checkpoint.open(beside), Options(()))
    if not file_checks.source(subject).passed:
        raise EngineError(
            f"{beside} is not the checkpoint that {directory} was built from (other hashes); {hint}"
        )
    return beside
