"""Round trips of containers' own TCP connections, on every kind of network that dockerd can have from Linkspan."""

from __future__ import annotations

import pytest

from tests.docker.lab import Lab
from tests.docker.test_link_local import KINDS
from tests.hosts import wait_for
from tests.netns.test_tcp_rtt import chat, exposed, of

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "without programs" not in kind])
def test_connections_of_containers_are_timed(lab: Lab, kind: str) -> None:
    lab.network("fast", *KINDS[kind])
    a, b, other = (lab.run(name, "fast") for name in ("trip-a", "trip-b", "trip-c"))

    def are_timed() -> bool:
        # The engine moves a macvlan device after the join, and our program at it comes after that.
        chat(a, b, b.ip4)
        chat(b, a, a.ip6)
        return all(of(container).count > 0 for container in (a, b))

    wait_for(are_timed, "both to be timed")
    for container in (a, b):
        assert 1e-6 < of(container).mean_s < 1
    assert of(other).count == 0
    lab.remove("trip-a", "trip-b", "trip-c")
    assert exposed(lab.host, "linkspan_endpoint_tcp_rtt_seconds") == {}
