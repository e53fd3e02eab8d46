"""Tile sizes of the fused projection's kernel, and which one a launch uses.

A tile is what one program computes: ``rows`` rows of ``outs`` outputs, read ``ins`` inputs at a
time. Everything here is plain data and arithmetic: the ahead-of-time compiler, the just-in-time
launch, the TensorRT plugin and the C++ plugin choose by the same rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Tile:
    """What one program computes, and the resources that it takes.

    Attributes:
        rows: Rows of x and x' (tokens) per program.
        outs: Outputs (rows of a weight) per program.
        ins: Inputs (columns of a weight) per step of the loop.
        warps: Warps of 32 threads per program.
        stages: Depth of the software pipeline: this many tiles, less one, are in flight.
    """

    rows: int
    outs: int
    ins: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """As in file names, for example ``16x32x128``."""
        return f"{self.rows}x{self.outs}x{self.ins}"


@dataclasses.dataclass(frozen=True)
class Widths:
    """Widths of one projection: base and channel, in and out."""

    base_in: int
    channel_in: int
    base_out: int
    channel_out: int

    @property
    def aligned(self) -> bool:
        """Whether every row of x, x', W, A and B starts on 16 bytes (8 values of 2 bytes)."""
        return self.base_in % 8 == 0 and self.channel_in % 8 == 0

    @property
    def weight_values(self) -> int:
        """Values in W, A and B: what a step has to read, whatever the number of rows."""
        return self.base_out * self.base_in + self.channel_out * (self.base_in + self.channel_in)


# A decode step is bound by the bytes of W, A and B, so what counts is bytes in flight on every
# multiprocessor: a tile of outs x ins weights has 8 KiB, and stages - 1 of them are on their way
# per program. Few outputs per program give more programs (small layers fill the device); many
# read x fewer times from the L2 cache (large layers). The last tile is for prefill, where weights
# are reused over many rows and arithmetic counts.
#
# Reasoned, not measured: `python -m benchmarks.gpu.fused_projection --sweep` times every tile.
TILES = (
    Tile(rows=16, outs=16, ins=256, warps=4, stages=4),
    Tile(rows=16, outs=32, ins=128, warps=4, stages=4),
    Tile(rows=16, outs=64, ins=64, warps=4, stages=5),
    Tile(rows=32, outs=16, ins=256, warps=4, stages=3),
    Tile(rows=32, outs=32, ins=128, warps=4, stages=4),
    Tile(rows=32, outs=64, ins=64, warps=4, stages=5),
    Tile(rows=64, outs=128, ins=64, warps=8, stages=3),
)

# Rows that do not start on 16 bytes are read value by value and cannot be copied asynchronously.
# No model in use has such widths; these are for correctness.
UNALIGNED_TILES = (
    Tile(rows=16, outs=32, ins=64, warps=4, stages=2),
    Tile(rows=64, outs=64, ins=32, warps=8, stages=2),
)

#: A layer is large enough for a tile when that gives every multiprocessor this many programs.
PROGRAMS_PER_MULTIPROCESSOR = 2


def ceil_divide(size: int, tile: int) -> int:
    """How many tiles cover ``size``, the last one perhaps partly."""
    return -(-size // tile)


def grid(tile: Tile, rows: int, widths: Widths) -> tuple[int, int]:
    """Programs of a launch: (tiles over the channel's and the base's outputs, tiles over rows)."""
    outs = ceil_divide(widths.channel_out, tile.outs) + ceil_divide(widths.base_out, tile.outs)
    return outs, ceil_divide(rows, tile.rows)


def choose_tile(rows: int, widths: Widths, multiprocessors: int, tiles: Iterable[Tile]) -> Tile:
    """The tile for a launch.

    Of the tiles with the fewest rows that hold all rows (or else the most rows), the one with the
    most outputs that still gives every multiprocessor enough programs (or else the fewest outputs).

    Args:
        rows: Rows of x, at least 1.
        widths: Widths of the projection.
        multiprocessors: Multiprocessors of the device.
        tiles: The tiles to choose from, at least one.

    Returns:
        One of ``tiles``.
    """
    by_outs = sorted(tiles, key=lambda tile: tile.outs)
    enough = [tile.rows for tile in by_outs if tile.rows >= rows]
    tile_rows = min(enough) if enough else max(tile.rows for tile in by_outs)
    by_outs = [tile for tile in by_outs if tile.rows == tile_rows]
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    filling = [t for t in by_outs if grid(t, rows, widths)[0] * grid(t, rows, widths)[1] >= wanted]
    return filling[-1] if filling else by_outs[0]
