"""L0: chat templates render as transformers renders them, and can reach nothing."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.chat_template import ChatTemplate, read_chat_template
from otter_export.errors import EngineError, MissingDependencyError, OtterError, RequestError
from otter_export.runtime.chat import Chat
from otter_export.runtime.tokenizer import JsonTokenizer
from tests import smollm2, tiny
from tests.chat_templates import CHATML, HEADERS, INST, TEMPLATES

USER, SYSTEM = {"role": "user", "content": " Hi <b>you</b> & 'me' \n"}, "Be brief."
ANSWER = {"role": "assistant", "content": "<think>hm</think>\nIch heiße Otter. 🦦 "}
CHATS = {
    "one": [USER],
    "system": [{"role": "system", "content": SYSTEM}, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "{{ 1 + 1 }} {% raw %}"}],
    "all": [{"role": "system", "content": SYSTEM}, USER, ANSWER, USER],
}


def directory(path: Path, template: str | None, **config: object) -> Path:
    path.mkdir(exist_ok=True)
    tiny.write_tokenizer(path, 128)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | config))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


@functools.cache
def loaded(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def expected(
    path: Path, chat: list[dict[str, str]], template: str | None = None
) -> tuple[str, list[int]] | None:
    """What transformers makes of it; None where the template refuses it."""
    import jinja2

    tokenizer = loaded(path)
    if template is not None:
        tokenizer.chat_template = template
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:
        return None
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return text, ids


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("template"), None)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers_renders_it(plain: Path, name: str, chat: str) -> None:
    path, messages = directory(plain, TEMPLATES[name]), CHATS[chat]
    template, tokenizer = read_chat_template(path), JsonTokenizer(path / "tokenizer.json")
    assert template is not None
    wanted = expected(path, messages, TEMPLATES[name])
    if wanted is None:
        with pytest.raises(RequestError, match=r"does not take these messages: .*(System|turns)"):
            template.render(messages)
    else:
        assert template.render(messages) == wanted[0]
        assert Chat(tuple(messages)).token_ids(tokenizer) == wanted[1]


@pytest.mark.parametrize("chat", CHATS)
def test_the_real_models_own(chat: str) -> None:
    base = smollm2.prepared().base
    wanted = expected(base, CHATS[chat])
    tokenizer = JsonTokenizer(base / "tokenizer.json")
    assert wanted is not None and tokenizer.chat_template is not None
    assert tokenizer.chat_template.render(CHATS[chat]) == wanted[0]
    ids = Chat(tuple(CHATS[chat])).token_ids(tokenizer)
    assert ids == wanted[1] and ids[0] == 1  # <|im_start|>, once


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=5))
def test_whatever_order_the_roles_have(roles: list[str]) -> None:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{"role": role, "content": f"c{i}"} for i, role in enumerate(roles)]
    for source in (INST, HEADERS):
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        try:
            wanted = render_jinja_template(
                [chat], chat_template=source, add_generation_prompt=True, **tokens
            )[0][0]
        except jinja2.TemplateError:
            with pytest.raises(RequestError, match="take turns"):
                ChatTemplate(source, tokens).render(chat)
        else:
            assert ChatTemplate(source, tokens).render(chat) == wanted


def test_the_jinja_file_comes_first_and_of_several_the_default(tmp_path: Path) -> None:
    # A name that is no text is nobody's: it must not matter.
    several = [{"name": ["a"], "template": "no"}, {"name": "default", "template": "yes"}]
    path = directory(tmp_path, None, chat_template=several)
    assert read_chat_template(path).render([USER]) == "yes"  # type: ignore[union-attr]
    directory(tmp_path, "file", chat_template="config")
    assert read_chat_template(path).render([USER]) == "file"  # type: ignore[union-attr]


def test_none_is_none(tmp_path: Path) -> None:
    path = directory(tmp_path, None)
    assert read_chat_template(path) is None
    with pytest.raises(RequestError, match=r"no chat template, .* give it a prompt"):
        Chat.of("w3").token_ids(JsonTokenizer(path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for x in %}", "cannot be read"),
        ("{{ messages[9]['content'] }}", "does not take these messages"),
        ("{{ messages + 1 }}", "does not take these messages"),
        ("{{ ''.__class__.__mro__ }}", "does not take these messages.*unsafe"),
        ("{{ raise_exception.__globals__.os }}", "does not take these messages.*unsafe"),
        ("{{ namespace(__class__=1) }}", "a namespace has no name"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "a namespace has no name"),
        ("{{ messages.append(1) }}", "does not take these messages.*unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "does not take these messages"),
        ("{% include '/etc/passwd' %}", "does not take these messages"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "does not take these messages"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "does not take these messages"),
    ],
)
def test_a_bad_template_is_one_line(template: str, message: str) -> None:
    with pytest.raises(OtterError, match=message) as caught:
        ChatTemplate(template, {}).render([USER])
    assert "\n" not in str(caught.value)


def test_a_template_that_is_no_text_or_too_long(tmp_path: Path) -> None:
    path = directory(tmp_path, None, chat_template=3)
    with pytest.raises(EngineError, match="must be text, got 3"):
        read_chat_template(path)
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(EngineError, match="no text in UTF-8"):
        read_chat_template(path)
    (path / "chat_template.jinja").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(EngineError, match="at most"):
        JsonTokenizer(path / "tokenizer.json").chat_template  # noqa: B018


def test_without_jinja_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2.ext", None)
    with pytest.raises(MissingDependencyError, match=r"otter-export\[chat\]"):
        ChatTemplate(CHATML, {}).render([USER])


def test_the_names_of_special_tokens(tmp_path: Path) -> None:
    path = directory(tmp_path, "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}")
    (path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "old", "eos_token": {"content": "</e>"}, "additional": ["x"]})
    )
    assert read_chat_template(path).render([USER]) == "<s>|</s>|False"  # type: ignore[union-attr]
    (path / "tokenizer_config.json").unlink()
    assert read_chat_template(path).render([USER]) == "old|</e>|False"  # type: ignore[union-attr]
