"""What the demo's judges say of results: the channel, VADER's lexicon, a probe, and the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from examples.sentiment import judges
from examples.sentiment.material import prepare
from otter_export import Result

#: How a text is judged: the channel, and two who know nothing of it.
JUDGES = ("reward", "VADER", "probe")


def verdicts(written: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, float]]:
    """Mean verdicts of each way of writing, and the base's perplexity of its texts.

    Args:
        written: By way; the reward of a text is the mean of its tokens'.
    """
    texts = {label: [r.prompt + r.text for r in results] for label, results in written.items()}
    found = {}
    for label, said in judges.judge(prepare().base, texts).items():
        reward = np.mean([np.mean(result.rewards) for result in written[label]])
        means = (float(scores.mean()) for scores in (reward, said.vader, said.probe))
        found[label] = {**dict(zip(JUDGES, means, strict=True)), "perplexity": said.perplexity}
    return found
