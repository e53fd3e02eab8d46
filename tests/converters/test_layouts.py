"""L2: what transformers computes from a directory, the reference and the engine compute too.

Every layout of files that transformers loads: tied and untied heads, left-out prefixes, shards and
indexes, extra tensors. Tolerance: 1e-4 of the largest magnitude, as for every fp32 engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, OtterError
from otter_export.modeling.otter_model import load_base
from tests import built, tiny

Tensors = dict[str, np.ndarray]
IDS = [5, 9, 20, 7, 5, 100]
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def other_head(tensors: Tensors) -> Tensors:
    """A head that was trained although config.json ties it."""
    generator = np.random.default_rng(7)
    values = generator.standard_normal(tensors[TABLE].shape).astype(np.float32)
    return {**tensors, HEAD: values}


def equal_head(tensors: Tensors) -> Tensors:
    """The copy of the embedding that some tools write."""
    return {**tensors, HEAD: tensors[TABLE].copy()}


def head_alone(tensors: Tensors) -> Tensors:
    """The head kept, the embedding dropped as its copy."""
    return {HEAD if name == TABLE else name: values for name, values in tensors.items()}


def no_prefix(tensors: Tensors) -> Tensors:
    """As the decoder without its head was saved."""
    names = (name.removeprefix("model.").removeprefix("transformer.") for name in tensors)
    return dict(zip(names, tensors.values(), strict=True))


def buffers(tensors: Tensors) -> Tensors:
    """Rotary frequencies, as older releases stored them; wrong here, since nobody may read them."""
    extra = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.full(8, np.nan, np.float32)
        for i in range(2)
    }
    return {**tensors, **extra}


LAYOUTS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "tied, another head stored": ("llama", other_head),
    "tied, the same head stored": ("llama", equal_head),
    "tied, the head stored alone": ("llama", head_alone),
    "without model.": ("llama", no_prefix),
    "qwen2 without model.": ("qwen2", no_prefix),
    "gpt2 without transformer.": ("gpt2", no_prefix),
    "rotary buffers": ("llama", buffers),
}


def rewritten(directory: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Change the tensors of a base."""
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return directory


def logits_of_transformers(directory: Path) -> np.ndarray:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return logits(model)


@torch.no_grad()
def logits(model: torch.nn.Module) -> np.ndarray:
    found: np.ndarray = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    return found


def assert_equal_to_transformers(base: Path, root: Path) -> None:
    """The base in torch, and the engine of a channel on it."""
    expected = logits_of_transformers(base)
    assert built.relative(logits(load_base(BaseModel.open(base))), expected) < 1e-5
    checkpoint = Checkpoint.open(tiny.write_checkpoint(root / "checkpoint", base=base))
    graph = built.Graph.load(built.build(checkpoint, root / "engine"))
    found = graph(np.array([IDS], np.int64))["logits"][0]
    assert built.relative(found, expected[-len(found) :]) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_one_file(layout: str, tmp_path: Path) -> None:
    family, change = LAYOUTS[layout]
    base = rewritten(tiny.write_base(tmp_path / "base", family), change)
    assert_equal_to_transformers(base, tmp_path)


def test_a_single_file_beside_an_older_index(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", shards=2, seed=1)
    tiny.write_base(tmp_path / "newer")
    (tmp_path / "newer" / "model.safetensors").rename(base / "model.safetensors")
    assert_equal_to_transformers(base, tmp_path)
    # What is copied is what is read.
    copied = {path.name for path in (tmp_path / "checkpoint").glob("model*")}
    assert copied == {"model.safetensors"}


def test_shards_with_buffers_that_the_index_does_not_name(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", shards=2)
    shard = base / "model-00001-of-00002.safetensors"
    save_file(buffers(load_file(shard)), shard, {"format": "pt"})
    assert_equal_to_transformers(base, tmp_path)


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_announced_biases(key: str, tmp_path: Path) -> None:
    assert_equal_to_transformers(tiny.write_base(tmp_path / "base", **{key: True}), tmp_path)


@pytest.mark.parametrize(
    ("announced", "told", "message"),
    [
        (False, True, r"base tensor model.layers.0.self_attn.q_proj.bias is missing"),
        (True, False, r"hold the bias model.layers.0.self_attn.q_proj.bias and 7 more, but config"),
    ],
)
def test_biases_and_config_disagree(
    announced: bool, told: bool, message: str, tmp_path: Path
) -> None:
    """Transformers draws the missing ones at random, and drops those that are not announced."""
    base = tiny.write_base(tmp_path / "base", attention_bias=announced)
    config = {**tiny.LLAMA, "attention_bias": told}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        tiny.write_checkpoint(tmp_path / "checkpoint", base=base)


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("qwen2", "model.layers.0.mlp.up_proj.bias", "which this family does not have"),
        ("llama", "lm_head.bias", "which this family does not have"),
        ("llama", "model.norm.bias", "which this family does not have"),
    ],
)
def test_biases_that_no_model_has(family: str, name: str, message: str, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", family)
    rewritten(base, lambda tensors: {**tensors, name: np.ones(96, np.float32)})
    with pytest.raises(CheckpointError, match=message):
        tiny.write_checkpoint(tmp_path / "checkpoint", base=base)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_prefixes_of_wrappers_are_named(prefix: str, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    rewritten(base, lambda tensors: {prefix + name: v for name, v in tensors.items()})
    with pytest.raises(CheckpointError, match=f"names that start with '{prefix}'"):
        tiny.write_checkpoint(tmp_path / "checkpoint", base=base)


def test_the_reference_reads_what_is_resolved(tmp_path: Path) -> None:
    """A parameter that transformers has and the family does not name is an error, not random."""
    base = BaseModel.open(tiny.write_base(tmp_path / "base"))
    del base.tensors["model.norm.weight"]  # type: ignore[attr-defined]
    with pytest.raises(OtterError, match=r"other parameters than the family llama: model\.norm"):
        load_base(base)


def test_what_the_files_hold_instead_is_said(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    rewritten(base, lambda tensors: {f"x{name}": v for name, v in tensors.items()})
    message = r"the files hold other tensors, such as xmodel.*; base tensor model.embed_tokens"
    with pytest.raises(CheckpointError, match=message):
        tiny.write_checkpoint(tmp_path / "checkpoint", base=base)
