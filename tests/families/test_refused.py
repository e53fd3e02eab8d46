"""L0: refused model types are types of transformers, and no family's."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from otter_export.errors import UnsupportedError
from otter_export.families import FAMILIES, family_of
from otter_export.families.refused import REFUSED


def test_a_refused_type_exists_and_is_no_family_s() -> None:
    assert set(REFUSED) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert set(REFUSED).isdisjoint(t for n in FAMILIES for t in FAMILIES.load(n).model_types)


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_its_reason_is_one_line_of_the_message(model_type: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        family_of({"model_type": model_type}, "config.json")
    message = str(error.value)
    assert message.endswith(REFUSED[model_type])
    assert message.startswith(f"config.json: model_type '{model_type}' is not supported: ")
    assert "\n" not in message and len(message) < 250
