"""The part of otter-export that a served model imports; it is copied beside the model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

import otter_export
from otter_export.errors import OtterError

_ROOT = Path(otter_export.__file__).resolve().parent
#: Modules of the package itself. tests/triton/test_package.py checks that these and the folders
#: below import nothing else of otter-export.
MODULES = ("__init__.py", "config.py", "errors.py", "manifest.py", "registry.py", "py.typed")
FOLDERS = ("runtime", "serving")
#: Folders that engines of a target need besides, as ``otter_export.NAME``.
TARGET_FOLDERS: dict[str, tuple[str, ...]] = {"onnx": ()}
_OTHER_TARGETS = ("plugins",)
LICENSE = "LICENSE"


def copy_package(destination: Path, target: str) -> None:
    """Copy the modules that a model needs.

    Args:
        destination: Where the package goes; a directory ``otter_export`` that does not exist.
        target: The engine's target.

    Raises:
        OtterError: The installation is incomplete.
    """
    destination.mkdir()
    for name in MODULES:
        shutil.copy(_ROOT / name, destination / name)
    for name in (*FOLDERS, *TARGET_FOLDERS.get(target, _OTHER_TARGETS)):
        shutil.copytree(
            _folder(name), destination / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    shutil.copy(_license(), destination / LICENSE)


def _folder(name: str) -> Path:
    """Where a package's modules lie; ``plugins`` is mapped to a folder elsewhere."""
    spec = importlib.util.find_spec(f"otter_export.{name}")
    if spec is None or not spec.submodule_search_locations:
        raise OtterError(f"otter_export.{name} is not installed; install otter-export again")
    return Path(next(iter(spec.submodule_search_locations)))


def _license() -> Path:
    """The licence, which must travel with the modules: of a checkout, or of the installed wheel."""
    checkout = _ROOT.parent / LICENSE
    if checkout.is_file():
        return checkout
    for file in importlib.metadata.files("otter-export") or ():
        if file.name == LICENSE:
            return Path(str(file.locate()))
    raise OtterError(f"the {LICENSE} of otter-export is missing; install otter-export again")
