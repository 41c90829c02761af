"""Docker's remote network driver protocol: whole lives, and what each call answers.

Expectations are libnetwork's docs/remote.md and drivers/remote/driver.go, and what a real engine was seen to send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plugin_server import (
    ENDPOINT_MAC,
    EP,
    GATEWAY,
    GENERIC,
    KEY,
    NET,
    Host,
    PluginServer,
    endpoint,
    ident,
    ids,
    join,
    joined,
    network,
    port,
    publish,
    refused,
)

POOL = "docker/10.9.0.0/16"
SRC, HOST_END = f"lp{EP[:12]}", f"ls{EP[:12]}"
UNUSED = {"AddressSpace": "docker", "Pool": "10.9.0.0/16", "SubPool": "", "Options": None, "V6": False}


# -- whole lives -----------------------------------------------------------------------------------------------------

MAC = "02:42:0a:09:00:02"
GATEWAY_V4 = {"PoolID": POOL, "Address": "10.9.0.1"}
AUX = {"PoolID": POOL, "Address": "10.9.0.9"}
LIFE: list[tuple[str, Any, Any]] = [
    ("IpamDriver.RequestPool", UNUSED, {"PoolID": POOL, "Pool": "10.9.0.0/16", "Data": {}}),
    ("IpamDriver.RequestAddress", {**GATEWAY_V4, "Options": GATEWAY}, {"Address": "10.9.0.1/16", "Data": {}}),
    ("IpamDriver.RequestAddress", {**AUX, "Options": None}, {"Address": "10.9.0.9/16", "Data": {}}),
    ("NetworkDriver.CreateNetwork", network(), {}),
    (
        "IpamDriver.RequestAddress",
        {"PoolID": POOL, "Address": "", "Options": {ENDPOINT_MAC: MAC}},
        {"Address": "10.9.0.2/16", "Data": {}},
    ),
    ("NetworkDriver.CreateEndpoint", endpoint(mac=MAC), {}),
    (
        "NetworkDriver.Join",
        join(),
        {
            "InterfaceName": {"SrcName": SRC, "DstPrefix": "eth"},
            "Gateway": "10.9.0.1",
            "DisableGatewayService": False,
        },
    ),
    ("NetworkDriver.ProgramExternalConnectivity", publish(port(80, 8080)), {}),
    (
        "NetworkDriver.EndpointOperInfo",
        ids(),
        {"Value": {"linkspan.device": HOST_END, "linkspan.ports": ["*:8080->80/tcp"]}},
    ),
    ("NetworkDriver.RevokeExternalConnectivity", ids(), {}),
    ("NetworkDriver.Leave", ids(), {}),
    ("NetworkDriver.DeleteEndpoint", ids(), {}),
    ("IpamDriver.ReleaseAddress", {"PoolID": POOL, "Address": "10.9.0.2"}, {}),
    ("IpamDriver.ReleaseAddress", GATEWAY_V4, {}),
    ("IpamDriver.ReleaseAddress", AUX, {}),
    ("IpamDriver.ReleasePool", {"PoolID": POOL}, {}),
    ("NetworkDriver.DeleteNetwork", {"NetworkID": NET}, {}),
]
CANNOT_BE_TOLD_FROM_A_NEW_ONE = ("IpamDriver.RequestPool", "IpamDriver.RequestAddress")
"""A second pool or auxiliary address of the same kind is refused in Docker's words; see docs/adr/0009."""


def test_a_whole_life_answers_by_the_book_and_leaves_nothing(plugin: PluginServer, host: Host) -> None:
    before = host.state()
    for method, body, answer in LIFE:
        assert plugin.call(method, body) == answer, method
    assert host.state() == before


def test_a_whole_life_with_every_call_repeated_is_the_same(plugin: PluginServer, host: Host) -> None:
    before = host.state()
    for number, (method, body, answer) in enumerate(LIFE):
        assert plugin.call(method, body) == answer
        if number in (0, 2):
            assert method in CANNOT_BE_TOLD_FROM_A_NEW_ONE
            continue
        once = host.state()
        for _ in range(2):
            assert plugin.call(method, body) == answer, method
            assert host.state() == once, method
    assert host.state() == before


