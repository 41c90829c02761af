"""The nftables table `linkspan`: forwarding, masquerade and published ports of all networks.

The rules never change; networks and ports come and go as elements, an element or two for each. The table stands beside
those of Docker, firewalld and the operator and touches none of them. Its text is handed to nft(8), which applies it in
one transaction.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Literal

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from datapath import conntrack, devices, rtnl

TABLE = "inet linkspan"

# Bridges are those with the gateway's addresses; shards are further Linux bridges of a network, which only bridge.
#
# br_netfilter shows frames to these hooks although they are only bridged, once for each bridge that they cross:
# - own4/own6 hold (subnet . device): traffic of a subnet leaving by its own bridges is never masqueraded, but for what
#   an endpoint sends to a port of the host that stands for an endpoint of the same network: the answer must come back
#   through the host.
# - What crosses a shard is not tracked there: a connection is given its addresses where it is first seen, and that must
#   be the bridge that routes.
#
# published4/6 keep the port, translated4/6 change it too. Keys are (address of the host . protocol . port), each a
# value or an interval. ::1 is left out: without something like IPv4's route_localnet the answers are dropped.
# The protocol is read from the IP header, because for `meta l4proto` nft asks for the byte order of one byte, which
# Linux 6.12 refuses. So IPv6 packets with extension headers are for no published port.
_RULES = """
add table inet linkspan
add set inet linkspan bridges { type ifname; }
add set inet linkspan shards { type ifname; }
add set inet linkspan hairpin { type ifname . ifname; }
add set inet linkspan internal { type ifname; }
add set inet linkspan own4 { type ipv4_addr . ifname; flags interval; }
add set inet linkspan own6 { type ipv6_addr . ifname; flags interval; }
add set inet linkspan masquerade4 { type ipv4_addr; flags interval; }
add set inet linkspan masquerade6 { type ipv6_addr; flags interval; }
add map inet linkspan published4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr; flags interval; }
add map inet linkspan published6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr; flags interval; }
add map inet linkspan translated4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; flags interval; }
add map inet linkspan translated6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; flags interval; }
add chain inet linkspan guard { type filter hook prerouting priority raw; policy accept; }
add chain inet linkspan prerouting { type nat hook prerouting priority dstnat; policy accept; }
add chain inet linkspan output { type nat hook output priority -100; policy accept; }
add chain inet linkspan ports
add chain inet linkspan forward { type filter hook forward priority filter; policy accept; }
add chain inet linkspan postrouting { type nat hook postrouting priority srcnat; policy accept; }
flush chain inet linkspan guard
flush chain inet linkspan prerouting
flush chain inet linkspan output
flush chain inet linkspan ports
flush chain inet linkspan forward
flush chain inet linkspan postrouting
add rule inet linkspan guard ip daddr 127.0.0.0/8 iifname @bridges counter drop comment "the host's loopback is its own"
add rule inet linkspan guard ip saddr 127.0.0.0/8 iifname @bridges counter drop comment "the host's loopback is its own"
add rule inet linkspan guard iifname @shards notrack
add rule inet linkspan prerouting fib daddr type local jump ports
add rule inet linkspan output fib daddr type local jump ports
add rule inet linkspan ports meta l4proto { tcp, udp } dnat ip to ip daddr . ip protocol . th dport map @published4
add rule inet linkspan ports meta l4proto { tcp, udp } dnat ip to ip daddr . ip protocol . th dport map @translated4
add rule inet linkspan ports ip6 daddr ::1 return
add rule inet linkspan ports meta l4proto { tcp, udp } dnat ip6 to ip6 daddr . ip6 nexthdr . th dport map @published6
add rule inet linkspan ports meta l4proto { tcp, udp } dnat ip6 to ip6 daddr . ip6 nexthdr . th dport map @translated6
add rule inet linkspan forward iifname @shards oifname != @shards counter drop comment "shards only bridge"
add rule inet linkspan forward iifname != @bridges oifname != @bridges return
add rule inet linkspan forward iifname . oifname @hairpin accept
add rule inet linkspan forward iifname @bridges ip saddr 169.254.0.0/16 ip saddr . iifname != @own4 counter drop comment "link-local packets stay on their link"
add rule inet linkspan forward iifname @internal counter drop comment "internal networks do not reach out"
add rule inet linkspan forward oifname @internal counter drop comment "internal networks are not reached"
add rule inet linkspan forward ct status dnat accept comment "published ports"
add rule inet linkspan forward iifname @bridges oifname @bridges counter drop comment "networks are isolated"
add rule inet linkspan forward ct state established,related accept
add rule inet linkspan forward oifname @bridges counter drop comment "nothing comes in unasked"
add rule inet linkspan postrouting ip saddr 127.0.0.0/8 oifname @bridges masquerade
add rule inet linkspan postrouting ct status dnat ip saddr . oifname @own4 masquerade
add rule inet linkspan postrouting ct status dnat ip6 saddr . oifname @own6 masquerade
add rule inet linkspan postrouting ip saddr . oifname @own4 return
add rule inet linkspan postrouting ip6 saddr . oifname @own6 return
add rule inet linkspan postrouting ip saddr @masquerade4 masquerade
add rule inet linkspan postrouting ip6 saddr @masquerade6 masquerade
"""  # noqa: E501

_SETS = ("bridges", "shards", "hairpin", "internal", "own4", "own6", "masquerade4", "masquerade6")
_MAPS = ("published4", "published6", "translated4", "translated6")
_EVERY_ADDRESS = {4: "0.0.0.0/0", 6: "::/0"}


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


@dataclass(frozen=True)
class Publication:
    """A port of the host, or `count` ports in a row, that stand for ports of an endpoint.

    The first port of the host, `host_port` at `host_ip`, stands for `port` at the endpoint's `address`, the next for
    the one after it. Without `host_ip`, or with the unspecified one, it is that of every address of the host of the
    same family, loopback included: 127.0.0.1, not ::1, for which IPv6 has no way out of the host. Raises ValueError for
    what cannot be.
    """

    protocol: Literal["tcp", "udp"]
    address: IPv4Address | IPv6Address
    port: int
    host_ip: IPv4Address | IPv6Address | None
    host_port: int
    count: int = 1

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp"):
            raise ValueError(f"ports of {self.protocol} cannot be published: only tcp and udp have ports here")
        if self.count < 1:
            raise ValueError(f"{self.count} ports cannot be published: at least one")
        for first in (self.port, self.host_port):
            if not 1 <= first <= first + self.count - 1 <= 65535:
                raise ValueError(f"{self.count} ports from {first} cannot be published: ports are 1 to 65535")
        if self.host_ip is not None and self.host_ip.version != self.address.version:
            raise ValueError(f"{self.host_ip} cannot stand for {self.address}: they are of different families")
        if self.host_ip == IPv6Address("::1"):
            raise ValueError("::1 cannot stand for an endpoint: IPv6 has no way out of the host for it, use 127.0.0.1")

    @property
    def host_ports(self) -> range:
        return range(self.host_port, self.host_port + self.count)


def _elements(policy: Policy) -> list[tuple[str, str]]:
    """(set, element) of a network."""
    first = policy.bridges[0]
    elements = [("bridges", f'"{first}"'), *(("shards", f'"{shard}"') for shard in policy.bridges[1:])]
    if policy.connected:
        elements.append(("hairpin", f'"{first}" . "{first}"'))
    if policy.internal:
        elements.append(("internal", f'"{first}"'))
    for subnet in policy.subnets:
        elements += [(f"own{subnet.version}", f'{subnet} . "{bridge}"') for bridge in policy.bridges]
        if policy.masquerade and not policy.internal:
            elements.append((f"masquerade{subnet.version}", str(subnet)))
    return elements


def _port_elements(publication: Publication) -> list[tuple[str, str]]:
    """(map, element) of a port or range.

    A range that keeps its ports is one element, which gives the address alone. One that moves them is an element for
    each port: the kernel can add an offset to a port (NF_NAT_RANGE_PROTO_OFFSET), but nftables does not offer it, and a
    range of ports to choose from would give any of them.
    """
    version, address = publication.address.version, publication.address
    anywhere = publication.host_ip is None or publication.host_ip.is_unspecified
    key = f"{_EVERY_ADDRESS[version] if anywhere else publication.host_ip} . {publication.protocol}"
    first, last, shift = publication.host_ports[0], publication.host_ports[-1], publication.port - publication.host_port
    if shift == 0:
        ports = f"{first}" if first == last else f"{first}-{last}"
        return [(f"published{version}", f"{key} . {ports} : {address}")]
    return [(f"translated{version}", f"{key} . {p} : {address} . {p + shift}") for p in publication.host_ports]


def add(policy: Policy) -> None:
    """Lets the network through; creates the table if it is not there. May be repeated. Raises NftError."""
    _add(_changes("add", _elements(policy)))


def remove(policy: Policy) -> None:
    """Takes the network's elements away; may be repeated. Raises NftError."""
    if exists():
        _delete(_elements(policy))


