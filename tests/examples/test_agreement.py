"""L2: the demo's agreement with people's ratings, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.sentiment.agreement import agreement, table
from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Reader
from otter_export.modeling.learner import Task
from otter_export.modeling.tokenization import end_token_id, load_tokenizer
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import TrainingConfig
from tests import tiny


def test_it_is_the_correlation_that_training_reports(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "tiny", signals=(tiny.REWARD,)))
    path, signal = tmp_path / "rated.jsonl", checkpoint.config.signals[0]
    lines = [{"text": f"w{i} w{i + 2} w{i % 3} w9 w8", "score": i / 10 - 0.5} for i in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read: list[int] = []
    found = agreement(checkpoint.directory, path, 8, read.append)
    assert sum(read) == 8
    tokenizer, end = load_tokenizer(checkpoint.base.directory), end_token_id(checkpoint.base)
    items = Reader("regression", signal, tokenizer, end).read(path)[:8]
    task = Task(signal.name, "regression", items, items)
    (learner,) = Trainer(checkpoint, TrainingConfig(), [task]).learners
    expected = learner.evaluate(items)["pearson"]
    # Batches of another size: float32, summed in another order.
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(table(found).splitlines()) == len(found)
