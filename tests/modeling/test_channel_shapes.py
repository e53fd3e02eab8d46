"""L2: channels of every shape in torch: decoding, gradients, training, and what a probe can fit.

`test_dense_oracle.py` has the mathematics, `tests/families/test_shapes.py` every base.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from otter_export import ArgsGreedy, Request, generate
from otter_export.checkpoint import Checkpoint
from otter_export.family import Space
from otter_export.initialization import copied_rows
from otter_export.modeling.data import Item, Row
from otter_export.modeling.learner import Task
from otter_export.modeling.otter_model import load_base, load_reference
from otter_export.modeling.torch_engine import TorchOptions
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal
from tests import built, tiny
from tests.modeling.reference import load, tokens
from tests.modeling.test_gradients import objective
from tests.modeling.torch_pairs import make_engine
from tests.tree_steps import assert_equal_to_separate_forwards, ids

SIGNALS = (tiny.REWARD, tiny.NEXT)
#: Of bases with two layers. Two extra heads of Llama share one key; in GPT-2 each has its own.
SHAPES = [(0, "shared"), (1, "own"), (1, "shared"), (2, "own")]
every_shape = pytest.mark.parametrize(("first_layer", "attention"), SHAPES)


@settings(max_examples=15)
@given(data=st.data())
def test_any_shape_leaves_the_base_alone_and_copies_it(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over a Llama of four layers, 8 query heads over 4: the channel's groups may be smaller."""
    root, first_layer = tmp_path_factory.mktemp("any"), data.draw(st.integers(0, 4))
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
    base = tiny.write_base(root / "base", **sizes, head_dim=16)
    key_value_heads = data.draw(st.integers(1, 4))
    checkpoint = Checkpoint.open(
        tiny.write_checkpoint(
            root / "ck",
            base=base,
            initialization="copy",
            hidden_size=data.draw(st.integers(1, 64)),
            intermediate_size=data.draw(st.integers(1, 96)),
            heads=key_value_heads * data.draw(st.integers(1, 2)),
            key_value_heads=key_value_heads,
            first_layer=first_layer,
            attention=data.draw(st.sampled_from(["own", "shared"])),
        )
    )
    model, given_ids = load_reference(checkpoint), tokens(2, data.draw(st.integers(2, 20)))
    with torch.no_grad():
        assert torch.equal(model(given_ids).logits, load_base(checkpoint.base)(given_ids).logits)
        states = model.base.base_model(given_ids, output_hidden_states=True).hidden_states
        step = model(given_ids[:, :1], use_cache=True)
        rewards = [step.signals["reward"]]
        for one in given_ids[:, 1:].split(1, dim=1):
            step = model(one, past_key_values=step.past_key_values, use_cache=True)
            rewards.append(step.signals["reward"])
    copied = copied_rows(checkpoint.config, checkpoint.base, Space.HIDDEN)
    # Of what leaves layers N - 1 and on; the state that the channel begins at is widened inside.
    for state in states[first_layer + 1 :] if first_layer < 4 else states[-1:]:
        torch.testing.assert_close(state[..., 64:], state[..., copied], rtol=2e-5, atol=2e-5)
    whole = model(given_ids).signals["reward"]
    torch.testing.assert_close(torch.cat(rewards, 1), whole, rtol=1e-5, atol=1e-5)


@every_shape
def test_the_torch_engine_decodes(
    family: str, first_layer: int, attention: str, tmp_path: Path
) -> None:
    """Trees and batches that sequences leave and join, against whole forwards of the reference."""
    channel = {"first_layer": first_layer, "attention": attention, "signals": SIGNALS}
    checkpoint = built.random_checkpoint(tmp_path / "ck", family, **channel)
    engine = make_engine(checkpoint, TorchOptions(device="cpu", max_step=16))
    assert_equal_to_separate_forwards(engine)
    method = ArgsGreedy(top_k=6, weight=3.0)
    requests = [Request(ids(1, 4 + 11 * i, i)[0], method, max_tokens=5 + 4 * i) for i in range(4)]
    model = load_reference(checkpoint)
    for result in generate(engine, requests, batch_size=2):
        whole = torch.tensor([[*result.prompt_ids, *result.token_ids]])
        with torch.no_grad():
            expected = model(whole).signals["reward"][0, len(result.prompt_ids) :]
        np.testing.assert_allclose(result.rewards, expected.numpy(), atol=2e-5)
        assert len(result.token_ids) > 1 or result.finish_reason == "stop"


