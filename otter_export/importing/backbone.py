"""Comparison of a source's backbone with the base that is to carry its head: tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from otter_export.base_model import BaseModel
from otter_export.errors import CheckpointError
from otter_export.importing.source import Source
from otter_export.safetensors_io import from_float32, to_float32

#: Before the names of a model in a wrapper.
_PREFIXES = ("", "pretrained_model.")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A tensor that differs.

    Args:
        name: The base's.
        largest: Largest difference of two values.
        relative: Root mean square of the differences over that of the base's values.
    """

    name: str
    largest: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        compared: Tensors that both have.
        absent: The base's tensors that the source has not, such as a language model head.
        different: Those that differ, the most different first.
    """

    compared: int
    absent: tuple[str, ...]
    different: tuple[Difference, ...]

    def check(self, source: Source, base: BaseModel) -> None:
        """Raise `CheckpointError`, with figures, if the backbone was trained too."""
        if not self.different:
            return
        worst = self.different[0]
        raise CheckpointError(
            f"the backbone of {source.path} was trained too: {len(self.different)} of "
            f"{self.compared} tensors differ from {base.directory}, most {worst.name} (by "
            f"{worst.relative:.1%} of its size, at most {worst.largest:.2g}), so its head does not "
            "fit this base; distil it: otter-export label --teacher"
        )


def compare(
    base: BaseModel, source: Source, progress: Callable[[int], object] = lambda count: None
) -> Comparison:
    """Read both, tensor by tensor.

    The coarser of two dtypes counts: a base saved again in bfloat16 is the same.

    Args:
        base: The base.
        source: The source.
        progress: Called with the bytes of the base just compared.
    """
    found, absent, compared = [], [], 0
    for name in base.tensors:
        theirs = next(_stored(base, source, name), None)
        info = base.stored(name)
        if theirs is None or info is None:
            absent.append(name)
            continue
        compared += 1
        difference = _difference(base, source, name, theirs)
        if difference is not None:
            found.append(difference)
        progress(info.nbytes)
    found.sort(key=lambda one: -one.relative)
    return Comparison(compared, tuple(absent), tuple(found))


def _stored(base: BaseModel, source: Source, name: str) -> Iterator[str]:
    """The source's name of a base tensor."""
    short = name.removeprefix(base.family.optional_prefix)
    for prefix in _PREFIXES:
        yield from (p for one in (name, short) if (p := f"{prefix}{one}") in source.tensors)


def _difference(base: BaseModel, source: Source, name: str, theirs: str) -> Difference | None:
    info, other = base.stored(name), source.tensors[theirs]
    assert info is not None  # the caller looked
    if info.shape != other.shape:
        raise CheckpointError(
            f"{source.path}: tensor {theirs} has shape {list(other.shape)}, that of "
            f"{base.directory} {list(info.shape)}; it was made on another base"
        )
    ours, found = base.float32(name), source.tensors.float32(theirs)
    if info.dtype != other.dtype:
        for dtype in (info.dtype, other.dtype):
            ours, found = (to_float32(from_float32(v, dtype), dtype) for v in (ours, found))
    if np.array_equal(ours, found):
        return None
    gap = np.abs(ours.astype(np.float64) - found)
    size = float(np.sqrt(np.mean(np.square(ours, dtype=np.float64))))
    relative = float(np.sqrt(np.mean(gap**2))) / max(size, 1e-30)
    return Difference(name, float(gap.max()), relative)
