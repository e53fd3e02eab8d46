"""``otter_config.json``: the shape, signals and base of an Otter checkpoint, versions 1 to 3."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from otter_export.engine_io import RESERVED_NAMES
from otter_export.errors import ConfigError
from otter_export.files import read_regular
from otter_export.quoting import quoted
from otter_export.signals import SIGNALS, Signal, kind_of

FILE_NAME = "otter_config.json"
FORMAT = "otter"
#: A later one is written only where the channel or a signal needs it (`OtterConfig.version`).
VERSIONS = (1, 2, 3)

ACTIVATIONS = ("identity", "tanh", "sigmoid")
EMBEDDINGS = ("projection", "table")
ATTENTIONS = ("own", "shared")
INITIALIZATIONS = ("copy", "normal", "random", "probe")
#: What an activation guarantees by itself.
ACTIVATION_BOUNDS = {"identity": None, "tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
_SIGNAL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 14
_MAX_HEADS = 64
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
#: No score is that large; also refuses infinity, NaN and integers beyond float64.
_MAX_BOUND = 1e300
#: Of lists and objects in a JSON file; real ones have fewer than ten.
_MAX_DEPTH = 64


@dataclasses.dataclass(frozen=True)
class OtterConfig:
    """Widths and signals of a channel; see the module's docstring for the file.

    Args:
        hidden_size: d', width of the channel's hidden state.
        intermediate_size: m', extra neurons of each feed-forward layer.
        num_attention_heads: H', extra query heads.
        num_key_value_heads: H'kv, extra key/value heads.
        head_dim: e, size of one head, the same as the base's.
        embedding: ``projection`` (``P.otter.projection``) or ``table`` (``P.otter.table``).
        initialization: How the tensors were initialised; informative.
        signals: What the channel predicts; at least one.
        base_model_name_or_path: Of an adapter: a path relative to the checkpoint or a hub id.
            None when the base lies beside ``otter_config.json``.
        first_layer: N: the channel begins at the state that enters layer N. The number of layers
            makes it a linear probe on the last state.
        attention: ``own`` queries and keys, or ``shared``: the extra value heads read the attention
            weights of base heads, and there are no extra queries and keys.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    embedding: str = "projection"
    initialization: str = "copy"
    signals: tuple[Signal, ...] = (Signal("reward"),)
    base_model_name_or_path: str | None = None
    first_layer: int = 0
    attention: str = "own"

    @property
    def version(self) -> int:
        """The first version of the format that can say this."""
        if any(signal.residual for signal in self.signals):
            return 3
        is_first = self.initialization != "probe" and self.attention == "own"
        return 1 if is_first and not self.first_layer else 2

    def to_json(self) -> dict[str, Any]:
        """The content of ``otter_config.json``."""
        fields = dataclasses.asdict(self)
        signals = []
        for signal in self.signals:
            entry: dict[str, Any] = {
                "name": signal.name,
                "kind": signal.kind,
                "activation": signal.activation,
                # What is no pair is for the reader to refuse.
                "bounds": list(bounds) if isinstance(bounds := signal.bounds, tuple) else bounds,
            }
            if kind_of(signal).has_heads:
                entry["heads"] = signal.heads
            if signal.draft_vocab is not None:
                entry["draft_vocab"] = signal.draft_vocab
            if signal.residual:
                entry["residual"] = True
            signals.append(entry)
        base = fields.pop("base_model_name_or_path")
        if self.version == 1:
            del fields["first_layer"], fields["attention"]
        return {
            "format": FORMAT,
            "version": self.version,
            "base_model_name_or_path": base,
            **fields,
            "signals": signals,
        }

    @classmethod
    def from_json(cls, data: object, source: str = FILE_NAME) -> OtterConfig:
        """Validate parsed JSON; every problem is reported at once.

        Raises:
            ConfigError: Names ``source`` and lists what is wrong.
        """
        reader = _Reader(data, source)
        version = reader.header()
        widths = {
            name: reader.integer(name)
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
            )
        }
        embedding = reader.choice("embedding", EMBEDDINGS, "projection")
        initialization = reader.choice("initialization", INITIALIZATIONS, "copy")
        base = reader.fields.pop("base_model_name_or_path", None)
        if base is not None and (not isinstance(base, str) or not base):
            reader.problem("base_model_name_or_path must be a path, a hub id or null")
            base = None
        signals = reader.signals(version)
        first_layer, attention = reader.shape(embedding) if version > 1 else (0, "own")
        reader.leftovers()
        heads, key_values = widths["num_attention_heads"], widths["num_key_value_heads"]
        if key_values and heads % key_values:
            reader.problem(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {key_values}"
            )
        reader.finish()
        return cls(
            **widths,
            embedding=embedding,
            initialization=initialization,
            signals=signals,
            base_model_name_or_path=base,
            first_layer=first_layer,
            attention=attention,
        )

    @classmethod
    def load(cls, directory: Path) -> OtterConfig:
        """Read ``directory/otter_config.json``."""
        return cls.from_json(read_json(directory / FILE_NAME), str(directory / FILE_NAME))


