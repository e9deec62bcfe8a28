"""A chat as one text, by the template that a model brings. Renders what transformers renders."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefused(ValueError):
    """The chat template does not take these messages; the text says why."""


def render_chat(
    template: str, messages: Sequence[Mapping[str, str]], specials: Mapping[str, str]
) -> str:
    """The text up to the assistant's turn. Raises TemplateRefused.

    Args:
        template: of jinja2.
        messages: of the chat, each with its role and its content.
        specials: special tokens by name, such as bos_token.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_template_error
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template).render(
            messages=list(messages),
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **specials,
        )
    except TemplateSyntaxError as error:
        raise TemplateRefused(f"the model's chat template is broken: {error}") from error
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        raise TemplateRefused(f"the chat template refuses the messages: {error}") from error


class _Generation(Extension):
    """`{% generation %}` marks what a training learns from; here it is what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - so jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "sort_keys": sort_keys}
    return json.dumps(value, indent=indent, separators=separators, **options)
