"""L1: each widening rule on a tiny graph, against the mathematics in numpy.

Tolerance: 1e-5 absolute on values of order one; sums of at most 96 float32 products in another
order differ by a few 1e-6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.graph.rule import Widening
from otter_export.graph.rules import RULES
from otter_export.graph.windows import set_windows, window_of
from otter_export.layer_attention import LayerAttention
from tests.graph.conftest import Over
from tests.graph.text import parse, randn, run

Array = np.ndarray[Any, Any]
Q = "model.layers.0.self_attn.q_proj"
X, CHANNEL = randn(2, 3, 64), randn(2, 3, 16, seed=1)


def widened(
    model: ir.Model, checkpoint: Checkpoint, pairs: dict[str, str], **inputs: Array
) -> list[Array]:
    """Apply the rule of the graph's last node; returns base outputs, then channel outputs.

    Args:
        model: Its last node is the one to widen.
        checkpoint: Where inserted tensors come from.
        pairs: Base value to channel value, both inputs of the graph.
        inputs: Values of all graph inputs.
    """
    state = Widening(model, checkpoint)
    values = {v.name: v for v in model.graph.inputs}
    state.channel = {values[base]: values[channel] for base, channel in pairs.items()}
    node = list(model.graph)[-1]
    before = [(n.op_type, list(n.inputs), list(n.outputs)) for n in model.graph]
    outputs = RULES.load(node.op_type).apply(node, state)
    after = [(n.op_type, list(n.inputs), list(n.outputs)) for n in model.graph]
    assert all(entry in after for entry in before), "a base node was touched"
    model.graph.outputs.extend(v for v in outputs if v is not None)
    for value in model.graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    return run(model, **inputs)


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_matmul_adds_both_streams(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[64, 64] W__weight)
           => (float[B, S, 64] y)
           { t = Transpose <perm = [1, 0]> (W__weight) y = MatMul (x, t) }""",
        W__weight=randn(64, 64, seed=2),
    )
    rename(model, "W", Q)
    base, channel = widened(model, llama, {"x": "c"}, x=X, c=CHANNEL)
    close(base, X @ randn(64, 64, seed=2).T)
    a, b = llama.float32(f"{Q}.otter.from_base"), llama.float32(f"{Q}.otter.from_channel")
    close(channel, X @ a.T + CHANNEL @ b.T)


def test_matmul_of_the_head_ends_the_channel(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[9, 64] W__weight)
           => (float[B, S, 9] y) { t = Transpose <perm = [1, 0]> (W__weight) y = MatMul (x, t) }""",
        W__weight=randn(9, 64),
    )
    rename(model, "W", "lm_head")
    state = Widening(model, llama)
    values = {v.name: v for v in model.graph.inputs}
    state.channel = {values["x"]: values["c"]}
    assert RULES.load("MatMul").apply(list(model.graph)[-1], state) == [None]
    assert state.final_state is values["c"]


def test_matmul_of_two_states_is_refused(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[B, 64, 5] z) => (float[B, S, 5] y)
           { y = MatMul (x, z) }"""
    )
    with pytest.raises(UnsupportedError, match="must have a known weight"):
        widened(model, llama, {"x": "c"})


def test_gather_starts_the_channel_by_projection(llama: Checkpoint) -> None:
    table, ids = randn(128, 64), np.array([[3, 5, 4]])
    model = embedding_graph(table)
    base, channel = widened(model, llama, {}, ids=ids)
    close(base, table[ids])
    close(channel, table[ids] @ llama.float32("model.embed_tokens.otter.projection").T)


def test_gather_starts_the_channel_by_table(table_llama: Checkpoint) -> None:
    ids = np.array([[3, 5, 4]])
    _, channel = widened(embedding_graph(randn(128, 64)), table_llama, {}, ids=ids)
    np.testing.assert_array_equal(
        channel, table_llama.float32("model.embed_tokens.otter.table")[ids]
    )


def test_gather_elsewhere_is_refused(llama: Checkpoint) -> None:
    model = parse(
        """g (float[8, 64] x, float[8, 16] c, int64[2] i) => (float[2, 64] y)
           { y = Gather (x, i) }"""
    )
    with pytest.raises(UnsupportedError, match="only an embedding has a rule"):
        widened(model, llama, {"x": "c"})


