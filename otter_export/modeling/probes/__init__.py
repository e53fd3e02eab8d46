"""The kinds of signals that data can give a beginning, each by its file."""

from __future__ import annotations

from collections.abc import Mapping

from otter_export.modeling.probes.drafts import DraftsProbe
from otter_export.modeling.probes.experts import ExpertsProbe
from otter_export.modeling.probes.signal_probe import SignalProbe
from otter_export.modeling.probes.value import ValueProbe

#: By kind of signal. Where there are several, the data are those of the first of these; any data
#: will do for drafts.
PROBES: Mapping[str, type[SignalProbe]] = {
    "value": ValueProbe,
    "expert": ExpertsProbe,
    "medusa": DraftsProbe,
}
