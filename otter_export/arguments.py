"""Checks of Python values that callers give: the argument's name, what is accepted, what was given.

Numbers of numpy (and of everything else that says it is a number) count as Python's; what comes
back is always Python's own.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from otter_export.errors import OtterError, RequestError
from otter_export.quoting import LIMIT, one_line, quoted

#: The greatest integer unless told otherwise: what int64 holds.
_LARGEST_INTEGER = (1 << 63) - 1
#: Numbers beyond this are refused as infinite would be, so that no score overflows.
_LARGEST_NUMBER = 1e30


def as_integer(value: object) -> int | None:
    """A Python integer, if the value is an integer and no bool."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    # The value's own code may run here.
    except Exception:
        return None


def as_number(value: object) -> float | None:
    """A Python float, if the value is a real number and no bool; infinite if it is too large."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    # The value's own code may run here.
    except Exception:
        return None


def integer(
    name: str,
    value: object,
    *,
    least: int,
    most: int = _LARGEST_INTEGER,
    described: str | None = None,
    error: type[OtterError] = RequestError,
) -> int:
    """The integer of an argument.

    Args:
        name: The argument's.
        value: What was given.
        least: The smallest that is accepted.
        most: The greatest.
        described: The range in words.
        error: What to raise.

    Raises:
        OtterError: Of the class ``error``: it is no integer, or out of range.
    """
    number = as_integer(value)
    if number is not None and least <= number <= most:
        return number
    if described is None:
        too_large = number is not None and number > most
        described = f"of at most {most}" if too_large else f"of at least {least}"
    raise error(f"{name} must be an integer {described}, got {quoted(value)}")


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    error: type[OtterError] = RequestError,
) -> float:
    """The finite number of an argument.

    Raises:
        OtterError: Of the class ``error``: it is none, or out of range.
    """
    found = as_number(value)
    # NaN compares as False, so it is refused here as well.
    valid = found is not None and abs(found) <= _LARGEST_NUMBER
    if found is not None and valid and found > above and minimum <= found <= maximum:
        return found
    limits = [
        f"above {above:g}" if math.isfinite(above) else "",
        f"at least {minimum:g}" if math.isfinite(minimum) else "",
        f"at most {maximum:g}" if math.isfinite(maximum) else "",
    ]
    described = " and ".join(limit for limit in limits if limit)
    accepted = f"{name} must be a finite number {described}".rstrip()
    raise error(f"{accepted}, got {quoted(value)}")


def named_numbers(name: str, value: object) -> dict[str, float]:
    """The finite numbers of an argument, by name: from a mapping, or texts like ``reward=0.5``.

    Raises:
        RequestError: They are none, one is no number, or a name comes twice.
    """
    accepted = f"{name} must be a number for each of some names, such as {{'reward': 1.5}}"
    pairs: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        accepted = f"{name} must be NAME=NUMBER, such as reward=1.5"
        pairs = [
            (left, _read_number(right)) for left, _, right in (t.rpartition("=") for t in value)
        ]
    if not pairs or not all(isinstance(key, str) and key for key, _ in pairs):
        raise RequestError(f"{accepted}, got {quoted(value)}")
    found = {str(key): number(f"{name} of {one_line(str(key), LIMIT)}", n) for key, n in pairs}
    if len(found) < len(pairs):
        raise RequestError(f"{name} has a name twice, got {quoted(value)}")
    return found


def _read_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def choice(
    name: str, value: object, accepted: Iterable[str], error: type[OtterError] = RequestError
) -> str:
    """The argument, which is one of some names.

    Raises:
        OtterError: Of the class ``error``: it is none of them.
    """
    names = tuple(accepted)
    # Arrays compare with each name, and lists cannot be looked up.
    if isinstance(value, str) and value in names:
        return str(value)
    shown = ", ".join(one or "empty" for one in names)
    raise error(f"{name} must be one of {shown}, got {quoted(value)}")


def flag(name: str, value: object, error: type[OtterError] = RequestError) -> bool:
    """The truth value of an argument.

    Raises:
        OtterError: Of the class ``error``: it is no bool.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise error(f"{name} must be true or false, got {quoted(value)}")


def path_argument(name: str, value: object, error: type[OtterError] = RequestError) -> Path:
    """The path of an argument.

    Raises:
        OtterError: Of the class ``error``: it is neither text nor a path, or one that no file can
            have.
    """
    reason = ""
    try:
        if isinstance(value, str | os.PathLike):
            path = Path(value)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                path.lstat()
            return path
    # A name that is too long.
    except OSError as caught:
        reason = f" ({caught.strerror})"
    # A NUL or half of a surrogate pair; and the value's own code may run here.
    except Exception:
        reason = ""
    raise error(f"{name} must be a path, as text or pathlib.Path, got {quoted(value)}{reason}")


def keep(instance: object, **values: Any) -> None:
    """Set fields of a frozen dataclass to their checked values, from its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
