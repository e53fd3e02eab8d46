"""L2: probes from data, against regressions that numpy solves another way."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export.channel_options import ChannelOptions
from otter_export.checkpoint import Checkpoint
from otter_export.errors import ConfigError, UnsupportedError
from otter_export.insert import plan
from otter_export.modeling.data import Item, Row, collate, split
from otter_export.modeling.objectives.drafts import Drafts
from otter_export.modeling.objectives.experts import Experts
from otter_export.modeling.otter_model import load_base, load_reference
from otter_export.modeling.probe_fit import fit_probe, fittable
from otter_export.modeling.probes.moments import Moments
from otter_export.signals import Signal
from tests import tiny

LINEAR = Signal("reward", "value", "identity", None)
AHEAD = Signal("ahead", "medusa", "identity", None, 2)


def texts(count: int) -> list[Item]:
    """Words of two sides, and their balance."""
    generator = np.random.default_rng(0)
    items = []
    for i in range(count):
        words = generator.integers(3, 19, int(generator.integers(4, 9)))
        score = float(np.mean(np.where(words < 11, 0.9, -0.9)))
        items.append(Item(i, (Row((*words.tolist(), 2), 0),), score))
    return items


def fitted(directory: Path, items: list[Item], *signals: Signal, **channel: object) -> Checkpoint:
    """A checkpoint over a tiny Llama, initialised with the probe of some texts."""
    base = tiny.write_base(directory / "base")
    settings = {"hidden_size": 16, "intermediate_size": 24, "initialization": "probe", **channel}
    options = ChannelOptions(signals=signals, **settings)  # type: ignore[arg-type]
    first = plan(base, directory / "ck", options)
    probe = fit_probe(first.base, first.config, items, 0)
    plan(base, directory / "ck", options, probe=probe).write()
    return Checkpoint.open(directory / "ck")


def states(checkpoint: Checkpoint, items: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Final states of the base and scores, at every token of some texts."""
    model, rows, scores = load_base(checkpoint.base), [], []
    for item in items:
        with torch.no_grad():
            ids = torch.tensor([item.rows[0].ids])
            rows.append(model.base_model(ids).last_hidden_state[0].double().numpy())
        scores += [item.score] * len(rows[-1])
    return np.concatenate(rows), np.array(scores)


@pytest.mark.parametrize("first_layer", [0, 2])
def test_a_value_starts_as_the_ridge_regression_of_its_data(
    tmp_path: Path, first_layer: int
) -> None:
    items = texts(150)
    checkpoint = fitted(tmp_path, items, LINEAR, first_layer=first_layer)
    x, y = states(checkpoint, items)
    fit, held_out = (states(checkpoint, part) for part in split(items, 0.1, 0))

    def ridge(x: np.ndarray, y: np.ndarray, share: float) -> tuple[np.ndarray, float]:
        """As least squares of a longer system: rows of the penalty below those of the data."""
        penalty = share * np.var(fit[0], axis=0).mean() * len(x)
        longer = np.concatenate((x - x.mean(0), np.sqrt(penalty) * np.eye(x.shape[1])))
        right = np.concatenate((y - y.mean(), np.zeros(x.shape[1])))
        w = np.linalg.lstsq(longer, right, rcond=None)[0]
        return w, float(y.mean() - x.mean(0) @ w)

    def error(share: float) -> float:
        w, b = ridge(*fit, share)
        return float(np.square(held_out[0] @ w + b - held_out[1]).mean())

    w, b = ridge(x, y, min((10.0**power for power in range(-6, 2)), key=error))
    ids = torch.tensor([items[0].rows[0].ids])
    with torch.no_grad():
        found = load_reference(checkpoint)(ids).signals["reward"][0].numpy()
    expected = states(checkpoint, items[:1])[0] @ w + b
    assert expected.std() > 0.05
    # float32 through two layers; the regressions themselves are float64.
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_bounded_values_are_fitted_at_the_middle_of_their_range(tmp_path: Path) -> None:
    items = [dataclasses.replace(i, score=0.5 + 0.4 * i.score) for i in texts(80)]
    values = {}
    for name, bounds in (("identity", None), ("sigmoid", (0.0, 1.0))):
        signal = Signal("reward", "value", name, bounds)
        checkpoint = fitted(tmp_path / name, items, signal)
        with torch.no_grad():
            ids = torch.tensor([items[0].rows[0].ids])
            values[name] = load_reference(checkpoint)(ids).signals["reward"][0].double()
    linear, bounded = values["identity"], values["sigmoid"]
    expected = torch.sigmoid(4 * (linear - 0.5))
    np.testing.assert_allclose(bounded, expected, atol=1e-4)  # float32 models


