"""A parent that does not take the programs costs police and host access, not the endpoint; told of until it does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

from control.drivers.base import Join
from control.drivers.macvlan import MacvlanDriver
from control.model import Endpoint, EndpointId, EndpointState, Network, NetworkId, NetworkState, SandboxId
from datapath.uplink import Station, Uplinks

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NETWORK = Network(
    id=NetworkId("a" * 64),
    name="pub",
    driver="macvlan",
    state=NetworkState.ACTIVE,
    created=NOW,
    segment=1,
    options={"parent": "eth1"},
)
ENDPOINT = Endpoint(
    id=EndpointId("e" * 64),
    network_id=NETWORK.id,
    sandbox_id=SandboxId("c" * 64),
    state=EndpointState.JOINED,
    created=NOW,
    ifname="eth0",
    mac="02:42:00:00:00:01",
)


class Parents:
    """Takes the programs or not."""

    problem = None
    attachment = "tcx"

    def __init__(self) -> None:
        self.fallbacks: dict[str, str] = {}
        self.refuses = True

    def has_host_access(self, parent: str, also: Station) -> bool:
        return also.host_access

    def attach(self, parent: str, host_access: bool, switching: object) -> None:
        if self.refuses:
            raise OSError("there is no room for another program")

    def add(self, parent: str, station: Station) -> None:
        pass

    def facts(self) -> dict[str, str]:
        return {}


def test_a_parent_that_takes_the_programs_later_is_no_fallback_any_more() -> None:
    uplinks = Parents()
    driver = MacvlanDriver(str, cast(Uplinks, uplinks))
    steps = driver.endpoint_steps(Join(network=NETWORK, endpoint=ENDPOINT, sandbox=None, netns_path=None))
    (tell,) = (step for step in steps if "programs" in step.name)
    tell.apply()
    assert driver.status().fallbacks == {"parent eth1": "there is no room for another program"}
    uplinks.refuses = False
    tell.apply()
    assert driver.status().fallbacks == {}
