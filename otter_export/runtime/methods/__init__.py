"""Decoding methods: one frozen dataclass and one pure function each.

A new method is one file here, one line below and one test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from otter_export.errors import RequestError
from otter_export.quoting import listed
from otter_export.registry import Registry
from otter_export.runtime.methods.base import DecodingMethod

METHODS: Registry[type[DecodingMethod]] = Registry("method", expected=type)
METHODS.register("args-greedy", "otter_export.runtime.methods.args_greedy:ArgsGreedy")
METHODS.register("args-stochastic", "otter_export.runtime.methods.args_stochastic:ArgsStochastic")
METHODS.register("experts", "otter_export.runtime.methods.experts:Experts")
METHODS.register("plain", "otter_export.runtime.methods.plain:Plain")


def method_options(name: str) -> tuple[str, ...]:
    """Names of the options that a method takes.

    Raises:
        UnsupportedError: There is no such method.
    """
    return tuple(field.name for field in dataclasses.fields(METHODS.load(name)))


def make_method(name: str, options: Mapping[str, Any]) -> DecodingMethod:
    """A method by its registered name.

    Args:
        name: One of `METHODS`.
        options: Its options by name; those left out have their defaults.

    Raises:
        UnsupportedError: There is no such method.
        RequestError: The method has no such option, or a value is out of range.
    """
    accepted = method_options(name)
    unknown = set(options) - set(accepted)
    if unknown:
        fitting = [other for other in METHODS if set(options) <= set(method_options(other))]
        remedy = f"; methods that have it: {', '.join(fitting)}" if fitting else ""
        raise RequestError(
            f"method {name!r} has no option {listed(unknown)}; "
            f"its options: {', '.join(accepted)}{remedy}"
        )
    return METHODS.load(name)(**options)
