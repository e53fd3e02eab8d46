"""L0: pyproject.toml lists every package that is on the disk, and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

MAPPED = {"otter_export.converters": "converters", "otter_export.plugins": "plugins"}


@pytest.fixture(scope="module")
def settings(repository: Path) -> dict[str, object]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]


def _packages_on_disk(repository: Path) -> set[str]:
    """Every folder below the package folders that holds Python files."""
    found = set()
    for name, folder in {"otter_export": "otter_export", **MAPPED}.items():
        top = repository / folder
        for source in top.rglob("*.py"):
            inner = source.parent.relative_to(top).parts
            found.add(".".join((name, *inner)))
    return found


def test_package_list_equals_the_disk(repository: Path, settings: dict[str, object]) -> None:
    # A forgotten folder imports from a checkout and silently vanishes from the wheel.
    assert set(settings["packages"]) == _packages_on_disk(repository)


def test_every_package_has_an_init_with_a_docstring(repository: Path) -> None:
    for name in _packages_on_disk(repository):
        top = next((m for m in MAPPED if name.startswith(m)), None)
        path = name.replace(top, MAPPED[top], 1) if top else name
        init = repository / path.replace(".", "/") / "__init__.py"
        assert init.is_file(), f"{init} is missing"
        assert init.read_text().startswith('"""'), f"{init} has no docstring"


def test_mapped_folders_install_under_their_names(settings: dict[str, object]) -> None:
    assert settings["package-dir"] == {"otter_export": "otter_export", **MAPPED}


def test_typing_links_lead_to_the_mapped_folders(repository: Path) -> None:
    for folder in MAPPED.values():
        link = repository / "tests" / "typings" / "otter_export" / folder
        assert link.is_symlink() and not link.readlink().is_absolute()
        assert link.resolve() == repository / folder
