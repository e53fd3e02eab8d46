"""``classifier``: the head of a sequence or token classifier of transformers."""

from __future__ import annotations

import dataclasses

import numpy as np

from otter_export.base_model import BaseModel
from otter_export.errors import CheckpointError, ConfigError
from otter_export.importing.scalar import scalar_head
from otter_export.importing.source import Head, HeadOptions, Source, SourceFormat, check_shape
from otter_export.quoting import listed, quoted

#: Names of the one linear layer, as transformers has them.
_LAYERS = ("score", "classifier")


class Classifier(SourceFormat):
    """One linear layer on the final state; reward models have one label, process-reward models two.

    A sequence classifier reads the state of the last token, which as a signal scores every prefix;
    a token classifier reads every one.
    """

    name = "classifier"
    expects = "score.weight or classifier.weight (transformers' sequence and token classification)"

    def fits(self, source: Source) -> bool:
        """By the layer, also where it is none that can be read."""
        return any(name.startswith(tuple(f"{one}." for one in _LAYERS)) for name in source.tensors)

    def head(self, source: Source, base: BaseModel, options: HeadOptions) -> Head:
        """See `SourceFormat.head`."""
        layer = next((one for one in _LAYERS if f"{one}.weight" in source.tensors), None)
        inner = [n for n in source.tensors if n.startswith(tuple(f"{one}." for one in _LAYERS))]
        names = {n for n in inner if n in (f"{layer}.weight", f"{layer}.bias")}
        if layer is None or set(inner) != names:
            raise CheckpointError(
                f"{source.path}: its head is more than one linear layer ({listed(inner)}), and "
                "cannot be had exactly; distil it with otter-export label"
            )
        count = next(iter(source.tensors[f"{layer}.weight"].shape), 0)
        check_shape(source, f"{layer}.weight", (count, base.dimensions.hidden_size))
        weight = source.read(f"{layer}.weight")
        bias = np.zeros(count, np.float32)
        if f"{layer}.bias" in names:
            check_shape(source, f"{layer}.bias", (count,))
            bias = source.read(f"{layer}.bias")
        chosen = _chosen(source, count, options)
        labels = np.zeros(count, np.float32)
        labels[chosen] = 1
        if options.probability:
            if count != 2 or options.activation != "identity":
                raise ConfigError(
                    f"--probability is for two labels and without --activation; {source.path} has "
                    f"{count}, and activation is {options.activation}"
                )
            # Of two labels, softmax is the sigmoid of the difference.
            labels[1 - chosen] = -1
        head = scalar_head(labels @ weight, float(labels @ bias), frozenset(names), options)
        return dataclasses.replace(head, labels=tuple(labels.tolist()))


def _chosen(source: Source, count: int, options: HeadOptions) -> int:
    """The label's number.

    Raises:
        ConfigError: None is named where there are several, or there is none of that name.
    """
    given = source.config.get("id2label")
    names = given if isinstance(given, dict) else {}
    labels = [str(names.get(str(i), f"LABEL_{i}")) for i in range(count)]
    if options.label is None:
        if count == 1:
            return 0
        raise ConfigError(f"{source.path} has {count} labels; choose one: --label {labels[-1]}")
    if options.label in labels:
        return labels.index(options.label)
    if options.label.isdecimal() and len(options.label) < 10 and int(options.label) < count:
        return int(options.label)
    raise ConfigError(
        f"{source.path} has no label {quoted(options.label)}; its labels: {listed(labels)}"
    )


CLASSIFIER = Classifier()
