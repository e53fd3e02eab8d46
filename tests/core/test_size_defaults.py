"""L0: what config.json leaves out is what transformers takes, key by key and family by family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_export.base_model import BaseModel
from otter_export.families import FAMILIES
from otter_export.layer_attention import completed_config
from otter_export.size_defaults import SIZE_KEYS, default_sizes
from otter_export.wrappers import WRAPPERS
from tests.model_settings import assert_same_settings

FAMILY_OF = {kind: FAMILIES.load(n) for n in FAMILIES for kind in FAMILIES.load(n).model_types}
MODEL_TYPES = list(FAMILY_OF)
#: A width that every family's default number of heads divides.
SIZES = {
    "hidden_size": 960,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


def keys_of(model_type: str) -> dict[str, str]:
    """Standard name of a size to its name in config.json."""
    family = FAMILY_OF.get(model_type)
    return {name: family.config_keys.get(name, name) if family else name for name in SIZE_KEYS}


def sizes_of(config: Any) -> dict[str, Any]:
    """The sizes of a configuration of transformers, with those that its model derives."""
    keys = keys_of(config.model_type)
    sizes = {name: getattr(config, keys[name], None) for name in SIZE_KEYS}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    derived = {
        "head_dim": width // heads,
        "num_key_value_heads": heads,
        "intermediate_size": 4 * width,
    }
    return {name: derived.get(name) if value is None else value for name, value in sizes.items()}


def read_sizes(base: BaseModel) -> dict[str, Any]:
    return {name: getattr(base.dimensions, name) for name in SIZE_KEYS}


def as_read(data: dict[str, Any], directory: Path) -> BaseModel:
    """Open a config.json without weights."""
    (directory / "config.json").write_text(json.dumps(data))
    return BaseModel.open(directory)


@pytest.mark.parametrize(
    "model_type", [*MODEL_TYPES, *(w.text for w in WRAPPERS.values() if w.text not in MODEL_TYPES)]
)
def test_rows_are_the_classes_defaults(model_type: str) -> None:
    import transformers

    kind = type(transformers.AutoConfig.for_model(model_type))
    keys = keys_of(model_type).items()
    stated = {name: kind.__dict__.get(key) for name, key in keys}
    assert default_sizes(model_type) == {k: v for k, v in stated.items() if v is not None}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_keys_that_are_left_out(model_type: str, tmp_path: Path) -> None:
    import transformers

    sizes = {key: SIZES[name] for name, key in keys_of(model_type).items()}
    whole = transformers.AutoConfig.for_model(model_type, **sizes, pad_token_id=None).to_dict()
    read = as_read(whole, tmp_path).library_config.keys() - {"model_type", "architectures"}
    for key in (None, *sorted(whole.keys() & read)):
        data = {k: v for k, v in whole.items() if k not in (key, "model_type")}
        if key == "num_hidden_layers":
            data = {k: v for k, v in data.items() if k not in ("layer_types", "no_rope_layers")}
        theirs = transformers.AutoConfig.for_model(model_type, **data)
        base = as_read({**data, "model_type": model_type}, tmp_path)
        assert read_sizes(base) == sizes_of(theirs), key
        assert base.dimensions.tie_word_embeddings == theirs.tie_word_embeddings, key
        for announced in (base.family.biases or {}).values():
            if isinstance(announced, str):
                assert base.data.get(announced, False) == getattr(theirs, announced), key
        assert_same_settings(completed_config(base), theirs, without=frozenset(sizes))
