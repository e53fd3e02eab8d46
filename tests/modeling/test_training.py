"""L2: training teaches the channel something that can be learned, and nothing to the base."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, ConfigError, UnsupportedError
from otter_export.modeling.data import Item, Row, collate
from otter_export.modeling.learner import Task
from otter_export.modeling.report import write_delta
from otter_export.modeling.train_state import DIRECTORY, load_state, remove_state
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import Progress, TrainingConfig, schedule
from otter_export.signals import Signal
from tests import tiny
from tests.modeling.reference import widths

GOOD, BAD, END = range(3, 11), range(11, 19), 2


def sentences(count: int, seed: int = 0) -> list[Item]:
    """Texts whose score is the share of good words minus that of bad ones, decided early on.

    Every word of a text has its side with probability 0.9, so each prefix tells, longer ones more.
    """
    generator = np.random.default_rng(seed)
    items = []
    for i in range(count):
        side = bool(generator.integers(2))
        words = [
            int(generator.choice(GOOD if (generator.random() < 0.9) == side else BAD))
            for _ in range(generator.integers(4, 9))
        ]
        items.append(Item(i, (Row((*words, END), 0),), 0.8 if side else -0.8))
    return items


def pairs(count: int, seed: int = 0) -> list[Item]:
    """After a common prompt, a text of good words against one of bad words."""
    generator = np.random.default_rng(seed)

    def row(words: range) -> Row:
        size = int(generator.integers(2, 7))
        return Row((30, 31, *(int(generator.choice(words)) for _ in range(size)), END), 2)

    return [Item(i, (row(GOOD), row(BAD))) for i in range(count)]


CONFIG = TrainingConfig(
    epochs=3, batch_tokens=256, learning_rate=1e-2, eval_every=5, weight_decay=0.0
)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a trainer over a fresh copy of one tiny checkpoint."""
    made = 0

    def make_trainer(
        config: TrainingConfig = CONFIG,
        family: str = "llama",
        train: list[Item] | None = None,
        held_out: list[Item] | None = None,
        directory: Path | None = None,
        signals: tuple[Signal, ...] = (tiny.REWARD, tiny.NEXT),
        signal: str = "reward",
        objective: str = "regression",
    ) -> Trainer:
        nonlocal made
        if directory is None:
            made += 1
            directory = tmp_path / str(made) / "ck"
            directory.parent.mkdir()
            tiny.write_checkpoint(directory, family, signals=signals, **widths(family))
        task = Task(
            signal,
            objective,
            sentences(240) if train is None else train,
            sentences(80, seed=1) if held_out is None else held_out,
        )
        return Trainer(Checkpoint.open(directory), config, [task])

    return make_trainer


def judged(trainer: Trainer, items: Sequence[Item] | None = None) -> dict[str, Any]:
    """Loss and metric of the one signal that learns; of the held-out items, unless others are."""
    (learner,) = trainer.learners
    return learner.evaluate(learner.task.held_out if items is None else items)


def base_bits(trainer: Trainer) -> dict[str, bytes]:
    state = trainer.model.base.state_dict()
    return {n: t.numpy().tobytes() for n, t in state.items() if ".otter." not in n}


def test_regression_learns_and_the_base_keeps_its_bits(
    make: Callable[..., Trainer], family: str
) -> None:
    trainer = make(family=family)
    before, bits = judged(trainer), base_bits(trainer)
    assert trainer.run()
    trainer.use_best()
    after = judged(trainer)
    assert before["loss"] > 0.4
    assert after["loss"] < 0.5 * before["loss"]
    assert after["pearson"]["100"] > 0.9
    # A quarter of a text is one word or two, of which a tenth mislead: correlation 0.8 at best.
    assert 0.6 < after["pearson"]["25"] < after["pearson"]["100"]
    assert after["pearson"]["end"] > 0.8
    assert base_bits(trainer) == bits


