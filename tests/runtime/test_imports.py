"""L4: what importing the runtime loads; an edge device has neither torch nor onnx."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "mobius", "transformers", "matplotlib")


def _loaded(code: str, *modules: str) -> set[str]:
    """Which of ``modules`` a fresh interpreter has after ``code``."""
    script = f"import sys\n{code}\nprint(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing() -> None:
    found = _loaded("import otter_export; dir(otter_export)", "numpy", "click", *HEAVY)
    assert found == set()


@pytest.mark.parametrize(
    "code",
    [
        "from otter_export import *",
        "import otter_export.runtime.executors.onnxruntime",
        "import otter_export.cli.generate",
        "import otter_export.evaluation.reward_plot",
    ],
)
def test_the_runtime_needs_no_heavy_package(code: str) -> None:
    assert _loaded(code, "numpy", *HEAVY) == {"numpy"}


def test_public_names_are_complete() -> None:
    import otter_export

    assert set(otter_export._MODULES) == set(otter_export.__all__)
    for name in otter_export.__all__:
        assert getattr(otter_export, name) is not None
        assert name in dir(otter_export)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = otter_export.nothing
