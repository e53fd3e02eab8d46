"""L0: the choice of a tile, and that the programs of a launch cover every output once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otter_export.plugins.tiles import TILES, UNALIGNED_TILES, Tile, Widths, choose_tile, grid

SIZES = st.integers(1, 70_000)
WIDTHS = st.builds(Widths, SIZES, SIZES, SIZES, SIZES)


@given(rows=st.integers(1, 9000), widths=WIDTHS, multiprocessors=st.integers(1, 200))
def test_the_choice_keeps_its_promises(rows: int, widths: Widths, multiprocessors: int) -> None:
    for tiles in (TILES, UNALIGNED_TILES):
        chosen = choose_tile(rows, widths, multiprocessors, tiles)

        def programs(tile: Tile) -> int:
            across, down = grid(tile, rows, widths)
            return across * down

        most = max(tile.rows for tile in tiles)
        # Weights are read once, as long as there is a tile for that.
        assert chosen.rows == min((t.rows for t in tiles if t.rows >= rows), default=most)
        same_rows = [tile for tile in tiles if tile.rows == chosen.rows]
        for tile in same_rows:
            # A larger tile would starve the device; a smaller one is only a way out of that.
            if tile.outs > chosen.outs:
                assert programs(tile) < 2 * multiprocessors
            if tile.outs < chosen.outs:
                assert programs(chosen) >= 2 * multiprocessors


@given(rows=st.integers(1, 9000), widths=WIDTHS)
def test_programs_cover_every_output_once(rows: int, widths: Widths) -> None:
    for tile in (*TILES, *UNALIGNED_TILES):
        across, down = grid(tile, rows, widths)
        assert (down - 1) * tile.rows < rows <= down * tile.rows
        channel = -(-widths.channel_out // tile.outs)
        base = across - channel  # the kernel counts the channel's first
        assert (base - 1) * tile.outs < widths.base_out <= base * tile.outs


def test_small_layers_take_small_tiles_and_large_ones_large() -> None:
    layers = [(576, 64), (4096, 512), (11008, 1376), (28672, 3584)]
    outs = [
        choose_tile(8, Widths(4096, 512, base, channel), 132, TILES).outs
        for base, channel in layers
    ]
    assert outs == [16, 16, 32, 64]
    assert [choose_tile(n, Widths(64, 64, 64, 64), 132, TILES).rows for n in (1, 16, 17, 33)] == [
        *(16, 16, 32, 64)
    ]


def test_tiles_have_names_and_places_of_their_own() -> None:
    assert len({tile.name for tile in TILES}) == len(TILES)
    for tile in (*TILES, *UNALIGNED_TILES):
        # What Triton asks of its ranges.
        assert all(size & (size - 1) == 0 for size in (tile.rows, tile.outs, tile.ins, tile.warps))


def test_weight_values_and_alignment() -> None:
    widths = Widths(base_in=16, channel_in=8, base_out=10, channel_out=4)
    assert widths.weight_values == 10 * 16 + 4 * 16 + 4 * 8
    assert widths.aligned
    assert not Widths(16, 4, 10, 4).aligned and not Widths(12, 8, 10, 4).aligned
