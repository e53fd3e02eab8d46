"""L2: the ONNX file that TensorRT parses, run on a CPU: tiny models of every family.

ONNX Runtime runs the very file, float16 inside, against the float32 torch reference: within 2e-2 of
the largest magnitude (DESIGN's bound for half precision; 6e-3 is the largest that was measured).
The same passes over a float32 hub graph agree to 1e-4, so what is left of the 2e-2 is rounding.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import strategies as st

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.graph.base import base_graph
from otter_export.graph.pipeline import lower, run_passes, tensorrt
from otter_export.graph.widen import widen
from otter_export.modeling.otter_model import load_reference
from otter_export.precision import TENSORRT
from tests import built, tiny
from tests.converters.test_steps import random_tree
from tests.graph.in_place import InPlaceGraph

Array = np.ndarray[Any, Any]
CAPACITY = 32
HALF = 2e-2
#: Rows of one product and of another one in float16; sums run in another order.
ROUNDING = 4e-3
OUTPUTS = ("logits", "reward", "next")


@dataclasses.dataclass
class Made:
    """The forms of one checkpoint, and its torch reference."""

    checkpoint: Checkpoint
    half: InPlaceGraph
    reference: Any

    def torch(self, ids: Array) -> dict[str, Array]:
        """Logits and signals of whole sequences, float32."""
        with torch.no_grad():
            output = self.reference(torch.from_numpy(ids))
        return {"logits": output.logits.numpy()} | {
            name: signal.numpy() for name, signal in output.signals.items()
        }


@pytest.fixture(scope="module")
def forms(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Made]:
    made = {}
    for family, checkpoint in checkpoints.items():
        model = lower(checkpoint, tensorrt(CAPACITY), "fp16")
        graph = InPlaceGraph.of(model, tmp_path_factory.mktemp(family))
        made[family] = Made(checkpoint, graph, load_reference(checkpoint))
    return made


@pytest.fixture
def made(family: str, forms: dict[str, Made]) -> Made:
    return forms[family]


def tokens(batch: int, length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(3, 128, (batch, length))


def same_choice(found: Array, expected: Array, tolerance: float) -> None:
    """The largest logit of each row is the same, or is within the tolerance of the largest."""
    best = expected.max(-1)
    chosen = np.take_along_axis(expected, found.argmax(-1)[..., None], -1)[..., 0]
    assert (best - chosen).max() <= 2 * tolerance * np.abs(expected).max()


def equal(found: dict[str, Array], expected: dict[str, Array], tolerance: float) -> None:
    for name in OUTPUTS:
        assert found[name].shape == expected[name].shape
        assert built.relative(found[name], expected[name]) < tolerance, name


def test_float16_file_equals_the_float32_reference(made: Made) -> None:
    ids = tokens(2, 20)
    found, expected = made.half(ids)[0], made.torch(ids)
    equal(found, expected, HALF)
    for name in ("logits", "next"):
        same_choice(found[name], expected[name], HALF)
        # Random models are peaked enough that at most one row in twenty is such a near-tie.
        assert (found[name].argmax(-1) == expected[name].argmax(-1)).mean() >= 0.95


def test_the_same_passes_in_float32_equal_the_reference(made: Made, tmp_path: Path) -> None:
    """No half precision anywhere: the form itself, to the tolerance of the onnx target."""
    checkpoint = made.checkpoint
    model = widen(base_graph(checkpoint.base, "f32"), checkpoint)
    run_passes(model, tensorrt(CAPACITY).passes(checkpoint.base, TENSORRT["fp16"]))
    ids = tokens(2, 20)
    equal(InPlaceGraph.of(model, tmp_path)(ids)[0], made.torch(ids), 1e-4)


def test_inputs_and_outputs_are_the_contract(made: Made) -> None:
    base, config = made.checkpoint.base.dimensions, made.checkpoint.config
    base_cache = f"[batch,{base.num_key_value_heads},{CAPACITY},{base.head_dim}]"
    channel_cache = f"[batch,{config.num_key_value_heads},{CAPACITY},{config.head_dim}]"
    layers = range(base.num_hidden_layers)
    kinds = ("key", "value")
    expected = {
        "input_ids": ("INT64", "[batch,step]"),
        "position_ids": ("INT64", "[batch,step]"),
        "attention_mask": ("BOOL", f"[batch,1,step,{CAPACITY}]"),
        "write_indices": ("INT64", "[batch]"),
        "kept_rows": ("INT64", "[batch,kept]"),
        **{f"past_key_values.{n}.{k}": ("FLOAT16", base_cache) for n in layers for k in kinds},
        **{f"otter_key_values.{n}.{k}": ("FLOAT16", channel_cache) for n in layers for k in kinds},
    }
    assert described(made.half.model.graph.inputs) == expected
    outputs = {
        "logits": ("FLOAT", f"[batch,kept,{base.vocab_size}]"),
        "reward": ("FLOAT", "[batch,kept]"),
        "next": ("FLOAT", f"[batch,kept,{base.vocab_size}]"),
        **{f"present.{n}.{k}": ("FLOAT16", base_cache) for n in layers for k in kinds},
        **{f"otter_present.{n}.{k}": ("FLOAT16", channel_cache) for n in layers for k in kinds},
    }
    assert described(made.half.model.graph.outputs) == outputs


def described(values: Any) -> dict[str, tuple[str, str]]:
    return {v.name: (v.dtype.name, str(v.shape)) for v in values}


def prefilled(made: Made, rows: list[Array], garbage: float = 0.0) -> tuple[Any, Array]:
    """Caches of prefixes of different lengths in one batch, and the lengths."""
    caches = made.half.new_caches(len(rows), garbage)
    for b, row in enumerate(rows):
        if not len(row):
            continue
        own = {name: value[b : b + 1] for name, value in caches.items()}
        for name, value in made.half(row[None], own)[1].items():
            caches[name][b] = value[0]
    return caches, np.array([len(row) for row in rows])


def test_candidates_of_one_step_equal_separate_forwards(made: Made) -> None:
    """Each sees the prefix and itself; prefixes of a batch have lengths of their own."""
    rows, k = [tokens(1, 9, seed=1)[0], tokens(1, 4, seed=2)[0]], 6
    caches, lengths = prefilled(made, rows)
    candidates = tokens(2, k, seed=3)
    tree = np.broadcast_to(np.eye(k, dtype=bool), (2, k, k))
    found, _ = made.half(candidates, caches, lengths, tree=tree, depths=np.zeros((2, k), int))
    for b, row in enumerate(rows):
        for i in range(k):
            alone, _ = made.half(np.append(row, candidates[b, i])[None])
            for name in OUTPUTS:
                assert built.relative(found[name][b, i], alone[name][0, -1]) < ROUNDING, name


def test_a_winner_stays_and_the_next_candidates_see_it(made: Made) -> None:
    """The winner's row moves to the end of the prefix, as `Engine.commit` does."""
    row, k, winner = tokens(1, 7, seed=4)[0], 5, 3
    caches, lengths = prefilled(made, [row])
    tree, depths = np.eye(k, dtype=bool)[None], np.zeros((1, k), int)
    first, second = tokens(1, k, seed=5), tokens(1, k, seed=6)
    _, caches = made.half(first, caches, lengths, tree=tree, depths=depths)
    for value in caches.values():
        value[:, :, len(row)] = value[:, :, len(row) + winner]
    found, _ = made.half(second, caches, lengths + 1, tree=tree, depths=depths)
    for i in range(k):
        whole, _ = made.half(np.concatenate([row, first[0, [winner]], second[0, [i]]])[None])
        for name in OUTPUTS:
            assert built.relative(found[name][0, i], whole[name][0, -1]) < ROUNDING, name


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=10)
def test_any_tree_over_any_prefixes_equals_sequential_forwards(
    forms: dict[str, Made], data: st.DataObject
) -> None:
    """Two sequences of different lengths; each row sees its prefix and its ancestors."""
    made = forms["llama"]
    lengths = [data.draw(st.integers(0, 9)), data.draw(st.integers(1, 9))]
    size = data.draw(st.integers(1, 6))
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    caches, _ = prefilled(made, rows, garbage=1.0)
    ids, trees = tokens(2, size, seed=size), np.zeros((2, size, size), bool)
    depths = np.zeros((2, size), np.int64)
    for b in range(2):
        parents = [data.draw(st.integers(-1, i - 1)) for i in range(size)]
        trees[b], depths[b] = random_tree(parents, size)
    found, _ = made.half(ids, caches, np.array(lengths), tree=trees, depths=depths)
    for b in range(2):
        for i in range(size):
            path = np.concatenate([rows[b], ids[b, trees[b, i]]])
            expected, _ = made.half(path[None])
            for name in OUTPUTS:
                assert built.relative(found[name][b, i], expected[name][0, -1]) < ROUNDING, name


