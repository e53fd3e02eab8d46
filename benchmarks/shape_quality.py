"""Price against quality: channels of every shape, trained alike, judged and timed.

Usage: python -m benchmarks.shape_quality [--steps 100] [--first-layers 0 10 15 20 25 30]

On the demo's material. Every cell starts as a copy and sees the same batches: its rewards are
correlated with people's ratings of held-out snippets, its int8 engine writes guided reviews that
two judges compare with unguided ones, and a step of it is timed against the base alone, all shapes
in turns. What a cell gave is kept under ``--out``: a second run goes on where the first one
stopped. Writes ``benchmarks/results/shape_quality.*``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# ONNX Runtime looks at it once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from tqdm import tqdm

from benchmarks import channel_shapes, record
from examples.sentiment import judges
from examples.sentiment.material import Material, prepare
from examples.sentiment.prompts import PROMPTS
from otter_export import ArgsStochastic, Plain, Request, insert, load_engine
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions
from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import MODEL_FILE, save_model
from otter_export.converters.onnx import TARGET
from otter_export.converters.target import BuildRequest
from otter_export.evaluation import written
from otter_export.evaluation.text_metrics import bootstrap_paired_difference
from otter_export.files import write_json
from otter_export.graph.pipeline import lower, onnxruntime
from otter_export.modeling.data import Reader, split
from otter_export.modeling.learner import Task
from otter_export.modeling.report import write_trained
from otter_export.modeling.tokenization import end_token_id, load_tokenizer
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import TrainingConfig
from otter_export.output_directory import output_directory
from otter_export.runtime.methods.base import DecodingMethod

#: The demo's (examples/sentiment/comparison.py).
TOP_K, WEIGHT, TEMPERATURE, SEED = 16, 16.0, 0.8, 2026
PRECISION = "int8"
CELL, ENGINE, UNGUIDED = "cell.json", "engine", "unguided"
#: The figure's panels: which column, and how it is called there.
QUALITIES = {
    "r at 100 %": "correlation with people",
    "vader": "VADER, +16",
    "probe": "ridge probe, +16",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One shape; the name is also its directory's."""

    name: str
    first_layer: int
    attention: str

    @property
    def channel(self) -> ChannelOptions:
        """The demo's widths in this shape."""
        widths = ChannelOptions(hidden_size=32, intermediate_size=32, heads=3)
        return dataclasses.replace(widths, first_layer=self.first_layer, attention=self.attention)


def cells(first_layers: Sequence[int], layers: int) -> list[Cell]:
    """Every shape; a probe attends to nothing, so there is one."""
    shapes = [
        Cell(f"from layer {n}, {attention}", n, attention)
        for attention in ("own", "shared")
        for n in first_layers
        if n < layers
    ]
    return [*shapes, Cell("probe", layers, "own")] if layers in first_layers else shapes


