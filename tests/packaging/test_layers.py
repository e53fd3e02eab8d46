"""L0: imports keep to CONTRIBUTING.md's table of layers, and no files import in a circle.

What counts is every import of this package, also those inside functions, those for type checkers
alone, and the ``"module:object"`` strings of registries. Only a circle forgives the ones for type
checkers: they do not run.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

#: Folders of the checkout by the name that they are installed as.
FOLDERS = {
    "otter_export": "otter_export",
    "otter_export.converters": "converters",
    "otter_export.plugins": "plugins",
}
EVERYTHING = "everything"
#: Where the package lies and its version, which every layer may ask for.
PACKAGE = ("otter_export", "otter_export.__version__")


@dataclasses.dataclass(frozen=True)
class Import:
    """One file imports another.

    Args:
        source: Path of the importing file.
        target: Path of the imported one.
        runs: False if only type checkers see it.
    """

    source: str
    target: str
    runs: bool = True

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A row of the table: its files, and the layers that they may import beside their own."""

    name: str
    patterns: tuple[str, ...]
    may_import: frozenset[str]


def layers(page: str) -> list[Layer]:
    """The rows of CONTRIBUTING.md's table."""
    table = page.partition("\n| layer | files |")[2].partition("\n\n")[0]
    found = []
    for row in table.splitlines()[2:]:
        name, files, _, imported = (cell.strip() for cell in row.split("|")[1:-1])
        patterns = tuple(re.findall(r"`([^`]+)`", files))
        names = frozenset(part.strip() for part in imported.split(",")) - {"nothing"}
        found.append(Layer(name, patterns, names))
    return found


def layer_of(path: str, table: list[Layer]) -> Layer:
    """The layer of a file: the one with the longest pattern that fits."""
    fits = [
        (len(pattern), layer)
        for layer in table
        for pattern in layer.patterns
        if _fits(path, pattern)
    ]
    assert fits, f"CONTRIBUTING.md's table has no layer for {path}"
    return max(fits, key=lambda fit: fit[0])[1]


def _fits(path: str, pattern: str) -> bool:
    """A folder has all that is below it; ``*`` stops at a slash."""
    if pattern.endswith("/"):
        return path.startswith(pattern)
    return fnmatch(path, pattern) and path.count("/") == pattern.count("/")


def upward(imports: set[Import], table: list[Layer]) -> set[str]:
    """The imports that the table does not allow."""
    found = set()
    for one in imports:
        source, target = layer_of(one.source, table), layer_of(one.target, table)
        if not source.may_import & {target.name, EVERYTHING} and source != target:
            found.add(str(one))
    return found


