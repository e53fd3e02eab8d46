"""otter-export: deploy Otter models, a base LLM and a reward from the same forward pass.

    from otter_export import ArgsGreedy, generate, load_engine

    engine = load_engine("smollm2-engine")
    result = generate(engine, "The film was", ArgsGreedy(top_k=8, weight=4.0), max_tokens=40)[0]
    print(result.text, result.rewards)

The names below are imported when they are first used, so that importing the package stays cheap.
Importing it also opts out of the telemetry of the libraries that it uses, before any of them is
imported: they look at the environment once, and then it is too late.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otter_export.evaluation.evaluate import evaluate
    from otter_export.load import load_engine
    from otter_export.runtime.best_of import best_of
    from otter_export.runtime.chat import Chat, Message
    from otter_export.runtime.conversation import Conversation
    from otter_export.runtime.generation import generate, stream
    from otter_export.runtime.methods.args_greedy import ArgsGreedy
    from otter_export.runtime.methods.args_stochastic import ArgsStochastic
    from otter_export.runtime.methods.experts import Experts
    from otter_export.runtime.methods.plain import Plain
    from otter_export.runtime.penalties import Penalties
    from otter_export.runtime.request import (
        Candidate,
        PromptRewards,
        Request,
        Result,
        TokenEvent,
    )
    from otter_export.runtime.scoring import Score, StepScore, score
    from otter_export.runtime.segment_rejection import SegmentRejection, segment_rejection

__version__ = "0.1.0"

#: Set to 1; an environment that has one of them keeps its own value.
_NO_TELEMETRY = (
    "ORT_DISABLE_TELEMETRY",  # ONNX Runtime: a device id in HOME, and events to its vendor
    "HF_HUB_DISABLE_TELEMETRY",  # huggingface_hub and transformers: versions in every request
    "TRTLLM_NO_USAGE_STATS",  # TensorRT-LLM 1.3 and later: usage reports
)
for _variable in _NO_TELEMETRY:
    os.environ.setdefault(_variable, "1")

__all__ = [
    "ArgsGreedy",
    "ArgsStochastic",
    "Candidate",
    "Chat",
    "Conversation",
    "Experts",
    "Message",
    "Penalties",
    "Plain",
    "PromptRewards",
    "Request",
    "Result",
    "Score",
    "SegmentRejection",
    "StepScore",
    "TokenEvent",
    "best_of",
    "evaluate",
    "generate",
    "load_engine",
    "score",
    "segment_rejection",
    "stream",
]

_MODULES = {
    "ArgsGreedy": "otter_export.runtime.methods.args_greedy",
    "ArgsStochastic": "otter_export.runtime.methods.args_stochastic",
    "Candidate": "otter_export.runtime.request",
    "Chat": "otter_export.runtime.chat",
    "Conversation": "otter_export.runtime.conversation",
    "Experts": "otter_export.runtime.methods.experts",
    "Message": "otter_export.runtime.chat",
    "Penalties": "otter_export.runtime.penalties",
    "Plain": "otter_export.runtime.methods.plain",
    "PromptRewards": "otter_export.runtime.request",
    "Request": "otter_export.runtime.request",
    "Result": "otter_export.runtime.request",
    "Score": "otter_export.runtime.scoring",
    "SegmentRejection": "otter_export.runtime.segment_rejection",
    "StepScore": "otter_export.runtime.scoring",
    "TokenEvent": "otter_export.runtime.request",
    "best_of": "otter_export.runtime.best_of",
    "evaluate": "otter_export.evaluation.evaluate",
    "generate": "otter_export.runtime.generation",
    "load_engine": "otter_export.load",
    "score": "otter_export.runtime.scoring",
    "segment_rejection": "otter_export.runtime.segment_rejection",
    "stream": "otter_export.runtime.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
