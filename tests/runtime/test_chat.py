"""L4: messages as a prompt, and conversations that feed only what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otter_export import (
    ArgsGreedy,
    ArgsStochastic,
    Chat,
    Conversation,
    Message,
    Plain,
    Request,
    generate,
    load_engine,
)
from otter_export.chat_template import ChatTemplate
from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.runtime.prompt_file import Defaults, read_prompts
from otter_export.runtime.request import Result, TokenEvent
from tests import built, smollm2, tiny
from tests.chat_templates import WORDS
from tests.command_line import run
from tests.runtime.fake_engine import ByteTokenizer, FakeEngine, make_manifest

PLAIN_TEXT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"


class ChatTokenizer(ByteTokenizer):
    """Characters of one byte alone, so that a text has the tokens that it came from."""

    def __init__(self, template: str = PLAIN_TEXT) -> None:
        super().__init__()
        self.chat_template = ChatTemplate(template, {})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("latin-1"))

    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i or not skip_special_tokens).decode("latin-1")


def fake(template: str = PLAIN_TEXT, most: int = 2000, **more: Any) -> FakeEngine:
    return FakeEngine(
        make_manifest(max_sequence_length=most), tokenizer=ChatTokenizer(template), **more
    )


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# Messages


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "a list of at least one"),
        ("hi", "a list of at least one"),
        (None, "a list of at least one"),
        ([{"role": "user"}], "message 1: content must be text, got None"),
        ([{"content": "x"}], "message 1: role must be one of system, user, assistant, got None"),
        ([{"role": "tool", "content": "x"}], "message 1: role must be one of .*, got 'tool'"),
        ([user("a"), {"role": ["user"], "content": "x"}], "message 2: role must be"),
        ([user("a"), "b"], "message 2 must be like"),
        ([{**user("a"), "tool_calls": []}], "message 1 has tool_calls; known are role and content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content must be text"),
        ([user("\ud800")], "message 1 is not valid Unicode: character 0"),
        ([user("a"), {"role": "assistant", "content": "b"}], "last message is of role assistant"),
        ([user("x" * (4 << 20)), user("x")], "4194305 characters together; at most 4194304"),
        ([user("x")] * 20_000, "there are 20000 messages; at most 16384"),
    ],
)
def test_what_is_wrong_is_one_line(messages: Any, problem: str) -> None:
    with pytest.raises(RequestError, match=problem) as caught:
        Chat(messages)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_list_of_messages_is_a_chat() -> None:
    assert Request([user("hi")]).prompt == Chat.of("hi") == Chat((Message("user", "hi"),))
    assert Chat.of("hi", "be").messages == (("system", "be"), ("user", "hi"))
    with pytest.raises(RequestError, match="role must be one of"):
        Request([{"role": "cat", "content": ""}])


def test_the_prompt_is_what_the_template_makes() -> None:
    result = generate(fake(), Chat.of("hi", "be"), Plain(), max_tokens=3)[0]
    assert result.prompt == "s:be\nu:hi\na:"
    assert bytes(result.prompt_ids) == b"s:be\nu:hi\na:"
    same = generate(fake(), result.prompt, Plain(), max_tokens=3)[0]
    assert same.token_ids == result.token_ids


def test_a_chat_that_is_longer_than_the_engine_is_one_line() -> None:
    with pytest.raises(RequestError, match=r"the prompt has 20\d\d tokens; the engine takes at"):
        generate(fake(), Chat.of("x" * 2000))


def test_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"messages": [user("a")], "weight": 2.0},
        {"messages": [{"role": "system", "content": "own"}, user("b")]},
        {"prompt": "c"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    first, second, third = read_prompts(path, Defaults(system="be"))
    assert first.prompt == Chat.of("a", "be") and first.method == ArgsGreedy(weight=2.0)
    assert second.prompt == Chat.of("b", "own")
    assert third.prompt == "c"
    assert read_prompts(path, Defaults(chat=True))[2].prompt == Chat.of("c")
    path.write_text('{"messages": 3}\n{"prompt": "", "messages": []}\n{}')
    with pytest.raises(RequestError, match=r"line 1: messages must.*line 2: .*line 3: expected"):
        read_prompts(path, Defaults())


# Conversations


def once(engine: FakeEngine, messages: list[Message], options: Request) -> Result:
    """The last turn as one prompt, with nothing before it."""
    prompt = Chat(tuple(messages))
    return generate(engine, prompt, options.method, max_tokens=options.max_tokens, seed=7)[0]


@pytest.mark.parametrize("script", [None, {9: 0, 40: 0, 60: 0}], ids=["length", "eos"])
@pytest.mark.parametrize("drafts", ["none", "lookup"])
@pytest.mark.parametrize(
    "method", [ArgsGreedy(weight=2.0), ArgsStochastic(), Plain(), Plain(temperature=1.0)]
)
def test_turns_are_one_prompt_token_for_token(method: Any, drafts: str, script: Any) -> None:
    options = Request("", method, max_tokens=12, seed=7, drafts=drafts)
    engine = fake(script=script)
    conversation = Conversation(engine, "be")
    for number, text in enumerate(["hi", "and again", "x", "x"]):
        asked = [*conversation.messages, Message("user", text)]
        before = conversation.messages
        result = conversation.say(text, options)
        assert result.token_ids == once(fake(script=script), asked, options).token_ids
        assert result.text == conversation.messages[-1].content
        if number:
            # All but the answer's last step was there; what was fed is new.
            answer = before[-1].content
            new = len(result.prompt_ids) - conversation.reused
            assert new == conversation.fed <= len(f"\nu:{text}\na:") + min(len(answer), 3)


@pytest.mark.parametrize(
    ("template", "reused"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content | upper }}{% endfor %}", 0),
        # The past is cut short, so the prompts part in the middle of the first message.
        ("{% for m in messages %}{{ m.content if loop.last else m.content[:4] }}|{% endfor %}", 4),
    ],
)
def test_a_template_that_writes_the_past_anew(template: str, reused: int) -> None:
    options = Request("", Plain(), max_tokens=5)
    conversation = Conversation(fake(template))
    conversation.say("first message", options)
    asked = [*conversation.messages, Message("user", "two")]
    result = conversation.say("two", options)
    assert conversation.reused == reused
    assert result.token_ids == once(fake(template), asked, options).token_ids


def events(iterator: Iterator[TokenEvent | Result], count: int) -> list[Any]:
    return [next(iterator) for _ in range(count)]


def test_a_turn_that_is_ended_keeps_what_was_said() -> None:
    options = Request("", Plain(), max_tokens=12)
    conversation = Conversation(fake())
    answer = conversation.stream("hi", options)
    said = events(answer, 4)
    answer.close()  # type: ignore[attr-defined]
    assert conversation.messages[-1].content == "".join(event.text for event in said)
    asked = [*conversation.messages, Message("user", "go on")]
    result = conversation.say("go on", options)
    assert conversation.fed == len("\nu:go on\na:")
    assert result.token_ids == once(fake(), asked, options).token_ids


def test_what_is_refused_changes_nothing() -> None:
    conversation = Conversation(fake(most=60), "be")
    options = Request("", Plain(), max_tokens=5)
    conversation.say("hi", options)
    before = list(conversation.messages)
    for text, bad in (
        ("x" * 60, options),
        ("x", Request("", ArgsGreedy(signal="no"))),
        ("x", Request("", rewards_from=0)),
    ):
        with pytest.raises(OtterError):
            conversation.stream(text, bad)
    with pytest.raises(RequestError, match="options must be a Request"):
        conversation.stream("x", "hi")  # type: ignore[arg-type]
    assert conversation.messages == before and conversation.system == "be"
    assert conversation.say("yo", options).prompt.endswith("u:yo\na:")


class Failing(FakeEngine):
    """Fails in a pass of its choice."""

    left = -1

    def forward(self, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise EngineError("out of memory")
        return super().forward(*args)


@pytest.mark.parametrize("calls", range(1, 6))
def test_after_a_failure_the_next_turn_is_right(calls: int) -> None:
    options = Request("", Plain(), max_tokens=6)
    engine = Failing(make_manifest(max_sequence_length=900), tokenizer=ChatTokenizer())
    conversation = Conversation(engine)
    conversation.say("hi", options)
    asked = [*conversation.messages, Message("user", "next")]
    engine.left = calls
    with pytest.raises(EngineError, match="out of memory"):
        conversation.say("long " * 100, options)
    engine.left = -1
    assert conversation.messages == asked[:-1]
    assert conversation.say("next", options).token_ids == once(fake(), asked, options).token_ids


# Engines


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny engine whose base has a chat template and its own stop tokens."""
    root = tmp_path_factory.mktemp("chat")
    base = tiny.write_base(root / "base")
    (base / "chat_template.jinja").write_text(WORDS)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    return built.build(built.checkpoint_over(base, root / "checkpoint"), root / "engine")


