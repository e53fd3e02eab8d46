"""L1: whatever happens in the builder's process is one answer or one error."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from otter_export.converters.tensorrt import network, process
from otter_export.converters.tensorrt.job import Job, Profile, profiles
from otter_export.converters.tensorrt.options import EngineShapes
from otter_export.errors import EngineError


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which the process imports: stand-ins for a library that goes wrong."""
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{before}" if before else str(tmp_path))
    return tmp_path


def job(library: str, directory: Path) -> Job:
    return Job(library, str(directory / "model.onnx"), str(directory / "plan"), (), (), None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "the process of broken was ended by SIGABRT before the engine"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL.*no memory is left"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
        ("import os; print('driver lost'); os._exit(7)", "ended with status 7.*before"),
        (
            "import os; os.write(2, b'out of\\nworkspace'); os._exit(7)",
            "its last words: out of workspace",
        ),
        ("raise ImportError('libcudart.so.13: cannot open')", "cannot be loaded: libcudart.so.13"),
        ("", "status 1.*AttributeError.*no attribute 'ILogger'"),  # a bug of ours: the traceback
    ],
)
def test_a_library_that_goes_wrong(libraries: Path, code: str, message: str) -> None:
    (libraries / "broken.py").write_text(code + "\n")
    with pytest.raises(EngineError) as caught:
        process.build(job("broken", libraries))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (libraries / "plan").exists()


def test_an_interrupt_ends_the_process(libraries: Path) -> None:
    mark = libraries / "pid"
    (libraries / "endless.py").write_text(
        "import os, pathlib, sys, time\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\n"
        "os.write(int(sys.argv[2]), b'{\"progress\": 0.5}\\n')\n"
        "time.sleep(600)\n"
    )

    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.build(job("endless", libraries), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (tmp_path / "model.onnx").write_bytes(b"this is not a graph")
    with pytest.raises(
        EngineError, match=r"tensorrt_rtx .* (refuses the graph|cannot build this): .+"
    ):
        process.build(job("tensorrt_rtx", tmp_path))


def test_the_library_is_found_without_its_version() -> None:
    """Else the ONNX parser aborts as soon as a plugin is registered."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    with process._library_directory("tensorrt_rtx") as directory:
        assert directory is not None
        assert (directory / "libtensorrt_rtx.so").resolve().is_file()
        environment = process._environment(directory)
        assert environment["LD_LIBRARY_PATH"].split(":")[0] == str(directory)
    assert not directory.exists()


def test_a_library_without_a_package_of_its_own() -> None:
    with process._library_directory("json") as directory:
        assert directory is None
        assert process._environment(directory) == dict(os.environ)


def test_a_job_survives_its_way_to_the_process() -> None:
    whole = Job("x", "a", "b", profiles(EngineShapes(64, 24, 4, 6)), ("8.9", "12.0"), "cubins")
    assert Job.from_json(whole.to_json()) == whole
    assert all(isinstance(p, Profile) for p in whole.profiles)


def test_a_full_disk_is_an_error_of_the_disk() -> None:
    """The library calls the writer from C++, through which no exception may pass."""

    class Builder:
        def build_serialized_network_to_stream(self, network: Any, config: Any, to: Any) -> bool:
            return bool(to.write(bytes(1 << 20)) == 1 << 20)

    class Library:
        class IStreamWriter:
            pass

    with pytest.raises(OSError, match="No space left"):
        network.write_plan(Library, Builder(), None, None, Path("/dev/full"))
