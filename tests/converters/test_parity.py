"""L2: tiny random models of every family: the torch reference equals the ONNX engine.

Tolerance: 1e-4 of the largest magnitude, as DESIGN asks of fp32; about 3e-6 is measured. Base
logits are compared bit for bit with the unwidened graph lowered by the same passes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from otter_export.base_config import FAITHFUL_ACTIVATIONS
from otter_export.checkpoint import Checkpoint
from otter_export.graph.pipeline import lower, onnxruntime
from otter_export.signals import SIGNALS, Signal
from tests import built, tiny
from tests.converters.conftest import Built, tokens

TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """A base and a channel; ``base`` overrides config.json, ``channel`` goes to the insertion."""

    name: str
    family: str = "llama"
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    channel: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = (
    *(Case(family, family) for family in tiny.CONFIGS),
    Case("untied", base={"tie_word_embeddings": False}),
    Case("head_dim-not-d/H", base={"head_dim": 32}),
    Case("no-grouping", base={"num_key_value_heads": 4}),
    Case("attention_bias", base={"attention_bias": True}),
    Case("mlp_bias", base={"mlp_bias": True}),
    *(Case(f"llama-{name}", base={"hidden_act": name}) for name in FAITHFUL_ACTIVATIONS),
    Case("sharded", base={"shards": 3}),
    Case("rope_theta", base={"rope_theta": 5e5}),
    Case("table", channel={"embedding": "table"}),
    Case("copy", channel={"initialization": "copy"}),
    Case("adapter", channel={"adapter": True}),
    Case("gpt2-table", "gpt2", channel={"embedding": "table"}),
    Case("gpt2-inner-relu", "gpt2", base={"n_inner": 80, "activation_function": "relu"}),
    *(
        Case(f"gpt2-{name}", "gpt2", base={"activation_function": name})
        for name in FAITHFUL_ACTIVATIONS
    ),
    Case("qwen2-tied", "qwen2", base={"tie_word_embeddings": True}),
    # Shapes; the bases have two layers.
    Case("upper-half", channel={"first_layer": 1}),
    Case("shared", channel={"attention": "shared"}),
    Case("upper-half-shared", channel={"first_layer": 1, "attention": "shared"}),
    Case("shared-one-of-a-group", channel={"attention": "shared", "heads": 1}),
    Case("shared-some-of-each-group", channel={"attention": "shared", "key_value_heads": 2}),
    Case("shared-all-heads", channel={"attention": "shared", "heads": 4}),
    Case("shared-table", channel={"attention": "shared", "embedding": "table"}),
    Case("gpt2-upper-half-shared", "gpt2", channel={"first_layer": 1, "attention": "shared"}),
    Case("probe", channel={"first_layer": 2}),
    Case("gpt2-probe", "gpt2", channel={"first_layer": 2}),
)


def compare(made: Built, length: int = 24) -> None:
    """Engine against torch, and base logits against the unwidened graph."""
    ids = tokens(2, length)
    found, expected = made.graph(ids), made.torch(ids)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        assert built.relative(found[name], values) < TOLERANCE, name
    np.testing.assert_array_equal(found["logits"], made.base(ids)["logits"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_engine_equals_torch_and_base_logits_are_unchanged(
    case: Case, tmp_path: Path, families: dict[str, Built]
) -> None:
    if case.name in families:
        compare(families[case.name])
        return
    checkpoint = built.random_checkpoint(
        tmp_path / "ck", case.family, base=case.base, **case.channel
    )
    compare(Built.make(tmp_path, checkpoint))


@pytest.mark.parametrize("kind", ["copy", "normal", "random"])
def test_engine_of_each_initialization_as_inserted(kind: str, tmp_path: Path) -> None:
    """Without `randomize`: what `insert` writes is what is built."""
    directory = tiny.write_checkpoint(tmp_path / "ck", initialization=kind, heads=2)
    compare(Built.make(tmp_path, Checkpoint.open(directory)))


# Each example is a build, so a failing one is shown as it is found.
@hypothesis.settings(max_examples=6, phases=[hypothesis.Phase.generate])
@hypothesis.given(
    hidden=st.integers(1, 70),
    inner=st.integers(1, 100),
    groups=st.integers(1, 2),
    embedding=st.sampled_from(["projection", "table"]),
    kinds=st.lists(st.sampled_from(list(SIGNALS)), min_size=1, max_size=3),
    activation=st.sampled_from(["identity", "tanh", "sigmoid"]),
    attention=st.sampled_from(["own", "shared"]),
    first_layer=st.integers(0, 2),
    heads=st.integers(1, 3),
    draft_vocab=st.sampled_from([None, 1, 40]),
    seed=st.integers(0, 9),
)
def test_any_widths_shapes_and_signals(
    tmp_path_factory: pytest.TempPathFactory,
    hidden: int,
    inner: int,
    groups: int,
    embedding: str,
    kinds: list[str],
    activation: str,
    attention: str,
    first_layer: int,
    heads: int,
    draft_vocab: int | None,
    seed: int,
) -> None:
    root = tmp_path_factory.mktemp("widths")
    signals = tuple(
        Signal(f"s{i}", kind.name, taken, None, heads, draft_vocab)
        if kind.has_heads
        else Signal(f"s{i}", kind.name, taken, None)
        for i, kind in enumerate(map(SIGNALS.load, kinds))
        for taken in [activation if activation in kind.activations else kind.activations[0]]
    )
    checkpoint = built.random_checkpoint(
        root / "ck",
        seed=seed,
        initialization="normal",
        hidden_size=hidden,
        intermediate_size=inner,
        heads=2 * groups,
        embedding="projection" if first_layer else embedding,
        attention=attention,
        first_layer=first_layer,
        signals=signals,
    )
    compare(Built.make(root, checkpoint))


def test_gpt2_weights_without_their_prefix(tmp_path: Path) -> None:
    """The hub's own GPT-2 files leave ``transformer.`` out."""
    checkpoint = built.random_checkpoint(tmp_path / "ck", "gpt2")
    file = tmp_path / "ck" / "model.safetensors"
    short = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    save_file(short, file, {"format": "pt"})
    reopened = Checkpoint.open(checkpoint.directory)
    assert "wte.weight" in reopened.base.weights
    compare(Built.make(tmp_path, reopened))