def test_a_q_value_signal_learns_the_value_of_the_next_token(make: Callable[..., Trainer]) -> None:
    items = [
        dataclasses.replace(i, rows=(dataclasses.replace(i.rows[0], start=1),))
        for i in sentences(240)
    ]
    trainer = make(dataclasses.replace(CONFIG, epochs=6), train=items, signal="next")
    assert trainer.run()
    trainer.use_best()
    with torch.no_grad():
        values = trainer.model(torch.tensor([[4, 5, 6]])).signals["next"][0, -1]
    # After good words: another good one is worth more than a bad one.
    assert float(values[list(GOOD)].mean()) > float(values[list(BAD)].mean()) + 0.1
    held_out = [
        dataclasses.replace(i, rows=(dataclasses.replace(i.rows[0], start=1),))
        for i in sentences(80, 1)
    ]
    assert judged(trainer, held_out)["pearson"]["100"] > 0.8


def test_pairwise_learns_at_every_prefix(make: Callable[..., Trainer]) -> None:
    trainer = make(train=pairs(120), held_out=pairs(60, seed=1), objective="pairwise")
    before = judged(trainer)
    assert trainer.run()
    trainer.use_best()
    after = judged(trainer)
    assert after["loss"] < 0.5 * before["loss"]
    assert all(accuracy > 0.95 for accuracy in after["accuracy"].values())


def test_only_the_chosen_tensors_change(make: Callable[..., Trainer]) -> None:
    pattern = r"layers\.1\..*(v_proj|o_proj)|signals"
    trainer = make(dataclasses.replace(CONFIG, trainable=pattern, epochs=1))
    before = {n: p.detach().clone() for n, p in trainer.model.channel_parameters()}
    trainer.run()
    changed = {n for n, p in trainer.model.channel_parameters() if not torch.equal(p, before[n])}
    assert changed == set(trainer.parameters)
    names = ("v_proj", "o_proj")
    expected = {f"model.layers.1.self_attn.{n}.otter.from_{s}" for n in names for s in
                ("base", "channel")}  # fmt: skip
    # The other signal's head is not trained, whatever the expression says.
    assert changed == expected | {"signals.reward.weight", "signals.reward.bias"}


def test_a_frozen_channel_leaves_the_other_signals_alone(make: Callable[..., Trainer]) -> None:
    trainer = make(dataclasses.replace(CONFIG, freeze="channel"))
    assert set(trainer.parameters) == {"signals.reward.weight", "signals.reward.bias"}
    assert trainer.at_stake == []
    ids = torch.tensor([[4, 5, 6, 14]])
    with torch.no_grad():
        before = trainer.model(ids).signals
    assert trainer.run()
    trainer.use_best()
    with torch.no_grad():
        after = trainer.model(ids).signals
    assert torch.equal(after["next"], before["next"])
    assert not torch.equal(after["reward"], before["reward"])
    assert trainer.changes_of_others() == {}


def test_what_a_moving_channel_does_to_other_signals_is_measured(
    make: Callable[..., Trainer],
) -> None:
    trainer = make(dataclasses.replace(CONFIG, epochs=1))
    assert trainer.at_stake == ["next"]
    batch = collate(trainer.learners[0].sample[:32])
    ids, supervised = batch.ids, batch.supervised
    with torch.no_grad():
        before = trainer.model(ids).signals["next"][supervised].double()
    assert trainer.run()
    trainer.use_best()
    with torch.no_grad():
        after = trainer.model(ids).signals["next"][supervised].double()
    change = float((after - before).abs().mean())
    found = trainer.changes_of_others()
    # In batches: float32 sums in another order.
    assert found["next"]["mean_change"] == pytest.approx(change, rel=1e-3) and change > 1e-3
    spread = float(before.std(correction=0))
    assert found["next"]["relative"] == pytest.approx(change / spread, rel=1e-3)
    with torch.no_grad():
        assert torch.equal(trainer.model(ids).signals["next"][supervised].double(), after)


def test_training_that_betters_nothing_changes_nothing(make: Callable[..., Trainer]) -> None:
    trainer = make(dataclasses.replace(CONFIG, max_steps=2, learning_rate=1e-12))
    first = {n: p.detach().clone() for n, p in trainer.parameters.items()}
    assert trainer.run()
    assert [e["step"] for e in trainer.progress.evaluations] == [0, 2]
    if trainer.progress.best_step == 0:
        assert all(torch.equal(trainer.best[n], p) for n, p in first.items())


