"""L4: judges that are scripts: their verdicts, and every way in which one can fail."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from otter_export.errors import RequestError
from otter_export.evaluation.judge_command import JudgeCommand, Pair, compare

LONGER = """
import json, sys
for line in sys.stdin:
    pair = json.loads(line)
    a, b = len(pair["a"]), len(pair["b"])
    print("a" if a > b else "b" if b > a else "tie")
"""
PAIRS = [Pair("p", "long one", "short"), Pair("é\n", "x", "y"), Pair("", "", "z")]
Make = Callable[..., JudgeCommand]


@pytest.fixture
def judge(tmp_path: Path) -> Make:
    """``judge(source)`` is a judge that runs a Python script."""

    def make(source: str, seconds: float = 30.0) -> JudgeCommand:
        script = tmp_path / "a judge.py"
        script.write_text(source)
        return JudgeCommand.parse(shlex.join([sys.executable, str(script)]), seconds)

    return make


def test_verdicts_come_in_order(judge: Make) -> None:
    assert judge(LONGER)(PAIRS) == [1.0, 0.5, 0.0]


def test_every_text_is_first_once(judge: Make) -> None:
    wins = compare(judge("import sys\nfor _ in sys.stdin: print(' A ')"), ["p"] * 3, "abc", "xyz")
    assert wins.share.tolist() == [0.5, 0.5, 0.5] and wins.agreement == 0


def test_the_longer_text_wins(judge: Make) -> None:
    wins = compare(
        judge(LONGER), ["p"] * 4, ["long", "a", "ab", "same"], ["a", "long", "cd", "same"]
    )
    assert wins.share.tolist() == [1, 0, 0.5, 0.5] and wins.agreement == 1


texts = st.lists(st.text("ab", max_size=3), min_size=1, max_size=8)


@hypothesis.given(texts, st.integers(0, 9), st.floats(0, 1))
def test_the_share_is_that_of_a_judge_whatever_order_it_prefers(
    mine: list[str], seed: int, preference: float
) -> None:
    """The longer text gets 1, and the first of two that are as long ``preference``."""
    asked: list[Pair] = []

    def ask(pairs: Sequence[Pair]) -> list[float]:
        asked.extend(pairs)
        sizes = [(len(p.a), len(p.b)) for p in pairs]
        return [preference if a == b else float(a > b) for a, b in sizes]

    others = mine[::-1]
    there = compare(ask, mine, mine, others, seed=seed)
    expected = [float(len(a) > len(b)) if len(a) != len(b) else 0.5 for a, b in zip(mine, others)]  # noqa: B905
    np.testing.assert_allclose(there.share, expected)
    # All pairs that differ, in both orders.
    differing = [(p, a, b) for p, a, b in zip(mine, mine, others, strict=True) if a != b]
    assert sorted(asked) == sorted([*differing, *((p, b, a) for p, a, b in differing)])
    assert (there.agreement is None) == (not differing)


def test_nobody_is_asked_about_the_same_texts() -> None:
    wins = compare(lambda pairs: 1 / 0, ["p", "q"], ["a", "b"], ["a", "b"])  # type: ignore[arg-type, return-value]
    assert wins.share.tolist() == [0.5, 0.5] and wins.agreement is None


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise SystemExit(3)", "failed with status 3$"),
        ("import sys\nsys.exit('no key\\nfor the service')", "status 1: for the service$"),
        ("print('a')", "wrote 1 lines for 3 pairs; expected one line for each: a, b or tie"),
        ("print('a\\n' * 4)", "wrote 5 lines for 3 pairs"),
        ("print('a\\nthe first\\nb')", "wrote 'the first' in line 2; expected a, b or tie"),
        ("print('\\xff' * 9)", "in line 1; expected a, b or tie"),
        ("while True: print('a' * 9999)", "wrote more than [0-9]+ bytes"),
        ("import os\nos.kill(os.getpid(), 9)", "failed with status -9"),
    ],
)
def test_a_judge_that_fails_is_one_line(judge: Make, source: str, error: str) -> None:
    with pytest.raises(RequestError, match=error) as caught:
        judge(source)(PAIRS)
    assert "a judge.py" in str(caught.value)


def test_a_judge_that_hangs_ends_with_all_that_it_started(tmp_path: Path) -> None:
    script = tmp_path / "judge.sh"
    script.write_text('sleep 600 & echo $! > "$1"; wait')
    command = shlex.join(["sh", str(script), str(tmp_path / "child")])
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"was not done after 1\.5 seconds; give it more"):
        JudgeCommand.parse(command, 1.5)(PAIRS)
    assert time.monotonic() - started < 60
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.1)
    pytest.fail("the judge's child still runs")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_judge_need_not_read_all_that_it_is_given(judge: Make) -> None:
    pairs = [Pair("p", "x" * 5000, "y")] * 100
    assert judge("print('b\\n' * 99 + 'b')")(pairs) == [0.0] * 100


@pytest.mark.parametrize("command", ["", "no-such-judge --now", "'unclosed"])
def test_what_is_no_command_is_refused_at_once(command: str) -> None:
    with pytest.raises(RequestError, match="is no command"):
        JudgeCommand.parse(command)


def test_the_judge_of_the_page_judges(judge: Make, repository: Path) -> None:
    pytest.importorskip("vaderSentiment")
    page = (repository / "docs" / "evaluation.md").read_text(encoding="utf-8")
    source = next(c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "stdin" in c)
    pairs = [Pair("It was", " wonderful.", " awful."), Pair("It was", " on.", " on.")]
    assert judge(source)(pairs) == [1.0, 0.5]


def test_no_shell_reads_the_command(tmp_path: Path, judge: Make) -> None:
    source = "import json, sys\nfor line in sys.stdin: json.loads(line)\nprint('a\\na\\na')"
    command = judge(source)
    spoken = JudgeCommand((*command.arguments, "; touch", str(tmp_path / "made"), "$HOME"))
    assert json.dumps(spoken(PAIRS)) == "[1.0, 1.0, 1.0]"
    assert not (tmp_path / "made").exists()
