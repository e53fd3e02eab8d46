"""L2: one step of a tree, chunks of a prompt and fewer logits equal the plain forward pass.

Tolerance: 2e-5 of the largest magnitude, or of 1 where that is smaller. The keys of a row are the
same numbers either way; their softmax is summed in another order.
"""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests import built, tiny
from tests.converters.conftest import Built, tokens

Array = np.ndarray[Any, Any]
TOLERANCE = 2e-5
FAMILIES = list(tiny.CONFIGS)


def close(found: Array, expected: Array) -> None:
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def prefill(graph: built.Graph, rows: list[Array], capacity: int) -> tuple[dict[str, Array], Array]:
    """Caches of prefixes with different lengths in one batch, garbage in the unused slots."""
    generator = np.random.default_rng(5)
    past = {
        name: generator.standard_normal((len(rows), heads, capacity, size)).astype(dtype)
        for name, (heads, size, dtype) in graph.caches.items()
    }
    for b, row in enumerate(rows):
        for name, new in built.new_rows(graph(row[None])).items():
            past[name][b, :, : len(row)] = new[0]
    return past, np.array([len(row) for row in rows])


def random_tree(parents: list[int], size: int) -> tuple[Array, Array]:
    """``(tree [S, S], depth [S])``: each node sees its ancestors and itself."""
    tree = np.zeros((size, size), bool)
    depth = np.zeros(size, np.int64)
    for i, parent in enumerate(parents[:size]):
        if parent >= 0:
            tree[i] |= tree[parent]
            depth[i] = depth[parent] + 1
        tree[i, i] = True
    return tree, depth


@pytest.mark.parametrize("family", FAMILIES)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=8)
def test_a_tree_over_a_prefix_equals_sequential_forwards(
    family: str, families: dict[str, Built], data: st.DataObject
) -> None:
    """Batch of two with different prefixes and trees; the shorter step has padding rows."""
    made = families[family]
    lengths = [data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))]
    sizes = [data.draw(st.integers(1, 6)) for _ in lengths]
    step = max(sizes)
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    past, lengths_array = prefill(made.graph, rows, max(lengths) + data.draw(st.integers(0, 4)))
    ids = tokens(2, step, seed=step)
    tree = np.zeros((2, step, step), bool)
    depths = np.zeros((2, step), np.int64)
    for b, size in enumerate(sizes):
        parents = [data.draw(st.integers(-1, i - 1)) for i in range(size)]
        tree[b, :size, :size], depths[b, :size] = random_tree(parents, size)
        tree[b] |= np.eye(step, dtype=bool)  # padding rows see the prefix and themselves
    found = made.graph(
        ids, past=past, lengths=lengths_array, positions=lengths_array[:, None] + depths, tree=tree
    )
    for b, size in enumerate(sizes):
        for i in range(size):
            path = np.concatenate([rows[b], ids[b, tree[b, i]]])
            expected = made.graph(path[None])
            for name in ("logits", "reward", "next"):
                close(found[name][b, i], expected[name][0, -1])
            for name, new in built.new_rows(expected).items():
                row = built.new_rows(found)[name][b, :, i]
                close(row, new[0, :, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_never_reaches_a_value(family: str, families: dict[str, Built]) -> None:
    """NaN in unused slots of the cache must not spread: 0 * NaN is NaN."""
    made = families[family]
    past, lengths = prefill(made.graph, [tokens(1, 3)[0], tokens(1, 6)[0]], 8)
    ids = tokens(2, 2, seed=1)
    before = made.graph(ids, past=past, lengths=lengths)
    for value in past.values():
        for b, length in enumerate(lengths):
            value[b, :, length:] = 1e6
    after = made.graph(ids, past=past, lengths=lengths)
    for name in ("logits", "reward", "next"):
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cuts", [(1,), (7,), (3, 8), tuple(range(1, 12))])
def test_prefill_in_chunks_equals_one_prefill(
    family: str, cuts: tuple[int, ...], families: dict[str, Built]
) -> None:
    made, ids = families[family], tokens(2, 12)
    whole = made.graph(ids)
    past: dict[str, Array] | None = None
    pieces = []
    for chunk in np.split(ids, cuts, axis=1):
        outputs = made.graph(chunk, past=past)
        pieces.append(outputs)
        rows = built.new_rows(outputs)
        past = (
            rows
            if past is None
            else {name: np.concatenate([past[name], rows[name]], axis=2) for name in rows}
        )
    for name in ("logits", "reward", "next"):
        joined = np.concatenate([piece[name] for piece in pieces], axis=1)
        close(joined, whole[name])
    assert past is not None
    for name, rows_of_whole in built.new_rows(whole).items():
        close(past[name], rows_of_whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [1, 2, 7])
def test_logits_to_keep_equals_slicing(family: str, keep: int, families: dict[str, Built]) -> None:
    """Fewer rows may take another matrix kernel, so this is not bit for bit."""
    made, ids = families[family], tokens(2, 7)
    whole, kept = made.graph(ids), made.graph(ids, keep=keep)
    for name in ("logits", "reward", "next"):
        assert kept[name].shape[1] == keep
        assert built.relative(kept[name], whole[name][:, -keep:]) < 1e-6
    for name, rows in built.new_rows(whole).items():
        np.testing.assert_array_equal(built.new_rows(kept)[name], rows)


def test_rows_of_a_batch_do_not_mix(families: dict[str, Built]) -> None:
    made, ids = families["llama"], tokens(3, 6)
    together = made.graph(ids)
    for b in range(3):
        alone = made.graph(ids[b : b + 1])
        close(together["logits"][b], alone["logits"][0])
        close(together["reward"][b], alone["reward"][0])
