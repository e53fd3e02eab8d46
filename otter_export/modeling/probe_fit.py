"""A probe from data: R and heads in closed form, from one reading of the texts.

Each kind of signal says what it needs of the base's final states (`otter_export.modeling.probes`):
directions that R has to span, and a head on what R leaves of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from otter_export.base_model import BaseModel
from otter_export.boundary import errors_as
from otter_export.config import OtterConfig
from otter_export.errors import CheckpointError, UnsupportedError
from otter_export.modeling.data import Item, batches, split
from otter_export.modeling.otter_model import load_base
from otter_export.modeling.probes import PROBES
from otter_export.modeling.probes.drafts import DraftsProbe
from otter_export.modeling.probes.signal_probe import SignalProbe
from otter_export.probe import Probe, orthonormal
from otter_export.signals import Signal

_HELD_OUT = 0.1
_BATCH_TOKENS = 2048


def fittable(signals: Sequence[Signal]) -> tuple[str, list[Signal]]:
    """The objective whose data are read, and the signals whose heads they can give.

    Raises:
        UnsupportedError: There are none.
    """
    kinds = {s.kind for s in signals}
    objectives = [probe.objective for kind, probe in PROBES.items() if kind in kinds]
    if not objectives:
        raise UnsupportedError(
            f"--data fits a probe of a signal that is {' or '.join(PROBES)}, and there is only "
            f"{', '.join(sorted(kinds))}; leave it out for a random probe"
        )
    fitted = objectives[0], DraftsProbe.objective
    return objectives[0], [
        s for s in signals if s.kind in PROBES and PROBES[s.kind].objective in fitted
    ]


@torch.no_grad()
def fit_probe(
    base: BaseModel,
    config: OtterConfig,
    items: Sequence[Item],
    seed: int,
    progress: Callable[[int], object] = lambda items: None,
) -> Probe:
    """Fit R and the heads of all `fittable` signals.

    Args:
        base: Whose states.
        config: Of the channel.
        items: Texts, with the scores or labels of the objective that `fittable` names.
        seed: Of which texts are held out, and of the rows of R that no signal needs.
        progress: Called with the number of texts just read.

    Raises:
        ConfigError: The texts are too few or too short.
        UnsupportedError: No signal can be fitted.
    """
    _, signals = fittable(config.signals)
    kinds = [PROBES[signal.kind] for signal in signals]
    model = load_base(base) if any(kind.reads_state for kind in kinds) else None
    probes = [kind(s, base.dimensions, model) for kind, s in zip(kinds, signals, strict=True)]
    for held_out, part in enumerate(split(items, _HELD_OUT, seed)):
        for batch in batches(part, _BATCH_TOKENS):
            state = torch.empty(0)
            if model is not None:
                with errors_as(CheckpointError, f"{base.directory}: the model failed in torch"):
                    decoded = model.base_model(input_ids=batch.ids, use_cache=False)
                state = decoded.last_hidden_state.float()
            for probe in probes:
                probe.add(state, batch, bool(held_out))
            progress(len(batch.ids))
    for probe in probes:
        probe.solve()
    directions = np.concatenate(_directions(probes, config.hidden_size))
    rows = orthonormal(directions.astype(np.float32), config.hidden_size, seed)
    heads: dict[str, Any] = {}
    for probe in probes:
        stem = f"signals.{probe.signal.name}"
        heads[f"{stem}.weight"], heads[f"{stem}.bias"] = probe.head(rows.astype(np.float64))
    return Probe(rows, heads)


def _directions(probes: Sequence[SignalProbe], size: int) -> list[Any]:
    """What R has to span, at most ``size`` rows: one a value, the rest shared by the others."""
    found = [probe.directions(1) for probe in probes if not probe.is_wide][:size]
    wide, left = [probe for probe in probes if probe.is_wide], size - len(found)
    for i, probe in enumerate(wide):
        found.append(probe.directions(left * (i + 1) // len(wide) - left * i // len(wide)))
    return found
