"""What of a configuration of transformers a model depends on, to compare two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Names, labels, dropout, training and generation.
_IGNORED = {
    *("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "use_cache"),
    *("initializer_range", "id2label", "label2id", "problem_type", "transformers_version"),
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout"),
    *("residual_dropout", "embedding_dropout", "attn_dropout", "classifier_dropout"),
    *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
    *("is_encoder_decoder", "pretraining_tp", "_name_or_path", "summary_type"),
    *("summary_use_proj", "summary_activation", "summary_proj_to_labels", "resid_dropout"),
    *("summary_first_dropout", "model_type", "max_length", "_attn_implementation"),
    "sliding_window_pattern",  # layer_types says the same, and transformers completes it
}


def assert_same_settings(one: Any, other: Any, *, without: frozenset[str] = frozenset()) -> None:
    """Two configurations agree on the keys that both have, but for those ``without``."""
    a, b = (_read(config) for config in (one, other))
    shared = a.keys() & b.keys() - without
    assert {key: a[key] for key in shared} == {key: b[key] for key in shared}


def _read(config: Any) -> dict[str, Any]:
    return {key: _plain(v) for key, v in config.to_dict().items() if key not in _IGNORED}


def _plain(value: Any) -> Any:
    """Rotary settings without the older name of their kind, and without sections of images."""
    if not isinstance(value, Mapping):
        return value
    unread = ("type", "mrope_section", "mrope_interleaved")
    return {key: _plain(v) for key, v in value.items() if key not in unread}
