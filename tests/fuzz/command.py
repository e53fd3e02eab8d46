"""A command line that must end with status 0 or 2, and one visible line of error."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

from otter_export.errors import OtterError


def run_command(main: Callable[[list[str]], None], line: list[str]) -> None:
    """Run it in this process.

    Raises:
        OtterError: It was refused, as it should be.
        AssertionError: It ended otherwise.
    """
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            main(line)
        except SystemExit as ended:
            status = ended.code
    text = errors.getvalue()
    if status not in (0, 2) or not text.replace("\n", "").isprintable():
        raise AssertionError(f"{line!r:.300} ends with {status!r}: {text!r:.300}")
    if status == 2:
        raise OtterError(text)
