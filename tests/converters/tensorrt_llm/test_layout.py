"""L0: who holds what under tensor parallelism, and what cannot be divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_export.converters.tensorrt_llm.layout import Layout
from otter_export.errors import UnsupportedError
from otter_export.family import Space
from tests.built import random_checkpoint
from tests.converters.tensorrt_llm.build import WIDE


@pytest.mark.parametrize(
    ("heads", "inner", "ranks", "divided"),
    [
        (2, 24, 1, (True, True)),
        (4, 24, 2, (True, True)),
        (2, 24, 2, (False, True)),
        (4, 25, 2, (True, False)),
        (2, 25, 4, (False, False)),
    ],
)
def test_what_is_divided(
    heads: int, inner: int, ranks: int, divided: tuple[bool, bool], tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", base=WIDE, heads=heads, intermediate_size=inner)
    layout = Layout.of(checkpoint, ranks)
    assert (layout.heads_divided, layout.inner_divided) == divided
    assert layout.key_value_heads == 4 + (heads // 2 if divided[0] else heads // 2 * ranks)
    for space in Space:
        base = [layout.base_part(space, rank) for rank in range(ranks)]
        whole = checkpoint.base.dimensions.width(space)
        rows = [i for part in base for i in range(part.start, part.stop)]
        expected = list(range(whole)) * (ranks if space is Space.HIDDEN else 1)
        assert rows == expected
        parts = [layout.channel_part(space, rank) for rank in range(ranks)]
        covered = {i for part in parts for i in range(part.start, part.stop)}
        assert covered == set(range(layout.channel[space]))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (0, "--tensor-parallel 0: choose 1 or more"),
        (3, "4 key/value heads or 8 query heads; possible: 1, 2, 4"),
        (8, "4 key/value heads; possible: 1, 2, 4"),
    ],
)
def test_ranks_that_do_not_divide_are_one_clear_line(
    ranks: int, message: str, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", base=WIDE)
    with pytest.raises(UnsupportedError) as caught:
        Layout.of(checkpoint, ranks)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("vocabulary", "ranks", "rows"), [(128, 4, 128), (127, 2, 128)])
def test_vocabulary_is_padded_to_the_ranks(
    vocabulary: int, ranks: int, rows: int, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", base={**WIDE, "vocab_size": vocabulary})
    assert Layout.of(checkpoint, ranks).vocabulary_rows == rows
