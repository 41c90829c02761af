"""Docker's remote IPAM protocol: what each call answers, and Docker's words for what is refused.

Expectations are libnetwork's docs/ipam.md, ipams/remote/remote.go and ipamapi/contract.go.
"""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from typing import Any

import pytest

from control.model import NetworkSpec, PoolSpec
from tests.plugin_server import ENDPOINT_MAC, GATEWAY, Host, PluginServer, network

REQUEST_POOL, RELEASE_POOL = "IpamDriver.RequestPool", "IpamDriver.ReleasePool"
REQUEST, RELEASE = "IpamDriver.RequestAddress", "IpamDriver.ReleaseAddress"
POOL = "docker/10.9.0.0/16"
MAC = "02:42:0a:09:00:02"


def ask(pool: str = "10.9.0.0/16", sub_pool: str = "", v6: bool = False, **more: Any) -> dict[str, Any]:
    """RequestPool as the engine sends it."""
    return {"AddressSpace": "docker", "Pool": pool, "SubPool": sub_pool, "Options": None, "V6": v6, **more}


def want(address: str = "", pool_id: str = POOL, **options: str) -> dict[str, Any]:
    return {"PoolID": pool_id, "Address": address, "Options": options or None}


def refused(plugin: PluginServer, method: str, body: Any, says: str) -> None:
    before = plugin.host.state()
    text = plugin.refusal(method, body)
    assert text.startswith(says), text
    assert plugin.host.state() == before


@pytest.mark.parametrize(
    ("body", "pool_id", "pool"),
    [
        (ask(), POOL, "10.9.0.0/16"),
        (ask(sub_pool="10.9.4.0/24"), f"{POOL}/10.9.4.0/24", "10.9.0.0/16"),
        (ask("fd00:9::/64", v6=True), "docker/fd00:9::/64", "fd00:9::/64"),
        (ask("FD00:9:0::/64", v6=True), "docker/fd00:9::/64", "fd00:9::/64"),
        (ask("fd00:9::/64", "fd00:9::4:0/112", v6=True), "docker/fd00:9::/64/fd00:9::4:0/112", "fd00:9::/64"),
        (ask(Options={}), POOL, "10.9.0.0/16"),
        ({"AddressSpace": "docker", "Pool": "10.9.0.0/16"}, POOL, "10.9.0.0/16"),
    ],
    ids=str,
)
def test_a_pool_is_answered_with_its_id_and_subnet(
    plugin: PluginServer, host: Host, body: dict[str, Any], pool_id: str, pool: str
) -> None:
    before = host.state()
    assert plugin.call(REQUEST_POOL, body) == {"PoolID": pool_id, "Pool": pool, "Data": {}}
    for _ in range(2):
        assert plugin.call(RELEASE_POOL, {"PoolID": pool_id}) == {}
        assert host.state() == before


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (ask(AddressSpace="local"), "invalid address space"),
        (ask(AddressSpace="docker-global"), "invalid address space"),
        (ask(AddressSpace=""), "invalid address space"),
        (ask(AddressSpace=None), "invalid address space"),
        ({}, "invalid address space"),
        (ask("", "10.9.4.0/24"), "invalid address subpool"),
        (ask(sub_pool="10.10.0.0/24"), "invalid address subpool"),
        (ask(sub_pool="10.0.0.0/8"), "invalid address subpool"),
        (ask(sub_pool="fd00::/64"), "invalid address subpool"),
        (ask(sub_pool="nonsense"), "invalid sub-pool"),
        (ask("nonsense"), "invalid pool"),
        (ask("10.9.0.0"), "invalid pool"),
        (ask("10.9.0.1/16"), "invalid pool"),
        (ask("10.9.0.0/33"), "invalid pool"),
        (ask("10.9.0.0/255.255.0.0"), "invalid pool"),
        (ask("010.9.0.0/16"), "invalid pool"),
        (ask("fe80::%eth0/64", v6=True), "invalid pool"),
        (ask("10.9.0.0/16", v6=True), "invalid address pool"),
        (ask("fd00:9::/64"), "invalid address pool"),
        (ask("127.0.0.0/8"), "invalid address pool"),
        (ask("224.0.0.0/8"), "invalid address pool"),
        (ask("0.0.0.0/0"), "invalid address pool"),
        (ask(Options={"fast": "yes"}), "unknown option 'fast'"),
    ],
    ids=str,
)
def test_pools_that_do_not_work_are_refused(plugin: PluginServer, body: dict[str, Any], says: str) -> None:
    refused(plugin, REQUEST_POOL, body, says)


@pytest.mark.parametrize("pool", ["10.9.0.0/16", "10.0.0.0/8", "10.9.7.0/24"])
def test_an_overlap_is_refused_in_dockers_words(plugin: PluginServer, pool: str) -> None:
    plugin.call(REQUEST_POOL, ask())
    refused(plugin, REQUEST_POOL, ask(pool), "Pool overlaps with other one on this address space")


