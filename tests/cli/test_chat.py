"""L5: ``otter-export chat``, by a pipe and in a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from otter_export import ArgsGreedy, Conversation, Plain, Request, load_engine
from tests import built, tiny
from tests.chat_templates import WORDS
from tests.command_line import Result, run


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny engine with a chat template, whose answers end at their length alone."""
    root = tmp_path_factory.mktemp("talk")
    base = tiny.write_base(root / "base")
    (base / "chat_template.jinja").write_text(WORDS)
    engine = built.build(built.checkpoint_over(base, root / "checkpoint"), root / "engine")
    manifest = json.loads((engine / "engine.json").read_text())
    (engine / "engine.json").write_text(json.dumps({**manifest, "eos_token_ids": []}))
    return engine


@pytest.fixture
def talk(engine_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Talk by a pipe."""

    def with_lines(lines: str | bytes, *options: object, engine: Path = engine_dir) -> Result:
        content = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return run(capsys, "chat", engine, "--max-tokens", 8, "--threads", 1, *options)

    return with_lines


def answers(result: Result) -> list[str]:
    return [line for line in result.stdout.splitlines() if line and not line.startswith("[")]


def test_lines_are_turns_and_the_weight_changes_between_them(talk: Any, engine_dir: Path) -> None:
    result = talk("w20 w21\n/weight 9\n\nw22\n/method plain\nw23\n", "--system", "w30")
    assert (result.status, result.stderr) == (0, "")
    conversation = Conversation(load_engine(engine_dir, threads=1), "w30")
    expected = [
        conversation.say(text, Request("", method, max_tokens=8)).text
        for text, method in (("w20 w21", ArgsGreedy()), ("w22", ArgsGreedy(weight=9.0)))
    ]
    expected.append(conversation.say("w23", Request("", Plain(), max_tokens=8)).text)
    assert answers(result) == expected
    # The past is not fed again; nothing was there before the first.
    first, second, _ = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert first.endswith("; 12 prompt tokens fed, 0 kept]")
    assert int(second.rpartition(", ")[2].split()[0]) >= 12 + 6


def test_reset_and_system(talk: Any, engine_dir: Path) -> None:
    result = talk("w20\n/reset\nw20\n/system w30 w31\n/reset\nw20\n/system\n/reset\nw20\n/quit\nw9")
    first, again, other, last = answers(result)
    assert first == again == last
    conversation = Conversation(load_engine(engine_dir, threads=1), "w30 w31")
    assert conversation.say("w20", Request("", max_tokens=8)).text == other != first
    assert "/weight 2" in talk("/help\n").stdout


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("/weigth 3", "there is no command '/weigth'; did you mean /weight?"),
        ("/dance", "there is no command '/dance'; see /help"),
        ("/weight much", "/weight needs a number, got 'much'"),
        ("/max-tokens 1.5", "/max-tokens needs a number, got '1.5'"),
        ("/max-tokens 0", "max_tokens must be an integer of at least 1"),
        ("/method best", "unknown method 'best'"),
        ("/temperature 1", "method 'args-greedy' has no option temperature"),
        ("w3 " * 130, "the prompt has 1"),
        (b"w3 \xff", "line 1 of standard input is not UTF-8 at byte 3"),
    ],
)
def test_a_mistake_is_one_line(talk: Any, lines: Any, message: str) -> None:
    result = talk(lines)
    assert result.status == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_model_without_a_template(talk: Any, tmp_path: Path) -> None:
    engine = built.build(built.random_checkpoint(tmp_path / "checkpoint"), tmp_path / "engine")
    result = talk("w3", engine=engine)
    assert result.status == 2 and "no chat template" in result.stderr


COLOUR, HINT = "\x1b[38;2;", "(Ctrl-D or /quit ends)"


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, engine: Path, *options: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "otter_export", "chat", str(engine), *options]
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_control,
            env={**environment, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        )
        os.close(slave)
        self.text = ""

    def until(self, *wanted: str, seconds: float = 60) -> str:
        """Read on until one of these comes, behind what was waited for before; says which."""
        end = time.monotonic() + seconds
        while not (found := [(self.text.find(w), w) for w in wanted if w in self.text]):
            readable, *_ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert readable, self.text
            try:
                self.text += os.read(self._master, 4096).decode(errors="replace")
            except OSError:  # it has ended
                assert any(w in self.text for w in wanted), self.text
        place, which = min(found)
        self.text = self.text[place + len(which) :]
        return which

    def interrupt(self, wanted: str) -> None:
        """Press Ctrl-C until this comes.

        Between the prompt and the wait for keys Python notes it only with the next key.
        """
        for _ in range(10):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.until(wanted, seconds=5)
                return
            self.type("\x7f")  # that key; on an empty line it does nothing
        self.until(wanted)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _control() -> None:
    """Make the terminal on standard input the one whose Ctrl-C is for this process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_in_a_terminal(engine_dir: Path) -> None:
    terminal = Terminal(engine_dir, "--max-tokens", "115")
    try:
        terminal.until("> ")
        which = HINT
        for _ in range(20):  # on a busy machine an answer may have ended before it is stopped
            terminal.type("/reset\nw20\n")
            terminal.until(COLOUR)
            terminal.type("\x03")
            with contextlib.suppress(AssertionError):
                if (which := terminal.until("[stopped]", HINT, seconds=10)) != HINT:
                    break
        assert which == "[stopped]"
        terminal.until("> ")
        terminal.interrupt(HINT)
        terminal.type("/weight x\n")
        terminal.until("error: /weight needs a number")
        terminal.type("/max-tokens 3\nw21\n")
        terminal.until("3 tokens (length)")
        terminal.until("> ")  # between two lines the end would be lost
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
