"""A drafter that knows what will come: most of its drafts are right, whatever the engine."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from unittest import mock

from otter_export import Request, generate
from otter_export.runtime.drafts.drafter import Draft, Drafter
from otter_export.runtime.drafts.tree import ROOT, TokenTree
from otter_export.runtime.engine import Engine, FloatArray
from otter_export.runtime.scheduler import sequence as sequence_file


class Knowing(Drafter):
    """Drafts what will come, with mistakes, as a chain or as a tree with other tokens in it."""

    def __init__(self, coming: Mapping[int, Sequence[int]], seed: int, always: bool) -> None:
        self.coming = dict(coming)
        self.random = random.Random(seed)
        self.always = always

    def draft(
        self,
        history: Sequence[int],
        token: int,
        signals: Mapping[str, FloatArray],
        most: int,
    ) -> Draft:
        right = list(self.coming.get(len(history) + 1, ()))
        if self.always:
            return Draft(TokenTree.chain(right[:most]))
        tokens: list[int] = []
        parents: list[int] = []
        last = ROOT
        for true in right[: self.random.randrange(8)]:
            for _ in range(self.random.randrange(3)):
                tokens.append(self.random.randrange(16))
                parents.append(self.random.randrange(ROOT, len(parents)))
            tokens.append(true if self.random.random() < 0.8 else self.random.randrange(16))
            parents.append(last)
            last = len(tokens) - 1
        return Draft(TokenTree(tuple(tokens), tuple(parents)))


def knowing(
    engine: Engine, request: Request, seed: int, *, always: bool = False
) -> mock._patch[object]:
    """A patch: requests with drafts know most of this request's text."""
    result = generate(engine, dataclasses.replace(request, drafts="none"))[0]
    ids = [*result.prompt_ids, *result.token_ids]
    coming = {place: ids[place:] for place in range(len(ids))}

    def make(name: str, engine: Engine) -> Drafter | None:
        return None if name == "none" else Knowing(coming, seed, always)

    return mock.patch.object(sequence_file, "make_drafter", make)
