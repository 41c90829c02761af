"""Prints what `inspect` found: the JSON as the server sent it, indented or compact, or by a template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from control.cli.errors import BAD_TEMPLATE, FAILED, CliError
from control.cli.shapes import Shape
from control.cli.template import Template, TemplateError

_INDENT: Final = " " * 4
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


def inspect_all(names: Sequence[str], format: str, fetch: Callable[[str], bytes], shape: Shape) -> int:
    """Prints every object that `fetch` finds and says on stderr what is wrong with the others; returns the exit status.

    Raises CliError with status 64 for a `format` that is no template.
    """
    template = None
    if format not in ("", "json"):
        try:
            template = Template(format)
        except TemplateError as error:
            raise CliError(f"template parsing error: {error}", BAD_TEMPLATE) from error
    found: list[bytes] = []
    lines: list[str] = []
    errors: list[str] = []
    for name in names:
        try:
            body = fetch(name)
            if template is None:
                found.append(body)
            else:
                lines.append(_templated(template, body, shape))
        except CliError as error:
            errors.append(error.message)
    if template is None:
        click.echo(_array(found, format))
    else:
        click.echo("\n".join(lines))
    for message in errors:
        click.echo(message, err=True)
    return FAILED if errors else 0


def _array(bodies: Sequence[bytes], format: str) -> str:
    sources = [body.decode(errors="replace") for body in bodies]
    for source in sources:
        _read(source)
    tokens = _TOKEN.findall(f"[{','.join(sources)}]")
    return "".join(tokens) if format == "json" else _indented(tokens)


def _read(body: str | bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise CliError(f"unable to read inspect data: {error}") from error


def _indented(tokens: Sequence[str]) -> str:
    """Lays out valid JSON; its strings and numbers stay as the server wrote them."""
    parts: list[str] = []
    depth = 0
    for index, token in enumerate(tokens):
        if token in "]}":
            depth -= 1
            if tokens[index - 1] not in "[{":
                parts.append("\n" + _INDENT * depth)
        elif index and tokens[index - 1] in "[{,":
            parts.append("\n" + _INDENT * depth)
        parts.append(": " if token == ":" else token)
        depth += token in "[{"
    return "".join(parts)


def _templated(template: Template, body: bytes, shape: Shape) -> str:
    """Executes the template on the typed object and, where that fails, on the bare JSON, as Docker does."""
    record = _read(body)
    try:
        return template.execute(shape(record))
    except TemplateError:
        pass
    try:
        return template.execute(record, missing_is_error=True)
    except TemplateError as error:
        raise CliError(f"template parsing error: {error}") from error
