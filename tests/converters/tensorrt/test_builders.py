"""L0: which builder of target ``trt`` is taken, and what is said of those that cannot be."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt import builders
from otter_export.converters.tensorrt.builders import BUILDERS, choose_builder
from otter_export.converters.tensorrt.options import TensorRTOptions, parse_capabilities
from otter_export.converters.tensorrt.target import TARGET
from otter_export.errors import UnsupportedError
from tests.command_line import Cli


@dataclasses.dataclass
class Machine:
    """A machine as the builders see it."""

    versions: dict[str, str]
    gpus: tuple[str, ...]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What is installed and which GPUs there are, to be set by a test; nothing at first."""
    found = Machine({}, ())
    monkeypatch.setattr(builders, "installed_version", lambda name: found.versions.get(name))
    monkeypatch.setattr(builders, "gpu_capabilities", lambda: found.gpus)
    return found


RTX, TRT, LLM = (
    {"tensorrt_rtx": "1.7.1.116"},
    {"tensorrt": "10.15.1.29"},
    {"tensorrt_llm": "1.2.1"},
)


@pytest.mark.parametrize(
    ("versions", "gpus", "expected"),
    [
        (RTX, (), "tensorrt-rtx"),
        (RTX | TRT, ("8.9",), "tensorrt"),
        (RTX | TRT, (), "tensorrt-rtx"),  # its builder needs a GPU
        (RTX | {"tensorrt": "10.14.1"}, ("8.9",), "tensorrt-rtx"),  # too old
        (RTX | {"tensorrt": "11.0.0"}, ("9.0",), "tensorrt"),
        (RTX | TRT | LLM, ("8.9",), "tensorrt-llm"),
        (TRT | {"tensorrt_llm": "1.3.0rc1"}, ("8.9",), "tensorrt"),  # has no engines any more
        (TRT | {"tensorrt_llm": "0.21.0"}, ("8.9",), "tensorrt"),
    ],
)
def test_auto_takes_the_first_usable(
    machine: Machine, versions: dict[str, str], gpus: tuple[str, ...], expected: str
) -> None:
    machine.versions, machine.gpus = versions, gpus
    assert choose_builder("auto").name == expected


def test_nothing_usable_names_every_builder_and_how_to_get_it(machine: Machine) -> None:
    with pytest.raises(UnsupportedError) as caught:
        choose_builder("auto")
    text = str(caught.value)
    assert all(name in text for name in BUILDERS)
    assert "pip install 'otter-export[trt]'" in text and "'tensorrt>=10.15,<12'" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("builder", "versions", "gpus", "message"),
    [
        ("tensorrt-rtx", {}, (), r"tensorrt_rtx is not installed; pip install 'otter-export\[trt"),
        ("tensorrt-rtx", {"tensorrt_rtx": "1.6.0"}, (), "1.6.0 is installed, accepted is 1.7"),
        ("tensorrt-rtx", {"tensorrt_rtx": "2.0"}, (), "2.0 is installed, accepted is 1.7"),
        ("tensorrt", {}, ("8.9",), "tensorrt is not installed"),
        ("tensorrt", {"tensorrt": "10.3.0"}, ("8.9",), "10.3.0 is installed, accepted is 10.15"),
        ("tensorrt", {"tensorrt": "12.0"}, ("8.9",), "12.0 is installed"),
        ("tensorrt", TRT, (), "it needs a GPU to build, and this machine has none"),
        ("tensorrt-llm", {}, (), "tensorrt_llm is not installed"),
        ("tensorrt-llm", {"tensorrt_llm": "1.3.0"}, ("8.9",), "1.3.0 .* --target trtllm"),
        ("tensorrt-llm", LLM, (), "it needs a GPU to build.*--checkpoint-only"),
    ],
)
def test_what_is_missing_is_said(
    machine: Machine,
    builder: str,
    versions: dict[str, str],
    gpus: tuple[str, ...],
    message: str,
) -> None:
    machine.versions, machine.gpus = versions, gpus
    found = choose_builder(builder).availability()
    assert not found.usable and found.name == builder
    assert re.search(message, found.note), found.note


