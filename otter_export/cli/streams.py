"""The standard streams of a command, whatever the caller made of them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make the streams fit to be used, for as long as the block runs.

    A descriptor that the caller closed (``2>&-``) is opened on the null device: the next file that
    is opened would get its number else, and with it what libraries print. What an encoding cannot
    hold is written as an escape, so that text cannot end a command. What cannot be written to
    standard error is lost, since it is for people and not the command's work.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    output = sys.stdout or _null()
    sys.stdout = cast(TextIO, _Output(output))
    sys.stderr = cast(TextIO, _Forgiving(sys.stderr or _null()))
    try:
        with _escaping(output):
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


@contextlib.contextmanager
def until_closed() -> Iterator[None]:
    """End the program, without an error, when the reader of standard output goes away.

    For work that is nothing but its output: who leaves, as ``| head -1`` does, has had enough.
    """
    output = sys.stdout
    if not isinstance(output, _Output):
        yield
        return
    output.ends = True
    try:
        yield
        output.flush()
    except BrokenPipeError:
        sys.exit(0)
    finally:
        output.ends = False


def _discard(stream: TextIO, descriptor: int) -> None:
    """Lead a stream that cannot be written to into the null device, what it has buffered too."""
    with contextlib.suppress(OSError, ValueError):
        if stream.fileno() == descriptor:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


@contextlib.contextmanager
def _escaping(stream: TextIO) -> Iterator[None]:
    """Write characters that the stream's encoding does not have as escapes."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it flushes
            stream.reconfigure(errors=errors)


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  (for the process)


class _Stream:
    """A text stream whose failures are handled.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text."""
        # click finds out what a stream is by writing nothing to it, and ignores what that says.
        if text or not isinstance(text, str):
            with self._handled():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._handled():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click would write there where the encoding is narrow
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _handled(self) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError


class _Output(_Stream):
    """Standard output, whose errors say that they are its.

    A reader that has gone is none: the command does its work to the end, in silence.

    Attributes:
        ends: Whether it is one, in `until_closed`.
    """

    ends = False

    @contextlib.contextmanager
    def _handled(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _discard(self._stream, 1)  # Python's own exit would make status 120 of what is left
            error.filename = "standard output"
            if self.ends or not isinstance(error, BrokenPipeError):
                raise


class _Forgiving(_Stream):
    """Standard error, whose failures are nobody's concern."""

    @contextlib.contextmanager
    def _handled(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            _discard(self._stream, 2)
