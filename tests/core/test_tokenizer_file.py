"""L0: a tokenizer is ``tokenizer.json`` with the tokens that the files beside it add."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_export.errors import ConfigError
from otter_export.tokenizer_file import read_tokenizer, tokens_beyond
from tests import tiny

END = "<|im_end|>"
FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
#: It puts a token before every text that it has no id for; the library panics then.
UNKNOWN_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
TEXTS = (f"w5 {END}", f"w5{END}w6", f"{END} {END}", "w5 </s> w6", "", "w3 unknown w4")


def base(directory: Path, file: str, content: dict[str, Any]) -> Path:
    """A tiny base of which one file has more fields."""
    path = tiny.write_base(directory) / file
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | content))
    return directory


ADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("tokenizer_config.json", {}),
    "added_tokens_decoder": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"128": {"content": END, "special": True, **FLAGS}}},
    ),
    "a token that is not special": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"128": {"content": END, "special": False, **FLAGS}}},
    ),
    "added_tokens.json": ("added_tokens.json", {END: 128}),
    "another eos token": ("tokenizer_config.json", {"eos_token": END}),
    "an eos token with flags": (
        "special_tokens_map.json",
        {"eos_token": {"content": END, **FLAGS, "lstrip": True}},
    ),
    "extra special tokens": ("tokenizer_config.json", {"extra_special_tokens": [END]}),
    "additional special tokens": ("tokenizer_config.json", {"additional_special_tokens": [END]}),
    "a table of special tokens": ("tokenizer_config.json", {"extra_special_tokens": {"a": END}}),
    "a special token with a name of its own": ("tokenizer_config.json", {"image_token": END}),
    "special tokens are text": ("tokenizer_config.json", {"split_special_tokens": True}),
    "a BOS that tokenizer.json does not add": ("tokenizer_config.json", {"add_bos_token": True}),
    "a word becomes special": ("tokenizer_config.json", {"pad_token": "w5"}),
}


@pytest.mark.parametrize("case", ADDED)
def test_ids_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = base(tmp_path / "base", *ADDED[case])
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = read_tokenizer(directory / "tokenizer.json")
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text), text


def test_an_id_that_a_token_cannot_have(tmp_path: Path) -> None:
    directory = base(tmp_path / "base", "added_tokens.json", {END: 130})
    with pytest.raises(ConfigError, match=r"added_tokens.json gives .*im_end.* the id 130.* 128"):
        read_tokenizer(directory / "tokenizer.json")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "must be an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "'x' is no id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"128": {}}}, "has no content"),
        ("tokenizer.json", {"model": {"type": "New"}}, "is not a readable tokenizer"),
        ("tokenizer.json", {"post_processor": UNKNOWN_BOS}, "is not a readable tokenizer"),
    ],
)
def test_malformed_files(file: str, content: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = base(tmp_path / "base", file, content)
    with pytest.raises(ConfigError, match=message):
        read_tokenizer(directory / "tokenizer.json")


def test_a_file_beside_it_that_is_no_object(tmp_path: Path) -> None:
    directory = tiny.write_base(tmp_path / "base")
    (directory / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"tokenizer_config.json: expected a JSON object"):
        read_tokenizer(directory / "tokenizer.json")


def test_tokens_beyond_the_embedding(tmp_path: Path) -> None:
    directory = base(tmp_path / "base", "added_tokens.json", {END: 128})
    tokenizer = read_tokenizer(directory / "tokenizer.json")
    assert tokens_beyond(tokenizer, 127) == ["w127", END]
    assert tokens_beyond(tokenizer, 129) == []
