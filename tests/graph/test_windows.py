"""L1: which masks are known, how a window narrows one, and that layers have the base's windows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.errors import UnsupportedError
from otter_export.graph.base import base_graph
from otter_export.graph.emit import Emitter
from otter_export.graph.widen import widen
from otter_export.graph.windows import near, set_windows, window_of
from otter_export.layer_attention import LayerAttention
from tests.graph.conftest import Over
from tests.graph.text import parse, run

SCORED = """g (float[B, S, 8] x, int64[B, T] padding, float[2, 1, 1] slopes, int64 axis,
       float[B, 1, P, 4] past_key_values__{layer}__key,
       float[B, 1, P, 4] past_key_values__{layer}__value) => (float[B, S, 8] y)
   {{ {mask}
      y, k, v = Attention <q_num_heads = 2, kv_num_heads = 1> (x, x, x, mask,
        past_key_values__{layer}__key, past_key_values__{layer}__value) }}"""
CAUSAL = """c = CumSum (padding, axis) u = Unsqueeze (c, axis) d = Sub (u, c)
    l = LessOrEqual (d, axis) mask = And (l, l)"""
#: Scores that fall with the distance, by ALiBi's slopes: added to a mask, and chosen by one.
BIASES = {
    "Add": "f = Cast <to = 1> (padding) mask = Add (f, slopes)",
    "Mul": """f = Cast <to = 1> (padding) b = Mul (f, slopes) l = Less (padding, axis)
        mask = Where (l, b, b)""",
}


def scored(mask: str, layer: int = 0) -> ir.Model:
    return parse(SCORED.format(mask=mask, layer=layer))


def test_a_window_is_noted_at_its_layer() -> None:
    model = scored(CAUSAL, layer=1)
    set_windows(model, [LayerAttention(3, None), LayerAttention(5, None)])
    assert window_of(list(model.graph)[-1]) == 5
    model = scored(CAUSAL)
    set_windows(model, [LayerAttention(None, None)])
    assert window_of(list(model.graph)[-1]) is None


@pytest.mark.parametrize("op", BIASES)
def test_a_mask_that_scores_positions_is_refused(op: str) -> None:
    """The cache forms make masks of their own, and would lose the slopes."""
    with pytest.raises(UnsupportedError, match=rf"its mask has a {op}; .* \(ALiBi\)"):
        set_windows(scored(BIASES[op]), [LayerAttention(None, None)])


def test_near_is_less_than_a_window_before() -> None:
    model = parse(
        """g (bool[B, 1, S, K] mask, int64[B, S] queries, int64[B, K] keys)
           => (bool[B, 1, S, K] out) { out = Identity (mask) }"""
    )
    values = {v.name: v for v in model.graph.inputs}
    e = Emitter(model.graph, model.graph[0], before=True)
    model.graph[0].replace_input_with(
        0, near(e, values["mask"], values["queries"], values["keys"], 3)
    )
    mask = np.random.default_rng(0).random((2, 1, 4, 9)) < 0.7
    queries = np.array([[5, 6, 6, 7], [0, 1, 1, 1]])
    keys = np.array([[0, 1, 2, 3, 4, 5, 6, 6, 7], [0, 1, 1, 1, 99, 99, -99, 0, 1]])
    found = run(model, mask=mask, queries=queries, keys=keys)[0]
    for b, s, k in np.ndindex(2, 4, 9):
        assert found[b, 0, s, k] == (mask[b, 0, s, k] and queries[b, s] - keys[b, k] < 3)


@pytest.mark.parametrize(
    ("case", "windows"),
    [
        ("mistral-window", [8, 8]),
        ("qwen2-window", [None, 8]),
        ("gemma3", [8, None, 8, None]),
        ("olmo2", [None, None]),
    ],
)
def test_base_and_channel_have_the_windows_of_the_layers(
    case: str, windows: list[int | None], over: Over
) -> None:
    checkpoint = over(case)
    model = widen(base_graph(checkpoint.base), checkpoint)
    noted = [window_of(n) for n in model.graph if n.op_type == "Attention"]
    assert noted == [window for window in windows for _ in ("base", "channel")]
