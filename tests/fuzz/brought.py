"""What users bring: heads, chat templates and chats, bodies of calls, lines that are scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.fuzz.command import run_command
from tests.fuzz.mutations import changed, changed_lines, changed_tensors, changed_values, encoded

_MESSAGES = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]
_CHAT = [{"role": "system", "content": "w5"}, *_MESSAGES, _MESSAGES[0]]
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if loop.first and message['role'] != 'system' "
    "%}w5{% endif %}<{{ message.role }}>{{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}w6{% endif %}"
)
#: What a template of somebody else's may hold.
_HOSTILE = (
    "{{ raise_exception('no') }}", "{{ messages.__class__.__mro__ }}", "{% for %}", "{#",
    "{{ cycler.__init__.__globals__ }}", "{{ messages | tojson(indent=99) }}", "{{ 1 / 0 }}",
    "{{ messages[9].role }}", "{% import 'os' as os %}", "{{ messages.append(1) }}",
    "{{ strftime_now('%Y') }}", "{{ ''.join(['\x1b[2J']) }}", "{{ 'é' | attr('encode') }}",
    "{% generation %}w7{% endgeneration %}", "{{ undefined_name.x }}", "{{ messages | sort }}",
)  # fmt: skip


def heads(folder: Path) -> Callable[[Random], None]:
    """A source of each format: its config.json and its tensors, up to the plan of a checkpoint."""
    from otter_export.importing.plan import plan
    from otter_export.importing.source import HeadOptions
    from tests import tiny

    base = tiny.write_base(folder / "base")
    draw = np.random.default_rng(0)

    def tensor(*shape: int) -> Any:
        return draw.standard_normal(shape).astype(np.float32)

    labels = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    model = json.loads((base / "config.json").read_text())
    sources: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "value_head.safetensors": (
            model,
            {"v_head.summary.weight": tensor(1, 64), "v_head.summary.bias": tensor(1)},
        ),
        "model.safetensors": (
            {**model, **labels, "architectures": ["LlamaForSequenceClassification"]},
            {"score.weight": tensor(2, 64)},
        ),
        "medusa_lm_head.safetensors": (
            {"medusa_num_heads": 1, "medusa_num_layers": 1},
            {
                **{"0.0.linear.weight": tensor(64, 64), "0.0.linear.bias": tensor(64)},
                "0.1.weight": tensor(128, 64),
            },
        ),
    }
    files = {}
    for name, (config, tensors) in sources.items():
        directory = folder / name.removesuffix(".safetensors")
        directory.mkdir()
        files[directory / name] = config, save(tensors)

    def case(random: Random) -> None:
        path, (config, tensors) = random.choice(list(files.items()))
        config_first = random.random() < 0.5
        document = changed(random, config) if config_first else config
        (path.parent / "config.json").write_bytes(encoded(random, document))
        damage = random.choice((changed_tensors, changed_values))
        path.write_bytes(tensors if config_first else damage(random, tensors))
        label = random.choice(("good", "1", "2", "x" * 300)) if "id2label" in config else None
        plan(path.parent, folder / "out", base_name=str(base), options=HeadOptions(label=label))

    return case


def chats(folder: Path) -> Callable[[Random], None]:
    """A tokenizer's chat template and its settings, and the messages that it renders."""
    from otter_export.runtime.chat import Chat
    from otter_export.runtime.tokenizer import JsonTokenizer
    from tests import tiny

    tiny.write_tokenizer(folder, 24)
    settings, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    document = {"bos_token": "<s>", "chat_template": [{"name": "default", "template": _TEMPLATE}]}

    def case(random: Random) -> None:
        text, messages, what = _TEMPLATE, _CHAT, random.random()
        if what < 0.6:
            ends = [at for at in range(len(text)) if text.startswith(("{", "<"), at)]
            at = random.choice(ends) if random.random() < 0.8 else random.randrange(len(text))
            text = text[:at] + random.choice(_HOSTILE) + text[at:]
        template.write_text(text, encoding="utf-8")
        settings.write_bytes(encoded(random, changed(random, document)))
        if what >= 0.8:
            template.unlink()
        elif what >= 0.6:
            messages = changed(random, _CHAT)
        Chat(messages).token_ids(JsonTokenizer(folder / "tokenizer.json"))

    return case


def bodies(folder: Path) -> Callable[[Random], None]:
    """Bodies of calls of OpenAI's API."""
    from otter_export.runtime.tokenizer import JsonTokenizer
    from otter_export.serving.settings import Settings
    from otter_export.web.body import chat_call, completion_call, read_object
    from tests import tiny

    tiny.write_tokenizer(folder, 24)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    tokenizer, settings = JsonTokenizer(folder / "tokenizer.json"), Settings()
    options = {
        **{"model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 1},
        **{"stop": ["w4"], "stream": True, "stream_options": {"include_usage": True}, "n": 1},
        **{"method": "args-stochastic", "reward_weight": 2.0, "top_k": 4, "logit_bias": {}},
    }
    parts = [{"role": "user", "content": [{"type": "text", "text": "w3"}]}]

    def case(random: Random) -> None:
        chosen = {k: v for k, v in options.items() if random.random() < 0.5}
        if random.random() < 0.5:
            prompt = random.choice(("w3 w4", [3, 4], ["w3"], [[3]]))
            body = read_object(encoded(random, changed(random, chosen | {"prompt": prompt})))
            completion_call(body, settings)
        else:
            messages = random.choice((_CHAT, parts))
            body = read_object(encoded(random, changed(random, chosen | {"messages": messages})))
            chat_call(body, settings, tokenizer)

    return case


def scored_texts(folder: Path) -> Callable[[Random], None]:
    """Lines of texts, up to their scores by ``otter-export score``."""
    from otter_export.cli import main
    from tests.built import build, random_checkpoint

    engine = build(random_checkpoint(folder / "checkpoint"), folder / "engine")
    (engine / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    path = folder / "texts.jsonl"
    records: list[dict[str, Any]] = [
        {"prompt": "w3", "response": "w4 w5", "id": 7},
        {"prompt": [3, 4], "response": [5]},
        {"text": "w3 w4"},
        {"messages": _CHAT, "response": "w4"},
    ]

    def case(random: Random) -> None:
        path.write_bytes(changed_lines(random, records))
        line = ["score", str(engine), "--data", str(path), "--threads", "1"]
        separator = random.choice((None, "w4", "", "\\n", "x" * 20_000))
        run_command(main, line if separator is None else [*line, "--separator", separator])

    return case
