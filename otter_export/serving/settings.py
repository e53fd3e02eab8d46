"""Settings of a served model: the ``parameters`` of its ``config.pbtxt``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from otter_export.arguments import choice, flag, integer, keep, number
from otter_export.errors import ConfigError
from otter_export.manifest import EngineManifest
from otter_export.quoting import nearest, quoted
from otter_export.runtime.load import PROVIDERS
from otter_export.runtime.methods import METHODS
from otter_export.runtime.scheduler import Limits

#: The method of requests that name none: by temperature, as clients expect it.
AUTO = "auto"
#: Settings for which 0 means "none".
_MAY_BE_ZERO = ("default_deadline_ms", "cache_tokens", "threads")
_TRUTH = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served.

    Args:
        max_batch_size: Most requests that are decoded together.
        max_queue: Most requests that wait; one more is refused at once.
        max_tokens: Most tokens that a request may ask for.
        default_max_tokens: For requests that do not say.
        max_candidates: Most candidates per token that a guided request may ask for.
        max_prompt_bytes: Longest text that is given to the tokenizer, in bytes of UTF-8.
        max_stop_words: Most stop words of a request.
        max_stop_bytes: Longest stop word, in bytes of UTF-8.
        default_method: A decoding method, or ``auto``: ``args-stochastic`` for requests with a
            temperature above 0 or a top_p below 1, else ``args-greedy``.
        default_top_k: Candidates of a guided request that does not say.
        default_reward_weight: Weight of a guided request that does not say.
        default_gate: Gate of a guided request that does not say, in nats; 0 for none.
        default_deadline_ms: Milliseconds for requests that do not say; 0 for none.
        prefill_tokens: Most prompt tokens of one forward pass.
        cache_tokens: Slots of the caches, all requests together; 0 for no limit but the others.
        threads: Of one forward pass on the CPU; 0 takes ``OMP_NUM_THREADS``, else every core.
        provider: ``cpu``, ``cuda``, or empty for the engine's own.
        log_requests: Whether every request gets a line in the log; errors always do.
        log_prompts: Whether that line has the prompt and the text.

    Raises:
        ConfigError: A setting is out of range.
    """

    max_batch_size: int = 16
    max_queue: int = 256
    max_tokens: int = 1024
    default_max_tokens: int = 64
    max_candidates: int = 64
    max_prompt_bytes: int = 1 << 20
    max_stop_words: int = 16
    max_stop_bytes: int = 256
    default_method: str = AUTO
    default_top_k: int = 8
    default_reward_weight: float = 1.0
    default_gate: float = 0.0
    default_deadline_ms: int = 0
    prefill_tokens: int = 256
    cache_tokens: int = 0
    threads: int = 0
    provider: str = ""
    log_requests: bool = True
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type == "int":
                least = 0 if name in _MAY_BE_ZERO else 1
                keep(self, **{name: integer(name, value, least=least, error=ConfigError)})
            elif field.type == "float":
                minimum = 0.0 if name == "default_gate" else -math.inf
                keep(self, **{name: number(name, value, minimum=minimum, error=ConfigError)})
            elif field.type == "bool":
                keep(self, **{name: flag(name, value, error=ConfigError)})
        choice("default_method", self.default_method, (AUTO, *METHODS), ConfigError)
        choice("provider", self.provider, ("", *PROVIDERS), ConfigError)
        for low, high in (
            ("default_max_tokens", "max_tokens"),
            ("default_top_k", "max_candidates"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"{low} is {getattr(self, low)}, above {high}, which is {getattr(self, high)}"
                )

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Settings:
        """Settings from the texts of a ``config.pbtxt``.

        Args:
            parameters: Those left out have their defaults. Names in capitals are Triton's own
                (``EXECUTION_ENV_PATH``) and are not looked at.

        Raises:
            ConfigError: A name is unknown, or a value is not of its type or out of range.
        """
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        own = {name: text for name, text in parameters.items() if not name.isupper()}
        unknown = sorted(set(own) - set(kinds))
        if unknown:
            near = nearest(unknown[0], kinds)
            hint = f"; did you mean {near}?" if near else f"; known: {', '.join(kinds)}"
            raise ConfigError(f"config.pbtxt has an unknown parameter {quoted(unknown[0])}{hint}")
        values: dict[str, Any] = {n: _read(n, kinds[n], text) for n, text in own.items()}
        return cls(**values)

    def to_parameters(self) -> dict[str, str]:
        """The texts that `from_parameters` reads."""
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in dataclasses.asdict(self).items()
        }

    def limits(self) -> Limits:
        """The part that is the scheduler's."""
        return Limits(
            max_batch_size=self.max_batch_size,
            max_queue=self.max_queue,
            max_tokens=self.max_tokens,
            max_candidates=self.max_candidates,
            prefill_tokens=self.prefill_tokens,
            cache_tokens=self.cache_tokens or None,
        )

    def fitted(self, manifest: EngineManifest) -> Settings:
        """The same with limits that the engine can keep: no more tokens than its sequences hold."""
        most = min(self.max_tokens, max(manifest.max_sequence_length - 1, 1))
        candidates = min(self.max_candidates, manifest.vocab_size)
        return dataclasses.replace(
            self,
            max_tokens=most,
            default_max_tokens=min(self.default_max_tokens, most),
            max_candidates=candidates,
            default_top_k=min(self.default_top_k, candidates),
        )


def _read(name: str, kind: str, text: str) -> int | float | bool | str:
    try:
        if kind == "bool":
            return _TRUTH[text.lower()]
        if kind in ("int", "float"):
            return int(text) if kind == "int" else float(text)
    except (KeyError, ValueError):
        expected = {"bool": "true or false", "int": "an integer", "float": "a number"}[kind]
        raise ConfigError(f"parameter {name} must be {expected}, got {quoted(text)}") from None
    return text
