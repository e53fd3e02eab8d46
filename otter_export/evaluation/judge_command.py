"""A judge that the user brings: a command that says which of two texts is the better one.

It reads a line ``{"prompt": ..., "a": ..., "b": ...}`` for each pair from its standard input and
writes a line for each, in their order: ``a``, ``b`` or ``tie``. The command is the user's own, and
runs without a shell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from otter_export.errors import RequestError
from otter_export.quoting import one_line, quoted

#: What ``a`` gets for each verdict.
_VERDICTS = {"a": 1.0, "tie": 0.5, "b": 0.0}
#: Bytes of an answer: a verdict has a few, and so has a line that says what went wrong.
_LINE_BYTES, _MESSAGE_BYTES = 64, 1 << 16
#: Characters of a command in a message.
_COMMAND_LENGTH = 200
#: Seconds between two looks at a judge that works.
_LOOK = 0.02


class Pair(NamedTuple):
    """Two texts of one prompt, in the order in which they are shown."""

    prompt: str
    a: str
    b: str


#: Pairs to the share of each that ``a`` gets: 1, 0, or 0.5 where neither is better.
Judge = Callable[[Sequence[Pair]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class JudgeCommand:
    """A command that is a `Judge`.

    Args:
        arguments: The program and its arguments.
        seconds: Most that it may take for all the pairs that it is asked at a time.
    """

    arguments: tuple[str, ...]
    seconds: float = 600.0

    @classmethod
    def parse(cls, command: str, seconds: float = 600.0) -> JudgeCommand:
        """From a line as a shell takes it; quotes count, variables and pipes do not.

        Raises:
            RequestError: It is empty, its quotes do not match, or there is no such program.
        """
        try:
            arguments = tuple(shlex.split(command))
        except ValueError as error:
            raise RequestError(f"the judge {quoted(command)} is no command: {error}") from None
        if not arguments or shutil.which(arguments[0]) is None:
            raise RequestError(
                f"the judge {quoted(command)} is no command: there is no such program; give one "
                "that can be run, such as 'python judge.py'"
            )
        return cls(arguments, seconds)

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """Ask about all pairs in one run.

        Raises:
            RequestError: It fails, takes too long, or does not write one verdict for each line.
        """
        lines = [json.dumps(pair._asdict()) + "\n" for pair in pairs]
        limit = _LINE_BYTES * len(lines) + _MESSAGE_BYTES
        # Files, not pipes: whatever a judge leaves running cannot keep an end of them open.
        with contextlib.ExitStack() as stack:
            questions, answers, messages = (
                stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)
            )
            questions.write("".join(lines).encode())
            questions.seek(0)
            status = self._run(questions, answers, messages, limit)
            if status:
                said = _content(messages, -_MESSAGE_BYTES).strip().splitlines()
                why = f": {one_line(said[-1], 200)}" if said else ""
                raise RequestError(f"{self._named} failed with status {status}{why}")
            return self._verdicts(_content(answers, limit), len(lines))

    @property
    def _named(self) -> str:
        return f"the judge {quoted(shlex.join(self.arguments), _COMMAND_LENGTH)}"

    def _run(self, questions: BinaryIO, answers: BinaryIO, messages: BinaryIO, limit: int) -> int:
        """Its exit status; one that does not end by itself is ended with all that it started."""
        end = time.monotonic() + self.seconds
        try:
            process = subprocess.Popen(
                self.arguments,
                stdin=questions,
                stdout=answers,
                stderr=messages,
                start_new_session=True,
            )
        except OSError as error:
            raise RequestError(f"{self._named} cannot be run: {error.strerror}") from None
        try:
            while (status := process.poll()) is None:
                if time.monotonic() > end:
                    raise RequestError(
                        f"{self._named} was not done after {self.seconds:g} seconds; give it more "
                        "with --judge-seconds, or fewer prompts"
                    )
                for file in (answers, messages):
                    if os.fstat(file.fileno()).st_size > limit:
                        raise RequestError(
                            f"{self._named} wrote more than {limit} bytes; expected one line for "
                            "each it reads: a, b or tie"
                        )
                time.sleep(_LOOK)
            return status
        except BaseException:
            # It was not waited for, so the number is still that of its group.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def _verdicts(self, answer: str, count: int) -> list[float]:
        lines = answer.splitlines()
        for number, line in enumerate(lines[:count], 1):
            if line.strip().lower() not in _VERDICTS:
                raise RequestError(
                    f"{self._named} wrote {quoted(line)} in line {number}; expected a, b or tie"
                )
        if len(lines) != count:
            raise RequestError(
                f"{self._named} wrote {len(lines)} lines for {count} pairs; expected one line for "
                "each: a, b or tie"
            )
        return [_VERDICTS[line.strip().lower()] for line in lines]


@dataclasses.dataclass(frozen=True)
class Wins:
    """How often one way's texts are better than another's.

    Args:
        share: ``[N]``: of each pair, what it got as the mean of both orders, 0 to 1.
        agreement: Of the pairs that were asked about, the share whose verdict was the same in both
            orders; None if there were none.
    """

    share: npt.NDArray[np.float64]
    agreement: float | None


def compare(
    judge: Judge,
    prompts: Sequence[str],
    texts: Sequence[str],
    others: Sequence[str],
    *,
    seed: int = 0,
) -> Wins:
    """Ask a judge about every pair in both orders, all in one random order.

    A judge that prefers what it sees first has no say so: each text is first once. Texts that are
    the same are a tie, and the judge is not asked.

    Args:
        judge: The judge.
        prompts: Of each pair.
        texts: Of the way that is judged.
        others: Of the way that it is compared with.
        seed: Of the order.

    Raises:
        RequestError: As `JudgeCommand`.
    """
    share = np.full(len(prompts), 0.5)
    asked = [i for i in range(len(prompts)) if texts[i] != others[i]]
    if not asked:
        return Wins(share, None)
    forth = [Pair(prompts[i], texts[i], others[i]) for i in asked]
    back = [Pair(prompts[i], others[i], texts[i]) for i in asked]
    pairs = [*forth, *back]
    order = np.random.default_rng(seed).permutation(len(pairs))
    verdicts = np.empty(len(pairs))
    verdicts[order] = judge([pairs[i] for i in order])
    one, two = verdicts[: len(asked)], 1 - verdicts[len(asked) :]
    share[asked] = (one + two) / 2
    return Wins(share, float((one == two).mean()))


def _content(file: BinaryIO, limit: int) -> str:
    """The first bytes of a file, or the last ones for a negative limit."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size + limit) if limit < 0 else 0)
    return file.read(abs(limit)).decode("utf-8", "replace")
