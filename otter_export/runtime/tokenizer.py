"""Text to token ids and back, by the tokenizer of a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
        try:
            self._tokenizer = read_tokenizer(path)
        except FileNotFoundError:
            raise EngineError(
                f"{path} does not exist; put the base model's {FILE_NAME} there, or build the "
                "engine again from a checkpoint that has one"
            ) from None
        except (OSError, ConfigError) as error:
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
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
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
