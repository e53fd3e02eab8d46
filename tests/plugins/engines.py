"""Building small engines with the fused projection, and what has to hold for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Values in the weights of build_engine.py, biases included.
WEIGHTS = 96 * 64 + 24 * 64 + 24 * 16 + 96 + 24 + 64 * 96 + 16 * 96 + 16 * 24
#: Inputs of the first projection after x and x'.
WITH_BIAS = "W, A, B, b, c"


def build(library_directory: Path, *search: Path, **request: Any) -> dict[str, Any]:
    """What build_engine.py says about a request."""
    path = os.pathsep.join(map(str, (library_directory, *search)))
    defaults = {"dtype": "float16", "inputs": WITH_BIAS, "cubins": None, "library": None}
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("build_engine.py")),
            json.dumps(defaults | request),
        ],
        env=os.environ | {"LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer | {"stderr": done.stderr}


def check(engine: dict[str, Any], dtype: str) -> None:
    """Two plugin layers and constants, nothing else; types and shapes; weights in the plan."""
    assert engine["parsed"], engine["log"]
    assert engine["layers"].count("PLUGIN_V3") == 2
    assert set(engine["layers"]) == {"PLUGIN_V3", "CONSTANT"}
    assert engine["outputs"] == [
        ["y", f"DataType.{dtype}", [-1, -1, 64]],
        ["y_channel", f"DataType.{dtype}", [-1, -1, 16]],
    ]
    assert 2 * WEIGHTS <= engine["plan_bytes"] < 2 * WEIGHTS + 65536, engine["log"]
