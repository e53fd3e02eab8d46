"""The base's tokenizer and end token, as training sees them."""

from __future__ import annotations

from pathlib import Path

from otter_export.boundary import errors_as
from otter_export.checkpoint import BaseModel
from otter_export.errors import CheckpointError
from otter_export.modeling.data import Tokenizer


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer beside a base model; never runs code of the checkpoint.

    Raises:
        CheckpointError: There is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    with errors_as(CheckpointError, f"{directory} has no usable tokenizer"):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def end_token_id(base: BaseModel) -> int | None:
    """The id that ends a text, by generation_config.json, else config.json; the first of many."""
    return next(iter(base.special_token_ids[1]), None)
