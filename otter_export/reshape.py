"""Another shape for a channel: leaves out what training never changed from a copy of the base.

A copied channel's state is ``x' = x[S]`` until the first tensor that was changed, so it may as well
begin there (``x' = P x`` with ``P = I[S, :]``); queries and keys that are copies give the attention
weights of the base's own heads. Both are exact up to rounding. The rest keeps its bits.
numpy only, one tensor in memory at a time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from otter_export import config as config_file
from otter_export.arguments import flag, integer, path_argument
from otter_export.channel import check_widths, expected_tensors
from otter_export.checkpoint import Checkpoint, checkpoint_argument
from otter_export.config import OtterConfig
from otter_export.errors import CheckpointError, ConfigError
from otter_export.initialization import initial_tensors
from otter_export.insert import Insertion, refuse_overlap
from otter_export.output_directory import check_replaceable
from otter_export.quoting import quoted
from otter_export.rewrite import rewritten
from otter_export.safetensors_io import from_float32

#: Of the tensors that are in the way, so many are named.
_NAMED = 4


def plan(
    checkpoint: Checkpoint,
    destination: str | os.PathLike[str],
    *,
    first_layer: int | None = None,
    attention: str | None = None,
    force: bool = False,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Insertion:
    """Check that a shape gives the same channel; reads the inserted tensors.

    Args:
        checkpoint: The channel as it is.
        destination: Directory that `Insertion.write` will make.
        first_layer: Where it shall begin; None takes the last layer that is exact.
        attention: ``own`` or ``shared``; None takes ``shared`` if that is exact.
        force: Whether an existing checkpoint at ``destination`` may be replaced.
        progress: Called with the number of bytes just compared, of all inserted tensors.

    Raises:
        CheckpointError: The shape would lose tensors that are no copies: they are named.
        ConfigError: It would begin earlier, or have an attention that it shares now.
        OtterError: The destination cannot be written.
    """
    destination, force = path_argument("destination", destination), flag("force", force)
    checkpoint = checkpoint_argument(checkpoint)
    if first_layer is not None:
        first_layer = integer("first_layer", first_layer, least=0, error=ConfigError)
    if attention is not None and not (
        isinstance(attention, str) and attention in config_file.ATTENTIONS
    ):
        known = " or ".join(config_file.ATTENTIONS)
        raise ConfigError(f"attention must be {known}, got {quoted(attention)}")
    refuse_overlap(destination, checkpoint.directory, "the checkpoint")
    refuse_overlap(destination, checkpoint.base.directory, "the base")
    check_replaceable(destination, marker=config_file.FILE_NAME, force=force)
    changed = set(changed_tensors(checkpoint, progress))
    wanted = [c for c in _shapes(checkpoint, first_layer, attention) if c != checkpoint.config]
    exact = [config for config in wanted if not changed & _left_out(checkpoint, config)]
    if not exact:
        raise CheckpointError(_refusal(checkpoint, wanted, changed))
    return _insertion(checkpoint, exact[0], destination, force)


def changed_tensors(checkpoint: Checkpoint, progress: Callable[[int], None]) -> Iterator[str]:
    """Names of the inserted tensors that are no copies of the base; signals are not looked at."""
    copying = dataclasses.replace(checkpoint.config, initialization="copy")
    try:
        made = list(initial_tensors(copying, checkpoint.base))
    except ConfigError:  # wider than the base
        yield from checkpoint.tensors
        return
    for name, _, make in made:
        info = checkpoint.tensors[name]
        if not name.startswith("signals."):
            copy = from_float32(make(), info.dtype)
            if not np.array_equal(checkpoint.tensors.raw(name), copy):
                yield name
        progress(info.nbytes)


def _shapes(
    checkpoint: Checkpoint, first_layer: int | None, attention: str | None
) -> Iterator[OtterConfig]:
    """The shapes that were asked for, the one with the fewest tensors first."""
    now, dimensions = checkpoint.config, checkpoint.base.dimensions
    layers = range(now.first_layer, dimensions.num_hidden_layers + 1)
    attentions = config_file.ATTENTIONS[config_file.ATTENTIONS.index(now.attention) :]
    if first_layer is not None and first_layer < now.first_layer:
        raise ConfigError(
            f"{checkpoint.directory}: the channel begins at layer {now.first_layer}; it can begin "
            f"later, up to {layers[-1]}, and not at {first_layer}"
        )
    if attention is not None and attention not in attentions:
        raise ConfigError(
            f"{checkpoint.directory}: the channel shares the base's attention; queries and keys of "
            "its own come from: otter-export insert --attention own"
        )
    for layer in reversed(layers) if first_layer is None else [first_layer]:
        embedding = "projection" if layer else now.embedding
        # A probe attends to nothing.
        kinds = reversed(attentions) if layer < layers[-1] else [now.attention]
        for kind in kinds if attention is None else [attention]:
            config = dataclasses.replace(
                now, first_layer=layer, attention=kind, embedding=embedding
            )
            problems = check_widths(config, dimensions)
            if not problems:
                yield config
            elif (first_layer, attention) != (None, None):
                raise ConfigError("; ".join(problems))


def _left_out(checkpoint: Checkpoint, config: OtterConfig) -> set[str]:
    """Names of the tensors that a shape does not have."""
    return set(checkpoint.tensors) - set(expected_tensors(config, checkpoint.base))


def _refusal(checkpoint: Checkpoint, wanted: list[OtterConfig], changed: set[str]) -> str:
    """What stands in the way of the shape that would leave out the least."""
    if not wanted:
        return f"{checkpoint.directory}: the channel has this shape already"
    least = _left_out(checkpoint, wanted[-1])
    names = [name for name in checkpoint.tensors if name in least & changed]
    more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
    return (
        f"{checkpoint.directory}: another shape would lose what was trained: "
        f"{', '.join(names[:_NAMED])}{more}"
    )


def _insertion(
    checkpoint: Checkpoint, config: OtterConfig, destination: Path, force: bool
) -> Insertion:
    """The checkpoint of another shape: a copied beginning, and the tensors that it keeps."""
    copying = dataclasses.replace(config, initialization="copy")
    tensors = initial_tensors(copying, checkpoint.base)
    return rewritten(checkpoint, config, tensors, destination, force=force)