def test_add_of_a_residual(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[B, S, 64] z, float[B, S, 16] d)
           => (float[B, S, 64] y) { y = Add (x, z) }"""
    )
    z, d = randn(2, 3, 64, seed=4), randn(2, 3, 16, seed=5)
    base, channel = widened(model, llama, {"x": "c", "z": "d"}, x=X, c=CHANNEL, z=z, d=d)
    np.testing.assert_array_equal(base, X + z)
    np.testing.assert_array_equal(channel, CHANNEL + d)


def test_add_of_a_bias(gpt2: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[64] W__bias)
           => (float[B, S, 64] y) { y = Add (x, W__bias) }""",
        W__bias=randn(64),
    )
    rename(model, "W", "transformer.h.0.attn.o_proj")
    base, channel = widened(model, gpt2, {"x": "c"}, x=X, c=CHANNEL)
    np.testing.assert_array_equal(base, X + randn(64))
    expected = CHANNEL + gpt2.float32("transformer.h.0.attn.c_proj.otter.bias")
    np.testing.assert_array_equal(channel, expected)


def test_add_of_something_else_is_refused(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[B, S, 64] z) => (float[B, S, 64] y)
           { y = Add (x, z) }"""
    )
    with pytest.raises(UnsupportedError, match=r"Add of the widened state and 'z'"):
        widened(model, llama, {"x": "c"})


def test_mul_of_two_states_and_of_a_scalar(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[B, S, 64] z, float[B, S, 16] d)
           => (float[B, S, 64] y) { y = Mul (x, z) }"""
    )
    z, d = randn(2, 3, 64, seed=4), randn(2, 3, 16, seed=5)
    _, channel = widened(model, llama, {"x": "c", "z": "d"}, x=X, c=CHANNEL, z=z, d=d)
    np.testing.assert_array_equal(channel, CHANNEL * d)
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float s) => (float[B, S, 64] y)
           { y = Mul (x, s) }""",
        s=np.float32(0.3).reshape(()),
    )
    base, channel = widened(model, llama, {"x": "c"}, x=X, c=CHANNEL)
    np.testing.assert_array_equal(base, X * np.float32(0.3))
    np.testing.assert_array_equal(channel, CHANNEL * np.float32(0.3))


@pytest.mark.parametrize("order", ["x, f", "f, x"])
def test_mul_by_one_factor_a_position(llama: Checkpoint, order: str) -> None:
    """As Ministral 3 scales its queries; a whole base value beside it stays refused."""
    model = parse(
        f"""g (float[B, S, 64] x, float[B, S, 16] c, float[B, S, 1] f) => (float[B, S, 64] y)
            {{ y = Mul ({order}) }}"""
    )
    f = randn(2, 3, 1, seed=4)
    base, channel = widened(model, llama, {"x": "c"}, x=X, c=CHANNEL, f=f)
    np.testing.assert_array_equal(base, X * f)
    np.testing.assert_array_equal(channel, CHANNEL * f)
    assert str(model.graph.outputs[1].shape) == "[B,S,16]"


def test_mul_by_a_base_value_is_refused(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[B, S, 64] z) => (float[B, S, 64] y)
           { y = Mul (x, z) }"""
    )
    with pytest.raises(UnsupportedError, match="no channel part and is no scalar"):
        widened(model, llama, {"x": "c"})


def test_rms_norm_takes_the_statistics_of_the_base(llama: Checkpoint) -> None:
    stem, gamma = "model.layers.0.input_layernorm", randn(64, seed=7)
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[64] N__weight) => (float[B, S, 64] y)
           { y = RMSNormalization <axis = -1, epsilon = 1e-3> (x, N__weight) }""",
        functions=True,
        N__weight=gamma,
    )
    rename(model, "N", stem)
    base, channel = widened(model, llama, {"x": "c"}, x=X, c=CHANNEL)
    r = 1 / np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3)
    close(base, X * r * gamma)
    close(channel, CHANNEL * r * llama.float32(f"{stem}.otter.weight"))


def test_layer_norm_takes_the_statistics_of_the_base(gpt2: Checkpoint) -> None:
    stem, gamma, beta = "transformer.h.0.ln_1", randn(64, seed=7), randn(64, seed=8)
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[64] N__weight, float[64] N__bias)
           => (float[B, S, 64] y)
           { y = LayerNormalization <axis = -1> (x, N__weight, N__bias) }""",
        functions=True,
        N__weight=gamma,
        N__bias=beta,
    )
    rename(model, "N", stem)
    x = X + 3  # a mean that shows
    base, channel = widened(model, gpt2, {"x": "c"}, x=x, c=CHANNEL)
    wide = x.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    r = 1 / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)  # the operator's default epsilon
    close(base, (x - mean) * r * gamma + beta)
    expected = (CHANNEL - mean) * r * gpt2.float32(f"{stem}.otter.weight")
    close(channel, expected + gpt2.float32(f"{stem}.otter.bias"))


