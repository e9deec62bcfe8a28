"""Templates render what transformers renders, in the dialects that model families use."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from specedge_p2p.lm.chat_template import TemplateRefused, render_chat

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, <b>1 & 2</b>?"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "why"},
]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
DATED = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%Y") %}
{%- endif %}
{%- if tools is not none %}{{- "tools" }}{%- endif %}
{{- "Today: " + date_string }}
{%- for message in messages %}
    {%- if message.role == "assistant" %}{%- continue %}{%- endif %}
    {{- "[INST] " ~ message.content ~ " [/INST]" }}
{%- endfor %}"""
GEMMA = """{{ bos_token }}{%- set loop_messages = messages[1:] -%}
{%- for message in loop_messages -%}
{%- set role = "model" if message["role"] == "assistant" else message["role"] -%}
{{ "<start_of_turn>" + role + "\n" + message["content"] | trim }}{{ "<end_of_turn>\n" }}
{%- endfor -%}"""
MARKED = """{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{% else %}
{{ message | tojson(indent=1) }}{{ message | tojson(separators=(',', ':'), sort_keys=true) }}
{% endif %}
{% endfor %}"""


@pytest.mark.parametrize("template", [CHATML, DATED, GEMMA, MARKED])
def test_a_chat_is_rendered_as_transformers_renders_it(template: str) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel()), **SPECIALS)
    expected = plain.apply_chat_template(
        CHAT, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert render_chat(template, CHAT, SPECIALS) == expected
    assert "why" in expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% generation %}", "broken"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages[9].content }}", "refuses"),
    ],
)
def test_a_template_refuses_in_one_line(template: str, message: str) -> None:
    with pytest.raises(TemplateRefused, match=message) as caught:
        render_chat(template, CHAT, SPECIALS)
    assert "\n" not in str(caught.value)
