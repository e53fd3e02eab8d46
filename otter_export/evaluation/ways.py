"""The ways to decode that are compared: every method with every weight and number of candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otter_export.errors import RequestError
from otter_export.quoting import listed
from otter_export.runtime.methods import make_method, method_options
from otter_export.runtime.methods.base import DecodingMethod


def make_ways(
    names: Sequence[str],
    weights: Sequence[float | None] = (None,),
    top_ks: Sequence[int | None] = (None,),
    options: Mapping[str, Any] | None = None,
) -> dict[str, DecodingMethod]:
    """Methods by a label that says what is different of each; the same way comes once.

    >>> list(make_ways(["plain", "args-greedy"], [1, 2], [8]))
    ['plain', 'args-greedy, k 8, weight 1', 'args-greedy, k 8, weight 2']

    Args:
        names: Registered names of methods.
        weights: Of the reward; a method without one takes none of them. None: the method's own.
        top_ks: Numbers of candidates; greedy ``plain`` has one whatever they are. None as above.
        options: The same for all methods that have them, such as ``temperature``.

    Raises:
        UnsupportedError: There is no such method.
        RequestError: No method has an option, or a value is out of range.
    """
    options = dict(options or {})
    unused = set(options) - {option for name in names for option in method_options(name)}
    if unused:
        raise RequestError(f"none of the methods {listed(names)} has an option {listed(unused)}")
    ways: dict[str, DecodingMethod] = {}
    for name in names:
        accepted = method_options(name)
        common = {option: value for option, value in options.items() if option in accepted}
        one = make_method(name, common).candidate_count == 1
        for top_k in (None,) if one else top_ks:
            for weight in weights if "weight" in accepted else (None,):
                given = {"top_k": top_k, "weight": weight}
                own = {option: value for option, value in given.items() if value is not None}
                method = make_method(name, common | own)
                ways.setdefault(_label(method), method)
    return ways


def _label(method: DecodingMethod) -> str:
    k, weight = method.candidate_count, getattr(method, "weight", None)
    parts = [method.name]
    if k is not None and k > 1:
        parts.append(f"k {k}")
    if weight is not None:
        parts.append(f"weight {weight:g}")
    return ", ".join(parts)
