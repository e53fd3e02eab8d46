"""Pipelines: the passes that each target gets, in order. Read this to know what a build does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint
from otter_export.errors import OtterError, UnsupportedError
from otter_export.family import Space
from otter_export.graph.base import base_graph
from otter_export.graph.passes.chain_products import ChainProducts
from otter_export.graph.passes.flatten_tokens import FlattenTokens
from otter_export.graph.passes.float_logits import FloatLogits
from otter_export.graph.passes.fold_gains import FoldGains
from otter_export.graph.passes.fold_transposes import FoldTransposes
from otter_export.graph.passes.fuse_projections import FuseProjections
from otter_export.graph.passes.gemm_weights import GemmWeights
from otter_export.graph.passes.half_storage import HalfStorage
from otter_export.graph.passes.in_place_cache import InPlaceCache
from otter_export.graph.passes.in_place_products import InPlaceProducts
from otter_export.graph.passes.keep_rows import KeepLastLogits, KeepRows
from otter_export.graph.passes.merge_reshapes import MergeReshapes
from otter_export.graph.passes.quantize_weights import QuantizeWeights
from otter_export.graph.passes.read_only_cache import ReadOnlyCache
from otter_export.graph.passes.reuse_statistics import ReuseStatistics
from otter_export.graph.passes.separate_masks import SeparateMasks
from otter_export.graph.passes.weight_only import WeightOnly
from otter_export.graph.passes.write_out_norms import WriteOutNorms
from otter_export.graph.widen import widen
from otter_export.precision import (
    ONNX_RUNTIME,
    TENSORRT,
    Precision,
    Precisions,
    WeightFormat,
    choose_precision,
)

Passes = list[ir.passes.InPlacePass]
AfterEach = Callable[[str, ir.Model], None]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """One way to lower a hub graph.

    Args:
        where: The target, for messages.
        precisions: What it computes in and stores, by name.
        passes: The passes of a base in a precision, in order. The unwidened base graph goes through
            the same list, which is how base outputs are compared.
    """

    where: str
    precisions: Precisions
    passes: Callable[[BaseModel, Precision], Passes]


def lower(
    checkpoint: Checkpoint,
    pipeline: Pipeline,
    precision: str,
    *,
    widened: bool = True,
    positions: int | None = None,
    after_each: AfterEach | None = None,
) -> ir.Model:
    """Build a graph, widen it and lower it; its weights are read when the model is saved.

    Args:
        checkpoint: Base and channel.
        pipeline: `onnxruntime` or `tensorrt`.
        precision: One of the pipeline's.
        widened: False gives the base alone, lowered by the same passes.
        positions: The longest sequence that will run; None takes all of the base's positions.
        after_each: Called with each pass's name and the model, to dump or check it.

    Raises:
        UnsupportedError: The pipeline has no such precision, or the base or its channel cannot be
            built.
    """
    chosen = choose_precision(pipeline.precisions, precision, pipeline.where)
    model = base_graph(checkpoint.base, chosen.dtype.hub, positions)
    if widened:
        widen(model, checkpoint)
    return run_passes(model, pipeline.passes(checkpoint.base, chosen), after_each)


def onnxruntime(provider: str = "cpu") -> Pipeline:
    """The pipeline of target ``onnx``, hub form to engine form.

    Raises:
        UnsupportedError: There is no such execution provider.
    """
    if provider not in ONNX_RUNTIME:
        raise UnsupportedError(f"--ep {provider}: target onnx knows {', '.join(ONNX_RUNTIME)}")
    passes = functools.partial(_onnxruntime_passes, on_cpu=provider == "cpu")
    return Pipeline(f"target onnx on {provider}", ONNX_RUNTIME[provider], passes)


def _onnxruntime_passes(base: BaseModel, precision: Precision, *, on_cpu: bool) -> Passes:
    # 1. What is computed: logits of the rows that are wanted; caches that are never copied: on the
    # CPU the model writes them.
    passes: Passes = [KeepRows(), FloatLogits(), InPlaceProducts()]
    if not on_cpu:
        passes = [KeepLastLogits(), FloatLogits(), ReadOnlyCache()]
    # 2. Statistics before flattening, while residual Adds are still recognisable.
    if on_cpu:
        passes.append(ReuseStatistics())
    # 3. Products on two-dimensional states.
    passes += [FlattenTokens(_embedding_tables(base)), MergeReshapes()]
    # 4. Precision: before transposes are folded, since quantisation reads [out, in], and before
    # products are chained, since one over codes adds to nothing.
    if precision.projections is not None:
        passes.append(QuantizeWeights(_formats(base, precision)))
    passes.append(ChainProducts(_is_channel_matrix))
    if on_cpu:
        passes.append(FoldGains())  # in float32; half precision would round twice
    else:
        # Functions of com.otter become their bodies; after flattening, which knows them by name.
        passes.append(common.InlinePass())
    passes += [GemmWeights(_is_base_matrix), FoldTransposes()]
    if precision.half == "matrices":
        passes.append(HalfStorage(_is_base_matrix))
    elif precision.half == "embedding":  # it is gathered, not multiplied
        passes.append(HalfStorage(base.embedding_name.__eq__))
    # 5. What the passes left behind.
    return passes + _without_what_is_unused()


def tensorrt(capacity: int, *, plugin: bool = False) -> Pipeline:
    """The pipeline of target ``trt``, hub form to the ONNX file that TensorRT parses.

    ONNX Runtime runs the same file, which is how its numerics are tested without a GPU.

    Args:
        capacity: Rows of every cache: the longest sequence and the longest step together.
        plugin: Whether fused projections name our plugin; else their plain form is built.
    """
    passes = functools.partial(_tensorrt_passes, capacity=capacity, plugin=plugin)
    return Pipeline("target trt", TENSORRT, passes)


def _tensorrt_passes(
    base: BaseModel, precision: Precision, *, capacity: int, plugin: bool
) -> Passes:
    # 1. What is computed: chosen rows' logits; caches of static capacity, updated in place.
    passes: Passes = [KeepRows(), FloatLogits(), InPlaceCache(capacity), SeparateMasks()]
    # 2. Norms of both streams over one set of statistics, as plain ops.
    passes += [
        WriteOutNorms(),
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ]
    # 3. Products: codes, or the plugin; both read [out, in], so transposes are folded after them.
    if precision.projections is not None:
        passes.append(WeightOnly(_formats(base, precision)))
    elif plugin:
        passes.append(FuseProjections(_base_weights(base)))
    # Many Transposes of weights make the builder slow, and end it with more than 24 layers.
    passes.append(FoldTransposes(shared=False))
    # 4. What the passes left behind.
    return [*passes, common.CommonSubexpressionEliminationPass(), *_without_what_is_unused()]


def _without_what_is_unused() -> Passes:
    return [
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ]


def run_passes(
    model: ir.Model,
    passes: Passes,
    after_each: AfterEach | None = None,
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


def _is_base_matrix(name: str) -> bool:
    return not _is_channel_matrix(name) and name.endswith((".weight", ".weight_t"))


def _is_channel_matrix(name: str) -> bool:
    return ".otter." in name or name.startswith("signals.")


def _formats(base: BaseModel, precision: Precision) -> Callable[[str], WeightFormat | None]:
    """The format of each projection's ``W`` and ``A`` and of the head, by its initializer."""
    precision = precision.dividing({base.dimensions.width(s.reads) for s in base.sites.projections})
    formats = {
        f"{site.graph_name}.weight": (
            precision.inner if site.reads is Space.INNER else precision.projections
        )
        for site in base.sites.projections
    }
    formats |= {name: precision.from_base for name in _base_weights(base)}
    formats[base.head_name] = precision.head
    return formats.get


def _base_weights(base: BaseModel) -> dict[str, str]:
    """Name of every ``A`` to the name of the ``W`` that it widens."""
    sites = base.sites.projections
    return {f"{site.name}.otter.from_base": f"{site.graph_name}.weight" for site in sites}
