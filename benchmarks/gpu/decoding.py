"""Guided against plain decoding in torch, with and without CUDA graphs: ratios in one run.

    python benchmarks/gpu/decoding.py CHECKPOINT [--precision bf16] [--fused] [--json]

Needs a GPU. ``--device cpu`` shows that the script works; CUDA graphs are then left out, and its
figures say nothing about a GPU. All runs are interleaved, the best of the repeats counts, and the
first round, in which graphs are captured and kernels compiled, does not.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import click
import torch

from otter_export import ArgsGreedy, Plain, generate
from otter_export.checkpoint import Checkpoint
from otter_export.errors import OtterError
from otter_export.modeling.torch_engine import DEVICES, DTYPES, TorchOptions, torch_engine
from otter_export.runtime.engine import Engine

PROMPTS = ("The movie was", "I watched this film last night and")
WEIGHT = 4.0


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--device", type=click.Choice(DEVICES), default="cuda", show_default=True)
@click.option("--precision", type=click.Choice(list(DTYPES)), help="[default: the base's own]")
@click.option("--fused", is_flag=True, help="Projections by the fused kernel (half precision).")
@click.option("--tokens", default=128, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--top-k", "counts", multiple=True, type=int, default=(4, 8, 16), show_default=True)
@click.option("--batch-size", "batches", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    checkpoint: Path,
    device: str,
    precision: str | None,
    fused: bool,
    tokens: int,
    repeats: int,
    counts: tuple[int, ...],
    batches: tuple[int, ...],
    as_json: bool,
) -> None:
    """Time decoding of CHECKPOINT and print tokens per second and ratios to plain decoding."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError(
            "this benchmark measures a GPU, and torch finds none here; run it where there is one "
            "(--device cpu only checks that the script works)"
        )
    options = TorchOptions(device=device, precision=precision, fused=fused)
    graphs = (False, True) if device == "cuda" else (False,)
    try:
        engines = {g: make_engine(checkpoint, options, graphs=g) for g in graphs}
    except OtterError as error:
        raise click.UsageError(str(error)) from None
    methods: dict[str, Plain | ArgsGreedy] = {"plain": Plain()}
    for k in counts:
        methods[f"guided k={k}"] = ArgsGreedy(top_k=k, weight=WEIGHT, prune=False)
        methods[f"guided k={k}, pruned"] = ArgsGreedy(top_k=k, weight=WEIGHT)
    rows = measure(engines, methods, batches, tokens, repeats)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    used = engines[False].manifest.precision
    head = {"device": where, "torch": torch.__version__, "precision": used, "fused": fused}
    if as_json:
        click.echo(json.dumps({**head, "rows": rows}))
        return
    click.echo(", ".join(f"{name}: {value}" for name, value in head.items()))
    click.echo(f"{'batch':>5} {'graphs':>6} {'method':22} {'tokens/s':>9} {'/ plain':>8}")
    for row in rows:
        click.echo(
            f"{row['batch']:5} {row['graphs']!s:>6} {row['method']:22} "
            f"{row['tokens_per_second']:9.1f} {row['time_over_plain']:8.2f}"
        )


def make_engine(checkpoint: Path, options: TorchOptions, *, graphs: bool) -> Engine:
    """An engine with or without CUDA graphs; each has a model of its own."""
    return torch_engine(
        Checkpoint.open(checkpoint), dataclasses.replace(options, cuda_graphs=graphs)
    )


def measure(
    engines: dict[bool, Engine],
    methods: dict[str, Plain | ArgsGreedy],
    batches: tuple[int, ...],
    tokens: int,
    repeats: int,
) -> list[dict[str, object]]:
    """One row per batch size, kind of launch and method."""
    best: dict[tuple[int, bool, str], float] = {}
    for repeat in range(repeats + 1):
        for batch in batches:
            for graphs, engine in engines.items():
                for name, method in methods.items():
                    seconds = seconds_per_token(engine, method, batch, tokens)
                    key = (batch, graphs, name)
                    if repeat:
                        best[key] = min(best.get(key, seconds), seconds)
    return [
        {
            "batch": batch,
            "graphs": graphs,
            "method": name,
            "tokens_per_second": 1 / seconds,
            "time_over_plain": seconds / best[batch, graphs, "plain"],
        }
        for (batch, graphs, name), seconds in best.items()
    ]


def seconds_per_token(engine: Engine, method: Plain | ArgsGreedy, batch: int, tokens: int) -> float:
    """Wall time over all generated tokens of a batch, prefill included."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch)]
    started = time.perf_counter()
    results = generate(engine, prompts, method, max_tokens=tokens, batch_size=batch)
    return (time.perf_counter() - started) / sum(len(r.token_ids) for r in results)


if __name__ == "__main__":
    main()
