"""`score`: rewards of texts that are there already, at the speed of a prompt.

A text is a prompt that is fed and not continued: the scheduler batches it with others of its
length, and its rows have the rewards that decoding would report for the same tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from otter_export.arguments import integer
from otter_export.errors import OtterError, RequestError
from otter_export.quoting import quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.engine import Engine, Tokenizer
from otter_export.runtime.generation import stream
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.prompt_ids import text_ids
from otter_export.runtime.request import PromptRewards, Request, Result
from otter_export.signals import kind_of

#: Texts that have a place in the caches at a time; those of similar length share a pass.
BATCH_SIZE = 64
#: Text or token ids.
Text = str | Sequence[int]
#: What a response follows.
Prompt = Text | Chat


@dataclasses.dataclass(frozen=True)
class StepScore:
    """A step of a response: what a separator ends, or the rest.

    Args:
        text: Its text, the separator included.
        end: Tokens of the response up to its end: it ends with token ``end - 1``.
        reward: The reward at its end.
        signals: Values of all signals there, by name.
    """

    text: str
    end: int
    reward: float | None
    signals: Mapping[str, float | None] = dataclasses.field(hash=False)


@dataclasses.dataclass(frozen=True)
class Score:
    """The rewards of one response.

    Args:
        index: Of the text.
        prompt_ids: Tokens before the response.
        token_ids: Tokens of the response.
        rewards: The first signal's, one a token of the response; None for a text's first token
            where the signal scores a token by the row before it.
        signals: Values of every signal, one a token, by name.
        steps: With a separator: the steps of the response.
    """

    index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    rewards: tuple[float | None, ...]
    signals: Mapping[str, tuple[float | None, ...]] = dataclasses.field(hash=False)
    steps: tuple[StepScore, ...] | None = None

    @property
    def reward(self) -> float | None:
        """The reward at the end."""
        return self.rewards[-1]

    def to_json(self) -> dict[str, Any]:
        """One line of ``otter-export score --json``.

        ``signals`` are there only if there are several, ``steps`` only with a separator.
        """
        fields = dataclasses.asdict(self)
        del fields["index"]
        several = len(self.signals) > 1
        if not several:
            del fields["signals"]
        if self.steps is None:
            del fields["steps"]
        elif not several:
            for step in fields["steps"]:
                del step["signals"]
        return {"reward": self.reward, **fields}


def score(
    engine: Engine,
    texts: Sequence[Text | tuple[Prompt, Text]],
    *,
    signals: Sequence[str] | None = None,
    separator: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Score]:
    """Rewards of responses, in their order, each as soon as those before it are there.

    A ``value`` signal scores the text up to a token, a ``q_value`` signal the token behind the text
    before it, and an ``expert`` signal gives the token's difference of offsets, ``o+ - o-``.

    >>> from otter_export import load_engine, score
    >>> engine = load_engine("smollm2-engine")                                  # doctest: +SKIP
    >>> for scored in score(engine, [("The film was", " a delight.")]):         # doctest: +SKIP
    ...     print(scored.reward, scored.rewards)

    Args:
        engine: From `load_engine`.
        texts: Responses, or pairs of prompt and response; text or token ids, and a prompt may be a
            `Chat`. They are tokenized apart, as in training and as they are at generation.
        signals: Which ones; None: all that score tokens. The first is the reward.
        separator: Also give the rewards at the ends of steps, each of which this text ends.
        batch_size: Most texts that are in work at a time.

    Returns:
        An iterator; the arguments are checked at once.

    Raises:
        RequestError: A text or an option is not valid; nothing was scored.
        EngineError: The engine has no such signal, or fails.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise RequestError(f"texts must be a sequence of texts, got {quoted(texts)}")
    check_separator(separator)
    size = integer("batch_size", batch_size, least=1)
    method = ArgsGreedy(top_k=1, weights=dict.fromkeys(_names(engine, signals), 1.0))
    requests = []
    for number, text in enumerate(texts, 1):
        try:
            requests.append(_request(engine, text, method))
        except OtterError as error:
            raise RequestError(f"text {number} of {len(texts)}: {error}") from None
    items = stream(engine, requests, batch_size=size) if requests else iter(())

    def scores() -> Iterator[Score]:
        waiting: dict[int, Score] = {}
        following = 0
        for item in items:
            if not isinstance(item, Result) or item.prompt_rewards is None:
                continue
            first = requests[item.request].rewards_from or 0
            waiting[item.request] = _score(
                item, item.prompt_rewards, first, engine.tokenizer, separator
            )
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    return scores()


