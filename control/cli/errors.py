"""Errors that end a command: what is printed on stderr as it stands, and the exit status that goes with it."""

from __future__ import annotations

from typing import IO, Any, Final

import click

FAILED: Final = 1
BAD_TEMPLATE: Final = 64
USAGE: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
INTERRUPTED: Final = 130


class CliError(click.ClickException):
    """A command failed; `message` is the whole text for the user, without the "Error: " that click would add."""

    def __init__(self, message: str, exit_status: int = FAILED) -> None:
        super().__init__(message)
        self.exit_status = exit_status

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=file is None)


class ApiError(CliError):
    """linkspand refused a request; `status` is the HTTP status, `detail` its message without Docker's prefix."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"Error response from daemon: {detail}")
        self.status = status
        self.detail = detail
