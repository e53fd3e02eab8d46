"""L0: no setting that a family's model depends on is lost before a library reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedConfig

from otter_export.base_model import BaseModel
from tests.families.bases import CASES, Case, write_base

#: Of training, of initial values, of generation, and of heads for other tasks; and what
#: ``layer_types`` says already.
OF_NO_GRAPH = {
    *("attention_dropout", "hidden_dropout", "embedding_dropout", "residual_dropout"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "classifier_dropout", "initializer_range"),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "is_decoder"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *("summary_first_dropout", "sliding_window_pattern"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_field_of_the_configuration_is_known(case: Case, tmp_path: Path) -> None:
    """Transformers' class has no field that `library_config` drops, but for those above."""
    config = AutoConfig.from_pretrained(write_base(case, tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    kept = BaseModel.open(tmp_path).library_config
    fields = {name for name in type(config)().to_dict() if not name.startswith("_")}
    assert fields - set(kept) - set(PreTrainedConfig().to_dict()) <= OF_NO_GRAPH
