"""The ONNX file of an engine as onnx_ir reads it, and the files that hold its weights."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.boundary import errors_as
from otter_export.errors import EngineError


def load_model(path: Path) -> ir.Model:
    """Read a model file; weights stay in their files until `read_tensor` is asked for them.

    Raises:
        EngineError: It cannot be read, is no ONNX file, or names weights outside its directory.
    """
    with errors_as(EngineError, f"{path} is not a readable ONNX file"):
        model = ir.load(path)
    for location in external_files(model):
        name = PurePosixPath(location)
        if name.is_absolute() or ".." in name.parts:
            raise EngineError(f"{path} names weights in {location!r}, outside the engine")
    return model


def external_files(model: ir.Model) -> set[str]:
    """The files that hold a model's weights, relative to its directory."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return {os.fspath(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)}


def read_tensor(tensor: Any, directory: Path) -> npt.NDArray[Any]:
    """The values of an initializer, copied.

    onnx_ir refuses a file that a link leads out of the model's directory, and one with a second
    hard link. A cache of downloads and a model repository hold engines just so; therefore the links
    are resolved here. What may be read at all is what ``engine.json`` lists.

    Args:
        tensor: From `load_model`.
        directory: Where the model file is.

    Raises:
        EngineError: The file does not hold it.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return np.array(tensor.numpy())
    path = directory / tensor.location
    resolved = ir.ExternalTensor(
        path.resolve(),
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=str(tensor.name),
    )
    with errors_as(EngineError, f"{path} does not hold {tensor.name}"):
        array = np.array(resolved.numpy())
        resolved.release()  # else the whole file stays mapped, and in memory
    return array
