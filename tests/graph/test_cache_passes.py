"""L1: the cache passes with windows and soft caps, against plain attention in numpy.

Tolerance: 1e-5 in float32 (sums in another order); 1e-2 in float16 (10 bits, scores up to 20).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.engine_io import ATTENTION_MASK
from otter_export.graph.passes.in_place_cache import InPlaceCache
from otter_export.graph.passes.in_place_products import InPlaceProducts
from otter_export.graph.passes.read_only_cache import ReadOnlyCache
from otter_export.graph.windows import set_windows
from otter_export.layer_attention import LayerAttention
from tests.graph.text import ops, parse, randn, run

Array = np.ndarray[Any, Any]
CAPACITY, SIZE, SCALE = 16, 4, 2.0
#: The passes by the form that a graph gets, and the nodes that layers share.
PASSES: dict[str, Callable[[], ir.passes.InPlacePass]] = {
    "read_only": ReadOnlyCache,
    "in_place": lambda: InPlaceCache(CAPACITY),
    "in_place-products": InPlaceProducts,
}
TOLERANCE = {"float": 1e-5, "float16": 1e-2}


@dataclasses.dataclass(frozen=True)
class Step:
    """New rows behind committed prefixes.

    Args:
        lengths: Rows of each prefix.
        parents: For each new row the one before it; -1 is the prefix.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]

    @property
    def tree(self) -> Array:
        """Bool ``[S, S]``: which new rows each sees."""
        seen = np.eye(len(self.parents), dtype=bool)
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                seen[row] |= seen[parent]
        return seen

    @property
    def positions(self) -> Array:
        """``[B, S]``."""
        depths = self.tree.sum(-1) - 1
        found: Array = np.array(self.lengths)[:, None] + depths
        return found


STEPS = {
    "chunk": Step((5, 5), tuple(range(-1, 7))),
    "first-chunk": Step((0,), tuple(range(-1, 7))),
    "unequal": Step((0, 7, 2), (-1, 0, 1)),
    # Three candidates behind the prefix, and two behind the second of them, one of which goes on.
    "tree": Step((6, 3), (-1, -1, -1, 1, 1, 4)),
}
#: Beside no window: this position alone, less than prefixes and steps, more than everything.
WINDOWS = (None, 1, 3, 40)


@dataclasses.dataclass(frozen=True)
class Heads:
    """Queries and keys of one attention."""

    queries: int = 4
    keys: int = 2


def attention_model(
    heads: Heads, window: int | None, cap: float = 0.0, dtype: str = "float"
) -> ir.Model:
    model = parse(
        f"""g (int64[B, S] input_ids, int64[B, S] position_ids, {dtype}[B, S, Q] q,
               {dtype}[B, S, K] k, {dtype}[B, S, K] v, bool[B, 1, S, T] attention_mask,
               {dtype}[B, {heads.keys}, P, {SIZE}] past_key_values__0__key,
               {dtype}[B, {heads.keys}, P, {SIZE}] past_key_values__0__value)
           => ({dtype}[B, S, Q] y, {dtype}[B, {heads.keys}, T, {SIZE}] present__0__key,
               {dtype}[B, {heads.keys}, T, {SIZE}] present__0__value)
           {{ a, present__0__key, present__0__value = Attention <q_num_heads = {heads.queries},
                kv_num_heads = {heads.keys}, scale = {SCALE}, softcap = {cap}>
                (q, k, v, attention_mask, past_key_values__0__key, past_key_values__0__value)
              y = Identity (a) }}"""
    )
    set_windows(model, [LayerAttention(window, None)])
    return model


def values(step: Step, heads: Heads, dtype: Any) -> dict[str, Array]:
    """Queries, keys and values of the new rows; caches with garbage behind the prefixes."""
    batch, count = len(step.lengths), len(step.parents)
    cache = (batch, heads.keys, CAPACITY, SIZE)
    arrays = {
        "q": randn(batch, count, heads.queries * SIZE),
        "k": randn(batch, count, heads.keys * SIZE, seed=1),
        "v": randn(batch, count, heads.keys * SIZE, seed=2),
        "past_key_values__0__key": randn(*cache, seed=3),
        "past_key_values__0__value": randn(*cache, seed=4),
    }
    return {name: array.astype(dtype) for name, array in arrays.items()}


def inputs_of(step: Step, given: dict[str, Array], *, in_place: bool) -> dict[str, Array]:
    """What a graph of either cache form gets."""
    batch, count = len(step.lengths), len(step.parents)
    longest = max(step.lengths)
    mask = np.zeros((batch, count, CAPACITY if in_place else longest + count), bool)
    for b, length in enumerate(step.lengths):
        start = length if in_place else longest
        mask[b, :, :length] = True
        mask[b, :, start : start + count] = step.tree
    inputs = {
        **given,
        "input_ids": np.zeros((batch, count), np.int64),
        "position_ids": step.positions,
        ATTENTION_MASK: mask[:, None] if in_place else mask,
    }
    if in_place:
        return {**inputs, "write_indices": np.array(step.lengths)}
    return {n: v[:, :, :longest] if n.startswith("past") else v for n, v in inputs.items()}


