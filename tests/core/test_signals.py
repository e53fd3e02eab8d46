"""L0: every kind of signal: its shapes, and what an engine has of its head."""

from __future__ import annotations

import numpy as np
import pytest

from otter_export.config import ACTIVATIONS
from otter_export.signals import SIGNALS, Signal, kind_of

WIDTH, VOCABULARY = 16, 100


def signal_of(kind: str, heads: int = 1, draft_vocab: int | None = None) -> Signal:
    return Signal("s", kind, SIGNALS.load(kind).activations[0], None, heads, draft_vocab)


@pytest.mark.parametrize(
    ("signal", "weight", "output"),
    [
        (signal_of("value"), (1, WIDTH), ()),
        (signal_of("q_value"), (VOCABULARY, WIDTH), (VOCABULARY,)),
        (signal_of("expert"), (2, VOCABULARY, WIDTH), (VOCABULARY,)),
        (signal_of("medusa", 3), (3, VOCABULARY, WIDTH), (3, VOCABULARY)),
        (signal_of("medusa", 3, 20), (3, 20, WIDTH), (3, 20)),
    ],
)
def test_shapes(signal: Signal, weight: tuple[int, ...], output: tuple[int, ...]) -> None:
    kind = kind_of(signal)
    assert kind.weight_shape(signal, WIDTH, VOCABULARY) == weight
    assert kind.output_dims(signal, VOCABULARY) == output


@pytest.mark.parametrize("name", list(SIGNALS))
def test_an_engine_multiplies_with_what_gives_the_output(name: str) -> None:
    """What an engine has of W and b gives the output that the stored head gives."""
    kind = SIGNALS.load(name)
    signal = signal_of(name, heads=2 if kind.has_heads else 1)
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(kind.weight_shape(signal, WIDTH, VOCABULARY))
    bias, state = generator.standard_normal(weight.shape[:-1]), generator.standard_normal(WIDTH)
    engine = kind.engine_head(weight) @ state + kind.engine_head(bias)
    assert engine.shape == kind.output_dims(signal, VOCABULARY)
    np.testing.assert_allclose(engine, kind.output(weight @ state + bias), atol=1e-12)


def test_every_kind_has_an_activation_and_says_what_it_predicts() -> None:
    for name in SIGNALS:
        kind = SIGNALS.load(name)
        assert kind.name == name and kind.predicts
        assert kind.activations and set(kind.activations) <= set(ACTIVATIONS)
        assert kind.drafts or kind.scores, "an output that nothing reads"
