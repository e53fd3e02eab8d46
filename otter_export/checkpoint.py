"""Reading and validating an Otter checkpoint directory (format version 1, see docs/checkpoint.md).

Opening a checkpoint reads JSON files and safetensors headers only, whatever its size.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from otter_export import config as config_file
from otter_export.config import OtterConfig, read_json
from otter_export.errors import CheckpointError, ConfigError, UnsupportedError
from otter_export.families import family_of
from otter_export.family import (
    BaseDimensions,
    Family,
    ProjectionSite,
    Sites,
    channel_width,
    sites,
)
from otter_export.safetensors_io import WEIGHT_DTYPES, FloatArray, TensorStore

OTTER_STEM = "otter"
BASE_STEM = "model"
#: Files that travel with a base model beside its weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A Hugging Face model directory: config, family, sizes and lazily read weights."""

    directory: Path
    data: Mapping[str, Any]
    family: Family
    dimensions: BaseDimensions

    @classmethod
    def open(cls, directory: Path) -> BaseModel:
        """Read a base's config.json.

        Raises:
            CheckpointError, ConfigError, UnsupportedError: It is not a usable base model.
        """
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is not a directory")
        path = directory / "config.json"
        data = read_json(path)
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: expected a JSON object")
        if data.get("quantization_config") is not None:
            raise UnsupportedError(
                f"{path} has a quantization_config; the base must be plain F32, F16 or BF16 "
                "weights. Take the unquantised model, and quantise with build --precision int8"
            )
        family = family_of(data, str(path))
        return cls(directory, data, family, BaseDimensions.from_json(data, family, str(path)))

    @functools.cached_property
    def weights(self) -> TensorStore:
        """The base's tensors; headers only until one is read."""
        return TensorStore.open(self.directory, BASE_STEM)

    @functools.cached_property
    def sites(self) -> Sites:
        """Where a channel is inserted."""
        return sites(self.family, self.dimensions, self.data)

    @functools.cached_property
    def special_token_ids(self) -> tuple[int | None, tuple[int, ...]]:
        """``(bos, eos ids)``: generation_config.json where it says so, else config.json."""
        path = self.directory / "generation_config.json"
        generation = read_json(path) if path.is_file() else {}
        data: dict[str, Any] = {**self.data}
        data.update({k: v for k, v in dict(generation).items() if v is not None})

        def valid(value: object) -> TypeGuard[int]:
            return type(value) is int and 0 <= value < self.dimensions.vocab_size

        eos, bos = data.get("eos_token_id"), data.get("bos_token_id")
        listed = eos if isinstance(eos, list) else [eos]
        return (bos if valid(bos) else None), tuple(i for i in listed if valid(i))

    def stored_name(self, name: str) -> str | None:
        """The stored name of a base tensor, or None; handles the family's optional prefix."""
        if name in self.weights:
            return name
        short = name.removeprefix(self.family.optional_prefix)
        return short if short in self.weights else None

    def has(self, name: str) -> bool:
        """Whether a base tensor is stored."""
        return self.stored_name(name) is not None

    def float32(self, name: str, index: Any = None) -> FloatArray:
        """A base tensor in float32, or what a numpy ``index`` selects of it.

        Raises:
            CheckpointError: It is missing.
        """
        stored = self.stored_name(name)
        if stored is None:
            raise CheckpointError(f"{self.directory}: base tensor {name} is missing")
        return self.weights.float32(stored, index)

    def projection(
        self, site: ProjectionSite, rows: npt.NDArray[np.int64] | None = None
    ) -> FloatArray:
        """The base weight of one logical projection, ``[out, in]``, float32.

        Args:
            site: The projection.
            rows: Output rows to read; None reads all.
        """
        part: Any = self._rows(site) if rows is None else site.offset + rows
        name = f"{site.parameter}.weight"
        if site.transposed:
            return np.ascontiguousarray(self.float32(name, np.s_[:, part]).T)
        return self.float32(name, part)

    def projection_bias(self, site: ProjectionSite) -> FloatArray | None:
        """The base bias of one logical projection, ``[out]``, or None."""
        name = f"{site.parameter}.bias"
        return self.float32(name, self._rows(site)) if self.has(name) else None

    def _rows(self, site: ProjectionSite) -> slice:
        return slice(site.offset, site.offset + self.dimensions.width(site.writes))

    def problems(self) -> list[str]:
        """What is missing or has the wrong shape among the tensors that the sites need."""
        d = self.dimensions
        expected: dict[str, tuple[int, ...]] = {}
        for name, rows in self.sites.embeddings:
            expected[f"{name}.weight"] = (rows, d.hidden_size)
        for name in self.sites.norms:
            expected[f"{name}.weight"] = (d.hidden_size,)
            if self.has(f"{name}.bias"):
                expected[f"{name}.bias"] = (d.hidden_size,)
        out: dict[str, int] = {}
        for s in self.sites.projections:
            out[s.parameter] = out.get(s.parameter, 0) + d.width(s.writes)
            shape = (out[s.parameter], d.width(s.reads))
            expected[f"{s.parameter}.weight"] = shape[::-1] if s.transposed else shape
            if self.has(f"{s.parameter}.bias"):
                expected[f"{s.parameter}.bias"] = shape[:1]
        if not d.tie_word_embeddings:
            expected[f"{self.family.output_head}.weight"] = (d.vocab_size, d.hidden_size)
        found = []
        for name, expected_shape in expected.items():
            stored = self.stored_name(name)
            if stored is None:
                found.append(f"base tensor {name} is missing")
            elif self.weights[stored].shape != expected_shape:
                found.append(
                    f"base tensor {name} has shape {list(self.weights[stored].shape)}, "
                    f"config.json implies {list(expected_shape)}"
                )
            elif self.weights[stored].dtype not in WEIGHT_DTYPES:
                found.append(f"base tensor {name} has dtype {self.weights[stored].dtype}")
        return found


