"""`linkspan version`: what runs here and what answers at the socket."""

from __future__ import annotations

import platform
from typing import Any

import click

from control.cli.client import Client
from control.cli.command import NO_ARGUMENTS, Flag, command
from control.cli.errors import BAD_TEMPLATE, FAILED, CliError
from control.cli.listing import INSPECT_FORMAT_HELP
from control.cli.values import String


@command("version", "[OPTIONS]", NO_ARGUMENTS, Flag("format", String(), INSPECT_FORMAT_HELP, short="f"))
def version(client: Client, args: list[str], format: str) -> int:
    """Show the Linkspan version information"""
    from control.cli.main import version as installed
    from control.cli.template import Template, TemplateError

    mine = {"Version": installed(), "PythonVersion": platform.python_version(), "Host": client.host}
    server: dict[str, Any] | None = None
    problem = ""
    try:
        server = client.get("/version")
    except CliError as error:
        problem = error.message
    if format:
        try:
            template = Template("{{json .}}" if format == "json" else format)
            click.echo(template.execute({"Client": mine, "Server": server}))
        except TemplateError as error:
            raise CliError(f"template parsing error: {error}", BAD_TEMPLATE) from error
    else:
        click.echo(_text(mine, server), nl=False)
    if problem:
        click.echo(problem, err=True)
    return FAILED if problem else 0


def _text(mine: dict[str, str], server: dict[str, Any] | None) -> str:
    rows = {"Version": mine["Version"], "Python version": mine["PythonVersion"], "Host": mine["Host"]}
    text = _section("Client", rows)
    if server is not None:
        names = (("Version", "Version"), ("API version", "ApiVersion"), ("Minimum API version", "MinAPIVersion"))
        kernel = (("Kernel version", "KernelVersion"), ("OS/Arch", "Os"))
        rows = {label: str(server[key]) for label, key in (*names, *kernel) if server.get(key)}
        text += "\n" + _section("Server", rows)
    return text


def _section(title: str, rows: dict[str, str]) -> str:
    return f"{title}:\n" + "".join(f" {label + ':':<21} {value}\n" for label, value in rows.items())
