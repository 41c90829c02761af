"""The entry point of `linkspan`: global flags, the table of commands, and exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from control.cli.client import DEFAULT_HOST, Client
from control.cli.command import Flag, Group
from control.cli.errors import FAILED, INTERRUPTED, CliError
from control.cli.values import Bool, String


def version() -> str:
    """The version of the installed package; "unknown" in a checkout that was never installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("linkspan")
    except PackageNotFoundError:
        return "unknown"


def host_of(flag: str | None) -> str:
    """The daemon's address: the flag, else the environment, else the default."""
    return flag or os.environ.get("LINKSPAN_HOST") or DEFAULT_HOST


def _root(host: str, version_asked: bool) -> None:
    click.get_current_context().obj = Client(host_of(host))


def _print_version(ctx: click.Context, param: click.Parameter, asked: bool) -> bool:
    if asked and not ctx.resilient_parsing:
        click.echo(f"Linkspan version {version()}")
        ctx.exit()
    return asked


class _VersionFlag(Flag):
    def __init__(self) -> None:
        super().__init__("version", Bool(), "Print version information and quit", short="v")
        self.name = "version_asked"
        self.is_eager = True
        self.callback = _print_version


cli = Group(
    "linkspan",
    short="Container networking with an eBPF fast path",
    synopsis="[OPTIONS] COMMAND",
    setup=_root,
    flags=[
        Flag("host", String(), f'Daemon socket to connect to (default "{DEFAULT_HOST}")', short="H"),
        _VersionFlag(),
    ],
    members={
        "bench": "control.cli.bench:bench",
        "cluster": "control.cli.cluster:cluster",
        "completion": "control.cli.completion:completion",
        "doctor": "control.cli.doctor:doctor",
        "exec": "control.cli.sandbox:exec_",
        "logs": "control.cli.sandbox:logs",
        "metrics": "control.cli.metrics:metrics",
        "network": "control.cli.network:network",
        "ps": "control.cli.sandbox:ps",
        "rm": "control.cli.sandbox:rm",
        "run": "control.cli.sandbox:run",
        "top": "control.cli.top:top",
        "trace": "control.cli.trace:trace",
        "version": "control.cli.version:version",
    },
)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its status; the entry point of the console script."""
    try:
        status = cli.main(args=args, prog_name="linkspan", standalone_mode=False)
        sys.stdout.flush()
    except CliError as error:
        error.show()
        status = error.exit_status
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader has had enough. Python's own flush at exit must not complain about it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
