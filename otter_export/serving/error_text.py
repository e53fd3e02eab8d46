"""Error texts of a served model: for its clients, and for its log.

They repeat what files and requests hold, so they may be long, have lines, escapes or controls of
the text's direction. Clients hear nothing of the server's file system beside.
"""

from __future__ import annotations

import re

#: Characters of a text.
CLIENT_LIMIT = 500
LOG_LIMIT = 4000
#: An absolute path; its last part is kept.
_PATH = re.compile(r"""(?<![\w/.])/(?:[^\s/:;,'"()]+/)*([^\s/:;,'"()]+)/?""")


def client_text(error: BaseException, *directories: str) -> str:
    """What a client hears: one short line in which paths are the names of their files.

    Args:
        error: The error.
        directories: Paths of the server that its text may have, also with blanks in them.
    """
    # Cut first, so that a text of megabytes costs no more than a short one.
    text = str(error)[: 8 * CLIENT_LIMIT]
    for directory in sorted(filter(None, directories), key=len, reverse=True):
        text = text.replace(directory.rstrip("/") + "/", "").replace(directory, "the engine")
    return one_line(_PATH.sub(r"\1", text), CLIENT_LIMIT)


def log_text(error: BaseException) -> str:
    """What the log says: one line with everything in it, unless it is very long."""
    return one_line(str(error), LOG_LIMIT)


def one_line(text: str, limit: int) -> str:
    """A text on one line, cut, with escapes for characters that cannot be seen."""
    line = " ".join(text[: 2 * limit].split())
    shown = line if line.isprintable() else "".join(map(_visible, line[:limit]))
    if len(shown) > limit or len(text) > 2 * limit:
        return shown[:limit] + "..."
    return shown


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
