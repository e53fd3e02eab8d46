"""Which cases a module's tests are run on: ``pytestmark = EVERY_CASE``.

What takes long and depends on a base's kind, not on each of its settings, is run on one case of
every model type; ``make families`` runs it on all.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.families.bases import CASES, Case


def _on(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """The fixture ``made``, of each of these."""
    return pytest.mark.parametrize(
        "made", tuple(cases), ids=lambda case: case.name, indirect=True, scope="module"
    )


EVERY_CASE = _on(CASES)
EVERY_MODEL_TYPE = _on({case.model_type: case for case in reversed(CASES)}.values())
