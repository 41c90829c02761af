"""What is applied again when the host's devices change, with a driver without a kernel: all that has to be, not more.

Its networks are on a device that is there or not; their endpoints' devices go with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from control.controller import NetworkController
from control.drivers.base import ParentState
from control.errors import DatapathFailed
from control.model import EndpointSpec, EndpointState, Network, NetworkSpec, SandboxSpec
from datapath.link_monitor import LinkChange
from tests.fakes import FakeDriver, fake_controller

GONE, BACK, OTHER = LinkChange(7, "eth1", True), LinkChange(8, "eth1", False), LinkChange(9, "v0", False)


class OnParent(FakeDriver):
    """The network `pub` is concerned by a device that is back; the others are on none."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Collection[LinkChange] | None, set[str]]] = []
        self.unreadable: OSError | None = None

    def concerned(
        self, networks: Sequence[Network], changes: Collection[LinkChange] | None, failed: Collection[str]
    ) -> list[Network]:
        self.asked.append((changes, set(failed)))
        if self.unreadable is not None:
            raise self.unreadable
        return [n for n in networks if n.name == "pub" and (changes is None or BACK in changes)]

    def vanish(self, *endpoints: str) -> None:
        for endpoint in endpoints or tuple(self.endpoints):
            self.endpoints.pop(endpoint)


@pytest.fixture
def driver() -> OnParent:
    return OnParent()


@pytest.fixture
def controller(tmp_path: Path, driver: OnParent) -> Iterator[NetworkController]:
    made = fake_controller(tmp_path, driver=driver)
    made.start()
    made.create_network(NetworkSpec(name="pub"))
    made.create_network(NetworkSpec(name="other"))
    for name, network in (("a", "pub"), ("b", "pub"), ("c", "other")):
        made.create_sandbox(SandboxSpec(name=name, networks=((network, EndpointSpec()),)))
    yield made
    made.stop()


def broken(controller: NetworkController) -> dict[str, str]:
    return dict(controller.status()["broken"])


def on(controller: NetworkController, network: str) -> set[str]:
    return {str(each.id) for each in controller.network_endpoints(controller.network(network).id)}


def test_endpoints_of_a_concerned_network_are_made_again(controller: NetworkController, driver: OnParent) -> None:
    driver.vanish()
    controller.links_changed({GONE, OTHER})
    assert driver.endpoints == {}
    controller.links_changed({BACK})
    assert driver.endpoints.keys() == on(controller, "pub")
    assert broken(controller) == {}


def test_the_network_itself_is_made_again(controller: NetworkController, driver: OnParent) -> None:
    driver.networks.clear()
    controller.links_changed(None)
    assert driver.networks == {controller.network("pub").id}


def test_one_that_resists_stops_no_other_and_is_told_of_until_it_works(
    controller: NetworkController, driver: OnParent
) -> None:
    driver.vanish()
    driver.failing["endpoint"] = OSError(16, "busy")
    controller.links_changed({BACK})
    ids = on(controller, "pub")
    assert {what.removeprefix("endpoint ") for what in broken(controller)} == {each[:12] for each in ids}
    assert all("busy" in why for why in broken(controller).values())
    controller.remove_sandbox("a")
    assert len(broken(controller)) == 1
    driver.failing.clear()
    controller.links_changed({BACK})
    assert driver.asked[-1][1] == {controller.network("pub").id}, "the driver is told what failed"
    assert broken(controller) == {}
    assert driver.endpoints.keys() == on(controller, "pub")
    controller.links_changed({OTHER})
    assert driver.asked[-1] == ({OTHER}, set())


def test_devices_that_cannot_be_looked_at_are_said_so(controller: NetworkController, driver: OnParent) -> None:
    driver.unreadable = OSError(23, "too many files")
    with pytest.raises(DatapathFailed, match=r"the devices of bridge networks cannot be looked at: .*too many files"):
        controller.links_changed(None)


def test_endpoints_that_are_whole_are_applied_again_without_being_taken_down(
    controller: NetworkController, driver: OnParent, caplog: pytest.LogCaptureFixture
) -> None:
    before = dict(driver.endpoints)
    lost = min(on(controller, "pub"))
    driver.vanish(lost)
    controller.links_changed({BACK})
    assert driver.endpoints.keys() == before.keys()
    kept = max(on(controller, "pub"))
    assert before[kept].endpoint.state is EndpointState.JOINING
    assert driver.endpoints[kept].endpoint.state is EndpointState.JOINED
    assert caplog.text.count("is not whole in the kernel") == 1


def test_status_names_the_devices_that_networks_are_on(controller: NetworkController, driver: OnParent) -> None:
    driver.parents = {"pub": ParentState("eth1", "gone", False)}
    assert controller.status()["parents"] == [{"network": "pub", "parent": "eth1", "state": "gone", "up": False}]
