"""Link-local addresses that dockerd gives its containers: it sets them up itself, and tells the plugin nothing."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.docker.engine import CLIENTS
from tests.docker.image import NAME
from tests.docker.lab import SLEEP, Container, Lab
from tests.netns.outside import OUTSIDE4, OUTSIDE6, UPLINK

pytestmark = pytest.mark.root

A4, A6, B4, B6 = "169.254.7.7", "fe80::77", "169.254.7.8", "fe80::78"
BOTH = ("--ipv6", "--subnet", "10.74.0.0/24", "--subnet", "fd00:74::/64")
KINDS = {
    "bridge": BOTH,
    "bridge without programs": (*BOTH, "-o", "linkspan.accel=off"),
    "macvlan": (
        *("-o", "linkspan.driver=macvlan", "-o", f"parent={UPLINK}", "--ipv6"),
        *("--subnet", "203.0.113.0/24", "--gateway", OUTSIDE4, "--ip-range", "203.0.113.64/27"),
        *("--subnet", "2001:db8:9::/64", "--gateway", OUTSIDE6, "--ip-range", "2001:db8:9::40/122"),
    ),
}


def reaches(source: Container, target4: str, target6: str, **how: Any) -> tuple[bool, bool]:
    return source.pings(target4, "-I", source.ifname, **how), source.pings(f"{target6}%{source.ifname}", **how)


def connected(lab: Lab, name: str, network: str, *addresses: str, client: str = "") -> Container:
    lab.docker("run", "-d", "--name", name, NAME, *SLEEP)
    lab.docker("network", "connect", "--link-local-ip", ",".join(addresses), network, name, client=client)
    return Container(lab, name, network)


@pytest.mark.parametrize("kind", KINDS)
def test_containers_reach_each_other_by_them(lab: Lab, kind: str) -> None:
    lab.network("fast", *KINDS[kind])
    a = connected(lab, "local-a", "fast", A4, A6, client=CLIENTS[0])
    b = connected(lab, "local-b", "fast", B4, B6, client=CLIENTS[-1])
    assert a.on["IPAMConfig"]["LinkLocalIPs"] == [A4, A6]
    (link,) = a.ip("addr", "show", "dev", a.ifname)
    assert {A4, A6} <= {info["local"] for info in link["addr_info"]}
    assert reaches(a, B4, B6) == reaches(b, A4, A6) == (True, True)
    assert a.pings(b.ip4)
    assert a.pings(b.ip6)
    lab.host.stop(signal.SIGKILL)
    lab.host.start()
    for container in (a, b):
        container.run("ip", "neigh", "flush", "dev", container.ifname)
    assert reaches(a, B4, B6) == reaches(b, A4, A6) == (True, True)
    lab.remove("local-a", "local-b")
