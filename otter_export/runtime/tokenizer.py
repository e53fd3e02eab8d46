"""Text to token ids and back, by the tokenizer of a directory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from otter_export.boundary import errors_as
from otter_export.chat_template import ChatTemplate, read_chat_template
from otter_export.errors import ConfigError, EngineError, RequestError
from otter_export.tokenizer_file import FILE_NAME, read_tokenizer


class JsonTokenizer:
    """Text to token ids and back, by one ``tokenizer.json``.

    Args:
        path: The file; tokens that the files beside it add are its own, too.

    Raises:
        EngineError: The file is missing, too large or not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        try:
            with errors_as(EngineError, f"{path} is not a readable tokenizer"):
                self._tokenizer = read_tokenizer(path)
        except ConfigError as error:
            raise EngineError(str(error)) from None
        except EngineError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise EngineError(
                f"{path} does not exist; put the base model's {FILE_NAME} there, or build the "
                "engine again from a checkpoint that has one"
            ) from None

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """Its chat template; None if it has none.

        Raises:
            EngineError: It cannot be read.
        """
        try:
            return read_chat_template(self._directory)
        except ConfigError as error:
            raise EngineError(str(error)) from None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: What to encode.
            add_special_tokens: Whether to add what the model's tokenizer puts around a text (BOS).

        Raises:
            RequestError: The text cannot be encoded, as with half of a surrogate pair.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RequestError(
                "the text is not valid Unicode (half of a surrogate pair); give it as UTF-8"
            ) from None
        # Such as an unknown character in a vocabulary without <unk>.
        with errors_as(RequestError, "the tokenizer cannot encode the text"):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids, without special tokens or with them; incomplete UTF-8 is U+FFFD.

        Raises:
            EngineError: The tokenizer cannot decode them.
        """
        with errors_as(EngineError, "the tokenizer cannot decode the engine's tokens"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