def test_a_norm_outside_the_family_is_refused(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 16] c, float[64] N__weight) => (float[B, S, 64] y)
           { y = RMSNormalization <axis = -1> (x, N__weight) }""",
        N__weight=randn(64),
    )
    rename(model, "N", "model.layers.0.self_attn.q_norm")
    with pytest.raises(UnsupportedError, match=r"q_norm' is none of the family's norms"):
        widened(model, llama, {"x": "c"})


HEAD_NORM = """g (float[B, S, 4, 16] x, float[B, S, 2, 16] c, float[16] N__weight{0})
    => (float[B, S, 4, 16] y)
    {{ y = {1}Normalization <axis = -1, epsilon = 1e-3> (x, N__weight{2}) }}"""
HEADS, EXTRA = randn(2, 3, 4, 16) + 2, randn(2, 3, 2, 16, seed=1) - 1


def test_rms_norm_of_heads_takes_the_statistics_of_each(over: Over) -> None:
    checkpoint, stem, gamma = over("qwen3"), "model.layers.0.self_attn.q_norm", randn(16, seed=7)
    model = parse(HEAD_NORM.format("", "RMS", ""), N__weight=gamma)
    rename(model, "N", stem)
    base, channel = widened(model, checkpoint, {"x": "c"}, x=HEADS, c=EXTRA)

    def normed(x: Array) -> Array:
        found: Array = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3)
        return found

    close(base, normed(HEADS) * gamma)
    close(channel, normed(EXTRA) * checkpoint.float32(f"{stem}.otter.weight"))


def test_layer_norm_of_heads_takes_the_statistics_of_each(over: Over) -> None:
    """No registered family has one; a table of such a family gives beta' a place."""
    qwen3, path = over("qwen3"), "self_attn.q_norm"
    stem, gamma, beta = f"model.layers.0.{path}", randn(16, seed=7), randn(16, seed=8)
    family = dataclasses.replace(qwen3.base.family, layer_norm=True, biases={path: True})
    checkpoint = dataclasses.replace(qwen3, base=dataclasses.replace(qwen3.base, family=family))
    model = parse(
        HEAD_NORM.format(", float[16] N__bias", "Layer", ", N__bias"),
        N__weight=gamma,
        N__bias=beta,
    )
    rename(model, "N", stem)
    values = {f"{stem}.otter.weight": randn(16, seed=9), f"{stem}.otter.bias": randn(16, seed=10)}
    checkpoint.__dict__["float32"] = values.__getitem__
    base, channel = widened(model, checkpoint, {"x": "c"}, x=HEADS, c=EXTRA)

    def normed(x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        found: Array = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
        return found

    close(base, normed(HEADS) * gamma + beta)
    extra_gamma, extra_beta = values.values()
    close(channel, normed(EXTRA) * extra_gamma + extra_beta)


def test_a_norm_over_all_heads_takes_the_statistics_of_the_base(over: Over) -> None:
    """OLMo 2 normalises all queries as one vector, before they are split into heads."""
    checkpoint, stem, gamma = over("olmo2"), "model.layers.1.self_attn.k_norm", randn(32, seed=7)
    model = parse(
        """g (float[B, S, 32] x, float[B, S, 16] c, float[32] N__weight) => (float[B, S, 32] y)
           { y = RMSNormalization <axis = -1, epsilon = 1e-3> (x, N__weight) }""",
        functions=True,
        N__weight=gamma,
    )
    rename(model, "N", stem)
    x = randn(2, 3, 32)
    base, channel = widened(model, checkpoint, {"x": "c"}, x=x, c=CHANNEL)
    r = 1 / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3)
    close(base, x * r * gamma)
    close(channel, CHANNEL * r * checkpoint.float32(f"{stem}.otter.weight"))
    assert str(model.graph.outputs[1].shape) == "[B,S,16]"


