"""L2: several signals that learn together, and others that are judged beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.errors import ConfigError
from otter_export.modeling.learner import Task
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal
from tests import tiny
from tests.modeling.reference import widths
from tests.modeling.test_new_objectives import cycles, styled
from tests.modeling.test_training import assert_same_result, sentences

STYLE = Signal("style", "expert", "identity", None)
AHEAD = Signal("ahead", "medusa", "identity", None, 2)
SIGNALS = (tiny.REWARD, tiny.NEXT, STYLE, AHEAD)
CONFIG = TrainingConfig(
    epochs=2, batch_tokens=256, learning_rate=1e-2, eval_every=5, weight_decay=0.0
)
#: Eight steps.
SHORT = dataclasses.replace(CONFIG, epochs=1, eval_every=3)
#: Of different sizes, so that their epochs end at different steps.
REWARD = Task("reward", "regression", sentences(240), sentences(40, 1))
TONE = Task("style", "experts", styled(120, 0), styled(30, 1), 0.5)
DRAFTS = Task("ahead", "drafts", cycles(40, 0), cycles(20, 1), 0.3)
NEXT = Task("next", "distill", (), cycles(30, 2))


def make(
    path: Path,
    tasks: Sequence[Task],
    watched: Sequence[Task] = (),
    config: TrainingConfig = CONFIG,
) -> Trainer:
    """A trainer over the checkpoint at a path, which is made if it is not there."""
    if not path.is_dir():
        tiny.write_checkpoint(path, signals=SIGNALS, **widths("llama"))
    return Trainer(Checkpoint.open(path), config, tasks, watched)


def gradients(path: Path, *tasks: Task) -> dict[str, torch.Tensor]:
    """Of the first step, before they are clipped to a length of 1e9."""
    trainer = make(path, tasks, config=dataclasses.replace(CONFIG, max_steps=1, clip=1e9))
    assert trainer.run()
    moved = dict(trainer.model.channel_parameters()) | trainer.moved
    return {
        name: torch.zeros(()) if p.grad is None else p.grad.clone() for name, p in moved.items()
    }


def test_gradients_are_the_weighted_sum_of_those_alone(tmp_path: Path) -> None:
    tasks = (REWARD, TONE, DRAFTS)
    alone = [gradients(tmp_path / "ck", dataclasses.replace(t, weight=1.0)) for t in tasks]
    together = gradients(tmp_path / "ck", *tasks)
    for name, found in together.items():
        expected = sum(t.weight * g[name] for t, g in zip(tasks, alone, strict=True))
        assert isinstance(expected, torch.Tensor)
        # A weight scales before the backward pass here and behind it there: float32 rounds
        # otherwise, by some units in the last place of the largest terms.
        scale = max(float(g[name].abs().max()) for g in alone)
        assert float((found - expected).abs().max()) <= 1e-5 * scale, name
    # Powers of two scale without rounding, so that sums of two are bit for bit the same.
    two = gradients(tmp_path / "ck", REWARD, TONE)
    for name, found in two.items():
        assert torch.equal(found, alone[0][name] + 0.5 * alone[1][name]), name


def test_all_learn_in_one_run(tmp_path: Path) -> None:
    trainer = make(tmp_path / "ck", (REWARD, TONE, DRAFTS))
    assert trainer.steps_per_epoch == len(trainer.learners[0].groups(0))
    assert len({len(learner.groups(0)) for learner in trainer.learners}) == 3
    assert trainer.run()
    trainer.use_best()
    first = trainer.progress.evaluations[0]["signals"]
    for learner in trainer.learners:
        found = learner.evaluate(learner.sample)
        assert learner.chosen(found) > learner.chosen(first[learner.name]) + 0.2, learner.name
    # Shorter ones begin anew meanwhile.
    steps = trainer.progress.step
    for learner, (epoch, batch) in zip(trainer.learners, trainer.progress.places, strict=True):
        assert sum(len(learner.groups(e)) for e in range(epoch)) + batch == steps
    assert trainer.progress.places[2][0] > trainer.progress.places[0][0]


def test_the_best_step_has_the_largest_sum_of_metrics(tmp_path: Path) -> None:
    trainer = make(tmp_path / "ck", (REWARD, DRAFTS), config=SHORT)
    assert trainer.run()
    sums = {}
    for e in trainer.progress.evaluations:
        reward, ahead = e["signals"]["reward"], e["signals"]["ahead"]
        sums[e["step"]] = reward["pearson"]["100"] + ahead["acceptance"]["all"]
        assert e["loss"] == pytest.approx(reward["loss"] + 0.3 * ahead["loss"], rel=1e-12)
    assert trainer.progress.best_step == max(sums, key=lambda step: sums[step])


def test_a_stopped_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    tasks, watched = (REWARD, TONE, DRAFTS), (NEXT,)
    whole = make(tmp_path / "whole", tasks, watched, SHORT)
    assert whole.run()
    for stop_at in (2, 5):  # before and after the shortest epoch's end
        run = make(tmp_path / "stopped", tasks, watched, SHORT)
        run.resume()
        assert not run.run(should_stop=lambda run=run, at=stop_at: run.progress.step >= at)
    last = make(tmp_path / "stopped", tasks, watched, SHORT)
    assert last.resume() and last.progress.step == 5
    assert last.run()
    assert_same_result(last, whole)
    assert last.progress.places == whole.progress.places
    assert last.progress.watched == whole.progress.watched


def test_a_state_of_other_tasks_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "ck", (REWARD, TONE)).run(should_stop=lambda: True)
    heavier = dataclasses.replace(TONE, weight=0.25)
    for tasks, watched in (
        ((REWARD, heavier), ()),
        ((REWARD,), ()),
        ((TONE, REWARD), ()),
        ((REWARD, TONE), (NEXT,)),
    ):
        with pytest.raises(ConfigError, match="--restart"):
            make(tmp_path / "ck", tasks, watched).resume()
    assert make(tmp_path / "ck", (REWARD, TONE)).resume()


def test_a_frozen_channel_keeps_the_metrics_of_others_bit_for_bit(tmp_path: Path) -> None:
    watched = [dataclasses.replace(task, train=()) for task in (TONE, DRAFTS)]
    for freeze, same in (("channel", True), ("nothing", False)):
        config = dataclasses.replace(SHORT, freeze=freeze)
        trainer = make(tmp_path / freeze, (REWARD,), watched, config)
        assert trainer.run()
        trainer.use_best()
        assert trainer.progress.best_step > 0
        before, after = trainer.progress.watched, trainer.judge_watched()
        assert before.keys() == after.keys() == {"style", "ahead"}
        for name in before:
            assert (before[name] == after[name]) == same, (freeze, name)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    learns = dataclasses.replace(NEXT, train=NEXT.held_out)
    with pytest.raises(ConfigError, match=r"distill of signal next .* give --freeze channel"):
        make(tmp_path / "ck", (REWARD, learns))
    frozen = dataclasses.replace(CONFIG, freeze="channel")
    heads = {f"signals.{name}.{part}" for name in ("reward", "next") for part in ("weight", "bias")}
    assert set(make(tmp_path / "ck", (REWARD, learns), config=frozen).parameters) == heads
    with pytest.raises(ConfigError, match="signal reward is trained twice"):
        make(tmp_path / "ck", (REWARD, REWARD))
    with pytest.raises(ConfigError, match="signal style is judged besides twice"):
        make(tmp_path / "ck", (REWARD,), (TONE, TONE))
    with pytest.raises(ConfigError, match="weight must be a finite number above 0, got 0"):
        dataclasses.replace(TONE, weight=0)


def test_a_better_start_is_taken_and_a_worse_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dataclasses.replace(NEXT, train=NEXT.held_out)
    trainer = make(tmp_path / "ck", (task,), config=dataclasses.replace(CONFIG, max_steps=1))
    drawn = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    start = trainer.learners[0].start()
    monkeypatch.setattr(trainer, "_step", lambda: setattr(trainer.progress, "step", 1) or 0.0)
    assert trainer.run()
    losses = [e["loss"] for e in trainer.progress.evaluations]
    better = losses[1] < losses[0]
    for name, parameter in trainer.parameters.items():
        assert torch.equal(parameter, start[name] if better else drawn[name]), name
    assert losses[2] == min(losses[:2]) and [e["step"] for e in trainer.progress.evaluations] == [
        0,
        0,
        1,
    ]
    # The other way round: from the start, what was drawn is tried.
    other = {name: drawn[name] if better else start[name] for name in drawn}
    again = make(tmp_path / "ck", (task,), config=dataclasses.replace(CONFIG, max_steps=1))
    with torch.no_grad():
        for name, parameter in again.parameters.items():
            parameter.copy_(start[name] if better else drawn[name])
    monkeypatch.setattr(again.learners[0], "start", lambda: other)
    monkeypatch.setattr(again, "_step", lambda: setattr(again.progress, "step", 1) or 0.0)
    assert again.run()
    assert again.progress.evaluations[2]["loss"] == again.progress.evaluations[0]["loss"]
