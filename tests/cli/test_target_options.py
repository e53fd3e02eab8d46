"""L0: the contract of targets: each describes itself; its options fit beside the common ones."""

from __future__ import annotations

import dataclasses
import gc
import re

import pytest

from otter_export.cli.build import build
from otter_export.cli.target_options import _flag, _named_target
from otter_export.converters import TARGETS
from otter_export.converters.target import Availability, BuildRequest, NoOptions, option
from tests.command_line import Cli


@pytest.mark.parametrize("name", TARGETS.names())
def test_a_target_describes_itself(name: str) -> None:
    target = TARGETS.load(name)
    assert target.name == name
    assert target.summary and "\n" not in target.summary
    assert target.precisions and len(set(target.precisions)) == len(target.precisions)
    assert all(isinstance(one, Availability) for one in target.availability())
    assert target.availability()


@pytest.mark.parametrize("name", TARGETS.names())
def test_its_options_can_be_options(name: str) -> None:
    options = TARGETS.load(name).options
    options()  # every field has a default
    assert options.__dataclass_params__.frozen
    common = {flag for parameter in build.params for flag in parameter.opts}
    names = {parameter.name for parameter in build.params}
    for field in dataclasses.fields(options):
        assert re.fullmatch(r"--[a-z][a-z-]*", _flag(field)), field.name
        assert _flag(field) not in common and field.name not in names, field.name
        assert field.metadata["description"].endswith((".", "]")), field.name
        assert isinstance(field.default, str | int | bool | None), field.name


@pytest.mark.parametrize("name", TARGETS.names())
def test_its_help_shows_the_options(name: str, cli: Cli) -> None:
    result = cli("build", "--target", name, "--help")
    assert result.status == 0, result.stderr
    for field in dataclasses.fields(TARGETS.load(name).options):
        assert _flag(field) in result.stdout, field.name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ckpt"], None),
        (["ckpt", "--target", "trt"], "trt"),
        (["--target=trt", "ckpt"], "trt"),
        (["--target", "onnx", "ckpt", "--target", "trt"], "trt"),
        (["--", "--target", "trt"], None),
        (["ckpt", "--target"], None),
    ],
)
def test_the_target_is_found_before_the_options_are_parsed(
    arguments: list[str], expected: str | None
) -> None:
    assert _named_target(arguments) == expected


@dataclasses.dataclass(frozen=True)
class _Example:
    batch_size: int = option(4, "Sequences.")
    graphs: bool = option(True, "Without graphs.")
    provider: str = option("cpu", "Where.", flag="--ep")


def test_names_on_the_command_line() -> None:
    flags = [_flag(field) for field in dataclasses.fields(_Example)]
    assert flags == ["--batch-size", "--no-graphs", "--ep"]


def test_options_of_another_target_are_a_bug_of_the_caller() -> None:
    assert BuildRequest().options_as(_Example) == _Example()
    with pytest.raises(TypeError, match="expected _Example, got NoOptions"):
        BuildRequest(options=NoOptions()).options_as(_Example)


@pytest.mark.parametrize("arguments", [("missing",), ("missing", "--target", "none"), ("--help",)])
def test_garbage_is_collected_again_after_a_build(cli: Cli, arguments: tuple[str, ...]) -> None:
    cli("build", *arguments)
    assert gc.isenabled()
