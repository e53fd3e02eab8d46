"""L1: the walk of `widen`: base nodes are untouched, and what cannot be widened is an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.family import NormSite
from otter_export.graph.base import base_graph
from otter_export.graph.rules import RULES
from otter_export.graph.widen import widen
from otter_export.signals import SIGNALS, Signal, kind_of
from tests import tiny
from tests.graph.conftest import Over

Line = tuple[Any, ...]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def pair(
    request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]
) -> tuple[ir.Model, ir.Model]:
    """The base graph, and the same graph widened."""
    checkpoint = checkpoints[request.param]
    return base_graph(checkpoint.base), widen(base_graph(checkpoint.base), checkpoint)


def reaching(model: ir.Model, output: str) -> list[Line]:
    """All nodes that an output depends on, in order: name, op, attributes, inputs, outputs."""
    wanted = {next(v for v in model.graph.outputs if v.name == output)}
    lines: list[Line] = []
    for node in reversed(list(model.graph)):
        if not wanted.intersection(node.outputs):
            continue
        wanted.update(v for v in node.inputs if v is not None)
        attributes = {name: str(a.value) for name, a in node.attributes.items()}
        inputs = [None if v is None else v.name for v in node.inputs]
        outputs = [v.name for v in node.outputs]
        lines.append((node.name, node.domain, node.op_type, attributes, inputs, outputs))
    return lines[::-1]


def test_the_subgraph_of_every_base_output_is_node_for_node_the_base(
    pair: tuple[ir.Model, ir.Model],
) -> None:
    base, widened = pair
    for output in base.graph.outputs:
        assert reaching(widened, str(output.name)) == reaching(base, str(output.name))


def test_every_base_node_is_still_there_in_order(pair: tuple[ir.Model, ir.Model]) -> None:
    base, widened = pair
    names = [node.name for node in base.graph]
    kept = set(names)
    assert [node.name for node in widened.graph if node.name in kept] == names
    assert len(list(widened.graph)) > len(names)


def test_signals_and_caches_are_added_after_the_base_outputs(
    pair: tuple[ir.Model, ir.Model],
) -> None:
    base, widened = pair
    before = [v.name for v in base.graph.outputs]
    after = [v.name for v in widened.graph.outputs]
    assert after[: len(before)] == before
    caches = [f"otter_present.{i}.{kind}" for i in (0, 1) for kind in ("key", "value")]
    assert after[len(before) :] == [*caches, "reward", "next"]
    before, after = ([v.name for v in m.graph.inputs] for m in pair)
    assert after[: len(before)] == before
    caches = [f"otter_key_values.{i}.{kind}" for i in (0, 1) for kind in ("key", "value")]
    assert after[len(before) :] == caches


def test_signals_depend_on_the_channel(pair: tuple[ir.Model, ir.Model]) -> None:
    _, widened = pair
    used = {v for *_, inputs, _ in reaching(widened, "reward") for v in inputs}
    assert any("otter.from_channel" in str(name) for name in used)


def test_an_op_without_a_rule_names_node_op_and_rules(llama: Checkpoint) -> None:
    model = base_graph(llama.base)
    node = next(n for n in model.graph if n.op_type == "Sigmoid")
    node.op_type = "Cos"
    with pytest.raises(UnsupportedError) as error:
        widen(model, llama)
    message = str(error.value)
    assert f"node {node.name!r}: op Cos" in message
    assert all(name in message for name in RULES)


def test_a_foreign_domain_is_part_of_the_ops_name(llama: Checkpoint) -> None:
    model = base_graph(llama.base)
    node = next(n for n in model.graph if n.op_type == "Sigmoid")
    node.domain = "com.example"
    with pytest.raises(UnsupportedError, match=r"op com\.example::Sigmoid"):
        widen(model, llama)


def test_an_inserted_tensor_without_a_place_is_an_error(llama: Checkpoint) -> None:
    """A family table that promises more than the graph has must not lose weights silently."""
    base = llama.base
    norms = (*base.sites.norms, NormSite("model.extra_norm", None))
    sites = dataclasses.replace(base.sites, norms=norms)
    wide = dataclasses.replace(base)
    wide.__dict__["sites"] = sites
    with pytest.raises(UnsupportedError, match=r"no place for 1 .*model\.extra_norm\.otter"):
        widen(base_graph(base), dataclasses.replace(llama, base=wide))


def test_a_graph_without_a_head_is_an_error(llama: Checkpoint) -> None:
    model = base_graph(llama.base)
    head = next(v for v in model.graph.outputs if v.name == "logits").producer()
    assert head is not None
    model.graph.outputs[0] = head.inputs[0]
    model.graph.remove(head)
    with pytest.raises(UnsupportedError, match="no language model head"):
        widen(model, llama)


@pytest.mark.parametrize("kind", SIGNALS)
def test_every_kind_of_signal_is_an_output(kind: str, tmp_path: Path) -> None:
    signal = Signal("made", kind, SIGNALS.load(kind).activations[-1], None, heads=1)
    if SIGNALS.load(kind).has_heads:
        signal = dataclasses.replace(signal, heads=3)
    directory = tiny.write_checkpoint(tmp_path / "ck", signals=(signal,))
    checkpoint = Checkpoint.open(directory)
    model = widen(base_graph(checkpoint.base), checkpoint)
    (output,) = (v for v in model.graph.outputs if v.name == "made")
    dims = kind_of(signal).output_dims(signal, checkpoint.base.dimensions.vocab_size)
    assert output.shape is not None and list(output.shape)[2:] == list(dims)


#: Families that begin a layer with a norm, with a projection, and with two norms of one state.
PLACES = ("llama-3", "olmo2", "gpt_neox", "gpt2")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("attention", ["own", "shared"])
def test_a_channel_that_begins_inside_leaves_the_base_as_it_is(
    over: Over, name: str, first: int, attention: str
) -> None:
    checkpoint = over(name)
    config = dataclasses.replace(checkpoint.config, first_layer=first, attention=attention)
    base = base_graph(checkpoint.base)
    widened = widen(base_graph(checkpoint.base), dataclasses.replace(checkpoint, config=config))
    for output in base.graph.outputs:
        assert reaching(widened, str(output.name)) == reaching(base, str(output.name))
    kinds = ("key", "value") if attention == "own" else ("value",)
    caches = [f"otter_key_values.{i}.{kind}" for i in range(first, 2) for kind in kinds]
    assert [v.name for v in widened.graph.inputs if str(v.name).startswith("otter_")] == caches
    # Below its first layer there is nothing of it.
    below = f"{checkpoint.base.sites.layers[first - 1]}."
    assert not [n for n in widened.graph.initializers if n.startswith(below) and ".otter." in n]


@pytest.mark.parametrize("name", PLACES)
def test_a_channel_begins_at_the_residual_stream(over: Over, name: str) -> None:
    """What P multiplies is read by the whole layer: twice, by a norm or q, and by the residual."""
    checkpoint = over(name)
    config = dataclasses.replace(checkpoint.config, first_layer=1)
    model = widen(base_graph(checkpoint.base), dataclasses.replace(checkpoint, config=config))
    stem = f"{checkpoint.base.sites.layers[1]}.otter"
    start = next(n for n in model.graph if n.outputs[0].name == stem)
    x = start.inputs[0]
    assert x is not None and x.shape is not None
    assert x.shape[-1] == checkpoint.base.dimensions.hidden_size
    readers = [u.node.op_type for u in x.uses() if u.node is not start]
    assert "Add" in readers and len(readers) >= 2


def test_a_layer_without_a_single_state_is_an_error(llama: Checkpoint) -> None:
    model = base_graph(llama.base)
    for node in list(model.graph):
        if any(str(v.name).startswith("model.layers.1.") for v in node.inputs if v is not None):
            assert node.op_type in ("RMSNormalization", "Transpose")
            if node.op_type == "RMSNormalization":
                node.replace_input_with(1, node.inputs[0])
    config = dataclasses.replace(llama.config, first_layer=1)
    for value in list(model.graph.initializers.values()):
        if str(value.name).startswith("model.layers.1."):
            value.name = f"other.{value.name}"
    with pytest.raises(UnsupportedError, match=r"no single state that enters model\.layers\.1"):
        widen(model, dataclasses.replace(llama, config=config))
