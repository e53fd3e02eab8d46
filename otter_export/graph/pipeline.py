"""Which passes each target gets, in order. Read this file to know what a build does."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from otter_export.checkpoint import BaseModel
from otter_export.errors import OtterError
from otter_export.family import Space
from otter_export.graph.passes.flatten_tokens import FlattenTokens
from otter_export.graph.passes.float_logits import FloatLogits
from otter_export.graph.passes.fold_transposes import FoldTransposes
from otter_export.graph.passes.fuse_projections import FuseProjections
from otter_export.graph.passes.half_storage import HalfStorage
from otter_export.graph.passes.in_place_cache import InPlaceCache
from otter_export.graph.passes.keep_last_logits import KeepLastLogits
from otter_export.graph.passes.keep_rows import KeepRows
from otter_export.graph.passes.merge_reshapes import MergeReshapes
from otter_export.graph.passes.quantize_weights import QuantizeWeights, WeightFormat
from otter_export.graph.passes.read_only_cache import ReadOnlyCache
from otter_export.graph.passes.reuse_statistics import ReuseStatistics
from otter_export.graph.passes.separate_masks import SeparateMasks
from otter_export.graph.passes.tie_embedding import TieEmbedding
from otter_export.graph.passes.weight_only import CodeFormat, WeightOnly
from otter_export.graph.passes.write_out_norms import WriteOutNorms

#: Precisions of the ONNX Runtime target by execution provider.
PRECISIONS = {"cpu": ("fp32", "fp16", "int8", "int4"), "cuda": ("fp32", "fp16")}
#: Precisions of the TensorRT target; weights alone are quantised.
TENSORRT_PRECISIONS = ("fp16", "bf16", "int8", "int4")
#: Precision to the formats of projections and of the language model head. 8 bits for the
#: head, then zero points, help int4 most (docs/graph.md has numbers).
_FORMATS = {
    "int8": (WeightFormat(8), WeightFormat(8)),
    "int4": (WeightFormat(4, symmetric=False), WeightFormat(8)),
}
#: The same for TensorRT, which has no zero points; the second is also that of projections which
#: read the inner width. They are a quarter of the weights and most of the error of 4 bits.
_CODE_FORMATS = {
    "int8": (CodeFormat(8, None), CodeFormat(8, None)),
    "int4": (CodeFormat(4, 32), CodeFormat(8, None)),
}


@dataclasses.dataclass(frozen=True)
class Lowering:
    """What a pipeline is asked for."""

    precision: str = "fp32"
    execution_provider: str = "cpu"


def hub_dtype(lowering: Lowering) -> str:
    """Activations are float16 on a GPU at fp16; a CPU computes in float32 whatever is stored."""
    on_gpu = lowering.execution_provider == "cuda"
    return "f16" if on_gpu and lowering.precision == "fp16" else "f32"


def onnxruntime_passes(base: BaseModel, lowering: Lowering) -> list[ir.passes.InPlacePass]:
    """The pipeline of the ``onnx`` target, hub form to engine form.

    The unwidened base graph goes through the same list, which is how base outputs are compared.
    """
    on_cpu = lowering.execution_provider == "cpu"
    embedding = f"{base.family.embeddings[0][0]}.weight"
    # 1. What is computed: logits of the rows that are wanted; caches read, not copied.
    passes: list[ir.passes.InPlacePass] = [KeepLastLogits(), FloatLogits(), ReadOnlyCache()]
    # 2. Statistics before flattening, while residual Adds are still recognisable.
    if on_cpu:
        passes.append(ReuseStatistics())
    # 3. Products on two-dimensional states.
    passes += [FlattenTokens(_embedding_tables(base)), MergeReshapes()]
    if not on_cpu:
        # Functions of com.otter become their bodies; after flattening, which knows them by name.
        passes.append(common.InlinePass())
    # 4. Precision: before transposes are folded, since quantisation reads [out, in].
    if lowering.precision in _FORMATS:
        passes.append(QuantizeWeights(_stored_quantized(base, lowering.precision)))
    passes.append(FoldTransposes())
    if base.dimensions.tie_word_embeddings:
        passes.append(TieEmbedding(embedding, f"{embedding}_t"))
    if on_cpu and lowering.precision != "fp32":
        passes.append(HalfStorage(_stored_half(lowering.precision, embedding)))
    # 5. What the passes left behind.
    passes += [
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ]
    return passes


@dataclasses.dataclass(frozen=True)
class TensorRtForm:
    """What the TensorRT pipeline is asked for.

    Args:
        capacity: Rows of every cache: the longest sequence and the longest step together.
        precision: One of `TENSORRT_PRECISIONS`.
        plugin: Whether fused projections name our plugin; else their plain form is built.
    """

    capacity: int
    precision: str = "fp16"
    plugin: bool = False


def tensorrt_hub_dtype(form: TensorRtForm) -> str:
    """Activations, caches and what is not quantised are half precision."""
    return "bf16" if form.precision == "bf16" else "f16"


def tensorrt_passes(base: BaseModel, form: TensorRtForm) -> list[ir.passes.InPlacePass]:
    """The pipeline of the ``trt`` target, hub form to the ONNX file that TensorRT parses.

    ONNX Runtime runs the same file, which is how its numerics are tested without a GPU.
    """
    # 1. What is computed: chosen rows' logits; caches of static capacity, updated in place.
    passes: list[ir.passes.InPlacePass] = [KeepRows(), FloatLogits(), InPlaceCache(form.capacity)]
    passes.append(SeparateMasks())
    # 2. Norms of both streams over one set of statistics, as plain ops.
    passes += [
        WriteOutNorms(),
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ]
    # 3. Products: codes, or the plugin; both read [out, in], so transposes are folded after them.
    if form.precision in _CODE_FORMATS:
        passes.append(WeightOnly(_stored_in_codes(base, form.precision)))
    elif form.plugin:
        passes.append(FuseProjections(_base_weights(base)))
    # Many Transposes of weights make the builder slow, and end it with more than 24 layers.
    passes.append(FoldTransposes(shared=False))
    # 4. What the passes left behind.
    passes += [
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ]
    return passes


def run_passes(
    model: ir.Model,
    passes: list[ir.passes.InPlacePass],
    after_each: Callable[[str, ir.Model], None] | None = None,
) -> ir.Model:
    """Run passes in order; a failure names the pass and those before it.

    Args:
        model: Changed in place.
        passes: In order.
        after_each: Called with the pass's name and the model, to dump or check it.

    Raises:
        OtterError: What a pass says of a model that it cannot lower.
    """
    done: list[str] = []
    for one in passes:
        name = type(one).__name__
        with _without_notes():
            try:
                one(model)
            except ir.passes.PassError as error:
                if isinstance(error.__cause__, OtterError):
                    raise error.__cause__ from None
                before = ", ".join(done) or "no other"
                raise RuntimeError(f"pass {name} failed after {before}: {error}") from error
        done.append(name)
        if after_each is not None:
            after_each(name, model)
    return model


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Hold back what onnx_ir notes about each node that it leaves or removes."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _embedding_tables(base: BaseModel) -> frozenset[str]:
    names = [name for name, _ in base.sites.embeddings]
    return frozenset([f"{n}.weight" for n in names] + [f"{n}.otter.table" for n in names])


def _is_channel(name: str) -> bool:
    return ".otter." in name or name.startswith("signals.")


def _head_weight(base: BaseModel) -> str:
    """The initializer that the language model head reads; a tied one is the embedding's."""
    tied = base.dimensions.tie_word_embeddings
    return f"{base.family.embeddings[0][0] if tied else base.family.output_head}.weight"


