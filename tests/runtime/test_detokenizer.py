"""L4: text that comes in pieces: characters over several tokens, stop words over several pieces."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from otter_export.runtime.detokenizer import Detokenizer, StopFinder
from tests.runtime.fake_engine import ByteTokenizer


class WordTokenizer:
    """Words with a space before each but the first of a text, as SentencePiece decodes."""

    words = ("the", "film", "was", "good")

    def encode(self, text: str) -> list[int]:
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
