"""The tokenizer of an engine directory: ``tokenizer.json``, read by the tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from otter_export.boundary import errors_as
from otter_export.errors import EngineError, RequestError

FILE_NAME = "tokenizer.json"
#: The largest known vocabularies (262,144 tokens) take 35 MB.
_LIMIT_BYTES = 256 << 20


class JsonTokenizer:
    """Text to token ids and back, by one ``tokenizer.json``.

    Args:
        path: The file.

    Raises:
        EngineError: The file is missing, too large or not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        try:
            with errors_as(EngineError, f"{path} is not a readable tokenizer"):
                size = path.stat().st_size
                if size > _LIMIT_BYTES:
                    raise EngineError(
                        f"{path} has {size} bytes; a tokenizer of at most {_LIMIT_BYTES} is read"
                    )
                self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except EngineError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise EngineError(
                f"{path} does not exist; put the base model's {FILE_NAME} there, or build the "
                "engine again from a checkpoint that has one"
            ) from None
        # A file may carry the settings of its training; prompts must come through whole.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model's tokenizer adds.

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
            return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; incomplete UTF-8 becomes U+FFFD.

        Raises:
            EngineError: The tokenizer cannot decode them.
        """
        with errors_as(EngineError, "the tokenizer cannot decode the engine's tokens"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
