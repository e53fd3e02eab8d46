"""What a channel costs by its shape: a step's time over that of the base alone.

Usage: python -m benchmarks.channel_shapes BASE [--precision int8] [--rows 1 8] [--prefix 64 512]

One thread; the shapes take turns, and the CPU time of the process is taken rather than the clock,
so that other work on the machine hardly shows. Writes ``benchmarks/results/channel_shapes.*``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.graph_forms import bound, load, prefilled, step
from otter_export import insert
from otter_export.channel_options import ChannelOptions
from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import save_model
from otter_export.converters.onnx import node_counts
from otter_export.graph.pipeline import lower, onnxruntime

#: Steps of a turn, of which the fastest counts.
STEPS = 5
BASE = "base alone"


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape: the share of the base's layers below the channel, and whose attention it has."""

    name: str
    below: float
    attention: str


SHAPES = (
    Shape("whole, own attention", 0.0, "own"),
    Shape("whole, shared attention", 0.0, "shared"),
    Shape("upper half, own attention", 0.5, "own"),
    Shape("upper half, shared attention", 0.5, "shared"),
    Shape("probe", 1.0, "own"),
)


def checkpoint_of(base: Path, shape: Shape, directory: Path, options: argparse.Namespace) -> Any:
    """A checkpoint with a channel of this shape."""
    channel = ChannelOptions(
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        heads=options.heads,
        initialization="normal",
        attention=shape.attention,
    )
    layers = insert.plan(str(base), directory, channel, adapter=True).base.dimensions
    first = round(shape.below * layers.num_hidden_layers)
    channel = dataclasses.replace(channel, first_layer=first)
    insert.plan(str(base), directory, channel, adapter=True).write()
    return Checkpoint.open(directory)


def build(root: Path, options: argparse.Namespace) -> dict[str, int]:
    """The graph of every shape and of the base alone, in folders of their names; their nodes."""
    nodes = {}
    for shape in SHAPES:
        checkpoint = checkpoint_of(options.base, shape, root / f"{shape.name} checkpoint", options)
        for name, widened in ((BASE, False), (shape.name, True)):
            if name not in nodes:
                model = lower(checkpoint, onnxruntime(), options.precision, widened=widened)
                (root / name).mkdir()
                save_model(model, root / name)
                nodes[name] = int(node_counts(model)["nodes"])
    return nodes


def fastest(session: Any, binding: Any) -> float:
    """Milliseconds of one step: the best of some."""
    times = []
    for _ in range(STEPS):
        started = time.process_time()
        session.run_with_iobinding(binding)
        times.append(time.process_time() - started)
    return min(times) * 1e3


def measure(root: Path, names: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each shape, step and prefix.

    Where a session's weights come to lie in memory moves its speed by a tenth, also of two copies
    of one graph, so all are loaded several times, in another order, and the best load counts.
    """
    best: dict[tuple[int, int, str], float] = {}
    for turn in range(options.loads):
        order = [*names[turn % len(names) :], *names[: turn % len(names)]]
        sessions = {name: load(root / name) for name in order}
        for prefix in options.prefix:
            past = {name: prefilled(session, prefix) for name, session in sessions.items()}
            for count in options.rows:
                runs = {
                    name: functools.partial(fastest, s, bound(s, step(s, count, past[name])))
                    for name, s in sessions.items()
                }
                for row in record.in_turns(runs, rounds=options.rounds, against=BASE):
                    key = (count, prefix, row["name"])
                    best[key] = min(best.get(key, row["p10"]), row["p10"])
    return [
        {
            "rows": count,
            "prefix": prefix,
            "shape": name,
            "ms": milliseconds,
            "ratio to the base": milliseconds / best[count, prefix, BASE],
        }
        for (count, prefix, name), milliseconds in best.items()
    ]


def main() -> None:
    """Build, measure, write the record and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="a base model's directory")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prefix", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--intermediate-size", type=int, default=32)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        nodes = build(Path(root), options)
        rows = measure(Path(root), list(nodes), options)
    table = [{**row, "nodes": nodes[row["shape"]]} for row in rows]
    record.write("channel_shapes", table, libraries=("onnx_ir",), precision=options.precision)
    print(record.table(table), end="")


if __name__ == "__main__":
    main()
