"""Base families: a table of the layers' parameters each, by Hugging Face name.

A family is data. From it follow the names and shapes of all inserted tensors (`sites`), which
modules the torch reference replaces, and how a base parameter reaches the ONNX graph. The tables
are in ``otter_export/families``; `otter_export.families.FAMILIES` lists them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.config import OtterConfig
from otter_export.errors import ConfigError, UnsupportedError

#: Rotary tables have a row for each position; the longest published models have 1,010,000.
MAX_POSITIONS = 1 << 20
#: Every layer becomes entries in memory, so a hostile count must not get that far.
_LIMITS = {"num_hidden_layers": (1 << 14) - 1, "max_position_embeddings": MAX_POSITIONS}
#: The sizes that a config.json may leave out or set to null.
_OPTIONAL = ("intermediate_size", "num_key_value_heads", "head_dim")


def size_limit(name: str) -> int:
    """The largest value of a size of a base that a file may give."""
    return _LIMITS.get(name, (1 << 31) - 1)


class Space(enum.Enum):
    """What a projection reads or writes; each has a base width and a channel width."""

    HIDDEN = "hidden"  # d and d'
    INNER = "inner"  # m and m'
    QUERY = "query"  # H*e and H'*e
    KEY = "key"  # Hkv*e and H'kv*e
    VALUE = "value"  # likewise


@dataclasses.dataclass(frozen=True)
class Projection:
    """One logical linear layer of a decoder layer.

    Args:
        path: Module path inside the layer; its base parameter is ``path.weight``.
        reads: Space of its input.
        writes: Space of its output.
        part: Name of this slice of a fused parameter (``q``, ``k``, ``v``), in storage order; None
            when the parameter holds this projection alone.
        graph_path: Its path in the base graph, where that differs from ``path``.
        by_head: The parts of one head lie together (GPT-NeoX), not the heads of one part.
    """

    path: str
    reads: Space
    writes: Space
    part: str | None = None
    graph_path: str | None = None
    by_head: bool = False


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """A norm of the queries or of the keys, inside the attention.

    Args:
        path: Module path inside the layer.
        space: QUERY or KEY.
        axis: Axis of the heads in what the Hugging Face module gets, where each head is normalised
            by statistics of its own (Qwen3: -2); None where all heads are one vector (OLMo 2).
    """

    path: str
    space: Space
    axis: int | None = None


class Rotation(enum.Enum):
    """Which layers rotate queries and keys."""

    NONE = "none"  # positions are learned, and added
    ALL = "all"
    WINDOWED = "windowed"  # where there are windows at all, the layers without one do not
    LISTED = "listed"  # config's no_rope_layers, 1 for a layer that rotates


@dataclasses.dataclass(frozen=True)
class Family:
    """Table of one base family; all paths are Hugging Face module paths.

    Args:
        name: Name for messages and tables.
        model_types: ``model_type`` values of config.json that it covers.
        embeddings: ``(path, config key of its number of rows)``; the first is the token embedding.
        layers: Path of the layer list.
        norms: Paths of the norms of the hidden state inside a layer.
        head_norms: Norms of queries and keys.
        post_norms: Path of a projection to that of the norm (RMSNorm) of what it writes, where one
            lies between it and the state.
        final_norm: Path of the norm before the heads.
        output_head: Path of the language model head; tied to the first embedding if absent.
        projections: The logical linear layers of a decoder layer.
        transposed: True when linear weights are stored ``[in, out]`` (Conv1D).
        config_keys: Standard name to this family's name in config.json.
        resized: ``(path inside the layer, attribute, space)``: integer attributes that the
            Hugging Face forward reads and that must grow by the channel's width of ``space``, or by
            its number of heads where the attribute ends in ``_heads``. ``config.NAME`` is a setting
            of the module's config, of which it gets a copy.
        activations: Paths inside a layer of the feed-forward's activation, in the space INNER.
        optional_prefix: A leading path that published weight files of this family may omit.
        layer_norm: Norms subtract the mean (LayerNorm); else they are RMSNorm.
        norm_offset: What norms add to their stored weight (Gemma: 1). Inserted ones hold the sum.
        scaled_embedding: Token embeddings are multiplied by the square root of the width.
        interleaved: Rotary pairs are neighbours (Cohere), not the halves of a head.
        rotation: Which layers rotate queries and keys.
        partial_rotation: Whether a part of each head may be rotated (``partial_rotary_factor``).
        windowed: Attention may look back ``sliding_window`` positions only: in the layers that
            ``layer_types`` names, or in all.
        settings: Further keys of config.json that this family's model depends on.
        defaults: What the family's model takes for a key that config.json leaves out; sizes are in
            `otter_export.size_defaults`.
        refused: ``(config key, accepted value, reason)``: settings that have no rule.
        biases: Path of a norm or projection inside a layer (or of the final norm) to the config key
            that announces its bias, or to True if it always has one; other paths have none. None
            takes whatever biases the files hold.
        tied: Whether the head is the embedding when config.json does not say.
    """

    name: str
    model_types: tuple[str, ...]
    embeddings: tuple[tuple[str, str], ...]
    layers: str
    norms: tuple[str, ...]
    final_norm: str
    output_head: str
    projections: tuple[Projection, ...]
    transposed: bool = False
    config_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resized: tuple[tuple[str, str, Space], ...] = ()
    activations: tuple[str, ...] = ()
    optional_prefix: str = ""
    head_norms: tuple[HeadNorm, ...] = ()
    post_norms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layer_norm: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    interleaved: bool = False
    rotation: Rotation = Rotation.ALL
    partial_rotation: bool = False
    windowed: bool = False
    settings: tuple[str, ...] = ()
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)
    refused: tuple[tuple[str, object, str], ...] = ()
    biases: Mapping[str, str | bool] | None = None
    tied: bool = False


@dataclasses.dataclass(frozen=True)
class BaseDimensions:
    """Sizes of a base model, read from its config.json.

    ``tie_word_embeddings`` is what config.json says; `otter_export.base_model.BaseModel.open` sets
    it to what the weights say.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any], family: Family, source: str) -> BaseDimensions:
        """Read the sizes under this family's names.

        Raises:
            ConfigError: A size is missing or is not a positive integer.
            UnsupportedError: A setting of the family that has no rule here is switched on.
        """

        def size(name: str, default: int | None = None) -> int:
            key = family.config_keys.get(name, name)
            limit = size_limit(name)
            value = data.get(key)
            if value is None and name in _OPTIONAL:
                value = default
            if type(value) is not int or not 0 < value <= limit:
                raise ConfigError(
                    f"{source}: {key} must be an integer from 1 to {limit}, got {value!r:.60}"
                )
            return value

        for key, accepted, reason in family.refused:
            if data.get(key, accepted) not in (accepted, None):
                raise UnsupportedError(
                    f"{source}: {key} = {data[key]!r:.60} is not supported: {reason}"
                )
        for _, key in family.embeddings:
            size(key)
        hidden, heads = size("hidden_size"), size("num_attention_heads")
        if hidden % heads:
            # Also with a head_dim, since transformers refuses it.
            raise ConfigError(f"{source}: hidden size {hidden} is not a multiple of {heads} heads")
        head_dim = size("head_dim", hidden // heads)
        if family.rotation is not Rotation.NONE and head_dim % 2:
            raise ConfigError(f"{source}: rotary embeddings need an even head_dim, got {head_dim}")
        return cls(
            model_type=str(data.get("model_type")),
            hidden_size=hidden,
            intermediate_size=size("intermediate_size", 4 * hidden),
            num_hidden_layers=size("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=size("num_key_value_heads", heads),
            head_dim=head_dim,
            vocab_size=size("vocab_size"),
            max_position_embeddings=size("max_position_embeddings"),
            tie_word_embeddings=bool(data.get("tie_word_embeddings", family.tied)),
        )

    def width(self, space: Space) -> int:
        """Base width of a space."""
        return {
            Space.HIDDEN: self.hidden_size,
            Space.INNER: self.intermediate_size,
            Space.QUERY: self.num_attention_heads * self.head_dim,
            Space.KEY: self.num_key_value_heads * self.head_dim,
            Space.VALUE: self.num_key_value_heads * self.head_dim,
        }[space]


def channel_width(config: OtterConfig, space: Space) -> int:
    """Channel width of a space: d', m', H'*e or H'kv*e."""
    return {
        Space.HIDDEN: config.hidden_size,
        Space.INNER: config.intermediate_size,
        Space.QUERY: config.num_attention_heads * config.head_dim,
        Space.KEY: config.num_key_value_heads * config.head_dim,
        Space.VALUE: config.num_key_value_heads * config.head_dim,
    }[space]


@dataclasses.dataclass(frozen=True)
class ProjectionSite:
    """One logical projection of one layer, with full names.

    ``name`` is the stem of its inserted tensors (``NAME.otter.from_base``); ``parameter`` the stem
    of the base parameter (``PARAMETER.weight``); ``offset`` the first output row of this part in
    the (possibly fused) base parameter; ``head`` the rows of a head and of all parts of a head,
    where these lie together; ``graph_name`` its stem in the base graph; ``layer`` its layer.
    """

    name: str
    layer: int
    parameter: str
    graph_name: str
    reads: Space
    writes: Space
    offset: int
    part: str | None
    transposed: bool
    head: tuple[int, int] | None = None

    def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where rows of this part lie in the base parameter."""
        if self.head is None:
            return self.offset + rows
        size, stride = self.head
        return self.offset + rows // size * stride + rows % size


@dataclasses.dataclass(frozen=True)
class NormSite:
    """One norm, with its full name.

    Where each head is normalised by itself (``axis``), an extra head has statistics of its own, as
    every head has, and both weights have the size of a head. Elsewhere the statistics are those of
    the base part. ``layer`` is None behind the last one.
    """

    name: str
    layer: int | None
    space: Space = Space.HIDDEN
    axis: int | None = None

    def base_size(self, base: BaseDimensions) -> int:
        """Size of its base weight."""
        return base.width(self.space) if self.axis is None else base.head_dim

    def channel_size(self, config: OtterConfig) -> int:
        """Size of its inserted weight."""
        return channel_width(config, self.space) if self.axis is None else config.head_dim


@dataclasses.dataclass(frozen=True)
class Sites:
    """Every place of a base model at which a channel can be inserted, in forward order.

    `otter_export.channel.channel_sites` says where one of some shape is.
    """

    embeddings: tuple[tuple[str, int], ...]  # (name, rows)
    layers: tuple[str, ...]  # paths
    norms: tuple[NormSite, ...]
    projections: tuple[ProjectionSite, ...]


def sites(family: Family, base: BaseDimensions, data: Mapping[str, Any]) -> Sites:
    """List the insertion sites of a base model.

    Args:
        family: The base's family.
        base: Its sizes.
        data: Its parsed config.json (for the rows of further embeddings).
    """
    embeddings = tuple((path, int(data[key])) for path, key in family.embeddings)
    norms: list[NormSite] = []
    projections: list[ProjectionSite] = []
    layers = tuple(f"{family.layers}.{i}" for i in range(base.num_hidden_layers))
    for index, layer in enumerate(layers):
        norms.extend(NormSite(f"{layer}.{path}", index) for path in family.norms)
        norms.extend(
            NormSite(f"{layer}.{n.path}", index, n.space, n.axis) for n in family.head_norms
        )
        offsets: dict[str, int] = {}
        for p in family.projections:
            offset = offsets.get(p.path, 0)
            offsets[p.path] = offset + (base.head_dim if p.by_head else base.width(p.writes))
            parts = sum(other.path == p.path for other in family.projections)
            stem = f"{layer}.{p.path}"
            projections.append(
                ProjectionSite(
                    name=stem if p.part is None else f"{stem}.{p.part}",
                    layer=index,
                    parameter=stem,
                    graph_name=f"{layer}.{p.graph_path or p.path}",
                    reads=p.reads,
                    writes=p.writes,
                    offset=offset,
                    part=p.part,
                    transposed=family.transposed,
                    head=(base.head_dim, parts * base.head_dim) if p.by_head else None,
                )
            )
    norms.append(NormSite(family.final_norm, None))
    return Sites(embeddings, layers, tuple(norms), tuple(projections))