def test_reshape_splits_into_heads_and_joins_them(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] x, float[B, S, 32] c, int64[4] s) => (float[B, S, 4, 16] y)
           { y = Reshape (x, s) }""",
        s=np.array([0, 0, -1, 16]),
    )
    c = randn(2, 3, 32)
    base, channel = widened(model, llama, {"x": "c"}, x=X, c=c)
    np.testing.assert_array_equal(base, X.reshape(2, 3, 4, 16))
    np.testing.assert_array_equal(channel, c.reshape(2, 3, 2, 16))
    assert str(model.graph.outputs[1].shape) == "[B,S,2,16]"
    model = parse(
        """g (float[B, S, 4, 16] x, float[B, S, 2, 16] c, int64[3] s) => (float[B, S, 64] y)
           { y = Reshape (x, s) }""",
        s=np.array([0, 0, -1]),
    )
    base, channel = widened(model, llama, {"x": "c"}, x=HEADS, c=EXTRA)
    np.testing.assert_array_equal(base, HEADS.reshape(2, 3, 64))
    np.testing.assert_array_equal(channel, EXTRA.reshape(2, 3, 32))
    assert str(model.graph.outputs[1].shape) == "[B,S,32]"


@pytest.mark.parametrize("wanted", [[0, 0, 4, 16], [0, 0, -1, 8], [-1, 64], [0, 0, -1]])
def test_other_reshapes_are_refused(llama: Checkpoint, wanted: list[int]) -> None:
    model = parse(
        f"""g (float[B, S, 64] x, float[B, S, 32] c, int64[{len(wanted)}] s) => (float[N] y)
            {{ y = Reshape (x, s) }}""",
        s=np.array(wanted),
    )
    with pytest.raises(UnsupportedError, match="only splitting into heads and joining them"):
        widened(model, llama, {"x": "c"})


@pytest.mark.parametrize(("heads", "extra"), [(4, 2), (2, 1)])
def test_rotary_embedding_rotates_the_extra_heads_alike(
    llama: Checkpoint, heads: int, extra: int
) -> None:
    model = parse(
        f"""g (float[B, S, {16 * heads}] x, float[B, S, {16 * extra}] c, float[B, S, 8] cos,
               float[B, S, 8] sin) => (float[B, S, {16 * heads}] y)
            {{ y = RotaryEmbedding <num_heads = {heads}> (x, cos, sin) }}"""
    )
    angle = randn(2, 3, 8, seed=3)
    x, c = randn(2, 3, 16 * heads), randn(2, 3, 16 * extra, seed=1)
    base, channel = widened(
        model, llama, {"x": "c"}, x=x, c=c, cos=np.cos(angle), sin=np.sin(angle)
    )
    close(base, rotated(x, angle, heads))
    close(channel, rotated(c, angle, extra))


def test_rotary_embedding_of_other_heads_is_refused(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 48] x, float[B, S, 16] c, float[B, S, 8] cos, float[B, S, 8] sin)
           => (float[B, S, 48] y) { y = RotaryEmbedding <num_heads = 3> (x, cos, sin) }"""
    )
    with pytest.raises(UnsupportedError, match="num_heads 3 is neither"):
        widened(model, llama, {"x": "c"})


ATTENTION = """g (float[B, S, 64] q, float[B, S, 32] k, float[B, S, 32] v,
       float[B, S, 32] cq, float[B, S, 16] ck, float[B, S, 16] cv, bool[B, 1, S, T] mask,
       float[B, 2, P, 16] past_key_values__0__key, float[B, 2, P, 16] past_key_values__0__value)
   => (float[B, S, 64] y, float[B, 2, T, 16] present__0__key, float[B, 2, T, 16] present__0__value)
   { y, present__0__key, present__0__value = Attention <q_num_heads = 4, kv_num_heads = 2,
       scale = 0.3> (q, k, v, mask, past_key_values__0__key, past_key_values__0__value) }"""


