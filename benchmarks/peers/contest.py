"""Competitors in turns: which process is asked for what, and on which prompts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.process import Peer
from benchmarks.record import in_turns

Prompts = Sequence[Sequence[int]]
#: Candidates per token, and the weight of the reward where nothing else is said.
TOP_K, WEIGHT = 8, 1.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """How all of it is measured.

    Args:
        rounds: How often each competitor is counted.
        tokens: Generated each time.
        threads: Of every library.
        genai, llama_cpp: Interpreters of environments that may have these peers.
        peers: Versions of those that are there, by module.
        report: Told what goes on.
    """

    rounds: int
    tokens: int
    threads: int
    genai: Path
    llama_cpp: Path
    peers: Mapping[str, str]
    report: Callable[[str], None] = print


@dataclasses.dataclass(frozen=True)
class Competitor:
    """One line of a table.

    Args:
        name: As the table has it.
        peer: Who is asked.
        options: Of the question.
    """

    name: str
    peer: Peer
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def contest(
    competitors: Sequence[Competitor], prompts: Prompts, setting: Setting, against: str
) -> list[dict[str, Any]]:
    """Milliseconds per token of each, on the same prompt in the same round.

    Args:
        competitors: All are loaded.
        prompts: Token ids; round after round takes the next one.
        setting: Rounds and tokens.
        against: The competitor whose time ratios divide by.

    Returns:
        Rows of `benchmarks.record.in_turns`.
    """

    def run(one: Competitor) -> Callable[[], float]:
        turns = itertools.cycle(prompts)

        def ask() -> float:
            answer = one.peer.ask(next(turns), setting.tokens, **one.options)
            return float(answer["milliseconds"])

        return ask

    _announce(competitors, prompts[0], setting)
    runs = {one.name: run(one) for one in competitors}
    return in_turns(runs, rounds=setting.rounds, against=against)


def _announce(competitors: Sequence[Competitor], prompt: Sequence[int], setting: Setting) -> None:
    """Say how long it will take, by two tokens of each."""
    each = [one.peer.ask(prompt, 2, **one.options)["milliseconds"] for one in competitors]
    seconds = sum(each) * setting.tokens * (1 + setting.rounds) / 1e3
    setting.report(f"{len(competitors)} competitors, about {1.2 * seconds:.0f} s and their prompts")


def percent(share: float) -> str:
    """A share as a table has it."""
    return f"{100 * share:.1f} %"
