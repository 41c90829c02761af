"""The nftables table `linkspan`: forwarding and masquerade for all networks, a set element or two for each.

The rules never change; networks come and go as elements. The table stands beside those of Docker, firewalld and the
operator and touches none of them. Its text is handed to nft(8), which applies it in one transaction.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

TABLE = "inet linkspan"

# own4/own6 hold (subnet . device): traffic of a subnet leaving by its own bridges is never masqueraded, which also
# covers frames that br_netfilter shows to the nat hook although they are only bridged.
_RULES = """
add table inet linkspan
add set inet linkspan bridges { type ifname; }
add set inet linkspan hairpin { type ifname . ifname; }
add set inet linkspan internal { type ifname; }
add set inet linkspan own4 { type ipv4_addr . ifname; flags interval; }
add set inet linkspan own6 { type ipv6_addr . ifname; flags interval; }
add set inet linkspan masquerade4 { type ipv4_addr; flags interval; }
add set inet linkspan masquerade6 { type ipv6_addr; flags interval; }
add chain inet linkspan forward { type filter hook forward priority filter; policy accept; }
add chain inet linkspan postrouting { type nat hook postrouting priority srcnat; policy accept; }
flush chain inet linkspan forward
flush chain inet linkspan postrouting
add rule inet linkspan forward iifname != @bridges oifname != @bridges return
add rule inet linkspan forward iifname . oifname @hairpin accept
add rule inet linkspan forward iifname @bridges oifname @bridges counter drop comment "networks are isolated"
add rule inet linkspan forward iifname @internal counter drop comment "internal networks do not reach out"
add rule inet linkspan forward oifname @internal counter drop comment "internal networks are not reached"
add rule inet linkspan forward ct state established,related accept
add rule inet linkspan forward oifname @bridges counter drop comment "nothing comes in unasked"
add rule inet linkspan postrouting ip saddr . oifname @own4 return
add rule inet linkspan postrouting ip6 saddr . oifname @own6 return
add rule inet linkspan postrouting ip saddr @masquerade4 masquerade
add rule inet linkspan postrouting ip6 saddr @masquerade6 masquerade
"""

_SETS = ("bridges", "hairpin", "internal", "own4", "own6", "masquerade4", "masquerade6")


class NftError(OSError):
    """nft(8) could not apply a change; nothing of it was applied."""


@dataclass(frozen=True)
class Policy:
    """What the firewall does for one network.

    `bridges` are its Linux bridges, the one with the gateway first. `connected` allows forwarding from the first bridge
    back into it; `internal` cuts the network off; `masquerade` gives what leaves it the host's address.
    """

    bridges: Sequence[str]
    subnets: Sequence[IPv4Network | IPv6Network]
    connected: bool = True
    internal: bool = False
    masquerade: bool = True


def _elements(policy: Policy) -> list[tuple[str, str]]:
    """(set, element) of a network."""
    first = policy.bridges[0]
    elements = [("bridges", f'"{first}"')]
    if policy.connected:
        elements.append(("hairpin", f'"{first}" . "{first}"'))
    if policy.internal:
        elements.append(("internal", f'"{first}"'))
    for subnet in policy.subnets:
        elements += [(f"own{subnet.version}", f'{subnet} . "{bridge}"') for bridge in policy.bridges]
        if policy.masquerade and not policy.internal:
            elements.append((f"masquerade{subnet.version}", str(subnet)))
    return elements


def add(policy: Policy) -> None:
    """Lets the network through; creates the table if it is not there. May be repeated. Raises NftError."""
    try:
        _apply(_changes("add", policy))
    except NftError:
        # There may be no table, or not yet: another thread may be making it. The rules do no harm where they are.
        _apply(_RULES + _changes("add", policy))


def remove(policy: Policy) -> None:
    """Takes the network's elements away; may be repeated. Raises NftError."""
    if exists():
        # "add" first makes "delete" of an element that is not there succeed (nft 1.0.6 has no "destroy").
        _apply(_changes("add", policy) + _changes("delete", policy))


def synchronize(policies: Sequence[Policy]) -> None:
    """Makes the table hold exactly these networks, in one transaction, so that no packet sees it half-way."""
    flushes = "".join(f"flush set {TABLE} {name}\n" for name in _SETS)
    _apply(_RULES + flushes + "".join(_changes("add", policy) for policy in policies))


def delete_table() -> None:
    """Removes the whole table; may be repeated."""
    _apply(f"add table {TABLE}\ndelete table {TABLE}\n")


def exists() -> bool:
    """Whether the table is there in the caller's network namespace. Raises NftError."""
    return _nft("list", "table", *TABLE.split()).returncode == 0


def _changes(verb: str, policy: Policy) -> str:
    return "".join(f"{verb} element {TABLE} {name} {{ {element} }}\n" for name, element in _elements(policy))


def _nft(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NftError(error.errno, "nft is not installed: apt-get install nftables") from error


def _apply(text: str) -> None:
    done = _nft("-f", "-", text=text)
    if done.returncode != 0:
        first = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit status {done.returncode}"
        raise NftError(None, f"nft refused a change to table {TABLE}: {first}")
