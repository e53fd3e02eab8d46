"""``medusa``: draft heads as FasterDecoding/Medusa publishes them (arXiv 2401.10774).

Head i is a sequence: residual blocks ``{i}.{j}.linear``, each ``h + SiLU(W h + b)``, then the
output ``{i}.{last}.weight``, ``[V, d]``. Its draft is the token i + 1 places after the next one.
"""

from __future__ import annotations

import re

import numpy as np

from otter_export.base_model import BaseModel
from otter_export.errors import CheckpointError, ConfigError
from otter_export.importing.source import Head, HeadOptions, Source, SourceFormat, check_shape
from otter_export.probe import Probe
from otter_export.signals import Signal

_NAME = re.compile(r"(?:medusa_heads?\.)?(\d{1,3})\.(\d{1,3})\.(linear\.)?(weight|bias)")


class Medusa(SourceFormat):
    """n heads of all V tokens; R is the identity, so the channel is as wide as the base."""

    name = "medusa"
    expects = "0.0.weight or 0.0.linear.weight in medusa_lm_head.safetensors (Medusa)"

    def fits(self, source: Source) -> bool:
        """By the first head's first layer."""
        return any(_place(name) in ((0, 0, True), (0, 0, False)) for name in source.tensors)

    def head(self, source: Source, base: BaseModel, options: HeadOptions) -> Head:
        """See `SourceFormat.head`."""
        if (options.label, options.probability, options.activation) != (None, False, "identity"):
            raise ConfigError("draft heads take neither --label, --probability nor --activation")
        outputs = _outputs(source)
        size = (base.dimensions.vocab_size, base.dimensions.hidden_size)
        for name in outputs:
            check_shape(source, name, size)
        signal = Signal(options.name or "drafts", "medusa", "identity", None, heads=len(outputs))
        heads = {
            f"signals.{signal.name}.weight": np.stack([source.tensors.float32(n) for n in outputs]),
            f"signals.{signal.name}.bias": np.zeros((len(outputs), size[0]), np.float32),
        }
        names = frozenset(name for name in source.tensors if _place(name))
        return Head(signal, Probe(np.eye(size[1], dtype=np.float32), heads), names)


def _place(name: str) -> tuple[int, int, bool] | None:
    """Head, layer, and whether it is a block's, of a tensor's name."""
    found = _NAME.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2]), found[3] is not None)


def _outputs(source: Source) -> list[str]:
    """Names of the heads' output weights, in order; blocks before them must be identities.

    Raises:
        CheckpointError: Heads are missing, or a block is more than its input.
    """
    outputs: dict[int, str] = {}
    trained: list[str] = []
    for name in source.tensors:
        place = _place(name)
        if place is None:
            continue
        if not place[2]:
            outputs[place[0]] = name
        elif source.tensors.float32(name).any():
            trained.append(name)
    if sorted(outputs) != list(range(len(outputs))) or not outputs:
        raise CheckpointError(f"{source.path}: heads {sorted(outputs)} are not 0, 1, 2 and so on")
    if trained:
        raise CheckpointError(
            f"{source.path}: its heads have residual blocks ({trained[0]}), which a linear head on "
            "the channel cannot compute; train heads from the base's own text instead: "
            "otter-export insert BASE CKPT --signal drafts:medusa, then train --objective drafts"
        )
    return [outputs[number] for number in range(len(outputs))]


MEDUSA = Medusa()
