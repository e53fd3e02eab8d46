"""Loading a TensorRT engine: the right library, the plugin, the plan, and what can be wrong."""

from __future__ import annotations

import dataclasses
import importlib
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from otter_export import engine_io
from otter_export.engine_io import TensorSpec
from otter_export.errors import EngineError, MissingDependencyError
from otter_export.manifest import EngineManifest

#: The Python module that runs what a builder made; both have the same interface.
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
#: Where the plugin's compiled kernels are, inside the engine.
PLUGIN_FOLDER = "plugins"
#: TensorRT's names of the dtypes that this format uses.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "BOOL": "bool",
}
#: Longest text of TensorRT's own that goes into a message.
_TEXT = 300


@dataclasses.dataclass(frozen=True)
class LoadedPlan:
    """A deserialised engine.

    Args:
        trt: The module.
        runtime: TensorRT's runtime; it must outlive the engine.
        engine: TensorRT's engine.
        log: The logger of both; it must outlive them.
    """

    trt: Any
    runtime: Any
    engine: Any
    log: Any


def import_library(manifest: EngineManifest) -> Any:
    """The module that runs this engine, in the version that built it.

    Raises:
        MissingDependencyError: It is not installed.
        EngineError: Its version is another one, or the manifest names no builder.
    """
    builder = manifest.built_for.builder
    if builder not in MODULES:
        raise EngineError(
            f"engine.json: option builder is {builder!r}; accepted: {', '.join(MODULES)}. Build "
            "the engine again"
        )
    name, built_with = MODULES[builder], manifest.built_for.builder_version
    try:
        trt = importlib.import_module(name)
    except ModuleNotFoundError:
        if name == "tensorrt_rtx":
            raise MissingDependencyError(name, "trt", "running this engine") from None
        raise EngineError(
            f"this engine was built with tensorrt {built_with}, which is not installed here; "
            f"install it with: pip install tensorrt=={built_with or 'VERSION'}"
        ) from None
    # A wheel whose CUDA libraries are missing fails when it is imported.
    except (ImportError, OSError) as error:
        raise EngineError(f"{name} is installed but cannot be loaded: {_one_line(error)}") from None
    _check_version(name, str(trt.__version__), built_with)
    return trt


def _check_version(name: str, found: str, built_with: str) -> None:
    """A plan runs in the release that made it; the build number behind it does not matter."""
    if built_with and _release(found) != _release(built_with):
        package = "tensorrt-rtx-cu13" if name == "tensorrt_rtx" else name
        raise EngineError(
            f"this engine was built with {name} {built_with}, installed is {found}; install "
            f"{package}=={'.'.join(map(str, _release(built_with)))}, or build the engine again here"
        )


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in numbers.group().split("."))[:3] if numbers else ()


def check_capability(manifest: EngineManifest, capability: str) -> None:
    """Compare the device with what the engine was built for.

    Args:
        manifest: The engine's.
        capability: The device's, as ``8.9``.

    Raises:
        EngineError: The engine has no code for it.
    """
    built_for = manifest.built_for.compute_capabilities
    if built_for and capability not in built_for:
        raise EngineError(
            f"this GPU has compute capability {capability}; the engine was built for "
            f"{', '.join(built_for)}. Build it again with --sm {capability.replace('.', '')}"
        )


def load_plan(directory: Path, manifest: EngineManifest, trt: Any) -> LoadedPlan:
    """Register the plugin where the engine has one, and deserialise the plan.

    Raises:
        EngineError: The plan is damaged or TensorRT refuses it; its tensors are not as expected.
    """
    manifest.require_form(engine_io.IN_PLACE)
    manifest.require_sizes()
    if manifest.built_for.plugin_layers:
        from otter_export.plugins.tensorrt import register

        register(trt, directory / PLUGIN_FOLDER)
    log = _logger(trt)
    runtime = trt.Runtime(log)
    # Mapped, not read: TensorRT copies the weights to the GPU, and the host needs no second copy.
    with (directory / manifest.model_file).open("rb") as file, _mapped(file) as content:
        _check_validity(manifest, trt, runtime, content)
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(
            f"{trt.__name__} cannot load {manifest.model_file}: {log.problem()}. Build the engine "
            "again"
        )
    manifest.check_model(*_tensors(trt, engine))
    _check_aliases(manifest, engine)
    return LoadedPlan(trt, runtime, engine, log)


def _mapped(file: BinaryIO) -> mmap.mmap:
    """A file as memory.

    Raises:
        EngineError: It is empty.
    """
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise EngineError(f"{file.name} is empty: build the engine again") from None


def _check_validity(manifest: EngineManifest, trt: Any, runtime: Any, content: mmap.mmap) -> None:
    """TensorRT-RTX knows from the header what is wrong, without loading."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(content)
    if validity == trt.EngineValidity.INVALID:
        flags = trt.EngineInvalidityDiagnostics.__members__.items()
        found = [name for name, flag in flags if int(flag) & int(diagnostics)]
        reasons = ", ".join(name.lower().replace("_", " ") for name in found) or "no reason given"
        raise EngineError(
            f"{trt.__name__} {trt.__version__} refuses {manifest.model_file}: {reasons}. Build the "
            "engine again on, or for, this machine"
        )


def _tensors(trt: Any, engine: Any) -> tuple[Mapping[str, TensorSpec], Mapping[str, TensorSpec]]:
    """Inputs and outputs of an engine, by name."""
    inputs: dict[str, TensorSpec] = {}
    outputs: dict[str, TensorSpec] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(name).name
        shape = tuple("?" if d < 0 else int(d) for d in engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        spec = TensorSpec(name, _DTYPES.get(dtype, dtype.lower()), shape)
        (inputs if is_input else outputs)[name] = spec
    return inputs, outputs


def _check_aliases(manifest: EngineManifest, engine: Any) -> None:
    """Each cache output must be its input's memory, else binding both to one address is wrong."""
    if not hasattr(engine, "get_aliased_input_tensor"):
        return
    pasts = [spec for spec in manifest.io.inputs() if engine_io.is_cache(spec)]
    for past in pasts:
        present = engine_io.present_of(past)
        found = engine.get_aliased_input_tensor(present)
        if found != past:
            raise EngineError(
                f"{manifest.model_file}: output {present} is not updated in place of {past} (but "
                f"of {found}). Build the engine again"
            )


def _logger(trt: Any) -> Any:
    """A logger that keeps what TensorRT complains of, for messages, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._problems: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any thread."""
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self._problems.append(_one_line(message))
                del self._problems[:-8]

        def problem(self) -> str:
            """The first complaint since the last call: what follows is its consequence."""
            first = self._problems[0] if self._problems else "it gives no reason"
            self._problems.clear()
            return first

    return Log()


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:_TEXT]
