"""Guided against unguided reviews, by reward, two independent judges, diversity and perplexity."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from examples.sentiment import judges
from examples.sentiment.material import Material
from examples.sentiment.prompts import PROMPTS
from otter_export import ArgsStochastic, Plain, Request, load_engine
from otter_export.evaluation.reward_plot import plot_rewards
from otter_export.evaluation.text_metrics import bootstrap_paired_difference
from otter_export.evaluation.written import Written, write
from otter_export.runtime.methods.base import DecodingMethod

Array = npt.NDArray[np.float64]

TOP_K = 16
WEIGHT = 16.0
TEMPERATURE = 0.8
SEED = 2026

UNGUIDED, GUIDED, OPPOSED = "unguided", f"weight +{WEIGHT:g}", f"weight -{WEIGHT:g}"


@dataclasses.dataclass(frozen=True)
class Arm(Written):
    """One way to decode, and what the judges say of its texts; arrays have one entry per prompt."""

    vader: Array
    probe: Array
    perplexity: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The arms, by label, and whether weight 0 gave the unguided text token for token."""

    arms: dict[str, Arm]
    weight_zero_is_plain: bool


def compare(engine_path: Path, material: Material, *, count: int, max_tokens: int) -> Comparison:
    """Write reviews in every way and judge them."""
    engine = load_engine(engine_path)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    methods: dict[str, DecodingMethod] = {
        UNGUIDED: Plain(temperature=TEMPERATURE, top_k=TOP_K),
        GUIDED: _guided(WEIGHT),
        OPPOSED: _guided(-WEIGHT),
    }

    def requests(method: DecodingMethod) -> list[Request]:
        return [Request(prompt, method, max_tokens, seed=SEED) for prompt in prompts]

    with tqdm(total=len(methods) * count * max_tokens, desc="writing", unit="token") as bar:
        written = {
            label: write(engine, requests(method), on_event=lambda _: bar.update() and None)
            for label, method in methods.items()
        }
    zero = write(engine, requests(_guided(0.0)))
    same = zero.token_ids == written[UNGUIDED].token_ids
    return Comparison(_judge(material, written), same)


def _guided(weight: float) -> ArgsStochastic:
    return ArgsStochastic(top_k=TOP_K, weight=weight, temperature=TEMPERATURE)


def _judge(material: Material, written: Mapping[str, Written]) -> dict[str, Arm]:
    """Score every arm's texts; the base reads them all in one go."""
    verdicts = judges.judge(material.base, {name: one.texts for name, one in written.items()})
    return {label: Arm(**vars(one), **vars(verdicts[label])) for label, one in written.items()}


def report(comparison: Comparison) -> str:
    """The table, the differences with their confidence intervals, and a few texts."""
    lines = [
        f"{'':14} {'reward':>7} {'VADER':>7} {'probe':>7} {'divers.':>8} {'ppl':>6} "
        f"{'tok/s':>6} {'fwd/tok':>8}"
    ]
    for label, arm in comparison.arms.items():
        lines.append(
            f"{label:14} {arm.reward.mean():7.3f} {arm.vader.mean():7.3f} "
            f"{arm.probe.mean():7.3f} {arm.diversity.mean():8.3f} {arm.perplexity:6.1f} "
            f"{arm.tokens / arm.seconds:6.1f} {arm.forwards_per_token:8.3f}"
        )
    lines += ["", "difference to unguided, with its 95 % confidence interval over prompts:"]
    for label in (GUIDED, OPPOSED):
        for judge, (mean, low, high) in differences(comparison, label).items():
            lines.append(f"  {label:12} {judge:7} {mean:+.3f}  [{low:+.3f}, {high:+.3f}]")
    verdict = "yes" if comparison.weight_zero_is_plain else "NO"
    lines += ["", f"weight 0 equals plain decoding, token for token: {verdict}", ""]
    for label, arm in comparison.arms.items():
        lines += [f"{label}:"]
        lines += [
            f"  {(r.prompt + r.text)!r}  ({np.mean(r.rewards):+.2f})" for r in arm.results[:3]
        ]
    return "\n".join(lines)


def differences(comparison: Comparison, label: str) -> dict[str, tuple[float, float, float]]:
    """Paired difference to unguided by judge: mean, and the bounds of its 95 % interval."""
    base, arm = comparison.arms[UNGUIDED], comparison.arms[label]
    found = {}
    for judge in ("reward", "vader", "probe"):
        treated, control = getattr(arm, judge), getattr(base, judge)
        interval = bootstrap_paired_difference(treated, control, seed=SEED)
        found[judge] = (interval.mean, interval.low, interval.high)
    return found


def plot(comparison: Comparison, path: Path) -> None:
    """Draw the reward per token of every arm."""
    series = {
        label: [list(r.rewards) for r in arm.results] for label, arm in comparison.arms.items()
    }
    plot_rewards(path, series)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Every number and text, for scripts."""
    arms = {}
    for label, arm in comparison.arms.items():
        arms[label] = {
            "reward": float(arm.reward.mean()),
            "vader": float(arm.vader.mean()),
            "probe": float(arm.probe.mean()),
            "diversity": float(arm.diversity.mean()),
            "perplexity": arm.perplexity,
            "tokens_per_second": arm.tokens / arm.seconds,
            "forwards_per_token": arm.forwards_per_token,
            "texts": arm.texts,
            "rewards": [list(r.rewards) for r in arm.results],
        }
    found = {label: differences(comparison, label) for label in (GUIDED, OPPOSED)}
    return {
        "arms": arms,
        "differences": found,
        "weight_zero_is_plain": comparison.weight_zero_is_plain,
    }