def test_every_earlier_taking_down_can_be_repeated_at_every_later_point(plugin: PluginServer, host: Host) -> None:
    """The engine's retries may come late. What was taken down stays so, and nothing else is touched."""
    before = host.state()
    played: list[tuple[str, Any, Any]] = []
    for call in LIFE:
        plugin.call(call[0], call[1])
        played.append(call)
        once = host.state()
        begin = next((i for i, each in enumerate(played) if "Revoke" in each[0]), len(played))
        for method, body, answer in played[begin:]:
            assert plugin.call(method, body) == answer
        assert host.state() == once, call[0]
    assert host.state() == before


@pytest.mark.parametrize("stop", range(1, len(LIFE)))
def test_an_engine_that_breaks_off_anywhere_leaves_nothing(tmp_path: Path, stop: int) -> None:
    """The taking down is played whole, whatever was made before: it is harmless for what is not there."""
    host = Host(tmp_path)
    with PluginServer(host) as plugin:
        before = host.state()
        for method, body, _ in LIFE[:stop]:
            plugin.call(method, body)
        for method, body, _ in LIFE[9:]:
            plugin.call(method, body)
        assert host.state() == before


def test_a_restarted_container_is_an_endpoint_with_a_new_id_and_the_same_address(
    plugin: PluginServer, host: Host
) -> None:
    joined(plugin, port(80, 8080))
    once = host.state()
    for number in range(3):
        old, new = (ident(number - 1), ident(number)) if number else (EP, ident(0))
        plugin.call("NetworkDriver.RevokeExternalConnectivity", ids(old))
        plugin.call("NetworkDriver.Leave", ids(old))
        plugin.call("NetworkDriver.DeleteEndpoint", ids(old))
        plugin.call("NetworkDriver.CreateEndpoint", endpoint(new))
        assert plugin.call("NetworkDriver.Join", join(new))["InterfaceName"]["SrcName"] == f"lp{new[:12]}"
        plugin.call("NetworkDriver.ProgramExternalConnectivity", publish(port(80, 8080), endpoint_id=new))
        assert set(host.driver.endpoints) == {new}
    assert host.state()["ports"] == once["ports"]
    assert host.state()["kernel"][2] == once["kernel"][2]


def test_a_join_that_failed_is_followed_by_a_delete_alone(plugin: PluginServer, host: Host) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network())
    before = host.state()
    plugin.call("NetworkDriver.CreateEndpoint", endpoint())
    host.failing.add(("apply", "fake endpoint"))
    assert "Device or resource busy" in plugin.refusal("NetworkDriver.Join", join())
    plugin.call("NetworkDriver.DeleteEndpoint", ids())
    assert host.state() == before


# -- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["macvlan", "overlay", "ipvlan", "host", "null", "none", "nonsense", "", "Bridge"])
def test_a_driver_that_linkspan_has_not_is_not_available(plugin: PluginServer, driver: str) -> None:
    body = network(linkspan_driver=driver)
    refused(plugin, "NetworkDriver.CreateNetwork", body, f"linkspan.driver={driver} is not available: drivers here are")


def test_the_driver_bridge_may_be_named(plugin: PluginServer, host: Host) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network(linkspan_driver="bridge"))
    assert host.controller.network(NET).driver == "bridge"
    assert plugin.call("NetworkDriver.CreateNetwork", network()) == {}  # which is what nothing stands for


def test_a_network_is_called_by_its_id_or_as_it_is_asked_to(plugin: PluginServer, host: Host) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network())
    assert host.controller.network(NET).name == f"docker-{NET[:12]}"
    other = ident("other")
    plugin.call("NetworkDriver.CreateNetwork", network(other, "10.10.0.0/16", linkspan_name="fast"))
    assert host.controller.network("fast").id == other


@pytest.mark.parametrize("name", ["fast", "bridge", "none", "host"])
def test_a_name_that_is_taken_is_refused(plugin: PluginServer, name: str) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network(linkspan_name="fast"))
    body = network(ident("other"), "10.10.0.0/16", linkspan_name=name)
    refused(plugin, "NetworkDriver.CreateNetwork", body, f"network with name {name} already exists")


@pytest.mark.parametrize("name", ["", "a b", "-x", "é", "x" * 129, "a/b"])
def test_a_name_that_is_none_is_refused(plugin: PluginServer, name: str) -> None:
    refused(plugin, "NetworkDriver.CreateNetwork", network(linkspan_name=name), "name")


