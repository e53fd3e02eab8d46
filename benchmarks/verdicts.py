"""What the demo's judges say of texts: the channel, VADER's lexicon, a probe, and the base."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.record import REPOSITORY
from otter_export import Result

sys.path.insert(0, str(REPOSITORY / "examples" / "sentiment"))

import judges
from material import prepare

#: How a text is judged: the channel, and two who know nothing of it.
JUDGES = ("reward", "VADER", "probe")


def verdicts(written: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, float]]:
    """Mean verdicts of each way of writing, and the base's perplexity of its texts.

    Args:
        written: By way, of equally many prompts each; the reward of a text is the mean of its
            tokens'.
    """
    results = [result for own in written.values() for result in own]
    texts = [result.prompt + result.text for result in results]
    reading = judges.read(prepare().base, texts)
    each = {
        "reward": np.array([np.mean(result.rewards) for result in results]),
        "VADER": judges.vader(texts),
        "probe": judges.Probe.load()(reading.states),
    }
    means = {judge: values.reshape(len(written), -1).mean(1) for judge, values in each.items()}
    losses = iter(reading.negative_log_likelihoods)
    return {
        label: {
            **{judge: float(values[i]) for judge, values in means.items()},
            "perplexity": math.exp(np.concatenate([next(losses) for _ in own]).mean()),
        }
        for i, (label, own) in enumerate(written.items())
    }
