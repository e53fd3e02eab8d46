"""L4: guidance in vLLM's scheduler and sampler, against our own runtime on the torch reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from otter_export.runtime.engine import Engine
from tests.plugins.vllm.asked import (
    PROMPTS,
    SPECULATIVE,
    agrees,
    our_engine,
    our_tokens,
    request,
)
from tests.plugins.vllm.checkpoints import base_of, checkpoint_of
from tests.plugins.vllm.reference import Reference

VOCABULARY = 128
#: Greedy guidance that our runtime has too: one row a token.
LOCAL: Mapping[str, dict[str, Any]] = {
    "q_value": {"signal": "next", "weight": 4.0},
    "negative": {"signal": "next", "weight": -3.0, "top_k": 4},
    "expert": {"signal": "tone", "weight": 0.7},
    "gate": {"signal": "next", "weight": 6.0, "gate": 3.0},
    "sum": {"weights": {"next": 3.0, "tone": 0.5}},
    "minimum": {"signal": "next", "weight": 2.0, "minimum": {"next": 0.1}},
    "penalties": {"signal": "next", "weight": 4.0, "repetition_penalty": 1.7},
    "shares": {"signal": "next", "weight": 4.0, "presence_penalty": 1.5, "frequency_penalty": 0.5},
}
#: With a value: k candidates a token.
FED: Mapping[str, dict[str, Any]] = {
    "value": {"signal": "reward", "weight": 6.0},
    "value-negative": {"signal": "reward", "weight": -2.0},
    "value-gate": {"signal": "reward", "weight": 6.0, "gate": 3.5},
    "value-sum": {"weights": {"reward": 3.0, "next": 2.0}},
    "value-minimum": {"signal": "reward", "weight": 3.0, "minimum": {"reward": 0.2}},
    "value-penalties": {"signal": "reward", "weight": 6.0, "repetition_penalty": 1.7},
}
SHAPES: Mapping[str, dict[str, Any]] = {
    "late": {"first_layer": 1},
    "probe": {"first_layer": 2, "initialization": "probe"},
    "shared": {"attention": "shared"},
    "late-shared": {"first_layer": 1, "attention": "shared"},
    "table": {"embedding": "table"},
    "adapter": {"adapter": True},
}
#: What is refused, and what the message says.
MALFORMED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"otter_weight": "much"}, "otter_weight must be a finite number"),
    ({"otter_weight": float("nan")}, "otter_weight"),
    ({"otter_weight": True}, "otter_weight"),
    ({"otter_weight": 1.0, "otter_top_k": 1.5}, "otter_top_k must be an integer"),
    ({"otter_weight": 1.0, "otter_top_k": -1}, "otter_top_k must be an integer"),
    ({"otter_weight": 1.0, "otter_top_p": 0}, "otter_top_p"),
    ({"otter_weight": 1.0, "otter_gate": -1}, "otter_gate"),
    ({"otter_signal": "nobody"}, "the model has no reward 'nobody'"),
    ({"otter_signal": ["next"]}, "otter_signal must be a name"),
    ({"otter_weights": ["next"]}, "otter_weights must be NAME=NUMBER"),
    ({"otter_weights": {"next": 1}, "otter_weight": 2}, "leave otter_signal and otter_weight out"),
    ({"otter_minimum": {"nobody": 1}}, "the model has no reward 'nobody'"),
    ({"otter_wieght": 1}, "there is no otter_wieght"),
    ({"otter_rewards": 2}, "otter_rewards must be 0 or 1"),
    ({"otter_weight": 1.0, "otter_signal": "reward"}, "--speculative-config"),
)
_OURS = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def asked(prompt: list[int], options: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request whose penalties are vLLM's own."""
    own = {name: value for name, value in options.items() if name in _OURS}
    rest = {name: value for name, value in options.items() if name not in _OURS}
    return request(prompt, rest, **own, **fields)


