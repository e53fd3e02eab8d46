"""L2: TensorRT-RTX parses and builds engines with the fused projection; no engine runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from otter_export.errors import EngineError
from otter_export.plugins.cubin_index import CubinIndex
from otter_export.plugins.tiles import TILES, UNALIGNED_TILES
from tests.plugins.conftest import StubDriver
from tests.plugins.engines import WITH_BIAS, build, check

WITHOUT_BIAS = "W, A, B"


@pytest.mark.parametrize(("dtype", "name"), [("float16", "HALF"), ("bfloat16", "BF16")])
@pytest.mark.parametrize("inputs", [WITH_BIAS, WITHOUT_BIAS], ids=["bias", "no bias"])
def test_python_plugin(library_directory: Path, dtype: str, name: str, inputs: str) -> None:
    check(build(library_directory, dtype=dtype, inputs=inputs), name)


def test_python_plugin_with_kernels(library_directory: Path, cubins: CubinIndex) -> None:
    check(build(library_directory, cubins=str(cubins.directory)), "HALF")


def test_what_is_not_accepted_is_not_parsed(library_directory: Path) -> None:
    engine = build(library_directory, dtype="float")
    assert not engine["parsed"]
    assert "takes float16 or bfloat16, all alike; got DataType.FLOAT" in engine["stderr"]
    engine = build(library_directory, inputs="W, A, B, b")
    assert not engine["parsed"]
    assert "has 6 inputs; accepted are 5 or 7" in engine["stderr"]


@pytest.mark.parametrize("count", [5, 7])
def test_what_the_plugin_launches(
    library_directory: Path, stub: StubDriver, cubins: CubinIndex, count: int
) -> None:
    # TensorRT itself cannot run an engine here, so its calls are made by hand.
    path = os.pathsep.join(map(str, (library_directory, stub.library.parent)))
    script = str(Path(__file__).with_name("enqueue_plugin.py"))
    subprocess.run(
        [sys.executable, script, str(cubins.directory), str(count)],
        env=os.environ | {"LD_LIBRARY_PATH": path},
        check=True,
    )
    first, second = stub.calls("launch")
    assert first == second
    addresses = [0x7F0000000000 + 0x1000 * i for i in range(count)]
    biases = addresses[5:] or [0, 0]
    assert first["pointers"] == [*addresses[:5], *biases, 0x7E0000000000, 0x7E0000001000]
    assert first["integers"] == [6, *2 * [64, 16, 96, 24], int(count == 7)]
    assert first["stream"] == 0x77
    # Loaded once, before the first launch.
    assert len(stub.calls("load")) == len(TILES) + len(UNALIGNED_TILES)


def test_a_missing_index_is_one_error(tmp_path: Path) -> None:
    # Before TensorRT is asked for anything.
    from otter_export.plugins.tensorrt import register

    with pytest.raises(EngineError, match=r"otter_linear\.json does not exist"):
        register(None, tmp_path)


def test_a_device_that_runs_engines_needs_no_compiler() -> None:
    heavy = ("torch", "triton", "onnx", "tensorrt", "tensorrt_rtx", "cuda")
    code = (
        "import sys, otter_export.plugins.tensorrt\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