def test_attention_gets_a_twin_with_its_own_cache(llama: Checkpoint) -> None:
    model = parse(ATTENTION)
    names = ["q", "k", "v"]
    values = dict(zip(names, (randn(2, 3, w, seed=w) for w in (64, 32, 32)), strict=True))
    channel = {
        f"c{n}": randn(2, 3, w, seed=w + 1) for n, w in zip(names, (32, 16, 16), strict=True)
    }
    past = {
        f"{stem}__0__{kind}": randn(2, heads, 2, 16, seed=heads + len(kind))
        for stem, heads in (("past_key_values", 2), ("otter_key_values", 1))
        for kind in ("key", "value")
    }
    mask = np.random.default_rng(0).random((2, 1, 3, 5)) < 0.6
    mask[..., -1] = True  # a row that sees nothing has no defined result
    outputs = widened(
        model, llama, {n: f"c{n}" for n in names}, **values, **channel, **past, mask=mask
    )
    found = dict(zip([v.name for v in model.graph.outputs], outputs, strict=True))
    close(found["y"], attention(*values.values(), *list(past.values())[:2], mask, 4, 2))
    close(found["y.otter"], attention(*channel.values(), *list(past.values())[2:], mask, 2, 1))
    new = channel["ck"].reshape(2, 3, 1, 16).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(
        found["otter_present.0.key"],
        np.concatenate([past["otter_key_values__0__key"], new], axis=2),
    )


def test_attention_keeps_its_window_on_the_twin(llama: Checkpoint) -> None:
    model = parse(ATTENTION)
    set_windows(model, [LayerAttention(3, None)])
    values = {v.name: v for v in model.graph.inputs}
    state = Widening(model, llama)
    state.channel = {values[n]: values[f"c{n}"] for n in "qkv"}
    base = list(model.graph)[-1]
    RULES.load("Attention").apply(base, state)
    _, twin = model.graph
    assert twin is not base and window_of(twin) == window_of(base) == 3


def test_attention_without_a_past_is_refused(llama: Checkpoint) -> None:
    model = parse(
        """g (float[B, S, 64] q, float[B, S, 32] k, float[B, S, 32] v, float[B, S, 32] cq,
              float[B, S, 16] ck, float[B, S, 16] cv, bool[B, 1, S, T] mask)
           => (float[B, S, 64] y)
           { y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, mask) }"""
    )
    with pytest.raises(UnsupportedError, match="needs q, k, v and a past"):
        widened(model, llama, {"q": "cq", "k": "ck", "v": "cv"})


ELEMENTWISE: dict[str, Any] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Swish": lambda x: x / (1 + np.exp(-x)),
    "Erf": np.vectorize(__import__("math").erf),
    "Identity": lambda x: x,
    "Gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("op", ELEMENTWISE)
def test_elementwise_ops_repeat_with_their_attributes(llama: Checkpoint, op: str) -> None:
    attribute = '<approximate = "tanh">' if op == "Gelu" else ""
    model = parse(
        f"""g (float[B, S, 64] x, float[B, S, 16] c) => (float[B, S, 64] y)
            {{ y = {op} {attribute} (x) }}"""
    )
    base, channel = widened(model, llama, {"x": "c"}, x=X, c=CHANNEL)
    close(base, ELEMENTWISE[op](X.astype(np.float64)))
    close(channel, ELEMENTWISE[op](CHANNEL.astype(np.float64)))


def embedding_graph(table: Array) -> ir.Model:
    return rename(
        parse(
            """g (int64[B, S] ids, float[128, 64] E__weight) => (float[B, S, 64] y)
               { y = Gather (E__weight, ids) }""",
            E__weight=table,
        ),
        "E",
        "model.embed_tokens",
    )


def rename(model: ir.Model, short: str, stem: str) -> ir.Model:
    """Give the initializers of a short stem a base parameter's name."""
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).replace(f"{short}.", f"{stem}.")
    return model


def rotated(x: Array, angle: Array, heads: int) -> Array:
    """Half-split rotation of each head."""
    batch, step, _ = x.shape
    first, second = np.split(x.reshape(batch, step, heads, -1), 2, axis=-1)
    cos, sin = np.cos(angle)[:, :, None], np.sin(angle)[:, :, None]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return np.concatenate(turned, axis=-1).reshape(x.shape)


def attention(
    q: Array, k: Array, v: Array, past_k: Array, past_v: Array, mask: Array, heads: int, kv: int
) -> Array:
    """Scale 0.3, grouped queries, boolean mask."""
    batch, step, _ = q.shape

    def split(x: Array, count: int) -> Array:
        return x.reshape(batch, step, count, 16).transpose(0, 2, 1, 3)

    keys: Sequence[Array] = [
        np.repeat(np.concatenate([past, split(x, kv)], axis=2), heads // kv, axis=1)
        for past, x in ((past_k, k), (past_v, v))
    ]
    scores = np.where(mask, 0.3 * split(q, heads) @ keys[0].transpose(0, 1, 3, 2), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y: Array = (weights @ keys[1]).transpose(0, 2, 1, 3).reshape(batch, step, -1)
    return y
