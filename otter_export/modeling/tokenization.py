"""The base's tokenizer and end token, as training sees them."""

from __future__ import annotations

from pathlib import Path

from otter_export.checkpoint import BaseModel
from otter_export.errors import CheckpointError, EngineError
from otter_export.runtime.tokenizer import JsonTokenizer
from otter_export.tokenizer_file import FILE_NAME


def load_tokenizer(directory: Path) -> JsonTokenizer:
    """The tokenizer beside a base model: the one that its engines will have.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    try:
        return JsonTokenizer(directory / FILE_NAME)
    except EngineError as error:
        raise CheckpointError(f"{directory} has no usable tokenizer: {error}") from None


def end_token_id(base: BaseModel) -> int | None:
    """The id that ends a text, by generation_config.json, else config.json; the first of many."""
    return next(iter(base.special_token_ids[1]), None)
