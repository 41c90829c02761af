"""Versions of the Docker Engine API: which ones linkspand speaks, what came and went with them, and what it says to a
client of another.

A field that came with a later version than the client's is neither shown to it nor taken from it: to that version it
is an unknown field. Source: the Engine API's version history; Attachable, Scope, ConfigOnly and ConfigFrom, which it
leaves out, have the versions that the docker command demands for their flags.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from control.errors import InvalidArgument


class Version(NamedTuple):
    """An API version; ordered as versions are."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


NEWEST: Final = Version(1, 56)
OLDEST: Final = Version(1, 24)

ATTACHABLE_SINCE: Final = Version(1, 25)
CREATED_SINCE: Final = Version(1, 25)
MIN_VERSION_SINCE: Final = Version(1, 25)
PRUNE_SINCE: Final = Version(1, 25)
LIST_WITHOUT_CONTAINERS_SINCE: Final = Version(1, 28)
INGRESS_SINCE: Final = Version(1, 29)
CONFIGURATION_SINCE: Final = Version(1, 30)
"""ConfigOnly and ConfigFrom."""
SCOPE_SINCE: Final = Version(1, 30)
INSPECT_SCOPE_SINCE: Final = Version(1, 31)
DRIVER_OPTS_SINCE: Final = Version(1, 32)
COMPONENTS_SINCE: Final = Version(1, 35)
WARNINGS_SINCE: Final = Version(1, 39)
PRUNE_EVENTS_SINCE: Final = Version(1, 41)
MAC_ADDRESS_SINCE: Final = Version(1, 44)
"""Docker's own engine ignored the field until 1.54; linkspand does what it says."""
ENABLE_IPV4_SINCE: Final = Version(1, 48)
GW_PRIORITY_SINCE: Final = Version(1, 48)
INFO_WITHOUT_BRIDGE_NF_SINCE: Final = Version(1, 50)
EVENTS_WITHOUT_STATUS_SINCE: Final = Version(1, 52)
"""From here on events are JSON lines by content type too."""
STATUS_SINCE: Final = Version(1, 52)


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