@pytest.mark.parametrize("option", ["nonsense", "linkspan.nonsense", "com.docker.network.bridge.nonsense", ""])
def test_an_unknown_option_is_refused(plugin: PluginServer, option: str) -> None:
    body = network()
    body["Options"][GENERIC] = {option: "1"}
    refused(plugin, "NetworkDriver.CreateNetwork", body, f"unknown option {option!r}")


def test_known_options_are_kept(plugin: PluginServer, host: Host) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network(fake_option="7"))
    assert host.controller.network(NET).options == {"fake.option": "7"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"IPv4Data": []}, "has no subnet"),
        ({"IPv4Data": None, "IPv6Data": None}, "has no subnet"),
        ({"IPv4Data": [{}]}, "has no subnet"),
        ({"IPv4Data": [{"Pool": "0.0.0.0/0"}]}, "use an IPAM driver that gives addresses"),
        ({"IPv4Data": [{"Pool": "10.9.0.1/16"}]}, "invalid pool '10.9.0.1/16'"),
        ({"IPv4Data": [{"Pool": "10.9.0.0"}]}, "invalid pool"),
        ({"IPv4Data": [{"Pool": "10.9.0.0/255.255.0.0"}]}, "invalid pool"),
        ({"IPv4Data": [{"Pool": "nonsense"}]}, "invalid pool"),
        ({"IPv4Data": [{"Pool": "fd00::/64"}]}, "it is not an IPv4 subnet"),
        ({"IPv6Data": [{"Pool": "10.10.0.0/16"}]}, "it is not an IPv6 subnet"),
        ({"IPv4Data": [{"Pool": "10.9.0.0/16", "Gateway": "10.10.0.1/16"}]}, "it is not in subnet 10.9.0.0/16"),
        ({"IPv4Data": [{"Pool": "10.9.0.0/16", "Gateway": "10.9.0.1"}]}, "invalid address"),
        ({"IPv4Data": [{"Pool": "10.9.0.0/16", "Gateway": "fd00::1/64"}]}, "invalid address"),
        (
            {"IPv4Data": [{"Pool": "10.9.0.0/16", "AuxAddresses": {"router": "10.10.0.9/16"}}]},
            "invalid address 10.10.0.9 (router)",
        ),
        ({"IPv4Data": [{"Pool": "10.9.0.0/16", "AuxAddresses": {"router": "x"}}]}, "invalid address 'x'"),
    ],
    ids=str,
)
def test_subnets_that_do_not_work_are_refused(plugin: PluginServer, data: dict[str, Any], says: str) -> None:
    refused(plugin, "NetworkDriver.CreateNetwork", {**network(), **data}, says)


def test_subnets_gateways_and_auxiliary_addresses_are_recorded(plugin: PluginServer, host: Host) -> None:
    body = network(NET, "10.9.0.0/16", "10.10.0.0/24", "fd00:9::/64")
    body["IPv4Data"][0]["AuxAddresses"] = {"router": "10.9.0.9/16", "nas": "10.9.0.10/16"}
    plugin.call("NetworkDriver.CreateNetwork", body)
    made = host.controller.network(NET)
    assert [(str(p.subnet), str(p.gateway), {n: str(a) for n, a in p.aux_addresses.items()}) for p in made.pools] == [
        ("10.9.0.0/16", "10.9.0.1", {"router": "10.9.0.9", "nas": "10.9.0.10"}),
        ("10.10.0.0/24", "10.10.0.1", {}),
        ("fd00:9::/64", "fd00:9::1", {}),
    ]
    assert (made.enable_ipv4, made.enable_ipv6, made.internal, made.owner) == (True, True, False, "docker")


@pytest.mark.parametrize(
    "changed",
    [
        network(NET, "10.10.0.0/16"),
        network(NET, "10.9.0.0/16", "fd00:9::/64"),
        network(internal=True),
        network(fake_option="1"),
        network(linkspan_name="other"),
        {**network(), "IPv4Data": [{"Pool": "10.9.0.0/16"}]},
    ],
    ids=["subnet", "family", "internal", "option", "name", "gateway"],
)
def test_the_same_network_id_with_other_values_is_refused(plugin: PluginServer, changed: Any) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network())
    refused(plugin, "NetworkDriver.CreateNetwork", changed, "exists already, with other settings")


