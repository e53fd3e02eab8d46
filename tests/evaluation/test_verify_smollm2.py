"""L3: the real base with the shipped channel, int8: every check of the verification at full length.

``make demo`` verifies the fp32 and the int8 engine too, in the quick form.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.sentiment import material, recipe
from otter_export import insert
from otter_export.checkpoint import Checkpoint
from otter_export.errors import OtterError
from otter_export.evaluation.prompts import PROMPTS
from otter_export.evaluation.subject import Options
from otter_export.evaluation.verification import verify
from otter_export.insert import ChannelOptions
from tests import built


@pytest.mark.slow
def test_int8_passes_and_stays_near_the_checkpoint(tmp_path: Path) -> None:
    try:
        base = material.prepare().base
    except OtterError as error:
        pytest.skip(f"the real base is not at hand: {error}")
    widths = dict(zip(recipe.WIDTHS[::2], map(int, recipe.WIDTHS[1::2]), strict=True))
    options = ChannelOptions(
        hidden_size=widths["--hidden-size"],
        intermediate_size=widths["--intermediate-size"],
        heads=widths["--heads"],
        initialization="copy",
    )
    source = tmp_path / "checkpoint"
    insert.plan(str(base), source, options, adapter=True, replacements=recipe.SHIPPED).write()
    engine = built.build(Checkpoint.open(source), tmp_path / "engine", precision="int8")
    report = verify(engine, None, Options(PROMPTS))
    assert report.failed == ()
    results = {result.name: result for result in report.results}
    assert all(result.passed for result in results.values())
    assert results["logits"].numbers["rows"] > 150
    # The measured values are 0.93 and 0.06; a quarter of the gap to useless is left.
    assert results["precision"].numbers["top-1"] > 0.85
    assert results["signals"].measured is not None and results["signals"].measured < 0.12