def test_layers_below_a_channel_have_caches_of_the_base_alone(tmp_path: Path) -> None:
    """Llama has two key/value heads here, and the channel one more."""
    for first_layer, expected in [(0, [(4, 3)]), (1, [(2, 2), (2, 3)]), (2, [(4, 2)])]:
        checkpoint = built.random_checkpoint(tmp_path / str(first_layer), first_layer=first_layer)
        engine = make_engine(checkpoint, TorchOptions(device="cpu"))
        blocks = engine._executor.blocks(1, 8)  # type: ignore[attr-defined]
        assert [(block.shape[0], block.shape[2]) for block in blocks] == expected


@every_shape
def test_gradients_reach_all_inserted_tensors_and_no_layer_below(
    family: str, first_layer: int, attention: str, tmp_path: Path
) -> None:
    shape: dict[str, Any] = {"first_layer": first_layer, "attention": attention}
    _, model, checkpoint = load(tmp_path, family, torch.float64, signals=SIGNALS, **shape)
    below: list[bool] = []
    for name in checkpoint.base.sites.layers[:first_layer]:
        layer = model.base.get_submodule(name)
        layer.register_forward_hook(lambda *given: below.append(given[-1].requires_grad))
    objective(model, tokens(2, 9)).backward()
    assert below == [False] * first_layer
    for name, parameter in model.channel_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@every_shape
def test_gradients_equal_finite_differences(
    family: str, first_layer: int, attention: str, tmp_path: Path
) -> None:
    """Of the tensor that the channel begins with, behind which all others lie."""
    shape: dict[str, Any] = {"first_layer": first_layer, "attention": attention}
    _, model, _ = load(tmp_path, family, torch.float64, signals=SIGNALS, **shape)
    parameter = next(p for n, p in model.channel_parameters() if n.endswith(".otter.projection"))
    given_ids, step = tokens(2, 6), 1e-6
    objective(model, given_ids).backward()
    assert parameter.grad is not None
    index = int(parameter.grad.abs().argmax())
    values = []
    for moved in (step, -step):
        with torch.no_grad():
            parameter.view(-1)[index] += moved
            values.append(float(objective(model, given_ids)))
            parameter.view(-1)[index] -= moved
    numeric, analytic = (values[0] - values[1]) / (2 * step), float(parameter.grad.view(-1)[index])
    # Central differences in float64: truncation 1e-12, rounding of the sum 1e-13 / 1e-6.
    assert abs(numeric - analytic) <= 1e-5 * abs(analytic) + 1e-6


