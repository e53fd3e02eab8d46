"""A competitor's process as its benchmark sees it: started, asked, closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.record import REPOSITORY


class PeerError(Exception):
    """A competitor's process ended, or said that it cannot answer."""


class Peer:
    """A process that runs a module of `benchmarks.peers` with `answering.answer`.

    Only one is asked at a time, so the others wait without work, each with its own memory.

    Args:
        module: Its name in ``benchmarks.peers``.
        arguments: Of its command line.
        python: The interpreter; the peer's library may live in an environment of its own.
        threads: Of every library in it.
    """

    def __init__(
        self, module: str, *arguments: object, python: Path | None = None, threads: int
    ) -> None:
        self._command: Sequence[str] = [
            str(python or sys.executable),
            *("-m", f"benchmarks.peers.{module}"),
            *map(str, arguments),
            f"--threads={threads}",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            self._command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.version = str(self._answer()["version"])
        except PeerError:
            self.close()
            raise

    def ask(self, prompt: Sequence[int], count: int, **options: Any) -> dict[str, Any]:
        """Let it generate.

        Args:
            prompt: Token ids.
            count: Tokens.
            **options: Of its ``generate``.

        Returns:
            ``tokens``, ``milliseconds`` per token behind the first, and ``memory``.

        Raises:
            PeerError: It has ended, or found too few tokens.
        """
        assert self._process.stdin is not None
        question = {"prompt": list(prompt), "count": count, "options": options}
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise PeerError(f"{' '.join(self._command)} has ended") from None
        answer = self._answer()
        if "error" in answer:
            raise PeerError(f"{' '.join(self._command)}: {answer['error']}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise PeerError(f"{' '.join(self._command)} ended with status {status}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Peer:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()
