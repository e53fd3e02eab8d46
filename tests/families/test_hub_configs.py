"""L0: public config.json files are read as transformers reads them, or refused with a reason."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_export.base_model import BaseModel
from otter_export.errors import UnsupportedError
from otter_export.families import FAMILIES
from otter_export.graph.rotary import rotary_table
from otter_export.layer_attention import ONE_TABLE, completed_config, layer_attention
from otter_export.size_defaults import SIZE_KEYS
from otter_export.wrappers import WRAPPERS
from tests.families.hub_configs import PUBLIC, REFUSED
from tests.model_settings import assert_same_settings

#: Rows of the tables that are compared.
ROWS = 96


def transformers_config(directory: Path) -> Any:
    """The text model's configuration, as transformers completes it."""
    import transformers

    return transformers.AutoConfig.from_pretrained(directory).get_text_config()


def transformers_rotary(config: Any) -> Any:
    """The rotary embedding of the configuration's own model."""
    name = type(config).__module__.replace("configuration_", "modeling_")
    module = importlib.import_module(name)
    return next(
        v for n, v in vars(module).items() if n.endswith("RotaryEmbedding") and "Vision" not in n
    )(config)


def opened(config: Any, directory: Path) -> BaseModel:
    (directory / "config.json").write_text(json.dumps(config))
    return BaseModel.open(directory)


@pytest.mark.parametrize("name", PUBLIC)
def test_sizes(name: str, tmp_path: Path) -> None:
    public = PUBLIC[name]
    base = opened(public.config, tmp_path)
    theirs = transformers_config(tmp_path)
    heads = theirs.num_attention_heads
    derived = {
        "head_dim": theirs.hidden_size // heads,
        "num_key_value_heads": heads,
        "intermediate_size": 4 * theirs.hidden_size,
    }
    expected = {
        key: value if (value := getattr(theirs, key, None)) is not None else derived[key]
        for key in SIZE_KEYS
    }
    if public.positions is not None:
        expected["max_position_embeddings"] = public.positions
    assert {key: getattr(base.dimensions, key) for key in SIZE_KEYS} == expected


@pytest.mark.parametrize("name", PUBLIC)
def test_other_settings(name: str, tmp_path: Path) -> None:
    base = opened(PUBLIC[name].config, tmp_path)
    derived = frozenset({*SIZE_KEYS, *base.family.config_keys.values(), "tie_word_embeddings"})
    assert_same_settings(completed_config(base), transformers_config(tmp_path), without=derived)


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters(name: str, tmp_path: Path) -> None:
    """What the files must hold is what transformers' model has."""
    import transformers

    base = opened(PUBLIC[name].config, tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(completed_config(base))
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # The one head that transformers names otherwise than its files.
    renamed = {"embed_out.weight": "lm_head.weight"}
    expected = {renamed.get(name, name): shape for name, shape in base.tensors.items()}
    assert found == expected


@pytest.mark.parametrize("name", PUBLIC)
def test_attention_by_layer(name: str, tmp_path: Path) -> None:
    public = PUBLIC[name]
    base = opened(public.config, tmp_path)
    layers = layer_attention(base)
    windows = [layer.window for layer in layers if layer.window is not None]
    count, width = public.windows or (0, 0)
    assert windows == [width] * count
    rotating = [layer.rotary is not None for layer in layers]
    assert rotating.count(False) == (len(layers) if name == "GPT-2" else public.unrotated)
    theirs = transformers_config(tmp_path)
    kinds = getattr(theirs, "layer_types", None) or [None] * len(layers)
    for layer, kind in zip(layers, kinds, strict=True):
        if kind is not None:
            assert (layer.window is not None) == (kind == "sliding_attention")
        assert layer.rotary in (None, ONE_TABLE, kind)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "GPT-2"])
def test_rotary_tables(name: str, tmp_path: Path) -> None:
    base = opened(PUBLIC[name].config, tmp_path)
    tables = {layer.rotary for layer in layer_attention(base) if layer.rotary is not None}
    module = transformers_rotary(transformers_config(tmp_path))
    names = inspect.signature(module.forward).parameters
    for table in sorted(tables):
        kind = {"layer_type": table} if "layer_type" in names else {}
        ids = torch.arange(ROWS)[None]
        for ours, theirs in zip(
            rotary_table(base, table, ROWS), module(torch.zeros(1, 1, 1), ids, **kind), strict=True
        ):
            half = ours.shape[1]  # each value is there twice: for halves of a head, or neighbours
            is_halves = torch.equal(theirs[..., :half], theirs[..., half:])
            once = theirs[0, :, :half] if is_halves else theirs[0, :, ::2]
            np.testing.assert_array_equal(ours, once.numpy())


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_longrope_under_its_first_names(kind: str, tmp_path: Path) -> None:
    """Compared with today's name, since transformers 5 stumbles over them."""
    today = PUBLIC["Phi-3-mini-128k"].config
    settings = {**today["rope_scaling"], "type": kind}
    expected = rotary_table(opened(today, tmp_path), ONE_TABLE, ROWS)
    base = opened({**today, "rope_scaling": settings}, tmp_path)
    assert base.dimensions.max_position_embeddings == 4096
    np.testing.assert_array_equal(rotary_table(base, ONE_TABLE, ROWS), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    config, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        opened(config, tmp_path)


def test_every_family_and_wrapper_has_a_public_file() -> None:
    opened_types = {public.config["model_type"] for public in PUBLIC.values()}
    known = {kind for name in FAMILIES for kind in FAMILIES.load(name).model_types}
    assert known | set(WRAPPERS) == opened_types | {"cohere", "ministral", "ministral3", "mistral3"}
