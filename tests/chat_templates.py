"""Chat templates in the forms of well-known models, without their tools."""

from __future__ import annotations

#: ``<|im_start|>`` turns with a system prompt of their own.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: ``[INST]`` turns; the system prompt goes into the first, and roles have to take turns.
INST = """{%- if messages[0]['role'] == 'system' -%}
    {%- set system, turns = messages[0]['content'], messages[1:] -%}
{%- else -%}
    {%- set system, turns = none, messages -%}
{%- endif -%}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must take turns: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is not none %}
            {{- '[INST] <<SYS>>\n' ~ system | trim ~ '\n<</SYS>>\n\n' ~ message['content'] | trim ~ ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' ~ message['content'] | trim ~ ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' ~ message['content'] | trim ~ ' ' ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""
#: ``<start_of_turn>`` turns of ``user`` and ``model``; no system prompt.
TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
#: ``<|user|>`` lines, the assistant's ended by the end-of-sequence token.
LINES = """{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% else %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
#: Headers, a date, a namespace, and a thought of the past that is left out.
HEADERS = """{%- if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}
{%- set state = namespace(system='', last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set state.system = message.content %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}{% set state.last = loop.index0 %}{% endif %}
{%- endfor %}
{{- '<|header|>system<|end|>\n\nYear ' ~ date_string ~ '. ' ~ state.system ~ '<|eot|>' }}
{%- for message in messages if message.role != 'system' %}
    {%- set content = message['content'].split('</think>')[-1].lstrip('\n') %}
    {%- if message.role == 'assistant' %}{% generation %}
        {{- '<|header|>assistant<|end|>\n\n' + content + '<|eot|>' }}
    {% endgeneration %}{%- else %}
        {{- '<|header|>' + message.role + '<|end|>\n\n' + content + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|end|>\n\n' }}{% endif %}"""
#: Jinja's filters as chat templates have them: JSON without escapes for HTML.
JSON = (
    "{% macro turn(message) %}{{ message | tojson(indent=2) }}{% endmacro %}"
    "{% for message in messages %}{{ turn(message) }}{{ dict(a='<&>') | tojson }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "inst": INST,
    "turns": TURNS,
    "lines": LINES,
    "headers": HEADERS,
    "json": JSON,
}
#: For `tests/tiny.py`'s tokenizer, whose tokens are words: the turns are words too.
WORDS = (
    "{{ bos_token }} {% for message in messages %}w3 {% if message.role == 'user' %}w4 "
    "{% elif message.role == 'system' %}w5 {% else %}w7 {% endif %}{{ message.content }} w6 "
    "{% endfor %}w3 w7"
)
