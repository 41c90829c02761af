"""Versions of the Docker Engine API: which ones linkspand speaks, and what it says to a client of another."""

from __future__ import annotations

from typing import Final, NamedTuple

from control.errors import InvalidArgument


class Version(NamedTuple):
    """An API version; ordered as versions are."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


NEWEST: Final = Version(1, 51)
OLDEST: Final = Version(1, 24)


def negotiate(text: str | None) -> Version:
    """Returns the version of a path's "/v1.41" without its "v", the newest for a path without one.

    Raises InvalidArgument in Docker's words, which clients show to their users.
    """
    if text is None:
        return NEWEST
    major, _, minor = text.partition(".")
    version = Version(_number(major), _number(minor))
    if version < OLDEST:
        raise InvalidArgument(
            f"client version {text} is too old. Minimum supported API version is {OLDEST}, "
            "please upgrade your client to a newer version"
        )
    if version > NEWEST:
        raise InvalidArgument(f"client version {text} is too new. Maximum supported API version is {NEWEST}")
    return version


def _number(text: str) -> int:
    """0 for what is not a number, as in Docker, so that it reads as too old."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
