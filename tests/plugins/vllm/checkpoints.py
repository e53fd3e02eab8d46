"""Tiny checkpoints that vLLM can run: its attention on CPUs takes heads of 32 and more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tests import built, tiny
from tests.families import bases

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
SIGNALS = (tiny.REWARD, tiny.NEXT, tiny.TONE)


def base_of(name: str, directory: Path, **overrides: Any) -> Path:
    """A random base of a case of tests/families."""
    cases = {case.name: case for case in bases.CASES}
    case = cases.get(name) or bases.Case(name, name)
    own = {k: v for k, v in case.config.items() if k not in SIZES}
    case = dataclasses.replace(case, config={**SIZES, **own, **overrides})
    return bases.write_base(case, directory)


def checkpoint_of(name: str, directory: Path, base: Path | None = None, **channel: Any) -> Path:
    """A random channel over such a base."""
    base = base or base_of(name, directory.with_name(f"{directory.name}-base"))
    # What a deep state gains would drown the base's logits, which tokens are compared by.
    built.checkpoint_over(base, directory, signals=SIGNALS, **{"heads": 2, **channel})
    return directory
