"""`Conversation`: a chat in turns, of which each feeds only what is new.

The cache of one turn is kept for the next. What the template makes of the whole chat is compared
with the tokens in it, token by token: up to the first that differs the rows stay, behind it they
are fed. So a turn gives what it would give as one prompt, also where a template writes the past
anew, or where an answer's text has other tokens than the model chose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from otter_export.errors import RequestError
from otter_export.quoting import quoted
from otter_export.runtime.chat import ASSISTANT, SYSTEM, USER, Chat, Message
from otter_export.runtime.engine import Cache, Engine, Step
from otter_export.runtime.prefill import CHUNK_TOKENS, feed
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.runtime.scheduler.decode import Decoder
from otter_export.runtime.scheduler.sequence import Sequence


class Conversation:
    """A chat with a model; see `otter-export chat` for one in a terminal.

    >>> from otter_export import Conversation, load_engine
    >>> conversation = Conversation(load_engine("smollm2-engine"))              # doctest: +SKIP
    >>> print(conversation.say("Name a colour.").text)                          # doctest: +SKIP
    >>> print(conversation.say("And another.").text)                            # doctest: +SKIP

    Args:
        engine: From `load_engine`; nothing else may use it during a turn.
        system: The system prompt; None is that of the model's template, if it has one.

    Attributes:
        messages: What was said so far; may be changed between turns.
        reused: Tokens of the last turn's prompt whose rows were there already.
        fed: Its other tokens.
    """

    def __init__(self, engine: Engine, system: str | None = None) -> None:
        self._engine = engine
        self.messages: list[Message] = []
        self.system = system
        self._cache = engine.new_cache(1)
        #: The tokens whose rows are in the cache.
        self._ids: list[int] = []
        self.reused = self.fed = 0

    @property
    def system(self) -> str | None:
        """The system prompt; may be set between turns, None leaves it to the model's template.

        Raises:
            RequestError: It is not valid.
        """
        return self.messages[0].content if self._has_system() else None

    @system.setter
    def system(self, text: str | None) -> None:
        first = [] if text is None else list(Chat.of("", text).messages[:1])
        self.messages = [*first, *self.messages[self._has_system() :]]

    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0].role == SYSTEM

    def say(self, text: str, options: Request | None = None) -> Result:
        """One turn; see `stream`."""
        *_, result = self.stream(text, options)
        assert isinstance(result, Result)  # it comes last
        return result

    def stream(self, text: str, options: Request | None = None) -> Iterator[TokenEvent | Result]:
        """One turn, yielding each token as it comes.

        Closing the iterator ends the turn; what the model had said by then is its answer.

        Args:
            text: What the user says.
            options: How to answer: a `Request` whose prompt does not matter; None is
                ``Request("")``. Its ``max_tokens`` are those of one answer.

        Returns:
            An iterator of `TokenEvent`, and at its end the `Result`.

        Raises:
            RequestError: An option is not valid, the chat is too long for the engine, or the model
                has no chat template. Nothing was said then.
            EngineError: The engine has no such signal, or fails.
        """
        options = Request("") if options is None else options
        if not isinstance(options, Request):
            raise RequestError(f"options must be a Request, got {quoted(options)}")
        options.check_generates("a conversation")
        chat = Chat((*self.messages, Message(USER, text)))
        turn = _Turn(0, dataclasses.replace(options, prompt=chat), self._engine)
        return self._answer(chat, turn)

    def _answer(self, chat: Chat, turn: _Turn) -> Iterator[TokenEvent | Result]:
        turn.start(self._cache, 0)
        turn.propose(self._feed(turn.prompt_ids), 0, row=0)
        decoder = Decoder(self._engine, separate=False)
        decoder.join([turn])
        said: list[str] = []
        try:
            while turn.finish_reason is None and turn.error is None:
                for event in decoder.step()[1]:
                    said.append(event.text)
                    yield event
        finally:
            if turn.error is None:
                self._keep(turn)
                self.messages = [*chat.messages, Message(ASSISTANT, "".join(said))]
        if turn.error is not None:
            raise turn.error
        yield turn.result()

    def _feed(self, prompt: list[int]) -> Step:
        """Feed what of a prompt is not in the cache, at least its last token."""
        pairs = zip(self._ids, prompt[:-1], strict=False)
        same = next((i for i, (own, new) in enumerate(pairs) if own != new), None)
        self.reused = min(len(self._ids), len(prompt) - 1) if same is None else same
        self.fed = len(prompt) - self.reused
        self._engine.truncate(self._cache, [self.reused])
        self._ids = prompt[: self.reused]
        for start in range(self.reused, len(prompt), CHUNK_TOKENS):
            part = prompt[start : start + CHUNK_TOKENS]
            step = feed(self._engine, self._cache, [part]).last
            self._ids += part
        return step

    def _keep(self, turn: _Turn) -> None:
        """Take over the rows of an answer, but for those of its last step."""
        if turn.rows is None:
            turn.keep_rows()  # it was ended between two steps
        if turn.rows is not None:
            self._cache, self._ids = turn.rows, [*turn.prompt_ids, *turn.kept_ids]


class _Turn(Sequence):
    """An answer that copies its rows before it leaves its batch.

    Attributes:
        rows: A cache of its own with its rows, once it ended.
        kept_ids: The tokens of the answer that have rows there.
    """

    rows: Cache | None = None
    kept_ids: tuple[int, ...] = ()

    def __init__(self, number: int, request: Request, engine: Engine) -> None:
        super().__init__(number, request, engine)
        self._engine = engine

    def advance(self, step: Step, b: int) -> tuple[list[TokenEvent], list[int]]:
        """As any sequence; at the end the rows of its earlier steps are copied."""
        events, rows = super().advance(step, b)
        if self.finish_reason is not None and self.error is None:
            self.keep_rows()
        return events, rows

    def keep_rows(self) -> None:
        """Copy the rows that are in its batch's cache now."""
        if self.cache is None:
            return
        self.rows = self._engine.new_cache(0)
        self._engine.append(self.rows, [(self.cache, self.cache_index)])
        rows = int(self.rows.lengths[0])
        self.kept_ids = tuple(self.token_ids[: rows - len(self.prompt_ids)])
