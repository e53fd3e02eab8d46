"""L2: settings off their defaults: a setting that a table lets through is in the graph, too.

mobius-onnx drops some without a word (docs/upstream.md). The tiny bases keep most at their
defaults, so here all of a family's are changed at once; one that is lost makes other logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_export.families import FAMILIES
from otter_export.family import Family
from tests import built
from tests.families.bases import CASES, Case
from tests.families.cells import FP32
from tests.families.made import Made, prompts

#: What a setting is changed to; switches are turned.
OTHER: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_act", "activation_function", "hidden_activation"), "relu"),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), 0.05),
    **dict.fromkeys(("norm_eps", "norm_epsilon"), 0.05),
    **dict.fromkeys(("logit_scale", "residual_multiplier", "attention_multiplier"), 0.3),
    **dict.fromkeys(("logits_scaling", "embedding_multiplier"), 3.0),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), 2.0),
    "query_pre_attn_scalar": 40,
}
#: Of windows and rotations: the cases of the coverage table have them.
OF_CASES = {
    *("layer_types", "max_window_layers", "sliding_window_pattern"),
    *("no_rope_layers", "no_rope_layer_interval"),
    *("rope_local_base_freq", "rotary_pct", "rotary_emb_base"),
}


def case_of(family: Family) -> Case:
    """The family's first base."""
    return next(case for case in CASES if case.model_type in family.model_types)


def changed(family: Family, case: Case) -> dict[str, Any]:
    """Every setting that transformers' class has and the family does not refuse."""
    import transformers

    default = transformers.AutoConfig.for_model(case.model_type, **case.config).to_dict()
    announced = {key for key in (family.biases or {}).values() if isinstance(key, str)}
    switches = {*announced, "tie_word_embeddings"}
    known = (default.keys() & {*switches, *OTHER}) - {key for key, _, _ in family.refused}
    return {key: not default[key] if key in switches else OTHER[key] for key in sorted(known)}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_changed_setting_shows(name: str, tmp_path: Path) -> None:
    family = FAMILIES.load(name)
    case = case_of(family)
    settings = changed(family, case)
    made = Made(Case(name, case.model_type, {**case.config, **settings}), tmp_path)
    ids = torch.tensor([prompts()[-1]])
    with torch.no_grad():
        expected = made.hugging_face(ids).logits
        assert torch.equal(made.reference(ids).logits, expected)
    found = built.Graph.load(made.onnx())(ids.numpy())
    assert built.relative(found["logits"], expected.numpy()) < FP32, settings


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_setting_is_changed_here_or_by_a_case(name: str) -> None:
    family = FAMILIES.load(name)
    settings = {*family.settings, *(k for k in (family.biases or {}).values() if k is not True)}
    assert settings - OF_CASES <= changed(family, case_of(family)).keys()
