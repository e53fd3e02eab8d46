"""L1: attention that the channel shares: its values under the base's weights, in both cache forms.

The reference is attention in numpy on the base's own queries and keys of the heads in question,
query by query (tests/graph/test_cache_passes.py), with its tolerances.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.graph.emit import Emitter
from otter_export.graph.rule import Widening
from otter_export.graph.rules import RULES
from tests.graph.test_cache_passes import (
    CAPACITY,
    PASSES,
    SIZE,
    STEPS,
    TOLERANCE,
    WINDOWS,
    Array,
    Heads,
    Step,
    attention_model,
    expected,
    inputs_of,
    values,
)
from tests.graph.text import ops, randn, run

BASE = Heads(4, 2)
#: Extra heads, and the base's query heads in their place.
EXTRA = {
    Heads(1, 1): [0],
    Heads(2, 1): [0, 1],
    Heads(2, 2): [0, 2],
    Heads(4, 2): [0, 1, 2, 3],
}


def shared_model(heads: Heads, window: int | None, cap: float, llama: Checkpoint) -> ir.Model:
    """The base's attention and its twin, by the rule; output ``c`` is the twin's."""
    model = attention_model(BASE, window, cap)
    extra = {"num_attention_heads": heads.queries, "num_key_value_heads": heads.keys}
    config = dataclasses.replace(llama.config, attention="shared", head_dim=SIZE, **extra)
    state = Widening(model, dataclasses.replace(llama, config=config))
    known = {v.name: v for v in model.graph.inputs}
    for name, count in (("q", BASE.queries), ("k", BASE.keys)):
        known[name].shape = ir.Shape(["batch", "step", count * SIZE])
    given = ir.Value(
        name="cv", type=known["v"].type, shape=ir.Shape(["batch", "step", heads.keys * SIZE])
    )
    model.graph.inputs.append(given)
    node = next(n for n in model.graph if n.op_type == "Attention")
    # As in a model, the first node is no Attention, which a pass removes.
    projected = Emitter(model.graph, node, before=True).op(
        "Identity", [given], "v.otter", shape=given.shape
    )
    state.channel = {known["v"]: projected}
    assert llama.base.dimensions.num_attention_heads == BASE.queries
    twin = RULES.load("Attention").apply(node, state)[0]
    assert twin is not None
    output = ir.Value(name="c", type=twin.type, shape=ir.Shape(["batch", "step", None]))
    model.graph.append(ir.node("Identity", [twin], outputs=[output]))
    model.graph.outputs.append(output)
    return model


def run_shared(
    model: ir.Model, step: Step, heads: Heads, *, in_place: bool
) -> tuple[Array, Array, dict[str, Array]]:
    """Outputs of the base and of the channel, and what both were computed from."""
    batch, count = len(step.lengths), len(step.parents)
    given = values(step, BASE, np.float32)
    cache = randn(batch, heads.keys, CAPACITY, SIZE, seed=5)
    channel = {"cv": randn(batch, count, heads.keys * SIZE, seed=6)}
    feed = inputs_of(step, given, in_place=in_place)
    longest = CAPACITY if in_place else max(step.lengths)
    feed |= channel | {"otter_key_values__0__value": cache[:, :, :longest]}
    names = [v.name for v in model.graph.outputs]
    found = dict(zip(names, run(model, **feed), strict=True))
    present = found["otter_present.0.value"]
    rows = channel["cv"].reshape(batch, count, heads.keys, SIZE).transpose(0, 2, 1, 3)
    for b, length in enumerate(step.lengths):
        new = present[b, :, length : length + count] if in_place else present[b]
        np.testing.assert_array_equal(new, rows[b])
    return found["y"], found["c"], {**given, "cv": channel["cv"], "cache": cache}


def of_heads(given: dict[str, Array], heads: Heads) -> dict[str, Array]:
    """The base's queries and keys of some heads, and the channel's values."""
    columns = (np.array(EXTRA[heads])[:, None] * SIZE + np.arange(SIZE)).reshape(-1)
    return {
        "q": given["q"][..., columns],
        "k": given["k"][..., : heads.keys * SIZE],
        "v": given["cv"],
        "past_key_values__0__key": given["past_key_values__0__key"][:, : heads.keys],
        "past_key_values__0__value": given["cache"],
    }


@pytest.mark.parametrize("form", PASSES)
@pytest.mark.parametrize("heads", EXTRA, ids=str)
@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("name", STEPS)
def test_values_under_the_weights_of_base_heads(
    llama: Checkpoint, form: str, heads: Heads, cap: float, name: str
) -> None:
    in_place = form != "read_only"
    for window in WINDOWS[:3]:
        model = shared_model(heads, window, cap, llama)
        alone = attention_model(BASE, window, cap)
        for one in (model, alone):
            assert PASSES[form]()(one).modified
        base, channel, given = run_shared(model, STEPS[name], heads, in_place=in_place)
        reference = expected(STEPS[name], heads, of_heads(given, heads), window, cap)
        np.testing.assert_allclose(channel, reference, atol=TOLERANCE["float"], rtol=0)
        feed = inputs_of(STEPS[name], values(STEPS[name], BASE, np.float32), in_place=in_place)
        np.testing.assert_array_equal(base, run(alone, **feed)[0])


@pytest.mark.parametrize("form", ["read_only", "in_place-products"])
@pytest.mark.parametrize("heads", EXTRA, ids=str)
def test_no_weights_are_computed_twice(llama: Checkpoint, form: str, heads: Heads) -> None:
    model = shared_model(heads, None, 0.0, llama)
    PASSES[form]()(model)
    # Weights of cached and of new rows apart, or of all slots.
    parts = 2 if form == "read_only" else 1
    assert ops(model).count("Softmax") == 1
    assert ops(model).count("FusedMatMul") == parts
    # A Slice for each part of the weights, unless all heads are read.
    sliced = [str(n.outputs[0].name) for n in model.graph if n.op_type == "Slice"]
    sliced = [name for name in sliced if name.endswith((".on_past", ".on_new", ".weights"))]
    assert len(sliced) == (0 if heads == BASE else parts)


@pytest.mark.parametrize("heads", EXTRA, ids=str)
def test_the_rule_is_plain_attention_on_the_base_heads(llama: Checkpoint, heads: Heads) -> None:
    """The hub form, before any pass; a channel of shared attention has no keys to cache."""
    model = shared_model(heads, None, 0.0, llama)
    names = [str(v.name) for v in (*model.graph.inputs, *model.graph.outputs)]
    assert [n for n in names if n.startswith("otter_")] == [
        "otter_key_values.0.value",
        "otter_present.0.value",
    ]
    step = STEPS["chunk"]
    feed = inputs_of(step, values(step, BASE, np.float32), in_place=False)
    feed["attention_mask"] = feed["attention_mask"][:, None]
    batch, count = len(step.lengths), len(step.parents)
    channel = randn(batch, count, heads.keys * SIZE, seed=6)
    past = randn(batch, heads.keys, max(step.lengths), SIZE, seed=5)
    found = run(model, **feed, cv=channel, otter_key_values__0__value=past)
    given = {**values(step, BASE, np.float32), "cv": channel, "cache": past}
    reference = expected(step, heads, of_heads(given, heads), None)
    by_name = dict(zip([v.name for v in model.graph.outputs], found, strict=True))
    np.testing.assert_allclose(by_name["c"], reference, atol=TOLERANCE["float"], rtol=0)