def test_template_and_stop_tokens_travel_into_an_engine(engine_dir: Path) -> None:
    engine = load_engine(engine_dir)
    assert engine.manifest.eos_token_ids == (2, 9)
    assert Chat.of("w20", "w21").token_ids(engine.tokenizer) == [1, 3, 5, 21, 6, 3, 4, 20, 6, 3, 7]


@pytest.mark.parametrize("method", [ArgsGreedy(weight=2.0), Plain(), ArgsStochastic()])
def test_turns_are_one_prompt_on_a_real_engine(engine_dir: Path, method: Any) -> None:
    engine = load_engine(engine_dir)
    options = Request("", method, max_tokens=10, seed=7)
    conversation = Conversation(engine, "w30")
    for text in ("w20 w21", "w22", "w23 w24 w25"):
        asked = Chat((*conversation.messages, Message("user", text)))
        result = conversation.say(text, options)
        whole = generate(engine, asked, method, max_tokens=10, seed=7)[0]
        assert result.prompt_ids == whole.prompt_ids
        assert result.token_ids == whole.token_ids
        # The rows of decoding and of a prompt are rounded in their own ways.
        assert result.rewards == pytest.approx(whole.rewards, abs=1e-4)


@pytest.mark.slow
def test_two_turns_with_the_real_model(tmp_path: Path) -> None:
    built.build(smollm2.random_checkpoint(tmp_path / "checkpoint"), tmp_path / "engine")
    engine = load_engine(tmp_path / "engine", threads=1)
    options = Request("", ArgsGreedy(weight=0.5), max_tokens=16)
    conversation = Conversation(engine)
    conversation.say("Name a colour.", options)
    asked = Chat((*conversation.messages, Message("user", "And another?")))
    result = conversation.say("And another?", options)
    assert conversation.reused > 30 and conversation.fed < 20
    assert result.token_ids == generate(engine, asked, options.method, max_tokens=16)[0].token_ids


# The command


def test_generate_chat(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", engine_dir, "w20", "--chat", "--max-tokens", 5)
    result = run(capsys, *arguments, "--system", "w21", "--json")
    line = json.loads(result.stdout)
    assert result.status == 0
    expected = generate(load_engine(engine_dir), Chat.of("w20", "w21"), max_tokens=5)[0]
    assert line["prompt_ids"] == list(expected.prompt_ids)
    assert line["token_ids"] == list(expected.token_ids)
    shown = run(capsys, *arguments)
    assert shown.status == 0 and shown.stdout.startswith("> w20\n w")
    best = run(capsys, *arguments, "--best-of", 2, "--method", "plain", "--temperature", 1)
    assert best.status == 0 and best.stdout.startswith("> w20\n w")


def test_generate_chat_without_a_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = built.random_checkpoint(tmp_path / "checkpoint")
    engine = built.build(checkpoint, tmp_path / "engine")
    result = run(capsys, "generate", engine, "w20", "--chat")
    assert result.status == 2 and "no chat template" in result.stderr
    assert result.stderr.count("\n") == 1
    result = run(capsys, "generate", engine, "w20", "--system", "w3")
    assert result.status == 2 and "give --chat too" in result.stderr
