"""What the kernel refuses, and what starts find: nothing half-made, nobody else harmed, the reason told."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest

from control.controller import NetworkController
from control.errors import Conflict, ControlError, DatapathFailed, Exhausted, Forbidden, InvalidArgument, NotFound
from control.hosts import HostsTable
from control.model import Endpoint, EndpointSpec, Network, NetworkSpec, NetworkState, PoolSpec, Sandbox, SandboxSpec
from control.plan import Step
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore

SMALL = (PoolSpec(subnet=IPv4Network("10.1.0.0/29")),)  # five addresses besides the gateway's
ON_NET = (("net", EndpointSpec()),)
REFUSED = OSError(95, "cannot add veth: Operation not supported")


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def controller(tmp_path: Path, driver: FakeDriver, store: MemoryStore) -> Iterator[NetworkController]:
    controller = fake_controller(tmp_path, driver, store)
    controller.start()
    controller.create_network(NetworkSpec(name="net", pools=SMALL))
    yield controller
    controller.stop()


def restarted(tmp_path: Path, driver: FakeDriver, store: MemoryStore) -> NetworkController:
    again = fake_controller(tmp_path, driver, store)
    again.start()
    return again


def names(controller: NetworkController) -> list[str]:
    return sorted(network.name for network in controller.networks())


def test_a_network_that_the_kernel_refuses_is_gone_and_its_pool_is_free(
    controller: NetworkController, driver: FakeDriver
) -> None:
    driver.failing["fake network"] = driver.failing["network"] = REFUSED
    spec = NetworkSpec(name="bad", pools=(PoolSpec(subnet=IPv4Network("10.2.0.0/24")),))
    with pytest.raises(DatapathFailed, match=r"network bad could not be created: .*Operation not supported"):
        controller.create_network(spec)
    assert "bad" not in names(controller)
    driver.failing.clear()
    assert controller.create_network(spec)[0].state is NetworkState.ACTIVE


def test_a_join_that_the_kernel_refuses_leaves_the_sandbox_and_frees_the_address(
    controller: NetworkController, driver: FakeDriver
) -> None:
    controller.create_network(NetworkSpec(name="other"))
    controller.create_sandbox(SandboxSpec(name="box", networks=(("other", EndpointSpec()),)))
    wanted = EndpointSpec(ipv4=ip_address("10.1.0.4"))  # type: ignore[arg-type]
    driver.failing["endpoint"] = REFUSED
    with pytest.raises(DatapathFailed, match=r"sandbox box could not be connected to network net: .*not supported"):
        controller.connect("net", "box", wanted)
    driver.failing.clear()
    assert [endpoint.state for endpoint in controller.endpoints()] == ["joined"]
    assert str(controller.connect("net", "box", wanted).ipv4) == "10.1.0.4/29"


def test_a_sandbox_whose_second_join_fails_is_not_made_at_all(
    controller: NetworkController, driver: FakeDriver
) -> None:
    with pytest.raises(NotFound, match="network nowhere not found"):
        controller.create_sandbox(SandboxSpec(name="box", networks=(*ON_NET, ("nowhere", EndpointSpec()))))
    assert controller.sandboxes() == []
    assert controller.endpoints() == []
    assert driver.endpoints == {}
    controller.create_sandbox(SandboxSpec(name="box", networks=ON_NET))


def test_a_default_route_that_cannot_move_on_leaves_the_endpoint_that_should_have_got_it(
    controller: NetworkController, driver: FakeDriver
) -> None:
    controller.create_network(NetworkSpec(name="second"))
    box = controller.create_sandbox(SandboxSpec(name="box", networks=(*ON_NET, ("second", EndpointSpec()))))
    driver.failing["endpoint"] = REFUSED
    with pytest.raises(DatapathFailed, match="default route of sandbox box could not be moved to network second"):
        controller.disconnect("net", "box")
    (left,) = controller.sandbox_endpoints(box.id)
    assert left.state == "joined"
    assert left.id in driver.endpoints


def test_a_start_repairs_what_the_kernel_lost(
    controller: NetworkController, driver: FakeDriver, store: MemoryStore, tmp_path: Path
) -> None:
    controller.create_sandbox(SandboxSpec(name="box", networks=ON_NET))
    networks, endpoints = driver.networks.copy(), set(driver.endpoints)
    driver.networks.clear()
    driver.endpoints.clear()
    again = restarted(tmp_path, driver, store)
    assert (driver.networks, set(driver.endpoints)) == (networks, endpoints)
    assert again.status()["broken"] == {}


def test_a_network_that_cannot_be_repaired_is_shown_and_stops_no_start(
    controller: NetworkController, driver: FakeDriver, store: MemoryStore, tmp_path: Path
) -> None:
    controller.create_sandbox(SandboxSpec(name="box", networks=ON_NET))
    driver.endpoints.clear()
    driver.failing["endpoint"] = REFUSED
    again = restarted(tmp_path, driver, store)
    ((what, why),) = again.status()["broken"].items()
    assert what.startswith("endpoint ")
    assert "Operation not supported" in why
    driver.failing.clear()
    again.disconnect("net", "box")
    again.connect("net", "box")


def test_endpoints_of_a_sandbox_that_lost_its_namespace_are_made_again(
    controller: NetworkController, driver: FakeDriver, store: MemoryStore, tmp_path: Path
) -> None:
    box = controller.create_sandbox(SandboxSpec(name="box", networks=ON_NET))
    Path(controller.paths(box).hosts).unlink()
    (join,) = driver.endpoints.values()
    restarted(tmp_path, driver, store)
    assert driver.endpoints[join.endpoint.id] is not join


def test_a_network_being_created_is_neither_removed_nor_pruned_nor_joined(
    controller: NetworkController, driver: FakeDriver
) -> None:
    controller.create_sandbox(SandboxSpec(name="box", networks=ON_NET))
    driver.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(controller.create_network, NetworkSpec(name="slow"))
        while "slow" not in names(controller):
            pass
        with pytest.raises(Forbidden, match="network slow is still being created"):
            controller.remove_network("slow")
        with pytest.raises(Forbidden, match="network slow is creating: it cannot be joined"):
            controller.connect("slow", "box")
        assert controller.prune_networks(lambda network: False) == []
        driver.gate.set()
        making.result()
    controller.remove_network("slow")


class SlowRemoval(FakeDriver):
    """Networks go when the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = threading.Event()

    def network_steps(self, network: Network) -> Sequence[Step]:
        def wait() -> None:
            assert self.gone.wait(30)

        return [*super().network_steps(network), Step("wait", lambda: None, wait)]


