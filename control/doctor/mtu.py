"""Packets that somewhere on their way are too big. What a driver knows of its devices it tells itself (`examine`)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from control.doctor.findings import Finding, finding
from control.doctor.view import View
from control.drivers.bridge_names import bridge_name
from control.drivers.options import MTU, is_encrypted
from control.model import Address
from datapath.vxlan import OVERHEAD_BYTES

_AT_ONCE: Final = 16


def uplink(view: View) -> Iterator[Finding]:
    """Whether what leaves a bridge network by the host's default route fits there."""
    out = [view.links[ifname] for ifname in view.uplinks if ifname in view.links]
    if not out:
        return
    narrow = min(out, key=lambda link: link.mtu)
    for network in view.networks:
        bridge = view.links.get(bridge_name(network))
        if network.driver == "bridge" and not network.internal and bridge is not None and bridge.mtu > narrow.mtu:
            what = f"the MTU of network {network.name} is {bridge.mtu}, and {narrow.ifname} takes {narrow.mtu}"
            mend = f"ip link set {narrow.ifname} mtu {bridge.mtu}, or make the network with -o {MTU}={narrow.mtu}"
            yield finding("mtu-uplink", bridge.ifname, what, mend)


def discovery(view: View) -> Iterator[Finding]:
    if view.number("net/ipv4/ip_no_pmtu_disc"):
        what = f"net.ipv4.ip_no_pmtu_disc is {view.sysctl('net/ipv4/ip_no_pmtu_disc')}"
        yield finding("pmtu-off", "host", what, "sysctl -w net.ipv4.ip_no_pmtu_disc=0")


def black_holes(view: View) -> Iterator[Finding]:
    """Whether the largest packet gets to other nodes where a small one does: asked, not believed.

    What does not fit this host's own device is no black hole, and told by the driver.
    """
    networks = [network for network in view.networks if network.is_global and view.on(network)]
    sizes = [int(network.options[MTU]) for network in networks if MTU in network.options and not is_encrypted(network)]
    if not sizes:
        return
    nodes = [node.address for node in view.cluster.nodes() if not node.is_self and node.state == "ready"]
    outer = {version: max(sizes) + overhead for version, overhead in OVERHEAD_BYTES.items()}

    def is_passed(address: Address) -> bool:
        try:
            return not view.reaches(address, 0) or view.reaches(address, outer[address.version])
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            return True

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="doctor") as pool:
        passed = list(pool.map(is_passed, nodes))
    for address, is_good in zip(nodes, passed, strict=True):
        if not is_good:
            what = f"small packets get there, those of {outer[address.version]} bytes do not"
            mend = "raise the MTU on the way, let ICMP through there, or make networks with a smaller MTU"
            yield finding("mtu-blackhole", f"node {address}", what, mend)
