"""What the demo's judges say of results: the channel, VADER's lexicon, a probe, and the base."""

from __future__ import annotations

from collections.abc import Mapping

from examples.sentiment import judges
from examples.sentiment.material import prepare
from otter_export.evaluation.written import Written

#: How a text is judged: the channel, and two who know nothing of it.
JUDGES = ("reward", "VADER", "probe")


def verdicts(written: Mapping[str, Written]) -> dict[str, dict[str, float]]:
    """Mean verdicts of each way of writing, and the base's perplexity of its texts.

    Args:
        written: By way; the reward of a text is the mean of its tokens'.
    """
    texts = {label: one.texts for label, one in written.items()}
    found = {}
    for label, said in judges.judge(prepare().base, texts).items():
        scores = (written[label].reward, said.vader, said.probe)
        means = (float(one.mean()) for one in scores)
        found[label] = {**dict(zip(JUDGES, means, strict=True)), "perplexity": said.perplexity}
    return found
