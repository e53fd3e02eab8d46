"""The text of ``otter-export generate``, as people see it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
import numpy as np

from otter_export.runtime.request import Result, TokenEvent

_LOW, _MIDDLE, _HIGH = (215, 48, 39), (200, 200, 200), (26, 152, 80)


class TextView:
    """Prints the texts of several requests one after the other, each as early as possible.

    The first unfinished request is shown live; what comes for later ones waits for its turn.

    Args:
        prompts: Text of each prompt.
        bounds: Rewards that are shown as quite bad and quite good.
        live: Show tokens as they come; otherwise a text appears when it is complete.
    """

    def __init__(self, prompts: Sequence[str], bounds: tuple[float, float], live: bool) -> None:
        self._prompts = prompts
        self._bounds = bounds
        self._live = live
        self._color = shows_colors()
        self._current = 0
        self._waiting: list[list[str]] = [[] for _ in prompts]
        self._results: dict[int, Result] = {}
        self._announce()

    def token(self, event: TokenEvent) -> None:
        """Take a token."""
        self._waiting[event.request].append(self._styled(event.text, event.reward))
        if event.request == self._current and self._live:
            self._flush()

    def finished(self, result: Result) -> None:
        """Take the end of a request."""
        self._results[result.request] = result
        while self._current in self._results:
            self._flush()
            click.echo("\n" + summary([self._results[self._current]]))
            self._current += 1
            self._announce()
            if self._live and self._current < len(self._prompts):
                self._flush()

    def _announce(self) -> None:
        if self._current < len(self._prompts):
            gap = "\n" if self._current else ""
            prompt = self._prompts[self._current]
            shown = click.style(prompt, dim=True) if self._color else prompt
            click.echo(gap + shown, nl=False)

    def _flush(self) -> None:
        click.echo("".join(self._waiting[self._current]), nl=False)
        self._waiting[self._current].clear()

    def _styled(self, text: str, reward: float | None) -> str:
        return styled(text, reward, self._bounds) if self._color else text


def shows_colors() -> bool:
    """Whether standard output is a terminal whose user wants colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def styled(text: str, reward: float | None, bounds: tuple[float, float]) -> str:
    """A text in the colour of its reward."""
    return (
        text if not text or reward is None else click.style(text, fg=reward_color(reward, bounds))
    )


def reward_color(reward: float, bounds: tuple[float, float]) -> tuple[int, int, int]:
    """Red, green, blue: red at the lower bound, grey in the middle, green at the upper one."""
    low, high = bounds
    place = 2 * (min(max(reward, low), high) - low) / (high - low) - 1
    end = np.array(_HIGH if place > 0 else _LOW)
    mixed = np.array(_MIDDLE) + abs(place) * (end - np.array(_MIDDLE))
    red, green, blue = (int(v) for v in mixed.round())
    return red, green, blue


def summary(results: Sequence[Result], seconds: float | None = None) -> str:
    """One line: mean reward if there is one, tokens, why it ended, speed, forwards per token.

    Args:
        results: Finished requests, at least one.
        seconds: Wall time of all of them; None adds up their own.
    """
    tokens = sum(len(r.token_ids) for r in results)
    rewards = [reward for r in results for reward in r.rewards]
    mean = f"mean reward {sum(rewards) / len(rewards):+.3f}, " if rewards else ""
    seconds = sum(r.seconds for r in results) if seconds is None else seconds
    forwards = sum(r.forwards for r in results) / max(tokens, 1)
    what = f"{len(results)} prompts, " if len(results) > 1 else ""
    end = f" ({results[0].finish_reason})" if len(results) == 1 else ""
    return (
        f"[{what}{mean}{tokens} tokens{end}, {tokens / seconds:.1f} tokens/s, "
        f"{forwards:.2f} forwards per token]"
    )