def circles(imports: set[Import]) -> set[frozenset[str]]:
    """Groups of files that reach each other by imports that run."""
    following: dict[str, set[str]] = {}
    for one in imports:
        if one.runs:
            following.setdefault(one.source, set()).add(one.target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = following.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reach = {file: reached(file) for file in following}
    return {
        frozenset(other for other in seen if file in reach.get(other, ()))
        for file, seen in reach.items()
        if file in seen
    }


def imports_of(sources: Mapping[str, str]) -> set[Import]:
    """The imports between files.

    Args:
        sources: Text of each file by its path in the checkout.
    """
    paths = {_module(path): path for path in sources}
    found = set()
    for path, text in sources.items():
        for name, runs in _names(ast.parse(text)):
            if name in PACKAGE:
                continue
            while name and name not in paths:  # an object of a module, or none of ours
                name, _, _ = name.rpartition(".")
            if name and paths[name] != path:
                found.add(Import(path, paths[name], runs))
    return found


def _module(path: str) -> str:
    """``converters/onnx.py`` is ``otter_export.converters.onnx``."""
    for package, folder in FOLDERS.items():
        if path.startswith(f"{folder}/"):
            inner = path.removeprefix(f"{folder}/").removesuffix(".py").replace("/", ".")
            return f"{package}.{inner}".removesuffix(".__init__")
    raise AssertionError(f"{path} is in no package")


def _names(node: ast.AST, runs: bool = True) -> Iterator[tuple[str, bool]]:
    """Every dotted name that is imported below a node, and whether the import runs."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, runs) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module is not None, "a relative import"
        yield from ((f"{node.module}.{alias.name}", runs) for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if re.fullmatch(r"otter_export[\w.]*:\w+", node.value):
            yield node.value.replace(":", "."), runs
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from _names(child, False)
        for child in node.orelse:
            yield from _names(child, runs)
    else:
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("_module"):
            named = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((str(name), runs) for name in named)
        for child in ast.iter_child_nodes(node):
            yield from _names(child, runs)


@pytest.fixture(scope="module")
def table(repository: Path) -> list[Layer]:
    return layers((repository / "CONTRIBUTING.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources(repository: Path) -> dict[str, str]:
    return {
        file.relative_to(repository).as_posix(): file.read_text(encoding="utf-8")
        for folder in FOLDERS.values()
        for file in sorted((repository / folder).rglob("*.py"))
    }


def test_imports_keep_to_the_table(table: list[Layer], sources: dict[str, str]) -> None:
    assert upward(imports_of(sources), table) == set()


def test_no_files_import_in_a_circle(sources: dict[str, str]) -> None:
    assert not circles(imports_of(sources))


def test_the_package_itself_imports_nothing(sources: dict[str, str]) -> None:
    """Its names are lazy, so that importing it stays cheap."""
    found = imports_of(sources)
    assert not [one for one in found if one.runs and one.source == "otter_export/__init__.py"]


def test_rows_name_rows_above_them(table: list[Layer], sources: dict[str, str]) -> None:
    known: set[str] = set()
    for layer in table:
        assert layer.may_import <= known | {EVERYTHING}, layer.name
        known.add(layer.name)
        for pattern in layer.patterns:
            assert any(_fits(path, pattern) for path in sources), f"{pattern} has no file"


PAGE = """
| layer | files | what is there | may import |
|---|---|---|---|
| core | `otter_export/*.py` | | nothing |
| runtime | `otter_export/runtime/` | | core |
| load | `otter_export/load.py` | | core, runtime |
| cli | `otter_export/cli/` | | everything |

"""
CONFIG = "otter_export/config.py"
ENGINE = "otter_export/runtime/engine.py"
CLI = "otter_export/cli/a.py"


@pytest.mark.parametrize(
    "text",
    [
        "import otter_export.runtime.engine",
        "from otter_export.runtime.engine import Engine",
        "from otter_export.runtime import engine",
        "def late():\n    from otter_export.runtime.engine import Engine",
        "if TYPE_CHECKING:\n    from otter_export.runtime.engine import Engine",
        "BACKENDS.register('torch', 'otter_export.runtime.engine:load')",
        "importlib.import_module('otter_export.runtime.engine')",
    ],
)
def test_a_bad_import_is_found(text: str) -> None:
    found = imports_of({CONFIG: text, ENGINE: "from otter_export.config import Config", CLI: ""})
    assert upward(found, layers(PAGE)) == {f"{CONFIG} -> {ENGINE}"}


@pytest.mark.parametrize("path", [ENGINE, "otter_export/load.py", CLI])
def test_a_good_import_is_none(path: str) -> None:
    sources = {CONFIG: "import numpy\nfrom otter_export import __version__", ENGINE: ""}
    text = f"from otter_export import config\n{sources.get(path, '')}"
    assert not upward(imports_of({**sources, path: text}), layers(PAGE))


def test_a_circle_is_found() -> None:
    sources = {
        CONFIG: "def late():\n    import otter_export.cli.a",
        ENGINE: "from otter_export.config import Config",
        CLI: "X = 'otter_export.runtime.engine:X'",
        "otter_export/errors.py": "import otter_export.config",  # leads into it, is not in it
    }
    assert circles(imports_of(sources)) == {frozenset({CONFIG, ENGINE, CLI})}
    sources[CONFIG] = "if TYPE_CHECKING:\n    import otter_export.cli.a"
    assert not circles(imports_of(sources))


def test_a_file_without_a_layer_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"no layer for otter_export/new/a\.py"):
        layer_of("otter_export/new/a.py", layers(PAGE))