def test_default_pools_overlap_no_network_no_route_and_not_each_other(plugin: PluginServer, host: Host) -> None:
    host.controller.create_network(NetworkSpec(name="own", pools=(PoolSpec(subnet=IPv4Network("172.20.0.0/16")),)))
    host.routes = [IPv4Network("172.21.128.0/17"), IPv4Network("10.0.0.0/8")]
    plugin.call("NetworkDriver.CreateNetwork", network("a" * 64, "172.22.0.0/16"))
    taken = [pool.subnet for each in host.controller.networks() for pool in each.pools] + host.routes
    for _ in range(8):
        answer = plugin.call(REQUEST_POOL, ask(""))
        subnet = ip_network(answer["Pool"])
        assert answer["PoolID"] == f"docker/{subnet}"
        assert not [other for other in taken if subnet.version == other.version and subnet.overlaps(other)]
        taken.append(subnet)
    six = [ip_network(plugin.call(REQUEST_POOL, ask("", v6=True))["Pool"]) for _ in range(3)]
    assert len(set(six)) == 3
    assert {subnet.version for subnet in six} == {6}


def test_default_pools_run_out_in_dockers_words(plugin: PluginServer, host: Host) -> None:
    host.routes = [IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/17")]
    for _ in range(8):
        plugin.call(REQUEST_POOL, ask(""))
    refused(plugin, REQUEST_POOL, ask(""), "all predefined address pools have been fully subnetted")


@pytest.mark.parametrize(
    ("body", "address"),
    [
        (want("10.9.0.1", **GATEWAY), "10.9.0.1/16"),
        (want("", **GATEWAY), "10.9.0.1/16"),
        (want("10.9.255.254"), "10.9.255.254/16"),
        (want("10.9.0.5", **{ENDPOINT_MAC: MAC, "com.docker.network.endpoint.name": "web"}), "10.9.0.5/16"),
        ({"PoolID": POOL}, "10.9.0.1/16"),
        ({"PoolID": POOL, "Address": None, "Options": {"unknown": "x"}}, "10.9.0.1/16"),
    ],
    ids=str,
)
def test_an_address_is_answered_with_its_prefix_and_released_without(
    plugin: PluginServer, host: Host, body: dict[str, Any], address: str
) -> None:
    plugin.call(REQUEST_POOL, ask())
    before = host.state()["store"].keys()
    assert plugin.call(REQUEST, body) == {"Address": address, "Data": {}}
    for _ in range(2):
        assert plugin.call(RELEASE, {"PoolID": POOL, "Address": address.partition("/")[0]}) == {}
        assert host.state()["store"].keys() == before


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.9.0.9", "Address already in use"),
        ("10.10.0.1", "requested address is out of range"),
        ("fd00::1", "requested address is out of range"),
        ("10.9.0.0", "requested address is reserved"),
        ("10.9.255.255", "requested address is reserved"),
        ("10.9.0.8/16", "invalid address"),
        ("10.9.0.08", "invalid address"),
        ("nonsense", "invalid address"),
        ("fe80::1%eth0", "invalid address"),
        (" 10.9.0.8", "invalid address"),
    ],
)
def test_addresses_that_cannot_be_had_are_refused(plugin: PluginServer, address: str, says: str) -> None:
    plugin.call(REQUEST_POOL, ask())
    plugin.call(REQUEST, want("10.9.0.9"))
    refused(plugin, REQUEST, want(address), says)
    if says == "invalid address":
        refused(plugin, RELEASE, {"PoolID": POOL, "Address": address}, says)


def test_an_exhausted_pool_is_refused_in_dockers_words(plugin: PluginServer) -> None:
    plugin.call(REQUEST_POOL, ask("10.9.0.0/30"))
    given = {plugin.call(REQUEST, want(pool_id="docker/10.9.0.0/30"))["Address"] for _ in range(2)}
    assert given == {"10.9.0.1/30", "10.9.0.2/30"}
    refused(plugin, REQUEST, want(pool_id="docker/10.9.0.0/30"), "no available addresses on this pool")


@pytest.mark.parametrize("pool_id", ["local/172.17.0.0/16", "default/10.9.0.0/16", "", "docker", "10.9.0.0/16"])
@pytest.mark.parametrize("method", [RELEASE_POOL, REQUEST, RELEASE])
def test_pools_of_others_are_refused_and_untouched(plugin: PluginServer, method: str, pool_id: str) -> None:
    body = {"PoolID": pool_id, "Address": "172.17.0.1"}
    refused(plugin, method, body, "invalid address pool")


def test_a_pool_that_is_not_there_gives_nothing_and_is_released(plugin: PluginServer, host: Host) -> None:
    refused(plugin, REQUEST, want(), "address space does not contain specified address pool")
    before = host.state()
    assert plugin.call(RELEASE_POOL, {"PoolID": POOL}) == {}
    assert plugin.call(RELEASE, {"PoolID": POOL, "Address": "10.9.0.2"}) == {}
    assert host.state() == before


def test_names_and_macs_are_no_reservation(plugin: PluginServer) -> None:
    """Two containers with one name, on engines that reuse it at once, must not get one address."""
    plugin.call(REQUEST_POOL, ask())
    name = {"com.docker.network.endpoint.name": "web"}
    given = [plugin.call(REQUEST, want(**name, **{ENDPOINT_MAC: f"02:42:00:00:00:0{n}"}))["Address"] for n in range(4)]
    assert len(set(given)) == 4


def test_what_the_store_refuses_is_an_error_of_the_protocol_and_counted(plugin: PluginServer, host: Host) -> None:
    plugin.call(REQUEST_POOL, ask())
    host.store.arm(range(9))
    refused(plugin, REQUEST, want(), "no space left on device")
    refused(plugin, REQUEST_POOL, ask("10.10.0.0/16"), "no space left on device")
    assert b'linkspan_errors_total{kind="StoreError"} 2.0' in b"".join(plugin.metrics.expose())
    host.store.arm()
    plugin.call(REQUEST_POOL, ask("10.10.0.0/16"))
