"""L1: weights read back from an engine, and how they are held against the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from otter_export.checkpoint import Checkpoint
from otter_export.evaluation.stored_weights import StoredWeights, checkpoint_weights, mismatches
from otter_export.graph.block_codes import quantize
from otter_export.precision import WeightFormat
from otter_export.signals import is_token_ids
from tests.evaluation.conftest import Build
from tests.evaluation.spoil import Edit, edit_graph, edit_weight
from tests.tiny import CONFIGS

PRECISIONS = ("fp32", "fp16", "int8", "int4")
Q = "model.layers.1.self_attn.q_proj.weight"
FORMATS = (
    WeightFormat(8, 128),
    WeightFormat(4, 128),
    WeightFormat(4, 128, symmetric=False),
)


def opened(engine: Path, family: str = "llama") -> tuple[StoredWeights, Checkpoint]:
    checkpoint = Checkpoint.open(engine.parent / family)
    names = frozenset(checkpoint_weights(checkpoint))
    return StoredWeights(engine / "model.onnx", names), checkpoint


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_weight_is_found_and_right(engine: Build, precision: str, family: str) -> None:
    stored, checkpoint = opened(engine(precision, family), family)
    assert list(mismatches(stored, checkpoint)) == []
    found = {name for weight in stored.weights for name in (weight.source, weight.gain)}
    assert {name for name in checkpoint.tensors if not is_token_ids(name)} <= found
    assert len(found) > 40


@pytest.mark.parametrize("precision", PRECISIONS)
def test_values_are_those_of_the_checkpoint(engine: Build, precision: str) -> None:
    stored, checkpoint = opened(engine(precision))
    weight = stored.find(Q)
    assert weight is not None
    original = checkpoint.base.float32(Q)
    values = stored.read(weight, original.shape[1]).values
    assert values.shape == original.shape
    # int8: a step is 1/128 of a block's largest weight, and the last code may be a whole one off.
    # int4: half a step, which is 1/15 of a range of at most twice the largest weight.
    share = {"fp32": 0.0, "fp16": 2**-11, "int8": 1 / 128, "int4": 1.001 / 15}[precision]
    assert np.abs(values - original).max() <= share * np.abs(original).max()
    assert (values != original).any() == (precision != "fp32")


def test_a_quantised_head_is_told_from_its_embedding(engine: Build) -> None:
    stored, _ = opened(engine("int4"))
    head = stored.find("model.embed_tokens.weight", quantized=True)
    embedding = stored.find("model.embed_tokens.weight", quantized=False)
    assert head is not None and embedding is not None
    assert (head.bits, embedding.bits) == (8, None)
    projection = stored.find(Q)
    assert projection is not None and projection.bits == 4
    assert stored.find("model.nothing.weight") is None


def zero_last(array: np.ndarray) -> None:
    array[-1, -1] = 0


def next_up(array: np.ndarray) -> None:
    array.flat[0] = np.nextafter(array.flat[0], array.dtype.type(np.inf))


def swap_rows(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


def other_code(array: np.ndarray) -> None:
    array.flat[0] ^= 0x02


def double(array: np.ndarray) -> None:
    array *= 2


#: A matrix whose columns are multiplied by the gain of the norm before it.
GAINED = (
    "model.layers.0.mlp.up_proj.otter.from_channel"
    "_by_model.layers.0.post_attention_layernorm.otter.weight_t"
)


@pytest.mark.parametrize(
    ("precision", "name", "edit"),
    [
        ("fp32", Q, next_up),
        ("fp32", Q, zero_last),
        ("fp32", "model.layers.0.mlp.down_proj.otter.from_base_t", swap_rows),
        ("fp32", GAINED, next_up),
        ("int8", GAINED, swap_rows),
        ("fp16", f"{Q}_half", next_up),
        ("int8", f"{Q}_int8", other_code),
        ("int8", f"{Q}_int8", swap_rows),
        ("int4", f"{Q}_int4", other_code),
        ("int4", "model.embed_tokens.weight_half", next_up),
        ("int4", "model.embed_tokens.weight_int8", swap_rows),
    ],
)
def test_one_wrong_value_is_found(copied: Build, precision: str, name: str, edit: Edit) -> None:
    engine = copied(precision)
    edit_weight(engine, name, edit)
    found = list(mismatches(*opened(engine)))
    assert [weight for weight, _ in found] == [name]
    assert "values" in found[0][1]


@pytest.mark.parametrize("part", ["_scales", "_zero_points"])
def test_wrong_scales_and_zero_points_are_found(copied: Build, part: str) -> None:
    engine = copied("int4")

    def change(graph: ir.Graph) -> None:
        value = graph.initializers[f"{Q}_int4{part}"]
        assert value.const_value is not None
        array = np.array(value.const_value.numpy())
        (double if part == "_scales" else other_code)(array)
        value.const_value = ir.tensor(array, name=value.name)

    edit_graph(engine, change)
    assert [weight for weight, _ in mismatches(*opened(engine))] == [f"{Q}_int4"]


def test_a_weight_that_is_not_there_is_named(engine: Build) -> None:
    stored, checkpoint = opened(engine())
    stored.weights = tuple(w for w in stored.weights if w.name != Q)
    assert list(mismatches(stored, checkpoint)) == [(Q, "is not in the engine")]


def test_another_gain_than_the_norms_is_found(engine: Build) -> None:
    stored, checkpoint = opened(engine())

    def gained(gain: str) -> list[tuple[str, str]]:
        stored.weights = tuple(
            dataclasses.replace(w, gain=gain) if w.name == GAINED else w for w in original
        )
        return [(n, why) for n, why in mismatches(stored, checkpoint) if n == GAINED]

    original = stored.weights
    assert gained("model.layers.0.post_attention_layernorm.otter.weight") == []
    assert "values differ" in gained("model.layers.1.input_layernorm.otter.weight")[0][1]
    assert gained("model.norm.weight") == [(GAINED, "has a gain of shape [64]")]


@hypothesis.given(
    seed=st.integers(0, 10**6),
    stored=st.sampled_from(FORMATS),
    columns=st.sampled_from([1, 17, 128, 200, 256, 320]),
    scale=st.floats(1e-4, 1e4),
    offset=st.sampled_from([-3.0, 0.0, 0.5, 3.0]),
    zeros=st.booleans(),
)
def test_what_the_quantiser_rounds_is_accepted(
    seed: int, stored: WeightFormat, columns: int, scale: float, offset: float, zeros: bool
) -> None:
    """The allowance holds for every matrix, not only for those of the tiny models."""
    drawn = np.random.default_rng(seed).standard_normal((16, columns)) + offset
    original = (drawn * scale).astype(np.float32)
    if zeros:
        original[::2] = 0
    assert _judged(original, original, stored) is None


@hypothesis.given(seed=st.integers(0, 10**6), stored=st.sampled_from(FORMATS))
def test_steps_that_are_too_large_are_refused(seed: int, stored: WeightFormat) -> None:
    """A step of twice the size would allow twice the error everywhere."""
    original = np.random.default_rng(seed).standard_normal((16, 128)).astype(np.float32)
    coarse = original.copy()
    coarse[:, 0] = 2.5 * np.abs(original).max(axis=1)
    problem = _judged(coarse, original, stored, skip_first=True)
    assert problem is not None and "steps" in problem


def _judged(
    quantised: np.ndarray, original: np.ndarray, stored: WeightFormat, *, skip_first: bool = False
) -> str | None:
    """Quantise one matrix and hold the result against another."""
    from otter_export.evaluation import stored_weights as module

    values, quantized = module.dequantized(stored.bits, *quantize(quantised, stored))
    values = values[:, : original.shape[1]]
    if skip_first:
        values[:, 0] = original[:, 0]
    return module._quantized_problem(quantized, values, original)


def test_a_wrong_shape_is_named(engine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, checkpoint = opened(engine())
    read: Callable[..., object] = StoredWeights.read

    def shorter(self: StoredWeights, weight: object, columns: int) -> object:
        found = read(self, weight, columns)
        if getattr(weight, "name", "") == Q:
            object.__setattr__(found, "values", found.values[1:])  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(StoredWeights, "read", shorter)
    assert list(mismatches(stored, checkpoint)) == [(Q, "has shape [63, 64], expected [64, 64]")]
