"""The part of otter-export that a served model imports; it is copied beside the model."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import otter_export
from otter_export.errors import OtterError

#: What ``model.py`` imports.
ENTRY = "otter_export.serving.triton_model"
#: The package's names lead there, and no served model does: torch's, for checkpoints, and metrics.
_LEFT_OUT = ("otter_export.modeling.", "otter_export.evaluation.")
_LICENSE = "LICENSE"
#: An entry of a registry: ``"module:object"``.
_REGISTERED = re.compile(r"(otter_export(?:\.\w+)+):\w+")


def copy_package(destination: Path) -> None:
    """Copy the modules that a model needs, and the licence.

    Args:
        destination: Where the package goes; a directory ``otter_export`` that does not exist.

    Raises:
        OtterError: The installation is incomplete.
    """
    destination.mkdir()
    for module, source in sorted(modules().items()):
        parts = module.split(".")[1:]
        if source.name == "__init__.py":
            parts.append("__init__")
        target = destination.joinpath(*parts).with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    shutil.copyfile(_license(), destination / _LICENSE)


@functools.cache
def modules() -> dict[str, Path]:
    """All modules that `ENTRY` leads to by imports and registries, with their files.

    Imports inside functions count too, and so do the packages around each module.

    Raises:
        OtterError: A module is missing.
    """
    found: dict[str, Path] = {}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        if name in found or f"{name}.".startswith(_LEFT_OUT):
            continue
        path = _source(name)
        if path is None:
            raise OtterError(f"the module {name} is missing; install otter-export again")
        found[name] = path
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += _imported(path)
    return found


def _imported(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, or names in a registry."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "otter_export")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("otter_export"):
            module = str(node.module)
            yield module
            names = (f"{module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if _is_submodule(module, name))
        elif isinstance(node, ast.Constant) and (match := _REGISTERED.fullmatch(str(node.value))):
            yield match.group(1)


def _source(name: str) -> Path | None:
    """File of a module; imports the packages around it, which is cheap, and not the module."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin) if spec is not None and spec.origin else None


def _is_submodule(package: str, name: str) -> bool:
    source = _source(package)
    return source is not None and source.name == "__init__.py" and _source(name) is not None


def _license() -> Path:
    """The licence, which must travel with the modules: of a checkout, or of the installed wheel."""
    checkout = Path(otter_export.__file__).resolve().parents[1] / _LICENSE
    if checkout.is_file():
        return checkout
    for file in importlib.metadata.files("otter-export") or ():
        if file.name == _LICENSE:
            return Path(str(file.locate()))
    raise OtterError(f"the {_LICENSE} of otter-export is missing; install otter-export again")
