"""L4: ``tokenizer.json`` as engines carry it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from otter_export import tokenizer_file
from otter_export.errors import EngineError, RequestError
from otter_export.runtime.detokenizer import Detokenizer
from otter_export.runtime.tokenizer import JsonTokenizer

#: A special token that a template names and the tokenizer has not; the library panics then.
GONE = {"SpecialToken": {"id": "gone", "type_id": 0}}


def byte_level() -> tokenizers.Tokenizer:
    """Every byte a token, as in GPT-2's vocabulary without its merges."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def saved(tokenizer: tokenizers.Tokenizer, tmp_path: Path) -> JsonTokenizer:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return JsonTokenizer(tmp_path / "tokenizer.json")


def test_text_comes_back(tmp_path: Path) -> None:
    tokenizer = saved(byte_level(), tmp_path)
    ids = tokenizer.encode("né €!")
    assert len(ids) == len("né €!".encode())
    assert tokenizer.decode(ids) == "né €!"


def test_special_tokens_are_read_but_not_written(tmp_path: Path) -> None:
    tokenizer = saved(byte_level(), tmp_path)
    assert tokenizer.encode("<s>a") == [256, tokenizer.encode("a")[0]]
    assert tokenizer.decode([256, *tokenizer.encode("a"), 257]) == "a"


def test_the_model_s_own_template_is_applied(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    assert saved(tokenizer, tmp_path).encode("")[:1] == [256]


def test_padding_and_truncation_of_the_file_are_switched_off(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    assert len(saved(tokenizer, tmp_path).encode("abcde")) == 5
    assert len(saved(tokenizer, tmp_path).encode("a")) == 1


def test_characters_over_several_tokens_stream_whole(tmp_path: Path) -> None:
    tokenizer = saved(byte_level(), tmp_path)
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("Hi"))
    pieces = [detokenizer.push(token) for token in tokenizer.encode("a€ 𝄞")]
    assert pieces == ["a", "", "", "€", " ", "", "", "", "𝄞"]


def test_byte_fallback_streams_whole(tmp_path: Path) -> None:
    """SentencePiece vocabularies spell unknown characters as ``<0xE2>`` tokens."""
    vocabulary = {f"<0x{b:02X}>": b for b in range(256)} | {"a": 256, "<unk>": 257}
    model = tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>")
    base = tokenizers.Tokenizer(model)
    base.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    tokenizer = saved(base, tmp_path)
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode("a€a€")
    assert len(ids) == 8
    assert [detokenizer.push(i) for i in ids] == ["a", "", "", "€", "a", "", "", "€"]


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not valid Unicode"):
        saved(byte_level(), tmp_path).encode("a\ud800")


def test_what_the_vocabulary_cannot_spell_is_refused(tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>")
    with pytest.raises(RequestError, match="cannot encode the text"):
        saved(tokenizers.Tokenizer(model), tmp_path).encode("b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; put the base model's tokenizer.json there"),
        (b"", "not a readable tokenizer"),
        (b"{", "not a readable tokenizer"),
        (b"{}", "not a readable tokenizer"),
        (b'{"version": "1.0", "model": {"type": "Magic"}}', "not a readable tokenizer"),
        (b"\xff\xfe", "not a readable tokenizer"),
    ],
)
def test_missing_and_corrupt_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=message):
        JsonTokenizer(path)


def test_an_oversize_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "_LIMIT_BYTES", 10)
    (tmp_path / "tokenizer.json").write_bytes(b" " * 11)
    with pytest.raises(EngineError, match="has 11 bytes; at most 10 are read"):
        JsonTokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}),
        ("model", {"type": "New", "vocab": {}}),
        (
            "post_processor",
            {"type": "TemplateProcessing", "single": [GONE], "pair": [], "special_tokens": {}},
        ),
    ],
)
def test_what_the_library_cannot_load_is_one_error(
    tmp_path: Path, part: str, setting: dict[str, object]
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(byte_level().to_str()), part: setting}))
    with pytest.raises(EngineError, match=r"tokenizer\.json is not a readable tokenizer: "):
        JsonTokenizer(path)


def test_a_panic_while_encoding_is_an_error_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic of the library is no Exception, and would end the thread that it happens on."""

    class Panics:
        def encode(self, *_: object, **__: object) -> None:
            raise PanicException("no entry found for key")

    class PanicException(BaseException):
        pass

    tokenizer = saved(byte_level(), tmp_path)
    monkeypatch.setattr(tokenizer, "_tokenizer", Panics())
    with pytest.raises(RequestError, match="cannot encode the text: PanicException"):
        tokenizer.encode("a")


def test_a_panic_while_decoding_is_an_error_of_the_engine(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.decoder = tokenizers.decoders.Strip("a", 5, 5)
    with pytest.raises(EngineError, match=r"cannot decode .*PanicException"):
        saved(tokenizer, tmp_path).decode([64, 65])


@pytest.mark.parametrize("token", [-1, 1 << 40])
def test_ids_beyond_the_library_are_an_error(tmp_path: Path, token: int) -> None:
    with pytest.raises(EngineError, match="cannot decode"):
        saved(byte_level(), tmp_path).decode([token])
