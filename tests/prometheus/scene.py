"""Two nodes of a cluster and a host without eBPF, a Prometheus that scrapes them, and something going on everywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Final

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from tests.hosts import host
from tests.netns.dnsmasq import dnsmasq
from tests.nodes import ETCD, Cluster, Node, cluster
from tests.prometheus.server import Prometheus, prometheus
from tests.traffic import Place, Station, tcp_pair
from tests.underlay import UPLINK
from tests.waiting import PATIENCE

PORT: Final = 9478
_PAUSE_S: Final = 0.05


class ScrapedNode(Node):
    """A node whose metrics can be read from the underlay, with a prober that asks busy endpoints too."""

    def start(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        config = self.dir / "probing.toml"
        config.write_text(
            f"[cluster]\nlease-seconds = {10 * PATIENCE:.0f}\n"
            "[metrics.prober]\nenabled = true\ninterval-seconds = 1\nidle-only = false\n"
        )
        return super().start("--config", str(config), "--metrics-listen", f"0.0.0.0:{PORT}", *args, env=env, **options)


@dataclass(frozen=True)
class Scene:
    nodes: Cluster
    server: Prometheus


@contextmanager
def scene() -> Iterator[Scene]:
    """Networks near (bridge), lan (macvlan) and far (overlay), with traffic until the end, and lent (by DHCP)."""
    with cluster(2, kind=ScrapedNode) as nodes, ExitStack() as stack:
        one, other = nodes
        bare = stack.enter_context(_host_without_bpffs(nodes))
        one.linkspan("network", "create", "--subnet", "10.9.0.0/24", "near")
        one.linkspan("network", "create", "-d", "macvlan", "-o", f"parent={UPLINK}", "--subnet", "10.8.0.0/24", "lan")
        _lend(stack, nodes)
        nodes.create("far")
        near = [one.box(name, "near") for name in ("web", "db")]
        far = [one.box("here", "far"), other.box("there", "far")]
        for pair in (near, far):
            stack.enter_context(_going_on(_talking(stack, *pair)))
        stack.enter_context(_going_on(_forging(stack, *near)))
        stack.enter_context(_going_on(lambda: _outside(near[0])))
        stack.enter_context(_going_on(lambda: _churning(one, "near")))
        stack.enter_context(_going_on(lambda: _churning(other, "far")))
        targets = [f"{address}:{PORT}" for address in (one.advertise, other.advertise, bare)]
        yield Scene(nodes, stack.enter_context(prometheus(nodes.etcd_host, targets)))


def _lend(stack: ExitStack, nodes: Cluster) -> None:
    """An endpoint with an address of a DHCP server's on the underlay, until the stack is closed."""
    server = nodes.etcd_host
    server.run("ip", "address", "add", "10.7.0.1/24", "dev", UPLINK)
    place = Place(server, ETCD, f"/proc/{server.pid}/ns/net", UPLINK)
    stack.enter_context(dnsmasq(place, "10.7.0.100,10.7.0.150", ifname=UPLINK))
    nodes[0].linkspan("network", "create", "-d", "macvlan", "-o", f"parent={UPLINK}", "--ipam-driver", "dhcp", "lent")
    nodes[0].box("tenant", "lent")


@contextmanager
def _host_without_bpffs(nodes: Cluster) -> Iterator[str]:
    """A host of no cluster, with a fallback in force; its address."""
    with host(bpffs=False) as bare:
        address = "10.77.0.100"
        nodes.underlay.plug("bare", bare, f"{address}/24")
        bare.start("--metrics-listen", f"0.0.0.0:{PORT}")
        yield address


@contextmanager
def _going_on(once: Callable[[], object]) -> Iterator[None]:
    """Does it again and again until the block ends, with a pause after each time."""
    is_over = Event()

    def body() -> None:
        while not is_over.wait(_PAUSE_S):
            once()

    thread = Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _talking(stack: ExitStack, client: Station, server: Station) -> Callable[[], None]:
    """A hundred questions and answers over one connection."""
    here, there = stack.enter_context(tcp_pair(client, server, server.ip4))

    def once() -> None:
        for _ in range(100):
            here.sendall(b"question")
            there.recv(64)
            there.sendall(b"answer")
            here.recv(64)

    return once


def _forging(stack: ExitStack, who: Station, to: Station) -> Callable[[], None]:
    """A packet with somebody else's address."""
    wire = stack.enter_context(who.wire())
    forged = Ether(src=who.mac, dst=to.mac) / IP(src="10.9.0.99", dst=to.ip4) / UDP(sport=9, dport=9)
    return lambda: wire.send(forged)


def _outside(who: Station) -> None:
    """The gateway is reached by the kernel's path."""
    assert who.pings(str(who.gateway()))


def _churning(node: Node, network: str) -> None:
    """A sandbox comes and goes, and a network is refused."""
    node.sandbox("guest", network)
    node.linkspan("rm", "-f", "guest")
    refused = node.ask("POST", "/networks/create", {"Name": network})
    assert refused.status >= 400, refused