def test_every_builder_is_listed(cli: Cli, machine: Machine) -> None:
    machine.versions = RTX
    entries = {e["name"]: e for e in json.loads(cli("list", "targets", "--json").stdout)}
    for name in BUILDERS:
        entry = entries[f"trt --builder {name}"]
        assert entry["usable"] == ("yes" if name == "tensorrt-rtx" else "no")
        assert entry["needs GPU"] == ("no" if name == "tensorrt-rtx" else "yes")
    assert entries["trt --builder tensorrt-rtx"]["version"] == "1.7.1.116"
    assert entries["trt"]["usable"] == "yes"
    machine.versions = {}
    entries = {e["name"]: e for e in json.loads(cli("list", "targets", "--json").stdout)}
    assert entries["trt"]["usable"] == "no" and entries["onnx"]["usable"] == "yes"


def _capabilities(builder: str, precision: str = "fp16", **options: object) -> tuple[str, ...]:
    request = BuildRequest(precision, options=TensorRTOptions(**options))
    chosen = BUILDERS[builder]
    assert isinstance(chosen, builders.NativeBuilder)
    return chosen.target_capabilities(request)


def test_compute_capabilities_of_rtx() -> None:
    assert _capabilities("tensorrt-rtx") == ("8.0", "8.6", "8.9", "12.0")
    assert _capabilities("tensorrt-rtx", sm="120,80,89,80") == ("8.0", "8.9", "12.0")
    assert _capabilities("tensorrt-rtx", sm="75", plugin=False) == ("7.5",)


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("fp16", {"sm": "90"}, r"--sm 90: .*75, 80, 86, 89, 120, 121.*--builder tensorrt"),
        ("fp16", {"sm": "80,100"}, "builds for 75, 80"),
        ("int8", {"sm": "75", "plugin": False}, "7.5 has no int8"),
        ("bf16", {"sm": "75,80", "plugin": False}, "7.5 has no bf16"),
        ("fp16", {"sm": "75"}, "the fused projection needs 8.0 or later.*--no-plugin"),
    ],
)
def test_capabilities_that_rtx_has_not(
    precision: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        _capabilities("tensorrt-rtx", precision, **options)


def test_tensorrt_builds_for_the_gpu_at_hand(machine: Machine) -> None:
    machine.versions, machine.gpus = TRT, ("9.0", "8.9")
    assert _capabilities("tensorrt") == ("9.0",)
    assert _capabilities("tensorrt", sm="90") == ("9.0",)
    with pytest.raises(UnsupportedError, match=r"--sm 89: the GPU at hand is 90.*tensorrt-rtx"):
        _capabilities("tensorrt", sm="89")


@pytest.mark.parametrize("text", ["", "80,", "8.9", "sm80", "-80", "8", "1000", "8 0", "٨٩"])
def test_capabilities_are_numbers(text: str) -> None:
    with pytest.raises(UnsupportedError, match="expected compute capabilities"):
        parse_capabilities(text)


def test_options_of_another_builder_are_refused(machine: Machine, tiny_checkpoint: Path) -> None:
    machine.versions = RTX
    opened = Checkpoint.open(tiny_checkpoint)
    for options, flag in (
        (TensorRTOptions(tensor_parallel=2), "--tensor-parallel 2"),
        (TensorRTOptions(checkpoint_only=True), "--checkpoint-only"),
    ):
        with pytest.raises(UnsupportedError, match=f"{flag} belongs to --builder tensorrt-llm"):
            TARGET.plan(opened, BuildRequest("fp16", options=options))


def test_versions_are_numbers() -> None:
    assert builders.parsed("1.7.1.116") == (1, 7, 1, 116)
    assert builders.parsed("1.3.0rc2+cu13") == (1, 3, 0)
    assert builders.parsed("dev") == ()
    assert builders.installed_version("no_such_module_at_all") is None
    assert builders.installed_version("numpy") is not None


def test_without_the_extra_that_builds_graphs(
    machine: Machine, tiny_checkpoint: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.versions = RTX
    for module in ("tensorrt.native", "onnx"):
        monkeypatch.delitem(sys.modules, f"otter_export.converters.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "mobius", None)
    result = cli("build", tiny_checkpoint, "--target", "trt", "--dry-run")
    assert result.status == 2
    assert "target 'trt' needs the package 'mobius'" in result.stderr
    assert "pip install 'otter-export[build]'" in result.stderr


def test_without_the_kernel_compiler(
    machine: Machine, tiny_checkpoint: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.versions = RTX
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else found(name)
    )
    result = cli("build", tiny_checkpoint, "--target", "trt", "--dry-run")
    assert result.status == 2
    assert "compiling the fused projection needs the package 'triton'" in result.stderr
    assert cli("build", tiny_checkpoint, "--target", "trt", "--dry-run", "--no-plugin").status == 0
