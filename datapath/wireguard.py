"""Tunnels between nodes: WireGuard devices in a network namespace of their own, which has no other way in or out.

        host                                      tunnels (netns)
    bridge -- VXLAN device  . . . its socket . .  lo 100.64.0.1
                                                  lw-0   lw-1
    underlay -- UDP 51880, 51881  . their sockets . . /

A device's socket stays in the namespace that the device was made in (drivers/net/vxlan/vxlan_core.c, vxlan->net;
drivers/net/wireguard/device.c, creating_net). So the VXLAN devices of encrypted networks are made in `tunnels` and
moved to the host, WireGuard's the other way round. What such a VXLAN device sends is encrypted or, without a WireGuard
device, has no route; what comes to the host in clear finds none of these VXLAN devices listening. Neither depends on a
rule or a route of the host's.

Functions block and may be repeated; refusals are OSError with what was tried.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute, WireGuard
from pyroute2.netlink.exceptions import NetlinkError as Pyroute2Error

from datapath import devices, netns, rtnl

IFNAMES: Final = ("lw-0", "lw-1")
OVERHEAD_BYTES: Final = {4: 60, 6: 80}
"""What a packet grows by, by the underlay's IP version: IP and UDP headers, 16 bytes of WireGuard's and 16 of tag."""
_KEEPALIVE_S: Final = 25
"""Often enough that there is always a session, and no packet has to wait for a handshake."""

_LO: Final = 1
_RT_TABLE_MAIN: Final = 254
# Packets of one peer come by one device while those to it go by the other, and none is for somebody else. A namespace
# has the host's values of these (net/ipv4/devinet.c, devinet_init_net).
_SETTINGS: Final = {"ip_forward": "0", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0"}


@dataclass(frozen=True)
class Peer:
    """Another node's device: its public key (base64), where on the underlay it listens, and the one address that
    packets through the tunnel may have at that end."""

    public_key: str
    endpoint: IPv4Address | IPv6Address
    port: int
    address: IPv4Address


@dataclass(frozen=True)
class Device:
    """A device by what it is to have; keys are base64, `port` is the UDP port that it listens on."""

    private_key: str = field(repr=False)
    port: int
    peers: frozenset[Peer] = frozenset()


@dataclass(frozen=True)
class FoundDevice(Device):
    """A device as it is. `keys` are the public keys of all its peers, `peers` those that are as peers are here.

    With the peers of `handshakes` there was a session: each end has shown that it knows the other's key.
    """

    public_key: str = ""
    keys: frozenset[str] = frozenset()
    handshakes: frozenset[str] = frozenset()
    mtu: int = 0
    is_up: bool = False


@dataclass(frozen=True)
class Found:
    """What is there; `routes` say by which device packets for a peer's address go."""

    devices: Mapping[str, FoundDevice] = field(default_factory=dict)
    routes: Mapping[IPv4Address, str] = field(default_factory=dict)


class Tunnels:
    """The namespace pinned at `path` and what is in it. It outlives linkspand, as do the tunnels.

    The host is the calling thread's namespace. One thread at a time.
    """

    def __init__(self, path: Path) -> None:
        """`path` is in a directory for this alone."""
        self.path = path

    def open(self, address: IPv4Address) -> None:
        """Makes the namespace where it is not there, and `address` its own, the only one."""
        netns.prepare_directory(self.path.parent)
        netns.create(self.path)
        netns.call(self.path, partial(_set_up, address))

    def look(self) -> Found:
        """What there is; nothing without a namespace."""
        return netns.call(self.path, _look) if netns.is_netns(self.path) else Found()

    def synchronize(self, wanted: Mapping[str, Device], routes: Mapping[IPv4Address, str], *, mtu: int) -> Found:
        """Makes exactly the devices `wanted` by name, with exactly their peers, and the routes; returns what there is.

        What is right already is not touched: no session is lost. A device with another key or port is made anew. Routes
        change before peers and devices go, each in one step.
        """
        found = self.look().devices
        unfit = [name for name, old in found.items() if name in wanted and _identity(old) != _identity(wanted[name])]
        netns.call(self.path, partial(devices.delete_links, unfit))
        for ifname in wanted:
            if ifname not in found or ifname in unfit:
                self._add(ifname, mtu)
        return netns.call(self.path, partial(_bring_about, wanted, routes, mtu))

    def _add(self, ifname: str, mtu: int) -> None:
        with netns.opened(self.path) as fd, IPRoute() as ip, _told(f"add the WireGuard device {ifname}", errno.EEXIST):
            ip.link("add", ifname=ifname, kind="wireguard", mtu=mtu, net_ns_fd=fd)

    def close(self) -> None:
        """Removes everything; harmless when there is nothing. VXLAN devices that were made in the namespace go too."""
        if netns.is_netns(self.path):
            # By themselves they would end some time after the namespace, and hold their ports until then.
            netns.call(self.path, partial(devices.delete_links, IFNAMES))
        netns.delete(self.path)
        netns.release_directory(self.path.parent)


@contextmanager
def _told(what: str, *tolerated: int) -> Iterator[None]:
    try:
        yield
    except Pyroute2Error as error:
        if error.code not in tolerated:
            raise rtnl.NetlinkError(error.code, f"cannot {what}: {error.args[1]}") from error


def _identity(device: Device) -> tuple[str, int]:
    return device.private_key, device.port


