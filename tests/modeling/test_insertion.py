"""L2: a channel inserted into tiny models of every family leaves the base as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export.initialization import evenly_spaced
from tests import tiny
from tests.modeling.reference import load, tokens, widths


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("initialization", ["copy", "normal", "random"])
@pytest.mark.parametrize("embedding", ["projection", "table"])
def test_base_logits_are_bit_identical(
    tmp_path: Path, family: str, size: str, initialization: str, embedding: str
) -> None:
    base, model, _ = load(
        tmp_path, family, initialization=initialization, embedding=embedding, **widths(family, size)
    )
    with torch.no_grad():
        for ids in (tokens(1, 1), tokens(3, 17)):
            assert torch.equal(model(ids).logits, base(ids).logits)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_base_logits_are_bit_identical_at_any_width(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    family = data.draw(st.sampled_from(list(tiny.CONFIGS)))
    shape = {
        "hidden_size": data.draw(st.integers(1, 90)),
        "intermediate_size": data.draw(st.integers(1, 120)),
        # Llama and Qwen2 have two query heads to a key/value head, GPT-2 one.
        "heads": 2 * data.draw(st.integers(1, 3)),
        "initialization": data.draw(st.sampled_from(["normal", "random"])),
    }
    base, model, _ = load(tmp_path_factory.mktemp("any"), family, **shape)
    ids = tokens(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40)))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base(ids).logits)


def test_base_logits_are_bit_identical_with_wild_channel_values(
    tmp_path: Path, family: str
) -> None:
    """Even a channel that overflows cannot reach the base."""
    base, model, _ = load(tmp_path, family)
    with torch.no_grad():
        for _, parameter in model.channel_parameters():
            parameter.fill_(1e20)
        output = model(tokens(2, 9))
        assert torch.equal(output.logits, base(tokens(2, 9)).logits)
        assert not torch.isfinite(output.signals["reward"]).all()


@pytest.mark.parametrize("embedding", ["projection", "table"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_copy_follows_the_base_at_every_layer(
    tmp_path: Path, family: str, embedding: str, size: str
) -> None:
    _, model, checkpoint = load(
        tmp_path, family, initialization="copy", embedding=embedding, **widths(family, size)
    )
    d, channel = checkpoint.base.dimensions.hidden_size, checkpoint.config.hidden_size
    copied = torch.from_numpy(evenly_spaced(channel, d))
    with torch.no_grad():
        decoded = model.base.base_model(tokens(2, 11), output_hidden_states=True)
    # Embeddings, each layer, and the state after the final norm.
    assert len(decoded.hidden_states) == checkpoint.base.dimensions.num_hidden_layers + 1
    for state in decoded.hidden_states:
        x, x_channel = state[..., :d], state[..., d:]
        # The same sums, but GEMMs over other row blocks add in another order: a few ulp a layer.
        torch.testing.assert_close(x_channel, x[..., copied], rtol=2e-5, atol=2e-5)


def test_incremental_decoding_equals_the_full_forward(tmp_path: Path, family: str) -> None:
    _, model, _ = load(tmp_path, family)
    ids = tokens(2, 12)
    with torch.no_grad():
        full = model(ids)
        step = model(ids[:, :5], use_cache=True)
        rewards, logits = [step.signals["reward"]], [step.logits]
        for i in range(5, 12):
            step = model(ids[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True)
            rewards.append(step.signals["reward"])
            logits.append(step.logits)
    torch.testing.assert_close(torch.cat(rewards, 1), full.signals["reward"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(logits, 1), full.logits, rtol=1e-4, atol=1e-4)


def test_generate_equals_the_base(tmp_path: Path, family: str) -> None:
    base, model, _ = load(tmp_path, family)
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = tokens(2, 6)
    expected = base.generate(ids, **arguments)
    assert torch.equal(model.base.generate(ids, **arguments), expected)
    assert expected.shape == (2, 18)


def test_tree_mask_equals_separate_forwards(tmp_path: Path, family: str) -> None:
    """All k candidates after one prefix, in one forward, each seeing the prefix and itself."""
    _, model, _ = load(tmp_path, family)
    prefix, candidates = tokens(1, 7), tokens(1, 4, seed=1)
    length, k = prefix.shape[1], candidates.shape[1]
    size = length + k
    allowed = torch.tril(torch.ones(size, size, dtype=torch.bool))
    allowed[length:, length:] = torch.eye(k, dtype=torch.bool)
    mask = torch.zeros(1, 1, size, size).masked_fill(~allowed, torch.finfo(torch.float32).min)
    positions = torch.cat((torch.arange(length), torch.full((k,), length)))[None]
    with torch.no_grad():
        tree = model(
            torch.cat((prefix, candidates), 1), attention_mask=mask, position_ids=positions
        )
        for i in range(k):
            alone = model(torch.cat((prefix, candidates[:, i : i + 1]), 1))
            for one, other in (
                (tree.signals["reward"][:, length + i], alone.signals["reward"][:, -1]),
                (tree.logits[:, length + i], alone.logits[:, -1]),
            ):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    rewards = tree.signals["reward"][0, length:]
    assert rewards.unique().numel() == k, "the candidates must differ for the test to mean anything"


def test_every_kind_of_signal_has_its_shape(tmp_path: Path, family: str) -> None:
    signals = (tiny.REWARD, tiny.NEXT)
    _, model, _ = load(tmp_path, family, signals=signals)
    with torch.no_grad():
        output = model(tokens(2, 5), compute_logits=False)
    assert output.signals["reward"].shape == (2, 5)
    assert output.signals["next"].shape == (2, 5, 128)
    assert output.logits.shape[-1] == 0
    assert all(values.abs().max() <= 1 for values in output.signals.values())


def test_base_weights_are_shared_not_copied(tmp_path: Path, family: str) -> None:
    base, model, _ = load(tmp_path, family)
    expected = dict(base.state_dict())
    found = {k: v for k, v in model.base.state_dict().items() if ".otter." not in k}
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
