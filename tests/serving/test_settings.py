"""L0: settings through the texts of a config.pbtxt and back; what is out of range is an error."""

from __future__ import annotations

import numpy as np
import pytest

from otter_export.errors import ConfigError
from otter_export.serving.settings import Settings
from tests.runtime.fake_engine import make_manifest


def test_round_trip_of_every_setting() -> None:
    settings = Settings(
        max_batch_size=3,
        max_queue=7,
        default_method="plain",
        default_reward_weight=-0.25,
        default_gate=1.5,
        log_prompts=True,
        provider="cpu",
        threads=2,
    )
    texts = settings.to_parameters()
    assert all(isinstance(text, str) for text in texts.values())
    assert Settings.from_parameters(texts) == settings


def test_what_is_left_out_has_its_default_and_capitals_are_tritons() -> None:
    assert Settings.from_parameters({"EXECUTION_ENV_PATH": "x", "max_queue": "7"}) == Settings(
        max_queue=7
    )


BAD = [
    ({"max_qeue": "3"}, "unknown parameter 'max_qeue'; did you mean max_queue?"),
    ({"max_queue": "many"}, "max_queue must be an integer, got 'many'"),
    ({"max_queue": "-1"}, "max_queue must be an integer of at least 1, got -1"),
    ({"max_tokens": "0"}, "max_tokens must be an integer of at least 1, got 0"),
    ({"default_reward_weight": "nan"}, "default_reward_weight must be a finite number"),
    ({"default_gate": "-1"}, "default_gate must be a finite number at least 0, got -1.0"),
    ({"default_gate": "nan"}, "default_gate must be a finite number at least 0, got nan"),
    ({"default_gate": "inf"}, "default_gate must be a finite number at least 0, got inf"),
    ({"log_prompts": "yes"}, "log_prompts must be true or false, got 'yes'"),
    ({"default_method": "nucleus"}, "default_method must be one of auto, args-greedy"),
    ({"provider": "tpu"}, "provider must be one of empty, cpu, cuda"),
    ({"default_max_tokens": "2000"}, "default_max_tokens is 2000, above max_tokens"),
    ({"default_top_k": "65"}, "default_top_k is 65, above max_candidates"),
]


@pytest.mark.parametrize(("texts", "message"), BAD)
def test_bad_settings(texts: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_parameters(texts)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_queue", "many", "max_queue must be an integer of at least 1, got 'many'"),
        ("default_reward_weight", "1", "default_reward_weight must be a finite number, got '1'"),
        ("log_prompts", "yes", "log_prompts must be true or false, got 'yes'"),
        ("provider", None, "provider must be one of empty, cpu, cuda, got None"),
        ("provider", np.zeros(3), "provider must be one of empty, cpu, cuda, got "),
        ("default_method", ["plain"], "default_method must be one of auto, args-greedy"),
    ],
)
def test_bad_settings_of_python(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**{field: value})  # type: ignore[arg-type]


def test_settings_fit_a_small_engine() -> None:
    manifest = make_manifest(vocab_size=4, max_sequence_length=20)
    fitted = Settings().fitted(manifest)
    assert (fitted.max_tokens, fitted.default_max_tokens) == (19, 19)
    assert (fitted.max_candidates, fitted.default_top_k) == (4, 4)


def test_limits_of_the_scheduler() -> None:
    limits = Settings(max_batch_size=2, max_queue=7, cache_tokens=0, max_candidates=9).limits()
    assert (limits.max_batch_size, limits.max_queue, limits.cache_tokens) == (2, 7, None)
    assert (limits.max_tokens, limits.max_candidates) == (1024, 9)
