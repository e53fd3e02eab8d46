"""Reading and validating an Otter checkpoint directory (see docs/checkpoint.md).

Opening a checkpoint reads JSON files and safetensors headers only, whatever its size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from otter_export import config as config_file
from otter_export.arguments import path_argument
from otter_export.base_model import BaseModel, listed
from otter_export.channel import check_widths, expected_tensors
from otter_export.config import OtterConfig
from otter_export.errors import CheckpointError
from otter_export.files import is_directory, is_file
from otter_export.hub import find_base
from otter_export.quoting import quoted
from otter_export.safetensors_io import IDS_DTYPE, WEIGHT_DTYPES, FloatArray, TensorStore
from otter_export.signals import Signal, are_token_ids, is_token_ids, kind_of, token_ids_name

OTTER_STEM = "otter"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened and validated Otter checkpoint."""

    directory: Path
    config: OtterConfig
    base: BaseModel
    tensors: TensorStore

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, fetch: bool = True) -> Checkpoint:
        """Open a checkpoint; headers only.

        Args:
            directory: The checkpoint.
            fetch: Whether a base that is a hub id may be fetched, if the hub's cache has it not.

        Raises:
            CheckpointError: All problems of the tensors, listed together.
            ConfigError: A configuration file is malformed.
            UnsupportedError: The base family or a setting of it has no rule.
        """
        path = path_argument("directory", directory, CheckpointError)
        if not is_directory(path):
            raise CheckpointError(f"{path} is not a directory")
        if not is_file(path / config_file.FILE_NAME, CheckpointError):
            raise CheckpointError(
                f"{path} has no {config_file.FILE_NAME}: it is not an Otter checkpoint. "
                "Make one with: otter-export insert BASE CKPT"
            )
        config = OtterConfig.load(path)
        base = BaseModel.open(_base_directory(path, config, fetch))
        tensors = TensorStore.open(path, OTTER_STEM)
        signals = tuple(_with_draft_vocab(signal, tensors) for signal in config.signals)
        config = dataclasses.replace(config, signals=signals)
        checkpoint = cls(path, config, base, tensors)
        problems = check_widths(config, base.dimensions)
        if not problems:
            problems = base.problems() + list(checkpoint._problems())
        if problems:
            raise CheckpointError(f"{path}: {listed(problems)}")
        return checkpoint

    def float32(self, name: str) -> FloatArray:
        """An inserted tensor in float32."""
        return self.tensors.float32(name)

    def token_ids(self, signal: Signal) -> npt.NDArray[np.int32] | None:
        """The tokens that a signal can draft, ``[V']`` ascending; None: all.

        Raises:
            CheckpointError: They are not ascending, or one is not in the base's vocabulary.
        """
        if signal.draft_vocab is None:
            return None
        ids = np.asarray(self.tensors.raw(token_ids_name(signal)))
        vocab_size = self.base.dimensions.vocab_size
        if not are_token_ids(ids, vocab_size):
            raise CheckpointError(
                f"{self.directory}: tensor {token_ids_name(signal)} must be ascending token ids "
                f"from 0 to {vocab_size - 1}"
            )
        return ids

    def non_finite(self) -> Iterator[str]:
        """Names of inserted and base tensors that hold NaN or infinity; reads all weights."""
        for name in self.tensors:
            if not is_token_ids(name) and not np.isfinite(self.float32(name)).all():
                yield name
        for name in self.base.tensors:
            if not np.isfinite(self.base.float32(name)).all():
                yield name

    def _problems(self) -> Iterator[str]:
        expected = expected_tensors(self.config, self.base)
        for name, shape in expected.items():
            info = self.tensors.get(name)
            if info is None:
                yield f"tensor {name} is missing"
            elif info.shape != shape:
                yield f"tensor {name} has shape {list(info.shape)}, expected {list(shape)}"
            else:
                accepted = (IDS_DTYPE,) if is_token_ids(name) else tuple(WEIGHT_DTYPES)
                if info.dtype not in accepted:
                    yield f"tensor {name} has dtype {info.dtype}; accepted: {', '.join(accepted)}"
        for name in self.tensors:
            if name not in expected:
                yield f"tensor {name} is left over"


def _with_draft_vocab(signal: Signal, tensors: TensorStore) -> Signal:
    """A signal that drafts, with the size of its vocabulary, if that is a part of the base's."""
    info = tensors.get(token_ids_name(signal))
    if not kind_of(signal).drafts or info is None or len(info.shape) != 1 or not info.shape[0]:
        return signal
    return dataclasses.replace(signal, draft_vocab=info.shape[0])


def _base_directory(checkpoint: Path, config: OtterConfig, fetch: bool) -> Path:
    """Where the base lies: beside, at a path relative to the checkpoint, or in the hub cache."""
    name = config.base_model_name_or_path
    if name is None:
        return checkpoint
    local = Path(name) if Path(name).is_absolute() else checkpoint / name
    if is_directory(local):
        return local
    return find_base(name, fetch=fetch)


def checkpoint_argument(value: object) -> Checkpoint:
    """The checkpoint of an argument.

    Raises:
        CheckpointError: It is none.
    """
    if isinstance(value, Checkpoint):
        return value
    raise CheckpointError(f"checkpoint must be what Checkpoint.open gives, got {quoted(value)}")
