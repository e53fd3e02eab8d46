"""ONNX files read by TensorRT-RTX's parser, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def parse(files: Sequence[Path], root: Path, *, plugin: bool = False) -> list[Any]:
    """What became of each file; skips the test where the parser is not installed.

    Args:
        files: The models.
        root: A folder for what the parser needs.
        plugin: Whether the fused projection's plugin is registered.
    """
    libraries = importlib.util.find_spec("tensorrt_rtx_libs")
    if importlib.util.find_spec("tensorrt_rtx") is None or libraries is None:
        pytest.skip("the package tensorrt_rtx is not installed")
    # The parser opens the library by its unversioned name, which the wheel does not have.
    link = root / "libtensorrt_rtx.so"
    if not link.is_symlink():
        folder = Path(next(iter(libraries.submodule_search_locations or [])))
        link.symlink_to(folder / "libtensorrt_rtx.so.1")
    script = str(Path(__file__).with_name("parse_networks.py"))
    command = [sys.executable, script, *(["--plugin"] if plugin else []), *map(str, files)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(root)}
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert output.returncode == 0, output.stderr[-2000:]
    lines = [json.loads(line) for line in output.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(files)
    return lines