def make(cell: Cell, material: Material, options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one shape, or read what it gave in an earlier run."""
    root, budget = options.out / cell.name, _budget(options)
    kept = root / CELL
    if kept.is_file() and (found := json.loads(kept.read_text()))["budget"] == budget:
        return dict(found)
    started = time.monotonic()
    checkpoint = root / "checkpoint"
    insert.plan(str(material.base), checkpoint, cell.channel, adapter=True, force=True).write()
    found = {"budget": budget, **train(checkpoint, material, options)}
    engine = build(Checkpoint.open(checkpoint), root / ENGINE)
    method = ArgsStochastic(top_k=TOP_K, weight=WEIGHT, temperature=TEMPERATURE)
    found["texts"] = write(engine, method, options, cell.name)
    found["seconds"] = round(time.monotonic() - started, 1)
    write_json(kept, found)
    return found


def _budget(options: argparse.Namespace) -> dict[str, Any]:
    """What a kept cell must have been made with."""
    names = ("steps", "batch_tokens", "learning_rate", "items", "prompts", "max_tokens")
    return {name: getattr(options, name) for name in names}


def train(directory: Path, material: Material, options: argparse.Namespace) -> dict[str, Any]:
    """Train all tensors of a checkpoint; its correlation on snippets that nothing has seen."""
    checkpoint = Checkpoint.open(directory)
    signal, base = checkpoint.config.signals[0], checkpoint.base
    reader = Reader("regression", signal, load_tokenizer(base.directory), end_token_id(base))
    items, held_out = split(reader.read(material.train), 0.03, 0)
    config = TrainingConfig(
        max_steps=options.steps,
        batch_tokens=options.batch_tokens,
        learning_rate=options.learning_rate,
        dtype="auto",
        eval_every=options.steps,  # at the end: all shapes take their last step's tensors
        eval_items=32,
    )
    trainer = Trainer(checkpoint, config, [Task(signal.name, "regression", items, held_out)])
    with tqdm(total=options.steps, desc=f"training {directory.parent.name}", leave=False) as bar:
        trainer.run(lambda progress, _: bar.update(progress.step - bar.n) and None)
    trainer.use_best()
    test = reader.read(material.test)[: options.items]
    with tqdm(total=len(test), desc=f"reading {directory.parent.name}", leave=False) as bar:
        judged = trainer.learners[0].evaluate(test, lambda count: bar.update(count) and None)
    write_trained(checkpoint, trainer.best)
    return {
        "parameters": sum(p.numel() for p in trainer.parameters.values()),
        "correlation": judged["pearson"],
        "training_seconds": round(trainer.progress.seconds, 1),
    }


def build(checkpoint: Checkpoint, directory: Path) -> Path:
    """An engine for ONNX Runtime."""
    plan = TARGET.plan(checkpoint, BuildRequest(PRECISION))
    with output_directory(directory, marker="engine.json", force=True) as made:
        plan.write(made, None).save(made)
    return directory


def write(
    engine: Path, method: DecodingMethod, options: argparse.Namespace, name: str
) -> list[str]:
    """The demo's openings, each with what an engine adds."""
    requests = [
        Request(PROMPTS[i % len(PROMPTS)], method, options.max_tokens, seed=SEED)
        for i in range(options.prompts)
    ]
    total = len(requests) * options.max_tokens
    with tqdm(total=total, desc=f"writing {name}", leave=False) as bar:
        found = written.write(
            load_engine(engine), requests, on_event=lambda _: bar.update() and None
        )
    return found.texts


def prices(shapes: Sequence[Cell], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of `benchmarks.channel_shapes.measure`: every engine, and the base alone."""
    checkpoint = Checkpoint.open(options.out / shapes[0].name / "checkpoint")
    base = options.out / channel_shapes.BASE
    with output_directory(base, marker=MODEL_FILE, force=True) as made:
        save_model(lower(checkpoint, onnxruntime(), PRECISION, widened=False), made)
    names = [channel_shapes.BASE, *(f"{cell.name}/{ENGINE}" for cell in shapes)]
    return channel_shapes.measure(options.out, names, options)


def row_of(cell: Cell, found: dict[str, Any], priced: Any, scores: Any) -> dict[str, Any]:
    """One line of the table: quality, then price."""
    row = {"shape": cell.name, "parameters": found["parameters"]}
    row |= {f"r at {share} %": found["correlation"][share] for share in ("50", "100")}
    for name in ("vader", "probe"):
        pair = (getattr(scores[cell.name], name), getattr(scores[UNGUIDED], name))
        interval = bootstrap_paired_difference(*pair, seed=SEED)
        row |= {name: interval.mean, f"{name} 95 %": f"{interval.low:+.2f} {interval.high:+.2f}"}
    for one in priced:
        if one["shape"] == f"{cell.name}/{ENGINE}":
            row[f"{one['rows']} rows / base"] = one["ratio to the base"]
    return {**row, "training s": found["training_seconds"]}


def plot(shapes: Sequence[Cell], rows: Sequence[dict[str, Any]], price: str) -> Any:
    """Each quality over the price, a line for each kind of attention, points by first layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axis, (key, label) in zip(figure.subplots(1, 3), QUALITIES.items(), strict=True):
        for attention, colour in (("own", "tab:blue"), ("shared", "tab:orange")):
            chosen = [
                (row[price], row[key], cell)
                for cell, row in zip(shapes, rows, strict=True)
                if cell.attention == attention or cell.name == "probe"
            ]
            xs, ys, points = zip(*sorted(chosen, key=lambda one: one[0]), strict=True)
            axis.plot(xs, ys, "o-", color=colour, label=f"{attention} attention")
            for x, y, cell in zip(xs, ys, points, strict=True):
                axis.annotate(str(cell.first_layer), (x, y), (3, 4), textcoords="offset points")
        axis.set(xlabel="time of a step / base alone, 1 row", ylabel=label)
        axis.grid(alpha=0.3)
    axis.legend()
    return figure


def main() -> None:
    """Train, judge and time every shape; write the record and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-layers", nargs="+", type=int, default=[0, 10, 15, 20, 25, 30])
    parser.add_argument("--steps", type=int, default=100, help="of training, for each shape")
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=0.004)
    parser.add_argument("--items", type=int, default=814, help="held-out snippets that are read")
    parser.add_argument("--prompts", type=int, default=36)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prefix", nargs="+", type=int, default=[64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--out", type=Path, default=record.REPOSITORY / "build" / "shape_quality")
    options = parser.parse_args()
    material = prepare(report=print)
    layers = BaseModel.open(material.base).dimensions.num_hidden_layers
    shapes = cells(options.first_layers, layers)
    made = {cell.name: make(cell, material, options) for cell in shapes}
    plain = Plain(temperature=TEMPERATURE, top_k=TOP_K)
    engine = options.out / shapes[-1].name / ENGINE
    texts = {UNGUIDED: write(engine, plain, options, UNGUIDED)}
    texts |= {name: found["texts"] for name, found in made.items()}
    scores = judges.judge(material.base, texts)
    priced = prices(shapes, options)
    rows = [row_of(cell, made[cell.name], priced, scores) for cell in shapes]
    figure = plot(shapes, rows, f"{options.rows[0]} rows / base")
    settings = {**_budget(options), "precision": PRECISION, "weight": WEIGHT}
    record.write("shape_quality", rows, libraries=("torch",), figure=figure, settings=settings)
    print(record.table(rows), end="")


if __name__ == "__main__":
    main()
