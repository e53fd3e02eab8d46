"""L4: text that comes in pieces: characters over several tokens, stop words over several pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otter_export.runtime.detokenizer import Detokenizer, StopFinder, TextStream
from tests.runtime.fake_engine import ByteTokenizer


class WordTokenizer:
    """Words with a space before each but the first of a text, as SentencePiece decodes."""

    words = ("the", "film", "was", "good")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.words.index(word) for word in text.split()]

    special_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return " ".join(self.words[i] for i in ids)


def _pieces(text: bytes) -> list[str]:
    detokenizer = Detokenizer(ByteTokenizer())
    return [*(detokenizer.push(byte) for byte in text), detokenizer.finish()]


@given(st.text(st.characters(exclude_characters="\0\ufffd"), max_size=20))
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    pieces = _pieces(text.encode())
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=12).filter(lambda data: 0 not in data))
def test_any_bytes_add_up_to_their_decoding(data: bytes) -> None:
    assert "".join(_pieces(data)) == data.decode(errors="replace")


def test_an_incomplete_character_is_held_back_until_it_is_complete() -> None:
    assert _pieces("a€b".encode()) == ["a", "", "", "€", "b", ""]


def test_an_incomplete_character_at_the_end_is_marked() -> None:
    assert _pieces("a€".encode()[:-1]) == ["a", "", "", "\ufffd"]


def test_special_tokens_have_no_text_and_hold_nothing_back() -> None:
    detokenizer = Detokenizer(ByteTokenizer(special=[1]))
    assert [detokenizer.push(token) for token in b"a\x01b\x01\x01c"] == ["a", "", "b", "", "", "c"]


def test_the_space_before_the_first_new_word_is_kept() -> None:
    tokenizer = WordTokenizer()
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("the film"))
    assert [detokenizer.push(2), detokenizer.push(3)] == [" was", " good"]


def _split(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _run(stop: list[str], pieces: list[str]) -> tuple[str, bool]:
    finder, out = StopFinder(stop), ""
    for piece in pieces:
        text, found = finder.push(piece)
        out += text
        if found:
            return out, True
    return out + finder.finish(), False


@given(
    st.text("abc", max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 100), max_size=6),
)
@example(text="abc", stop=["abc", "b"], cuts=[])
@example(text="xab", stop=["b", "ab"], cuts=[])
def test_stop_words_do_not_depend_on_how_text_is_cut(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    ends = [(text.find(w) + len(w), text.find(w)) for w in stop if w in text]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert _run(stop, _split(text, cuts)) == expected
    assert _run(stop, list(text)) == expected


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_no_part_of_a_stop_word_leaks_and_little_is_held(text: str, stop: list[str]) -> None:
    finder, out = StopFinder(stop), ""
    for i, character in enumerate(text):
        piece, found = finder.push(character)
        out += piece
        if found:
            return
        held = text[len(out) : i + 1]
        # Held text is exactly what a stop word could begin with.
        assert held == "" or any(word.startswith(held) for word in stop)


def _stream(ids: list[int], stop: list[str], special: set[int]) -> tuple[str, int]:
    """The text, and how many tokens were taken until it stopped."""
    stream, out = TextStream(ByteTokenizer(sorted(special)), [], stop), ""
    for count, token in enumerate(ids, 1):
        text, found = stream.push(token)
        out += text
        if found:
            return out, count
    return out + stream.finish()[0], len(ids)


@pytest.mark.parametrize(
    ("stop", "text", "taken"),
    [
        (["<1>"], "ab", 3),
        (["b<1>"], "a", 3),
        (["b<1>c"], "a", 4),
        (["<1>cd"], "ab", 5),
        (["<1><2>"], "abcd", 7),
        (["d"], "abc", 5),
        (["<3>"], "abcde", 8),
        (["<", "c"], "ab", 3),
    ],
)
def test_a_special_token_can_be_a_stop_and_is_never_shown(
    stop: list[str], text: str, taken: int
) -> None:
    assert _stream(list(b"ab\x01cd\x01\x02e"), stop, {1, 2}) == (text, taken)


@given(
    st.lists(st.sampled_from([1, 2, *b"abc"]), max_size=12),
    st.lists(st.sampled_from(["<1>", "<2>", "a", "bc", "c<1>", "<1>a", "<1><2>"]), max_size=3),
)
def test_what_is_shown_is_the_decoding_up_to_the_stop(ids: list[int], stop: list[str]) -> None:
    tokenizer = ByteTokenizer([1, 2])
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    ends = [(at + len(word), at) for word in stop if (at := whole.find(word)) >= 0]
    kept = whole[: min(ends)[1]] if ends else whole
    assert _stream(ids, stop, {1, 2})[0] == kept.replace("<1>", "").replace("<2>", "")


def test_without_stop_words_each_token_is_decoded_as_before() -> None:
    class Counting(ByteTokenizer):
        decoded = 0

        def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
            self.decoded += 1
            return super().decode(ids, skip_special_tokens=skip_special_tokens)

    def count(stop: list[str], special: list[int]) -> int:
        tokenizer = Counting(special)
        stream = TextStream(tokenizer, [], stop)
        for token in b"abc":
            stream.push(token)
        return tokenizer.decoded

    assert count([], [1]) == count(["x"], []) == 6
    assert count(["x"], [1]) == 12
