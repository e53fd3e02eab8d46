"""A model repository for Triton Inference Server, from an engine."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otter_export import __version__
from otter_export.arguments import integer
from otter_export.converters.triton.config import WARMUP, config_text
from otter_export.converters.triton.package import copy_package
from otter_export.errors import ConfigError, EngineError, OtterError
from otter_export.files import copy_regular, write_json
from otter_export.manifest import FILE_NAME as MANIFEST_FILE
from otter_export.manifest import EngineManifest, describe_file
from otter_export.runtime.executors import EXECUTORS
from otter_export.serving.settings import Settings

#: A directory that holds this file was written by `write_repository`.
MARKER = "repository.json"
#: Without the faults that were published for earlier ones (docs/security.md).
CONTAINER = "nvcr.io/nvidia/tritonserver:26.04-py3"
#: The Python backend before 24.11 loses strings with numpy 2, so every version gets this one.
NUMPY = "numpy==1.26.4"
_TEMPLATES = Path(__file__).resolve().parent / "model"
#: Directory of the one version.
_VERSION = "1"
#: Wheels of a model's backend, by the builder of its engine or else its target, and the provider.
_WHEELS = {
    ("onnx", "cpu"): ("onnxruntime",),
    ("onnx", "cuda"): ("onnxruntime-gpu",),
    ("tensorrt-rtx", "cuda"): ("tensorrt-rtx-cu13", "cuda-bindings"),
    ("tensorrt", "cuda"): ("tensorrt", "cuda-bindings"),
    # The graph that TensorRT was given, if the engine has it.
    ("tensorrt-rtx", "cpu"): ("onnxruntime",),
    ("tensorrt", "cpu"): ("onnxruntime",),
}
_TOP_FILES = ("README.md", "requirements.txt", MARKER)
#: Each is a process with an engine of its own.
_MOST_INSTANCES = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepositoryPlan:
    """A checked repository: what `write_repository` will write.

    Args:
        engine: The engine directory.
        manifest: Its ``engine.json``.
        name: Name of the model: letters, digits, ``_``, ``-`` and ``.``, at most 64.
        settings: Parameters of the model.
        instances: Processes that each load the engine.
        link: Make hard links to the engine's files instead of copies.
    """

    engine: Path
    manifest: EngineManifest
    name: str
    settings: Settings
    instances: int = 1
    link: bool = False

    @property
    def total_bytes(self) -> int:
        """Size of the engine."""
        return sum(file.size for file in self.manifest.files)

    @property
    def provider(self) -> str:
        """Where it runs: ``cpu`` or ``cuda``."""
        return self.settings.provider or self.manifest.execution_provider


def plan_repository(
    engine: Path,
    *,
    name: str = "otter",
    instances: int = 1,
    link: bool = False,
    **settings: Any,
) -> RepositoryPlan:
    """Check everything that can be wrong, before anything is written.

    Args:
        engine: An engine directory.
        name: See `RepositoryPlan`.
        instances: Also there.
        link: Also there.
        **settings: Fields of `Settings`; those left out or None fit the engine by themselves.

    Raises:
        EngineError: The directory is no engine, or one that cannot be served.
        ConfigError: A name or a setting is not valid for this engine.
    """
    manifest = EngineManifest.load(engine)
    drivable = dict.fromkeys(builder for builder, _ in _WHEELS)
    if manifest.target not in EXECUTORS or _builder(manifest) not in drivable:
        raise EngineError(
            f"{engine} is of target {manifest.target} by {_builder(manifest)}, which this model "
            f"cannot drive; accepted: {', '.join(drivable)}; TensorRT-LLM has a model "
            "of its own (docs/triton.md)"
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the model's name must be 1 to 64 letters, digits, '_', '-' or '.', got {name!r}"
        )
    if name in _TOP_FILES:
        raise ConfigError(f"{name!r} is the name of a file of the repository; choose another one")
    instances = integer("instances", instances, least=1, most=_MOST_INSTANCES, error=ConfigError)
    given = {key: value for key, value in settings.items() if value is not None}
    return RepositoryPlan(
        engine=engine,
        manifest=manifest,
        name=name,
        settings=_settings(manifest, given),
        instances=instances,
        link=link,
    )


def _settings(manifest: EngineManifest, given: dict[str, Any]) -> Settings:
    """Defaults give way to what was asked for; what was asked for and cannot be is an error."""
    most = manifest.max_sequence_length - 1
    if given.get("max_tokens", 1) > most:
        raise ConfigError(
            f"max_tokens is {given['max_tokens']}; this engine's sequences have room for {most} "
            "after the prompt"
        )
    if given.get("max_candidates", 1) > manifest.vocab_size:
        raise ConfigError(
            f"max_candidates is {given['max_candidates']}; the vocabulary has {manifest.vocab_size}"
        )
    limits = manifest.built_for.limits
    largest = {"max_candidates": limits.max_candidates, "max_batch_size": limits.max_batch_size}
    for key, limit in largest.items():
        if limit is None:
            continue
        if given.get(key, 0) > limit:
            raise ConfigError(f"{key} is {given[key]}; the engine was built for at most {limit}")
        given.setdefault(key, min(limit, getattr(Settings(), key)))
    for default, key in (("default_max_tokens", "max_tokens"), ("default_top_k", "max_candidates")):
        if key in given and default not in given:
            given[default] = min(given[key], getattr(Settings(), default))
    return dataclasses.replace(Settings().fitted(manifest), **given)


def write_repository(
    plan: RepositoryPlan, directory: Path, progress: Progress | None = None
) -> None:
    """Write a model repository into an empty directory.

    Args:
        plan: From `plan_repository`.
        directory: Where to write.
        progress: Called with the bytes of the engine that are done.

    Raises:
        EngineError: A file of the engine is not the one that was built.
        OtterError: A file cannot be linked.
    """
    model = directory / plan.name
    version = model / _VERSION
    version.mkdir(parents=True)
    kind = "KIND_CPU" if plan.provider == "cpu" else "KIND_GPU"
    config = config_text(plan.name, plan.manifest, plan.settings, f"{plan.instances} kind: {kind}")
    (model / "config.pbtxt").write_text(config, encoding="utf-8")
    (model / "warmup").mkdir()
    for name, data in WARMUP.items():
        (model / "warmup" / name).write_bytes(data)
    shutil.copy(_TEMPLATES / "model.py", version / "model.py")
    shutil.copy(_TEMPLATES / "probe.py", model / "probe.py")
    copy_package(version / "otter_export")
    _copy_engine(plan, version / "engine", progress)
    (directory / "requirements.txt").write_text(requirements(plan), encoding="utf-8")
    (directory / "README.md").write_text(_readme(plan), encoding="utf-8")
    write_json(directory / MARKER, _record(plan))


def _copy_engine(plan: RepositoryPlan, destination: Path, progress: Progress | None) -> None:
    """The listed files only: an engine's directory may hold leftovers of its owner."""
    for name, expected in [
        (MANIFEST_FILE, None),
        *((f.path, f.sha256) for f in plan.manifest.files),
    ]:
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # A link to a link would dangle where the engine's own is relative, as in a cache.
        source = (plan.engine / name).resolve()
        if plan.link:
            try:
                os.link(source, target)
            except OSError as error:
                raise OtterError(
                    f"cannot make a hard link to {source}: {error.strerror}; leave --link out to "
                    "copy it"
                ) from None
        else:
            copy_regular(source, target, error=EngineError)
        # What is deployed is what was built: the copy is read again, and its hash compared.
        if expected is not None and describe_file(destination, name, progress).sha256 != expected:
            raise EngineError(
                f"{plan.engine / name} is not what {MANIFEST_FILE} says (its SHA-256 differs): the "
                "engine is damaged; build it again"
            )


