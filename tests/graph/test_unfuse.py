"""L1: fused projections are taken apart, each part with its rows of the stored parameter."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.graph.base import base_graph
from otter_export.graph.unfuse import unfuse
from tests.graph.conftest import Over
from tests.graph.text import ops, parse, randn, run

LAYER = "model.layers.1"
X = randn(2, 3, 64)
QKV = ("self_attn.qkv_proj", (64, 32, 32), [f"self_attn.{n}_proj" for n in "qkv"])
GATE_UP = ("mlp.gate_up_proj", (96, 96), ["mlp.gate_proj", "mlp.up_proj"])


def fused(
    path: str, sizes: tuple[int, ...], weight: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> ir.Model:
    """``Split(x W^T)``."""
    total, outputs = sum(sizes), [f"y{i}" for i in range(len(sizes))]
    declared = ", ".join(
        f"float[B, S, {size}] {name}" for size, name in zip(sizes, outputs, strict=True)
    )
    parts = [f"p{i}" for i in range(len(sizes))]
    copies = " ".join(f"{y} = Identity ({p})" for y, p in zip(outputs, parts, strict=True))
    model = parse(
        f"""g (float[B, S, 64] x, float[{total}, 64] w, int64[{len(sizes)}] s) => ({declared})
            {{ t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)
               {", ".join(parts)} = Split <axis = -1> (y, s) {copies} }}""",
        w=weight,
        s=np.array(sizes),
    )
    model.graph.initializers["w"].name = f"{LAYER}.{path}.weight"
    return model


@pytest.mark.parametrize(("path", "sizes", "parts"), [QKV, GATE_UP], ids=["qkv", "gate_up"])
def test_parts_read_their_rows(
    path: str, sizes: tuple[int, ...], parts: list[str], over: Over
) -> None:
    base = over("phi3").base
    stored = base.float32(f"{LAYER}.{path}.weight")
    model = fused(path, sizes, stored)
    before = run(model, x=X)
    unfuse(model, base)
    assert "Split" not in ops(model) and ops(model).count("MatMul") == len(parts)
    names = [f"{LAYER}.{part}.weight" for part in parts]
    assert sorted(set(model.graph.initializers) - {"s"}) == sorted(names)
    bounds = np.cumsum((0, *sizes))
    for name, low, high in zip(names, bounds, bounds[1:], strict=False):
        value = model.graph.initializers[name]
        assert value.const_value is None and str(value.shape) == f"[{high - low},64]"
        value.const_value = ir.tensor(stored[low:high], name=name)
    for found, expected in zip(run(model, x=X), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "path", "sizes"),
    [
        ("phi3", "mlp.down_proj", (64, 32, 32)),  # a split of what is no fused projection
        ("phi3", "mlp.gate_up_proj", (64, 64, 64)),  # of another number of parts
        ("qwen3", "self_attn.qkv_proj", (64, 32, 32)),  # in a family that has none
    ],
)
def test_an_unrelated_split_is_left_alone(
    case: str, path: str, sizes: tuple[int, ...], over: Over
) -> None:
    model = fused(path, sizes, randn(sum(sizes), 64))
    before, names = ops(model), set(model.graph.initializers)
    unfuse(model, over(case).base)
    assert (ops(model), set(model.graph.initializers)) == (before, names)


def test_a_split_of_no_product_is_left_alone(over: Over) -> None:
    model = parse(
        """g (float[B, S, 4] x) => (float[B, S, 2] a, float[B, S, 2] b)
           { a, b = Split <axis = -1, num_outputs = 2> (x) }"""
    )
    unfuse(model, over("phi3").base)
    assert ops(model) == ["Split"]


@pytest.mark.parametrize("case", ["phi3", "glm", "gpt_neox", "gpt2"])
def test_the_base_graph_has_each_logical_projection(case: str, over: Over) -> None:
    """However it is stored: part by part, head by head, or transposed."""
    base = over(case).base
    graph = base_graph(base).graph
    for site in base.sites.projections:
        stored = base.float32(f"{site.parameter}.weight")
        stored = stored.T if case == "gpt2" else stored
        together = [s for s in base.sites.projections if s.parameter == site.parameter]
        widths = [base.dimensions.width(s.writes) for s in together]
        place = together.index(site)
        if len(together) == 3 and case == "gpt_neox":  # [head, part, row of the head]
            expected = stored.reshape(4, 3, 16, 64)[:, place].reshape(64, 64)
        else:
            expected = np.split(stored, np.cumsum(widths)[:-1])[place]
        value = graph.initializers[f"{site.graph_name}.weight"].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), expected)
