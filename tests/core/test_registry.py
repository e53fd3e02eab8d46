"""L0: the registry is strict and lazy."""

from __future__ import annotations

import sys

import pytest

from otter_export.errors import MissingDependencyError, UnsupportedError
from otter_export.registry import Registry


def test_entries_are_imported_when_asked_for_and_not_before() -> None:
    registry: Registry[type] = Registry("thing", expected=type)
    registry.register("fraction", "fractions:Fraction")
    registry.register("absent", "no_such_module:Thing")
    assert registry.names() == ("fraction", "absent") == tuple(registry)
    assert "fraction" in registry and "other" not in registry
    from fractions import Fraction

    assert registry.load("fraction") is Fraction


def test_registering_imports_nothing() -> None:
    registry: Registry[object] = Registry("thing")
    sys.modules.pop("this_is_not_imported", None)
    registry.register("x", "this_is_not_imported:x")
    assert "this_is_not_imported" not in sys.modules


def test_a_name_is_registered_once() -> None:
    registry: Registry[object] = Registry("thing")
    registry.register("x", "fractions:Fraction")
    with pytest.raises(ValueError, match="already registered as fractions:Fraction"):
        registry.register("x", "decimal:Decimal")


@pytest.mark.parametrize("path", ["fractions", "fractions.Fraction", "a:b:c", ""])
def test_a_path_names_module_and_object(path: str) -> None:
    with pytest.raises(ValueError, match="expected 'module:object'"):
        Registry("thing").register("x", path)


def test_unknown_names_get_the_known_ones_and_the_nearest() -> None:
    registry: Registry[object] = Registry("target")
    registry.register("onnx", "fractions:Fraction")
    registry.register("trt", "fractions:Fraction")
    with pytest.raises(UnsupportedError) as caught:
        registry.load("onxn")
    assert str(caught.value) == "unknown target 'onxn' (did you mean 'onnx'?); known: onnx, trt"


def test_a_missing_package_names_the_extra() -> None:
    registry: Registry[object] = Registry("target", extra="build")
    registry.register("x", "no_such_package.module:thing")
    with pytest.raises(MissingDependencyError, match=r"pip install 'otter-export\[build\]'"):
        registry.load("x")


def test_a_broken_entry_is_not_reported_as_a_missing_package() -> None:
    registry: Registry[object] = Registry("target", extra="build", expected=int)
    registry.register("module", "otter_export.no_such_module:thing")
    registry.register("attribute", "fractions:no_such_thing")
    registry.register("class", "fractions:Fraction")
    with pytest.raises(ModuleNotFoundError):
        registry.load("module")
    with pytest.raises(AttributeError):
        registry.load("attribute")
    with pytest.raises(TypeError, match=r"fractions:Fraction is not a"):
        registry.load("class")
