"""L4: how drafts are asked for (Python, command line, files), and what is counted of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otter_export import Plain, Request, generate
from otter_export.cli.main import _run
from otter_export.errors import RequestError
from otter_export.runtime.prompt_file import Defaults, read_prompts
from otter_export.runtime.scheduler import Scheduler
from tests.runtime.fake_engine import FakeEngine, make_manifest
from tests.runtime.tiny_model import make_model


def repeating() -> FakeEngine:
    """After 1 to 5 comes 1 again."""
    return FakeEngine(make_manifest(), script={place: 1 + (place + 1) % 5 for place in range(128)})


PROMPT = [1, 2, 3, 4, 5, 1, 2]


def test_what_is_no_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(RequestError, match="drafts must be the name of a drafter, got 3"):
        Request("a", drafts=3)  # type: ignore[arg-type]
    message = "drafts must be one of none, lookup, auto here, got 'medusa'"
    with pytest.raises(RequestError, match=message):
        generate(repeating(), "a b", drafts="medusa")


def test_the_result_has_counts_where_drafts_were_asked_for() -> None:
    plain, drafted = (
        generate(repeating(), Request(PROMPT, Plain(), 16, drafts=name))[0]
        for name in ("none", "lookup")
    )
    assert (plain.drafted, plain.accepted) == (None, None)
    assert {"drafted", "accepted"}.isdisjoint(plain.to_json())
    # Two steps of eight tokens, each the next one and seven drafts.
    assert (drafted.to_json()["drafted"], drafted.to_json()["accepted"]) == (14, 14)
    assert (plain.forwards, drafted.forwards) == (16, 2)


def test_the_scheduler_counts_them() -> None:
    scheduler = Scheduler(repeating())
    for name in ("none", "lookup", "lookup"):
        scheduler.submit(Request(PROMPT, Plain(), 16, drafts=name), on_event=lambda event: None)
    while scheduler.step():
        pass
    stats = scheduler.stats
    assert (stats.drafted, stats.accepted, stats.tokens) == (28, 28, 48)


def test_a_prompt_of_a_file_may_have_its_own(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "drafts": "auto"}\n{"prompt": "b"}\n')
    requests = read_prompts(path, Defaults(request={"drafts": "lookup"}))
    assert [request.drafts for request in requests] == ["auto", "lookup"]


def test_the_command_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(seed=3).save(tmp_path / "engine")
    command = ["generate", str(tmp_path / "engine"), "a film a film", "--method", "plain", "--json"]
    lines = []
    for name in ("none", "lookup"):
        assert _run([*command, "--drafts", name, "--max-tokens", "12"], verbose=False) == 0
        lines.append(json.loads(capsys.readouterr().out))
    assert lines[0]["token_ids"] == lines[1]["token_ids"]
    assert "accepted" not in lines[0]
    assert lines[1]["forwards"] == 12 - lines[1]["accepted"]
    assert _run([*command, "--drafts", "medusa"], verbose=False) == 2
    error = capsys.readouterr().err
    assert "drafts must be one of none, lookup, auto here, got 'medusa'" in error
    assert error.count("\n") == 1
