"""A strict, lazy registry: names to ``"module:object"`` strings.

Nothing is imported until an entry is asked for, so that listing targets on an edge device does not
import torch or onnx. A name can be registered once only.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from otter_export.errors import MissingDependencyError, UnsupportedError
from otter_export.quoting import nearest, quoted

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind.

    Args:
        kind: What the entries are, in the singular, for messages: ``"target"``.
        expected: Class (or classes) that a loaded object must be an instance of; None accepts all.
        extra: The pip extra that installs what the entries import; None when the core suffices.
    """

    def __init__(
        self, kind: str, *, expected: type | None = None, extra: str | None = None
    ) -> None:
        self.kind = kind
        self._expected = expected
        self._extra = extra
        self._paths: dict[str, str] = {}

    def register(self, name: str, path: str) -> None:
        """Add ``name`` as ``"module:object"``; a second registration of a name is an error."""
        if name in self._paths:
            raise ValueError(f"{self.kind} {name!r} is already registered as {self._paths[name]}")
        if path.count(":") != 1:
            raise ValueError(f"{self.kind} {name!r}: expected 'module:object', got {path!r}")
        self._paths[name] = path

    def names(self) -> tuple[str, ...]:
        """All registered names, in the order of registration."""
        return tuple(self._paths)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def load(self, name: str) -> T:
        """Import and return the entry.

        Raises:
            UnsupportedError: The name is unknown; the message lists the known ones.
            MissingDependencyError: Importing it needs a package that is not installed.
        """
        if not isinstance(name, str):
            raise UnsupportedError(f"{self.kind} must be a name, got {quoted(name)}")
        if name not in self._paths:
            near = nearest(name, self._paths)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise UnsupportedError(
                f"unknown {self.kind} {quoted(name)}{hint}; known: {', '.join(self._paths)}"
            )
        module_name, _, attribute = self._paths[name].partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if self._extra is None or (error.name or "").startswith("otter_export"):
                raise
            raise MissingDependencyError(
                error.name or "?", self._extra, f"{self.kind} {name!r}"
            ) from error
        loaded: Any = getattr(module, attribute)
        if self._expected is not None and not isinstance(loaded, self._expected):
            raise TypeError(f"{self.kind} {name!r}: {self._paths[name]} is not a {self._expected}")
        return loaded  # type: ignore[no-any-return]
