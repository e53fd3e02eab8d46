"""Optimisation profiles of a TensorRT engine: which shapes it runs, and which profile is best."""

from __future__ import annotations

import dataclasses
from typing import Any

from otter_export.runtime.backends import in_place_contract as contract

Sizes = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Profile:
    """One profile: the least and the most of ``(batch, step, kept)``.

    Args:
        index: In the engine.
        low: The least sizes.
        high: The most.
    """

    index: int
    low: Sizes
    high: Sizes

    def accepts(self, sizes: Sizes) -> bool:
        """Whether it runs this shape."""
        return all(
            least <= size <= most
            for least, size, most in zip(self.low, sizes, self.high, strict=True)
        )


def read_profiles(engine: Any) -> tuple[Profile, ...]:
    """The profiles of an engine, those for the shortest steps first: they are tuned for them."""
    profiles = []
    for index in range(engine.num_optimization_profiles):
        ids = engine.get_tensor_profile_shape(contract.INPUT_IDS, index)
        kept = engine.get_tensor_profile_shape(contract.KEPT_ROWS, index)
        low, high = (
            (int(ids[i][0]), int(ids[i][1]), int(kept[i][1]))
            for i in (0, 2)  # least, best, most
        )
        profiles.append(Profile(index, low, high))
    return tuple(sorted(profiles, key=lambda profile: profile.high[1]))


def choose_profile(profiles: tuple[Profile, ...], sizes: Sizes) -> Profile | None:
    """The profile for a shape, or None if the engine does not run it."""
    return next((profile for profile in profiles if profile.accepts(sizes)), None)