def test_bfloat16_base(tmp_path: Path) -> None:
    """bf16 weights widen to float32 exactly; torch loads the same file."""
    checkpoint = built.random_checkpoint(tmp_path / "ck")
    to_bfloat16(tmp_path / "ck" / "model.safetensors")
    reopened = Checkpoint.open(checkpoint.directory)
    assert reopened.base.weights["model.embed_tokens.weight"].dtype == "BF16"
    compare(Built.make(tmp_path, reopened))


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_the_engine_file_holds_nothing_twice(family: str, families: dict[str, Built]) -> None:
    """A tied embedding is one tensor; so is every weight."""
    model = lower(families[family].checkpoint, onnxruntime(), "fp32")
    seen: dict[str, str] = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        data = value.const_value.numpy()
        if data.size < 64:
            continue
        for form in (data, data.T):
            digest = hashlib.sha256(np.ascontiguousarray(form).tobytes()).hexdigest()
            assert seen.setdefault(digest, str(name)) == name, f"{name} is {seen[digest]} again"


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_positions_and_the_manifest(family: str, families: dict[str, Built]) -> None:
    """The rotary or position table has one row for each position that the engine accepts."""
    manifest = json.loads((families[family].engine / "engine.json").read_text())
    assert manifest["max_sequence_length"] == 128
    compare(families[family], length=128)


def to_bfloat16(file: Path) -> None:
    """Store a file's tensors as BF16, by truncating the low half of each float32."""
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {k: torch.from_numpy(v).to(torch.bfloat16) for k, v in load_file(file).items()}
    save_torch(tensors, file, {"format": "pt"})
