"""``otter-export``: the group of commands, loaded lazily so that ``--help`` needs no extra.

Exit status: 0 done, 1 a check failed, 2 misuse, bad input or whatever else kept a command from its
work (one line; ``--verbose`` shows the traceback).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any, NamedTuple

import click

from otter_export import __version__
from otter_export.boundary import reason
from otter_export.cli.streams import standard_streams
from otter_export.errors import MissingDependencyError, OtterError, VerificationError
from otter_export.quoting import one_line


class Command(NamedTuple):
    """Where a command is, the extra that installs what it imports, and its line in ``--help``."""

    path: str
    extra: str | None
    summary: str


COMMANDS: dict[str, Command] = {
    "insert": Command("otter_export.cli.insert:insert", None, "Insert a channel into a base."),
    "import": Command(
        "otter_export.cli.import_head:import_head", None, "Import a head, exactly, as a channel."
    ),
    "label": Command(
        "otter_export.cli.label:label", "train", "Score texts by a reward model, to learn from."
    ),
    "train": Command("otter_export.cli.train:train", "train", "Train a signal of a checkpoint."),
    "add-signal": Command(
        "otter_export.cli.add_signal:add_signal", None, "Add signals to a trained channel."
    ),
    "reshape": Command(
        "otter_export.cli.reshape:reshape", "train", "Give a channel a cheaper shape, exactly."
    ),
    "build": Command("otter_export.cli.build:build", "build", "Build an engine."),
    "inspect": Command(
        "otter_export.cli.inspect:inspect", None, "Show a checkpoint or an engine; headers only."
    ),
    "verify": Command(
        "otter_export.cli.verify:verify", "build", "Check an engine against its checkpoint."
    ),
    "generate": Command(
        "otter_export.cli.generate:generate", None, "Generate text, guided by a signal."
    ),
    "evaluate": Command(
        "otter_export.cli.evaluate:evaluate", None, "Compare ways to decode: reward and fluency."
    ),
    "chat": Command("otter_export.cli.chat:chat", "chat", "Talk with a model in the terminal."),
    "score": Command(
        "otter_export.cli.score:score", None, "Score texts: rewards without generation."
    ),
    "serve": Command(
        "otter_export.cli.serve:serve", "serve", "Serve an engine: OpenAI's API and a live page."
    ),
    "bench": Command(
        "otter_export.cli.bench:bench", None, "Time decoding: plain and guided, and why."
    ),
    "triton": Command(
        "otter_export.cli.triton:triton", None, "Write a Triton model repository for an engine."
    ),
    "list": Command(
        "otter_export.cli.list:list_", None, "List targets, signals, methods, rules, families."
    ),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        path, extra, _ = COMMANDS[cmd_name]
        module, _, attribute = path.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if extra is None or (error.name or "").startswith("otter_export"):
                raise
            raise MissingDependencyError(
                error.name or "?", extra, f"otter-export {cmd_name}"
            ) from error
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="otter-export")
@click.option("--verbose", is_flag=True, help="Show the traceback of an error.")
def cli(verbose: bool) -> None:
    """Deploy Otter models: a base LLM and its reward from one forward pass per token."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; the console script."""
    # A panic of a Rust library is an error of ours; its own traceback would come before that.
    os.environ["RUST_BACKTRACE"] = "0"
    args = sys.argv[1:] if arguments is None else arguments
    # --verbose works at any place of the line, as users type it after the command.
    verbose = "--verbose" in args
    args = [a for a in args if a != "--verbose"]
    with standard_streams():
        status = _run(args, verbose)
    sys.exit(status)


def _run(args: list[str], verbose: bool) -> int:
    try:
        result: Any = cli.main(args, prog_name="otter-export", standalone_mode=False)
        sys.stdout.flush()  # at its own exit, Python would make status 120 of a failure
        return result if isinstance(result, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        # What was typed is repeated here too, and it may come from a script.
        error.message = one_line(error.message)  # type: ignore[misc]
        error.show()
        return 2
    except VerificationError as error:
        return _fail(str(error), verbose, 1)
    except OtterError as error:
        return _fail(str(error), verbose)
    except (OSError, MemoryError) as error:
        return _fail(reason(error), verbose)
    except ImportError as error:
        if (error.name or "").startswith("otter_export"):
            return _unexpected(error, verbose)
        hint = "give the process more memory (see `ulimit -v`), or install the library again"
        return _fail(f"a library cannot be loaded: {one_line(reason(error), 400)}; {hint}", verbose)
    # Only a mistake of this package gets here: what libraries raise became an error of ours where
    # they were called.
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return _unexpected(error, verbose)


def _unexpected(error: BaseException, verbose: bool) -> int:
    what = f"{type(error).__name__}: {error}"
    hint = "this is a mistake in otter-export: please report it with what --verbose shows"
    return _fail(f"unexpected {what}; {hint}", verbose)


def _fail(message: str, verbose: bool, status: int = 2) -> int:
    if verbose:
        traceback.print_exc()
    # Messages are one line each, so that they can be grepped and shown by other programs.
    click.echo("error: " + one_line(message), err=True)
    return status
