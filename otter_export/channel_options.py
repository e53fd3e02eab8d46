"""Options of a channel that a user may choose, and the configuration that they make of a base."""

from __future__ import annotations

import dataclasses
import math

from otter_export import config as config_file
from otter_export.arguments import choice, integer, keep
from otter_export.base_model import BaseModel
from otter_export.channel import check_widths
from otter_export.config import OtterConfig
from otter_export.errors import ConfigError
from otter_export.quoting import quoted
from otter_export.safetensors_io import WEIGHT_DTYPES
from otter_export.signals import Signal


@dataclasses.dataclass(frozen=True)
class ChannelOptions:
    """What the user may choose of a channel; None takes the base's proportions.

    Args:
        hidden_size: d'.
        intermediate_size: m'; by default ``d' * m / d``, rounded up to a multiple of 64, at most m.
        heads: H'; by default H/Hkv, which all targets build.
        embedding: ``projection`` or ``table``.
        initialization: ``copy``, ``normal``, ``random`` or ``probe``.
        signals: What the channel predicts.
        dtype: ``F32``, ``F16`` or ``BF16``; of the inserted tensors as stored.
        seed: Of the drawn tensors.
        key_value_heads: H'kv; by default the fewest that share H' evenly, each with at most as many
            query heads as in the base.
        first_layer: The layer that the channel begins at; the number of layers is a linear probe.
        attention: ``own``, or ``shared`` with the base.

    Raises:
        ConfigError: A value is of another type, or out of any base's range.
    """

    hidden_size: int = 64
    intermediate_size: int | None = None
    heads: int | None = None
    embedding: str = "projection"
    initialization: str = "copy"
    signals: tuple[Signal, ...] = (Signal("reward"),)
    dtype: str = "F32"
    seed: int = 0
    key_value_heads: int | None = None
    first_layer: int = 0
    attention: str = "own"

    def __post_init__(self) -> None:
        """Check what is computed with; which word it is is checked with the whole config."""
        for name in ("hidden_size", "intermediate_size", "heads", "key_value_heads"):
            if (width := getattr(self, name)) is not None or name == "hidden_size":
                most = config_file.MAX_WIDTH
                keep(self, **{name: integer(name, width, least=1, most=most, error=ConfigError)})
        most = config_file.MAX_LAYERS
        layer = integer("first_layer", self.first_layer, least=0, most=most, error=ConfigError)
        keep(self, first_layer=layer, seed=integer("seed", self.seed, least=0, error=ConfigError))
        if not isinstance(self.dtype, str) or self.dtype not in WEIGHT_DTYPES:
            known = ", ".join(WEIGHT_DTYPES)
            raise ConfigError(f"dtype must be one of {known}, got {quoted(self.dtype)}")
        for name, accepted in _WORDS.items():
            if not isinstance(getattr(self, name), str):
                choice(name, getattr(self, name), accepted, ConfigError)
        keep(self, signals=signals_argument(self.signals))


#: Options that are one of some words.
_WORDS = {
    "embedding": config_file.EMBEDDINGS,
    "initialization": config_file.INITIALIZATIONS,
    "attention": config_file.ATTENTIONS,
}


def signals_argument(value: object) -> tuple[Signal, ...]:
    """The signals of an argument.

    Raises:
        ConfigError: They are none.
    """
    if isinstance(value, tuple | list) and all(isinstance(signal, Signal) for signal in value):
        return tuple(value)
    raise ConfigError(f"signals must be a tuple of Signal, got {quoted(value)}")


def channel_config(
    base: BaseModel, options: ChannelOptions, base_name: str | None = None
) -> OtterConfig:
    """Resolve the default widths against a base.

    Raises:
        ConfigError: The widths cannot be had with this base.
    """
    d = base.dimensions
    if d.num_attention_heads % d.num_key_value_heads:
        raise ConfigError(
            f"{base.directory}: {d.num_attention_heads} query heads are not a multiple of "
            f"{d.num_key_value_heads} key/value heads"
        )
    group = d.num_attention_heads // d.num_key_value_heads
    heads = group if options.heads is None else options.heads
    intermediate = options.intermediate_size
    if intermediate is None:
        proportional = options.hidden_size * d.intermediate_size / d.hidden_size
        intermediate = 64 * math.ceil(proportional / 64)
        if options.hidden_size <= d.hidden_size:
            # Rounding up must not make the channel wider than its base, which cannot be copied.
            intermediate = min(intermediate, d.intermediate_size)
    config = OtterConfig(
        hidden_size=options.hidden_size,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=options.key_value_heads or fewest_key_value_heads(heads, group),
        head_dim=d.head_dim,
        embedding=options.embedding,
        initialization=options.initialization,
        signals=options.signals,
        base_model_name_or_path=base_name,
        first_layer=options.first_layer,
        attention=options.attention,
    )
    # The file's own rules (ranges, names, bounds) hold for what is about to be written.
    config = OtterConfig.from_json(config.to_json(), "the channel")
    problems = check_widths(config, d)
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def fewest_key_value_heads(heads: int, group: int) -> int:
    """The fewest key/value heads that share query heads evenly, at most ``group`` each."""
    return next(n for n in range(1, heads + 1) if heads % n == 0 and heads <= n * group)
