"""The base graph: built by mobius-onnx from config.json, its weights read lazily from safetensors.

The result is the *hub* form: plain ONNX ops (opset 24), activations ``[batch, step, d]``, weights
named after the Hugging Face parameters and stored ``[out, in]`` behind a Transpose, one Attention
per layer with past and present caches.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import mobius
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.checkpoint import BaseModel
from otter_export.errors import UnsupportedError
from otter_export.graph.emit import lazy_tensor

#: Hub dtypes by the name that mobius gives them.
DTYPES = {"f32": ir.DataType.FLOAT, "f16": ir.DataType.FLOAT16}


def base_graph(base: BaseModel, dtype: str = "f32") -> ir.Model:
    """Build the hub graph of a base model.

    Args:
        base: The base; only config.json and safetensors headers are read here.
        dtype: ``f32`` or ``f16``: type of weights and activations.

    Returns:
        The model; every weight is a lazy tensor that reads its safetensors when written.

    Raises:
        UnsupportedError: mobius cannot build this base, or names a weight that the base lacks.
    """
    with _quiet():
        try:
            package = mobius.build(
                str(base.directory),
                load_weights=False,
                dtype=dtype,
                execution_provider="onnx-standard",
            )
        except (ValueError, KeyError, NotImplementedError, AttributeError, TypeError) as error:
            raise UnsupportedError(
                f"mobius-onnx {mobius.__version__} cannot build a graph for {base.directory} "
                f"(model_type {base.dimensions.model_type!r}): {error}"
            ) from error
    model = package["model"]
    _attach_weights(model, base, DTYPES[dtype])
    return model


def _attach_weights(model: ir.Model, base: BaseModel, dtype: ir.DataType) -> None:
    """Give every empty initializer a lazy tensor that reads the base's safetensors."""
    projections = {s.graph_name: s for s in base.sites.projections}
    head = f"{base.family.output_head}.weight"
    embedding = f"{base.family.embeddings[0][0]}.weight"
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        stem, _, kind = str(name).rpartition(".")
        site = projections.get(stem)

        def make(
            name: str = str(name), kind: str = kind, stem: str = stem
        ) -> npt.NDArray[np.float32]:
            site = projections.get(stem)
            if site is not None and kind == "weight":
                return base.projection(site)
            if site is not None:
                bias = base.projection_bias(site)
                if bias is None:
                    raise UnsupportedError(f"the base graph has {name}, the weights have no bias")
                return bias
            if name == head and not base.has(head):
                return base.float32(embedding)
            return base.float32(name)

        if site is None and not base.has(str(name)) and name != head:
            raise UnsupportedError(
                f"the base graph of {base.directory} has the weight {name}, which its safetensors "
                "lack; the family table and mobius-onnx disagree about this base"
            )
        assert value.shape is not None
        shape = [int(d) for d in value.shape.dims]  # type: ignore[arg-type]
        value.const_value = lazy_tensor(str(name), dtype, shape, make)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the builder's progress and its notes about initializers without values."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
