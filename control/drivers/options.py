"""Options that several drivers have, under Docker's names, and how they are checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from control.errors import InvalidArgument
from control.model import EndpointSpec, Network, NetworkSpec

ACCEL: Final = "linkspan.accel"
MASQUERADE: Final = "com.docker.network.bridge.enable_ip_masquerade"
ICC: Final = "com.docker.network.bridge.enable_icc"
MTU: Final = "com.docker.network.driver.mtu"
IFACE_PREFIX: Final = "com.docker.network.container_iface_prefix"
IFNAME: Final = "com.docker.network.endpoint.ifname"
ENCRYPTED: Final = "encrypted"
MAX_RATE: Final = 1_000_000
BOOLEANS: Final = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
_IFNAME: Final = re.compile(r"[^\s/:]{1,15}")
_NO_IFNAMES: Final = (".", "..", "all", "default")
"""Names that stand for something else in /proc/sys/net."""

Check = Callable[[str, str], None]
"""Called with an option and its value; raises InvalidArgument, or Conflict when the value is taken."""


def check_boolean(option: str, value: str) -> None:
    if value.lower() not in BOOLEANS:
        raise InvalidArgument(f"invalid value {value!r} for option {option}: use true or false")


def is_on(network: Network | NetworkSpec, option: str, default: bool = True) -> bool:
    """The value of an option that `check_boolean` has passed."""
    return BOOLEANS[network.options[option].lower()] if option in network.options else default


def is_encrypted(network: Network | NetworkSpec) -> bool:
    """Docker takes the option without a value."""
    value = network.options.get(ENCRYPTED)
    return value is not None and (value == "" or BOOLEANS[value.lower()])


def check_mtu(option: str, value: str) -> None:
    if not (value.isascii() and value.isdecimal()) or not 68 <= int(value) <= 65535:
        raise InvalidArgument(f"invalid value {value!r} for option {option}: use a number of bytes from 68 to 65535")


def check_rate(option: str, value: str) -> None:
    if not (value.isascii() and value.isdecimal()) or int(value) > MAX_RATE:
        raise InvalidArgument(
            f"invalid value {value!r} for option {option}: use packets per second, up to {MAX_RATE}, or 0 for no limit"
        )


def check_prefix(option: str, value: str) -> None:
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_-]{0,9}", value):
        raise InvalidArgument(f"invalid value {value!r} for option {option}: use at most 10 letters and digits")


def check_ifname(option: str, value: str) -> None:
    """Raises for what is no name of a device."""
    if not _IFNAME.fullmatch(value) or value in _NO_IFNAMES:
        raise InvalidArgument(
            f"invalid device name {value!r} for option {option}: at most 15 characters, no / : or blank"
        )


def check_network(spec: NetworkSpec, known: Mapping[str, Check]) -> None:
    """Raises InvalidArgument for an option that the driver does not know, or with a value that it cannot have."""
    for option, value in spec.options.items():
        if option not in known:
            raise InvalidArgument(
                f"unknown option {option!r} for the driver {spec.driver}: it knows {', '.join(sorted(known))}"
            )
        known[option](option, value)
    if spec.enable_ipv6 and int(spec.options.get(MTU, "1500")) < 1280:
        raise InvalidArgument(f"option {MTU}={spec.options[MTU]} is less than IPv6 needs: 1280 bytes")


def check_endpoint(driver: str, spec: EndpointSpec) -> None:
    """Raises InvalidArgument for an option that is not the device's name, or a name that it cannot have."""
    for option, value in spec.driver_options.items():
        if option != IFNAME:
            raise InvalidArgument(f"unknown option {option!r} for an endpoint of driver {driver}: it knows {IFNAME}")
        if value == "lo":
            raise InvalidArgument(f"invalid device name {value!r} for option {option}")
        check_ifname(option, value)
