"""Any order of any messages on the plugin socket: what is refused changes nothing, what is accepted keeps records,
store, kernel and ports in step, and an answer comes, never with status 500."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control.model import Endpoint, EndpointState, Network, NetworkState, from_json
from control.plugin.ipam import IpamDriver
from control.plugin.network import NetworkDriver
from tests.plugin_server import (
    ENDPOINT_MAC,
    GATEWAY,
    GENERIC,
    KEY,
    PORT_MAP,
    Host,
    PluginServer,
    endpoint,
    ident,
    ids,
    join,
    network,
    port,
    publish,
)

LONGEST_SECONDS = 5.0
"""What a call may take on a machine that is busy with other things; with no lock in the way it takes a few ms."""

NETWORKS = [ident(f"network {number}") for number in range(3)]
ENDPOINTS = [ident(f"endpoint {number}") for number in range(5)]
SUBNETS = [("10.1.0.0/24",), ("10.2.0.0/24", "fd00:2::/64"), ("fd00:3::/64",), ("10.1.0.0/24", "10.4.0.0/30")]

networks = st.sampled_from(NETWORKS)
endpoints = st.sampled_from(ENDPOINTS)
keys = st.sampled_from([KEY, "/var/run/docker/netns/other", "", "x"])
v4 = st.builds("10.{}.0.{}/24".format, st.integers(1, 4), st.integers(1, 4)) | st.just("")
v6 = st.builds("fd00:{}::{}/64".format, st.integers(2, 3), st.integers(1, 4)) | st.just("")
macs = st.sampled_from(["", "02:42:0a:01:00:01", "02:42:0A:01:00:02", "nonsense"])
ports = st.builds(
    port,
    st.integers(-1, 4) | st.just(65535),
    st.just(0) | st.integers(8000, 8006) | st.just(65535),
    st.none() | st.integers(7999, 8006),
    st.sampled_from(["", "", "0.0.0.0", "192.0.2.1", "127.0.0.1", "::1", "fd00::1", "x"]),
    st.sampled_from([6, 6, 17, 132, 0]),
)
good_ports = st.builds(port, st.integers(80, 82), st.just(0) | st.integers(8000, 8003), proto=st.sampled_from([6, 17]))
pool_ids = st.sampled_from(
    ["docker/10.1.0.0/24", "docker/10.2.0.0/24/10.2.0.0/30", "docker/fd00:3::/64", "local/172.17.0.0/16", "docker/", ""]
)
addresses = st.builds("10.{}.0.{}".format, st.integers(1, 2), st.integers(0, 5)) | st.sampled_from(
    ["", "fd00:3::1", "fd00:3::", "10.1.0.255", "nonsense"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
METHODS = [
    "NetworkDriver.CreateNetwork",
    "NetworkDriver.DeleteNetwork",
    "NetworkDriver.CreateEndpoint",
    "NetworkDriver.EndpointOperInfo",
    "NetworkDriver.DeleteEndpoint",
    "NetworkDriver.Join",
    "NetworkDriver.Leave",
    "NetworkDriver.ProgramExternalConnectivity",
    "NetworkDriver.RevokeExternalConnectivity",
    "NetworkDriver.GetCapabilities",
    "NetworkDriver.DiscoverNew",
    "NetworkDriver.DiscoverDelete",
    "IpamDriver.GetCapabilities",
    "IpamDriver.GetDefaultAddressSpaces",
    "IpamDriver.RequestPool",
    "IpamDriver.ReleasePool",
    "IpamDriver.RequestAddress",
    "IpamDriver.ReleaseAddress",
    "Plugin.Activate",
]
FIELDS = ["NetworkID", "EndpointID", "Options", "IPv4Data", "IPv6Data", "Interface", "SandboxKey", "PoolID", "Address"]
FIELDS += ["AddressSpace", "Pool", "SubPool", "V6"]


def ask(plugin: PluginServer, method: str, body: Any = None, *, raw: bytes | None = None) -> bool:
    """Makes the call and returns whether it was accepted. One that was not must have changed nothing."""
    before = plugin.host.state()
    begin = time.monotonic()
    reply = plugin.post(method, body, raw=raw)
    assert time.monotonic() - begin < LONGEST_SECONDS
    assert reply.status in (200, 400, 404, 413), (method, body, reply)
    document = reply.json
    assert isinstance(document, dict)
    key = "Error" if method.startswith("IpamDriver.") else "Err"
    is_refused = reply.status != 200 or key in document
    if is_refused:
        assert document.keys() == ({key} if reply.status == 200 else {key, "Err"}), (method, body, document)
        assert isinstance(document[key], str)
        assert document[key]
        assert plugin.host.state() == before, (method, body, document)
    event(f"{method} {'refused' if is_refused else 'accepted'}")
    return not is_refused


class Engine(RuleBasedStateMachine):
    """An engine that has lost its mind, but not its language."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.host = Host(Path(self._directory.name))
        self.plugin = PluginServer(self.host)
        self.plugin.__enter__()
        self.empty = self.host.state()

    def teardown(self) -> None:
        """Takes down all that may be there, as the engine would: nothing must be left."""
        try:
            for each in self.host.controller.networks():
                if each.owner:
                    assert ask(self.plugin, "NetworkDriver.DeleteNetwork", {"NetworkID": each.id})
            for kind, id_ in self.host.store.contents():
                if kind == "pool" and id_.startswith("docker/"):
                    assert ask(self.plugin, "IpamDriver.ReleasePool", {"PoolID": id_})
            left = self.host.state()
            left["store"].pop(("meta", "ula"), None)  # of the host, for good
            assert left == self.empty
        finally:
            self.plugin.__exit__(None, None, None)
            self._directory.cleanup()

    @initialize(number=st.integers(0, 1))
    def begin_with_a_network(self, number: int) -> None:
        assert ask(self.plugin, "NetworkDriver.CreateNetwork", network(NETWORKS[number], *SUBNETS[number]))

    # -- networks and endpoints ----------------------------------------------------------------------------------

    def on(self, data: st.DataObject) -> str:
        """Mostly a network that there is."""
        there = [each.id for each in self.host.controller.networks() if each.owner]
        return data.draw(st.sampled_from([*there * 3, *NETWORKS]), label="on")

    def which(self, data: st.DataObject) -> tuple[str, str]:
        """Mostly an endpoint that there is, with its network."""
        there = [(each.id, str(each.network_id)) for each in self.host.controller.endpoints()]
        pairs = st.tuples(endpoints, networks)
        return data.draw(pairs | st.sampled_from(there) | st.sampled_from(there) if there else pairs, label="which")

    @rule(id_=networks, subnets=st.sampled_from(SUBNETS), is_internal=st.booleans(), has_gateways=st.booleans())
    def create_network(self, id_: str, subnets: tuple[str, ...], is_internal: bool, has_gateways: bool) -> None:
        body = network(id_, *subnets, internal=is_internal)
        if not has_gateways:
            for data in (*body["IPv4Data"], *body["IPv6Data"]):
                del data["Gateway"]
        ask(self.plugin, "NetworkDriver.CreateNetwork", body)

    @rule(
        id_=networks,
        option=st.sampled_from(["linkspan.name", "linkspan.driver", "fake.option", "x"]),
        value=st.sampled_from(["fast", "bridge", "macvlan"]) | st.text(),
    )
    def create_network_with_an_option(self, id_: str, option: str, value: str) -> None:
        body = network(id_)
        body["Options"][GENERIC] = {option: value}
        ask(self.plugin, "NetworkDriver.CreateNetwork", body)

    @rule(id_=networks)
    def delete_network(self, id_: str) -> None:
        assert ask(self.plugin, "NetworkDriver.DeleteNetwork", {"NetworkID": id_})
        assert not [each for each in self.host.controller.endpoints() if each.network_id == id_]

    @rule(data=st.data(), id_=endpoints, v4=v4, v6=v6, mac=macs)
    def create_endpoint(self, data: st.DataObject, id_: str, v4: str, v6: str, mac: str) -> None:
        ask(self.plugin, "NetworkDriver.CreateEndpoint", endpoint(id_, self.on(data), v4, v6, mac))

    @rule(data=st.data(), id_=endpoints, host_part=st.integers(2, 5), is_joined=st.booleans())
    def start_a_container(self, data: st.DataObject, id_: str, host_part: int, is_joined: bool) -> None:
        on = self.on(data)
        pools = [pool for each in self.host.controller.networks() if each.id == on for pool in each.pools]
        for pool in pools[:1]:
            address = f"{pool.subnet.network_address + host_part}/{pool.subnet.prefixlen}"
            body = endpoint(id_, on, v4="", v6=address) if ":" in address else endpoint(id_, on, v4=address)
            if ask(self.plugin, "NetworkDriver.CreateEndpoint", body) and is_joined:
                ask(self.plugin, "NetworkDriver.Join", join(id_, on))

    @rule(data=st.data(), key=keys)
    def join(self, data: st.DataObject, key: str) -> None:
        id_, on = self.which(data)
        if ask(self.plugin, "NetworkDriver.Join", join(id_, on, key)):
            assert id_ in self.host.driver.endpoints

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        assert ask(self.plugin, "NetworkDriver.Leave", ids(*self.which(data)))

    @rule(data=st.data())
    def delete_endpoint(self, data: st.DataObject) -> None:
        which = self.which(data)
        assert ask(self.plugin, "NetworkDriver.DeleteEndpoint", ids(*which))
        assert which not in [(each.id, each.network_id) for each in self.host.controller.endpoints()]

    @rule(data=st.data(), bindings=st.lists(ports, max_size=3))
    def publish(self, data: st.DataObject, bindings: list[Any]) -> None:
        id_, on = self.which(data)
        body = publish(*bindings, endpoint_id=id_, network_id=on)
        ask(self.plugin, "NetworkDriver.ProgramExternalConnectivity", body)

    @rule(data=st.data(), bindings=st.lists(good_ports, min_size=1, max_size=3))
    def publish_what_can_be(self, data: st.DataObject, bindings: list[Any]) -> None:
        self.publish(data, bindings)

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        assert ask(self.plugin, "NetworkDriver.RevokeExternalConnectivity", ids(*self.which(data)))

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        before = self.host.state()
        ask(self.plugin, "NetworkDriver.EndpointOperInfo", ids(*self.which(data)))
        assert self.host.state() == before

    # -- addresses -----------------------------------------------------------------------------------------------

    @rule(
        pool=st.sampled_from(["", "10.1.0.0/24", "10.2.0.0/24", "fd00:3::/64", "10.0.0.0/8", "x"]),
        sub_pool=st.sampled_from(["", "", "10.2.0.0/30", "x"]),
        is_v6=st.booleans(),
        space=st.sampled_from(["docker", "docker", "local"]),
    )
    def request_pool(self, pool: str, sub_pool: str, is_v6: bool, space: str) -> None:
        body = {"AddressSpace": space, "Pool": pool, "SubPool": sub_pool, "Options": None, "V6": is_v6}
        ask(self.plugin, "IpamDriver.RequestPool", body)

    @rule()
    def request_a_pool_and_its_gateway(self) -> None:
        if ask(self.plugin, "IpamDriver.RequestPool", {"AddressSpace": "docker", "Pool": "10.1.0.0/24"}):
            body = {"PoolID": "docker/10.1.0.0/24", "Address": "10.1.0.1", "Options": GATEWAY}
            assert ask(self.plugin, "IpamDriver.RequestAddress", body)

    @rule(pool_id=pool_ids)
    def release_pool(self, pool_id: str) -> None:
        ask(self.plugin, "IpamDriver.ReleasePool", {"PoolID": pool_id})

    @rule(
        pool_id=pool_ids,
        address=addresses,
        options=st.sampled_from([None, GATEWAY, {ENDPOINT_MAC: "02:42:0a:01:00:01"}]),
    )
    def request_address(self, pool_id: str, address: str, options: Any) -> None:
        ask(self.plugin, "IpamDriver.RequestAddress", {"PoolID": pool_id, "Address": address, "Options": options})

    @rule(pool_id=pool_ids, address=addresses)
    def release_address(self, pool_id: str, address: str) -> None:
        ask(self.plugin, "IpamDriver.ReleaseAddress", {"PoolID": pool_id, "Address": address})

    # -- nonsense, and what befalls a host -----------------------------------------------------------------------

    @rule(
        method=st.sampled_from(METHODS),
        id_=endpoints,
        on=networks,
        changes=st.dictionaries(st.sampled_from(FIELDS), anything, min_size=1, max_size=2),
    )
    def call_with_wrong_fields(self, method: str, id_: str, on: str, changes: dict[str, Any]) -> None:
        body = {**network(on), **endpoint(id_, on), "SandboxKey": KEY, "PoolID": "docker/10.1.0.0/24", **changes}
        ask(self.plugin, method, body)

    @precondition(lambda self: self.host.driver.endpoints)
    @rule(data=st.data())
    def lose_a_device(self, data: st.DataObject) -> None:
        """A container ends, and its namespace takes the device along; the engine may say so later, or never."""
        del self.host.driver.endpoints[data.draw(st.sampled_from(sorted(self.host.driver.endpoints)))]

    @rule()
    def restart(self) -> None:
        self.plugin.__exit__(None, None, None)
        self.plugin = PluginServer(self.host)
        self.plugin.__enter__()
        assert self.host.controller.status()["broken"] == {}

    # -- what is always true -------------------------------------------------------------------------------------

    @invariant()
    def records_and_store_agree(self) -> None:
        state, stored = self.host.state(), self.host.store.contents()
        for kind, type_ in (("network", Network), ("endpoint", Endpoint)):
            bodies = [from_json(type_, body) for (each, _), body in sorted(stored.items()) if each == kind]
            assert bodies == state[f"{kind}s"]
        pools = {id_ for kind, id_ in stored if kind == "pool"}
        assert {id_.rpartition("|")[0] for kind, id_ in stored if kind == "lease"} <= pools

    @invariant()
    def every_object_is_settled_and_in_the_kernel(self) -> None:
        made, found = self.host.controller.networks(), self.host.controller.endpoints()
        assert all(each.state is NetworkState.ACTIVE for each in made)
        assert {each.id for each in made if each.driver == "bridge"} == self.host.driver.networks
        assert all(each.state in (EndpointState.CREATED, EndpointState.JOINED) for each in found)
        assert all(bool(each.sandbox_key) == (each.state is EndpointState.JOINED) for each in found)
        assert self.host.driver.endpoints.keys() <= {each.id for each in found}
        assert {each.network_id for each in found} <= {each.id for each in made}

    @invariant()
    def nothing_is_given_twice(self) -> None:
        found = self.host.controller.endpoints()
        assert len({each.slot for each in found}) == len(found)
        for key in ("ipv4", "ipv6", "mac"):
            values = [(e.network_id, getattr(value, "ip", value)) for e in found if (value := getattr(e, key))]
            assert len(set(values)) == len(values), key

    @invariant()
    def ports_are_held_and_published_as_recorded(self) -> None:
        recorded = [each for found in self.host.controller.endpoints() for each in found.ports]
        numbers = [
            (each.protocol, str(each.host_ip), each.host_port + number)
            for each in recorded
            for number in range(each.count)
        ]
        held = set(numbers)
        assert len(held) == len(numbers)
        assert self.host.ports.held == held
        assert self.host.driver.published == {str(each) for each in recorded}


