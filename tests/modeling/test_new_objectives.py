"""L2: experts, drafts and distilled scores learn on tiny models, and the base keeps its bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import LABELS, Item, Row
from otter_export.modeling.learner import Task
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal
from tests import tiny
from tests.modeling.reference import widths

STYLE = Signal("style", "expert", "identity", None)
AHEAD = Signal("ahead", "medusa", "identity", None, 2)
WORDS = {"expert": range(3, 11), "anti": range(11, 19), "neutral": range(3, 40)}
CONFIG = TrainingConfig(epochs=3, batch_tokens=256, learning_rate=1e-2, weight_decay=0.0)


def trainer(
    directory: Path,
    config: TrainingConfig,
    task: Task,
    signals: tuple[Signal, ...],
    **channel: object,
) -> Trainer:
    if not directory.is_dir():
        options = {**widths("llama"), **channel}
        tiny.write_checkpoint(directory, signals=signals, **options)
    return Trainer(Checkpoint.open(directory), config, [task])


def styled(count: int, seed: int) -> list[Item]:
    """Texts of good words, of bad words, and of both and others."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(list(LABELS), count)
    return [
        Item(i, (Row((50, *generator.choice(WORDS[label], 6).tolist(), 2), 1),), LABELS[label])
        for i, label in enumerate(labels)
    ]


def test_experts_learn_the_words_of_their_class(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=4)
    task = Task("style", "experts", styled(240, 0), styled(60, 1))
    run = trainer(tmp_path / "ck", config, task, (STYLE,))
    before = run.model(torch.tensor([[50, 4, 20]])).logits
    assert run.run()
    run.use_best()
    start = run.progress.evaluations[0]["signals"]["style"]["gain"]
    gain = run.learners[0].evaluate(task.held_out)["gain"]
    # Eight words and the end, of 128: a base of random weights knows nothing of them.
    assert gain["expert"] > start["expert"] + 1 and gain["anti"] > start["anti"] + 1
    assert gain["neutral"] > -1.0, "the base is left further than its penalty is worth"
    with torch.no_grad():
        after = run.model(torch.tensor([[50, 4, 20]]))
    difference = after.signals["style"][0, 0]
    good, bad = (difference[list(WORDS[name])].mean() for name in ("expert", "anti"))
    assert float(good - bad) > 2.0
    assert torch.equal(after.logits, before)


def test_the_penalty_keeps_both_near_the_base(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=12)
    task = Task("style", "experts", styled(240, 0), styled(60, 1))
    found = []
    for weight in (0.0, 10.0):
        settings = dataclasses.replace(config, neutral_weight=weight)
        run = trainer(tmp_path / str(weight), settings, task, (STYLE,))
        run.run()
        found.append(run.learners[0].evaluate(task.held_out)["gain"]["neutral"])
    assert found[0] < 2 * found[1] < 0


def cycles(count: int, seed: int) -> list[Item]:
    """Four words over and over, of six such cycles: what the base says next repeats too."""
    generator = np.random.default_rng(seed)
    words = np.random.default_rng(0).integers(3, 128, (6, 4))
    items = []
    for i in range(count):
        cycle = np.roll(words[generator.integers(6)], generator.integers(4))
        items.append(Item(i, (Row(tuple(np.tile(cycle, 4).tolist()), 4),)))
    return items


@pytest.mark.parametrize("draft_vocab", [None, 64])
def test_drafts_learn_what_the_base_goes_on_to_write(
    draft_vocab: int | None, tmp_path: Path
) -> None:
    signal = dataclasses.replace(AHEAD, draft_vocab=draft_vocab)
    config = dataclasses.replace(CONFIG, epochs=10)
    items, held_out = cycles(160, 0), cycles(40, 1)
    task = Task("ahead", "drafts", items, held_out)
    run = trainer(tmp_path / "ck", config, task, (signal,))
    before = run.learners[0].evaluate(held_out)["acceptance"]
    assert run.run()
    run.use_best()
    after = run.learners[0].evaluate(held_out)["acceptance"]
    with torch.no_grad():
        rows = [run.model(torch.tensor([i.rows[0].ids])).logits[0].argmax(-1) for i in held_out]
    # Head i at t drafts the choice at t + i; a choice that is not drafted cannot be right.
    chosen = torch.cat([row[4 + 1 :] for row in rows])
    reach = float((chosen < (draft_vocab or 128)).float().mean())
    assert before["1"] < 0.2
    assert 0.5 * reach < after["1"] <= reach
    assert after["2"] > 0.5 * reach


@pytest.mark.parametrize("count", [0, 4])
def test_a_distilled_score_follows_its_teacher(count: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    items = [Item(i, (Row(tuple(generator.integers(3, 7, 8).tolist()), 1),)) for i in range(240)]
    signals = (tiny.REWARD, tiny.NEXT)
    config = dataclasses.replace(CONFIG, epochs=24, learning_rate=3e-2, alternatives=count)
    # A random channel, whose head is drawn large enough that its values differ.
    path = tiny.write_checkpoint(tmp_path / "ck", signals=signals, initialization="copy")
    run = trainer(path, config, Task("next", "distill", items[:200], items[200:]), signals)
    assert set(run.parameters) == {"signals.next.weight", "signals.next.bias"}
    (learner,), ids = run.learners, torch.tensor([items[0].rows[0].ids])
    with torch.no_grad():
        values = run.model(ids).signals["reward"].clone()
    before = learner.evaluate(learner.task.held_out)["pearson"]
    assert run.run()
    run.use_best()
    with torch.no_grad():
        assert torch.equal(run.model(ids).signals["reward"], values)
    after = learner.evaluate(learner.task.held_out)["pearson"]
    assert after["100"] > max(0.4, before["100"] + 0.2)
    if count:
        assert after["alternatives"] > max(0.4, before["alternatives"] + 0.2)
