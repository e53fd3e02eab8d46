"""A step of ONNX Runtime on a GPU: the widened graph against the base alone, in turns.

    python -m benchmarks.gpu.onnxruntime_steps CHECKPOINT... [--past 256] [--precision fp16]

Needs ``onnxruntime-gpu``. Caches lie on the device, as an engine's do; token ids go in, and logits
and signals come back. The figures are medians, and the ratio is theirs. Writes
``benchmarks/results/gpu_onnxruntime_steps.*``. ``--provider cpu`` only shows that the script works:
nothing is written.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

# ONNX Runtime looks at it once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import click
import numpy as np
import onnxruntime as ort

from benchmarks import record
from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import save_model
from otter_export.converters.onnx import node_counts
from otter_export.engine_io import WRITE_INDICES, is_cache
from otter_export.graph.pipeline import lower, onnxruntime
from otter_export.runtime.executors.onnxruntime import PROVIDERS, open_session

BATCHES = (1, 8)
STEPS = (1, 4, 8, 16)
ROUNDS, WARMUP = 30, 10
#: Graphs by name, and whether they are widened.
GRAPHS = {"base": False, "widened": True}
CACHE_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32}


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--provider", type=click.Choice(list(PROVIDERS)), default="cuda", show_default=True)
@click.option("--precision", default="fp16", show_default=True)
@click.option("--past", default=256, show_default=True, help="Tokens in the cache.")
def main(checkpoints: tuple[Path, ...], provider: str, precision: str, past: int) -> None:
    """Time steps of CHECKPOINTS."""
    rows = [
        {"model": checkpoint.name, **row}
        for checkpoint in checkpoints
        for row in measured(Checkpoint.open(checkpoint), provider, precision, past)
    ]
    if provider == "cuda":
        record.write("gpu_onnxruntime_steps", rows, precision=precision, past=past)
    click.echo(record.table(rows), nl=False)


def measured(
    checkpoint: Checkpoint, provider: str, precision: str, past: int
) -> list[dict[str, Any]]:
    """One row for each batch and number of tokens of a step."""
    sessions, nodes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, widened in GRAPHS.items():
            directory = Path(folder) / name
            directory.mkdir()
            model = lower(checkpoint, onnxruntime(provider), precision, widened=widened)
            save_model(model, directory)
            nodes[f"{name} nodes"] = int(node_counts(model)["nodes"])
            sessions[name] = open_session(directory / "model.onnx", provider)
        rows = []
        for batch in BATCHES:
            for step in STEPS:
                runs = {n: Step(s, provider, batch, step, past) for n, s in sessions.items()}
                found = record.in_turns(runs, rounds=ROUNDS, warmup=WARMUP, against="base")
                ms = {f"{row['name']} ms": row["median"] for row in found}
                ratio = ms["widened ms"] / ms["base ms"]
                shape = {"sequences": batch, "tokens": step}
                rows.append({**shape, **ms, "widened / base": ratio, **nodes})
        return rows


class Step:
    """A step that can be called again and again, and gives its milliseconds.

    Args:
        session: Of the graph.
        provider: What the session runs on; its caches lie there.
        batch: Sequences.
        step: Tokens of each.
        past: Tokens of each in the cache.
    """

    def __init__(self, session: Any, provider: str, batch: int, step: int, past: int) -> None:
        self._session, self._binding = session, session.io_binding()
        generator = np.random.default_rng(0)
        # On the CPU the model writes its caches, which have room for the step.
        in_place = any(value.name == WRITE_INDICES for value in session.get_inputs())
        slots = past + step if in_place else past
        mask = (batch, 1, step, slots) if in_place else (batch, step, past + step)
        tokens = {
            "input_ids": np.full((batch, step), 5),
            "position_ids": np.full((batch, step), past),
            "attention_mask": np.ones(mask, bool),
            "logits_to_keep": np.array([step]),
            WRITE_INDICES: np.full(batch, past),
            "kept_rows": np.tile(np.arange(step), (batch, 1)),
        }
        for value in session.get_inputs():
            if is_cache(value.name):
                shape = (batch, value.shape[1], slots, value.shape[3])
                array = 0.1 * generator.standard_normal(shape)
                array, device = array.astype(CACHE_TYPES[value.type]), provider
            else:
                array, device = tokens[value.name], "cpu"
            bound = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            self._binding.bind_ortvalue_input(value.name, bound)
        for value in session.get_outputs():
            self._binding.bind_output(value.name, provider if is_cache(value.name) else "cpu")

    def __call__(self) -> float:
        """Run it, and wait for it."""
        started = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