def check_separator(separator: object) -> None:
    """Raise `RequestError` if it is neither None nor a text that can end a step."""
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise RequestError(
            f"separator must be a text of at least one character, got {quoted(separator)}"
        )


def _names(engine: Engine, signals: Sequence[str] | None) -> list[str]:
    """Names of the signals to read.

    Raises:
        RequestError: There are none.
    """
    if signals is not None:
        if isinstance(signals, str) or not signals:
            raise RequestError(f"signals must be names of signals, got {quoted(signals)}")
        return list(signals)
    names = [s.name for s in engine.manifest.signals if kind_of(s).scores]
    if not names:
        kinds = ", ".join(f"{s.name} ({s.kind})" for s in engine.manifest.signals)
        raise RequestError(f"the engine has no signal that scores tokens; its signals: {kinds}")
    return names


def _request(engine: Engine, text: Text | tuple[Prompt, Text], method: ArgsGreedy) -> Request:
    """A prompt that is fed and not continued, whose response is scored."""
    prompt: Any = ""
    response: Any = text
    if isinstance(text, tuple) and len(text) == 2 and not _is_ids(text):
        prompt, response = text
    # Both by a request's rules.
    prompt, response = Request(prompt).prompt, Request(response).prompt
    if isinstance(response, Chat):
        raise RequestError("a response is text or token ids; a chat is a prompt")
    if isinstance(prompt, Chat):
        head = prompt.token_ids(engine.tokenizer)
    else:
        head = text_ids(prompt, engine) if isinstance(prompt, str) else list(prompt)
    if isinstance(response, str):
        tail = engine.tokenizer.encode(response, add_special_tokens=False)
        # What the tokenizer puts before a text comes once, also if it is written.
        if head and not prompt and tail[: len(head)] == head:
            tail = tail[len(head) :]
    else:
        tail = list(response)
    if not tail:
        raise RequestError("the response has no tokens")
    return Request([*head, *tail], method, max_tokens=0, rewards_from=len(head))


def _is_ids(text: object) -> bool:
    return isinstance(text, tuple) and all(isinstance(t, int | np.integer) for t in text)


def _score(
    result: Result,
    found: PromptRewards,
    first: int,
    tokenizer: Tokenizer,
    separator: str | None,
) -> Score:
    ids = result.prompt_ids[first:]
    steps = None
    if separator is not None:
        steps = tuple(
            StepScore(
                text,
                end,
                found.rewards[end - 1],
                {name: values[end - 1] for name, values in found.signals.items()},
            )
            for text, end in step_ends(ids, tokenizer, separator)
        )
    return Score(
        result.request, result.prompt_ids[:first], ids, found.rewards, found.signals, steps
    )


def step_ends(ids: Sequence[int], tokenizer: Tokenizer, separator: str) -> list[tuple[str, int]]:
    """Where the steps of a response end: the text of each, and how many tokens end with it.

    A step ends with the token that completes a separator; where that token goes on behind it, so
    does the step's row, not its text. What is left at the end is a step, unless it is blank.

    Args:
        ids: Tokens of the response.
        tokenizer: Theirs; special tokens can be separators.
        separator: A text of at least one character.
    """

    def text(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=False)

    whole = text(len(ids))
    pieces = whole.split(separator)
    steps: list[tuple[str, int]] = []
    begin = 0
    for number, piece in enumerate(pieces[:-1], 1):
        low, high = max(begin, 1), len(ids)
        while low < high:
            middle = (low + high) // 2
            if text(middle).count(separator) >= number:
                high = middle
            else:
                low = middle + 1
        steps.append((piece + separator, low))
        begin = low
    if pieces[-1].strip():
        steps.append((pieces[-1], len(ids)))
    return steps
