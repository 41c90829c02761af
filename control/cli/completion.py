"""`linkspan completion`: prints the script that makes a shell complete commands, flags and names."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from control.cli.client import Client
from control.cli.command import command, exactly
from control.cli.errors import CliError

_SHELLS: Final = ("bash", "fish", "zsh")
_VARIABLE: Final = "_LINKSPAN_COMPLETE"


def _shells(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [] if ctx.params.get("args") else [shell for shell in _SHELLS if shell.startswith(incomplete)]


@command("completion", "SHELL", exactly(1), complete=_shells)
def completion(client: Client, args: list[str]) -> None:
    """Generate the autocompletion script for bash, fish or zsh"""
    found = get_completion_class(args[0]) if args[0] in _SHELLS else None
    if found is None:
        raise CliError(f"linkspan: there is no completion for {args[0]!r}, only for {', '.join(_SHELLS)}")
    root = click.get_current_context().find_root()
    click.echo(found(root.command, {}, "linkspan", _VARIABLE).source())
