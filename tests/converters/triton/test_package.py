"""L0: what travels with a model is all that it imports, and nothing that needs torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from otter_export.converters.triton.package import copy_package, modules
from otter_export.runtime.executors import EXECUTORS
from otter_export.runtime.methods import METHODS
from tests.serving import backend

#: What only building, training and the command line need.
ELSEWHERE = ("cli", "converters", "evaluation", "families", "graph", "modeling")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds a copied package, as the version's directory of a model does."""
    directory = tmp_path_factory.mktemp("version")
    copy_package(directory / "otter_export")
    return directory


def run(copy: Path, code: str) -> str:
    """Run code in a fresh interpreter that sees the copy first, and no checkout."""
    setup = f"import sys; sys.path.insert(0, {str(copy)!r})\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", setup + code], capture_output=True, text=True, cwd=copy
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_travels_that_building_or_training_needs() -> None:
    found = {name.split(".")[1] for name in modules() if "." in name}
    assert not found & set(ELSEWHERE)


def test_every_method_and_backend_travels() -> None:
    for registry in (METHODS, EXECUTORS):
        for name in registry:
            module = registry._paths[name].partition(":")[0]
            assert module in modules(), f"{registry.kind} {name} is missing"


def test_the_copy_is_importable_by_itself(copy: Path) -> None:
    # The real module exists in the server's process only.
    (copy / "triton_python_backend_utils.py").write_text(
        Path(str(backend.__file__)).read_text(encoding="utf-8"), encoding="utf-8"
    )
    code = """
import otter_export.serving.triton_model as model, otter_export.runtime.executors.onnxruntime
print(model.__file__)
ours = [m for n, m in sys.modules.items() if n.startswith("otter_export")]
print(all(m.__file__.startswith(sys.path[0]) for m in ours))
print([n for n in ("torch", "onnx", "onnx_ir", "click", "tqdm") if n in sys.modules])
"""
    where, inside, heavy = run(copy, code).splitlines()
    assert Path(where).is_relative_to(copy)
    assert (inside, heavy) == ("True", "[]")


def test_the_licence_travels(copy: Path, repository: Path) -> None:
    copied = (copy / "otter_export" / "LICENSE").read_text()
    assert copied == (repository / "LICENSE").read_text()