def expected_tensors(config: OtterConfig, base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Name and shape of every inserted tensor, in forward order.

    ``A`` is ``[n'_out, n_in]``, ``B`` is ``[n'_out, n'_in]``, as in the contract.
    """
    d = base.dimensions
    width = functools.partial(channel_width, config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in base.sites.embeddings:
        if config.embedding == "projection":
            shapes[f"{name}.otter.projection"] = (config.hidden_size, d.hidden_size)
        else:
            shapes[f"{name}.otter.table"] = (rows, config.hidden_size)
    for name in base.sites.norms:
        shapes[f"{name}.otter.weight"] = (config.hidden_size,)
        if base.has(f"{name}.bias"):
            shapes[f"{name}.otter.bias"] = (config.hidden_size,)
    for site in base.sites.projections:
        shapes[f"{site.name}.otter.from_base"] = (width(site.writes), d.width(site.reads))
        shapes[f"{site.name}.otter.from_channel"] = (width(site.writes), width(site.reads))
        if base.has(f"{site.parameter}.bias"):
            shapes[f"{site.name}.otter.bias"] = (width(site.writes),)
    for signal in config.signals:
        weight = signal.weight_shape(config.hidden_size, d.vocab_size)
        shapes[f"signals.{signal.name}.weight"] = weight
        shapes[f"signals.{signal.name}.bias"] = weight[:-1]
    return shapes


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
        path = Path(directory)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a directory")
        if not (path / config_file.FILE_NAME).is_file():
            raise CheckpointError(
                f"{path} has no {config_file.FILE_NAME}: it is not an Otter checkpoint. "
                "Make one with: otter-export insert BASE CKPT"
            )
        config = OtterConfig.load(path)
        base = BaseModel.open(_base_directory(path, config, fetch))
        tensors = TensorStore.open(path, OTTER_STEM)
        checkpoint = cls(path, config, base, tensors)
        problems = check_widths(config, base.dimensions)
        if not problems:
            problems = base.problems() + list(checkpoint._problems())
        if problems:
            shown = problems[:20] + ([f"and {len(problems) - 20} more"] if problems[20:] else [])
            raise CheckpointError(f"{path}: " + "; ".join(shown))
        return checkpoint

    def float32(self, name: str) -> FloatArray:
        """An inserted tensor in float32."""
        return self.tensors.float32(name)

    def non_finite(self) -> Iterator[str]:
        """Names of inserted and base tensors that hold NaN or infinity; reads all weights."""
        for store in (self.tensors, self.base.weights):
            for name, info in store.items():
                if info.dtype in WEIGHT_DTYPES and not np.isfinite(store.float32(name)).all():
                    yield name

    def _problems(self) -> Iterator[str]:
        expected = expected_tensors(self.config, self.base)
        for name, shape in expected.items():
            info = self.tensors.get(name)
            if info is None:
                yield f"tensor {name} is missing"
            elif info.shape != shape:
                yield f"tensor {name} has shape {list(info.shape)}, expected {list(shape)}"
            elif info.dtype not in WEIGHT_DTYPES:
                yield f"tensor {name} has dtype {info.dtype}; accepted: {', '.join(WEIGHT_DTYPES)}"
        for name in self.tensors:
            if name not in expected:
                yield f"tensor {name} is left over"


def check_widths(config: OtterConfig, base: BaseDimensions) -> list[str]:
    """What is inconsistent between a channel's widths and its base."""
    problems = []
    if config.head_dim != base.head_dim:
        problems.append(f"head_dim is {config.head_dim}, the base's is {base.head_dim}")
    ours = config.num_attention_heads * base.num_key_value_heads
    if ours != base.num_attention_heads * config.num_key_value_heads:
        problems.append(
            f"{config.num_attention_heads} query heads over {config.num_key_value_heads} key/value "
            f"heads: the ratio must be the base's, {base.num_attention_heads} over "
            f"{base.num_key_value_heads}"
        )
    return problems


def _base_directory(checkpoint: Path, config: OtterConfig, fetch: bool) -> Path:
    """Where the base lies: beside, at a path relative to the checkpoint, or in the hub cache."""
    name = config.base_model_name_or_path
    if name is None:
        return checkpoint
    local = Path(name) if Path(name).is_absolute() else checkpoint / name
    if local.is_dir():
        return local
    return find_base(name, fetch=fetch)


def find_base(name: str, *, fetch: bool = True) -> Path:
    """A base model by path, or by hub id through huggingface_hub (which honours HF_HUB_OFFLINE).

    Args:
        name: The path or the hub id.
        fetch: Whether it may be fetched, if the hub's cache has it not.

    Raises:
        CheckpointError: It is neither a directory nor a model that can be had.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"base model {name!r} is neither a directory nor a hub id (owner/name)"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise CheckpointError(
            f"base model {name!r} is not a local directory; fetching it from the hub needs "
            "huggingface_hub: pip install 'otter-export[build]'"
        ) from None
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        found = snapshot_download(name, allow_patterns=patterns, local_files_only=not fetch)
        return Path(found)
    except (OSError, ValueError) as error:
        if not fetch:
            raise CheckpointError(
                f"base model {name!r} is not in the hub's cache, and nothing is fetched here; get "
                f"it with: hf download {name}"
            ) from None
        raise CheckpointError(f"base model {name!r} could not be fetched: {error}") from None
