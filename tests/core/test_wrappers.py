"""L2: wrappers open as their text model, which gives the wrapper's own logits on text.

Tiny random wrappers, written by transformers; bit for bit, since both run the same kernels on the
same weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from otter_export import insert
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions
from otter_export.checkpoint import Checkpoint
from otter_export.errors import ConfigError, OtterError, UnsupportedError
from otter_export.insert import base_files
from otter_export.inspection import summarize
from otter_export.modeling.otter_model import load_base
from otter_export.wrappers import WRAPPERS
from tests import tiny
from tests.model_settings import assert_same_settings

TEXT: Mapping[str, Any] = {**tiny.SIZES, "pad_token_id": 0}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN2_VISION = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 64,
    "num_heads": 2,
    "mlp_ratio": 1,
    "patch_size": 8,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 8,
}
_MROPE = {"rope_type": "default", "rope_theta": 5e4, "mrope_section": [2, 3, 3]}
IDS = torch.tensor([[1, *range(5, 28)]])


@dataclasses.dataclass(frozen=True)
class Case:
    """A wrapper: its text and vision settings, and what stands before old files' names."""

    name: str
    wrapper: str
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vision: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _TOWER)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
CASES = (
    Case("gemma3", "gemma3", {**_WINDOWED, "query_pre_attn_scalar": 24}),
    Case("mistral3", "mistral3", {"model_type": "mistral", "sliding_window": 8}),
    Case("mistral3-3", "mistral3", {"model_type": "ministral3", "sliding_window": None}),
    Case("llava", "llava", {"model_type": "llama"}),
    Case("llava-qwen2", "llava", {"model_type": "qwen2", "tie_word_embeddings": True}),
    Case("llava-gemma", "llava", {"model_type": "gemma"}),
    Case("llava-phi3", "llava", {"model_type": "phi3"}),
    Case("qwen2_vl", "qwen2_vl", {"rope_parameters": _MROPE}, _QWEN2_VISION),
    Case(
        "qwen2_vl-tied",
        "qwen2_vl",
        {"rope_parameters": _MROPE},
        _QWEN2_VISION,
        {"tie_word_embeddings": True},
    ),
    Case(
        "qwen2_5_vl",
        "qwen2_5_vl",
        {
            "rope_parameters": {
                **_MROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        _QWEN_VISION,
    ),
    Case(
        "qwen3_vl",
        "qwen3_vl",
        {"rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        {**_QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 4},
    ),
)
#: What stands for ``model.language_model.`` and for ``lm_head.`` in other saves.
OLD: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gemma3": (
        ("language_model.model.", "language_model.lm_head."),
        ("language_model.", "lm_head."),
    ),
    "mistral3": (("language_model.model.", "language_model.lm_head."),),
    "llava": (
        ("language_model.model.", "language_model.lm_head."),
        ("language_model.", "lm_head."),
    ),
    "qwen2_vl": (("model.", "lm_head."),),
    "qwen2_5_vl": (("model.", "lm_head."),),
    "qwen3_vl": (),
}
STYLES = [
    (case, style)
    for case in CASES
    for style in (("model.language_model.", "lm_head."), *OLD[case.wrapper])
]


def write_wrapper(case: Case, directory: Path) -> Any:
    """A random wrapper as transformers saves it; returns its model."""
    import transformers

    config = transformers.AutoConfig.for_model(
        case.wrapper,
        text_config={**TEXT, **case.text},
        vision_config=dict(case.vision),
        image_token_id=127,
        **case.settings,
    )
    torch.manual_seed(len(case.name))
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tiny.write_tokenizer(directory, 128)
    return model


def rename(directory: Path, style: tuple[str, str]) -> None:
    """Store the text model's tensors in another style."""
    path = directory / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        for body in ("model.language_model.", "language_model.model.", "model.layers.", "model."):
            is_text = body != "model." or name.startswith(("model.embed_tokens", "model.norm"))
            if name.startswith(body) and is_text:
                rest = name.removeprefix(body)
                name = style[0] + ("layers." * (body == "model.layers.")) + rest
                break
        else:
            if name.endswith("lm_head.weight"):
                name = f"{style[1]}weight"
        renamed[name] = tensor.clone()
    save_file(renamed, path, {"format": "pt"})


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("case", "style"), STYLES, ids=[f"{case.name}-{style[0]}" for case, style in STYLES]
)
def test_its_text_model_has_the_wrappers_logits(
    case: Case, style: tuple[str, str], tmp_path: Path
) -> None:
    import transformers

    wrapper = write_wrapper(case, tmp_path / "wrapper")
    rename(tmp_path / "wrapper", style)
    expected = logits(wrapper)
    # The renamed file is one that transformers reads, too.
    reread = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "wrapper")
    assert torch.equal(logits(reread.eval()), expected)
    base = BaseModel.open(tmp_path / "wrapper")
    assert base.wrapper == case.wrapper and not base.problems()
    assert torch.equal(logits(load_base(base)), expected)
    plain = tmp_path / "plain"
    insertion = insert.plan(str(tmp_path / "wrapper"), plain, ChannelOptions(hidden_size=16))
    insertion.write()
    assert f"unwrapped: the text model of this {case.wrapper} base" in insertion.notes[0]
    again = Checkpoint.open(plain).base
    assert again.wrapper is None and again.dimensions == base.dimensions and not again.left_over()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(plain).eval()
    assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_written_config_is_what_transformers_completes(case: Case, tmp_path: Path) -> None:
    """With every key of the text model there, and with each left out."""
    import transformers

    write_wrapper(case, tmp_path)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    read = BaseModel.open(tmp_path).library_config.keys() - {"layer_types", "model_type"}
    for key in (None, *sorted(whole["text_config"].keys() & read)):
        text = {k: v for k, v in whole["text_config"].items() if k != key}
        if key == "num_hidden_layers":
            text.pop("layer_types", None)
        path.write_text(json.dumps({**whole, "text_config": text}))
        theirs = transformers.AutoConfig.from_pretrained(tmp_path).get_text_config()
        settings = BaseModel.open(tmp_path).plain_config
        assert "mrope" not in json.dumps(settings)
        ours = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        # Of the wrapper's two places for it, the weights decide.
        assert_same_settings(ours, theirs, without=frozenset({"tie_word_embeddings"}))


