"""``otter-export chat``: talk with a model in the terminal, and turn its weight as you go."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from otter_export.cli.engine_options import check_digest, digest, placement
from otter_export.cli.generation_view import shows_colors, styled, summary
from otter_export.cli.streams import until_closed
from otter_export.errors import OtterError, RequestError
from otter_export.load import load_engine
from otter_export.quoting import nearest, quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.conversation import Conversation
from otter_export.runtime.drafts import DRAFTERS, NONE
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods import METHODS, method_options
from otter_export.runtime.prompt_file import Defaults
from otter_export.runtime.request import Request, Result
from otter_export.runtime.scheduler.chooser import reward_signal

_HELP = """/weight 2         weight of the reward from now on; may be negative
/method NAME      also /gate, /top-k, /temperature, /top-p, /max-tokens, /seed
/system TEXT      another system prompt; without a text that of the model's template
/reset            forget what was said
/help, /quit      Ctrl-C ends an answer, Ctrl-D the program"""
#: Options that a line may change, and what reads their values.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "weight": float,
    "method": str,
    "gate": float,
    "top_k": int,
    "temperature": float,
    "top_p": float,
    "max_tokens": int,
    "seed": int,
}
#: Those that are no method's.
_OF_REQUESTS = ("method", "max_tokens", "seed")


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", help="The system prompt.  [default: the template's own]")
@click.option("--method", default="args-greedy", show_default=True, help=", ".join(METHODS) + ".")
@click.option("--top-k", type=int, help="Candidates per token.  [default: 8; plain: all]")
@click.option("--weight", type=float, help="Of the reward; may be negative.  [default: 1.0]")
@click.option(
    "--gate",
    type=float,
    metavar="NATS",
    help="Guide only where the base's next-token entropy is at least this.  [default: 0, always]",
)
@click.option("--temperature", type=float, help="For sampling; plain is greedy without one.")
@click.option("--top-p", type=float, help="Sample from this share of the probability.")
@click.option("--signal", help="The signal that is the reward.  [default: the engine's first]")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Of one answer.")
@click.option("--seed", type=int, help="Of the sampling, the same for every answer.")
@click.option(
    "--drafts",
    default=NONE,
    show_default=True,
    metavar="NAME",
    help=f"Guess tokens ahead, for speed alone: {', '.join((NONE, *DRAFTERS))} or a medusa signal.",
)
@placement
@digest
def chat(
    directory: Path,
    system: str | None,
    method: str,
    max_tokens: int,
    seed: int | None,
    drafts: str,
    threads: int | None,
    provider: str | None,
    sha256: str | None,
    **method_options: Any,
) -> None:
    """Talk with the model in DIR; what it says has the colours of its rewards.

    A line is a message; /help lists what else a line may be. Lines may also come from a pipe.
    """
    options = {name: value for name, value in method_options.items() if value is not None}
    fixed = {"max_tokens": max_tokens, "seed": seed, "drafts": drafts}
    talk = _Talk(Defaults(method, options, fixed))
    check_digest(directory, sha256)
    engine = load_engine(directory, provider=provider, threads=threads)
    Chat.of("").token_ids(engine.tokenizer)  # whether it has a template at all
    conversation = Conversation(engine, system)
    typed = sys.stdin.isatty()
    if typed:
        click.echo("A line is a message; /help lists commands, Ctrl-D ends.")
    with until_closed():
        for line in _lines(typed):
            try:
                if not talk.take(line, conversation, engine):
                    return
            except OtterError as error:
                # A script ends at its first mistake, a person tries again.
                if not typed:
                    raise
                click.echo(f"error: {error}", err=True)


class _Talk:
    """What lines do.

    Args:
        defaults: How to answer, until a line changes it.
    """

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._changed: dict[str, Any] = {}
        self._options = defaults.request_for("")

    def take(self, line: str, conversation: Conversation, engine: Engine) -> bool:
        """Do what a line says; whether to go on."""
        command, _, rest = line.strip().partition(" ")
        name = command.removeprefix("/").replace("-", "_")
        if not command.startswith("/"):
            if command:
                _answer(line.strip(), self._options, conversation, engine)
        elif name == "quit":
            return False
        elif name == "help":
            click.echo(_HELP)
        elif name == "reset":
            kept = conversation.system
            conversation.messages = []
            conversation.system = kept
        elif name == "system":
            conversation.system = rest.strip() or None
        elif name in _OPTIONS:
            self._set(name, rest.strip())
        else:
            known = ("help", "quit", "reset", "system", *_OPTIONS)
            near = nearest(name, known)
            hint = f"did you mean /{near}?" if near else "see /help"
            raise RequestError(f"there is no command {quoted(command)}; {hint}")
        return True

    def _set(self, name: str, text: str) -> None:
        try:
            value = _OPTIONS[name](text)
        except ValueError:
            typed = name.replace("_", "-")
            raise RequestError(f"/{typed} needs a number, got {quoted(text)}") from None
        changed = {**self._changed, name: value}
        if name == "method":
            # What was said of the method before stays as far as this one has it.
            known = {*method_options(value), *_OF_REQUESTS}
            changed = {k: v for k, v in changed.items() if k in known}
        self._options = self._defaults.request_for("", changed)
        self._changed = changed


def _answer(text: str, options: Request, conversation: Conversation, engine: Engine) -> None:
    """One turn, as it comes."""
    signal_ = reward_signal(engine.manifest, options.method)
    bounds = (signal_ and signal_.bounds) or (-1.0, 1.0)
    color = shows_colors()
    events = conversation.stream(text, options)
    with _interrupts() as interrupted, contextlib.closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Result):
                counts = f"{conversation.fed} prompt tokens fed, {conversation.reused} kept"
                line = f"{summary([event])[:-1]}; {counts}]"
                click.echo("\n" + (click.style(line, dim=True) if color else line))
                return
            click.echo(styled(event.text, event.reward, bounds) if color else event.text, nl=False)
            if interrupted.is_set():
                break
    click.echo("\n[stopped]")


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of breaking into a step; a second one ends the program."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(typed: bool) -> Iterator[str]:
    """Lines of standard input, to its end."""
    if not typed:
        for number, line in enumerate(sys.stdin.buffer, 1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise RequestError(
                    f"line {number} of standard input is not UTF-8 at byte {error.start}"
                ) from None
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (`input` has its keys then)
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D or /quit ends)")
        except EOFError:
            click.echo()
            return
