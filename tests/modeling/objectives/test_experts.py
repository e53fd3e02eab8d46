"""L0: the objective of an expert and an anti-expert, against sums that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from otter_export.modeling.data import LABELS, Batch, Item, Row, collate
from otter_export.modeling.objectives.experts import Experts
from otter_export.modeling.otter_model import OtterOutput
from otter_export.signals import Signal

SIGNAL = Signal("style", "expert", "identity", None)
V, WIDTH = 5, 3
ROWS = {"expert": Row((1, 2, 3, 4), 2), "anti": Row((0, 3, 1), 1), "neutral": Row((2, 2, 4), 1)}
#: Row of the batch, position that predicts, and what comes: every supervised token behind another.
PREDICTIONS = {"expert": [(1, 3), (2, 4)], "anti": [(0, 3), (1, 1)], "neutral": [(0, 2), (1, 4)]}


def data() -> Batch:
    return collate([Item(i, (row,), LABELS[label]) for i, (label, row) in enumerate(ROWS.items())])


def made(scale: float = 1.0) -> tuple[OtterOutput, torch.nn.Linear, torch.nn.Module]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, V, generator=generator)
    channel = torch.randn(3, 4, WIDTH, generator=generator)
    linear = torch.nn.Linear(WIDTH, 2 * V)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2 * V, WIDTH, generator=generator) * scale)
        linear.bias.zero_()
    head = torch.nn.Sequential(linear, torch.nn.Unflatten(-1, (2, V)))
    return OtterOutput(logits, {}, channel, None), linear, head


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum())


def by_hand(output: OtterOutput, linear: torch.nn.Linear) -> dict[str, list[tuple[float, ...]]]:
    """For each label and token: entropy of its class, of the base, and divergence."""
    weight = linear.weight.detach().double().numpy().reshape(2, V, WIDTH)
    found: dict[str, list[tuple[float, ...]]] = {}
    for row, (label, tokens) in enumerate(PREDICTIONS.items()):
        heads = {"expert": [0], "anti": [1], "neutral": [0, 1]}[label]
        for at, token in tokens:
            z = output.logits[row, at].double().numpy()
            state = output.channel[row, at].double().numpy()
            base = log_softmax(z)
            ours = [log_softmax(z + weight[head] @ state) for head in heads]
            kl = np.mean([np.sum(np.exp(base) * (base - q)) for q in ours])
            found.setdefault(label, []).append((-ours[0][token], -base[token], kl))
    return found


def test_the_loss_is_that_of_the_definition() -> None:
    output, linear, head = made()
    tokens = by_hand(output, linear)
    adds = [entropy + 0.25 * kl for label in ("expert", "anti") for entropy, _, kl in tokens[label]]
    adds += [3.0 * kl for _, _, kl in tokens["neutral"]]
    loss = Experts(SIGNAL, neutral=3.0, labelled=0.25).loss(output, data(), head)
    assert float(loss.detach()) == pytest.approx(np.mean(adds), rel=1e-5)  # float32
    loss.backward()  # type: ignore[no-untyped-call]
    assert linear.weight.grad is not None and linear.weight.grad.abs().min() > 0


def test_the_metric_says_what_each_class_gains_on_the_base() -> None:
    output, linear, head = made()
    tokens = by_hand(output, linear)
    objective = Experts(SIGNAL, neutral=2.0)
    metrics = objective.metrics(objective.judge(output, data(), head, ends=True))
    gains = {k: np.mean([b - e for e, b, _ in tokens[k]]) for k in ("expert", "anti")}
    divergence = np.mean([kl for *_, kl in tokens["neutral"]])
    expected = gains | {"neutral": -divergence}
    expected["all"] = (2 * gains["expert"] + 2 * gains["anti"] - 2.0 * 2 * divergence) / 6
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_zero_offsets_gain_nothing_and_cost_nothing() -> None:
    output, _, head = made(scale=0.0)
    objective = Experts(SIGNAL)
    metrics = objective.metrics(objective.judge(output, data(), head, ends=True))
    assert metrics == pytest.approx(
        dict.fromkeys(("all", "expert", "anti", "neutral"), 0), abs=1e-6
    )


def test_labels_that_are_not_there_have_no_metric() -> None:
    output, _, head = made()
    only = collate([Item(0, (ROWS["expert"],), LABELS["expert"])])
    part = OtterOutput(output.logits[:1], {}, output.channel[:1], None)
    objective = Experts(SIGNAL)
    assert set(objective.metrics(objective.judge(part, only, head, True))) == {"all", "expert"}
    assert torch.isfinite(objective.loss(part, only, head))


def test_doubt_is_the_cross_entropy_of_a_text_s_class() -> None:
    """Ten times the mean log likelihood ratio of a text's tokens are the log odds of its class."""
    output, linear, head = made()
    weight = linear.weight.detach().double().numpy().reshape(2, V, WIDTH)
    doubts: dict[str, float] = {}
    for row, label in enumerate(("expert", "anti")):
        ratios = []
        for at, token in PREDICTIONS[label]:
            z, state = output.logits[row, at].double().numpy(), output.channel[row, at].double()
            expert, anti = (log_softmax(z + weight[i] @ state.numpy())[token] for i in (0, 1))
            ratios.append(expert - anti if label == "expert" else anti - expert)
        doubts[label] = float(np.log1p(np.exp(-10 * np.mean(ratios))))
    plain, told = Experts(SIGNAL), Experts(SIGNAL, discriminative=0.5)
    # Two tokens of each class, of six in all.
    added = 0.5 * 2 * sum(doubts.values()) / 6
    loss = told.loss(output, data(), head) - plain.loss(output, data(), head)
    assert float(loss.detach()) == pytest.approx(added, rel=1e-4)
    metrics = told.metrics(told.judge(output, data(), head, ends=True))
    before = plain.metrics(plain.judge(output, data(), head, ends=True))
    assert metrics["class"] == pytest.approx(np.log(2) - np.mean(list(doubts.values())), rel=1e-4)
    # Zero offsets leave the class in doubt by log 2.
    assert metrics["all"] - before["all"] == pytest.approx(0.5 * 4 / 6 * metrics["class"], rel=1e-4)
    assert {k: v for k, v in metrics.items() if k not in ("all", "class")} == pytest.approx(
        {k: v for k, v in before.items() if k != "all"}
    )


def test_without_labelled_text_no_class_is_told() -> None:
    output, _, head = made()
    only = collate([Item(0, (ROWS["neutral"],), LABELS["neutral"])])
    part = OtterOutput(output.logits[2:, :3], {}, output.channel[2:, :3], None)
    plain, told = Experts(SIGNAL), Experts(SIGNAL, discriminative=0.5)
    assert set(told.metrics(told.judge(part, only, head, True))) == {"all", "neutral"}
    assert torch.equal(told.loss(part, only, head), plain.loss(part, only, head))