def test_a_network_is_removed_once_and_its_pool_given_back_once(tmp_path: Path) -> None:
    """A second removal would give back the pool that a new network has by then."""
    driver = SlowRemoval()
    controller = fake_controller(tmp_path, driver)
    controller.start()
    controller.create_network(NetworkSpec(name="old", pools=SMALL))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(controller.remove_network, "old")
        while controller.network("old").state is not NetworkState.REMOVING:
            pass
        with pytest.raises(Conflict, match="removal of network old is already in progress"):
            controller.remove_network("old")
        assert controller.prune_networks(lambda network: False) == []
        driver.gone.set()
        first.result()
    with pytest.raises(NotFound):
        controller.remove_network("old")
    controller.stop()


def test_of_many_creations_of_one_name_exactly_one_wins(controller: NetworkController) -> None:
    def create(_: int) -> Network | ControlError:
        try:
            return controller.create_network(NetworkSpec(name="wanted"))[0]
        except ControlError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(create, range(32)))
    winners = [result for result in results if isinstance(result, Network)]
    assert len(winners) == 1
    assert {type(result) for result in results} == {Network, Conflict}
    assert controller.network("wanted").id == winners[0].id


def test_an_exhausted_pool_is_named_and_an_address_given_back_can_be_had(controller: NetworkController) -> None:
    for number in range(5):
        controller.create_sandbox(SandboxSpec(name=f"box{number}", networks=ON_NET))
    with pytest.raises(Exhausted, match=r"no available addresses on this pool: all of 10\.1\.0\.0/29 of network net"):
        controller.create_sandbox(SandboxSpec(name="late", networks=ON_NET))
    assert len(controller.sandboxes()) == 5
    controller.remove_sandbox("box3")
    controller.create_sandbox(SandboxSpec(name="late", networks=ON_NET))


def test_parallel_joins_get_different_addresses_and_slots(controller: NetworkController) -> None:
    controller.create_network(NetworkSpec(name="large"))
    with ThreadPoolExecutor(16) as pool:
        made = [
            pool.submit(controller.create_sandbox, SandboxSpec(name=f"box{n}", networks=(("large", EndpointSpec()),)))
            for n in range(50)
        ]
        for future in made:
            future.result()
    endpoints = controller.endpoints()
    assert len({endpoint.ipv4 for endpoint in endpoints}) == 50
    assert sorted(endpoint.slot for endpoint in endpoints) == list(range(50))


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        ((("host", EndpointSpec()), *ON_NET), "sharing network namespace with another container or host"),
        ((*ON_NET, ("host", EndpointSpec())), "sharing network namespace with another container or host"),
        ((("none", EndpointSpec()), *ON_NET), r"networks in private \(none\) mode"),
        ((*ON_NET, ("none", EndpointSpec())), r"networks in private \(none\) mode"),
        ((*ON_NET, *ON_NET), "endpoint with name box already exists in network net"),
    ],
)
def test_networks_that_do_not_go_together_are_refused(
    controller: NetworkController, networks: tuple[tuple[str, EndpointSpec], ...], says: str
) -> None:
    with pytest.raises(Forbidden, match=says):
        controller.create_sandbox(SandboxSpec(name="box", networks=networks))
    assert controller.sandboxes() == []
    assert controller.endpoints() == []


def test_a_process_that_does_not_exist_cannot_be_a_sandboxs_main_process(controller: NetworkController) -> None:
    controller.create_sandbox(SandboxSpec(name="box", networks=ON_NET))
    with pytest.raises(InvalidArgument, match="there is no process 4194303"):
        controller.mark_started("box", 4194303)


def test_a_hosts_file_that_was_put_together_earlier_is_not_written_later(
    controller: NetworkController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread has its text and does not write yet, another sandbox comes, and the file is written with it."""
    web = controller.create_sandbox(SandboxSpec(name="web", networks=ON_NET))
    has_text, written, text = threading.Event(), threading.Event(), HostsTable.text

    def slow(table: HostsTable, sandbox: Sandbox, endpoints: Sequence[Endpoint]) -> str:
        found = text(table, sandbox, endpoints)
        if threading.current_thread().name == "slow":
            has_text.set()
            written.wait(0.3)
        return found

    monkeypatch.setattr(HostsTable, "text", slow)
    writer = threading.Thread(target=controller._endpoints.write_hosts, args=(web.id,), name="slow")
    writer.start()
    assert has_text.wait(10)
    controller.create_sandbox(SandboxSpec(name="db", networks=ON_NET))
    assert controller._endpoints._hosts.flush()
    written.set()
    writer.join(10)
    assert "\tdb" in Path(controller.paths(web).hosts).read_text()
