"""The metrics of `otter_export.serving.metrics` in the text form that Prometheus reads."""

from __future__ import annotations

from otter_export.serving.metrics import GAUGES, HISTOGRAMS, Labels, description

_PARTS = ("_bucket", "_sum", "_count")


class PrometheusText:
    """Keeps the numbers that are published; a `Sink`."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {}

    def add(self, name: str, labels: Labels, amount: float) -> None:
        """A counter grew."""
        values = self._values.setdefault(name, {})
        values[labels] = values.get(labels, 0.0) + amount

    def set(self, name: str, labels: Labels, value: float) -> None:
        """A gauge has a new value."""
        self._values.setdefault(name, {})[labels] = value

    def text(self) -> str:
        """All of them, families together."""
        lines: list[str] = []
        told: set[str] = set()
        for name in sorted(self._values, key=lambda name: (_family(name), name)):
            family = _family(name)
            if family not in told:
                told.add(family)
                kind = "histogram" if family in HISTOGRAMS else "counter"
                kind = "gauge" if family in GAUGES else kind
                lines += [f"# HELP {family} {description(family)}", f"# TYPE {family} {kind}"]
            for labels, value in self._values[name].items():
                inner = ",".join(f'{key}="{text}"' for key, text in labels)
                lines.append(f"{name}{{{inner}}} {value:.17g}" if inner else f"{name} {value:.17g}")
        return "\n".join([*lines, ""])


def _family(name: str) -> str:
    """What a number belongs to: of a histogram's parts, the histogram."""
    for part in _PARTS:
        if name.endswith(part) and name.removesuffix(part) in HISTOGRAMS:
            return name.removesuffix(part)
    return name