@pytest.mark.parametrize(
    ("has", "dtype"), [((), "float32"), (("avx512_bf16",), "bfloat16"), (("amx_bf16",), "bfloat16")]
)
def test_auto_is_what_the_processor_has_instructions_for(
    has: tuple[str, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: name in has for name in ("avx2", "avx512_bf16", "amx_bf16", "amx_int8")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert TrainingConfig(dtype="auto").dtype == dtype


def test_bfloat16_learns_as_well(make: Callable[..., Trainer]) -> None:
    trainer = make(dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())
    assert trainer.model.base.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    trainer.run()
    trainer.use_best()
    assert judged(trainer)["pearson"]["100"] > 0.9
    assert trainer.changes_of_others()["next"]["mean_change"] > 0


def test_patience_stops_early_and_keeps_the_best(make: Callable[..., Trainer]) -> None:
    noise = [dataclasses.replace(i, score=0.5) for i in sentences(240)]
    trainer = make(dataclasses.replace(CONFIG, epochs=50, patience=2, eval_every=2), train=noise)
    assert trainer.run()
    assert trainer.progress.step < trainer.total_steps
    best = max(trainer.progress.evaluations, key=lambda e: e["signals"]["reward"]["pearson"]["100"])
    assert trainer.progress.best_step == best["step"]
    trainer.use_best()
    found = judged(trainer, trainer.learners[0].sample)
    assert found["pearson"] == best["signals"]["reward"]["pearson"]


def test_max_steps_ends_the_schedule(make: Callable[..., Trainer]) -> None:
    trainer = make(dataclasses.replace(CONFIG, max_steps=7))
    assert trainer.run()
    assert trainer.progress.step == trainer.total_steps == 7
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_max_seconds_ends_the_run(make: Callable[..., Trainer]) -> None:
    trainer = make(dataclasses.replace(CONFIG, epochs=10_000, max_seconds=1.0))
    assert trainer.run()
    assert 0 < trainer.progress.step < trainer.total_steps
    # At most one step and one evaluation late; they take milliseconds here.
    assert 1.0 <= trainer.progress.seconds < 10.0


def test_a_stopped_run_resumes_to_the_same_result(make: Callable[..., Trainer]) -> None:
    whole = make()
    assert whole.run()
    stopped = make()
    directory = stopped.checkpoint.directory
    for stop_at in (3, 4, stopped.steps_per_epoch, stopped.steps_per_epoch + 1):
        # Each time in a new trainer, as in a new process; also at the end of an epoch.
        run = make(directory=directory)
        run.resume()
        assert not run.run(should_stop=lambda run=run, at=stop_at: run.progress.step >= at)
        assert run.progress.step == stop_at
    last = make(directory=directory)
    assert last.resume()
    assert last.run()
    assert_same_result(last, whole)


def test_a_killed_run_resumes_to_the_same_result(make: Callable[..., Trainer]) -> None:
    """Killed without notice: the steps since the last saved state are done again."""

    class Killed(Exception):
        pass

    def listen(progress: Progress, total_steps: int) -> None:
        if progress.step == CONFIG.eval_every + 2:
            raise Killed

    whole = make()
    assert whole.run()
    killed = make()
    with pytest.raises(Killed):
        killed.run(listen)
    last = make(directory=killed.checkpoint.directory)
    assert last.resume()
    assert last.progress.step == CONFIG.eval_every
    assert last.run()
    assert_same_result(last, whole)


def assert_same_result(one: Trainer, other: Trainer) -> None:
    assert one.progress.curve == other.progress.curve
    assert one.progress.evaluations == other.progress.evaluations
    assert one.best.keys() == other.best.keys()
    for name in one.best:
        assert torch.equal(one.best[name], other.best[name]), name
        assert torch.equal(one.parameters[name], other.parameters[name]), name


def test_a_state_of_another_run_is_refused(make: Callable[..., Trainer]) -> None:
    trainer = make()
    trainer.run(should_stop=lambda: True)
    directory = trainer.checkpoint.directory
    other_seed = dataclasses.replace(CONFIG, seed=1)
    for other in (make(other_seed, directory=directory), make(train=pairs(9), directory=directory)):
        with pytest.raises(ConfigError, match="--restart"):
            other.resume()
    remove_state(directory)
    assert not make(other_seed, directory=directory).resume()


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_state_is_one_clear_error(make: Callable[..., Trainer], damage: str) -> None:
    trainer = make()
    trainer.run(should_stop=lambda: True)
    directory = trainer.checkpoint.directory
    (tensors,) = (directory / DIRECTORY).glob("*.safetensors")
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "remove":
        tensors.unlink()
    else:
        (directory / DIRECTORY / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="--restart"):
        load_state(directory)


def test_what_cannot_be_trained_is_refused(make: Callable[..., Trainer]) -> None:
    drafts = Signal("drafts", "medusa", "identity", None, 2)
    signals = (tiny.REWARD, drafts)
    with pytest.raises(UnsupportedError, match="of kind 'medusa'; accepted: drafts"):
        make(signal="drafts", signals=signals)
    with pytest.raises(UnsupportedError, match="the checkpoint has reward, next"):
        make(signal="price")
    with pytest.raises(ConfigError, match="no regular expression"):
        make(dataclasses.replace(CONFIG, trainable="("))
    with pytest.raises(ConfigError, match="matches no inserted tensor"):
        make(dataclasses.replace(CONFIG, trainable="layers\\.99"))
    with pytest.raises(ConfigError, match="matches no inserted tensor"):
        make(dataclasses.replace(CONFIG, freeze="channel", trainable="layers"))


def test_a_diverging_run_says_what_to_do(make: Callable[..., Trainer]) -> None:
    trainer = make()
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(float("nan"))
    with pytest.raises(ConfigError, match="--learning-rate"):
        trainer.run()


def test_a_last_step_that_destroys_the_tensors_gives_no_result(
    make: Callable[..., Trainer],
) -> None:
    """The loss is from before the step, so it says nothing about it."""
    far = {"learning_rate": 1e30, "weight_decay": 1e30}
    trainer = make(dataclasses.replace(CONFIG, max_steps=2, eval_every=1, **far))
    with pytest.raises(ConfigError, match=r"is NaN or infinite after step 1; .*--learning-rate"):
        trainer.run()
    assert all(torch.isfinite(tensor).all() for tensor in trainer.best.values())


def test_what_halves_cannot_hold_is_not_trained(
    make: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Stored in F16, it would be infinite."""
    far = dataclasses.replace(CONFIG, max_steps=2, eval_every=1, learning_rate=1e6)
    trainer = make(far, directory=tiny.write_checkpoint(tmp_path / "halves", dtype="F16"))
    with pytest.raises(ConfigError, match=r"after step 1, beyond the range of F16 \(65504\)"):
        trainer.run()
    assert all(tensor.abs().max() <= 65504 for tensor in trainer.best.values())


def test_a_delta_holds_no_infinity(tmp_path: Path) -> None:
    write_delta(tmp_path / "kept", {"a": torch.tensor([65504.0, -1.0])})
    with pytest.raises(CheckpointError, match=r"tensor a has values beyond .* without --delta"):
        write_delta(tmp_path / "delta", {"a": torch.tensor([1.0, -7e4])})
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("learning_rate", math.nan, "learning_rate must be a finite number above 0, got nan"),
        ("learning_rate", 0, "learning_rate must be a finite number above 0, got 0"),
        ("weight_decay", math.inf, "weight_decay must be a finite number at least 0, got inf"),
        ("clip", "1", "clip must be a finite number above 0, got '1'"),
        ("warmup", 1.0, "warmup must be a finite number at least 0 and at most 0.99, got 1.0"),
        ("max_seconds", -1, "max_seconds must be a finite number at least 0, got -1"),
        ("epochs", 0, "epochs must be an integer of at least 1, got 0"),
        ("seed", -1, "seed must be an integer of at least 0, got -1"),
        ("batch_tokens", 1.5, "batch_tokens must be an integer of at least 1, got 1.5"),
        ("trainable", None, "trainable must be a text, got None"),
        ("dtype", "float16", "dtype must be float32 or bfloat16 or auto, got 'float16'"),
    ],
)
def test_settings_are_checked(field: str, value: object, error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        dataclasses.replace(CONFIG, **{field: value})


def test_settings_of_numpy_are_numbers_of_python() -> None:
    config = TrainingConfig(learning_rate=np.float32(0.5), epochs=np.int64(2))  # type: ignore[arg-type]
    assert (type(config.learning_rate), type(config.epochs)) == (float, int)


def test_schedule_warms_up_and_ends_at_zero() -> None:
    assert schedule(0.0, 0.1) == 0.0
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(1.0, 0.1) == pytest.approx(0.0)
    assert schedule(2.0, 0.1) == pytest.approx(0.0)
