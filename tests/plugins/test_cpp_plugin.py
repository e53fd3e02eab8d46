"""L2: the C++ plugin launches exactly what the Python one does, and TensorRT-RTX builds with it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from otter_export.cuda import KernelLibrary
from otter_export.plugins.cpp_table import write_table
from otter_export.plugins.cubin_index import CubinIndex
from otter_export.plugins.loaded_kernels import LoadedKernels
from otter_export.plugins.tiles import TILES, UNALIGNED_TILES, Widths
from tests.plugins.conftest import StubDriver, compiler_or_skip
from tests.plugins.engines import build, check

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugins" / "cpp"
STREAM = 0x5555_0000_0001
ALIGNED = tuple(0x7F0000000000 + 0x1000 * i for i in range(9))
WITHOUT_BIAS = (*ALIGNED[:5], 0, 0, *ALIGNED[7:])
SHIFTED = (*ALIGNED[:8], ALIGNED[8] + 2)
#: Rows, widths and addresses: small and large layers, decode and prefill, aligned and not.
CASES = [
    (rows, Widths(*widths), pointers)
    for rows in (1, 16, 17, 32, 33, 700)
    for widths in (
        (576, 64, 576, 64),
        (4096, 512, 4096, 512),
        (4096, 512, 11008, 1376),
        (8192, 1024, 28672, 3584),
        (8196, 1024, 64, 64),
    )
    for pointers in (ALIGNED, WITHOUT_BIAS, SHIFTED)
]


@pytest.fixture(scope="module")
def compile_options(cubins: CubinIndex, tmp_path_factory: Any) -> list[str]:
    """Compiler and options; cuda.h comes with Triton."""
    table = tmp_path_factory.mktemp("table")
    write_table(cubins, table)
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.origin is not None
    include = Path(spec.origin).parent / "backends" / "nvidia" / "include"
    if not (include / "cuda.h").is_file():
        pytest.skip("Triton brings no cuda.h")
    return [
        *(compiler_or_skip("c++"), "-std=c++17", "-Wall", "-Wextra", "-Werror"),
        *("-fvisibility=hidden", "-isystem", str(include)),
        *("-I", str(table), "-I", str(SOURCES)),
        f'-DOTTER_CUBIN_DIRECTORY="{cubins.directory}"',
        str(SOURCES / "otter_linear_launch.cpp"),
    ]


@pytest.fixture(scope="module")
def program(compile_options: list[str], stub_library: Path, tmp_path_factory: Any) -> Path:
    """launch_check.cpp, linked to the stub."""
    program = Path(tmp_path_factory.mktemp("cpp") / "launch_check")
    source = str(Path(__file__).with_name("launch_check.cpp"))
    subprocess.run([*compile_options, source, str(stub_library), "-o", str(program)], check=True)
    return program


def _launch_in_cpp(program: Path, stub: StubDriver) -> int:
    lines = [
        " ".join(map(str, (rows, *dataclasses.astuple(widths), STREAM, *pointers)))
        for rows, widths, pointers in CASES
    ]
    environment = os.environ | {"LD_LIBRARY_PATH": str(stub.library.parent)}
    return subprocess.run(
        [str(program)], input="\n".join(lines), text=True, env=environment
    ).returncode


def _launches(stub: StubDriver) -> list[dict[str, Any]]:
    """Launches with kernels numbered in the order of loading; shared memory that was asked for."""
    numbers = {call["function"]: n for n, call in enumerate(stub.calls("load"))}
    calls = stub.calls("attribute") + stub.calls("launch")
    return [call | {"function": numbers[call["function"]]} for call in calls]


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_same_launches_as_python(
    program: Path, stub: StubDriver, cubins: CubinIndex, tmp_path: Path, capability: int
) -> None:
    stub.set(capability=capability)
    assert _launch_in_cpp(program, stub) == 0
    in_cpp = _launches(stub)
    assert len([call for call in in_cpp if call["call"] == "launch"]) == len(CASES)
    (tmp_path / "calls").unlink()
    library = KernelLibrary(stub.bindings())
    kernels = LoadedKernels(library, library.device(), cubins, "float16")
    for rows, widths, pointers in CASES:
        kernels.launch(rows, widths, pointers, STREAM)
    assert _launches(stub) == in_cpp
    # The cases reach every kernel.
    assert len({call["function"] for call in in_cpp}) == len(TILES) + len(UNALIGNED_TILES)


def test_failures_are_returned(program: Path, stub: StubDriver) -> None:
    stub.set(capability=75)
    assert _launch_in_cpp(program, stub) == 209  # CUDA_ERROR_NO_BINARY_FOR_GPU
    stub.set(capability=90, context=0)
    assert _launch_in_cpp(program, stub) == 201  # CUDA_ERROR_INVALID_CONTEXT
    stub.set(context=1, fail="cuLaunchKernel:7")
    assert _launch_in_cpp(program, stub) == 7


@pytest.fixture(scope="module")
def headers() -> str:
    """The folder of TensorRT's headers."""
    places = (os.environ.get("TENSORRT_INCLUDE"), "/usr/include/x86_64-linux-gnu", "/usr/include")
    for place in places:
        if place and (Path(place) / "NvInfer.h").is_file():
            return place
    pytest.skip("no NvInfer.h; set TENSORRT_INCLUDE to the folder of TensorRT's headers")


