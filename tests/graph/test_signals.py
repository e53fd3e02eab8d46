"""L1: the heads of a graph are found behind biases, scales and soft caps."""

from __future__ import annotations

import pytest

from otter_export.graph.base import base_graph
from otter_export.graph.signals import head_nodes
from otter_export.graph.widen import widen
from tests.graph.conftest import Over
from tests.graph.text import parse, randn

HEAD = """g (float[B, S, 4] x, float[4, 9] h, float[9] b, float c) => (float[B, S, 9] logits)
    {{ m = MatMul (x, h) {} }}"""


@pytest.mark.parametrize(
    "behind",
    [
        "logits = Identity (m)",
        "logits = Add (m, b)",
        "logits = Add (b, m)",
        "logits = Mul (c, m)",
        "d = Div (m, c) t = Tanh (d) logits = Mul (t, c)",
        "a = Add (m, b) d = Div (a, c) t = Tanh (d) s = Mul (t, c) logits = Cast <to = 1> (s)",
    ],
)
def test_what_lies_behind_the_head_is_one_value_and_constants(behind: str) -> None:
    weights = {"h": randn(4, 9), "b": randn(9), "c": randn(1).reshape(())}
    model = parse(HEAD.format(behind), **weights)
    assert [n.outputs[0].name for n in head_nodes(model.graph)] == ["m"]


@pytest.mark.parametrize("behind", ["n = MatMul (x, h) logits = Add (m, n)", "logits = Relu (x)"])
def test_logits_of_two_values_or_of_none_have_no_head(behind: str) -> None:
    model = parse(HEAD.format(behind), h=randn(4, 9), b=randn(9), c=randn(1).reshape(()))
    assert head_nodes(model.graph) == []


@pytest.mark.parametrize("case", ["llama-3", "phi", "gemma2", "granite", "cohere", "gpt_neox"])
def test_heads_of_bases(case: str, over: Over) -> None:
    checkpoint = over(case)
    model = widen(base_graph(checkpoint.base), checkpoint)
    head, *signals = head_nodes(model.graph)
    assert head.op_type == "MatMul" and str(head.outputs[0].shape) == "[batch,sequence_len,128]"
    names = {str(n.outputs[0].name) for n in signals}
    assert names == {"signals.reward.matmul", "signals.next.matmul"} and len(signals) == 2
