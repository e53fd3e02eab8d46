"""Foreign text in messages: quoted, cut, and without anything that a terminal obeys.

Names, values and paths that a message repeats come from files and requests of strangers. They may
be megabytes long, hold escape sequences, or turn the direction of the line (bidi controls).
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable

#: Characters of one value in a message.
LIMIT = 80
#: Characters of a whole message.
_MESSAGE_LIMIT = 4000
_LISTED = 10
#: Names beyond this are no misspelling, and comparing them would take long.
_LONGEST_NAME = 64
#: Integers beyond this are described: Python refuses to write them out at 4,300 digits.
_LONGEST_INTEGER = 512


def quoted(value: object, limit: int = LIMIT) -> str:
    """A value as Python writes it, cut to about ``limit`` characters; never raises.

    Large containers are cut before they are written, so that this costs the same for any value.
    """
    if isinstance(value, str | bytes):
        text = repr(value[:limit]) + ("..." if len(value) > limit else "")
        return _visible(text)
    try:
        text = _Writer(limit).repr(value)
    # The value's own code may run here.
    except Exception:
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split())
    return _visible(text[:limit] + ("..." if len(text) > limit else ""))


def listed(names: Iterable[object]) -> str:
    """Names, sorted and separated by commas; the first of many, and how many more there are."""
    texts = sorted(names if isinstance(names, list | tuple) else list(names), key=str)
    more = [f"and {len(texts) - _LISTED} more"] if len(texts) > _LISTED else []
    return ", ".join([*(one_line(str(text), LIMIT) for text in texts[:_LISTED]), *more])


def one_line(text: str, limit: int = _MESSAGE_LIMIT) -> str:
    """A text on one line, with an escape for each character that is not visible.

    A long one is cut in its middle: the end of a message says what to do.
    """
    if len(text) > 4 * limit:
        text = f"{text[: 2 * limit]} {text[-2 * limit :]}"
    line = " ".join(text.split())
    if len(line) > limit:
        end = limit // 4
        line = f"{line[: limit - end]}...{line[-end:]}"
    return _visible(line)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name, in lower case, that a misspelt one is most similar to, or None."""
    if len(name) > _LONGEST_NAME:
        return None
    return next(iter(difflib.get_close_matches(name.lower(), list(known), 1, cutoff)), None)


def _visible(text: str) -> str:
    """Escapes for control and bidi characters, halves of surrogate pairs and the like."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Writer(reprlib.Repr):
    """`repr` of the first elements of containers, a few levels deep.

    Args:
        limit: Characters of a text.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = limit

    def repr_int(self, value: int, level: int) -> str:
        """The integer, or about how many digits it has."""
        bits = value.bit_length()
        if bits <= _LONGEST_INTEGER:
            return repr(value)
        return f"an integer of about {math.ceil(bits * math.log10(2))} digits"
