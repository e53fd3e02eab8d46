"""L0: the family tables give the sizes, sites and tensor names of the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.base_model import BaseModel
from otter_export.channel import expected_tensors
from otter_export.config import OtterConfig
from otter_export.errors import ConfigError, OtterError, UnsupportedError
from otter_export.families import FAMILIES, family_of
from otter_export.family import BaseDimensions, sites
from otter_export.signals import Signal
from tests import tiny
from tests.families import bases

CHANNEL = OtterConfig(16, 24, 2, 1, 16, signals=(Signal("reward"), Signal("next", "q_value")))


def dimensions(data: dict[str, Any]) -> BaseDimensions:
    return BaseDimensions.from_json(data, family_of(data, "config.json"), "config.json")


def test_every_family_has_a_tiny_base() -> None:
    """tests/families runs over the cases; deeper tests over the three families of tiny.CONFIGS."""
    covered = {case.model_type for case in bases.CASES}
    for name in FAMILIES:
        assert set(FAMILIES.load(name).model_types) <= covered
    assert set(tiny.CONFIGS) <= set(FAMILIES)


def test_a_model_type_has_one_family() -> None:
    types = [model_type for name in FAMILIES for model_type in FAMILIES.load(name).model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_biases_are_announced_at_places_that_the_family_has(name: str) -> None:
    """A misspelt path would announce nothing, without a word."""
    family = FAMILIES.load(name)
    assert family.name == name
    places = {*family.norms, family.final_norm, family.output_head}
    places |= {p.path for p in (*family.projections, *family.head_norms)}
    assert set(family.biases or {}) <= places


def test_the_contract_names_for_llama(tiny_llama: Path) -> None:
    shapes = expected_tensors(CHANNEL, BaseModel.open(tiny_llama))
    layer = {k: v for k, v in shapes.items() if k.startswith("model.layers.1.")}
    prefix = "model.layers.1"
    assert layer == {
        f"{prefix}.input_layernorm.otter.weight": (16,),
        f"{prefix}.post_attention_layernorm.otter.weight": (16,),
        f"{prefix}.self_attn.q_proj.otter.from_base": (32, 64),
        f"{prefix}.self_attn.q_proj.otter.from_channel": (32, 16),
        f"{prefix}.self_attn.k_proj.otter.from_base": (16, 64),
        f"{prefix}.self_attn.k_proj.otter.from_channel": (16, 16),
        f"{prefix}.self_attn.v_proj.otter.from_base": (16, 64),
        f"{prefix}.self_attn.v_proj.otter.from_channel": (16, 16),
        f"{prefix}.self_attn.o_proj.otter.from_base": (16, 64),
        f"{prefix}.self_attn.o_proj.otter.from_channel": (16, 32),
        f"{prefix}.mlp.gate_proj.otter.from_base": (24, 64),
        f"{prefix}.mlp.gate_proj.otter.from_channel": (24, 16),
        f"{prefix}.mlp.up_proj.otter.from_base": (24, 64),
        f"{prefix}.mlp.up_proj.otter.from_channel": (24, 16),
        f"{prefix}.mlp.down_proj.otter.from_base": (16, 96),
        f"{prefix}.mlp.down_proj.otter.from_channel": (16, 24),
    }
    assert {k: v for k, v in shapes.items() if not k.startswith("model.layers.")} == {
        "model.embed_tokens.otter.projection": (16, 64),
        "model.norm.otter.weight": (16,),
        "signals.reward.weight": (1, 16),
        "signals.reward.bias": (1,),
        "signals.next.weight": (128, 16),
        "signals.next.bias": (128,),
    }


def test_the_contract_names_for_gpt2(tmp_path: Path) -> None:
    base = BaseModel.open(tiny.write_base(tmp_path, "gpt2"))
    shapes = expected_tensors(OtterConfig(16, 24, 1, 1, 16), base)
    prefix = "transformer.h.0.attn.c_attn"
    # Fused and transposed in the base; one [out, in] pair per logical projection here.
    assert shapes[f"{prefix}.q.otter.from_base"] == (16, 64)
    assert shapes[f"{prefix}.k.otter.from_channel"] == (16, 16)
    assert shapes[f"{prefix}.v.otter.bias"] == (16,)
    assert shapes["transformer.h.0.ln_1.otter.bias"] == (16,)
    assert shapes["transformer.wte.otter.projection"] == (16, 64)
    assert shapes["transformer.wpe.otter.projection"] == (16, 64)
    assert not any(name.startswith(f"{prefix}.otter") for name in shapes)


def test_qwen2_has_biases_on_three_projections_only(tmp_path: Path) -> None:
    base = BaseModel.open(tiny.write_base(tmp_path, "qwen2"))
    names = expected_tensors(OtterConfig(16, 24, 2, 1, 16), base)
    layer = [n for n in names if n.startswith("model.layers.0.") and n.endswith(".bias")]
    assert [name.split(".")[4] for name in layer] == ["q_proj", "k_proj", "v_proj"]


def test_parts_of_a_fused_projection_follow_each_other(tmp_path: Path) -> None:
    base = BaseModel.open(tiny.write_base(tmp_path, "gpt2"))
    found = {s.name: s for s in base.sites.projections}
    prefix = "transformer.h.1.attn.c_attn"
    assert [found[f"{prefix}.{part}"].offset for part in "qkv"] == [0, 64, 128]
    stored = base.float32(f"{prefix}.weight")
    for part in "qkv":
        site = found[f"{prefix}.{part}"]
        start = site.offset
        assert (base.projection(site) == stored[:, start : start + 64].T).all()
        bias = base.projection_bias(site)
        assert bias is not None
        assert (bias == base.float32(f"{prefix}.bias")[start : start + 64]).all()


def test_sizes_and_their_defaults() -> None:
    assert dimensions(tiny.LLAMA) == BaseDimensions(
        "llama", 64, 96, 2, 4, 2, 16, 128, 128, tie_word_embeddings=True
    )
    gpt2 = dimensions({k: v for k, v in tiny.GPT2.items() if k != "tie_word_embeddings"})
    assert gpt2 == BaseDimensions("gpt2", 64, 256, 2, 4, 4, 16, 128, 128, tie_word_embeddings=True)
    assert dimensions({**tiny.QWEN2, "head_dim": None}).head_dim == 16


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        ("llama", {"hidden_size": 0}, "hidden_size must be an integer from 1"),
        ("llama", {"vocab_size": None}, "vocab_size must be an integer from 1"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
        ("gpt2", {"n_positions": None}, "n_positions must be an integer from 1"),
        ("gpt2", {"n_embd": 66}, "hidden size 66 is not a multiple of 4 heads"),
        ("llama", {"head_dim": 7}, "rotary embeddings need an even head_dim, got 7"),
        ("qwen2", {"hidden_size": 60}, "rotary embeddings need an even head_dim, got 15"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False is not supported"),
        ("llama", {"model_type": "mamba"}, "'mamba' is not supported: its layers"),
        ("llama", {"model_type": "mixtral"}, "is not supported: its feed-forward is a mixture"),
        ("llama", {"model_type": "new"}, "'new' has no family; supported: arcee, cohere, cohere2"),
        ("llama", {"model_type": None}, "model_type must be a string"),
    ],
)
def test_unusable_bases(base: str, change: dict[str, Any], message: str) -> None:
    data = {**tiny.CONFIGS[base], **change}
    with pytest.raises((ConfigError, UnsupportedError), match=message):
        dimensions(data)


fuzzed = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([])


@given(st.sampled_from(sorted(tiny.CONFIGS)), st.data())
def test_any_value_of_one_field_gives_sites_or_an_error(family: str, data: st.DataObject) -> None:
    config = dict(tiny.CONFIGS[family])
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(fuzzed)
    try:
        found = dimensions(config)
        sites(family_of(config, "x"), found, config)
    except OtterError as error:
        assert str(error)