def test_a_chunk_then_a_step_equals_one_pass(made: Made) -> None:
    ids = tokens(2, 14, seed=7)
    whole, at_once = made.half(ids)
    caches, done, pieces = None, 0, []
    for chunk in np.split(ids, [9, 10], axis=1):
        found, caches = made.half(chunk, caches, np.full(2, done))
        pieces.append(found)
        done += chunk.shape[1]
    for name in OUTPUTS:
        joined = np.concatenate([piece[name] for piece in pieces], axis=1)
        assert built.relative(joined, whole[name]) < ROUNDING, name
    assert caches is not None
    for name, value in caches.items():
        assert built.relative(value[:, :, :14], at_once[name][:, :, :14]) < ROUNDING, name


def test_rows_behind_the_prefix_do_not_matter(made: Made) -> None:
    """Neither what lies there before a step, nor what a step leaves."""
    rows = [tokens(1, 5, seed=8)[0], tokens(1, 11, seed=9)[0]]
    outcomes = []
    for garbage in (0.0, 100.0):
        caches, lengths = prefilled(made, rows, garbage)
        outcomes.append(made.half(tokens(2, 3, seed=10), caches, lengths)[0])
    for name in OUTPUTS:
        np.testing.assert_array_equal(outcomes[0][name], outcomes[1][name])


