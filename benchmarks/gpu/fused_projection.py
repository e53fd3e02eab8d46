"""The fused projection on a GPU: exactness, time against cuBLAS, and against the bytes floor.

Usage::

    python -m benchmarks.gpu.fused_projection [--models 135M 1B 7B 70B] [--rows 1 4 8 16 32]
        [--dtype bfloat16] [--sweep] [--out TABLE.md]
    python -m benchmarks.gpu.fused_projection --dry-run [--bandwidth 3350] [--multiprocessors 132]

Every form runs in CUDA graphs over copies of the weights that exceed the L2 cache; forms take
turns; the least time counts. The floor is the bytes that have to move, at the bandwidth measured in
the same run. ``--sweep`` times every tile and names the best. Exit status 1 if a result is off by
more than rounding explains.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import timing
from benchmarks.gpu.forms import FORMS, Tensors, draw, error
from benchmarks.gpu.layers import MODELS, floor_microseconds, moved_bytes, weight_bytes
from otter_export.plugins.tiles import TILES, Tile, Widths, choose_tile


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one Markdown table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8, 16, 32])
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--sweep", action="store_true", help="time every tile")
    parser.add_argument("--out", type=Path, help="also write the table to a file")
    parser.add_argument("--dry-run", action="store_true", help="shapes and floors; needs no GPU")
    parser.add_argument("--bandwidth", type=float, default=3350, help="GB/s, for --dry-run")
    parser.add_argument("--multiprocessors", type=int, default=132, help="for --dry-run")
    given = parser.parse_args(arguments)
    if min(given.rows) < 1:
        parser.error("--rows: at least 1")
    if given.dry_run:
        lines = list(_plan(given.models, given.rows, 1e9 * given.bandwidth, given.multiprocessors))
        failed = False
    elif not torch.cuda.is_available():
        print(
            "error: this needs an NVIDIA GPU; --dry-run prints shapes and floors", file=sys.stderr
        )
        return 2
    else:
        lines, failed = _measure(given.models, given.rows, given.dtype, sweep=given.sweep)
    print("\n".join(lines))
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(failed)


def _plan(
    models: Sequence[str], rows: Sequence[int], bytes_per_second: float, multiprocessors: int
) -> Iterator[str]:
    """Every case with its bytes, its floor and the tile that it would take."""
    yield "| model | projection | in + in' | out + out' | rows | MB | floor us | tile |"
    yield "|---|---|---|---|---|---|---|---|"
    for model, name, widths, count in _cases(models, rows):
        tile = choose_tile(count, widths, multiprocessors, TILES)
        floor = floor_microseconds(widths, count, bytes_per_second)
        yield (
            f"| {model} | {name} | {widths.base_in} + {widths.channel_in} "
            f"| {widths.base_out} + {widths.channel_out} | {count} "
            f"| {moved_bytes(widths, count) / 1e6:.2f} | {floor:.2f} | {tile.name} |"
        )


def _measure(
    models: Sequence[str], rows: Sequence[int], dtype: str, *, sweep: bool
) -> tuple[list[str], bool]:
    """The table, and whether any result was off."""
    device = torch.cuda.get_device_properties(0)
    rate = timing.bandwidth()
    lines = [
        f"{device.name}, {dtype}, {rate / 1e9:.0f} GB/s measured; torch {torch.__version__}. Times "
        "in us; the error is in units of what rounding explains (at most 1).",
        "",
        f"| model | projection | rows | floor | {' | '.join(FORMS)} | fused / floor "
        "| fused / two calls | error | tile | best tile |",
        "|---" * (9 + len(FORMS)) + "|",
    ]
    failed = False
    for model, name, widths, count in _cases(models, rows):
        chosen = choose_tile(count, widths, device.multi_processor_count, TILES)
        copies = _copies(widths, count, dtype)
        off = error(FORMS["fused"](copies[0]), copies[0])
        failed = failed or not off <= 1  # NaN fails, too
        times = _times(copies)
        best = min(_times_of_tiles(copies).items(), key=lambda item: item[1]) if sweep else None
        floor = floor_microseconds(widths, count, rate)
        lines.append(
            f"| {model} | {name} | {count} | {floor:.2f} "
            f"| {' | '.join(f'{times[form]:.2f}' for form in FORMS)} "
            f"| {times['fused'] / floor:.2f} | {times['fused'] / times['two calls']:.2f} "
            f"| {off:.2f} | {chosen.name} | {f'{best[0].name} {best[1]:.2f}' if best else ''} |"
        )
    return lines, failed


def _cases(models: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[str, str, Widths, int]]:
    for model in models:
        for name, widths in MODELS[model].projections().items():
            for count in rows:
                yield model, name, widths, count


def _copies(widths: Widths, rows: int, dtype: str) -> list[Tensors]:
    """Enough copies of the weights that none is still in the cache when its turn comes."""
    number = timing.copies_of(weight_bytes(widths))
    return [draw(widths, rows, getattr(torch, dtype), "cuda", seed) for seed in range(number)]


def _times(copies: list[Tensors]) -> dict[str, float]:
    """Microseconds of one projection in each form."""

    def run(form: Callable[[Tensors], object]) -> list[object]:
        return [form(tensors) for tensors in copies]

    graphs = {n: timing.graph_of(functools.partial(run, form)) for n, form in FORMS.items()}
    return {name: time / len(copies) for name, time in timing.best_microseconds(graphs).items()}


def _times_of_tiles(copies: list[Tensors]) -> dict[Tile, float]:
    """Microseconds of one projection by each tile that holds all rows or has the most."""
    from otter_export.plugins.otter_linear import launch

    first = copies[0]
    rows = first.x.shape[0]
    y = first.x.new_empty(rows, first.weight.shape[0])
    y_channel = first.x.new_empty(rows, first.from_base.shape[0])

    def run(tile: Tile) -> None:
        for t in copies:
            weights = (t.weight, t.from_base, t.from_channel)
            launch(tile, t.x, t.x_channel, weights, None, y, y_channel)

    tiles = [t for t in TILES if t.rows >= rows] or [max(TILES, key=lambda t: t.rows)]
    graphs = {tile.name: timing.graph_of(functools.partial(run, tile)) for tile in tiles}
    times = timing.best_microseconds(graphs)
    return {tile: times[tile.name] / len(copies) for tile in tiles}


if __name__ == "__main__":
    sys.exit(main())