@pytest.fixture(scope="module")
def plugin(
    compile_options: list[str], headers: str, stub_library: Path, tmp_path_factory: Any
) -> Path:
    """libotter_linear_plugin.so."""
    library = Path(tmp_path_factory.mktemp("cpp") / "libotter_linear_plugin.so")
    source = str(SOURCES / "otter_linear_plugin.cpp")
    options = ["-isystem", headers, "-fPIC", "-shared", "-o", str(library)]
    subprocess.run([*compile_options, source, str(stub_library), *options], check=True)
    return library


@pytest.mark.parametrize(("dtype", "name"), [("float16", "HALF"), ("bfloat16", "BF16")])
def test_tensorrt_builds_with_it(
    plugin: Path,
    stub_library: Path,
    library_directory: Path,
    dtype: str,
    name: str,
) -> None:
    engine = build(library_directory, stub_library.parent, dtype=dtype, library=str(plugin))
    check(engine, name)


def test_it_refuses_other_types(
    plugin: Path,
    stub_library: Path,
    library_directory: Path,
) -> None:
    engine = build(library_directory, stub_library.parent, dtype="float", library=str(plugin))
    assert not engine["parsed"] and engine["plan_bytes"] == 0


@pytest.mark.parametrize("count", [5, 7])
def test_what_it_launches(
    plugin: Path,
    compile_options: list[str],
    headers: str,
    stub: StubDriver,
    tmp_path: Path,
    count: int,
) -> None:
    # TensorRT itself cannot run an engine here, so its calls are made by hand.
    program, source = tmp_path / "enqueue", str(Path(__file__).with_name("enqueue_check.cpp"))
    options = [*compile_options[:-1], "-isystem", headers, source, str(plugin)]
    subprocess.run([*options, str(stub.library), "-o", str(program)], check=True)
    folders = os.pathsep.join((str(plugin.parent), str(stub.library.parent)))
    environment = os.environ | {"LD_LIBRARY_PATH": folders}
    subprocess.run([str(program), str(count)], env=environment, check=True)
    first, second = stub.calls("launch")
    assert first == second
    addresses = [0x7F0000000000 + 0x1000 * i for i in range(count)]
    biases = addresses[5:] or [0, 0]
    assert first["pointers"] == [*addresses[:5], *biases, 0x7E0000000000, 0x7E0000001000]
    assert first["integers"] == [6, *2 * [64, 16, 96, 24], int(count == 7)]
    assert first["stream"] == 0x77
    assert len(stub.calls("load")) == len(TILES) + len(UNALIGNED_TILES)
