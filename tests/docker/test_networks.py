"""`docker network` with -d linkspan: what is made is the same for Docker, for linkspand and for the kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.docker.engine import CLIENTS
from tests.docker.image import NAME
from tests.docker.lab import SLEEP, Lab

IPAMS = ("default", "linkspan")


def pools(network: Any) -> list[tuple[str, str]]:
    """Subnets and gateways of a network as either API shows it. Docker may write a gateway with its prefix length."""
    return sorted((pool["Subnet"], pool["Gateway"].partition("/")[0]) for pool in network["IPAM"]["Config"])


def bridge_addresses(lab: Lab, network_id: str) -> set[str]:
    (link,) = lab.host.ip("address", "show", "dev", f"br-{network_id[:12]}")
    return {address["local"] for address in link["addr_info"] if address["scope"] == "global"}


def names(lab: Lab) -> set[str]:
    return set(lab.docker("network", "ls", "--format", "{{.Name}}").stdout.split())


def state(lab: Lab) -> tuple[Any, ...]:
    """What there is on the host: for Docker, for linkspand, and in the kernel."""
    return (
        names(lab),
        {network["Id"] for network in lab.host.api("GET", "/networks")},
        {link["ifname"] for link in lab.host.ip("link")},
    )


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("ipam", IPAMS)
def test_a_network_is_the_same_for_docker_linkspan_and_the_kernel(lab: Lab, ipam: str, client: str) -> None:
    name = f"same-{ipam}-{CLIENTS.index(client)}"
    pool = ("--subnet", "10.71.0.0/24", "--gateway", "10.71.0.254", "--ip-range", "10.71.0.128/25")
    create = ("network", "create", "-d", "linkspan", "--ipam-driver", ipam)
    created = lab.docker(*create, *pool, "--aux-address", "router=10.71.0.129", name, client=client)
    shown = lab.engine.inspect(name, "network")
    ours = lab.linkspan_network(shown["Id"])
    assert created.stdout.strip() == shown["Id"] == ours["Id"]
    facts = [shown[key] for key in ("Driver", "Scope", "Internal", "EnableIPv6")]
    assert facts == ["linkspan", "local", False, False]
    assert pools(shown) == pools(ours) == [("10.71.0.0/24", "10.71.0.254")]
    assert bridge_addresses(lab, shown["Id"]) == {"10.71.0.254"}
    container = lab.run(f"in-{name}", name)
    assert ip_address(container.ip4) in ip_network("10.71.0.128/25")
    assert container.ip4 != "10.71.0.129"
    lab.assert_agreement()
    lab.remove(f"in-{name}")
    assert lab.docker("network", "rm", name, client=client).stdout.strip() == name
    lab.assert_agreement()


@pytest.mark.parametrize("ipam", IPAMS)
def test_a_network_gets_a_subnet_that_nobody_has(lab: Lab, ipam: str) -> None:
    made = [lab.network(f"free-{ipam}-{number}", "--ipam-driver", ipam) for number in range(3)]
    routes = {ip_network(route["dst"]) for route in lab.host.ip("-4", "route") if route["dst"] != "default"}
    subnets = [ip_network(subnet) for network in made for subnet, _ in pools(network)]
    assert set(subnets) < routes  # each by its bridge
    others = [*subnets, *(routes - set(subnets))]
    assert not [(one, two) for i, one in enumerate(others) for two in others[i + 1 :] if one.overlaps(two)]
    for network in made:
        assert pools(lab.linkspan_network(network["Id"])) == pools(network)
    lab.docker("network", "rm", *(network["Name"] for network in made))


@pytest.mark.parametrize("ipam", IPAMS)
def test_a_network_has_both_families(lab: Lab, ipam: str) -> None:
    subnets = ("--ipv6", "--subnet", "10.72.0.0/24", "--subnet", "fd00:72::/64")
    shown = lab.network(f"both-{ipam}", "--ipam-driver", ipam, *subnets)
    ours = lab.linkspan_network(shown["Id"])
    assert shown["EnableIPv6"]
    assert ours["EnableIPv6"]
    assert [subnet for subnet, _ in pools(ours)] == ["10.72.0.0/24", "fd00:72::/64"]
    assert {gateway for _, gateway in pools(ours)} == bridge_addresses(lab, shown["Id"])
    one, other = (lab.run(f"both-{ipam}-{number}", f"both-{ipam}") for number in range(2))
    assert ip_address(one.ip6) in ip_network("fd00:72::/64")
    assert one.pings(other.ip4)
    assert one.pings(other.ip6)
    assert one.gateway(6) in bridge_addresses(lab, shown["Id"])
    lab.assert_agreement()
    lab.remove(one.name, other.name)
    lab.docker("network", "rm", f"both-{ipam}")


def test_an_internal_network_is_internal_for_both(lab: Lab) -> None:
    shown = lab.network("inner", "--internal", "--subnet", "10.73.0.0/24")
    assert shown["Internal"]
    assert lab.linkspan_network(shown["Id"])["Internal"]
    lab.docker("network", "rm", "inner")


def test_docker_options_mean_what_they_mean_in_docker(lab: Lab) -> None:
    shown = lab.network(
        "optional",
        *("-o", "com.docker.network.driver.mtu=1400", "-o", "com.docker.network.bridge.name=lsbr7"),
        *("-o", "com.docker.network.bridge.enable_icc=false", "--label", "of=docker"),
    )
    options = {
        "com.docker.network.driver.mtu": "1400",
        "com.docker.network.bridge.name": "lsbr7",
        "com.docker.network.bridge.enable_icc": "false",
    }
    assert shown["Options"] == options
    assert options.items() <= lab.linkspan_network(shown["Id"])["Options"].items()
    one, other = (lab.run(f"optional-{number}", "optional") for number in range(2))
    assert one.link()["mtu"] == 1400
    assert lab.host.ip("link", "show", "dev", f"ls{one.endpoint_id[:12]}")[0]["master"] == "lsbr7"
    assert not one.pings(other.ip4, wait_s=0.5)
    assert one.pings(str(one.gateway()))
    lab.remove(one.name, other.name)
    lab.docker("network", "rm", "optional")


def test_a_network_may_be_without_programs(lab: Lab) -> None:
    lab.network("plain", "-o", "linkspan.accel=off", "-o", "linkspan.driver=bridge")
    one, other = (lab.run(f"plain-{number}", "plain") for number in range(2))
    before = lab.packets(one, other)
    assert one.pings(other.ip4)
    after = lab.packets(one, other)
    assert after["fast"] == before["fast"]
    lab.remove(one.name, other.name)
    lab.docker("network", "rm", "plain")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(("-o", "linkspan.colour=blue"), "linkspan.colour", id="unknown-of-ours"),
        pytest.param(("-o", "colour=blue"), "colour", id="unknown"),
        pytest.param(("-o", "linkspan.driver=overlay"), "not available", id="overlay"),
        pytest.param(("-o", "linkspan.driver=token-ring"), "token-ring", id="no-such-driver"),
        pytest.param(("-o", "linkspan.accel=perhaps"), "linkspan.accel", id="bad-value"),
        pytest.param(("-o", "com.docker.network.driver.mtu=12"), "mtu", id="mtu-too-small"),
        pytest.param(("-o", "com.docker.network.bridge.name=lo"), "lo", id="name-of-a-device"),
    ],
)
@pytest.mark.parametrize("ipam", IPAMS)
def test_options_that_cannot_be_are_refused(lab: Lab, ipam: str, options: tuple[str, ...], said: str) -> None:
    before = state(lab)
    addresses = ("--ipam-driver", ipam, "--subnet", "10.77.0.0/24")
    done = lab.docker("network", "create", "-d", "linkspan", *addresses, *options, "refused", check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert state(lab) == before
    lab.network("after", *addresses)
    lab.docker("network", "rm", "after")


@pytest.mark.parametrize("second", IPAMS)
@pytest.mark.parametrize("first", IPAMS)
def test_a_subnet_belongs_to_one_network(lab: Lab, first: str, second: str) -> None:
    lab.network("owner", "--ipam-driver", first, "--subnet", "10.74.0.0/16")
    before = state(lab)
    for subnet in ("10.74.0.0/16", "10.74.8.0/24", "10.0.0.0/8"):
        create = ("network", "create", "-d", "linkspan", "--ipam-driver", second, "--subnet", subnet, "thief")
        done = lab.docker(*create, check=False)
        assert done.returncode == 1, subnet
        assert "overlap" in done.stderr, done.stderr
        assert state(lab) == before
    lab.docker("network", "rm", "owner")
    lab.network("heir", "--ipam-driver", second, "--subnet", "10.74.0.0/16")
    lab.docker("network", "rm", "heir")


@pytest.mark.parametrize("ipam", IPAMS)
def test_a_subnet_of_linkspans_own_network_is_not_dockers(lab: Lab, ipam: str) -> None:
    pool = {"Subnet": "10.75.0.0/16"}
    lab.host.api("POST", "/networks/create", {"Name": "own", "IPAM": {"Config": [pool]}})
    before = state(lab)
    create = ("network", "create", "-d", "linkspan", "--ipam-driver", ipam, "--subnet", "10.75.1.0/24", "thief")
    done = lab.docker(*create, check=False)
    assert done.returncode == 1
    assert "overlap" in done.stderr, done.stderr
    assert state(lab) == before
    lab.host.api("DELETE", "/networks/own")


def test_a_network_with_containers_is_not_removed(lab: Lab) -> None:
    lab.network("busy")
    lab.run("inhabitant", "busy")
    done = lab.docker("network", "rm", "busy", check=False)
    assert done.returncode == 1
    assert "has active endpoints" in done.stderr
    lab.assert_agreement()
    lab.docker("network", "disconnect", "busy", "inhabitant")
    lab.docker("network", "rm", "busy")
    lab.remove("inhabitant")


def test_prune_takes_what_nobody_uses(lab: Lab) -> None:
    for name in ("used", "unused-1", "unused-2"):
        lab.network(name)
    lab.run("user", "used")
    pruned = lab.docker("network", "prune", "-f").stdout.split()
    assert {"unused-1", "unused-2"} <= set(pruned)
    assert "used" in names(lab)
    assert not {"unused-1", "unused-2"} & names(lab)
    lab.assert_agreement()
    lab.remove("user")
    lab.docker("network", "prune", "-f")
    assert "used" not in names(lab)
    lab.assert_agreement()


def test_an_address_is_given_once(lab: Lab) -> None:
    lab.network("single", "--ipam-driver", "linkspan", "--subnet", "10.76.0.0/24")
    lab.run("holder", "single", "--ip", "10.76.0.9")
    for address, said in (("10.76.0.9", "already in use"), ("10.76.0.1", "already in use"), ("10.9.9.9", "10.9.9.9")):
        create = ("run", "-d", "--name", "wanting", "--network", "single", "--ip", address, NAME, *SLEEP)
        done = lab.docker(*create, check=False)
        assert done.returncode == 125
        assert said in done.stderr, done.stderr
        lab.remove("wanting")
    lab.assert_agreement()
    lab.remove("holder")
    assert lab.run("heir", "single", "--ip", "10.76.0.9").ip4 == "10.76.0.9"
    lab.remove("heir")
    lab.docker("network", "rm", "single")