def publish(publications: Sequence[Publication]) -> None:
    """Publishes ports, all or none; creates the table if it is not there. May be repeated. Raises NftError.

    New connections go to the endpoints. So do UDP flows that go elsewhere, to a socket of the host for example: they
    have no end that could be waited for. A port that lies within one published before is refused (EEXIST), but the
    kernel does not refuse a range or "every address" around others: `datapath.host_ports` keeps all that from
    happening.
    """
    if publications:
        _add(_port_changes("add", publications))
        for publication in publications:
            if publication.protocol == "udp":
                conntrack.forget_udp_past(publication.address, publication.host_ip, publication.host_ports)


def unpublish(publications: Sequence[Publication]) -> None:
    """Takes ports away; may be repeated. Raises NftError.

    Those that have been given to another endpoint since stay. TCP connections go on; UDP flows end.
    """
    if not publications or not exists():
        return
    try:
        _delete([element for publication in publications for element in _port_elements(publication)])
    except NftError as error:
        if error.errno != errno.EEXIST:
            raise
        for publication in publications:
            for element in _port_elements(publication):
                _delete_unless_taken(element)
    for publication in publications:
        if publication.protocol == "udp":
            conntrack.forget_udp_to(publication.address, publication.host_ports)


def synchronize(policies: Sequence[Policy], publications: Sequence[Publication] = ()) -> None:
    """Makes the table hold exactly these networks and ports, in one transaction: no packet sees it half-way."""
    flushes = "".join(f"flush set {TABLE} {name}\n" for name in _SETS)
    flushes += "".join(f"flush map {TABLE} {name}\n" for name in _MAPS)
    changes = "".join(_changes("add", _elements(policy)) for policy in policies)
    _apply(_RULES + flushes + changes + _port_changes("add", publications))


