"""The Docker SDK for Python as the oracle: it takes linkspand for an engine, and its objects come out right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import docker
import pytest

from control.api.versions import NEWEST
from tests.api_server import ApiServer

EVERY_VERSION = ["1.24", "1.41", "1.44", str(NEWEST)]


@pytest.fixture
def client(server: ApiServer) -> Iterator[docker.DockerClient]:
    connected = docker.DockerClient(base_url=f"unix://{server.socket_path}", timeout=20)
    yield connected
    connected.close()


def test_ping_version_and_info_are_understood(client: docker.DockerClient) -> None:
    assert client.ping() is True
    version = client.version()
    assert (version["ApiVersion"], version["MinAPIVersion"], version["Os"]) == (str(NEWEST), "1.24", "linux")
    assert client.info()["Plugins"]["Network"] == ["bridge", "host", "null"]


def test_networks_are_created_listed_got_and_removed(client: docker.DockerClient) -> None:
    pool = docker.types.IPAMPool(
        subnet="10.9.0.0/16", iprange="10.9.1.0/24", gateway="10.9.0.254", aux_addresses={"printer": "10.9.0.7"}
    )
    network = client.networks.create(
        "blue",
        driver="bridge",
        options={"fake.option": "1"},
        ipam=docker.types.IPAMConfig(pool_configs=[pool]),
        check_duplicate=True,
        internal=True,
        labels={"team": "a"},
        enable_ipv6=False,
        attachable=True,
        scope="local",
        ingress=False,
    )
    assert network.name == "blue"
    assert network.attrs["IPAM"]["Config"] == [
        {
            "Subnet": "10.9.0.0/16",
            "IPRange": "10.9.1.0/24",
            "Gateway": "10.9.0.254",
            "AuxiliaryAddresses": {"printer": "10.9.0.7"},
        }
    ]
    assert network.attrs["Labels"] == {"team": "a"}
    assert [n.id for n in client.networks.list(names=["blue"])] == [network.id]
    assert [n.id for n in client.networks.list(ids=[network.id], greedy=True)] == [network.id]
    assert [n.name for n in client.networks.list(filters={"label": "team=a", "driver": "bridge"})] == ["blue"]
    assert client.networks.get("blue", verbose=True, scope="local").id == network.id
    network.remove()
    with pytest.raises(docker.errors.NotFound, match="network blue not found"):
        client.networks.get("blue")


def test_sandboxes_are_connected_and_disconnected(client: docker.DockerClient, server: ApiServer) -> None:
    sandbox_id = server.ask("POST", "/linkspan/sandboxes", {"Name": "web"}).json["Id"]
    pool = docker.types.IPAMPool(subnet="10.9.0.0/16")
    network = client.networks.create("blue", ipam=docker.types.IPAMConfig(pool_configs=[pool]))
    network.connect("web", aliases=["www"], ipv4_address="10.9.0.9", driver_opt={})
    network.reload()
    assert network.attrs["Containers"][sandbox_id]["IPv4Address"] == "10.9.0.9/16"
    with pytest.raises(docker.errors.APIError, match="has active endpoints") as refused:
        network.remove()
    assert refused.value.status_code == 403
    network.disconnect(sandbox_id, force=True)
    network.reload()
    assert network.attrs["Containers"] == {}


def test_every_argument_of_the_low_level_calls_is_taken(client: docker.DockerClient, server: ApiServer) -> None:
    api = client.api
    sandbox_id = server.ask("POST", "/linkspan/sandboxes", {"Name": "web"}).json["Id"]
    pools = [
        docker.types.IPAMPool(subnet="10.9.0.0/16", iprange="10.9.1.0/24", gateway="10.9.0.254"),
        docker.types.IPAMPool(subnet="fd00:9::/64"),
    ]
    network_id = api.create_network(
        "blue",
        driver="bridge",
        options={"fake.option": "1"},
        ipam=docker.types.IPAMConfig(driver="default", pool_configs=pools, options={"x": "y"}),
        check_duplicate=True,
        internal=False,
        labels={"team": "a"},
        enable_ipv6=True,
        attachable=True,
        scope="local",
        ingress=False,
    )["Id"]
    for found in (
        api.networks(names=["blue"]),
        api.networks(ids=[network_id]),
        api.networks(filters={"label": "team=a"}),
    ):
        assert [network["Id"] for network in found] == [network_id]
    api.connect_container_to_network(
        "web",
        "blue",
        ipv4_address="10.9.0.9",
        ipv6_address="fd00:9::9",
        aliases=["www"],
        links=[],
        link_local_ips=["169.254.9.9"],
        driver_opt={},
        mac_address="02:00:00:00:00:09",
    )
    joined = api.inspect_network("blue", verbose=True, scope="local")["Containers"][sandbox_id]
    assert (joined["IPv4Address"], joined["IPv6Address"]) == ("10.9.0.9/16", "fd00:9::9/64")
    assert joined["MacAddress"] == "02:00:00:00:00:09"
    api.disconnect_container_from_network(sandbox_id, network_id, force=True)
    api.remove_network("blue")
    assert api.prune_networks(filters={"until": "1h"}) == {"NetworksDeleted": []}


def test_a_configuration_is_seen_and_not_joined(client: docker.DockerClient, server: ApiServer) -> None:
    body = {"Name": "settings", "ConfigOnly": True, "Labels": {"team": "a"}}
    assert server.ask("POST", "/networks/create", body).status == 201
    assert client.networks.get("settings").attrs["ConfigOnly"] is True
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    network = client.networks.get("settings")
    with pytest.raises(docker.errors.APIError, match="cannot create endpoint on configuration-only network"):
        network.connect("web")


@pytest.mark.parametrize("version", EVERY_VERSION)
def test_a_client_that_insists_on_a_version_gets_it(server: ApiServer, version: str) -> None:
    server.ask("POST", "/linkspan/sandboxes", {"Name": "web"})
    url = f"unix://{server.socket_path}"
    with closing(docker.DockerClient(base_url=url, version=version, timeout=20)) as client:
        assert client.api.api_version == version
        network = client.networks.create("blue", labels={"team": "a"})
        network.connect("web", aliases=["www"])
        network.reload()
        assert len(network.attrs["Containers"]) == 1
        network.disconnect("web")
        network.remove()
        assert [n.name for n in client.networks.list(filters={"type": "custom"})] == []


def test_a_client_of_a_later_version_is_told_which_is_the_newest(server: ApiServer) -> None:
    url = f"unix://{server.socket_path}"
    with closing(docker.DockerClient(base_url=url, version="1.99", timeout=20)) as client:
        with pytest.raises(docker.errors.APIError, match=f"Maximum supported API version is {NEWEST}") as refused:
            client.networks.list()
        assert refused.value.status_code == 400


def test_prune_removes_unused_networks(client: docker.DockerClient) -> None:
    client.networks.create("blue", labels={"keep": "yes"})
    client.networks.create("green")
    assert client.networks.prune(filters={"label!": ["keep=yes"]}) == {"NetworksDeleted": ["green"]}
    assert {network.name for network in client.networks.list()} == {"bridge", "host", "none", "blue"}


def test_errors_become_the_sdks_exceptions(client: docker.DockerClient) -> None:
    client.networks.create("blue")
    with pytest.raises(docker.errors.APIError, match="network with name blue already exists") as refused:
        client.networks.create("blue")
    assert refused.value.status_code == 409
    pool = docker.types.IPAMPool(subnet="10.0.0.1/8")
    with pytest.raises(docker.errors.APIError, match=r"it should be 10\.0\.0\.0/8"):
        client.networks.create("red", ipam=docker.types.IPAMConfig(pool_configs=[pool]))
    with pytest.raises(docker.errors.APIError, match="linkspand serves Docker's network API only"):
        client.containers.list()


def test_events_are_read_as_they_come(client: docker.DockerClient) -> None:
    events = client.events(decode=True, filters={"type": "network"})
    network = client.networks.create("blue")
    event = next(events)
    events.close()
    assert (event["Action"], event["Actor"]["ID"]) == ("create", network.id)
