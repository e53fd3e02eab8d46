"""A directory or a file of others that holds a head, and the contract of a format."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from otter_export.base_model import BaseModel
from otter_export.config import read_json
from otter_export.errors import CheckpointError
from otter_export.files import is_directory, is_file
from otter_export.hub import BASE_STEM
from otter_export.probe import Probe
from otter_export.safetensors_io import FloatArray, TensorInfo, TensorStore, read_header
from otter_export.signals import Signal

#: Files of heads alone, as LlamaFactory and Medusa name them.
_HEAD_FILES = ("value_head", "medusa_lm_head")
_PICKLES = (".bin", ".pt", ".pth")


@dataclasses.dataclass(frozen=True)
class Source:
    """What somebody else saved.

    Args:
        path: The directory or the file.
        config: Its config.json, empty if it has none.
        tensors: All its tensors: of the model, of heads beside it.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: TensorStore

    @classmethod
    def open(cls, path: Path) -> Source:
        """Read headers.

        Raises:
            CheckpointError: There are no tensors, they are pickled, or an adapter is not merged.
            ConfigError: Its config.json is none.
        """
        if path.suffix in _PICKLES:
            raise CheckpointError(_pickled(path))
        if not is_directory(path):
            if not is_file(path, CheckpointError):
                raise CheckpointError(f"{path} is neither a directory nor a safetensors file")
            return cls(path, {}, TensorStore(read_header(path), path))
        if (path / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{path} is a LoRA adapter, and its head was trained on what that makes of the "
                "base; merge it first (merge_and_unload()), and save the head beside the result"
            )
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        if not isinstance(config, dict):
            raise CheckpointError(f"{path / 'config.json'} holds no object")
        return cls(path, config, _tensors(path))

    @property
    def architecture(self) -> str:
        """The class that it was saved from, by its config.json; empty if that says none."""
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    def read(self, name: str) -> FloatArray:
        """A tensor of a head, in float32.

        Raises:
            CheckpointError: It holds a value that is no finite number, which scores nothing.
        """
        found = self.tensors.float32(name)
        if not np.isfinite(found).all():
            raise CheckpointError(
                f"{self.path}: {name} holds {np.count_nonzero(~np.isfinite(found))} values that "
                "are not finite (NaN or infinity); save a head of before its training diverged"
            )
        return found


def _tensors(directory: Path) -> TensorStore:
    """Those of the model, if there is one, and of heads beside it."""
    found: dict[str, TensorInfo] = {}
    pickled: list[Path] = []
    for stem in _HEAD_FILES:
        file = directory / f"{stem}.safetensors"
        if is_file(file, CheckpointError):
            found |= read_header(file)
        else:
            pickled += [p for s in _PICKLES if (p := directory / f"{stem}{s}").is_file()]
    if pickled:
        raise CheckpointError(_pickled(pickled[0]))
    names = [f"{BASE_STEM}.safetensors", f"{BASE_STEM}.safetensors.index.json"]
    if not found or any((directory / name).is_file() for name in names):
        store = TensorStore.open(directory, BASE_STEM)
        found |= {name: store[name] for name in store}
    return TensorStore(found, directory)


def _pickled(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code and is never read; convert it where it was made: "
        "safetensors.torch.save_file({k: v.contiguous().clone() for k, v in "
        f"torch.load({path.name!r}, weights_only=True).items()}}, {path.stem + '.safetensors'!r})"
    )


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """What the user may choose of a signal.

    Args:
        name: Of the signal; None takes the format's own.
        activation: Behind a score, one of a ``value`` signal's.
        label: Of a classifier with several: its name or its number.
        probability: Whether to take the probability of that label instead of its score; of two
            labels only.
    """

    name: str | None = None
    activation: str = "identity"
    label: str | None = None
    probability: bool = False


@dataclasses.dataclass(frozen=True)
class Head:
    """A head on the base's final state n, as a signal on ``n' = R n``.

    Args:
        signal: The signal.
        probe: R, and the signal's tensors.
        tensors: The source's tensors that are the head.
        labels: Of a classifier: by what its labels' scores are multiplied and added up.
    """

    signal: Signal
    probe: Probe
    tensors: frozenset[str]
    labels: tuple[float, ...] = ()


class SourceFormat(abc.ABC):
    """One format; its file is all that says what it is.

    Attributes:
        name: As registered.
        expects: What makes a source one of this format, in a few words.
    """

    name: ClassVar[str]
    expects: ClassVar[str]

    @abc.abstractmethod
    def fits(self, source: Source) -> bool:
        """Whether a source has this format, by the names of its tensors."""

    @abc.abstractmethod
    def head(self, source: Source, base: BaseModel, options: HeadOptions) -> Head:
        """The head of a source.

        Raises:
            CheckpointError: It cannot be had exactly on this base.
            ConfigError: An option does not fit it.
        """


def check_shape(source: Source, name: str, shape: tuple[int, ...]) -> None:
    """Raise `CheckpointError` if a tensor has another shape."""
    found = source.tensors[name].shape
    if found != shape:
        raise CheckpointError(
            f"{source.path}: tensor {name} has shape {list(found)}, this base needs {list(shape)}"
        )