@every_shape
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_learns_stops_and_resumes(
    first_layer: int, attention: str, dtype: str, tmp_path: Path
) -> None:
    """Good words and bad ones are told apart; a run in two parts equals one in one."""
    shape: dict[str, Any] = {"first_layer": first_layer, "attention": attention}
    generator = np.random.default_rng(0)
    sides = np.tile([1.0, -1.0], 60)
    items = [
        Item(i, (Row((*generator.integers(3 if side > 0 else 11, 11 if side > 0 else 19, 5), 2),
                     0),), 0.8 * side)
        for i, side in enumerate(sides)
    ]  # fmt: skip
    config = TrainingConfig(
        epochs=2, batch_tokens=128, learning_rate=1e-2, eval_every=4, weight_decay=0, dtype=dtype
    )

    def trainer(name: str) -> Trainer:
        path = tmp_path / name
        if not path.is_dir():
            tiny.write_checkpoint(path, **shape)
        return Trainer(Checkpoint.open(path), config, [Task("reward", "regression", items, items)])

    whole, stopped = trainer("whole"), trainer("stopped")
    before = whole.learners[0].evaluate(items)
    assert whole.run() and set(whole.parameters) == set(whole.checkpoint.tensors)
    assert not stopped.run(should_stop=lambda: stopped.progress.step >= 5)
    resumed = trainer("stopped")
    assert resumed.resume() and resumed.run()
    assert all(torch.equal(resumed.best[name], whole.best[name]) for name in whole.best)
    whole.use_best()
    after = whole.learners[0].evaluate(items)
    # A probe sees what a random base keeps of earlier words in the last state, and no more.
    assert after["loss"] < 0.5 * before["loss"] and after["pearson"]["100"] > 0.8


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_probe_fits_any_linear_head(family: str, tmp_path: Path) -> None:
    """``R n`` of the base's final state ``n``, from the formulas of docs/checkpoint.md."""
    linear = Signal("reward", "value", "identity", None)
    checkpoint = Checkpoint.open(
        tiny.write_checkpoint(
            tmp_path / "ck", family, first_layer=2, signals=(linear,), hidden_size=5
        )
    )
    generator = np.random.default_rng(0)
    rows, weight = generator.standard_normal((5, 64)), generator.standard_normal((1, 5))
    write_probe(checkpoint, rows, {"signals.reward.weight": weight})
    given_ids = tokens(2, 12)
    with torch.no_grad():
        state = load_base(checkpoint.base).base_model(given_ids).last_hidden_state.double().numpy()
        probe = load_reference(Checkpoint.open(checkpoint.directory))
        found = probe(given_ids).signals["reward"].numpy()
    # Weights are float32.
    assert built.relative(found, state @ (weight @ rows)[0]) < 2e-6


def write_probe(
    checkpoint: Checkpoint, rows: np.ndarray, signals: Mapping[str, np.ndarray]
) -> None:
    """P = R diag(gamma), gamma' = 1; a LayerNorm, which subtracts the mean of x, needs it back."""
    path, norm = checkpoint.directory / "otter.safetensors", checkpoint.base.sites.norms[-1]
    projection = rows * checkpoint.base.norm_weight(norm)
    tensors = load_file(path) | dict(signals)
    tensors[f"{norm.name}.otter.weight"] = np.ones(len(rows))
    if f"{norm.name}.bias" in checkpoint.base.tensors:
        size = rows.shape[1]
        projection = projection + (1 - projection.sum(1, keepdims=True)) / size
        tensors[f"{norm.name}.otter.bias"] = rows @ checkpoint.base.float32(f"{norm.name}.bias")
    tensors[f"{norm.name}.otter.projection"] = projection
    tensors["signals.reward.bias"] = np.zeros(1)
    save_file({n: np.asarray(t, np.float32) for n, t in tensors.items()}, path, {"format": "pt"})


def test_heads_with_keys_of_their_own_share_attention(tmp_path: Path) -> None:
    """Two extra queries over two keys, of a base with two queries for each: heads 0 and 2."""
    options = {"initialization": "copy", "heads": 2, "key_value_heads": 2, "attention": "shared"}
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck", **options))
    model = load_reference(checkpoint)
    attention = model.base.model.layers[0].self_attn
    assert attention.q_proj.rows.tolist() == [*range(16), *range(32, 48)]
    assert attention.k_proj.rows.tolist() == list(range(32))
    with torch.no_grad():
        state = model.base.base_model(tokens(2, 9)).last_hidden_state
    copied = copied_rows(checkpoint.config, checkpoint.base, Space.HIDDEN)
    torch.testing.assert_close(state[..., 64:], state[..., copied], rtol=2e-5, atol=2e-5)
