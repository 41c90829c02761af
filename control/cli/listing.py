"""Prints lists as tables, JSON lines or by a template: `--format`, `--quiet` and `--no-trunc` of the ls commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from control.cli.errors import CliError

if TYPE_CHECKING:
    from control.cli.shapes import Row

_TEMPLATE_HELP: Final = (
    "'json':             Print in JSON format\n"
    "'TEMPLATE':         Print output using the given Go template.\n"
    "Refer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates"
)
INSPECT_FORMAT_HELP: Final = f"Format output using a custom template:\n{_TEMPLATE_HELP}"
LIST_FORMAT_HELP: Final = (
    "Format output using a custom template:\n"
    "'table':            Print output in table format with column headers (default)\n"
    "'table TEMPLATE':   Print output in table format using the given Go template\n"
    f"{_TEMPLATE_HELP}"
)


@dataclass(frozen=True)
class Listing:
    """What a list shows: how a row is made of (record, truncate?), the headers by field, the formats by name, and which
    field is all there is with `--quiet`."""

    row: Callable[[Any, bool], Row]
    headers: dict[str, str]
    table: str
    raw: str
    raw_quiet: str
    quiet: str = "ID"


def write(listing: Listing, records: Iterable[Any], format: str, *, quiet: bool, trunc: bool) -> None:
    """Prints `records` in their order; raises CliError for a template that is wrong."""
    click.echo(rendered(listing, records, format, quiet=quiet, trunc=trunc), nl=False)


def rendered(listing: Listing, records: Iterable[Any], format: str, *, quiet: bool, trunc: bool) -> str:
    rows = [listing.row(record, trunc) for record in records]
    if format in ("", "table"):
        # The common case needs no template engine.
        if quiet:
            return "".join(f"{row.fields()[listing.quiet]}\n" for row in rows)
        columns = [part.strip("{}.") for part in listing.table.split("\t")]
        return _table(
            [[listing.headers[name] for name in columns], *([row.fields()[name] for name in columns] for row in rows)]
        )
    return _by_template(listing, rows, format, quiet)


def _table(lines: list[list[str]]) -> str:
    from control.cli.tabwriter import aligned

    return aligned("".join("\t".join(cells) + "\n" for cells in lines))


def _by_template(listing: Listing, rows: list[Row], format: str, quiet: bool) -> str:
    from control.cli.functions import HEADER_FUNCTIONS
    from control.cli.shapes import Headers
    from control.cli.tabwriter import aligned
    from control.cli.template import Template, TemplateError

    is_table = format.startswith("table")
    if format == "raw":
        text = listing.raw_quiet if quiet else listing.raw
    elif format == "json":
        text = "{{json .}}"
    else:
        text = format.removeprefix("table")
    text = text.strip(" ").replace("\\t", "\t").replace("\\n", "\n")
    try:
        template = Template(text)
        body = "".join(template.execute(row) + "\n" for row in rows)
    except TemplateError as error:
        raise CliError(f"template parsing error: {error}") from error
    if not is_table:
        return body
    header: list[str] = []
    # A header shows what it can; the rows have said already if the template is wrong.
    with suppress(TemplateError):
        Template(text, HEADER_FUNCTIONS).write(header, Headers(listing.headers))
    return aligned("".join(header) + "\n" + body)
