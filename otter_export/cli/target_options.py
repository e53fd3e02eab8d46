"""The options of ``build`` that belong to one target, made from the target's own dataclass."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import click

from otter_export.converters import TARGETS
from otter_export.converters.target import Target
from otter_export.errors import MissingDependencyError, UnsupportedError

_TARGET = "otter_export.target"
_OPTIONS = "otter_export.target_options"
DEFAULT_TARGET = "onnx"


class TargetCommand(click.Command):
    """A command whose options depend on the value of its own ``--target``.

    Options of another target are refused, and the error names the target that has them.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Load the target that is named, then parse with its options among the others."""
        name = _named_target(args)
        # Loading a target takes seconds; plain --help needs none.
        ctx.with_resource(_without_collector())
        if name is not None or not {"--help", "-h"} & set(args):
            load_target(ctx, name or DEFAULT_TARGET)
        try:
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            owners = ", ".join(_owners(error.option_name))
            if not owners:
                raise
            raise UnsupportedError(
                f"{error.option_name} is not an option of target {name or DEFAULT_TARGET}; it "
                f"belongs to: {owners}"
            ) from None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The common options and those of the target."""
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, ())]


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for garbage among the modules and nodes of a build, which all live.

    That is a sixth of the time until weights are written. Large arrays go when they are let go.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def load_target(ctx: click.Context, name: str) -> None:
    """Load a target and add its options to the command's."""
    target: Target = TARGETS.load(name)
    ctx.meta[_TARGET] = target
    ctx.meta[_OPTIONS] = tuple(_options(target))


def chosen_target(ctx: click.Context) -> Target:
    """The target that ``--target`` names."""
    target: Target = ctx.meta[_TARGET]
    return target


def _options(target: Target) -> Iterator[click.Option]:
    for field in dataclasses.fields(target.options):
        flag, default = _flag(field), field.default
        help_text = field.metadata["description"]
        if isinstance(default, bool):
            # `--no-plugin` sets `plugin` to False.
            yield click.Option(
                [flag, field.name], is_flag=True, default=default, flag_value=not default,
                help=help_text,
            )  # fmt: skip
        else:
            kind = click.INT if isinstance(default, int) else click.STRING
            yield click.Option(
                [flag, field.name], type=kind, default=default, show_default=True, help=help_text
            )


def _flag(field: dataclasses.Field[Any]) -> str:
    negation = "no-" if field.default is True else ""
    return field.metadata["flag"] or f"--{negation}{field.name.replace('_', '-')}"


def _named_target(args: Sequence[str]) -> str | None:
    """The value of the last ``--target`` before ``--``, as click would take it."""
    found = None
    for index, argument in enumerate(args):
        if argument == "--":
            break
        name, separator, value = argument.partition("=")
        if name == "--target":
            found = value if separator else next(iter(args[index + 1 : index + 2]), None)
    return found


def _owners(flag: str) -> Iterator[str]:
    """Names of the targets that have an option."""
    for name in TARGETS:
        try:
            target = TARGETS.load(name)
        except MissingDependencyError:
            continue
        if flag in map(_flag, dataclasses.fields(target.options)):
            yield name
