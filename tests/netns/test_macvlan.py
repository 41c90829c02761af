"""Macvlan networks through the API, with packets: what endpoints get, what is refused, and what outlives what."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from datapath.features import Answer, check
from tests.api_server import Reply
from tests.hosts import Host
from tests.netns.lan import HOST4, PARENT, ROUTER4, ROUTER6, Lan, lan_host, lan_net, parent_state
from tests.require import require
from tests.traffic import Station

pytestmark = pytest.mark.root
net, machine = lan_net, lan_host

MTU = "com.docker.network.driver.mtu"
SUBNET4, SUBNET6 = "192.168.32.0/24", "fd00:32::/64"


def create(machine: Host, name: str, *subnets: str, internal: bool = False, **options: str) -> Reply:
    body = {
        "Name": name,
        "Driver": "macvlan",
        "EnableIPv6": any(":" in subnet for subnet in subnets),
        "Internal": internal,
        "IPAM": {"Config": [{"Subnet": subnet} for subnet in subnets]},
        "Options": {option.replace("__", "."): value for option, value in options.items()},
    }
    return machine.ask("POST", "/networks/create", body)


def made(machine: Host, name: str, *subnets: str, **options: Any) -> str:
    reply = create(machine, name, *subnets, **options)
    assert (reply.status, reply.json.get("Warning", "")) == (201, ""), reply.body
    return str(reply.json["Id"])


def join(machine: Host, name: str, network: str, **endpoint: Any) -> Station:
    machine.sandbox(name, network, **endpoint)
    return Station(machine, name)


def details(station: Station) -> Any:
    return station.ip("link", "show", "dev", station.ifname)[0]


def status(machine: Host, network: str) -> dict[str, str]:
    return dict(machine.ask("GET", f"/networks/{network}").json["Status"]["Linkspan"])


# -- what endpoints get ----------------------------------------------------------------------------------------------


def test_an_endpoint_is_on_the_existing_network_with_its_router(machine: Host) -> None:
    made(machine, "pub", SUBNET4, SUBNET6, parent=PARENT)
    a = join(machine, "a", "pub")
    link = details(a)
    assert (link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]) == ("macvlan", "bridge")
    assert (link["mtu"], "UP" in link["flags"]) == (1500, True)
    assert a.mac == machine.ask("GET", "/networks/pub").json["Containers"][sandbox_id(machine, "a")]["MacAddress"]
    assert (a.default_route(4), a.default_route(6)) == ((ROUTER4, "eth0"), (ROUTER6, "eth0"))
    assert a.pings(ROUTER4)
    assert a.pings(ROUTER6)
    hooks = "tcx" if check("tcx").answer is Answer.YES else "clsact"
    assert status(machine, "pub") == {
        "linkspan.parent": PARENT,
        "linkspan.parent_state": "up",
        "linkspan.macvlan_mode": "bridge",
        "linkspan.macvlan_device": "macvlan",
        "linkspan.path": f"kernel macvlan, eBPF on the parent ({hooks})",
        "linkspan.host_access": "on",
        "linkspan.broadcast_limit": "100 packets/s",
    }
    gateways = {f"{ROUTER4}/24", f"{ROUTER6}/64"}
    for link in machine.ip("addr"):
        assert not gateways & {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]}, link["ifname"]


def test_the_host_may_have_devices_with_the_names_that_endpoints_have(machine: Host) -> None:
    """Before Linux 6.15 the kernel looks for them in both namespaces."""
    machine.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "others")
    try:
        made(machine, "pub", SUBNET4, parent=PARENT)
        a = join(machine, "a", "pub")
        assert (details(a)["ifname"], a.pings(ROUTER4)) == ("eth0", True)
    finally:
        machine.run("ip", "link", "delete", "eth0")


def test_a_sandbox_that_has_a_device_of_the_name_keeps_that_alone(machine: Host) -> None:
    made(machine, "one", SUBNET4, parent=PARENT)
    made(machine, "two", "192.168.33.0/24", parent=PARENT)
    a = join(machine, "a", "one")
    a.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "others")
    before = {link["ifname"]: link["ifindex"] for link in a.ip("link")}
    refused = machine.ask("POST", "/networks/two/connect", {"Container": "a"})
    assert (refused.status, "sandbox a has a device eth1 already" in refused.message) == (409, True), refused.message
    assert {link["ifname"]: link["ifindex"] for link in a.ip("link")} == before


def sandbox_id(machine: Host, name: str) -> str:
    return str(machine.ask("GET", f"/linkspan/sandboxes/{name}").json["Id"])


def test_the_command_line_takes_ranges_auxiliary_addresses_and_modes(machine: Host) -> None:
    addresses = ("--subnet", SUBNET4, "--gateway", ROUTER4, "--ip-range", "192.168.32.64/30")
    reserved = ("--aux-address", "printer=192.168.32.64")
    options = ("-o", f"parent={PARENT}", "-o", "macvlan_mode=private", "-o", f"{MTU}=1400")
    machine.linkspan("network", "create", "-d", "macvlan", *addresses, *reserved, *options, "pub")
    a, b = join(machine, "a", "pub"), join(machine, "b", "pub")
    assert (a.ip4, b.ip4) == ("192.168.32.65", "192.168.32.66")
    assert details(a)["linkinfo"]["info_data"]["mode"] == "private"
    assert details(a)["mtu"] == 1400


def test_an_internal_network_has_no_way_out_of_its_subnet(machine: Host) -> None:
    made(machine, "inner", SUBNET4, SUBNET6, internal=True, parent=PARENT)
    a = join(machine, "a", "inner")
    assert (a.default_route(4), a.default_route(6)) == (None, None)
    assert a.pings(ROUTER4)
    unreachable = a.run("ping", "-c1", "-W1", "192.0.2.1", check=False)
    assert "unreachable" in unreachable.stderr


@pytest.mark.parametrize("internal", [False, True])
def test_without_a_parent_endpoints_have_each_other_and_nobody_else(machine: Host, internal: bool) -> None:
    network = made(machine, "alone", SUBNET4, SUBNET6, internal=internal)
    a, b = join(machine, "a", "alone"), join(machine, "b", "alone")
    assert a.pings(b.ip4)
    assert a.pings(b.ip6)
    assert not a.pings(ROUTER4, wait_s=1)
    assert not a.pings(HOST4, wait_s=1)
    assert status(machine, "alone")["linkspan.parent"] == f"lm-{network[:12]}"
    assert status(machine, "alone")["linkspan.parent_made"] == "isolated"


def test_an_isolated_parent_has_the_networks_mtu(machine: Host) -> None:
    made(machine, "alone", SUBNET4, **{MTU.replace(".", "__"): "9000"})
    a, b = join(machine, "a", "alone"), join(machine, "b", "alone")
    assert details(a)["mtu"] == 9000
    assert a.pings(b.ip4, "-Mdo", "-s8972")


def test_a_passthru_endpoint_is_the_parent_to_the_outside_and_there_is_one(machine: Host) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT, macvlan_mode="passthru")
    before = parent_state(machine)[0]["address"]
    a = join(machine, "a", "pub")
    assert a.mac == before == parent_state(machine)[0]["address"]
    assert a.pings(ROUTER4)
    second = machine.ask("POST", "/linkspan/sandboxes", {"Name": "rival", "Networks": [{"Network": "pub"}]})
    assert second.status == 503
    assert f"in mode passthru one has the parent {PARENT} to itself" in second.message
    assert machine.ask("GET", "/linkspan/sandboxes/rival").status == 404


def test_a_sub_interface_is_made_for_its_networks_and_goes_with_the_last(machine: Host, net: Lan) -> None:
    require("vlan")
    router = net.router.place
    router.run("sh", "-c", "ip link add link eth0 name eth0.50 type vlan id 50 && ip link set eth0.50 up")
    router.run("ip", "addr", "add", "10.50.0.1/24", "dev", "eth0.50")
    parent = f"{PARENT}.50"
    made(machine, "one", "10.50.0.0/24", parent=parent)
    made(machine, "two", "10.51.0.0/24", parent=parent)
    assert status(machine, "one")["linkspan.parent_made"] == "802.1Q sub-interface"
    a = join(machine, "a", "one")
    assert a.pings("10.50.0.1")
    machine.ask("DELETE", "/linkspan/sandboxes/a?force=1")
    for network, is_left in (("one", True), ("two", False)):
        assert machine.ask("DELETE", f"/networks/{network}").status == 204
        assert any(link["ifname"] == parent for link in machine.ip("link")) == is_left
    router.run("ip", "link", "delete", "eth0.50")


def test_a_sub_interface_that_the_host_had_stays(machine: Host) -> None:
    require("vlan")
    parent = f"{PARENT}.60"
    machine.run("ip", "link", "add", "link", PARENT, "name", parent, "type", "vlan", "id", "60")
    made(machine, "one", "10.60.0.0/24", parent=parent)
    assert "linkspan.parent_made" not in status(machine, "one")
    assert machine.ask("DELETE", "/networks/one").status == 204
    machine.run("ip", "link", "delete", parent)


# -- what is refused -------------------------------------------------------------------------------------------------


def world(machine: Host) -> Any:
    """Devices, and what the API has."""
    links = sorted((link["ifname"], link["address"], link["flags"], link["mtu"]) for link in machine.ip("link"))
    lists = [machine.ask("GET", path).json for path in ("/networks", "/linkspan/sandboxes?all=1")]
    return links, lists


@contextmanager
def unchanged(machine: Host) -> Iterator[None]:
    before = world(machine)
    yield
    assert world(machine) == before


@pytest.mark.parametrize(
    ("options", "status_code", "says"),
    [
        ({"parent": "eth7"}, 404, "parent eth7 does not exist on this host"),
        ({"parent": "eth7.50"}, 404, "parent eth7.50 does not exist on this host, nor does eth7"),
        ({"parent": "lo"}, 400, "parent lo is the loopback"),
        ({"parent": "lo.50"}, 400, "parent lo.50 cannot be made: lo is no Ethernet device"),
        ({"parent": "port0"}, 409, "parent port0 is a port of another device"),
        ({"parent": "mv0"}, 400, "parent mv0 is a macvlan device itself"),
        ({"parent": "off0.50"}, 409, "parent off0.50 cannot be made: off0 is down"),
        ({"parent": "nickname"}, 400, "parent nickname is another name of device port0"),
        ({"parent": "eth1.0"}, 400, "0 is no VLAN id"),
        ({"parent": "eth1.4095"}, 400, "4095 is no VLAN id"),
        ({"parent": "eth1/50"}, 400, "invalid device name 'eth1/50'"),
        ({"parent": "a-name-of-16-char"}, 400, "invalid device name"),
        (
            {"parent": PARENT, "macvlan_mode": "Bridge"},
            400,
            "invalid value 'Bridge' for option macvlan_mode: use one of",
        ),
        ({"macvlan_mode": "source"}, 400, "use one of bridge, passthru, private, vepa"),
        (
            {"parent": PARENT, "linkspan__colour": "blue"},
            400,
            "unknown option 'linkspan.colour' for the driver macvlan",
        ),
        ({"parent": PARENT, MTU.replace(".", "__"): "1501"}, 400, "more than the MTU of the parent eth1: 1500"),
        ({"parent": PARENT, MTU.replace(".", "__"): "12"}, 400, "use a number of bytes from 68 to 65535"),
    ],
)
def test_a_parent_or_option_that_cannot_be_is_refused(
    machine: Host, options: dict[str, str], status_code: int, says: str
) -> None:
    machine.run("ip", "link", "add", "sw0", "type", "bridge")
    machine.run("ip", "link", "add", "port0", "type", "veth", "peer", "name", "off0")
    machine.run("sh", "-c", "ip link set port0 master sw0; ip link property add dev port0 altname nickname")
    machine.run("ip", "link", "add", "link", "off0", "name", "mv0", "type", "macvlan")
    try:
        with unchanged(machine):
            refused = create(machine, "bad", "10.99.0.0/24", **options)
            assert (refused.status, says in refused.message) == (status_code, True), refused.message
    finally:
        machine.run("sh", "-c", "ip link delete port0; ip link delete sw0")


def test_a_sub_interface_that_this_kernel_cannot_make_is_refused(machine: Host) -> None:
    if (
        machine.run(
            "ip", "link", "add", "link", PARENT, "name", "v9", "type", "vlan", "id", "9", check=False
        ).returncode
        == 0
    ):
        machine.run("ip", "link", "delete", "v9")
        pytest.skip("this kernel has 802.1Q")
    with unchanged(machine):
        refused = create(machine, "bad", "10.99.0.0/24", parent=f"{PARENT}.50")
    assert refused.status == 403
    assert f"parent {PARENT}.50 cannot be made: this kernel has no 802.1Q sub-interfaces" in refused.message


def test_the_isolated_parent_of_another_network_is_refused(machine: Host) -> None:
    mark = f"lm-{made(machine, 'alone', SUBNET4)[:12]}"
    with unchanged(machine):
        refused = create(machine, "bad", "10.99.0.0/24", parent=mark)
    assert (refused.status, "is the isolated parent of another network" in refused.message) == (400, True)


def test_a_subnet_belongs_to_one_network_on_a_parent(machine: Host) -> None:
    made(machine, "one", SUBNET4, SUBNET6, parent=PARENT)
    made(machine, "beside", "192.168.33.0/24", "fd00:33::/64", parent=PARENT)
    for subnet in (SUBNET4, "192.168.32.128/25", "192.168.0.0/16", SUBNET6, "fd00::/16"):
        with unchanged(machine):
            refused = create(machine, "bad", *(["10.99.0.0/24"] if ":" in subnet else []), subnet, parent=PARENT)
        assert refused.status == 403
        assert "Pool overlaps with other one on this address space" in refused.message, subnet
    with unchanged(machine):
        body = {"Name": "bad", "Driver": "bridge", "IPAM": {"Config": [{"Subnet": SUBNET4}]}}
        assert machine.ask("POST", "/networks/create", body).status == 403


@pytest.mark.parametrize(("first", "second"), [("passthru", "passthru"), ("passthru", "bridge"), ("vepa", "passthru")])
def test_a_passthru_network_shares_its_parent_with_no_other(machine: Host, first: str, second: str) -> None:
    made(machine, "first", SUBNET4, parent=PARENT, macvlan_mode=first)
    with unchanged(machine):
        refused = create(machine, "bad", "10.99.0.0/24", parent=PARENT, macvlan_mode=second)
    assert refused.status == 409
    assert f"parent {PARENT} has network first in mode {first}" in refused.message


def test_a_mac_that_is_in_use_is_refused(machine: Host) -> None:
    """By another endpoint of the network, by one of another network on the parent, or by the parent."""
    made(machine, "one", SUBNET4, parent=PARENT)
    made(machine, "two", "192.168.33.0/24", parent=PARENT)
    made(machine, "elsewhere", "192.168.34.0/24")
    a = join(machine, "a", "one", MacAddress="02:11:22:33:44:55")
    assert a.mac == "02:11:22:33:44:55"
    parents_own = machine.ip("link", "show", "dev", PARENT)[0]["address"]
    for network, mac, says in (
        ("one", "02:11:22:33:44:55", "MAC address 02:11:22:33:44:55 is in use on network one"),
        ("two", "02-11-22-33-44-55", "MAC address 02:11:22:33:44:55 is in use"),
        ("two", parents_own.upper(), f"MAC address {parents_own} is in use by the parent {PARENT}"),
    ):
        with unchanged(machine):
            body = {"Name": "b", "Networks": [{"Network": network, "MacAddress": mac}]}
            refused = machine.ask("POST", "/linkspan/sandboxes", body)
        assert (refused.status, says in refused.message) == (409, True), refused.message
    assert join(machine, "b", "elsewhere", MacAddress=a.mac).mac == a.mac


def test_a_mac_that_somebody_elses_device_on_the_parent_has_is_refused(machine: Host) -> None:
    made(machine, "one", SUBNET4, parent=PARENT)
    machine.run("ip", "link", "add", "link", PARENT, "name", "mv0", "address", "02:11:22:33:44:66", "type", "macvlan")
    machine.run("ip", "link", "set", "mv0", "up")
    try:
        with unchanged(machine):
            body = {"Name": "b", "Networks": [{"Network": "one", "MacAddress": "02:11:22:33:44:66"}]}
            refused = machine.ask("POST", "/linkspan/sandboxes", body)
        assert refused.status == 409
        assert f"MAC address 02:11:22:33:44:66 is in use on {PARENT}: choose another" in refused.message
    finally:
        machine.run("ip", "link", "delete", "mv0")


def test_a_mac_that_is_not_the_parents_cannot_be_had_in_mode_passthru(machine: Host) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT, macvlan_mode="passthru")
    with unchanged(machine):
        body = {"Name": "b", "Networks": [{"Network": "pub", "MacAddress": "02:11:22:33:44:77"}]}
        refused = machine.ask("POST", "/linkspan/sandboxes", body)
    assert (refused.status, "in mode passthru an endpoint has that of the parent" in refused.message) == (400, True)


def test_a_parent_that_has_become_a_port_takes_no_endpoint(machine: Host) -> None:
    """The kernel gives a device to one user at a time; networks that are there already see it when they are joined."""
    machine.run("ip", "link", "add", "eth8", "type", "veth", "peer", "name", "far8")
    made(machine, "one", "10.88.0.0/24", parent="eth8")
    machine.run("sh", "-c", "ip link add sw0 type bridge; ip link set eth8 master sw0")
    try:
        with unchanged(machine):
            refused = machine.ask("POST", "/linkspan/sandboxes", {"Name": "b", "Networks": [{"Network": "one"}]})
        assert refused.status == 409
        assert "parent eth8 of network one is in use by something else than macvlan devices" in refused.message
    finally:
        machine.run("sh", "-c", "ip link delete eth8; ip link delete sw0")


def test_a_network_whose_addresses_are_all_taken_takes_no_more(machine: Host) -> None:
    made(machine, "small", "192.168.32.0/30", parent=PARENT)
    join(machine, "a", "small")
    with unchanged(machine):
        full = machine.ask("POST", "/linkspan/sandboxes", {"Name": "b", "Networks": [{"Network": "small"}]})
    assert full.status == 503


# -- what outlives what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_endpoints_keep_talking_without_linkspand_and_after_its_next_start(
    machine: Host, net: Lan, how: signal.Signals
) -> None:
    made(machine, "pub", SUBNET4, SUBNET6, parent=PARENT)
    made(machine, "alone", "10.44.0.0/24")
    a, b = join(machine, "a", "pub"), join(machine, "b", "pub")
    machine.ask("POST", "/networks/alone/connect", {"Container": "a"})
    before = [inside(station) for station in (a, b)]
    pinging = subprocess.Popen(a.command("ping", "-q", "-i0.02", b.ip4), stdout=subprocess.PIPE, text=True)
    machine.stop(how)
    assert a.pings(ROUTER4)
    assert a.pings(b.ip6)
    machine.start("--metrics-listen", "off")
    pinging.send_signal(signal.SIGINT)
    said, _ = pinging.communicate(timeout=10)
    sent, received = re.findall(r"(\d+) (?:packets transmitted|received)", said)
    assert int(sent) > 10
    assert int(sent) - int(received) <= 1  # the last may still be on its way
    assert [inside(station) for station in (a, b)] == before
    assert a.pings(ROUTER6)


def inside(station: Station) -> str:
    """Devices, addresses and routes, without the state that a new device has until the kernel gets to it."""
    shown = "".join(station.run("ip", *words).stdout for words in (("-d", "addr"), ("route",), ("-6", "route")))
    return shown.replace("state UNKNOWN", "state UP")


def test_a_device_that_a_sandbox_lost_or_renamed_is_taken_away_with_the_endpoint(machine: Host) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT)
    a = join(machine, "a", "pub")
    a.run("sh", "-c", "ip link set eth0 down; ip link set eth0 name mine")
    assert machine.ask("POST", "/networks/pub/disconnect", {"Container": "a"}).status == 200
    assert [link["ifname"] for link in a.ip("link")] == ["lo"]
    assert machine.ask("POST", "/networks/pub/connect", {"Container": "a"}).status == 200
    a.run("ip", "link", "delete", "eth0")
    machine.stop()
    machine.start("--metrics-listen", "off")
    assert a.pings(ROUTER4)


def test_a_sandbox_that_runs_again_has_its_endpoint(machine: Host) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT)
    for _ in range(2):
        said = machine.linkspan(
            "run", "--rm", "--net", "pub", "--ip", "192.168.32.77", "--", "ping", "-c1", "-W5", ROUTER4
        )
        assert "1 received" in said.stdout