def _stored_quantized(base: BaseModel, precision: str) -> Callable[[str], WeightFormat | None]:
    """Projections in one format, the head in another; the channel as it is."""
    projection, head = _FORMATS[precision]
    source = _head_weight(base)

    def choose(name: str) -> WeightFormat | None:
        if _is_channel(name):
            return None
        return head if name == source else projection

    return choose


def _stored_in_codes(base: BaseModel, precision: str) -> Callable[[str], CodeFormat | None]:
    """Base projections and the head; at int4 those that read the inner width have 8 bits."""
    projection, sensitive = _CODE_FORMATS[precision]
    formats = {
        f"{site.graph_name}.weight": sensitive if site.reads is Space.INNER else projection
        for site in base.sites.projections
    }
    formats[_head_weight(base)] = sensitive
    return formats.get


def _base_weights(base: BaseModel) -> dict[str, str]:
    """Name of every ``A`` to the name of the ``W`` that it widens."""
    sites = base.sites.projections
    return {f"{site.name}.otter.from_base": f"{site.graph_name}.weight" for site in sites}


def _stored_half(precision: str, embedding: str) -> Callable[[str], bool]:
    """fp16: every base matrix; int8 and int4: the embedding, which is gathered, not multiplied."""
    if precision == "fp16":
        return lambda name: not _is_channel(name) and name.endswith((".weight", ".weight_t"))
    return lambda name: name == embedding
