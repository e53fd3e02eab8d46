"""The base's tokenizer and end token, as training sees them, and as transformers would."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import tempfile
from pathlib import Path

from otter_export.base_model import BaseModel
from otter_export.boundary import errors_as
from otter_export.config import read_json
from otter_export.errors import CheckpointError, EngineError, RequestError
from otter_export.files import SETTINGS_LIMIT, copy_regular
from otter_export.hub import TOKENIZER_FILES
from otter_export.runtime.tokenizer import JsonTokenizer
from otter_export.tokenizer_file import FILE_NAME

#: With these classes transformers takes ``tokenizer.json`` as it is. With others it puts together a
#: tokenizer of its own from the vocabulary in it.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
#: Model types whose files name a wrong class, which transformers does not take: ours of its
#: ``MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS``, here so that most bases need no import of it.
CLASS_IGNORED = ("ernie4_5", "nemotron", "phi3", "qwen2")
#: Texts that tokenizers disagree on: spaces, special tokens, digits, case, combining characters.
_TEXTS = (
    *("hello world", " hello  world ", "hello\n\n\tworld", "it's I'LL", "123456 7", ""),
    *("cafe\u0301 caf\u00e9", "\u65e5\u672c \U0001f642", "{eos}hi", "hi{eos} hi", "{bos}hi"),
)


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


def difference_from_transformers(base: BaseModel) -> str | None:
    """Where transformers makes other tokens of a text than training and engines do here.

    Both sides here read ``tokenizer.json``, so they agree; this is for who expects the tokens of
    ``AutoTokenizer``. It takes seconds, and is left out where the two cannot differ.

    Returns:
        The first difference and what to do, or None; also where transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None or _is_taken_as_it_is(base):
        return None
    ours = load_tokenizer(base.directory)
    special = {"bos": base.special_token_ids[0], "eos": end_token_id(base)}
    words = {
        name: "" if token is None else ours.decode([token], skip_special_tokens=False)
        for name, token in special.items()
    }
    texts = [text.format(**words) for text in _TEXTS]
    try:
        theirs = _ids_of_transformers(base, texts)
    except CheckpointError as error:
        return f"{error}; training and engines here read {FILE_NAME} alone"
    for text, expected in zip(texts, theirs, strict=True):
        with contextlib.suppress(RequestError):  # a vocabulary without <unk> has not every word
            found = ours.encode(text)
            if found == expected:
                continue
            return (
                f"transformers makes the tokens {expected} of {text!r}, and {FILE_NAME}, which "
                f"training and engines here read, makes {found}; to use those of transformers, "
                "save them: AutoTokenizer.from_pretrained(BASE).save_pretrained(BASE)"
            )
    return None


def _is_taken_as_it_is(base: BaseModel) -> bool:
    path = base.directory / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    name = settings.get("tokenizer_class") if isinstance(settings, dict) else None
    return name in _PLAIN_CLASSES and base.dimensions.model_type not in CLASS_IGNORED


def _ids_of_transformers(base: BaseModel, texts: list[str]) -> list[list[int]]:
    """What ``AutoTokenizer`` makes of texts; it sees the checked config and no other files.

    Raises:
        CheckpointError: It cannot read the tokenizer.
    """
    with (
        errors_as(CheckpointError, f"transformers cannot read the tokenizer of {base.directory}"),
        tempfile.TemporaryDirectory(prefix="otter-tokenizer-") as name,
    ):
        directory = Path(name)
        (directory / "config.json").write_text(json.dumps(base.library_config), encoding="utf-8")
        for file in TOKENIZER_FILES:
            if (base.directory / file).is_file():
                copy_regular(base.directory / file, directory / file, limit=SETTINGS_LIMIT)
        from transformers import AutoTokenizer

        logging.getLogger("transformers").setLevel(logging.ERROR)
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        return [list(tokenizer(text)["input_ids"]) for text in texts]