def test_a_step_writes_its_own_slots_only(made: Made) -> None:
    caches, lengths = prefilled(made, [tokens(1, 5)[0], tokens(1, 11)[0]], garbage=1.0)
    _, after = made.half(tokens(2, 3, seed=1), caches, lengths)
    for name, value in after.items():
        for b, length in enumerate(lengths):
            kept = np.ones(CAPACITY, bool)
            kept[length : length + 3] = False
            np.testing.assert_array_equal(value[b][:, kept], caches[name][b][:, kept])
            assert not np.array_equal(value[b][:, ~kept], caches[name][b][:, ~kept])


def test_the_last_slots_of_the_capacity_can_be_written(made: Made) -> None:
    ids = tokens(1, CAPACITY)
    whole, _ = made.half(ids)
    caches, lengths = prefilled(made, [ids[0, :-4]])
    found, _ = made.half(ids[:, -4:], caches, lengths)
    for name in OUTPUTS:
        assert built.relative(found[name], whole[name][:, -4:]) < ROUNDING, name


def test_kept_rows_are_rows_of_the_step(made: Made) -> None:
    """Each sequence names its own; the product of fewer rows may sum in another order."""
    ids, kept = tokens(2, 8), np.array([[7, 0, 3], [2, 2, 5]])
    whole, found = made.half(ids)[0], made.half(ids, kept=kept)[0]
    for name in OUTPUTS:
        chosen = np.stack([whole[name][b, kept[b]] for b in range(2)])
        assert found[name].shape == chosen.shape
        assert built.relative(found[name], chosen) < ROUNDING, name


def test_plugin_form_equals_plain_form(made: Made, tmp_path: Path) -> None:
    """ONNX Runtime runs the bodies of the fused nodes: the same products, the same sums.

    Without its own fusions, which take MatMul and Add together where it sees a weight.
    """
    model = lower(made.checkpoint, tensorrt(CAPACITY, plugin=True), "fp16")
    plain = lower(made.checkpoint, tensorrt(CAPACITY), "fp16")
    fused = [node for node in model.graph if node.op_type == "OtterLinear"]
    assert len(fused) == len(made.checkpoint.base.sites.projections)
    for node in fused:
        assert node.domain == node.attributes["plugin_namespace"].as_string() == "com.otter"
        assert node.attributes["plugin_version"].as_string() == "1"
    ids = tokens(2, 12)
    found, expected = (
        InPlaceGraph.of(one, tmp_path / name, optimize=False)(ids)[0]
        for name, one in {"fused": model, "plain": plain}.items()
    )
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_bfloat16_in_the_evaluator_of_onnx(made: Made, tmp_path: Path) -> None:
    """ONNX Runtime has no bfloat16 kernels on a CPU; ONNX's reference evaluator rounds every op.

    bfloat16 has 8 bits, 8 times the rounding of float16 per op: 7e-2 is the largest measured.
    """
    model = lower(made.checkpoint, tensorrt(CAPACITY), "bf16")
    types = {v.dtype for v in model.graph.inputs if "key_values" in str(v.name)}
    weights = {v.dtype for v in model.graph.initializers.values() if len(v.shape or ()) == 2}
    assert types == weights == {ir.DataType.BFLOAT16}
    assert all(v.dtype == ir.DataType.FLOAT for v in model.graph.outputs if v.name in OUTPUTS)
    ids = tokens(1, 6)
    found, _ = InPlaceGraph.of(model, tmp_path, evaluator=True)(ids)
    equal(found, made.torch(ids), 1.5e-1)


def test_base_logits_do_not_depend_on_the_channel(made: Made, tmp_path: Path) -> None:
    """The unwidened base, lowered by the same passes, gives the same bits."""
    model = lower(made.checkpoint, tensorrt(CAPACITY), "fp16", widened=False)
    ids = tokens(2, 12)
    found = InPlaceGraph.of(model, tmp_path)(ids)[0]["logits"]
    np.testing.assert_array_equal(found, made.half(ids)[0]["logits"])


def test_an_unknown_precision_is_an_error(llama: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match=r"fp32 is not .* fp16, bf16, int8, int4"):
        lower(llama, tensorrt(CAPACITY), "fp32")


def test_a_checkpoint_with_a_table(table_llama: Checkpoint, tmp_path: Path) -> None:
    """The channel's own embedding table; one value signal."""
    assert table_llama.config.signals == (tiny.REWARD,)
    graph = InPlaceGraph.of(lower(table_llama, tensorrt(CAPACITY), "fp16"), tmp_path)
    ids = tokens(2, 9)
    with torch.no_grad():
        expected = load_reference(table_llama)(torch.from_numpy(ids)).signals["reward"].numpy()
    assert built.relative(graph(ids)[0]["reward"], expected) < HALF