def restore(policies: Sequence[Policy], publications: Sequence[Publication] = ()) -> None:
    """Makes the table hold at least these networks and ports, in one transaction; may run beside `add`, `publish` and
    their opposites."""
    if policies:
        changes = "".join(_changes("add", _elements(policy)) for policy in policies)
        _apply(_RULES + changes + _port_changes("add", publications))


def allow_loopback(bridge: str) -> None:
    """Lets the host itself reach ports that are published on `bridge`'s network through 127.0.0.1. May be repeated.

    Sets net.ipv4.conf.<bridge>.route_localnet, which lets the kernel route loopback addresses over the device. The
    network's policy must have been added before: the table keeps the endpoints away from the host's loopback.
    Raises OSError.
    """
    Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet").write_text("1")


def allow_hairpin(port: str) -> None:
    """Lets the endpoint behind a bridge port reach itself by its published ports. May be repeated.

    Where br_netfilter shows frames to the table, the bridge sends them on itself once their address is changed, and a
    port does not send back what came in by it unless it is in hairpin mode; else the host routes and nothing is needed.
    For the same reason endpoints that are isolated from each other, or lie on one shard, meet at published ports only
    without br_netfilter. The endpoint hears its own broadcasts then. Raises NetlinkError.
    """
    index = devices.need_ifindex(port)
    with IPRoute() as ip:
        try:
            ip.brport("set", index=index, mode=1)
        except Pyroute2Error as error:
            raise rtnl.NetlinkError(error.code, f"cannot set hairpin mode of {port}: {error.args[1]}") from error


def delete_table() -> None:
    """Removes the whole table; may be repeated."""
    _apply(f"add table {TABLE}\ndelete table {TABLE}\n")


def exists() -> bool:
    """Whether the table is there in the caller's network namespace. Raises NftError."""
    return _nft("--terse", "list", "table", *TABLE.split()).returncode == 0


