"""Compare forms of the ONNX graph, interleaved in one process; see docs/performance.md.

Usage: python -m benchmarks.graph_forms CKPT [--precisions fp32 int8] [--rows 1 8] [--prefix 64]

Every form runs on one thread, in turns, and the CPU time of the process is taken rather than the
clock, so that other work on the machine hardly shows. The minimum over all turns is reported, as a
ratio to the form that ``build`` makes. All forms must agree on the logits.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# ONNX Runtime looks at it once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from benchmarks.alternative_forms import AttentionOp, JoinedBase
from benchmarks.stack_siblings import StackSiblings
from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import save_model
from otter_export.engine_io import WRITE_INDICES, is_cache, present_of
from otter_export.graph.base import base_graph
from otter_export.graph.passes.flatten_tokens import FlattenTokens
from otter_export.graph.passes.in_place_products import InPlaceProducts
from otter_export.graph.passes.read_only_cache import ReadOnlyCache
from otter_export.graph.passes.reuse_statistics import ReuseStatistics
from otter_export.graph.pipeline import onnxruntime, run_passes
from otter_export.graph.widen import widen
from otter_export.runtime.executors.onnxruntime import SLOTS

Passes = list[ir.passes.InPlacePass]
Arrays = dict[str, Any]
#: How far the forms' logits may differ, of the largest: in float32 only the order of sums differs.
TOLERANCE = 1e-4
#: Activations are rounded to 8 bits inside each product, so a sum's last bit may become a step.
QUANTISED = 0.1


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to lower the graph: the engine's passes, edited."""

    name: str
    edit: Callable[[Passes], Passes]
    widened: bool = True


def without(kind: type) -> Callable[[Passes], Passes]:
    """The same passes but for one kind."""
    return lambda passes: [one for one in passes if not isinstance(one, kind)]


def replaced(kind: type, new: Callable[[], Passes]) -> Callable[[Passes], Passes]:
    """The same passes with others in the place of one kind."""
    return lambda passes: [
        other for one in passes for other in (new() if isinstance(one, kind) else [one])
    ]


def before(kind: type, new: Callable[[], ir.passes.InPlacePass]) -> Callable[[Passes], Passes]:
    """The same passes with one more before those of a kind."""
    return lambda passes: [
        other for one in passes for other in ([new(), one] if isinstance(one, kind) else [one])
    ]


FORMS = (
    Form("as built", list),
    Form("channel's q, k, v in one product", before(FlattenTokens, StackSiblings)),
    Form("base's q, k, v in one product", before(FlattenTokens, JoinedBase)),
    Form("statistics computed twice", without(ReuseStatistics)),
    Form("cache read, not written", replaced(InPlaceProducts, lambda: [ReadOnlyCache()])),
    Form("Attention op, cache copied", replaced(InPlaceProducts, lambda: [AttentionOp()])),
    Form("base alone", list, widened=False),
)


def save(checkpoint: Checkpoint, precision: str, form: Form, directory: Path) -> None:
    """Build one form."""
    model = base_graph(checkpoint.base)
    if form.widened:
        widen(model, checkpoint)
    pipeline = onnxruntime()
    passes = pipeline.passes(checkpoint.base, pipeline.precisions[precision])
    run_passes(model, form.edit(passes))
    directory.mkdir()
    save_model(model, directory)


