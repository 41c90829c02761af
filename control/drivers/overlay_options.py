"""The options of an overlay network, and which values they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from control.cluster.records import MAX_VNI, MIN_VNI
from control.cluster_spec import VNI_LIST
from control.drivers.options import (
    ACCEL,
    ENCRYPTED,
    ICC,
    IFACE_PREFIX,
    MASQUERADE,
    MTU,
    Check,
    check_boolean,
    check_mtu,
    check_prefix,
)
from control.errors import InvalidArgument

VNI: Final = "linkspan.vni"
DIRECT: Final = "linkspan.direct"
_DIRECT: Final = ("auto", "on", "off")


def _check_vni(option: str, value: str) -> None:
    if not (value.isascii() and value.isdecimal()) or not MIN_VNI <= int(value) <= MAX_VNI:
        raise InvalidArgument(
            f"invalid value {value!r} for option {option}: use one number from {MIN_VNI} to {MAX_VNI}"
        )


def _check_direct(option: str, value: str) -> None:
    if value not in _DIRECT:
        raise InvalidArgument(f"invalid value {value!r} for option {option}: use {', '.join(_DIRECT)}")


def _check_encrypted(option: str, value: str) -> None:
    """Docker takes the option without a value."""
    if value:
        check_boolean(option, value)


OPTIONS: Final[Mapping[str, Check]] = {
    ACCEL: check_boolean,
    ICC: check_boolean,
    MASQUERADE: check_boolean,
    MTU: check_mtu,
    IFACE_PREFIX: check_prefix,
    VNI: _check_vni,
    VNI_LIST: _check_vni,
    ENCRYPTED: _check_encrypted,
    DIRECT: _check_direct,
}