def test_drafts_start_as_good_as_their_width_allows(tmp_path: Path) -> None:
    """Texts that repeat, so that what the base chooses later follows from the state."""
    generator = np.random.default_rng(0)
    words = generator.integers(3, 128, (6, 4))
    items = [
        Item(i, (Row(tuple(np.tile(np.roll(words[i % 6], i // 6 % 4), 4).tolist()), 4),))
        for i in range(72)
    ]
    shares = {}
    for width in (4, 16, 64):
        checkpoint = fitted(tmp_path / str(width), items, AHEAD, hidden_size=width, first_layer=2)
        loaded, data = load_reference(checkpoint), collate(items)
        with torch.no_grad():
            objective, head = Drafts(AHEAD), loaded.head("ahead")
            noted = objective.judge(loaded(data.ids), data, head, ends=False)
        shares[width] = objective.metrics(noted)["all"]
    assert shares[4] > 0.1  # chance is one in 128
    assert shares[4] < shares[16] <= shares[64] + 0.02
    assert shares[64] > 0.6


SIDES = Signal("harmless", "expert", "identity", None)


def labelled(count: int) -> list[Item]:
    """Words of two classes, each with favourites, and of neither."""
    generator = np.random.default_rng(1)
    items = []
    for i in range(count):
        label = (1.0, -1.0, 0.0)[i % 3]
        words = generator.integers(3, 60, 12)
        liked = 60 + int(label) * 20 + generator.integers(0, 5, 12)
        likes = (generator.random(12) < 0.4) & (label != 0)
        row = np.where(likes, liked, words).tolist()
        items.append(Item(i, (Row(tuple(row), 0),), label))
    return items


def naive_bayes(counts: list[np.ndarray], side: int, prior: float) -> list[float]:
    """How much more often a side says each word than both sides together, in nats."""
    total = sum(int(count.sum()) for count in counts)
    share = counts[side].sum() / total
    return [
        math.log((own + prior) / (share * both + prior))
        for own, both in zip(counts[side], sum(counts), strict=True)
    ]


def test_an_expert_pair_starts_as_naive_bayes(tmp_path: Path) -> None:
    """A token's offsets are the logs of its rates, and they tell the classes of other texts."""
    items = labelled(300)
    checkpoint = fitted(tmp_path, items, SIDES, first_layer=2)
    loaded, ids = load_reference(checkpoint), collate(items).ids
    counts = [
        np.bincount([w for i in items if i.score == s for w in i.rows[0].ids], minlength=128)
        for s in (1.0, -1.0)
    ]
    with torch.no_grad():
        offsets = loaded.head("harmless")(loaded(ids[:1]).channel)[0]
    # Without context: the same at every place.
    assert offsets.std(0).max() < 1e-6
    found = offsets[0].double().numpy()
    # Word by word, with one of the priors that are tried; float32 biases.
    assert any(
        np.allclose(found, [naive_bayes(counts, side, prior) for side in (0, 1)], atol=1e-5)
        for prior in (2.0**power for power in range(-3, 9))
    )
    difference = found[0] - found[1]
    assert difference[80:85].min() > 2  # the expert's favourites
    assert difference[40:45].max() < 0  # words of all, and the anti-expert's favourites
    others = collate(labelled(600)[300:])
    with torch.no_grad():
        objective, head = Experts(SIDES, discriminative=1.0), loaded.head("harmless")
        noted = objective.judge(loaded(others.ids), others, head, False)
    found_class = objective.metrics(noted)["class"]
    assert found_class > 0.5  # of log 2


def test_a_channel_may_serve_a_value_and_drafts(tmp_path: Path) -> None:
    items = texts(60)
    both = fitted(tmp_path / "both", items, LINEAR, AHEAD)
    alone = fitted(tmp_path / "alone", items, LINEAR)
    ids = torch.tensor([items[0].rows[0].ids])
    with torch.no_grad():
        one, other = (load_reference(c)(ids).signals["reward"] for c in (both, alone))
    # R spans the value's direction in both.
    np.testing.assert_allclose(one.numpy(), other.numpy(), atol=2e-4)


def test_a_token_that_the_embedding_has_not_is_left_out(tmp_path: Path) -> None:
    """No state is read for an expert pair, so nothing else would stop at it."""
    items = labelled(60)
    strange = Item(60, (Row((3, 127, 128, 5000), 0),), 1.0)
    biases = [
        fitted(tmp_path / str(i), some, SIDES).float32("signals.harmless.bias")
        for i, some in enumerate(([*items, strange], items))
    ]
    assert biases[0].shape == biases[1].shape == (2, 128)


def test_the_data_are_those_of_the_value_and_drafts_take_any() -> None:
    assert fittable((SIDES, AHEAD, LINEAR)) == ("regression", [AHEAD, LINEAR])
    assert fittable((AHEAD, SIDES)) == ("experts", [AHEAD, SIDES])
    assert fittable((AHEAD,)) == ("drafts", [AHEAD])


def test_what_cannot_be_fitted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it needs texts of both classes, expert and anti"):
        fitted(tmp_path / "one", [i for i in labelled(60) if i.score >= 0], SIDES)
    with pytest.raises(UnsupportedError, match="value or expert or medusa, and there is only q_v"):
        fitted(tmp_path / "a", texts(4), tiny.NEXT)
    with pytest.raises(ConfigError, match="too few or too short to fit the signal 'ahead'"):
        short = [Item(i, (Row((3, 4), 0),)) for i in range(4)]
        fitted(tmp_path / "b", short, AHEAD)
    with pytest.raises(ConfigError, match="one line of data cannot be split"):
        fitted(tmp_path / "c", texts(1), LINEAR)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, 2, generator=generator)
    parts = [Moments.none(3, 2), Moments.none(3, 2)]
    parts[0].add(x[:4], y[:4])
    parts[1].add(x[4:], y[4:])
    whole = parts[0] + parts[1]
    xx, xy = whole.centred(whole)
    wide = np.concatenate((x.numpy(), y.numpy()), axis=1)
    covariance = np.cov(wide.T, bias=True)
    np.testing.assert_allclose(xx, covariance[:3, :3], atol=1e-6)  # float32 numbers
    np.testing.assert_allclose(xy, covariance[:3, 3:], atol=1e-6)
