"""`TokenTree`: tokens that one step feeds for a sequence, each behind the one that it follows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from otter_export.runtime.engine import BoolArray, IntArray

#: The parent of tokens that follow what is in the cache.
ROOT = -1


@dataclasses.dataclass(frozen=True)
class TokenTree:
    """Token ids and their places; a part of its tokens from the first on is a tree too.

    Args:
        tokens: Token ids.
        parents: For each the index of the one that it follows, which is smaller; or `ROOT`.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    @classmethod
    def siblings(cls, tokens: Sequence[int]) -> TokenTree:
        """Candidates for one place."""
        return cls(tuple(tokens), (ROOT,) * len(tokens))

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> TokenTree:
        """Tokens that follow one another."""
        return cls(tuple(tokens), tuple(range(ROOT, len(tokens) - 1)))

    def __len__(self) -> int:
        """Tokens."""
        return len(self.tokens)

    def first(self, most: int) -> TokenTree:
        """The first tokens, at most so many."""
        return TokenTree(self.tokens[:most], self.parents[:most])

    def graft(self, tree: TokenTree, parent: int) -> TokenTree:
        """This tree, and behind its token ``parent`` another one."""
        moved = (parent if p == ROOT else p + len(self) for p in tree.parents)
        return TokenTree(self.tokens + tree.tokens, (*self.parents, *moved))

    def children(self, parent: int) -> dict[int, int]:
        """The tokens that follow a parent, and where they are."""
        return {t: i for i, t in enumerate(self.tokens) if self.parents[i] == parent}

    @property
    def deep(self) -> bool:
        """Whether a token follows another one of the tree."""
        return any(parent != ROOT for parent in self.parents)

    @property
    def depths(self) -> IntArray:
        """``[c]``: tokens of the tree before each."""
        return _shape(self.parents)[0]

    @property
    def seen(self) -> BoolArray:
        """``[c, c]``: each token sees itself and those that it follows."""
        return _shape(self.parents)[1]


@functools.lru_cache(maxsize=1024)
def _shape(parents: tuple[int, ...]) -> tuple[IntArray, BoolArray]:
    """Depths and what is seen, read-only as what is cached must be."""
    seen = np.eye(len(parents), dtype=np.bool_)
    for i, parent in enumerate(parents):
        if parent != ROOT:
            seen[i] |= seen[parent]
    depths = seen.sum(axis=1, dtype=np.int64) - 1
    depths.flags.writeable = seen.flags.writeable = False
    return depths, seen
