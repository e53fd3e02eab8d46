"""The tokenizer of an engine directory: ``tokenizer.json``, read by the tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from otter_export.errors import EngineError, RequestError
from otter_export.files import read_regular

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
            text = read_regular(path, _LIMIT_BYTES, EngineError).decode("utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except FileNotFoundError:
            raise EngineError(
                f"{path} does not exist; put the base model's {FILE_NAME} there, or build the "
                "engine again from a checkpoint that has one"
            ) from None
        except EngineError:
            raise
        # The tokenizers library raises plain Exception for whatever it cannot parse.
        except Exception as error:
            raise EngineError(f"{path} is not a readable tokenizer: {error}") from None
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
            return list(self._tokenizer.encode(text).ids)
        except UnicodeEncodeError:
            raise RequestError(
                "the text is not valid Unicode (half of a surrogate pair); give it as UTF-8"
            ) from None
        # Plain Exception again, such as an unknown character in a vocabulary without <unk>.
        except Exception as error:
            raise RequestError(f"the tokenizer cannot encode the text: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; incomplete UTF-8 becomes U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
