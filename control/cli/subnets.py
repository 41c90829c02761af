"""Sorts what belongs to each `--subnet` of `network create`, with the checks and texts of Docker's client.

Only what cannot be assigned to a subnet is refused here; whether a subnet itself can be used is the server's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from control.cli.errors import CliError


def ipam_config(
    subnets: Sequence[str], ranges: Sequence[str], gateways: Sequence[str], aux_addresses: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Returns the Engine API's IPAM.Config, one entry per subnet in the order given; raises CliError."""
    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise CliError("every ip-range or gateway must have a corresponding subnet")
    entries: dict[str, dict[str, Any]] = {}
    for subnet in subnets:
        for other in entries:
            if _holds(subnet, other) or _holds(other, subnet):
                raise CliError("multiple overlapping subnet configuration is not supported")
        entries[subnet] = {"Subnet": subnet}
    for ip_range in ranges:
        _cidr(ip_range)
        for subnet in _holding(entries, ip_range, "range"):
            earlier = entries[subnet].setdefault("IPRange", ip_range)
            if earlier is not ip_range:
                raise CliError(
                    f"cannot configure multiple ranges ({ip_range}, {earlier}) on the same subnet ({subnet})"
                )
    for gateway in gateways:
        for subnet in _holding(entries, gateway, "gateway"):
            earlier = entries[subnet].setdefault("Gateway", gateway)
            if earlier is not gateway:
                raise CliError(
                    f"cannot configure multiple gateways ({gateway}, {earlier}) for the same subnet ({subnet})"
                )
    for name, address in aux_addresses.items():
        for subnet in _holding(entries, address, "aux-address"):
            entries[subnet].setdefault("AuxiliaryAddresses", {})[name] = address
    return list(entries.values())


def _holding(subnets: Mapping[str, Any], what: str, kind: str) -> list[str]:
    found = [subnet for subnet in subnets if _holds(subnet, what)]
    if not found:
        raise CliError(f"no matching subnet for {kind} {what}")
    return found


def _holds(subnet: str, what: str) -> bool:
    """Says whether the first address of `what`, an address or a CIDR, lies in `subnet`."""
    _, net = _cidr(subnet, "invalid subnet: ")
    if "/" in what:
        return _cidr(what)[0] in net
    try:
        return ip_address(what) in net
    except ValueError:
        return False


def _cidr(text: str, prefix: str = "") -> tuple[IPv4Address | IPv6Address, IPv4Network | IPv6Network]:
    address, slash, length = text.partition("/")
    try:
        if not slash or not length.isdecimal():
            raise ValueError(text)
        return ip_address(address), ip_network(text, strict=False)
    except ValueError as error:
        raise CliError(f"{prefix}invalid CIDR address: {text}") from error