def read_json(path: Path, limit_bytes: int = 32 << 20) -> Any:
    """Parse a JSON file.

    Raises:
        ConfigError: The file is missing, no regular file, larger than ``limit_bytes``, not JSON,
            or nested without reason.
    """
    try:
        content = read_regular(path, limit_bytes, ConfigError)
        check_fetched(content)
        value = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from None
    if _is_deep(value):
        raise ConfigError(f"{path} nests more than {_MAX_DEPTH} lists and objects in each other")
    return value


def _is_deep(value: Any) -> bool:
    """Whether a JSON value is nested so deep that who walks it may run out of stack."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return False
    return True


def check_fetched(start: bytes) -> None:
    """Refuse the pointer that Git LFS leaves in place of a file that was not fetched.

    Args:
        start: First bytes of the file, 64 or more.

    Raises:
        ValueError: It is such a pointer.
    """
    if start.startswith(_LFS_POINTER):
        raise ValueError("it is a Git LFS pointer; fetch the file itself with: git lfs pull")


class _Reader:
    """Collects the problems of one ``otter_config.json``."""

    def __init__(self, data: object, source: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{source}: expected a JSON object, got {type(data).__name__}")
        self.fields: dict[str, Any] = dict(data)
        self.source = source
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def header(self) -> int:
        """The version, after the format; a foreign file gets this one error and no other."""
        found = self.fields.pop("format", None)
        if found != FORMAT:
            raise ConfigError(f"{self.source}: format is {quoted(found)}, expected {FORMAT!r}")
        version = self.fields.pop("version", None)
        if type(version) is not int or version not in VERSIONS:
            raise ConfigError(
                f"{self.source}: version {quoted(version)} is not known; this release reads "
                f"versions {VERSIONS[0]} to {VERSIONS[-1]}. Upgrade otter-export, or write the "
                "checkpoint again"
            )
        return version

    def shape(self, embedding: str) -> tuple[int, str]:
        """What version 2 adds: where the channel begins, and whose attention it reads."""
        first = self.fields.pop("first_layer", 0)
        if type(first) is not int or not 0 <= first <= MAX_LAYERS:
            self.problem(
                f"first_layer must be an integer from 0 to {MAX_LAYERS}, got {quoted(first)}"
            )
            first = 0
        if first and embedding == "table":
            self.problem(
                f"embedding 'table' needs first_layer 0, got {first}: a channel that begins inside "
                "the base reads its state"
            )
        return first, self.choice("attention", ATTENTIONS, "own")

    def integer(self, name: str) -> int:
        value = self.fields.pop(name, None)
        if type(value) is not int or not 0 < value <= MAX_WIDTH:
            self.problem(f"{name} must be an integer from 1 to {MAX_WIDTH}, got {quoted(value)}")
            return 0
        return value

    def choice(self, name: str, accepted: tuple[str, ...], default: str) -> str:
        value = self.fields.pop(name, default)
        if not isinstance(value, str) or value not in accepted:
            self.problem(f"{name} is {quoted(value)}; accepted: {', '.join(accepted)}")
        return value if isinstance(value, str) else default

    def signals(self, version: int) -> tuple[Signal, ...]:
        entries = self.fields.pop("signals", None)
        if not isinstance(entries, list) or not entries:
            self.problem("signals must be a list of at least one signal")
            return ()
        signals = [self._signal(i, entry, version) for i, entry in enumerate(entries)]
        names = [s.name for s in signals]
        for name in sorted({n for n in names if names.count(n) > 1}):
            self.problem(f"two signals are named {quoted(name)}")
        return tuple(signals)

    def _signal(self, index: int, entry: object, version: int) -> Signal:
        where = f"signals[{index}]"
        if not isinstance(entry, dict):
            self.problem(f"{where} must be an object")
            return Signal("invalid")
        entry = dict(entry)
        name = entry.pop("name", None)
        if not isinstance(name, str) or not _SIGNAL_NAME.fullmatch(name):
            self.problem(f"{where}.name must match {_SIGNAL_NAME.pattern}, got {quoted(name)}")
            name = "invalid"
        if name in RESERVED_NAMES:
            self.problem(
                f"{where}.name {quoted(name)} is reserved; reserved: {', '.join(RESERVED_NAMES)}"
            )
        kind = entry.pop("kind", None)
        if kind not in SIGNALS:
            self.problem(f"{where}.kind is {quoted(kind)}; accepted: {', '.join(SIGNALS)}")
            kind = "value"
        known = SIGNALS.load(kind)
        activation = entry.pop("activation", "identity")
        if not isinstance(activation, str) or activation not in known.activations:
            self.problem(
                f"{where}.activation is {quoted(activation)}; accepted for {kind}: "
                f"{', '.join(known.activations)}"
            )
            activation = "identity"
        bounds = self._bounds(where, activation, entry.pop("bounds", None))
        heads = entry.pop("heads", 1)
        if type(heads) is not int or not 1 <= heads <= (_MAX_HEADS if known.has_heads else 1):
            most = f"an integer from 1 to {_MAX_HEADS}" if known.has_heads else f"1 for {kind}"
            self.problem(f"{where}.heads must be {most}, got {quoted(heads)}")
            heads = 1
        drafted = entry.pop("draft_vocab", None) if known.drafts else None
        if drafted is not None and (type(drafted) is not int or not 0 < drafted <= MAX_WIDTH):
            self.problem(
                f"{where}.draft_vocab must be an integer from 1 to {MAX_WIDTH}, "
                f"got {quoted(drafted)}"
            )
            drafted = None
        residual = entry.pop("residual", False) if known.drafts and version > 2 else False
        if type(residual) is not bool:
            self.problem(f"{where}.residual must be true or false, got {quoted(residual)}")
            residual = False
        for unknown in sorted(entry):
            self.problem(f"{where} has an unknown field {quoted(unknown)}")
        return Signal(name, kind, activation, bounds, heads, drafted, residual)

    def _bounds(self, where: str, activation: str, bounds: object) -> tuple[float, float] | None:
        if bounds is None:
            return None
        numbers = bounds if isinstance(bounds, list) else []
        finite = all(type(v) in (int, float) and abs(v) <= _MAX_BOUND for v in numbers)
        if len(numbers) != 2 or not finite or not numbers[0] < numbers[1]:
            self.problem(f"{where}.bounds must be null or [low, high], got {quoted(bounds)}")
            return None
        low, high = float(numbers[0]), float(numbers[1])
        guaranteed = ACTIVATION_BOUNDS[activation]
        if guaranteed is None or low > guaranteed[0] or high < guaranteed[1]:
            # Exact pruning trusts the bounds, so bounds that the activation can leave are an error.
            self.problem(
                f"{where}.bounds {bounds} are not guaranteed by activation {quoted(activation)}, "
                f"which gives {'no bounds' if guaranteed is None else list(guaranteed)}"
            )
        return (low, high)

    def leftovers(self) -> None:
        for name in sorted(self.fields):
            self.problem(f"unknown field {quoted(name)}")

    def finish(self) -> None:
        if self.problems:
            raise ConfigError(f"{self.source}: " + "; ".join(self.problems))
