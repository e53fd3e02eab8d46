"""Bad parameters are refused where a request is admitted: over HTTP with status 400.

vLLM asks an engine's logits processors for that, so this is one that changes nothing. It has to
know the model's signals, and travels to vLLM's processes as the name of a class: so the name holds
them, and the class is made from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor

from otter_export.errors import RequestError
from otter_export.plugins.vllm.guidance import Guidance
from otter_export.signals import Signal

_PREFIX = "Admission_"


class Admission(LogitsProcessor):  # type: ignore[misc]
    """Changes no logits."""

    #: Those of the engine's model.
    signals: tuple[Signal, ...]
    #: Most candidates that the engine scores; 0 where it was not started for that.
    candidates: int

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse entries of `Guidance` that are none.

        Raises:
            ValueError: Says what was given, and what is accepted.
        """
        try:
            guidance = Guidance.of(sampling_params.extra_args)
            guidance.check(cls.signals, cls.candidates)
            wanted = sampling_params.logprobs
            if guidance.rewards and (not wanted or wanted < 1):
                raise RequestError(
                    "otter_rewards come among the logprobs: set logprobs to 1 or more, as "
                    "otter_export.plugins.vllm.rewards.guided does"
                )
        except RequestError as error:
            raise ValueError(str(error)) from None

    def is_argmax_invariant(self) -> bool:
        """It is."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """It has none."""

    def apply(self, logits: Any) -> Any:
        """As they are."""
        return logits


def admission_name(signals: Sequence[Signal], candidates: int) -> str:
    """The import path of the processor for an engine.

    Args:
        signals: Its model's.
        candidates: The most that it scores.
    """
    content = {"signals": [[s.name, s.kind] for s in signals], "candidates": candidates}
    return f"{__name__}:{_PREFIX}{json.dumps(content).encode().hex()}"


def is_admission(name: object) -> bool:
    """Whether an entry of vLLM's ``logits_processors`` is such a path."""
    return isinstance(name, str) and name.startswith(f"{__name__}:{_PREFIX}")


def __getattr__(name: str) -> type[Admission]:
    if not name.startswith(_PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    content = json.loads(bytes.fromhex(name.removeprefix(_PREFIX)))
    signals = tuple(Signal(signal, kind) for signal, kind in content["signals"])
    return type(name, (Admission,), {"signals": signals, "candidates": content["candidates"]})