TestEngine = Engine.TestCase
TestEngine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginServer]:
    with PluginServer(Host(tmp_path_factory.mktemp("fuzz"))) as running:
        running.call("NetworkDriver.CreateNetwork", network(NETWORKS[0]))
        running.call("NetworkDriver.CreateEndpoint", endpoint(ENDPOINTS[0], NETWORKS[0]))
        running.call("NetworkDriver.Join", join(ENDPOINTS[0], NETWORKS[0]))
        yield running


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    method=st.sampled_from([*METHODS[:9], *METHODS[14:18]]),
    raw=st.binary(max_size=200) | anything.map(json.dumps).map(str.encode),
    cut=st.integers(0, 200),
)
def test_any_bytes_are_refused_in_words(plugin: PluginServer, method: str, raw: bytes, cut: int) -> None:
    before = plugin.host.state()
    ask(plugin, method, raw=raw[:cut])
    if method != "IpamDriver.RequestPool":  # to which every object is a request
        assert plugin.host.state() == before


@FUZZ
@given(method=st.sampled_from(METHODS), body=anything)
def test_any_json_is_an_object_of_the_protocol_or_refused(plugin: PluginServer, method: str, body: Any) -> None:
    is_accepted = ask(plugin, method, raw=json.dumps(body).encode())
    assert not is_accepted or isinstance(body, dict)


@FUZZ
@given(path=st.text(max_size=40))
def test_any_path_is_answered(plugin: PluginServer, path: str) -> None:
    before = plugin.host.state()
    reply = plugin.post(quote(path))
    assert reply.status in (200, 400, 404)
    assert plugin.host.state() == before


def test_every_method_of_both_protocols_is_in_the_fuzz(plugin: PluginServer) -> None:
    controller = plugin.host.controller
    routes = [*NetworkDriver(controller).routes(), *IpamDriver(controller).routes()]
    assert {route.name for route in routes} | {"Plugin.Activate"} == set(METHODS)
    fields = {field.encode_name for route in routes for field in msgspec.structs.fields(route.message)}
    assert fields == set(FIELDS)
    assert PORT_MAP in json.dumps(publish(port(1)))
