"""`Teacher`: a reward model or a process-reward model of transformers, which scores texts.

A sequence classifier scores the text that it is given, so every prefix is a text of its own. A
token classifier scores every token, so one pass gives the scores at all ends of a text.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otter_export.boundary import errors_as
from otter_export.config import read_json
from otter_export.errors import CheckpointError, ConfigError, RequestError
from otter_export.quoting import listed, one_line, quoted

_BY_TOKEN = "ForTokenClassification"
_BY_TEXT = "ForSequenceClassification"


@dataclasses.dataclass(frozen=True)
class Passage:
    """A response and where in it scores are wanted.

    Args:
        prompt: What it answers; may be empty.
        response: The response.
        ends: Characters of the response up to each place, ascending, at least one, none of them 0.
    """

    prompt: str
    response: str
    ends: tuple[int, ...]


class Teacher:
    """A classifier in a local directory; nothing in it is run.

    Args:
        directory: Where it is, with its tokenizer.
        label: The label whose probability is the score; None: it has one, whose score it is.
        chat: Whether prompt and response are a user's and an assistant's turn, by the template of
            its tokenizer; else the one follows the other.

    Attributes:
        cut: Texts so far that were longer than the model takes, and lost their beginning.

    Raises:
        CheckpointError: It is no classifier, or cannot be loaded.
        ConfigError: There is no such label, or no template.
    """

    def __init__(self, directory: Path, label: str | None = None, chat: bool = False) -> None:
        import transformers
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.getLogger("transformers").setLevel(logging.ERROR)
        config = read_json(directory / "config.json")
        names = config.get("architectures") if isinstance(config, dict) else None
        name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
        if not name.endswith((_BY_TOKEN, _BY_TEXT)):
            raise CheckpointError(
                f"{directory} is no teacher: its architecture is {quoted(name)}; a teacher is a "
                f"...{_BY_TEXT} (reward model) or ...{_BY_TOKEN} (process-reward model)"
            )
        self.by_token = name.endswith(_BY_TOKEN)
        kind: Any = (
            transformers.AutoModelForTokenClassification
            if self.by_token
            else transformers.AutoModelForSequenceClassification
        )
        local = {"local_files_only": True, "trust_remote_code": False}
        with errors_as(CheckpointError, f"transformers cannot load the teacher {directory}"):
            self._model = kind.from_pretrained(
                directory, use_safetensors=True, dtype=torch.float32, **local
            ).eval()
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, **local)
        if not self._tokenizer.is_fast:
            raise CheckpointError(f"{directory} has no fast tokenizer (tokenizer.json)")
        if chat and not self._tokenizer.chat_template:
            raise ConfigError(f"the tokenizer of {directory} has no chat template")
        self._chat = chat
        self._label = _label_number(directory, self._model.config, label)
        self._longest = int(getattr(self._model.config, "max_position_embeddings", 1 << 20))
        self.cut = 0

    def score(self, passages: Sequence[Passage]) -> list[tuple[float, ...]]:
        """Scores at the ends of each passage, all in one batch.

        Raises:
            RequestError: A text has no tokens, or a score is not finite.
        """
        if self.by_token:
            return self._score_tokens(passages)
        texts = [
            self._text(passage.prompt, passage.response[:end])
            for passage in passages
            for end in passage.ends
        ]
        logits = self._run([self._encode(text)[0] for text in texts])
        scores = iter(self._values(logits))
        return [tuple(next(scores) for _ in passage.ends) for passage in passages]

    def _score_tokens(self, passages: Sequence[Passage]) -> list[tuple[float, ...]]:
        texts = [self._text(passage.prompt, passage.response) for passage in passages]
        encoded = [self._encode(text) for text in texts]
        logits = self._run([ids for ids, _ in encoded])
        found = []
        for row, text, passage, (_, offsets) in zip(logits, texts, passages, encoded, strict=True):
            start = text.rfind(passage.response)
            if start < 0:
                raise RequestError(
                    "the chat template changes the response, so its steps cannot be found: "
                    f"{one_line(passage.response, 60)}"
                )
            places = [_token_at(offsets, start + end) for end in passage.ends]
            found.append(tuple(self._values(row[places])))
        return found

    def _text(self, prompt: str, response: str) -> str:
        if not self._chat:
            return prompt + response
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        with errors_as(ConfigError, "the teacher's chat template failed"):
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False))

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and the characters of each; of a long one the end."""
        # A template writes out what the tokenizer would add.
        made = self._tokenizer(
            text, return_offsets_mapping=True, add_special_tokens=not self._chat, verbose=False
        )
        ids, offsets = list(made["input_ids"]), list(made["offset_mapping"])
        if not ids:
            raise RequestError("a text has no tokens for the teacher")
        self.cut += len(ids) > self._longest
        return ids[-self._longest :], offsets[-self._longest :]

    @torch.no_grad()
    def _run(self, rows: Sequence[list[int]]) -> Tensor:
        """Logits of padded rows: ``[B, labels]``, or ``[B, S, labels]`` of a token classifier."""
        config, size = self._model.config, max(map(len, rows))
        own = config.pad_token_id
        # Without one of its own: a token that is in no text, since the last one that is another is
        # the end.
        used = {token for row in rows for token in row}
        pad = next(i for i in range(len(used) + 1) if i not in used) if own is None else own
        ids = torch.full((len(rows), size), pad)
        mask = torch.zeros((len(rows), size), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        config.pad_token_id = pad
        try:
            with errors_as(RequestError, "the teacher failed"):
                logits: Tensor = self._model(input_ids=ids, attention_mask=mask).logits
        finally:
            config.pad_token_id = own
        return logits.float()

    def _values(self, logits: Tensor) -> list[float]:
        """Scores from ``[n, labels]``."""
        values = logits[:, 0] if self._label is None else logits.softmax(-1)[:, self._label]
        if not torch.isfinite(values).all():
            raise RequestError("the teacher returned a score that is NaN or infinite")
        return [float(value) for value in values]


def _token_at(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """The token that has the character before ``end``; the first, if it was cut off."""
    covering = [i for i, (first, last) in enumerate(offsets) if first < end <= last]
    before = [i for i, (first, last) in enumerate(offsets) if first < last <= end]
    return (covering or before or [0])[-1]


def _label_number(directory: Path, config: Any, label: str | None) -> int | None:
    """Which label's probability is the score; None: there is one label."""
    names = [str(config.id2label.get(i, i)) for i in range(config.num_labels)]
    if label is None:
        if len(names) == 1:
            return None
        raise ConfigError(f"{directory} has {len(names)} labels; choose one: --label {names[-1]}")
    if label in names and len(names) > 1:
        return names.index(label)
    raise ConfigError(f"{directory} has no choice {quoted(label)}; its labels: {listed(names)}")
