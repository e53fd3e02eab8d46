"""``medusa``: draft heads as FasterDecoding/Medusa publishes them (arXiv 2401.10774).

Head i is a sequence: residual blocks ``{i}.{j}.linear``, each ``h + SiLU(W h + b)``, mostly one,
then the output ``{i}.{last}.weight``, ``[V, d]``. It drafts the token i + 1 places after the next.
"""

from __future__ import annotations

import re

import numpy as np

from otter_export.base_model import BaseModel
from otter_export.errors import CheckpointError, ConfigError
from otter_export.importing.source import Head, HeadOptions, Source, SourceFormat, check_shape
from otter_export.probe import Probe
from otter_export.quoting import listed
from otter_export.signals import Signal, block_name

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
        layers = _layers(source)
        vocab, size = base.dimensions.vocab_size, base.dimensions.hidden_size
        for blocks, output in layers:
            check_shape(source, output, (vocab, size))
            for block in blocks:
                check_shape(source, f"{block}.weight", (size, size))
                check_shape(source, f"{block}.bias", (size,))
        count, has_blocks = len(layers), bool(layers[0][0])
        signal = Signal(
            options.name or "drafts", "medusa", "identity", None, count, residual=has_blocks
        )
        stem, read = f"signals.{signal.name}", source.read
        heads = {
            f"{stem}.weight": np.stack([read(output) for _, output in layers]),
            f"{stem}.bias": np.zeros((count, vocab), np.float32),
        }
        if has_blocks:
            for part in ("weight", "bias"):
                values = [read(f"{blocks[0]}.{part}") for blocks, _ in layers]
                heads[f"{block_name(signal)}.{part}"] = np.stack(values)
        names = frozenset(name for name in source.tensors if _place(name))
        return Head(signal, Probe(np.eye(size, dtype=np.float32), heads), names)


def _place(name: str) -> tuple[int, int, bool] | None:
    """Head, layer, and whether it is a block's, of a tensor's name."""
    found = _NAME.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2]), found[3] is not None)


def _layers(source: Source) -> list[tuple[tuple[str, ...], str]]:
    """For each head the stem of its block, if it has one, and the name of its output's weight.

    Raises:
        CheckpointError: Heads are missing or unlike, or have more than one block.
    """
    outputs: dict[int, str] = {}
    blocks: dict[int, set[str]] = {}
    for name in source.tensors:
        place = _place(name)
        if place is None:
            continue
        if place[2]:
            blocks.setdefault(place[0], set()).add(name.rpartition(".")[0])
        else:
            outputs[place[0]] = name
    count = len(outputs)
    if sorted(outputs) != list(range(count)) or not outputs or not blocks.keys() <= outputs.keys():
        raise CheckpointError(
            f"{source.path}: heads {sorted(outputs)} with blocks of {sorted(blocks)} are not 0, 1, "
            "2 and so on"
        )
    numbers = {len(blocks.get(i, ())) for i in outputs}
    if numbers not in ({0}, {1}):
        raise CheckpointError(
            f"{source.path}: its heads have {listed(map(str, sorted(numbers)))} residual blocks; "
            "none or one each can be imported"
        )
    return [(tuple(blocks.get(i, ())), outputs[i]) for i in range(count)]


MEDUSA = Medusa()
