"""L3: the real base with the shipped channel, int8: every check of the verification at full length.

``make demo`` verifies the fp32 and the int8 engine too, in the quick form.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_export.evaluation.prompts import PROMPTS
from otter_export.evaluation.subject import Options
from otter_export.evaluation.verification import verify
from tests import built, smollm2


@pytest.mark.slow
def test_int8_passes_and_stays_near_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = smollm2.shipped_checkpoint(tmp_path / "checkpoint")
    engine = built.build(checkpoint, tmp_path / "engine", precision="int8")
    report = verify(engine, None, Options(PROMPTS))
    assert report.failed == ()
    results = {result.name: result for result in report.results}
    assert [name for name, result in results.items() if not result.passed] == ["experts"]
    assert results["logits"].numbers["rows"] > 150
    # The measured values are 0.93 and 0.06; a quarter of the gap to useless is left.
    assert results["precision"].numbers["top-1"] > 0.85
    assert results["signals"].measured is not None and results["signals"].measured < 0.12
