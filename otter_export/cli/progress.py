"""Progress bars: on stderr, and only for work that takes more than two seconds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

#: Seconds after which a bar appears; quick work stays silent.
DELAY_SECONDS = 2.0


@contextlib.contextmanager
def byte_bar(total: int | None, description: str) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number of bytes just processed.

    Args:
        total: Bytes in all; None if nobody knows yet.
        description: What is going on: ``writing``.
    """
    with tqdm(
        total=total,
        desc=description,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=DELAY_SECONDS,
        mininterval=_interval(),
        leave=False,
    ) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


@contextlib.contextmanager
def count_bar(total: int, description: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes how many items were just done.

    Args:
        total: Items in all.
        description: What is going on: ``scoring``.
        unit: What an item is: ``text``.
    """
    with tqdm(
        total=total,
        desc=description,
        unit=unit,
        delay=DELAY_SECONDS,
        mininterval=_interval(),
        leave=False,
    ) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


@contextlib.contextmanager
def step_bar(total: int, unit: str) -> Iterator[Callable[[str], None]]:
    """Yield a callback that takes the name of each step of a work.

    Args:
        total: Steps in all.
        unit: What a step is: ``check``.
    """
    with tqdm(
        total=total, delay=DELAY_SECONDS, mininterval=_interval(), leave=False, unit=unit
    ) as bar:

        def advance(name: str) -> None:
            bar.set_description(name, refresh=False)
            bar.update()

        yield advance


def _interval() -> float:
    """Seconds between two looks of a bar; a log file gets a line now and then."""
    return 0.1 if sys.stderr.isatty() else 5.0
