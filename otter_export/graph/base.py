"""The base graph: built by mobius-onnx from config.json, its weights read lazily from safetensors.

The result is the *hub* form: plain ONNX ops (opset 24), activations ``[batch, step, d]``, weights
named after the Hugging Face parameters and stored ``[out, in]`` behind a Transpose, one Attention
per layer with past and present caches.
"""

from __future__ import annotations

import contextlib
import functools
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
from onnx_ir.passes import common

from otter_export.base_model import BaseModel
from otter_export.boundary import errors_as
from otter_export.errors import UnsupportedError
from otter_export.family import ProjectionSite
from otter_export.graph.emit import static_shape
from otter_export.graph.mends import mend
from otter_export.graph.rotary import set_rotations
from otter_export.graph.row_tensor import MakeRows, row_tensor
from otter_export.graph.unfuse import unfuse
from otter_export.graph.windows import set_windows
from otter_export.layer_attention import layer_attention
from otter_export.safetensors_io import TensorInfo

#: Key of a model's metadata: names of the mends that changed it.
MENDS = "otter.mends"
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
    if base.dimensions.tie_word_embeddings:
        _share_tied_head(model, base)
    unfuse(model, base)
    _fold_offsets(model.graph, base)
    layers = layer_attention(base)
    set_windows(model, layers)
    rows = base.dimensions.max_position_embeddings if positions is None else positions
    rotations = set_rotations(model, base, layers, DTYPES[dtype], rows)
    model.metadata_props[MENDS] = ",".join(sorted([*rotations, *mend(model, base)]))
    common.RemoveUnusedNodesPass()(model)
    _attach_weights(model, base, DTYPES[dtype])
    return model


def mends_of(model: ir.Model) -> tuple[str, ...]:
    """The mends that changed a graph, lowered or not; sorted."""
    return tuple(filter(None, model.metadata_props.get(MENDS, "").split(",")))


def _config(base: BaseModel, positions: int | None) -> dict[str, Any]:
    """What mobius-onnx reads; the scalings that are built do not depend on the last position."""
    key = base.family.config_keys.get("max_position_embeddings", "max_position_embeddings")
    learned = key in (rows for _, rows in base.family.embeddings)
    config = base.library_config
    return config if positions is None or learned else {**config, key: positions}


def _fold_offsets(graph: ir.Graph, base: BaseModel) -> None:
    """``norm(x, Add(gamma, 1))`` => ``norm(x, gamma)``, whose tensor then holds the sum."""
    if not base.family.norm_offset:
        return
    names = {f"{norm.name}.weight" for norm in base.sites.norms}
    for node in [n for n in graph if n.op_type == "Add"]:
        weight = next((v for v in node.inputs if v is not None and v.name in names), None)
        if weight is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], weight)
            graph.remove(node, safe=True)


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
    readers = dict(_readers(base))
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        if name not in readers and base.has(name):
            readers[name] = functools.partial(base.float32, name), base.stored(name)
        if name not in readers or value.shape is None:
            raise UnsupportedError(
                f"the base graph of {base.directory} has the weight {name}, which its safetensors "
                "lack; the family table and mobius-onnx disagree about this base"
            )
        make, stored = readers[name]
        value.const_value = row_tensor(name, dtype, static_shape(value), make, stored)


def _readers(base: BaseModel) -> Iterator[tuple[str, tuple[MakeRows, TensorInfo | None]]]:
    """What reads the parameters that the graph names or stores otherwise than the base does."""
    for norm in base.sites.norms:
        name = f"{norm.name}.weight"
        stored = None if base.family.norm_offset else base.stored(name)
        yield name, (functools.partial(base.norm_weight, norm), stored)
    for site in base.sites.projections:
        if base.has(f"{site.parameter}.weight"):
            reader = functools.partial(base.projection, site)
            yield f"{site.graph_name}.weight", (reader, base.stored_projection(site))
        if base.has(f"{site.parameter}.bias"):
            yield f"{site.graph_name}.bias", (functools.partial(_bias, base, site), None)


def _bias(base: BaseModel, site: ProjectionSite, rows: slice) -> npt.NDArray[np.float32]:
    """Some rows of the bias of one logical projection."""
    values = base.projection_bias(site)
    if values is None:
        raise ValueError(f"{site.parameter} has no bias")
    return values[rows]


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