def differences(policies: Sequence[Policy], publications: Sequence[Publication] = ()) -> list[tuple[str, bool]]:
    """In words, what the table holds other than `synchronize` would make it hold, and whether that is too much rather
    than missing. Looks, but changes nothing. Raises NftError."""
    done = _nft("-j", "list", "table", *TABLE.split())
    if done.returncode:
        return [(f"table {TABLE} is missing", False)] if policies else []
    listing = json.loads(done.stdout)["nftables"]
    found = [
        (f"chain {chain} of table {TABLE} has {has} of its {wanted} rules", has > wanted)
        for chain, wanted in Counter(line.split()[4] for line in _RULES.splitlines() if "add rule" in line).items()
        if (has := sum(each["rule"]["chain"] == chain for each in listing if "rule" in each)) != wanted
    ]
    wanted = {pair for policy in policies for pair in _elements(policy)}
    wanted |= {pair for publication in publications for pair in _port_elements(publication)}
    missing = {(name, _plain(text)) for name, text in wanted}
    extra = set()
    for each in listing:
        shown = each.get("set") or each.get("map")
        for element in (shown or {}).get("elem", ()):
            pair = (shown["name"], _plain(_shown(element)))
            if pair in missing:
                missing.remove(pair)
            else:
                extra.add(pair)
    found += [(f"element {text} of {name} is missing", False) for name, text in sorted(missing)]
    return found + [(f"element {text} of {name} is nobody's", True) for name, text in sorted(extra)]


def others() -> list[dict[str, Any]]:
    """The host's tables, chains and rules but for those of `TABLE`, as `nft -j list ruleset` has them.

    Raises NftError.
    """
    done = _nft("-j", "list", "ruleset")
    if done.returncode:
        raise NftError(None, f"nft cannot list the ruleset: {done.stderr.strip()}")
    family, name = TABLE.split()
    found = []
    for item in json.loads(done.stdout)["nftables"]:
        ((kind, each),) = item.items()
        is_own = each.get("family") == family and name in (
            each.get("table"),
            each.get("name") if kind == "table" else "",
        )
        if not is_own and kind in ("table", "chain", "rule"):
            found.append(item)
    return found


def _plain(element: str) -> str:
    """Without quotes, and without the length of a prefix that is one address, which nft leaves out."""
    words = element.replace('"', "").split()
    return " ".join(word.removesuffix("/32" if "." in word else "/128") for word in words)


def _shown(element: Any) -> str:
    """An element of `nft -j` as `_elements` and `_port_elements` write it; a pair is one of a map."""
    if isinstance(element, list):
        return " : ".join(map(_shown, element))
    if not isinstance(element, dict):
        return str(element)
    match next(iter(element.items())):
        case "concat", parts:
            return " . ".join(map(_shown, parts))
        case "prefix", prefix:
            return f"{prefix['addr']}/{prefix['len']}"
        case "range", (first, last):
            return f"{first}-{last}"
        case _:
            return json.dumps(element)


def listed(*arguments: str) -> str:
    """What nft(8) prints of the ruleset; empty for what is not there. Raises NftError without nft(8)."""
    done = _nft(*arguments)
    return done.stdout if done.returncode == 0 else ""


def _changes(verb: str, elements: Sequence[tuple[str, str]]) -> str:
    return "".join(f"{verb} element {TABLE} {name} {{ {element} }}\n" for name, element in elements)


def _port_changes(verb: str, publications: Sequence[Publication]) -> str:
    return "".join(_changes(verb, _port_elements(publication)) for publication in publications)


def _add(changes: str) -> None:
    try:
        _apply(changes)
    except NftError as error:
        if error.errno == errno.EEXIST:
            raise
        # There may be no table, or not yet: another thread may be making it. The rules do no harm where they are.
        _apply(_RULES + changes)


def _delete(elements: Sequence[tuple[str, str]]) -> None:
    """Adds first: so "delete" of an element that is not there succeeds (nft 1.0.6 has no "destroy"), and that of a port
    fails with EEXIST if it belongs to another endpoint now ("delete" by itself looks at the key alone).

    The newest goes first: the kernel takes 1,000 ports from a map in 0.15 s this way, and in 3 s the other way round.
    """
    _apply(_changes("add", elements) + _changes("delete", elements[::-1]))


def _delete_unless_taken(element: tuple[str, str]) -> None:
    try:
        _delete([element])
    except NftError as error:
        if error.errno != errno.EEXIST:
            raise


def _nft(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["nft", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},  # so that the words for an errno are known
        )
    except FileNotFoundError as error:
        raise NftError(error.errno, "nft is not installed: apt-get install nftables") from error


def _apply(text: str) -> None:
    done = _nft("-f", "-", text=text)
    if done.returncode != 0:
        first = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit status {done.returncode}"
        code = errno.EEXIST if first.endswith(os.strerror(errno.EEXIST)) else None
        raise NftError(code, f"nft refused a change to table {TABLE}: {first}")
