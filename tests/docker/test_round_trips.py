"""Round trips of containers' own TCP connections, on every kind of network that dockerd can have from Linkspan."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from tests.docker.lab import Lab
from tests.docker.test_link_local import KINDS
from tests.hosts import wait_for
from tests.netns.test_tcp_rtt import chat, locals_, of
from tests.require import require

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", KINDS)
def test_connections_of_containers_are_timed_until_they_are_gone(lab: Lab, kind: str) -> None:
    require("tcp_rtt")
    lab.network("fast", *KINDS[kind])
    a, b, other = (lab.run(name, "fast") for name in ("trip-a", "trip-b", "trip-c"))
    wait_for(lambda: {IPv4Address(each.ip4) for each in (a, b, other)} <= locals_(lab.host).keys(), "them to be timed")
    chat(a, b, b.ip4)
    chat(b, a, a.ip6)
    for container in (a, b):
        assert of(container).count > 0
        assert 1e-6 < of(container).mean_s < 1
    assert of(other).count == 0
    lab.remove("trip-a", "trip-b", "trip-c")
    assert locals_(lab.host) == {}
