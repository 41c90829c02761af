"""linkspand and dockerd own their parts of one firewall side by side, whoever comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.docker import lab as labs
from tests.docker.lab import Container, Lab
from tests.docker.leftovers import leftovers
from tests.netns.outside import HOST4, OUTSIDE4
from tests.traffic import Place, Station, connects

SERVER = ("httpd", "-f")


def docker_first(made: Lab) -> None:
    """What Docker does where it finds forwarding off: its FORWARD policy drops whatever its own rules do not accept."""
    assert made.host.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "0\n"
    made.engine.start()
    made.engine.import_image()
    made.host.start()


def linkspan_first(made: Lab) -> None:
    made.host.start()
    made.engine.start()
    made.engine.import_image()
    made.host.run("iptables", "-P", "FORWARD", "DROP")  # as an operator may, and newer engines do


@pytest.fixture(scope="module", params=[docker_first, linkspan_first])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    start: Callable[[Lab], None] = request.param
    with labs.bare_lab() as made:
        start(made)
        yield made
        made.clear()
        assert leftovers(made) == []


@pytest.fixture
def here(lab: Lab) -> Place:
    return Place(lab.host, "host", f"/proc/{lab.host.pid}/ns/net", "lo")


def gets(client: Place, url: str) -> bool:
    """Whether a web server answers."""
    return "404" in client.run("curl", "-sS", "-m", "3", url, check=False).stdout


def forward_policy(lab: Lab) -> str:
    return lab.host.run("iptables", "-S", "FORWARD").stdout.splitlines()[0]


@pytest.mark.parametrize("accel", ["on", "off"])
def test_dockers_policy_does_not_cut_networks_off(lab: Lab, here: Place, accel: str) -> None:
    assert forward_policy(lab) == "-P FORWARD DROP"
    network = f"ours-{accel}"
    lab.network(network, "-o", f"linkspan.accel={accel}")
    one = lab.run(f"{network}-1", network)
    other = lab.run(f"{network}-2", network, "-p", "8080:80", command=SERVER)

    def assert_all_reached() -> None:
        assert one.pings(other.ip4)
        assert one.pings(str(one.gateway()))
        assert one.pings(OUTSIDE4)
        assert gets(one, f"http://{other.ip4}/")
        assert gets(lab.outside, f"http://{HOST4}:8080/")
        assert gets(here, "http://127.0.0.1:8080/")

    assert_all_reached()
    lab.host.stop()
    assert_all_reached()
    lab.host.start()
    assert_all_reached()
    lab.remove(one.name, other.name)
    lab.docker("network", "rm", network)


@pytest.mark.parametrize("accel", ["on", "off"])
def test_networks_without_docker_are_not_cut_off_either(lab: Lab, accel: str) -> None:
    assert forward_policy(lab) == "-P FORWARD DROP"
    network = f"own-{accel}"
    lab.host.api("POST", "/networks/create", {"Name": network, "Options": {"linkspan.accel": accel}})
    stations = []
    for name in ("a", "b"):
        lab.host.sandbox(f"{network}-{name}", network)
        stations.append(Station(lab.host, f"{network}-{name}"))
    one, other = stations
    assert one.pings(other.ip4)
    assert connects(one, other, other.ip4)
    assert one.pings(OUTSIDE4)
    for name in ("a", "b"):
        lab.host.api("DELETE", f"/linkspan/sandboxes/{network}-{name}")
    lab.host.api("DELETE", f"/networks/{network}")


def test_a_published_port_of_dockers_bridge_keeps_working(lab: Lab, here: Place) -> None:
    theirs = lab.run("theirs", "bridge", "-p", "8081:80", command=SERVER)
    neighbour = lab.run("neighbour", "bridge")
    lab.network("beside")
    ours = lab.run("ours", "beside", "-p", "8082:80", command=SERVER)

    def assert_all_reached() -> None:
        for port in (8081, 8082):
            assert gets(lab.outside, f"http://{HOST4}:{port}/"), port
            assert gets(here, f"http://{HOST4}:{port}/"), port
            assert gets(here, f"http://127.0.0.1:{port}/"), port
        assert gets(ours, f"http://{HOST4}:8081/")
        assert gets(theirs, f"http://{HOST4}:8082/")
        assert neighbour.pings(theirs.ip4)
        assert neighbour.pings(OUTSIDE4)
        assert ours.pings(OUTSIDE4)

    assert_all_reached()
    lab.host.stop()
    lab.host.start()
    assert_all_reached()
    lab.remove("ours")
    lab.docker("network", "rm", "beside")
    assert gets(lab.outside, f"http://{HOST4}:8081/")
    lab.remove("theirs", "neighbour")


def test_dockerds_restart_leaves_networks_connected(lab: Lab) -> None:
    lab.network("kept")
    lab.run("kept", "kept", "-p", "8083:80", command=SERVER)
    lab.engine.restart()
    lab.docker("start", "kept")
    kept = Container(lab, "kept")
    assert kept.pings(OUTSIDE4)
    assert gets(lab.outside, f"http://{HOST4}:8083/")
    lab.remove("kept")
    lab.docker("network", "rm", "kept")


def test_the_operators_rules_in_docker_user_stay_in_force(lab: Lab) -> None:
    rule = ("DOCKER-USER", "-p", "tcp", "--dport", "80", "-j", "DROP")
    lab.network("guarded", "-o", "linkspan.accel=off")
    guarded = lab.run("guarded", "guarded", "-p", "8084:80", command=SERVER)
    call = partial(gets, lab.outside, f"http://{HOST4}:8084/")
    assert call()
    lab.host.run("iptables", "-I", *rule)
    assert not call()
    assert guarded.pings(OUTSIDE4)
    lab.host.stop()
    lab.host.start()
    assert not call()
    lab.host.run("iptables", "-D", *rule)
    assert call()
    lab.remove("guarded")
    lab.docker("network", "rm", "guarded")