def test_every_wrapper_is_tested() -> None:
    assert {case.wrapper for case in CASES} == set(WRAPPERS)


def test_an_adapter_reads_its_wrapper(tmp_path: Path) -> None:
    write_wrapper(CASES[0], tmp_path / "wrapper")
    tiny.write_checkpoint(tmp_path / "adapter", base=tmp_path / "wrapper", adapter=True)
    checkpoint = Checkpoint.open(tmp_path / "adapter")
    base = checkpoint.base
    assert base.wrapper == "gemma3" and base.left_over()
    assert "other" not in summarize(checkpoint).base  # of its text model alone
    assert not (tmp_path / "adapter" / "config.json").exists()
    assert "config.json" not in {path.name for path in base_files(base)}


def change(directory: Path, key: str, value: object, part: str | None = "text_config") -> None:
    path = directory / "config.json"
    data = json.loads(path.read_text())
    (data if part is None else data[part])[key] = value
    path.write_text(json.dumps(data))


def test_a_flat_configuration_of_older_files(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "qwen2_vl")
    expected = logits(write_wrapper(case, tmp_path))
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    text = data.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps({**text, **data, "model_type": "qwen2_vl"}))
    assert torch.equal(logits(load_base(BaseModel.open(tmp_path))), expected)


@pytest.mark.parametrize(
    ("name", "key", "value", "error", "message"),
    [
        *(
            ("gemma3", "final_logit_softcapping", 30.0, UnsupportedError, "does not apply it"),
            ("gemma3", "use_bidirectional_attention", True, UnsupportedError, "every token sees"),
            ("llava", "model_type", "mamba", UnsupportedError, "'mamba' is not supported"),
            ("llava", "model_type", "cohere", UnsupportedError, "logit_scale = 0.0625"),
            ("llava", "quantization_config", {"bits": 4}, UnsupportedError, "quantization_config"),
        ),
    ],
)
def test_what_would_differ_on_text_is_refused(
    name: str, key: str, value: object, error: type[OtterError], message: str, tmp_path: Path
) -> None:
    write_wrapper(next(case for case in CASES if case.name == name), tmp_path)
    change(tmp_path, key, value)
    with pytest.raises(error, match=message):
        BaseModel.open(tmp_path)


@pytest.mark.parametrize("text", [None, [], "llama"])
def test_a_wrapper_without_a_text_model(text: object, tmp_path: Path) -> None:
    write_wrapper(CASES[3], tmp_path)
    change(tmp_path, "text_config", text, None)
    with pytest.raises(ConfigError, match="text_config must be a JSON object"):
        BaseModel.open(tmp_path)
