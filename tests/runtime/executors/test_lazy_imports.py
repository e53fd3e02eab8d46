"""L4: what the TensorRT backend and a checkpoint load, and what they say when it is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "mobius", "tensorrt", "tensorrt_rtx", "cuda")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "name", ["executors.tensorrt", "executors.onnxruntime", "memory.torch", "memory.cuda"]
)
def test_a_backend_loads_nothing_heavy(name: str) -> None:
    done = run(
        f"import sys, otter_export.runtime.{name}\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_a_checkpoint_without_torch_says_what_to_install(
    missing: str, tiny_checkpoint: Path
) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from otter_export.cli.main import main\n"
        "sys.exit(main())"
    )
    done = run(code, "generate", str(tiny_checkpoint), "--prompt", "w5")
    assert done.returncode == 2
    assert f"'{missing}" in done.stderr and "otter-export[train]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
