"""A base model's directory: what config.json says, where its tensors lie, whether the two agree.

Opening one reads JSON files and safetensors headers only, whatever its size.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export import base_config
from otter_export.base_config import (
    check_family_settings,
    completed,
    library_config,
    original_length,
    read_config,
    special_tokens,
)
from otter_export.config import check_fetched
from otter_export.errors import CheckpointError, ConfigError
from otter_export.families import family_of
from otter_export.family import (
    BaseDimensions,
    Family,
    NormSite,
    ProjectionSite,
    Sites,
    sites,
)
from otter_export.files import is_directory, is_file, open_regular
from otter_export.hub import BASE_STEM, TOKENIZER_FILES
from otter_export.safetensors_io import (
    WEIGHT_DTYPES,
    FloatArray,
    TensorInfo,
    TensorStore,
    same_values,
)
from otter_export.wrappers import WRAPPERS, check_bypassed


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A Hugging Face model directory: config, family, sizes and lazily read weights.

    ``data`` is config.json as its values were checked, with what it left out;
    ``dimensions.tie_word_embeddings`` says what the weights say, which is what transformers
    computes with. ``wrapper`` is the ``model_type`` of the multimodal model around it, if there is
    one: all else here is then of its text model.
    """

    directory: Path
    data: Mapping[str, Any]
    family: Family
    dimensions: BaseDimensions
    wrapper: str | None = None

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> BaseModel:
        """Read a base's config.json; `problems` compares it with the weights.

        Raises:
            CheckpointError, ConfigError, UnsupportedError: It is not a usable base model.
        """
        directory = Path(directory)
        if not is_directory(directory):
            raise CheckpointError(f"{directory} is not a directory")
        given, wrapper = read_config(directory)
        source = str(directory / base_config.FILE_NAME)
        family = family_of(given, source)
        data = completed(given, family)
        if wrapper is not None:
            check_bypassed(data, wrapper, source)
        check_family_settings(data, family, source)
        dimensions = BaseDimensions.from_json(data, family, source)
        length = original_length(data, family)
        if length is not None and length < dimensions.max_position_embeddings:
            dimensions = dataclasses.replace(dimensions, max_position_embeddings=length)
        base = cls(directory, data, family, dimensions, wrapper)
        _check_all_fetched(directory)
        base.special_token_ids  # noqa: B018  its file is checked too
        if base.dimensions.tie_word_embeddings and not base._shares_the_embedding():
            untied = dataclasses.replace(base.dimensions, tie_word_embeddings=False)
            return dataclasses.replace(base, dimensions=untied)
        return base

    @functools.cached_property
    def weights(self) -> TensorStore:
        """The base's tensors; headers only until one is read."""
        return TensorStore.open(self.directory, BASE_STEM)

    @functools.cached_property
    def parameters(self) -> TensorStore:
        """The stored tensors that the model reads, by their plain names."""
        stored = {name: self.stored_name(name) for name in self.tensors}
        found = {name: self.weights[one] for name, one in stored.items() if one is not None}
        return TensorStore(found, self.weights.source)

    @functools.cached_property
    def sites(self) -> Sites:
        """Where a channel is inserted."""
        return sites(self.family, self.dimensions, self.data)

    @functools.cached_property
    def special_token_ids(self) -> tuple[int | None, tuple[int, ...]]:
        """``(bos, eos ids)``: generation_config.json where it says so, else config.json."""
        return special_tokens(self.directory, self.data, self.dimensions.vocab_size)

    @functools.cached_property
    def library_config(self) -> dict[str, Any]:
        """The config.json that transformers and mobius-onnx get."""
        return library_config(self.data, self.family, self.dimensions)

    @property
    def plain_config(self) -> dict[str, Any]:
        """The config.json of a wrapper's text model, as a plain base has it."""
        told = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")
        return {**self.library_config, **{k: self.data[k] for k in told if k in self.data}}

    @property
    def window(self) -> int | None:
        """The window of the layers that have one, by config.json alone; None: none can have one.

        `otter_export.layer_attention` asks transformers which layers these are.
        """
        is_on = self.family.windowed and self.data.get("use_sliding_window", True)
        return self.data.get("sliding_window") if is_on else None

    @property
    def embedding_name(self) -> str:
        """The token embedding's tensor."""
        return f"{self.family.embeddings[0][0]}.weight"

    @property
    def head_name(self) -> str:
        """The tensor that the language model head multiplies by."""
        tied = self.dimensions.tie_word_embeddings
        return self.embedding_name if tied else f"{self.family.output_head}.weight"

    def stored_name(self, name: str) -> str | None:
        """The stored name of a base tensor, or None.

        Files may leave out the family's optional prefix, and of a tied pair may hold the head
        alone; those of a wrapper have names of their own.
        """
        candidates: Iterable[str] = (name, name.removeprefix(self.family.optional_prefix))
        if self.wrapper is not None:
            candidates = WRAPPERS[self.wrapper].stored_names(name, self.family)
        for candidate in candidates:
            if candidate in self.weights:
                return candidate
        is_tied = name == self.embedding_name and self.dimensions.tie_word_embeddings
        return self.stored_name(f"{self.family.output_head}.weight") if is_tied else None

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

    def stored(self, name: str) -> TensorInfo | None:
        """Where a base tensor lies in its file; None if it is missing."""
        stored = self.stored_name(name)
        return None if stored is None else self.weights[stored]

    def projection(
        self, site: ProjectionSite, rows: npt.NDArray[np.int64] | slice | None = None
    ) -> FloatArray:
        """The base weight of one logical projection, ``[out, in]``, float32.

        Args:
            site: The projection.
            rows: Output rows to read; None reads all.
        """
        part = site.rows(rows) if isinstance(rows, np.ndarray) else self._rows(site, rows)
        name = f"{site.parameter}.weight"
        if site.transposed:
            return np.ascontiguousarray(self.float32(name, np.s_[:, part]).T)
        return self.float32(name, part)

    def stored_projection(self, site: ProjectionSite) -> TensorInfo | None:
        """Where the weight of one logical projection lies in its file, row after row.

        None if it is stored transposed, or its rows lie between those of others.
        """
        info = self.stored(f"{site.parameter}.weight")
        if info is None or site.transposed or site.head is not None:
            return None
        return info.rows(self._rows(site))

    def projection_bias(self, site: ProjectionSite) -> FloatArray | None:
        """The base bias of one logical projection, ``[out]``, or None."""
        name = f"{site.parameter}.bias"
        return self.float32(name, self._rows(site)) if self.has(name) else None

    def norm_weight(self, norm: NormSite, index: Any = None) -> FloatArray:
        """What a norm multiplies by: its stored weight and the family's offset, float32."""
        return self.float32(f"{norm.name}.weight", index) + np.float32(self.family.norm_offset)

    def _rows(self, site: ProjectionSite, rows: slice | None = None) -> Any:
        """A slice where the rows of a part lie together, which is read without the others."""
        begin, end, _ = (rows or slice(None)).indices(self.dimensions.width(site.writes))
        if site.head is not None:
            return site.rows(np.arange(begin, end))
        return slice(site.offset + begin, site.offset + end)

    @functools.cached_property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor that the model reads, as config.json implies them."""
        d = self.dimensions
        shapes: dict[str, tuple[int, ...]] = {}
        for name, rows in self.sites.embeddings:
            shapes[f"{name}.weight"] = (rows, d.hidden_size)
        for norm in self.sites.norms:
            shapes[f"{norm.name}.weight"] = (norm.base_size(d),)
            if self._has_bias(norm.name):
                shapes[f"{norm.name}.bias"] = (norm.base_size(d),)
        out: dict[str, int] = {}
        for s in self.sites.projections:
            out[s.parameter] = out.get(s.parameter, 0) + d.width(s.writes)
            shape = (out[s.parameter], d.width(s.reads))
            shapes[f"{s.parameter}.weight"] = shape[::-1] if s.transposed else shape
            if self._has_bias(s.parameter):
                shapes[f"{s.parameter}.bias"] = shape[:1]
        shapes[self.head_name] = (d.vocab_size, d.hidden_size)
        if self._has_bias(self.family.output_head):
            shapes[f"{self.family.output_head}.bias"] = (d.vocab_size,)
        return shapes

    def problems(self) -> list[str]:
        """Where the weights are not what config.json implies: missing, misshapen, unannounced."""
        prefix = self._foreign_prefix()
        if prefix is not None:
            return [
                f"the base's tensors have names that start with {prefix!r}, which transformers "
                f"does not load either; save the model itself, not its wrapper (found "
                f"{prefix}{self.embedding_name}, expected {self.embedding_name})"
            ]
        found = []
        for name, expected in self.tensors.items():
            stored = self.stored_name(name)
            if stored is None:
                untied = "; config.json does not tie it to the embedding (tie_word_embeddings)"
                hint = untied if name == f"{self.family.output_head}.weight" else ""
                found.append(f"base tensor {name} is missing{hint}")
            elif self.weights[stored].shape != expected:
                found.append(
                    f"base tensor {name} has shape {list(self.weights[stored].shape)}, "
                    f"config.json implies {list(expected)}"
                )
            elif self.weights[stored].dtype not in WEIGHT_DTYPES:
                found.append(
                    f"base tensor {name} has dtype {self.weights[stored].dtype}; "
                    f"accepted: {', '.join(WEIGHT_DTYPES)}"
                )
        found += self._unannounced_biases()
        is_any_missing = not all(map(self.has, self.tensors))
        if is_any_missing and (others := self.left_over()):
            found.insert(0, f"the files hold other tensors, such as {', '.join(others[:3])}")
        return found

    def check_weights(self) -> None:
        """Refuse weights that are not what config.json implies; headers only.

        Raises:
            CheckpointError: Lists what is wrong.
        """
        if problems := self.problems():
            raise CheckpointError(f"{self.directory}: {listed(problems)}")

    def left_over(self) -> tuple[str, ...]:
        """Stored tensors that the model does not read, which transformers ignores too."""
        head = f"{self.family.output_head}.weight"  # of a tied pair, equal to the embedding
        read = {self.stored_name(name) for name in (*self.tensors, head)}
        return tuple(name for name in self.weights if name not in read)

    def _has_bias(self, module: str) -> bool:
        """Whether config.json announces a bias; families that do not say follow the files."""
        announced = self._announced_by(module)
        if announced is None:
            return self.has(f"{module}.bias")
        if isinstance(announced, bool):
            return announced
        return bool(self.data.get(announced, False))

    def _announced_by(self, module: str) -> str | bool | None:
        """The config key that announces a module's bias, or whether it always has one."""
        if self.family.biases is None:
            return None
        layer = module.removeprefix(f"{self.family.layers}.").partition(".")[2]
        return self.family.biases.get(module, self.family.biases.get(layer, False))

    def _unannounced_biases(self) -> Iterator[str]:
        """Biases that the files hold and the model does not have; transformers drops them."""
        modules = [norm.name for norm in self.sites.norms]
        modules += dict.fromkeys(s.parameter for s in self.sites.projections)
        modules.append(self.family.output_head)
        found: dict[str | bool | None, list[str]] = {}
        for module in modules:
            if self.has(f"{module}.bias") and f"{module}.bias" not in self.tensors:
                found.setdefault(self._announced_by(module), []).append(f"{module}.bias")
        for key, names in found.items():
            count = f" and {len(names) - 1} more" if names[1:] else ""
            if isinstance(key, str):
                yield (
                    f"the files hold the bias {names[0]}{count}, but config.json does not announce "
                    f"it; set {key} to true there, or remove it"
                )
            else:
                yield f"the files hold the bias {names[0]}{count}, which this family does not have"

    def _foreign_prefix(self) -> str | None:
        """What stands before all names, as wrappers leave it: ``module.``, ``_orig_mod.``."""
        if self.has(self.embedding_name):
            return None
        for name in self.weights:
            if name.endswith(f".{self.embedding_name}"):
                return name.removesuffix(self.embedding_name)
        return None

    def _shares_the_embedding(self) -> bool:
        """Whether a head that config.json ties is the embedding in the files, too.

        transformers takes a head that is stored. The copy that some files hold is compared with
        the embedding, block by block; only then are weights read here.
        """
        try:
            head = self.stored_name(f"{self.family.output_head}.weight")
            embedding = self.stored_name(self.embedding_name)
        except (CheckpointError, ConfigError):
            return True  # whoever reads the weights gets that error
        if head is None or embedding is None or head == embedding:
            return True
        return same_values(self.weights, head, embedding)


def listed(problems: Sequence[str]) -> str:
    """The first twenty problems, in one line."""
    more = [f"and {len(problems) - 20} more"] if problems[20:] else []
    return "; ".join([*problems[:20], *more])


def _check_all_fetched(directory: Path) -> None:
    """Refuse pointers of Git LFS among the small files; weights are checked as they are opened."""
    for name in TOKENIZER_FILES:
        path = directory / name
        if not is_file(path, CheckpointError):
            continue
        try:
            with open_regular(path, error=CheckpointError) as file:
                check_fetched(file.read(64))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
