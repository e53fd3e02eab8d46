"""Fixtures for the fused projection: compiled kernels, and a stand-in for the CUDA driver."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from otter_export.plugins.cubin_index import CubinIndex
from tests.runtime.memory.fake_cuda import check_arity


@pytest.fixture(scope="session")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> CubinIndex:
    """All float16 kernels for 8.0 and 9.0; read only."""
    pytest.importorskip("triton", reason="OpenAI Triton, the kernel language, is not installed")
    from otter_export.plugins.cubins import build_cubins, count_cubins

    steps: list[int] = []
    directory = tmp_path_factory.mktemp("cubins")
    index = build_cubins(directory, (90, 80), steps.append, ("float16",))
    assert sum(steps) == count_cubins((80, 90), ("float16",)) == len(index.cubins)
    return index


@pytest.fixture(scope="session")
def library_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the name under which TensorRT-RTX's ONNX parser looks for the library."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if importlib.util.find_spec("tensorrt_rtx") is None or spec is None or spec.origin is None:
        pytest.skip("TensorRT-RTX is not installed")
    (library,) = Path(spec.origin).parent.glob("libtensorrt_rtx.so.*")
    directory = tmp_path_factory.mktemp("tensorrt")
    (directory / "libtensorrt_rtx.so").symlink_to(library)
    return directory


class StubBindings:
    """``cuda.bindings.driver`` over the stub; names, arity and enumerations are the real module's.

    As in the real one, the library is looked for at the first call, a function returns its error
    and its results, and the arguments of a kernel are laid out by the types that are named.
    """

    def __init__(self, library: Path) -> None:
        reason = "cuda-bindings is not installed"
        self._real = pytest.importorskip("cuda.bindings.driver", reason=reason)
        self._stub = ctypes.CDLL(str(library))
        self.CUdevice_attribute = self._real.CUdevice_attribute
        self.CUfunction_attribute = self._real.CUfunction_attribute

    def __getattr__(self, name: str) -> Any:
        function = getattr(self, f"_{name}")
        check = getattr(self._real, name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            check_arity(check, len(arguments))
            if os.environ.get("STUB_CUDA_MISSING"):
                raise RuntimeError("libcuda.so.1 was not found\nand more")
            return function(*arguments)  # type: ignore[no-any-return]

        return call

    def _cuInit(self, flags: int) -> tuple[Any, ...]:
        return (self._stub.cuInit(flags),)

    def _cuGetErrorString(self, error: int) -> tuple[Any, ...]:
        text = ctypes.c_char_p()
        return self._stub.cuGetErrorString(error, ctypes.byref(text)), text.value

    def _cuCtxGetCurrent(self) -> tuple[Any, ...]:
        context = ctypes.c_void_p()
        return self._stub.cuCtxGetCurrent(ctypes.byref(context)), context.value or 0

    def _cuCtxGetDevice(self) -> tuple[Any, ...]:
        device = ctypes.c_int()
        return self._stub.cuCtxGetDevice(ctypes.byref(device)), device.value

    def _cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Any, ...]:
        assert isinstance(attribute, self._real.CUdevice_attribute)
        value = ctypes.c_int()
        pointer = ctypes.byref(value)
        return self._stub.cuDeviceGetAttribute(pointer, int(attribute), device), value.value

    def _cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        module = ctypes.c_void_p()
        return self._stub.cuModuleLoadData(ctypes.byref(module), image), module

    def _cuModuleGetFunction(self, module: ctypes.c_void_p, name: bytes) -> tuple[Any, ...]:
        function = ctypes.c_void_p()
        return self._stub.cuModuleGetFunction(ctypes.byref(function), module, name), function

    def _cuFuncSetAttribute(
        self, function: ctypes.c_void_p, attribute: Any, value: int
    ) -> tuple[Any, ...]:
        assert isinstance(attribute, self._real.CUfunction_attribute)
        return (self._stub.cuFuncSetAttribute(function, int(attribute), value),)

    def _cuLaunchKernel(self, function: ctypes.c_void_p, *arguments: Any) -> tuple[Any, ...]:
        *sizes, stream, (values, types), extra = arguments
        assert extra == 0 and len(values) == len(types)
        held = [kind(value) for kind, value in zip(types, values, strict=True)]
        addresses = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        handle = ctypes.c_void_p(stream)
        return (self._stub.cuLaunchKernel(function, *sizes, handle, addresses, None),)


class StubDriver:
    """A library with the driver's functions that writes down what it is asked to do.

    Attributes:
        library: The library's file.
    """

    def __init__(self, library: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library = library
        self._log = log
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("STUB_CUDA_LOG", str(log))

    def bindings(self) -> StubBindings:
        """The stub as ``cuda.bindings.driver``."""
        return StubBindings(self.library)

    def set(self, **settings: object) -> None:
        """Set ``capability``, ``multiprocessors``, ``context``, ``fail`` or ``missing``."""
        for name, value in settings.items():
            self._monkeypatch.setenv(f"STUB_CUDA_{name.upper()}", str(value))

    def calls(self, kind: str) -> list[dict[str, Any]]:
        """What it was asked: ``load``, ``attribute`` or ``launch``."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [call for call in map(json.loads, lines) if call["call"] == kind]


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stub, by the names under which libraries look for the driver."""
    compiler = compiler_or_skip("cc")
    directory = tmp_path_factory.mktemp("driver")
    library = directory / "libcuda.so.1"
    source = Path(__file__).with_name("stub_driver.c")
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    (directory / "libcuda.so").symlink_to(library.name)
    return library


@pytest.fixture
def stub(stub_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubDriver:
    """A stub whose log is empty."""
    return StubDriver(stub_library, tmp_path / "calls", monkeypatch)


def compiler_or_skip(name: str) -> str:
    """A C or C++ compiler (``cc`` or ``c++``), from the environment or the path."""
    variable = {"cc": "CC", "c++": "CXX"}[name]
    found = shutil.which(os.environ.get(variable, name))
    if found is None:
        pytest.skip(f"no {name} compiler is installed")
    return found