def mixed(
    extra: Mapping[str, dict[str, Any]], count: int, *, seeded: bool = True
) -> list[dict[str, Any]]:
    """So many requests of all kinds: greedy, sampled, guided or not, several choices.

    Where prompts come in parts there are no seeds: there vLLM itself stops on CPUs ("CPU Generator
    does not use offset").
    """
    kinds = [
        *({**asked([0], options)} for options in {**LOCAL, **extra}.values()),
        request([0]),
        request([0], {}),
    ]
    least = {} if extra else {"min_p": 0.05}  # vLLM has none beside drafts
    if seeded:
        kinds += [
            request([0], temperature=1.0, seed=3, top_k=10),
            asked([0], LOCAL["q_value"], temperature=0.8, seed=5, top_p=0.9),
            asked([0], LOCAL["expert"], temperature=1.0, seed=6, **least),
            asked([0], LOCAL["q_value"], temperature=1.0, seed=7, n=2),
        ]
    return [
        {**kinds[i % len(kinds)], "prompt": [3 + (i * 7 + j) % 120 for j in range(1 + i % 40)]}
        for i in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class Session:
    """Checkpoints, and what vLLM answered."""

    main: Path
    shapes: Mapping[str, Path]
    answers: Mapping[str, Any]


@pytest.fixture(scope="module")
def session(
    run_jobs: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Session:
    """All engines of this module in one process."""
    root = tmp_path_factory.mktemp("engines")
    base = base_of("llama", root / "base")
    main = checkpoint_of("llama", root / "main", base)
    shapes = {n: checkpoint_of("llama", root / n, base, **kw) for n, kw in SHAPES.items()}
    plain = [request(p) for p in PROMPTS]
    singles = [[asked(p, options) for options in LOCAL.values()] for p in PROMPTS]
    many = mixed({}, 200)
    crowd = mixed(FED, 40)
    parts = mixed(FED, 40, seeded=False)
    shaped = [request(p, o) for p in PROMPTS for o in ({"signal": "reward"}, LOCAL["q_value"])]
    bad = [[request([5], extra_args=arguments)] for arguments, _ in MALFORMED]
    prompt_scores = [
        request(PROMPTS[0], {"signal": s}, prompt_logprobs=1) for s in ("next", "reward")
    ]
    # A cache of few small blocks, and prompts in parts: requests are preempted and come back.
    tight = {
        "block_size": 32,
        "num_gpu_blocks_override": 12,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 32,
    }
    speculative = {"speculative_config": SPECULATIVE}
    jobs = {
        "plain": {"model": base, "options": {"enforce_eager": True}, "batches": [plain]},
        # Those that come alone find the blocks of their prompts in the prefix cache.
        "main": {
            "model": main,
            "options": {"max_num_batched_tokens": 8192},
            "batches": [
                plain,
                *singles,
                many,
                mixed({}, 40, seeded=False),
                prompt_scores,
                *bad,
                *([one] for one in many[:40]),
            ],
        },
        "tight": {
            "model": main,
            "options": tight,
            "batches": [mixed({}, 40, seeded=False)],
            "preempts": True,
        },
        "fed": {
            "model": main,
            "options": speculative,
            "batches": [
                [asked(p, o) for p in PROMPTS for o in FED.values()],
                crowd,
                parts,
                *([one] for one in crowd[:20]),
            ],
        },
        "fed-tight": {
            "model": main,
            "options": {**speculative, **tight},
            "batches": [parts],
            "preempts": True,
        },
        **{name: {"model": path, "batches": [shaped]} for name, path in shapes.items()},
        "adapter": {
            "model": shapes["adapter"],
            "options": {"config_format": "otter"},
            "batches": [shaped],
        },
        "pipeline": {"model": main, "options": {"pipeline_parallel_size": 2}, "batches": []},
        "drafts": {
            "model": main,
            "options": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "batches": [],
        },
    }
    found = run_jobs(list(jobs.values()))
    return Session(main, shapes, dict(zip(jobs, found, strict=True)))


@pytest.fixture(scope="module")
def ours(session: Session) -> Engine:
    """Our engine on the same checkpoint."""
    return our_engine(session.main)


def batches(session: Session, name: str) -> list[Any]:
    """The answers of one engine."""
    found = session.answers[name]
    assert isinstance(found, list), found
    return found


def test_weight_zero_is_the_unmodified_class(session: Session) -> None:
    """Bit for bit, tokens and logprobs: the base's modules and their order are vLLM's own."""
    assert batches(session, "main")[0] == batches(session, "plain")[0]


@pytest.mark.parametrize("name", LOCAL)
def test_guidance_by_one_row(session: Session, ours: Engine, name: str) -> None:
    found = batches(session, "main")[1 : 1 + len(PROMPTS)]
    for prompt, answers in zip(PROMPTS, found, strict=True):
        answer = answers[list(LOCAL).index(name)]["outputs"][0]
        assert agrees(answer, our_tokens(ours, prompt, LOCAL[name], 8), VOCABULARY)


@pytest.mark.parametrize("name", FED)
def test_guidance_by_candidates(session: Session, ours: Engine, name: str) -> None:
    cases = [(p, n) for p in PROMPTS for n in FED]
    for (prompt, case), answer in zip(cases, batches(session, "fed")[0], strict=True):
        if case == name:
            result = our_tokens(ours, prompt, FED[name], 8)
            assert agrees(answer["outputs"][0], result, VOCABULARY)


def tokens(answers: list[Any]) -> list[Any]:
    """The tokens of every choice of every request."""
    return [[o["token_ids"] for o in answer["outputs"]] for answer in answers]


def test_a_batch_of_mixed_requests_equals_each_alone(session: Session) -> None:
    together = batches(session, "main")[1 + len(PROMPTS)]
    alone = [batch[0] for batch in batches(session, "main")[-40:]]
    assert len(together) == 200
    assert tokens(together)[: len(alone)] == tokens(alone)


def test_parts_of_prompts_and_preemptions_change_nothing(session: Session) -> None:
    whole = batches(session, "main")[2 + len(PROMPTS)]
    answers, preemptions = batches(session, "tight")
    assert preemptions > 0
    assert tokens(answers) == tokens(whole)


def test_candidates_in_a_batch_alone_and_preempted(session: Session) -> None:
    crowd = tokens(batches(session, "fed")[1])
    alone = tokens([batch[0] for batch in batches(session, "fed")[3:]])
    assert crowd[: len(alone)] == alone
    answers, preemptions = batches(session, "fed-tight")
    assert preemptions > 0
    assert tokens(answers) == tokens(batches(session, "fed")[2])


def test_several_choices_differ(session: Session) -> None:
    many = batches(session, "main")[1 + len(PROMPTS)]
    several = [answer for answer in many if len(answer["outputs"]) == 2]
    assert several
    assert any(a["outputs"][0] != a["outputs"][1] for a in several)


def test_rewards_of_a_prompt(session: Session, references: Callable[[Path], Reference]) -> None:
    by_next, by_value = batches(session, "main")[3 + len(PROMPTS)]
    _, signals = references(session.main).rows(PROMPTS[0])
    for i, token in enumerate(PROMPTS[0][1:]):
        found = [dict(a["prompt_logprobs"][i + 1])[VOCABULARY] for a in (by_next, by_value)]
        assert found == pytest.approx([signals["next"][i, token], signals["reward"][i]], abs=1e-5)


@pytest.mark.parametrize("index", range(len(MALFORMED)))
def test_bad_parameters_are_refused(session: Session, index: int) -> None:
    """One line each, and the engine goes on: all of them went to the same one."""
    answer = batches(session, "main")[4 + len(PROMPTS) + index][0]
    assert MALFORMED[index][1] in answer["error"]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_a_channel(
    session: Session, references: Callable[[Path], Reference], name: str
) -> None:
    cases = [(p, o) for p in PROMPTS for o in ({"signal": "reward"}, LOCAL["q_value"])]
    reference = references(session.shapes[name])
    for (prompt, options), answer in zip(cases, batches(session, name)[0], strict=True):
        reference.check(prompt, answer["outputs"][0], options)


def test_an_adapter_has_no_copy_of_its_base(session: Session) -> None:
    files = {path.name for path in session.shapes["adapter"].glob("*.safetensors")}
    assert files == {"otter.safetensors"}


def test_what_would_bypass_guidance_is_refused(session: Session) -> None:
    assert "not in a pipeline" in session.answers["pipeline"]["error"]
    assert "would bypass guidance" in session.answers["drafts"]["error"]
