"""Reading a tokenizer: ``tokenizer.json``, and the tokens that lie beside it.

Training, engines and servers all read tokenizers here, so that they see the same ids. The file
alone is not all that transformers reads: tokens may also be added by ``tokenizer_config.json``,
``special_tokens_map.json`` and ``added_tokens.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from otter_export.config import check_fetched, read_json
from otter_export.errors import ConfigError
from otter_export.files import is_file, read_regular

FILE_NAME = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_ADDED = "added_tokens.json"
#: The largest known vocabularies (262,144 tokens) take 35 MB.
_LIMIT_BYTES = 256 << 20
#: Fields that name one special token, in transformers' order; others that end alike follow.
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a ``tokenizer.json``, with the tokens that the files beside it add.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It is too large or no tokenizer, or a file beside it gives a token an id that
            it cannot have.
    """
    content = read_regular(path, _LIMIT_BYTES, ConfigError)
    try:
        check_fetched(content)
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        _add_tokens(tokenizer, path)
        tokenizer.encode("")  # what it puts around a text is looked up only now
    except (ConfigError, KeyboardInterrupt, SystemExit):
        raise
    # tokenizers raises plain Exception for what it cannot parse; its panics are no Exception.
    except BaseException as error:
        raise ConfigError(f"{path} is not a readable tokenizer: {error}") from None
    # A file may carry the settings of its training; prompts must come through whole.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_settings(path: Path) -> Mapping[str, Any]:
    """The JSON object of a settings file; an empty one if there is no such file.

    Raises:
        ConfigError: It cannot be read, or is no object.
    """
    data = read_json(path) if is_file(path, ConfigError) else {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def special_token_names(directory: Path) -> dict[str, str]:
    """Texts of the special tokens that have a name of their own, such as ``eos_token``.

    Args:
        directory: Where the tokenizer's files are.
    """
    found = {**read_settings(directory / _SPECIAL), **read_settings(directory / _CONFIG)}
    texts = {name: _content(entry) for name, entry in found.items() if name.endswith("_token")}
    return {name: text for name, text in texts.items() if text is not None}


def tokens_beyond(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> list[str]:
    """The tokens whose ids have no row in an embedding of ``vocab_size`` rows, by id."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return sorted((token for token, i in vocab.items() if i >= vocab_size), key=vocab.__getitem__)


def _add_tokens(tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """Add what the files beside ``tokenizer.json`` add, by transformers' rules."""
    split = read_settings(path.parent / _CONFIG).get("split_special_tokens", False)
    tokenizer.encode_special_tokens = bool(split)
    known = {str(token) for token in tokenizer.get_added_tokens_decoder().values()}
    for source, token, expected in _tokens_beside(path.parent):
        if str(token) in known:
            continue
        known.add(str(token))
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([token])
        found = tokenizer.token_to_id(str(token))
        if expected is not None and found != expected:
            raise ConfigError(
                f"{source} gives the token {str(token)!r:.60} the id {expected}, but {FILE_NAME} "
                f"leaves it {found}; save both files again: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )


def _tokens_beside(directory: Path) -> Iterator[tuple[Path, tokenizers.AddedToken, int | None]]:
    """``(file, token, its id if the file has one)`` of all tokens that other files name."""
    path = directory / _CONFIG
    config = read_settings(path)
    numbered = config.get("added_tokens_decoder")
    # As in transformers: a file that lists its tokens does not need the older two.
    special = config if numbered is not None else {**config, **read_settings(directory / _SPECIAL)}
    named = list(_special_tokens(special))
    names = {_content(entry) for entry in named}
    if numbered is None:
        path = directory / _ADDED
        numbered = {str(i): {"content": token} for token, i in read_settings(path).items()}
    if not isinstance(numbered, Mapping):
        raise ConfigError(f"{path}: added_tokens_decoder must be an object")
    entries = []
    for key, entry in numbered.items():
        token = _token(entry, special=_content(entry) in names)
        if token is None or not key.isdecimal():
            raise ConfigError(f"{path}: {key!r:.20} is no id of an added token, or has no content")
        entries.append((int(key), token))
    for index, token in sorted(entries, key=lambda entry: entry[0]):
        yield path, token, index
    for entry in named:
        token = _token(entry, special=True)
        if token is not None:
            yield directory / _CONFIG, token, None


def _special_tokens(config: Mapping[str, Any]) -> Iterator[object]:
    """Every special token that a file names: ``eos_token``, ``image_token``, a list or a table."""
    yield from (config.get(field) for field in _NAMED)
    yield from (v for k, v in config.items() if k.endswith("_token") and k not in _NAMED)
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if isinstance(more, Mapping):
        yield from more.values()
    elif isinstance(more, list):
        yield from more


def _content(entry: object) -> str | None:
    """The text of a token, which is a string or an object with its flags."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) and content else None


def _token(entry: object, *, special: bool) -> tokenizers.AddedToken | None:
    content = _content(entry)
    if content is None:
        return None
    given = entry if isinstance(entry, Mapping) else {}
    special = bool(given.get("special", False)) or special
    flags = {flag: bool(given[flag]) for flag in _FLAGS if flag in given}
    return tokenizers.AddedToken(content, special=special, **flags)
