"""L0: metrics: histograms as Prometheus has them, and only what changed is sent."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from otter_export.errors import QueueFullError, RequestError
from otter_export.runtime.scheduler import Stats
from otter_export.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS, Histogram, Labels, Metrics


class Page:
    """A sink that keeps the numbers, and how many messages they took."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Labels], float] = {}
        self.messages = 0

    def add(self, name: str, labels: Labels, amount: float) -> None:
        assert amount >= 0 and name not in GAUGES
        self.values[name, labels] = self.values.get((name, labels), 0) + amount
        self.messages += 1

    def set(self, name: str, labels: Labels, value: float) -> None:
        assert name in GAUGES
        self.values[name, labels] = value
        self.messages += 1


@hypothesis.given(st.lists(st.floats(0, 5)))
def test_histogram_counts_every_value_in_all_buckets_that_hold_it(values: list[float]) -> None:
    histogram = Histogram((0.5, 1.0, 2.0))
    for value in values:
        histogram.observe(value)
    numbers = histogram.values("x")
    for bound in ("0.5", "1", "2"):
        assert numbers["x_bucket", (("le", bound),)] == sum(v <= float(bound) for v in values)
    assert numbers["x_bucket", (("le", "+Inf"),)] == numbers["x_count", ()] == len(values)
    assert abs(numbers["x_sum", ()] - sum(values)) < 1e-9 * max(1, len(values))


def test_only_changes_are_sent() -> None:
    metrics, page = Metrics(), Page()
    metrics.publish(Stats(), page)
    everything = page.messages
    metrics.publish(Stats(), page)
    assert page.messages == everything
    metrics.publish(Stats(tokens=4, reward_sum=-2.0, queued=3), page)
    # tokens, queue length, reward sum, mean reward
    assert page.messages == everything + 4
    assert page.values["otter_tokens_total", ()] == 4
    assert page.values["otter_mean_reward", ()] == -0.5
    metrics.publish(Stats(tokens=5, reward_sum=-2.5), page)
    assert page.values["otter_tokens_total", ()] == 5
    assert page.values["otter_queue_length", ()] == 0


def test_refusals_by_reason() -> None:
    metrics, page = Metrics(), Page()
    metrics.rejected("a", QueueFullError("full"))
    metrics.rejected(None, RequestError("wrong"))
    metrics.rejected(None, RequestError("wrong"))
    metrics.publish(Stats(), page)
    assert page.values["otter_rejected_total", (("reason", "queue_full"),)] == 1
    assert page.values["otter_rejected_total", (("reason", "invalid"),)] == 2


def test_every_metric_is_described_and_published() -> None:
    metrics, page = Metrics(), Page()
    metrics.publish(Stats(), page)
    families = {name for name, _ in page.values}
    buckets = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    assert families == set(COUNTERS) | set(GAUGES) | buckets