def test_a_deleted_network_leaves_nothing_for_its_endpoints(plugin: PluginServer, host: Host) -> None:
    plugin.call("Plugin.Activate")
    before = host.state()
    joined(plugin, port(80, 8080))
    plugin.call("NetworkDriver.DeleteNetwork", {"NetworkID": NET})
    assert host.state() == before
    for method in ("Leave", "DeleteEndpoint", "RevokeExternalConnectivity"):
        assert plugin.call(f"NetworkDriver.{method}", ids()) == {}
    for method, body in (
        ("CreateEndpoint", endpoint()),
        ("Join", join()),
        ("ProgramExternalConnectivity", publish(port(80, 8080))),
        ("EndpointOperInfo", ids()),
    ):
        refused(plugin, f"NetworkDriver.{method}", body, f"network {NET[:12]} is not known to linkspan")


# -- endpoints -------------------------------------------------------------------------------------------------------


def test_only_what_was_empty_is_answered(plugin: PluginServer) -> None:
    """An answer to a field that was set makes the engine delete the endpoint again (drivers/remote/driver.go)."""
    plugin.call("NetworkDriver.CreateNetwork", network(NET, "10.9.0.0/16", "fd00:9::/64"))
    assert plugin.call("NetworkDriver.CreateEndpoint", endpoint(mac="02:42:0a:09:00:77")) == {}
    answer = plugin.call("NetworkDriver.CreateEndpoint", endpoint(ident(1), v4="10.9.0.3/16", v6="fd00:9::3/64"))
    assert answer == {"Interface": {"MacAddress": "02:42:0a:09:00:03"}}
    only_v6 = plugin.call("NetworkDriver.CreateEndpoint", endpoint(ident(2), v4="", v6="fd00:9::4/64"))
    assert only_v6.keys() == {"Interface"}
    assert only_v6["Interface"].keys() == {"MacAddress"}
    again = plugin.call("NetworkDriver.CreateEndpoint", endpoint(ident(2), v4="", v6="fd00:9::4/64"))
    assert again == only_v6


@pytest.mark.parametrize(
    ("interface", "says"),
    [
        (None, "has no address"),
        ({}, "has no address"),
        ({"Address": "10.9.0.2"}, "invalid address '10.9.0.2'"),
        ({"Address": "10.9.0.2/33"}, "invalid address"),
        ({"Address": "10.9.0.2/255.255.0.0"}, "invalid address"),
        ({"Address": "fd00:9::2/64"}, "it is not an IPv4 address with its prefix"),
        ({"AddressIPv6": "10.9.0.2/16"}, "it is not an IPv6 address with its prefix"),
        ({"AddressIPv6": "fd00:9::2%eth0/64"}, "invalid address"),
        ({"Address": "10.10.0.2/16"}, "is in no subnet of network"),
        ({"Address": "10.9.0.2/16", "MacAddress": "nonsense"}, "invalid MAC address"),
        ({"Address": "10.9.0.2/16", "MacAddress": "01:00:5e:00:00:01"}, "unicast"),
    ],
    ids=str,
)
def test_interfaces_that_do_not_work_are_refused(plugin: PluginServer, interface: Any, says: str) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network(NET, "10.9.0.0/16", "fd00:9::/64"))
    refused(plugin, "NetworkDriver.CreateEndpoint", {**endpoint(), "Interface": interface}, says)


def test_driver_options_of_an_endpoint_are_checked_and_the_engines_own_passed_over(plugin: PluginServer) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network())
    body = endpoint()
    body["Options"] |= {ENDPOINT_MAC: "AgAAAKoB", "com.docker.network.endpoint.dnsservers": ["192.0.2.53"]}
    plugin.call("NetworkDriver.CreateEndpoint", body)
    unknown = {**endpoint(ident(1), v4="10.9.0.3/16"), "Options": {"nonsense": "1"}}
    refused(plugin, "NetworkDriver.CreateEndpoint", unknown, "unknown option 'nonsense'")


