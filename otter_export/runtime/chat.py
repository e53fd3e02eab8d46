"""`Chat`: the messages of a conversation as a prompt, for the model's chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from otter_export.arguments import keep
from otter_export.errors import RequestError
from otter_export.quoting import listed, quoted
from otter_export.runtime.engine import Tokenizer

USER, SYSTEM, ASSISTANT = "user", "system", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
#: Characters of all messages: a tokenizer takes about 250 times as many bytes.
_MAX_TEXT = 4 << 20
_MAX_MESSAGES = 1 << 14


class Message(NamedTuple):
    """One message: who says it (`ROLES`), and what."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation that the model goes on with.

    >>> from otter_export import Chat, generate, load_engine
    >>> engine = load_engine("smollm2-engine")                                  # doctest: +SKIP
    >>> print(generate(engine, Chat.of("Name a colour."))[0].text)              # doctest: +SKIP

    Args:
        messages: `Message`, or ``{"role": ..., "content": ...}`` as in OpenAI's API; the last is
            the user's. Which other orders there may be is up to the model's template.

    Raises:
        RequestError: They are none, or one of them is wrong.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        given: object = self.messages
        if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not given:
            raise RequestError(f"messages must be a list of at least one, got {quoted(given)}")
        if len(given) > _MAX_MESSAGES:
            raise RequestError(f"there are {len(given)} messages; at most {_MAX_MESSAGES} are read")
        keep(self, messages=tuple(_message(i, one) for i, one in enumerate(given, 1)))
        size = sum(len(message.content) for message in self.messages)
        if size > _MAX_TEXT:
            raise RequestError(
                f"the messages have {size} characters together; at most {_MAX_TEXT} are read"
            )
        if self.messages[-1].role != USER:
            raise RequestError(
                f"the last message is of role {self.messages[-1].role}; end with one of role {USER}"
            )

    @classmethod
    def of(cls, text: str, system: str | None = None) -> Self:
        """A first message, behind a system prompt if there is one."""
        before = () if system is None else (Message(SYSTEM, system),)
        return cls((*before, Message(USER, text)))

    def token_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids of the text that the model's template makes of it.

        As in transformers, special tokens that are written out in a message count as such.

        Raises:
            RequestError: The model has no template, or its template refuses the messages.
            EngineError: The template cannot be read.
            MissingDependencyError: The extra ``chat`` is not installed.
        """
        template = tokenizer.chat_template
        if template is None:
            raise RequestError(
                "the model has no chat template, so it was trained on plain text; give it a "
                "prompt, or put its chat_template.jinja beside tokenizer.json"
            )
        text = template.render([message._asdict() for message in self.messages])
        return tokenizer.encode(text, add_special_tokens=False)


def _message(number: int, given: object) -> Message:
    """A message, checked.

    Args:
        number: Counted from 1, for messages.
        given: What the caller gave.
    """
    if isinstance(given, Message):
        given = given._asdict()
    if not isinstance(given, Mapping):
        raise RequestError(
            f'message {number} must be like {{"role": "user", "content": "..."}}, got '
            f"{quoted(given)}"
        )
    unknown = set(given) - set(Message._fields)
    if unknown:
        raise RequestError(f"message {number} has {listed(unknown)}; known are role and content")
    role, content = given.get("role"), given.get("content")
    if role not in ROLES:
        raise RequestError(
            f"message {number}: role must be one of {', '.join(ROLES)}, got {quoted(role)}"
        )
    if not isinstance(content, str):
        raise RequestError(f"message {number}: content must be text, got {quoted(content)}")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"message {number} is not valid Unicode: character {error.start} is half of a "
            "surrogate pair; give it as UTF-8"
        ) from None
    return Message(str(role), str(content))
