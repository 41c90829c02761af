"""The Docker SDK for Python as the oracle: it takes linkspand for an engine, and its objects come out right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from control.api.versions import NEWEST
from tests.api_server import ApiServer

docker = pytest.importorskip("docker", reason="needs the Docker SDK for Python: pip install docker")


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