def requirements(plan: RepositoryPlan) -> str:
    """``requirements.txt``: the wheels that the model imports, of the versions installed here."""
    wheels = (*_WHEELS.get((_builder(plan.manifest), plan.provider), ()), "tokenizers")
    lines = [_pinned(wheel) for wheel in wheels]
    return "\n".join(["# What the model imports.", NUMPY, *lines]) + "\n"


def _builder(manifest: EngineManifest) -> str:
    """What made the model file: the TensorRT that did, or the target itself."""
    return manifest.built_for.builder or manifest.target


def _pinned(wheel: str) -> str:
    try:
        return f"{wheel}=={importlib.metadata.version(wheel)}"
    except importlib.metadata.PackageNotFoundError:
        return wheel


def _record(plan: RepositoryPlan) -> dict[str, Any]:
    return {
        "format": "otter-triton-repository",
        "version": 1,
        "otter_export": __version__,
        "model": plan.name,
        "engine": str(plan.engine),
        "instances": plan.instances,
        "settings": dataclasses.asdict(plan.settings),
    }


def _readme(plan: RepositoryPlan) -> str:
    template = string.Template((_TEMPLATES / "README.template.md").read_text(encoding="utf-8"))
    signal = plan.manifest.signals[0].name
    return template.substitute(
        name=plan.name,
        container=CONTAINER,
        signal=signal,
        base=plan.manifest.base.get("model_type", "decoder"),
        precision=plan.manifest.precision,
        target=plan.manifest.target,
        version=__version__,
        gpus="" if plan.provider == "cpu" else "--gpus=all ",
    )
