"""The chat template of a tokenizer: messages to the text that the model was trained on.

It is a program in Jinja's language, and comes with a model from whoever made that. It is rendered
as transformers does, in Jinja's sandbox: it sees the messages and the names of special tokens, and
nothing of this process or its files. It can still take its time (docs/security.md).
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export.boundary import errors_as
from otter_export.errors import EngineError, MissingDependencyError, RequestError
from otter_export.files import is_file, read_regular
from otter_export.quoting import quoted
from otter_export.tokenizer_file import read_settings, special_token_names

FILE_NAME = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
#: The longest known, with tools in them, have about 20 kB.
_LIMIT_BYTES = 1 << 20
#: The one of several that is for chats without tools.
_DEFAULT = "default"


class ChatTemplate:
    """One template.

    Args:
        source: Its text.
        special_tokens: Texts of the tokens that it may name, such as ``bos_token``.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a chat, up to where the model's own turn begins.

        Args:
            messages: ``role`` and ``content`` of each.

        Raises:
            RequestError: The template refuses them, such as roles that do not take turns.
            EngineError: It is no template.
            MissingDependencyError: Jinja is not installed.
        """
        with errors_as(RequestError, "the model's chat template does not take these messages"):
            return str(
                self._compiled.render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self._special_tokens,
                )
            )

    @functools.cached_property
    def _compiled(self) -> Any:
        try:
            environment = _environment()
        except ModuleNotFoundError as error:
            raise MissingDependencyError(error.name or "jinja2", "chat", "a chat") from error
        with errors_as(EngineError, "the model's chat template cannot be read"):
            return environment.from_string(self._source)


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The template beside a ``tokenizer.json``; None if there is none.

    ``chat_template.jinja`` comes before the one of tokenizer_config.json, as in transformers; of
    several it is the one named ``default``.

    Raises:
        ConfigError, EngineError: A file cannot be read, or does not hold a template.
    """
    path = directory / FILE_NAME
    if is_file(path, EngineError):
        with errors_as(EngineError, f"{path} is no text in UTF-8"):
            source: Any = read_regular(path, _LIMIT_BYTES, EngineError).decode("utf-8")
    else:
        path = directory / _CONFIG
        source = read_settings(path).get("chat_template")
        if isinstance(source, list):
            entries = (e for e in source if isinstance(e, Mapping) and e.get("name") == _DEFAULT)
            source = next(entries, {}).get("template")
    if source is None:
        return None
    if not isinstance(source, str):
        raise EngineError(f"{path}: the chat template must be text, got {quoted(source)}")
    return ChatTemplate(source, special_token_names(directory))


def _environment() -> Any:
    """Jinja as chat templates expect it, in a sandbox whose values cannot be changed."""
    import jinja2.exceptions
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks what a model said, for training; here it is nothing."""

        tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """A namespace without names that begin with an underscore, which lead to Python's own."""

        def __init__(*args: Any, **values: Any) -> None:
            own, *given = args
            values = dict(*given, **values)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(own, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: object) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no name {quoted(name)}")

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": Namespace,
    }
    return environment


class _Dict:
    """Python's ``dict`` without what else hangs on a class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """One value for many keys."""
        return dict.fromkeys(*args)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter writes ``<`` and ``&`` as escapes, which a model was not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
