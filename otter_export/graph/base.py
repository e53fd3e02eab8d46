"""The base graph: built by mobius-onnx from config.json, its weights read lazily from safetensors.

The result is the *hub* form: plain ONNX ops (opset 24), activations ``[batch, step, d]``, weights
named after the Hugging Face parameters and stored ``[out, in]`` behind a Transpose, one Attention
per layer with past and present caches.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mobius
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.boundary import errors_as
from otter_export.checkpoint import BaseModel
from otter_export.errors import UnsupportedError
from otter_export.family import ProjectionSite
from otter_export.graph.emit import Make, lazy_tensor, static_shape
from otter_export.graph.weights import multiplied_weight

#: Hub dtypes by the name that mobius gives them.
DTYPES = {
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def base_graph(base: BaseModel, dtype: str = "f32", positions: int | None = None) -> ir.Model:
    """Build the hub graph of a base model.

    Args:
        base: The base; only config.json and safetensors headers are read here.
        dtype: One of `DTYPES`: type of weights and activations.
        positions: Rows of the rotary tables; None takes all of the base's positions. Learned
            positions are a weight and stay whole.

    Returns:
        The model; every weight is a lazy tensor that reads its safetensors when written.

    Raises:
        UnsupportedError: mobius cannot build this base faithfully, or names a weight that the base
            lacks.
    """
    with _quiet(), tempfile.TemporaryDirectory() as directory:
        # The directory's own config.json may say what the weights do not.
        config = _config(base, positions)
        Path(directory, "config.json").write_text(json.dumps(config), encoding="utf-8")
        what = (
            f"mobius-onnx {mobius.__version__} cannot build a graph for {base.directory} "
            f"(model_type {base.dimensions.model_type!r})"
        )
        with errors_as(UnsupportedError, what):
            package = mobius.build(
                directory,
                load_weights=False,
                dtype=dtype,
                execution_provider="onnx-standard",
            )
    model: ir.Model = package["model"]
    check_rotary_tables(model, base, positions)
    if base.dimensions.tie_word_embeddings:
        _share_tied_head(model, base)
    _add_missing_biases(model, base, DTYPES[dtype])
    _attach_weights(model, base, DTYPES[dtype])
    return model


def _config(base: BaseModel, positions: int | None) -> dict[str, Any]:
    """What mobius-onnx reads; the scalings that are built do not depend on the last position."""
    key = base.family.config_keys.get("max_position_embeddings", "max_position_embeddings")
    learned = key in (rows for _, rows in base.family.embeddings)
    config = base.library_config
    return config if positions is None or learned else {**config, key: positions}


def check_rotary_tables(model: ir.Model, base: BaseModel, positions: int | None = None) -> None:
    """The cos and sin tables must have a row for every position that an engine accepts.

    Raises:
        UnsupportedError: They have another number of rows than ``positions``, or
            ``max_position_embeddings`` if that is None.
    """
    wanted = base.dimensions.max_position_embeddings if positions is None else positions
    for name, value in model.graph.initializers.items():
        if not name.endswith((".cos_cache", ".sin_cache")) or value.shape is None:
            continue
        if value.shape[0] != wanted:
            raise UnsupportedError(
                f"{base.directory}: the base graph has a rotary table of {value.shape[0]} rows for "
                f"{wanted} positions (max_position_embeddings)"
            )


def _add_missing_biases(model: ir.Model, base: BaseModel, dtype: ir.DataType) -> None:
    """Add the biases of projections that mobius-onnx builds without (Llama's ``mlp_bias``)."""
    initializers = model.graph.initializers
    missing = {
        f"{site.graph_name}.weight": f"{site.graph_name}.bias"
        for site in base.sites.projections
        if f"{site.parameter}.bias" in base.tensors
        and f"{site.graph_name}.bias" not in initializers
    }
    for node in list(model.graph):
        weight = multiplied_weight(node)
        name = None if weight is None else missing.get(str(weight.name))
        if weight is None or name is None:
            continue
        rows = static_shape(weight)[0]
        bias = ir.Value(name=name, shape=ir.Shape([rows]), type=ir.TensorType(dtype))
        initializers[name] = bias
        product = node.outputs[0]
        added = ir.node("Add", [product, bias], name=f"{node.name}_bias")
        added.outputs[0].name = f"{product.name}_biased"
        added.outputs[0].shape, added.outputs[0].type = product.shape, product.type
        ir.convenience.replace_all_uses_with(product, added.outputs[0])
        added.replace_input_with(0, product)
        model.graph.insert_after(node, added)


def _share_tied_head(model: ir.Model, base: BaseModel) -> None:
    """Let a tied head read the embedding, where mobius gives it an initializer of its own."""
    initializers = model.graph.initializers
    head = initializers.get(f"{base.family.output_head}.weight")
    table = initializers.get(f"{base.family.embeddings[0][0]}.weight")
    if head is None or table is None or head is table:
        return
    ir.convenience.replace_all_uses_with(head, table)
    del initializers[str(head.name)]


def _attach_weights(model: ir.Model, base: BaseModel, dtype: ir.DataType) -> None:
    """Give every empty initializer a lazy tensor that reads the base's safetensors."""
    projections = {site.graph_name: site for site in base.sites.projections}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        stem, _, kind = name.rpartition(".")
        site = projections.get(stem)
        make = _reader(base, name) if site is None else _projection_reader(base, site, kind)
        if make is None or value.shape is None:
            raise UnsupportedError(
                f"the base graph of {base.directory} has the weight {name}, which its safetensors "
                "lack; the family table and mobius-onnx disagree about this base"
            )
        value.const_value = lazy_tensor(name, dtype, static_shape(value), make)


def _reader(base: BaseModel, name: str) -> Make | None:
    """Reads a parameter that the graph names as the base does."""
    return (lambda: base.float32(name)) if base.has(name) else None


def _projection_reader(base: BaseModel, site: ProjectionSite, kind: str) -> Make | None:
    """Reads one logical projection, ``[out, in]`` however it is stored, or its bias."""
    if not base.has(f"{site.parameter}.{kind}"):
        return None
    if kind == "weight":
        return lambda: base.projection(site)

    def bias() -> npt.NDArray[np.float32]:
        values = base.projection_bias(site)
        if values is None:
            raise ValueError(f"{site.parameter} has no bias")
        return values

    return bias


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
