"""A TensorRT network from an ONNX file, its build settings, and its plan on the disk.

One source for ``tensorrt`` and ``tensorrt_rtx``, whose Python API is the same; the module is passed
in as ``trt``. Runs in the builder's own process (`otter_export.converters.tensorrt.worker`).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export.converters.tensorrt.job import Job, Profile
from otter_export.errors import EngineError

#: TensorRT's names of dtypes, in this project's words.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
#: Complaints of the library that go into an error.
_SHOWN = 3


class Complaints:
    """The errors that a library logs, which say more than its return values."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __str__(self) -> str:
        return "; ".join(self.lines[:_SHOWN]) or "it gives no reason"


def make_logger(trt: Any, complaints: Complaints) -> Any:
    """A TensorRT logger that keeps errors and drops the rest."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                complaints.lines.append(" ".join(message.split()))

    return Logger()


def parse(
    trt: Any, builder: Any, logger: Any, model: Path, complaints: Complaints
) -> tuple[Any, Any]:
    """Parse an ONNX file into a strongly typed network.

    Weights stay in the file: the parser maps external data instead of copying it.

    Returns:
        The network, and the parser, which holds the mapped weights and must outlive the build.

    Raises:
        EngineError: TensorRT refuses the graph; names the node.
    """
    # The only kind of network in TensorRT 11, a flag before.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):
        _allow_unfused_attention(trt, network)
        return network, parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [f"{e.node_operator()} {e.node_name()}: {' '.join(e.desc().split())}" for e in errors]
    reason = "; ".join(lines[:_SHOWN]) or str(complaints)
    raise EngineError(f"{trt.__name__} {trt.__version__} refuses the graph: {reason}")


def _allow_unfused_attention(trt: Any, network: Any) -> None:
    """Let products and a softmax stand in where no kernel fits, as for a single query head.

    Otherwise TensorRT refuses the whole network; attentions that have a kernel keep it.
    """
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type.name == "ATTENTION_OUTPUT":
            layer.__class__ = trt.IAttentionOutputLayer  # Python sees a plain ILayer
            layer.attention.decomposable = True


def configure(trt: Any, builder: Any, network: Any, job: Job, monitor: Any) -> Any:
    """Profiles, compute capabilities and progress of a build."""
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    if job.compute_capabilities:
        config.num_compute_capabilities = len(job.compute_capabilities)
        for index, capability in enumerate(job.compute_capabilities):
            value = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
            if not config.set_compute_capability(value, index):
                raise EngineError(f"{trt.__name__} refuses compute capability {capability}")
    for profile in job.profiles:
        _add_profile(builder, config, network, profile)
    return config


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile) -> None:
    made = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        ranges = [_shape(tensor, sizes) for sizes in (profile.least, profile.best, profile.most)]
        if ranges[0] != ranges[2] or -1 in tuple(tensor.shape):
            made.set_shape(tensor.name, *ranges)
    if config.add_optimization_profile(made) < 0:
        raise EngineError(f"TensorRT refuses the profile {profile.name!r}")


def _shape(tensor: Any, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape with its named dimensions set."""
    return tuple(
        sizes[tensor.get_dimension_name(axis)] if size == -1 else int(size)
        for axis, size in enumerate(tensor.shape)
    )


def write_plan(trt: Any, builder: Any, network: Any, config: Any, path: Path) -> bool:
    """Build, and stream the plan to a file: no copy of it is held in memory.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("wb") as file:
        writer, failures = _stream_writer(trt, file.write)
        done = bool(builder.build_serialized_network_to_stream(network, config, writer))
    if failures:
        raise failures[0]
    return done


def _stream_writer(trt: Any, write: Callable[[bytes], int]) -> tuple[Any, Sequence[OSError]]:
    """A TensorRT stream; an exception must not pass through its C++ code, so it is kept."""
    failures: list[OSError] = []

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                return write(data)
            except OSError as error:
                failures.append(error)
                return 0

    return Writer(), failures


def layer_counts(network: Any) -> dict[str, int]:
    """Number of layers by type, the most frequent first."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return dict(collections.Counter(layer.type.name for layer in layers).most_common())


def tensors(count: int, get: Callable[[int], Any]) -> list[tuple[str, str, list[int]]]:
    """``(name, dtype, shape)`` of a network's inputs or outputs."""
    found = []
    for tensor in map(get, range(count)):
        dtype = tensor.dtype.name
        found.append(
            (tensor.name, _DTYPES.get(dtype, dtype.lower()), [int(n) for n in tensor.shape])
        )
    return found
