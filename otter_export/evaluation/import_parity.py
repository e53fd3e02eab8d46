"""Parity of an imported head with its source, on the same texts, in transformers and torch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from otter_export.boundary import errors_as
from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, VerificationError
from otter_export.evaluation.prompts import PROMPTS
from otter_export.importing.plan import Import
from otter_export.importing.value_head import BIAS, WEIGHT
from otter_export.modeling.otter_model import load_base, load_reference
from otter_export.modeling.tokenization import load_tokenizer

#: Largest difference, in units of the largest score (of 1 if that is less): float32 sums of d
#: products in another order.
TOLERANCE = 1e-5
#: Tokens of a text; the source may score its end alone, so every text is scored at two ends.
_LONGEST = 48
#: ``[1, S]`` token ids to scores of some of their places: ``[n, ...]``, and which places.
_Scorer = Callable[[Tensor], tuple[Tensor, list[int]]]


@dataclasses.dataclass(frozen=True)
class ImportParity:
    """What a comparison found.

    Args:
        scores: Numbers that were compared.
        largest: The largest of them.
        difference: The largest difference.
    """

    scores: int
    largest: float
    difference: float

    def check(self) -> None:
        """Raise `VerificationError` if the scores are not equal."""
        if not self.difference <= TOLERANCE * max(self.largest, 1.0):
            raise VerificationError(
                f"the imported head differs from its source by {self.difference:.1e} (scores up to "
                f"{self.largest:.3g}); at most {TOLERANCE:g} of that is rounding"
            )


@torch.no_grad()
def import_parity(work: Import, directory: Path, texts: Sequence[str] = PROMPTS) -> ImportParity:
    """Score texts by the source and by the checkpoint in ``directory``.

    Raises:
        CheckpointError: transformers cannot load one of them.
    """
    checkpoint = Checkpoint.open(directory)
    reference = load_reference(checkpoint)
    theirs = _scorer(work)
    tokenizer = load_tokenizer(checkpoint.base.directory)
    count, scores, differences = 0, [], []
    for text in texts:
        whole = tokenizer.encode(text)[:_LONGEST]
        for ids in (whole, whole[: max(len(whole) // 2, 1)]):
            tokens = torch.tensor([ids])
            expected, places = theirs(tokens)
            output = reference(tokens, compute_logits=False).signals[work.head.signal.name]
            found = output[0, places]
            expected = _activated(work, expected)
            count += found.numel()
            scores.append(expected.abs().max())
            differences.append((found - expected).abs().max())
    # A NaN is the largest of any here, and then no parity; Python's own max would pass over it.
    largest, difference = (float(torch.stack(found).max()) for found in (scores, differences))
    return ImportParity(count, largest, difference)


def _activated(work: Import, scores: Tensor) -> Tensor:
    """What the user put behind the source's scores."""
    functions = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}
    chosen = functions.get(work.head.signal.activation)
    return scores if chosen is None else chosen(scores)


def _scorer(work: Import) -> _Scorer:
    """The source's own scores, by the classes that it was saved from."""
    if work.format.name == "classifier":
        return _classifier(work)
    model = load_base(work.base)
    heads = _value if work.format.name == "value-head" else _drafts

    def score(ids: Tensor) -> tuple[Tensor, list[int]]:
        state = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        return heads(work, state), list(range(ids.shape[1]))

    return score


def _tensor(work: Import, name: str) -> Tensor:
    return torch.from_numpy(work.source.tensors.float32(name).copy())


def _value(work: Import, state: Tensor) -> Tensor:
    """TRL's ``ValueHead`` in evaluation: a linear layer on the last hidden state."""
    weight = _tensor(work, WEIGHT)
    bias = _tensor(work, BIAS) if BIAS in work.source.tensors else None
    return functional.linear(state, weight, bias)[:, 0]


def _drafts(work: Import, state: Tensor) -> Tensor:
    """Medusa's heads, layer by layer, by the numbers in their names."""
    layers: dict[int, dict[int, str]] = {}
    for name in work.head.tensors:
        if name.endswith(".weight"):
            head, layer = (int(part) for part in name.split(".") if part.isdecimal())
            layers.setdefault(head, {})[layer] = name
    scores = []
    for _, own in sorted(layers.items()):
        h = state
        for _, name in sorted(own.items()):
            weight = _tensor(work, name)
            if ".linear." in name:
                bias = _tensor(work, name.replace("weight", "bias"))
                h = h + functional.silu(functional.linear(h, weight, bias))
            else:
                h = functional.linear(h, weight)
        scores.append(h)
    return torch.stack(scores, dim=1)


def _classifier(work: Import) -> _Scorer:
    """By the class of transformers that it is, from the source's directory."""
    import transformers

    by_token = work.source.architecture.endswith("ForTokenClassification")
    kind: Any = (
        transformers.AutoModelForTokenClassification
        if by_token
        else transformers.AutoModelForSequenceClassification
    )
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with errors_as(CheckpointError, f"transformers cannot load {work.source.path}"):
        model = kind.from_pretrained(
            work.source.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        ).eval()
    # A single text has no padding, even where it ends with that token.
    model.config.pad_token_id = None
    row = torch.tensor(work.head.labels)

    def score(ids: Tensor) -> tuple[Tensor, list[int]]:
        logits = model(input_ids=ids).logits[0]
        if by_token:
            return logits @ row, list(range(ids.shape[1]))
        return (logits @ row)[None], [ids.shape[1] - 1]

    return score