def gateways(plugin: PluginServer, body: Any, **addresses: str) -> dict[str, Any]:
    """What Join answers on the network, without the interface's name."""
    plugin.call("NetworkDriver.CreateNetwork", body)
    plugin.call("NetworkDriver.CreateEndpoint", endpoint(**addresses))
    answer = plugin.call("NetworkDriver.Join", join())
    assert answer.pop("InterfaceName") == {"SrcName": SRC, "DstPrefix": "eth"}
    return dict(answer)


def without_gateway(body: dict[str, Any], *families: str) -> dict[str, Any]:
    for family in families:
        for data in body[family]:
            del data["Gateway"]
    return body


DUAL = ("10.9.0.0/16", "fd00:9::/64")
V6 = {"v4": "", "v6": "fd00:9::2/64"}
BOTH = {"v6": "fd00:9::2/64"}


@pytest.mark.parametrize(
    ("body", "addresses", "answer"),
    [
        (network(), {}, {"Gateway": "10.9.0.1", "DisableGatewayService": False}),
        (network(NET, "fd00:9::/64"), V6, {"GatewayIPv6": "fd00:9::1", "DisableGatewayService": False}),
        (
            network(NET, *DUAL),
            BOTH,
            {"Gateway": "10.9.0.1", "GatewayIPv6": "fd00:9::1", "DisableGatewayService": False},
        ),
        (network(NET, *DUAL), {}, {"Gateway": "10.9.0.1", "DisableGatewayService": False}),
        (network(NET, *DUAL), V6, {"GatewayIPv6": "fd00:9::1", "DisableGatewayService": False}),
        (
            without_gateway(network(NET, *DUAL), "IPv6Data"),
            BOTH,
            {"Gateway": "10.9.0.1", "DisableGatewayService": False},
        ),
        (
            without_gateway(network(NET, *DUAL), "IPv4Data"),
            BOTH,
            {"GatewayIPv6": "fd00:9::1", "DisableGatewayService": False},
        ),
        (without_gateway(network(NET, *DUAL), "IPv4Data", "IPv6Data"), BOTH, {"DisableGatewayService": True}),
        (network(internal=True), {}, {"DisableGatewayService": True}),
        (network(NET, *DUAL, internal=True), BOTH, {"DisableGatewayService": True}),
        (
            network(NET, "10.8.0.0/16", "10.9.0.0/16"),
            {},
            {"Gateway": "10.9.0.1", "DisableGatewayService": False},
        ),
    ],
    ids=[
        "v4",
        "v6",
        "dual",
        "dual, endpoint v4",
        "dual, endpoint v6",
        "v4 gateway only",
        "v6 gateway only",
        "no gateway",
        "internal",
        "internal dual",
        "second subnet",
    ],
)
def test_a_join_answers_the_gateways_of_the_endpoints_families(
    plugin: PluginServer, body: dict[str, Any], addresses: dict[str, str], answer: dict[str, Any]
) -> None:
    """With no gateway and the gateway service left on, the engine would add an interface on docker_gwbridge."""
    assert gateways(plugin, body, **addresses) == answer


def test_a_join_names_a_device_that_is_there_and_fits_ifnamsiz(plugin: PluginServer, host: Host) -> None:
    joined(plugin)
    (made,) = host.driver.endpoints.values()
    assert made.netns_path is None  # the engine moves it
    assert (made.endpoint.ifname, made.endpoint.host_ifname) == (SRC, HOST_END)
    assert max(map(len, (SRC, HOST_END))) <= 15


class Prefixed(Host):
    """A host whose driver knows the option of Docker's bridge for interface names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.driver.validate = lambda spec, others: None  # type: ignore[method-assign]


def test_the_interface_prefix_is_as_asked_for(tmp_path: Path) -> None:
    with PluginServer(Prefixed(tmp_path)) as plugin:
        body = network()
        body["Options"][GENERIC] = {"com.docker.network.container_iface_prefix": "lan"}
        plugin.call("NetworkDriver.CreateNetwork", body)
        plugin.call("NetworkDriver.CreateEndpoint", endpoint())
        assert plugin.call("NetworkDriver.Join", join())["InterfaceName"] == {"SrcName": SRC, "DstPrefix": "lan"}


def test_a_second_sandbox_is_refused(plugin: PluginServer) -> None:
    joined(plugin)
    refused(plugin, "NetworkDriver.Join", join(key="/var/run/docker/netns/other"), f"is in sandbox {KEY}")
