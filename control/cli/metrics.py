"""`linkspan metrics …`: what it takes to scrape a linkspand."""

from __future__ import annotations

import sys

import click

from control.cli.client import Client
from control.cli.command import Group, command, exactly
from control.cli.errors import CliError

metrics = Group(
    "metrics",
    short="Manage who may read the metrics",
    members={"password": "control.cli.metrics:password"},
)


@command("password", "NAME", exactly(1))
def password(client: Client, args: list[str]) -> None:
    """Print the line for a user in the file that metrics.users of the configuration names"""
    from control.passwords import check_name, hash_password

    try:
        check_name(args[0])
    except ValueError as error:
        raise CliError(str(error)) from error
    if sys.stdin.isatty():
        given = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        given = sys.stdin.readline().rstrip("\n")
    if not given:
        raise CliError("the password is empty: type one, or give it on standard input")
    click.echo(f"{args[0]}:{hash_password(given)}")
