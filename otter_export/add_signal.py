"""More signals on a trained channel: untrained heads beside tensors that keep their bits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from otter_export import config as config_file
from otter_export.arguments import flag, integer, path_argument
from otter_export.channel_options import signals_argument
from otter_export.checkpoint import Checkpoint, checkpoint_argument
from otter_export.config import OtterConfig
from otter_export.errors import ConfigError
from otter_export.initialization import initial_tensors
from otter_export.insert import Insertion, refuse_overlap
from otter_export.output_directory import check_replaceable
from otter_export.rewrite import rewritten
from otter_export.signals import Signal


def plan(
    checkpoint: Checkpoint,
    destination: str | os.PathLike[str],
    signals: Sequence[Signal],
    *,
    seed: int = 0,
    force: bool = False,
) -> Insertion:
    """Check everything that can be checked before writing.

    Args:
        checkpoint: Whose channel gets the signals.
        destination: Directory that `Insertion.write` will make.
        signals: The new ones; they come behind those that it has.
        seed: Of their heads.
        force: Whether an existing checkpoint at ``destination`` may be replaced.

    Raises:
        ConfigError: A signal of that name exists, or is none.
        OtterError: The destination cannot be written.
    """
    checkpoint, signals = checkpoint_argument(checkpoint), signals_argument(signals)
    destination, force = path_argument("destination", destination), flag("force", force)
    seed = integer("seed", seed, least=0, error=ConfigError)
    refuse_overlap(destination, checkpoint.directory, "the checkpoint")
    refuse_overlap(destination, checkpoint.base.directory, "the base")
    check_replaceable(destination, marker=config_file.FILE_NAME, force=force)
    old = checkpoint.config
    config = dataclasses.replace(old, signals=(*old.signals, *signals))
    config = OtterConfig.from_json(config.to_json(), str(checkpoint.directory))
    # Heads are drawn alike in every initialisation; of the rest nothing is made.
    drawn = dataclasses.replace(config, initialization="normal")
    tensors = initial_tensors(drawn, checkpoint.base, seed)
    return rewritten(checkpoint, config, tensors, destination, force=force)
