"""Ports that Docker publishes through the plugin: what is published, shown, and refused with all others.

Expectations are libnetwork's docs/remote.md and drivers/remote/driver.go, and what a real engine was seen to send.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugin_server import (
    EP,
    NET,
    PORT_MAP,
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


def ports_of(plugin: PluginServer, endpoint_id: str = EP) -> list[str]:
    return list(plugin.call("NetworkDriver.EndpointOperInfo", ids(endpoint_id))["Value"]["linkspan.ports"])


@pytest.mark.parametrize(
    ("bindings", "shown"),
    [
        ([port(80, 8080)], ["*:8080->80/tcp"]),
        ([port(53, 5353, proto=17)], ["*:5353->53/udp"]),
        ([port(n, n) for n in (82, 80, 81)], ["*:80-82->80-82/tcp"]),
        ([port(n, 8000 + n) for n in (80, 81)], ["*:8080-8081->80-81/tcp"]),
        ([port(80, 8080), port(80, 8081)], ["*:8080->80/tcp", "*:8081->80/tcp"]),
        ([port(80, 8080), port(80, 8080)], ["*:8080->80/tcp"]),
        ([port(80, 8080, host_ip="192.0.2.1")], ["192.0.2.1:8080->80/tcp"]),
        ([port(80, 8080, host_ip="127.0.0.1"), port(80, 8080, host_ip="192.0.2.1")], None),
        ([port(80, 8080, 8090)], ["*:8080->80/tcp"]),
        ([], []),
    ],
    ids=str,
)
def test_ports_are_published_as_asked(
    plugin: PluginServer, host: Host, bindings: list[Any], shown: list[str] | None
) -> None:
    joined(plugin)
    before = host.state()
    plugin.call("NetworkDriver.ProgramExternalConnectivity", publish(*bindings))
    shown = shown if shown is not None else ["127.0.0.1:8080->80/tcp", "192.0.2.1:8080->80/tcp"]
    assert sorted(ports_of(plugin)) == shown
    assert host.driver.published == set(shown)  # one element a port or range
    plugin.call("NetworkDriver.RevokeExternalConnectivity", ids())
    assert host.state() == before


def test_a_call_without_a_port_map_publishes_nothing(plugin: PluginServer, host: Host) -> None:
    joined(plugin)
    before = host.state()
    nothing: list[Any] = [None, {}, {PORT_MAP: None}, {PORT_MAP: []}]
    for options in nothing:
        assert plugin.call("NetworkDriver.ProgramExternalConnectivity", ids(Options=options)) == {}
    assert host.state() == before


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        (port(80, 8080, proto=132), "80/sctp cannot be published: only tcp and udp can"),
        (port(80, 8080, proto=1), "cannot be published"),
        (port(80, 8080, proto=-6), "cannot be published"),
        (port(0, 8080), "ports are 1 to 65535"),
        (port(80, 70000), "ports are 1 to 65535"),
        (port(80, 9000, 8000), "ports are 1 to 65535"),
        (port(80, 8080, host_ip="::1"), "cannot be published at ::1"),
        (port(80, 8080, host_ip="fd00:1::1"), "the endpoint has no IPv6 address"),
        (port(80, 8080, host_ip="nonsense"), "invalid HostIP"),
        (port(80, 8080, host_ip="fe80::1%eth0"), "with a zone"),
    ],
    ids=str,
)
def test_ports_that_do_not_work_are_refused_with_all_others(plugin: PluginServer, binding: Any, says: str) -> None:
    joined(plugin)
    for bindings in ([binding], [port(90, 9090), binding], [binding, port(91)]):
        refused(plugin, "NetworkDriver.ProgramExternalConnectivity", publish(*bindings), says)


def test_a_port_in_use_is_an_error_that_names_its_owner(plugin: PluginServer, host: Host) -> None:
    joined(plugin, port(80, 8080))
    other = ident("other")
    plugin.call("NetworkDriver.CreateEndpoint", endpoint(other, v4="10.9.0.3/16"))
    plugin.call("NetworkDriver.Join", join(other, key="/var/run/docker/netns/fedcba"))
    host.ports.taken.add(("tcp", 9090))
    for number, owner in (
        (8080, f"is published by sandbox 1a2b3c4d5e6f on network docker-{NET[:12]}"),
        (9090, "nginx"),
    ):
        body = publish(port(79, 79), port(80, number), endpoint_id=other)
        refused(plugin, "NetworkDriver.ProgramExternalConnectivity", body, owner)
    assert ports_of(plugin, other) == []


def test_a_port_of_no_number_is_found(plugin: PluginServer, host: Host) -> None:
    joined(plugin)
    host.ports.taken |= {("tcp", 40000), ("tcp", 40001), ("tcp", 40003)}
    plugin.call("NetworkDriver.ProgramExternalConnectivity", publish(port(80)))
    assert ports_of(plugin) == ["*:40002->80/tcp"]
    plugin.call("NetworkDriver.ProgramExternalConnectivity", publish(port(80)))
    assert ports_of(plugin) == ["*:40002->80/tcp"]


def test_ports_of_an_internal_network_are_passed_over(plugin: PluginServer, host: Host) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network(internal=True))
    plugin.call("NetworkDriver.CreateEndpoint", endpoint())
    plugin.call("NetworkDriver.Join", join())
    before = host.state()
    assert plugin.call("NetworkDriver.ProgramExternalConnectivity", publish(port(80, 8080))) == {}
    assert host.state() == before
