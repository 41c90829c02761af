"""Completes names on the shell's command line by asking the daemon, which must answer at once or is ignored."""

from __future__ import annotations

from typing import Any, Final

import click

from control.cli.client import Client
from control.cli.errors import CliError

_TIMEOUT_S: Final = 1.0


def _names(ctx: click.Context, path: str, **query: str) -> list[str]:
    from control.cli.main import host_of

    try:
        found: list[dict[str, Any]] = (
            Client(host_of(ctx.find_root().params.get("host")), _TIMEOUT_S).get(path, **query) or []
        )
    except CliError:
        return []
    return [record["Name"] for record in found]


def _new(ctx: click.Context, names: list[str], incomplete: str) -> list[str]:
    """The names that fit and are not on the command line yet."""
    given = ctx.params.get("args") or ()
    return [name for name in names if name.startswith(incomplete) and name not in given]


def networks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return _new(ctx, _names(ctx, "/networks"), incomplete)


def sandboxes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return _new(ctx, _names(ctx, "/linkspan/sandboxes", all="1"), incomplete)


def network_then_sandbox(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    given = ctx.params.get("args") or ()
    if len(given) > 1:
        return []
    return sandboxes(ctx, param, incomplete) if given else networks(ctx, param, incomplete)


def network_list(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For a flag that takes networks separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _names(ctx, "/networks") if name.startswith(last)]


def first_sandbox(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [] if ctx.params.get("args") else sandboxes(ctx, param, incomplete)
