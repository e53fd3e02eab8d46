"""Answers in OpenAI's forms, with the rewards in a field ``otter``."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from otter_export.runtime.engine import Tokenizer
from otter_export.runtime.request import PromptRewards, Result, TokenEvent


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to one call of ``/v1/completions``.

    Args:
        model: The model's name.
        tokenizer: For the texts of candidates.
        max_candidates: Most candidates per token to return; 0 returns none.
        call_id: The call's own name.
        created: Seconds of Unix's time.
    """

    model: str
    tokenizer: Tokenizer
    max_candidates: int
    call_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    prefix: ClassVar[str] = "cmpl"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    def token(self, event: TokenEvent, first: bool) -> dict[str, Any]:
        """One piece of a stream."""
        choice = {"index": 0, "logprobs": None, **self._delta(event.text, first)}
        choice["finish_reason"] = _reason(event.finish_reason)
        choice["otter"] = self._otter([event], event.finish_reason, event.prompt_rewards)
        return self._object(self.chunk_object, [choice])

    def nothing(self, result: Result) -> dict[str, Any]:
        """The one piece of a stream without tokens: rewards of the prompt."""
        choice = {"index": 0, "logprobs": None, **self._delta("", True)}
        choice["finish_reason"] = _reason(result.finish_reason)
        choice["otter"] = self._otter([], result.finish_reason, result.prompt_rewards)
        return self._object(self.chunk_object, [choice])

    def whole(self, events: Sequence[TokenEvent], result: Result) -> dict[str, Any]:
        """The one answer of a call that does not stream."""
        choice = {"index": 0, "logprobs": None, **self._message(result.text)}
        choice["finish_reason"] = _reason(result.finish_reason)
        choice["otter"] = self._otter(events, result.finish_reason, result.prompt_rewards)
        return self._object(self.whole_object, [choice]) | {"usage": usage(result)}

    def last(self, result: Result) -> dict[str, Any]:
        """The piece of a stream that has the numbers of tokens, and no text."""
        return self._object(self.chunk_object, []) | {"usage": usage(result)}

    def _delta(self, text: str, first: bool) -> dict[str, Any]:
        return {"text": text}

    def _message(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.call_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _otter(
        self, events: Sequence[TokenEvent], reason: str | None, scored: PromptRewards | None
    ) -> dict[str, Any]:
        """What OpenAI's form has no place for; lists have an entry a token.

        Args:
            events: The tokens.
            reason: Why the text ended, ``eos``, ``stop`` or ``length``; None: it did not.
            scored: Rewards of the prompt, where they were asked for.
        """
        fields: dict[str, Any] = {
            "token_ids": [event.token_id for event in events],
            "texts": [event.text for event in events],
            "rewards": [event.reward for event in events if event.reward is not None],
            "gated": [event.gated for event in events],
            "finish_reason": reason,
        }
        names = list(events[0].signals) if events else []
        if len(names) > 1:
            fields["signals"] = {n: [event.signals[n] for event in events] for n in names}
        if scored is not None:
            fields["prompt_rewards"] = scored.rewards
            if len(scored.signals) > 1:
                fields["prompt_signals"] = scored.signals
        if self.max_candidates:
            fields["candidates"] = [self._candidates(event) for event in events]
        return fields

    def _candidates(self, event: TokenEvent) -> list[dict[str, Any]]:
        return [
            {
                "token_id": candidate.token_id,
                "text": self.tokenizer.decode([candidate.token_id], skip_special_tokens=False),
                "logit": candidate.logit,
                "reward": candidate.reward,
                "score": candidate.score,
            }
            for candidate in event.candidates[: self.max_candidates]
        ]


@dataclasses.dataclass(frozen=True)
class ChatAnswers(Answers):
    """The answers to one call of ``/v1/chat/completions``."""

    prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def _delta(self, text: str, first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        return {"delta": {**role, "content": text}}

    def _message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


def usage(result: Result) -> dict[str, Any]:
    """The numbers of tokens."""
    prompt, generated = len(result.prompt_ids), len(result.token_ids)
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
    if result.drafted is not None and result.accepted is not None:
        counts["completion_tokens_details"] = {
            "accepted_prediction_tokens": result.accepted,
            "rejected_prediction_tokens": result.drafted - result.accepted,
        }
    return counts


def _reason(reason: str | None) -> str | None:
    """OpenAI has no word of its own for the end-of-sequence token."""
    return "stop" if reason == "eos" else reason