def expected(
    step: Step, heads: Heads, given: dict[str, Array], window: int | None, cap: float = 0.0
) -> Array:
    """``[B, S, H*e]`` float64, query by query."""
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    rows = np.zeros(wide["q"].shape)
    for b, length in enumerate(step.lengths):
        for s, position in enumerate(step.positions[b]):
            seen = np.concatenate([np.ones(length, bool), step.tree[s]])
            places = np.concatenate([np.arange(length), step.positions[b]])
            if window is not None:
                seen &= places > position - window
            for h in range(heads.queries):
                own = slice(h * SIZE, (h + 1) * SIZE)
                shared = h // (heads.queries // heads.keys)
                there = slice(shared * SIZE, (shared + 1) * SIZE)
                k, v = (
                    np.concatenate([wide[f"past_key_values__0__{kind}"][b, shared, :length], new])
                    for kind, new in (
                        ("key", wide["k"][b, :, there]),
                        ("value", wide["v"][b, :, there]),
                    )
                )
                scores = SCALE * k[seen] @ wide["q"][b, s, own]
                if cap:
                    scores = cap * np.tanh(scores / cap)
                weights = np.exp(scores - scores.max())
                rows[b, s, own] = weights / weights.sum() @ v[seen]
    return rows


@pytest.mark.parametrize("form", PASSES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", STEPS)
def test_windows(form: str, window: int | None, name: str) -> None:
    check(STEPS[name], Heads(), window, form=form)


@pytest.mark.parametrize("form", PASSES)
@pytest.mark.parametrize("heads", [Heads(2, 2), Heads(6, 2), Heads(4, 1)], ids=str)
@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_groups_of_heads(form: str, heads: Heads, cap: float) -> None:
    check(STEPS["tree"], heads, 3, cap, form=form)


@pytest.mark.parametrize("form", PASSES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", STEPS)
def test_soft_caps_come_before_the_mask(form: str, dtype: str, name: str) -> None:
    """Capped behind it, what is hidden would have a score of -3 and show."""
    for window in (None, 3):
        check(STEPS[name], Heads(), window, 3.0, dtype, form=form)


def check(
    step: Step,
    heads: Heads,
    window: int | None,
    cap: float = 0.0,
    dtype: str = "float",
    *,
    form: str,
) -> None:
    model = attention_model(heads, window, cap, dtype)
    given = values(step, heads, np.float16 if dtype == "float16" else np.float32)
    one = PASSES[form]()
    assert one(model).modified
    found = run(model, **inputs_of(step, given, in_place=form != "read_only"))[0]
    reference = expected(step, heads, given, window, cap)
    np.testing.assert_allclose(found, reference, atol=TOLERANCE[dtype], rtol=0)
    if window is not None and window < max(step.lengths):  # or the window would not show
        whole = expected(step, heads, given, None, cap)
        assert np.abs(reference - whole).max() > 0.1
    if form == "in_place":
        assert ("Attention" in ops(model)) == (cap == 0.0)  # else written out
    assert not one(model).modified


def test_layers_of_one_window_share_a_mask() -> None:
    """Two layers with a window, one with another, one without: each mask is made once."""
    layer = """q{0}, present__{0}__key, present__{0}__value = Attention <q_num_heads = 2,
        kv_num_heads = 2> (x, x, x, attention_mask, past_key_values__{0}__key,
        past_key_values__{0}__value)"""
    kinds = [f"{i}__{kind}" for i in range(4) for kind in ("key", "value")]
    inputs = "".join(f", float[B, 2, P, 4] past_key_values__{kind}" for kind in kinds)
    outputs = ", ".join(f"float[B, 2, T, 4] present__{kind}" for kind in kinds)
    text = f"""g (int64[B, S] input_ids, int64[B, S] position_ids, float[B, S, 8] q,
           bool[B, 1, S, T] attention_mask{inputs}) => ({outputs})
        {{ x = Identity (q) {" ".join(layer.format(i) for i in range(4))} }}"""
    for form, wheres in {"read_only": 3, "in_place": 1, "in_place-products": 4}.items():
        model = parse(text)
        set_windows(model, [LayerAttention(window, None) for window in (5, None, 5, 3)])
        PASSES[form]()(model)
        names = [v.name for node in model.graph for v in node.outputs]
        assert len(names) == len(set(names))
        counts = {op: ops(model).count(op) for op in ("Where", "And")}
        assert counts == {"Where": wheres, "And": 2}


def test_a_graph_without_attention_stays() -> None:
    model = parse("g (float[B, 4] x) => (float[B, 4] y) { y = Relu (x) }")
    assert not InPlaceProducts()(model).modified
    assert not ReadOnlyCache()(model).modified
    assert not InPlaceCache(CAPACITY)(model).modified
    assert ops(model) == ["Relu"]