def _set_up(address: IPv4Address) -> None:
    for name, value in _SETTINGS.items():
        Path("/proc/sys/net/ipv4", name).write_text(value)
    with IPRoute(strict_check=True) as ip, _told(f"give the tunnels the address {address}", errno.EEXIST):
        for found in ip.get_addr(index=_LO, family=socket.AF_INET):
            old = ip_address(found.get_attr("IFA_LOCAL"))
            if old != address and not old.is_loopback:
                ip.addr("delete", index=_LO, address=str(old), prefixlen=found["prefixlen"])
        ip.addr("add", index=_LO, address=str(address), prefixlen=32)


def _look() -> Found:
    with IPRoute(strict_check=True) as ip, _told("look at the tunnels"):
        links = {link.get_attr("IFLA_IFNAME"): link for link in ip.get_links()}
        present = [ifname for ifname in IFNAMES if ifname in links]
        if not present:
            return Found()  # and the kernel may have no WireGuard to ask
        with WireGuard() as wireguard:
            found = {ifname: _found(links[ifname], wireguard.info(ifname)) for ifname in present}
        by_index = {links[ifname]["index"]: ifname for ifname in present}
        routes = {
            IPv4Address(route.get_attr("RTA_DST")): by_index[route.get_attr("RTA_OIF")]
            for route in ip.get_routes(family=socket.AF_INET, table=_RT_TABLE_MAIN)
            if route["dst_len"] == 32 and route.get_attr("RTA_OIF") in by_index
        }
        return Found(found, routes)


def _found(link: Any, messages: Sequence[Any]) -> FoundDevice:
    parts: dict[str, list[Any]] = {}
    for message in messages:
        # Many peers come in several messages, and a peer may begin in one and go on in the next.
        for part in message.get_attr("WGDEVICE_A_PEERS") or ():
            parts.setdefault(part.get_attr("WGPEER_A_PUBLIC_KEY").decode(), []).append(part)
    first = messages[0]
    return FoundDevice(
        private_key=(first.get_attr("WGDEVICE_A_PRIVATE_KEY") or b"").decode(),
        port=first.get_attr("WGDEVICE_A_LISTEN_PORT"),
        peers=frozenset(peer for key in parts if (peer := _peer(key, parts[key])) is not None),
        public_key=(first.get_attr("WGDEVICE_A_PUBLIC_KEY") or b"").decode(),
        keys=frozenset(parts),
        handshakes=frozenset(key for key in parts if parts[key][0].get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")["tv_sec"]),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=bool(link["flags"] & rtnl.IFF_UP),
    )


def _peer(key: str, parts: Sequence[Any]) -> Peer | None:
    """None for a peer that is not as `_settings` has them."""
    endpoint = parts[0].get_attr("WGPEER_A_ENDPOINT")
    allowed = [found["addr"] for part in parts for found in part.get_attr("WGPEER_A_ALLOWEDIPS") or ()]
    if endpoint is None or len(allowed) != 1 or not allowed[0].endswith("/32"):
        return None
    return Peer(key, ip_address(endpoint["addr"]), endpoint["port"], IPv4Address(allowed[0].removesuffix("/32")))


def _bring_about(wanted: Mapping[str, Device], routes: Mapping[IPv4Address, str], mtu: int) -> Found:
    found = _look()
    if not found.devices:
        return found
    with IPRoute() as ip, WireGuard() as wireguard:
        for ifname, device in wanted.items():
            _configure(ip, wireguard, ifname, device, found.devices[ifname], mtu)
        for address, ifname in routes.items():
            if found.routes.get(address) != ifname:
                with _told(f"send packets for {address} by {ifname}"):
                    ip.route("replace", dst=f"{address}/32", oif=devices.need_ifindex(ifname))
        for address in found.routes.keys() - routes.keys():
            with _told(f"send no more packets to {address}", errno.ESRCH):
                ip.route("delete", dst=f"{address}/32")
        for ifname, device in wanted.items():
            for key in found.devices[ifname].keys - {peer.public_key for peer in device.peers}:
                with _told(f"remove the peer {key} from {ifname}"):
                    wireguard.set(ifname, peer={"public_key": key, "remove": True})
    devices.delete_links([ifname for ifname in found.devices if ifname not in wanted])
    return _look()


def _configure(ip: Any, wireguard: Any, ifname: str, device: Device, found: FoundDevice, mtu: int) -> None:
    """Makes up a device that has come to be, and adds the peers that are missing."""
    if _identity(found) != _identity(device):
        with _told(f"give {ifname} its key"):
            wireguard.set(ifname, private_key=device.private_key, listen_port=device.port)
    for peer in device.peers - found.peers:
        with _told(f"add the node at {peer.endpoint} to {ifname}"):
            wireguard.set(ifname, peer=_settings(peer))
    if found.mtu != mtu or not found.is_up:
        with _told(f"set {ifname} up, which listens on UDP port {device.port} of the host"):
            ip.link("set", index=devices.need_ifindex(ifname), mtu=mtu, state="up")


def _settings(peer: Peer) -> dict[str, Any]:
    return {
        "public_key": peer.public_key,
        "endpoint_addr": str(peer.endpoint),
        "endpoint_port": peer.port,
        "persistent_keepalive": _KEEPALIVE_S,
        "replace_allowed_ips": True,
        "allowed_ips": [f"{peer.address}/32"],
    }