def load(directory: Path) -> Any:
    """A session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(directory / "model.onnx"), options)


def step(session: Any, rows: int, past: Arrays) -> Arrays:
    """Inputs of a step of ``rows`` candidates after the tokens in ``past``."""
    names = [value.name for value in session.get_inputs()]
    in_place = WRITE_INDICES in names
    prefix = next(iter(past.values())).shape[2]
    slots = _rounded(prefix + rows) if in_place else prefix + rows
    mask = np.zeros((1, rows, slots), bool)
    mask[:, :, :prefix] = True
    tree = np.tril(np.ones((rows, rows))) if prefix == 0 else np.eye(rows)
    mask[:, :, prefix : prefix + rows] = tree
    feed = {
        "input_ids": np.random.default_rng(rows).integers(0, 100, (1, rows)),
        "position_ids": np.arange(rows)[None] if prefix == 0 else np.full((1, rows), prefix),
        "attention_mask": mask[:, None] if in_place else mask,
        "logits_to_keep": np.array([rows]),
        "kept_rows": np.arange(rows)[None],
        WRITE_INDICES: np.array([prefix]),
        **past,
    }
    if in_place:
        behind = ((0, 0), (0, 0), (0, slots - prefix), (0, 0))
        feed |= {name: np.pad(cache, behind) for name, cache in past.items()}
    return {name: feed[name] for name in names}


def _rounded(slots: int) -> int:
    return -(-slots // SLOTS) * SLOTS


def prefilled(session: Any, prefix: int) -> Arrays:
    """Caches of ``prefix`` tokens."""
    empty = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if is_cache(value.name)
    }
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, step(session, prefix, empty)), strict=True))
    return {name: outputs[present_of(name)][:, :, :prefix] for name in empty}


def bound(session: Any, feed: Arrays) -> Any:
    """A binding of these inputs; a graph that writes its caches has them as outputs too."""
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    written = {present_of(n): v for n, v in values.items() if WRITE_INDICES in feed and is_cache(n)}
    for output in session.get_outputs():
        if output.name in written:
            binding.bind_ortvalue_output(output.name, written[output.name])
        else:
            binding.bind_output(output.name)
    return binding


def compare(
    sessions: Sequence[Any], rows: int, prefix: int, options: argparse.Namespace
) -> list[float]:
    """The least CPU time of each session in seconds, taken in turns."""
    past = prefilled(sessions[0], prefix)
    bindings = [bound(one, step(one, rows, past)) for one in sessions]
    best = [float("inf")] * len(sessions)
    logits = []
    for one, binding in zip(sessions, bindings, strict=True):
        one.run_with_iobinding(binding)
        logits.append(binding.copy_outputs_to_cpu()[0])
    for form, other in zip(FORMS, logits, strict=True):
        limit = options.tolerance * np.abs(logits[0]).max()
        np.testing.assert_allclose(other, logits[0], rtol=0, atol=limit, err_msg=form.name)
    for _ in range(options.turns):
        for i, (one, binding) in enumerate(zip(sessions, bindings, strict=True)):
            for _ in range(3):
                started = time.process_time()
                one.run_with_iobinding(binding)
                best[i] = min(best[i], time.process_time() - started)
    return best


def measure(root: Path, cells: list[tuple[int, int]], options: argparse.Namespace) -> Any:
    """Least seconds, ``[forms, cells]``, over several loads of every form.

    Where a session's weights come to lie in memory moves its speed by up to a tenth, so each form
    is loaded anew, in another order, and the best load counts.
    """
    best = np.full((len(FORMS), len(cells)), np.inf)
    for turn in range(options.loads):
        order = np.roll(np.arange(len(FORMS)), turn).tolist()
        sessions = {i: load(root / str(i)) for i in order}
        for column, (prefix, rows) in enumerate(cells):
            times = compare([sessions[i] for i in range(len(FORMS))], rows, prefix, options)
            best[:, column] = np.minimum(best[:, column], times)
    return best


def main() -> None:
    """Print one Markdown table for each precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prefix", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--loads", type=int, default=4)
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.checkpoint)
    cells = [(prefix, rows) for prefix in options.prefix for rows in options.rows]
    for precision in options.precisions:
        options.tolerance = TOLERANCE if precision == "fp32" else QUANTISED
        with tempfile.TemporaryDirectory() as root:
            for i, form in enumerate(FORMS):
                save(checkpoint, precision, form, Path(root) / str(i))
            best = measure(Path(root), cells, options)
        print(f"\n| {precision} | " + " | ".join(f"{r} rows, prefix {p}" for p, r in cells) + " |")
        print("|---" * (len(cells) + 1) + "|")
        for i, form in enumerate(FORMS):
            shown = [f"{ratio:.2f}" for ratio in best[i] / best[0]]
            if i == 0:
                shown = [f"{seconds * 1e3:.1f} ms" for seconds in best[0]]
            print(f"| {form.name} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
