"""L2: what `insert` says where transformers makes other tokens than ``tokenizer.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_export.base_model import BaseModel
from otter_export.families import FAMILIES
from otter_export.modeling.tokenization import CLASS_IGNORED, difference_from_transformers
from tests import tiny
from tests.command_line import Cli


def test_the_model_types_whose_class_transformers_ignores() -> None:
    from transformers.models.auto import tokenization_auto

    ours = {kind for name in FAMILIES for kind in FAMILIES.load(name).model_types}
    ignored = ours & tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert set(CLASS_IGNORED) == ignored


def sentencepiece_base(directory: Path, **settings: Any) -> Path:
    """A Llama whose tokenizer puts a space before every piece of text, as Llama 2's does."""
    tiny.write_base(directory)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, "h": 4, "i": 5}
    prefix = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer |= {"normalizer": {"type": "Sequence", "normalizers": prefix}, "pre_tokenizer": None}
    tokenizer["model"] = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "vocab": vocab}
    tokenizer["model"]["merges"] = []
    path.write_text(json.dumps(tokenizer))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return directory


def test_insert_says_the_first_difference(cli: Cli, tmp_path: Path) -> None:
    base = sentencepiece_base(tmp_path / "base", tokenizer_class="LlamaTokenizer")
    result = cli("insert", base, tmp_path / "checkpoint")
    assert result.status == 0
    note = next(line for line in result.stdout.splitlines() if line.startswith("note: "))
    assert "transformers makes the tokens [3, 4, 3] of 'hello world'" in note
    assert "makes [3, 4, 0, 3, 0]" in note


def test_what_transformers_saves_is_no_difference(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base = sentencepiece_base(tmp_path / "base", tokenizer_class="LlamaTokenizer")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(base)
    assert difference_from_transformers(BaseModel.open(base)) is None


def test_words_that_the_vocabulary_has_not_are_no_difference(tmp_path: Path) -> None:
    base = sentencepiece_base(tmp_path / "base", tokenizer_class="LlamaTokenizer")
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    tokenizer["model"] = {"type": "WordLevel", "vocab": {"</s>": 2}, "unk_token": "<gone>"}
    path.write_text(json.dumps(tokenizer))
    difference_from_transformers(BaseModel.open(base))  # whatever it is, no error


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_plain_classes_take_the_file_as_it_is(tokenizer_class: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base = sentencepiece_base(tmp_path / "base", tokenizer_class=tokenizer_class)
    assert difference_from_transformers(BaseModel.open(base)) is None
    theirs = transformers.AutoTokenizer.from_pretrained(base)
    assert theirs(" hi")["input_ids"] == [3, 3, 4, 5]


def test_a_tokenizer_that_transformers_cannot_read(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    base = sentencepiece_base(tmp_path / "base", tokenizer_class="LlamaTokenizer")
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "up"}))
    note = difference_from_transformers(BaseModel.open(base))
    assert note is not None and f"cannot read the tokenizer of {base}" in note
