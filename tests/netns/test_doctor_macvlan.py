"""What doctor finds of macvlan endpoints and their parent, and that it mends what is Linkspan's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.hosts import Host
from tests.netns.conftest import linkspan_host
from tests.traffic import Station

pytestmark = pytest.mark.xdist_group("doctor")

PARENT, FAR = "eth1", "far0"


def cable(machine: Host) -> None:
    machine.run("ip", "link", "add", PARENT, "type", "veth", "peer", "name", FAR)
    for ifname in (PARENT, FAR):
        machine.run("ip", "link", "set", ifname, "up")


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with linkspan_host(before=cable) as made:
        body = {
            "Name": "pub",
            "Driver": "macvlan",
            "Options": {"parent": PARENT, "com.docker.network.driver.mtu": "1400"},
        }
        made.api("POST", "/networks/create", {**body, "IPAM": {"Config": [{"Subnet": "192.0.2.0/24"}]}})
        yield made
        made.run("ip", "link", "delete", PARENT)


@pytest.fixture(scope="module")
def station(machine: Host) -> Station:
    machine.sandbox("one", "pub")
    return Station(machine, "one")


def findings(machine: Host) -> list[Any]:
    found = machine.api("GET", "/linkspan/doctor")["findings"]
    return [each for each in found if each["severity"] != "note"]


def delete_from(name: str) -> Callable[[Station], None]:
    def delete(station: Station) -> None:
        host = station.host
        (path,) = host.run("find", str(host.bpffs / "linkspan"), "-path", f"*/maps/{name}").stdout.split()
        (entry,) = json.loads(host.run("bpftool", "-j", "map", "dump", "pinned", path).stdout)
        host.run("bpftool", "map", "delete", "pinned", path, "key", *entry["key"])

    return delete


def detach(station: Station) -> None:
    pins = station.host.run("find", str(station.host.bpffs / "linkspan/parents"), "-name", "*-in").stdout.split()
    for pin in pins:
        station.host.run("bpftool", "link", "detach", "pinned", pin)


def in_sandbox(*command: str) -> Callable[[Station], None]:
    return lambda station: station.run(*(word.format(ip=station.ip4) for word in command)) and None


BROKEN = {
    "address": ("address-missing", in_sandbox("ip", "address", "del", "{ip}/24", "dev", "eth0")),
    "route": ("route-missing", in_sandbox("ip", "route", "del", "default")),
    "down": ("device-down", in_sandbox("ip", "link", "set", "eth0", "down")),
    "device": ("device-missing", in_sandbox("ip", "link", "delete", "eth0")),
    "station": ("map-missing", delete_from("stations")),
    "parent": ("map-missing", delete_from("parents")),
}


def test_nothing_is_wrong_with_a_healthy_endpoint(station: Station) -> None:
    assert findings(station.host) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_differs_from_the_records_is_found_and_mended(station: Station, name: str) -> None:
    code, spoil = BROKEN[name]
    spoil(station)
    assert code in {each["code"] for each in findings(station.host)}
    mended = station.host.api("POST", "/linkspan/doctor/mend")["mended"]
    assert code in {each["code"] for each in mended}
    assert findings(station.host) == []


def test_a_device_that_did_not_get_its_name_in_time_gets_it(station: Station) -> None:
    """As one of a linkspand that was killed between."""
    endpoint = station.host.api("GET", "/networks/pub")["Containers"].popitem()[1]["EndpointID"]
    station.run("ip", "link", "set", "eth0", "down")
    station.run("ip", "link", "set", "eth0", "name", f"lp{endpoint[:12]}")
    assert "device-missing" in {each["code"] for each in findings(station.host)}
    station.host.api("POST", "/linkspan/doctor/mend")
    assert findings(station.host) == []
    assert [link["ifname"] for link in station.ip("link")] == ["lo", "eth0"]


def test_a_program_that_was_taken_off_the_parent_runs_again(station: Station) -> None:
    if station.host.api("GET", "/networks/pub")["Status"]["Linkspan"]["linkspan.path"].endswith("(clsact)"):
        station.host.run("tc", "filter", "del", "dev", PARENT, "ingress")
    else:
        detach(station)
    (lost,) = findings(station.host)
    assert (lost["code"], lost["where"]) == ("program-missing", PARENT)
    station.host.api("POST", "/linkspan/doctor/mend")
    assert findings(station.host) == []


def test_a_parent_that_is_down_or_too_narrow_is_the_operators(station: Station) -> None:
    station.host.run("ip", "link", "set", PARENT, "mtu", "1300")
    codes = {each["code"]: each for each in findings(station.host)}
    assert "mtu-parent" in codes
    station.host.api("POST", "/linkspan/doctor/mend")
    assert "mtu-parent" in {each["code"] for each in findings(station.host)}
    station.host.run(*codes["mtu-parent"]["mend"].split())
    station.run("ip", "link", "set", "eth0", "mtu", "1400")
    station.host.run("ip", "link", "set", PARENT, "down")
    assert {each["code"] for each in findings(station.host)} == {"parent-down"}
    station.host.run("ip", "link", "set", PARENT, "up")
    station.host.api("POST", "/linkspan/doctor/mend")
    assert findings(station.host) == []


def test_xdp_that_the_driver_does_not_run_itself(machine: Host) -> None:
    """A veth whose MTU takes more than a page."""
    machine.run("ip", "link", "add", "eth2", "mtu", "9000", "type", "veth", "peer", "name", "far2", "mtu", "9000")
    for ifname in ("eth2", "far2"):
        machine.run("ip", "link", "set", ifname, "up")
    for hook, expected in (("xdp", ["xdp-generic"]), ("tc", [])):
        options = {"parent": "eth2", "linkspan.macvlan_device": "veth", "linkspan.parent_hook": hook}
        body = {"Name": "jumbo", "Driver": "macvlan", "Options": options}
        machine.api("POST", "/networks/create", {**body, "IPAM": {"Config": [{"Subnet": "198.51.100.0/24"}]}})
        machine.sandbox("two", "jumbo")
        found = findings(machine)
        assert [each["code"] for each in found] == expected
        for each in found:
            assert (each["where"], each["what"].endswith("at the ingress by generic XDP")) == ("eth2", True)
            assert each["mend"].endswith("make the network with -o linkspan.parent_hook=tc")
        machine.api("DELETE", "/linkspan/sandboxes/two?force=1")
        machine.api("DELETE", "/networks/jumbo")
    machine.run("ip", "link", "delete", "eth2")


def test_what_linkspand_cannot_make_whole_is_told_until_it_can(machine: Host, station: Station) -> None:
    machine.stop()
    machine.run("ip", "link", "delete", PARENT)
    machine.start()
    broken = [each for each in findings(machine) if each["code"] == "not-whole"]
    assert any(station.endpoint_id[:12] in each["where"] for each in broken)
    assert all(PARENT in each["what"] for each in broken), broken
    assert {each["mend"] for each in broken} == {"remove the reason, then restart linkspand"}
    cable(machine)
    machine.stop()
    machine.start()
    assert findings(machine) == []
