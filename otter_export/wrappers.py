"""Multimodal models around a text model: how each is opened as its text model.

On text alone, such a wrapper computes what its text model does: images add nothing, and the three
position ids of a token (mrope) are one and the same, as in an ordinary rotary embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from otter_export.errors import ConfigError, UnsupportedError
from otter_export.family import Family
from otter_export.quoting import quoted
from otter_export.size_defaults import default_sizes

_TEXT = "text_config"
_TIED = "tie_word_embeddings"
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: What a text model's own head applies, with the value that changes nothing: wrappers multiply by
#: the head's weight and do no more.
_BYPASSED: Mapping[str, float | None] = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
}


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """One kind of wrapper.

    Args:
        text: ``model_type`` of the text model, where text_config does not name it.
        plain: ``model_type`` of the model that computes the same on text; such a wrapper has one
            kind of text model only. None: text_config says it.
        prefixes: Where the text model's tensors lie: what stands for ``{stem}``, the first part of
            the plain names. Of today's saves first, then of older ones.
        defaults: What its text model takes for a key that text_config leaves out, where that is not
            what the plain one takes; sizes are in `otter_export.size_defaults`.
        flat: Older files have the text model's settings beside the wrapper's.
        tied: Whether the head is the embedding when neither part of config.json says so.
    """

    text: str
    plain: str | None = None
    prefixes: tuple[str, ...] = (
        *("model.language_model.", "language_model.{stem}", "language_model."),
    )
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)
    flat: bool = False
    tied: bool = False

    def stored_names(self, name: str, family: Family) -> Iterator[str]:
        """Where a tensor of the text model may lie, by its plain name."""
        stem = f"{family.layers.partition('.')[0]}."
        if not name.startswith(stem):  # the head's
            yield name
            yield f"language_model.{name}"
            return
        for prefix in self.prefixes:
            yield prefix.format(stem=stem) + name.removeprefix(stem)


_QWEN2_VL = Wrapper(
    text="qwen2_vl_text",
    plain="qwen2",
    prefixes=("model.language_model.", "{stem}"),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_window_layers": 80},
    flat=True,
)
#: By ``model_type``.
WRAPPERS: Mapping[str, Wrapper] = {
    "gemma3": Wrapper("gemma3_text", plain="gemma3_text", tied=True),
    "llava": Wrapper("llama"),
    "mistral3": Wrapper("mistral", tied=True),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": dataclasses.replace(_QWEN2_VL, text="qwen2_5_vl_text"),
    "qwen3_vl": Wrapper("qwen3_vl_text", plain="qwen3", defaults={"rope_theta": 5e5}),
}


def text_settings(data: Mapping[str, Any], wrapper: Wrapper, source: str) -> dict[str, Any]:
    """The config.json of a wrapper's text model, as a plain base has it.

    Raises:
        ConfigError: It has no text_config.
    """
    text = data.get(_TEXT)
    if text is None and wrapper.flat:
        text = {k: v for k, v in data.items() if k not in ("vision_config", "model_type")}
    if not isinstance(text, Mapping):
        raise ConfigError(f"{source}: {_TEXT} must be a JSON object, got {quoted(text)}")
    kind = wrapper.text if wrapper.plain else text.get("model_type", wrapper.text)
    shared = {key: data[key] for key in _SPECIAL_TOKENS if data.get(key) is not None}
    said = [part[_TIED] for part in (data, text) if part.get(_TIED) is not None]
    values = {
        **(default_sizes(kind) if wrapper.plain else {}),
        **wrapper.defaults,
        **text,
        **shared,
        "model_type": wrapper.plain or kind,
        # Where both say it and differ, the weights decide, as for every base.
        _TIED: next((one for one in said if one is not False), wrapper.tied and not said),
    }
    values.pop("architectures", None)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(values.get(key), Mapping):
            values[key] = _without_sections(values[key])
    return values


def check_bypassed(data: Mapping[str, Any], model_type: object, source: str) -> None:
    """Refuse settings of a text model's own head, which its wrapper leaves out.

    Raises:
        UnsupportedError: Names the setting.
    """
    for key, neutral in _BYPASSED.items():
        if data.get(key, neutral) != neutral:
            raise UnsupportedError(
                f"{source}: {_TEXT}.{key} = {quoted(data[key])} is not supported: a {model_type} "
                "model does not apply it, and its text model alone would"
            )


def _without_sections(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of text, which has no sections for time, height and width (mrope)."""
    plain = {key: value for key, value in settings.items() if not key.startswith("mrope_")}
    return {
        key: "default" if key in ("type", "rope_type") and value == "mrope" else value
        for key, value in plain.items()
    }
