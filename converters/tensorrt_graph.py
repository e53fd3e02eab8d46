"""The graph that TensorRT parses: widened hub graph, lowered to the ``in_place`` cache form.

Inputs (int64 unless said otherwise; C is the capacity, e the head size)::

    input_ids, position_ids [batch, step];  attention_mask bool [batch, 1, step, C]
    write_indices [batch];  kept_rows [batch, kept]
    past_key_values.N.{key,value} [batch, Hkv, C, e];  otter_key_values.N.* [batch, H'kv, C, e]

Outputs: ``logits`` float32 ``[batch, kept, V]``; every signal float32 ``[batch, kept]`` (value) or
``[batch, kept, V]`` (q_value); ``present.N.*`` and ``otter_present.N.*`` of the caches' shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.graph.base import base_graph
from otter_export.graph.pipeline import (
    TENSORRT_PRECISIONS,
    TensorRtForm,
    run_passes,
    tensorrt_hub_dtype,
    tensorrt_passes,
)
from otter_export.graph.widen import widen


def tensorrt_graph(
    checkpoint: Checkpoint,
    form: TensorRtForm,
    *,
    widened: bool = True,
    after_each: Callable[[str, ir.Model], None] | None = None,
) -> ir.Model:
    """Build and lower the graph; its weights are lazy tensors, read when the model is saved.

    Args:
        checkpoint: Base and channel.
        form: Capacity, precision, and whether fused projections are wanted.
        widened: False gives the base alone, lowered by the same passes.
        after_each: Called with each pass's name and the model, to dump or check it.

    Raises:
        UnsupportedError: The precision does not exist for this target, or the base or its channel
            cannot be built.
    """
    if form.precision not in TENSORRT_PRECISIONS:
        raise UnsupportedError(
            f"--precision {form.precision} is not available for target trt; available: "
            f"{', '.join(TENSORRT_PRECISIONS)}"
        )
    model = base_graph(checkpoint.base, tensorrt_hub_dtype(form))
    if widened:
        widen(model, checkpoint)
    return run_passes(model, tensorrt_passes(checkpoint.base, form), after_each)
