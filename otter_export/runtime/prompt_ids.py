"""The token ids of a prompt, checked against an engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from otter_export.errors import RequestError
from otter_export.quoting import quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.engine import Engine

_LOG = logging.getLogger(__name__)


def prompt_ids(prompt: str | Sequence[int] | Chat, engine: Engine, *, generated: int) -> list[int]:
    """The prompt's token ids, checked: their number first, since that costs nothing.

    Args:
        prompt: Text, token ids, or a chat.
        engine: Its tokenizer and limits.
        generated: 1 where a token is to be generated behind it, else 0.

    Raises:
        RequestError: They are too many, none at all, or not in the vocabulary; or the model takes
            no such chat.
    """
    manifest = engine.manifest
    most = manifest.max_sequence_length - generated
    ids: Sequence[int]
    if isinstance(prompt, Chat):
        ids = prompt.token_ids(engine.tokenizer)
    else:
        ids = text_ids(prompt, engine) if isinstance(prompt, str) else prompt
    if len(ids) > most:
        room = " and one to generate" if generated else ""
        raise RequestError(
            f"the prompt has {len(ids)} tokens; the engine takes at most {most}{room}: shorten "
            "it, or build the engine with a larger --max-seq-len"
        )
    if not ids and manifest.bos_token_id is not None:
        ids = [manifest.bos_token_id]
    if not ids:
        raise RequestError(
            "the prompt is empty, and this model has no beginning-of-sequence token to start from; "
            "give at least one character"
        )
    outside = [token for token in ids if not 0 <= token < manifest.vocab_size]
    if outside:
        raise RequestError(
            f"the prompt has token id {quoted(outside[0])}; the engine's vocabulary is 0 to "
            f"{manifest.vocab_size - 1}"
        )
    return list(ids)


def text_ids(text: str, engine: Engine) -> list[int]:
    """Token ids of a text, with what the model's tokenizer puts around one.

    Where the text itself begins with the token that the tokenizer puts in front of every text, it
    comes once, as it did in the model's training.
    """
    tokenizer, bos = engine.tokenizer, engine.manifest.bos_token_id
    ids = tokenizer.encode(text)
    if bos is not None and ids[:2] == [bos, bos] and tokenizer.encode("")[:1] == [bos]:
        _LOG.warning(
            "the prompt begins with the beginning-of-sequence token, which the tokenizer adds too; "
            "it is used once"
        )
        return ids[1:]
    return ids
