"""What doctor finds on a host that somebody has put out of order, and that it mends what is Linkspan's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
from pyroute2 import NFCTSocket
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from datapath import accel, bpf, netns
from tests.hosts import Host, host
from tests.netns.conftest import linkspan_host
from tests.netns.lab import Lab
from tests.netns.strangers import PASS, stranger
from tests.require import require
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("doctor")

UPLINK = "up0"
PORTS: Final = 1 << 16


def wire_up(machine: Host) -> None:
    """An uplink with a default route: a bridge, which has the offloads of a card."""
    machine.run("ip", "link", "add", UPLINK, "type", "bridge")
    machine.run("ip", "address", "add", "192.0.2.1/24", "dev", UPLINK)
    machine.run("ip", "link", "set", UPLINK, "up")
    machine.run("ip", "route", "add", "default", "via", "192.0.2.254")


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    with linkspan_host(before=wire_up) as made:
        yield made
        made.run("ip", "link", "delete", UPLINK)


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    made = Lab(machine, "net", EnableIPv6=True, IPAM={"Config": [{"Subnet": "10.9.0.0/24"}, {"Subnet": "fd09::/64"}]})
    assert made.a.pings(made.b.ip4)
    return made


def findings(machine: Host) -> list[Any]:
    """All but notes."""
    return serious(machine.api("GET", "/linkspan/doctor")["findings"])


def serious(found: list[Any]) -> list[Any]:
    assert all(each["why"] and each["mend"] for each in found)
    return [each for each in found if each["severity"] != "note"]


def found(machine: Host, code: str) -> list[Any]:
    return [each for each in findings(machine) if each["code"] == code]


def mend(machine: Host) -> tuple[list[Any], list[Any]]:
    """(what was mended, what is left but notes)"""
    result = machine.api("POST", "/linkspan/doctor/mend")
    return result["mended"], serious(result["findings"])


def inside(lab: Lab, *command: str) -> None:
    lab.host.run("nsenter", f"--net={lab.a.netns}", *command)


def map_path(machine: Host, name: str) -> str:
    (path,) = machine.run("find", str(machine.bpffs / "linkspan"), "-path", f"*/maps/{name}").stdout.split()
    return path


def first_key(machine: Host, name: str) -> list[str]:
    entries = json.loads(machine.run("bpftool", "-j", "map", "dump", "pinned", map_path(machine, name)).stdout)
    return list(entries[0]["key"])


def delete_entry(name: str) -> Callable[[Lab], None]:
    def delete(lab: Lab) -> None:
        key = first_key(lab.host, name)
        lab.host.run("bpftool", "map", "delete", "pinned", map_path(lab.host, name), "key", *key)

    return delete


def break_entry(lab: Lab) -> None:
    """Has the programs deliver what is for an endpoint to the loopback device."""
    key = first_key(lab.host, "fdb")
    value = ["1", "0", "0", "0", "0", "0", "0", "0"]
    lab.host.run("bpftool", "map", "update", "pinned", map_path(lab.host, "fdb"), "key", *key, "value", *value)


def add_entry(lab: Lab) -> None:
    key = [*first_key(lab.host, "fdb")[:4], "2", "0", "0", "0", "0", "9", "0", "0"]
    value = ["1", "0", "0", "0", "0", "0", "0", "0"]
    lab.host.run("bpftool", "map", "update", "pinned", map_path(lab.host, "fdb"), "key", *key, "value", *value)


def on_host(*command: str) -> Callable[[Lab], None]:
    """A command in which {port} is a's host end, {bridge} the network's bridge, {ip} and {mac} are a's."""

    def run(lab: Lab) -> None:
        words = {"port": lab.a.host_ifname, "bridge": lab.bridge, "ip": lab.a.ip4, "mac": lab.a.mac}
        lab.host.run(*(word.format(**words) for word in command))

    return run


def in_sandbox(*command: str) -> Callable[[Lab], None]:
    return lambda lab: inside(lab, *(word.format(ip=lab.a.ip4) for word in command))


BROKEN = {
    "gateway's address": ("address-missing", on_host("ip", "-4", "address", "flush", "dev", "{bridge}")),
    "bridge down": ("device-down", on_host("ip", "link", "set", "{bridge}", "down")),
    "port down": ("device-down", on_host("ip", "link", "set", "{port}", "down")),
    "port elsewhere": ("device-elsewhere", on_host("ip", "link", "set", "{port}", "nomaster")),
    "port learns": ("port-setting", on_host("bridge", "link", "set", "dev", "{port}", "learning", "on")),
    "port's MTU": ("device-mtu", on_host("ip", "link", "set", "{port}", "mtu", "1400")),
    "bridge's MAC": ("device-mac", on_host("ip", "link", "set", "{bridge}", "address", "02:00:00:00:00:99")),
    "FDB": ("fdb-missing", on_host("bridge", "fdb", "del", "{mac}", "dev", "{port}", "master")),
    "host's neighbour": ("neighbour-missing", on_host("ip", "neighbour", "del", "{ip}", "dev", "{bridge}")),
    "host end": ("device-missing", on_host("ip", "link", "delete", "{port}")),
    "address": ("address-missing", in_sandbox("ip", "address", "del", "{ip}/24", "dev", "eth0")),
    "IPv6 address": ("address-missing", in_sandbox("ip", "-6", "address", "flush", "dev", "eth0", "scope", "global")),
    "route": ("route-missing", in_sandbox("ip", "route", "del", "default")),
    "sandbox's MTU": ("device-mtu", in_sandbox("ip", "link", "set", "eth0", "mtu", "1400")),
    "sandbox's MAC": ("device-mac", in_sandbox("ip", "link", "set", "eth0", "address", "02:00:00:00:00:98")),
    "sandbox's device down": ("device-down", in_sandbox("ip", "link", "set", "eth0", "down")),
    "map ep_by_if": ("map-missing", delete_entry("ep_by_if")),
    "map fdb": ("map-missing", delete_entry("fdb")),
    "map neigh4": ("map-missing", delete_entry("neigh4")),
    "map fdb, other": ("map-wrong", break_entry),
    "map fdb, more": ("map-extra", add_entry),
    "program": ("program-missing", on_host("tc", "qdisc", "del", "dev", "{port}", "clsact")),
    "program of all": ("program-missing", on_host("tc", "filter", "del", "block", str(accel.BLOCK_OUT))),
    "set": ("firewall-missing", on_host("nft", "flush", "set", "inet", "linkspan", "masquerade4")),
    "rules": ("firewall-missing", on_host("nft", "flush", "chain", "inet", "linkspan", "forward")),
    "element": ("firewall-extra", on_host("nft", "add element inet linkspan internal {{ \"nobody0\" }}")),
}  # fmt: skip


def test_nothing_is_wrong_on_a_healthy_host(lab: Lab) -> None:
    assert findings(lab.host) == []
    assert mend(lab.host) == ([], [])


@pytest.mark.parametrize("name", BROKEN)
def test_what_differs_from_the_records_is_found_and_mended(lab: Lab, name: str) -> None:
    code, spoil = BROKEN[name]
    spoil(lab)
    before = findings(lab.host)
    assert {each["mend"] for each in before if each["code"] == code} == {"linkspan doctor --mend"}, before
    mended, left = mend(lab.host)
    assert (code in {each["code"] for each in mended}, left) == (True, [])
    assert lab.a.pings(lab.b.ip4)
    assert lab.a.pings(lab.b.ip6)


def test_a_lost_pin_is_pinned_again(lab: Lab) -> None:
    path = map_path(lab.host, "ep_counters")
    before = json.loads(lab.host.run("bpftool", "-j", "map", "show", "pinned", path).stdout)["id"]
    lab.host.run("rm", path)
    (lost,) = found(lab.host, "pin-missing")
    assert lost["where"] == path
    assert mend(lab.host) == ([lost], [])
    assert json.loads(lab.host.run("bpftool", "-j", "map", "show", "pinned", path).stdout)["id"] == before


def test_an_address_that_is_not_linkspans_is_told_of_and_left(lab: Lab) -> None:
    lab.host.run("ip", "address", "add", "10.9.0.77/24", "dev", lab.bridge)
    (extra,) = findings(lab.host)
    assert extra["code"] == "address-extra"
    assert mend(lab.host) == ([], [extra])
    lab.host.run(*extra["mend"].split())
    assert findings(lab.host) == []


def test_anothers_device_with_a_bridges_name_is_told_of_and_left(lab: Lab) -> None:
    lab.host.run("ip", "link", "delete", lab.bridge)
    lab.host.run("ip", "link", "add", lab.bridge, "type", "veth", "peer", "name", "others")
    as_made = lab.host.ip("link", "show", "dev", lab.bridge)
    (taken,) = found(lab.host, "name-taken")
    assert (taken["where"], "it is no bridge device, but veth" in taken["what"]) == (lab.bridge, True)
    assert taken["mend"] == "rename or delete that device, then linkspan doctor --mend"
    mended, left = mend(lab.host)
    assert taken not in mended
    assert taken in left
    assert lab.host.ip("link", "show", "dev", lab.bridge) == as_made
    lab.host.run("ip", "link", "delete", lab.bridge)
    assert mend(lab.host)[1] == []
    assert lab.a.pings(lab.b.ip4)


# -- what is attached ----------------------------------------------------------------------------------------------


def at_ingress(machine: Host, ifname: str) -> list[Any]:
    attached = machine.api("GET", "/linkspan/doctor")["attached"]
    return [each for each in attached if (each["device"], each["hook"]) == (ifname, "ingress")]


def test_anothers_program_before_linkspans_is_told_of_with_its_holder(lab: Lab) -> None:
    require("tcx")
    port = lab.a.host_ifname
    with stranger(lab.host, port) as id_:
        (found_,) = findings(lab.host)
        assert (found_["code"], found_["where"]) == ("program-foreign", port)
        assert f"program stranger (id {id_}) at the ingress by tcx, before Linkspan's" in found_["what"]
        assert f"(process {os.getpid()})" in found_["what"]
        (row, own) = at_ingress(lab.host, port)
        assert (row["program"], row["owner"], own["program"], own["owner"]) == (
            "stranger", "other", "ls_ep_out", "linkspan",
        )  # fmt: skip
        assert any(f"(process {os.getpid()})" in each for each in row["held_by"])
        assert lab.a.pings(lab.b.ip4)
    until(lambda: findings(lab.host) == [])


def test_anothers_filter_behind_linkspans_is_a_note(lab: Lab, tmp_path: Path) -> None:
    pin = lab.host.bpffs / "stranger"
    fd = bpf.prog_load(PASS, bpf.ProgType.SCHED_CLS, name="stranger")
    bpf.obj_pin(fd, lab.host.seen(pin))
    os.close(fd)
    lab.host.run("tc", "filter", "add", "block", str(accel.BLOCK_OUT), "pref", "7", "bpf", "da", "pinned", str(pin))
    every = lab.host.api("GET", "/linkspan/doctor")["findings"]
    notes = [each for each in every if each["code"] == "program-foreign"]
    assert {each["where"] for each in notes} == {lab.a.host_ifname, lab.b.host_ifname}
    assert all(each["severity"] == "note" and "behind Linkspan's" in each["what"] for each in notes)
    mend(lab.host)
    shown = lab.host.run("tc", "filter", "show", "block", str(accel.BLOCK_OUT)).stdout
    assert "stranger" in shown
    lab.host.run("tc", "filter", "del", "block", str(accel.BLOCK_OUT), "pref", "7")
    lab.host.run("rm", str(pin))


def test_a_filter_that_was_made_by_hand_is_shown_with_who_has_loaded_it(lab: Lab, tmp_path: Path) -> None:
    """No process holds it: what tc was told is the qdisc's."""
    pin, port = lab.host.bpffs / "byhand", lab.a.host_ifname
    fd = bpf.prog_load(PASS, bpf.ProgType.SCHED_CLS, name="byhand")
    bpf.obj_pin(fd, lab.host.seen(pin))
    os.close(fd)
    lab.host.run("tc", "filter", "add", "block", str(accel.BLOCK_OUT), "pref", "9", "bpf", "da", "pinned", str(pin))
    shown = json.loads(lab.host.run("bpftool", "-j", "prog", "show", "pinned", str(pin)).stdout)
    _, row = at_ingress(lab.host, port)
    assert (row["by"], row["program"], row["id"], row["owner"]) == ("clsact", "byhand", shown["id"], "other")
    assert (row["held_by"], row["loaded_by"]) == ([], "root")
    loaded = datetime.fromisoformat(row["loaded"]).timestamp()
    assert abs(loaded - shown["loaded_at"]) <= 2
    text = lab.host.linkspan("doctor", "--attached").stdout
    owner = "other: held by no process, loaded by root at "
    assert re.search(rf"^{port} .* byhand +{row['id']} +{owner}", text, re.MULTILINE)
    lab.host.run("tc", "filter", "del", "block", str(accel.BLOCK_OUT), "pref", "9")
    lab.host.run("rm", str(pin))


def test_an_old_program_in_the_place_of_the_new_one_is_replaced(lab: Lab) -> None:
    fd = bpf.prog_load(PASS, bpf.ProgType.SCHED_CLS, name="ls_ep_out")
    pin = lab.host.bpffs / "old"
    bpf.obj_pin(fd, lab.host.seen(pin))
    os.close(fd)
    lab.host.run("tc", "filter", "del", "block", str(accel.BLOCK_OUT))
    lab.host.run("tc", "filter", "add", "block", str(accel.BLOCK_OUT), "pref", "1", "bpf", "da", "pinned", str(pin))
    lab.host.run("rm", str(pin))
    assert {each["where"] for each in found(lab.host, "program-outdated")} == {lab.a.host_ifname, lab.b.host_ifname}
    assert mend(lab.host)[1] == []


# -- the host ------------------------------------------------------------------------------------------------------

HOST = {
    "gro-off": (f"ethtool -K {UPLINK} gro off", f"ethtool -K {UPLINK} gro on"),
    "checksum-off": ("ethtool -K {port} tx off", ""),
    "gso-off": ("ethtool -K {port} gso off", ""),
    "forwarding-off": ("sysctl -qw net.ipv4.ip_forward=0", ""),
    "mtu-uplink": (f"ip link set {UPLINK} mtu 1400", f"ip link set {UPLINK} mtu 1500"),
    "pmtu-off": ("sysctl -qw net.ipv4.ip_no_pmtu_disc=1", ""),
    "forward-drop": (
        "nft add table inet hers\nadd chain inet hers watch {{ type filter hook forward priority 5; policy drop; }}",
        "nft delete table inet hers",
    ),
    "pmtu-blocked": (
        "nft add table inet hers\nadd chain inet hers entry {{ type filter hook input priority 5; }}\n"
        "add rule inet hers entry icmp type destination-unreachable drop",
        "nft delete table inet hers",
    ),
}


@pytest.mark.parametrize("code", HOST)
def test_traps_of_the_host_are_told_of_and_left_to_its_operator(lab: Lab, code: str) -> None:
    """Following the advice, where it is a command, is what ends it."""
    spoil, restore = HOST[code]
    program, _, rest = spoil.format(port=lab.a.host_ifname).partition(" ")
    if program == "nft":
        lab.host.run("nft", "-f", "-", input=rest)
    else:
        lab.host.run(program, *rest.split())
    mended, traps = mend(lab.host)
    assert (mended, {each["code"] for each in traps}) == ([], {code})
    lab.host.run(*(restore or traps[0]["mend"]).split())
    assert findings(lab.host) == []


def test_bridged_packets_that_pass_iptables_are_noted(lab: Lab) -> None:
    name = "net.bridge.bridge-nf-call-iptables"
    was = lab.host.run("sysctl", "-n", name).stdout.strip()
    for value, expected in (("1", [name]), ("0", [])):
        lab.host.run("sysctl", "-qw", f"{name}={value}")
        notes = [each for each in lab.host.api("GET", "/linkspan/doctor")["findings"] if name in each["what"]]
        assert [each["what"].split()[0] for each in notes] == expected
        assert {(each["code"], each["severity"]) for each in notes} <= {("bridge-netfilter", "note")}
        assert all(each["mend"].endswith(f"sysctl -w {name}=0") for each in notes)
    lab.host.run("sysctl", "-qw", f"{name}={was}")


def test_a_connection_table_that_is_nearly_full(lab: Lab) -> None:
    """Its size is the machine's: a namespace can neither make it smaller nor follow the advice, so it is emptied."""
    room = int(lab.host.run("sysctl", "-n", "net.netfilter.nf_conntrack_max").stdout)
    packet = Ether(src=lab.a.mac, dst=mac_of(lab)) / IP(src=lab.a.ip4, dst=lab.a.gateway()) / UDP(chksum=0)
    frame = bytearray(bytes(packet))
    with lab.a.wire() as wire:
        for number in range(int(room * 0.85)):
            frame[34:38] = (number // PORTS + 1).to_bytes(2) + (number % PORTS).to_bytes(2)
            wire.send(bytes(frame))
    (full,) = findings(lab.host)
    assert (full["code"], full["where"]) == ("conntrack-full", "host")
    assert re.fullmatch(rf"\d+ of {room} connections are tracked", full["what"])
    assert full["mend"] == f"sysctl -w net.netfilter.nf_conntrack_max={2 * room}"
    netns.call(f"/proc/{lab.host.pid}/ns/net", empty_connection_table)
    assert findings(lab.host) == []


def mac_of(lab: Lab) -> str:
    return str(lab.host.ip("link", "show", "dev", lab.bridge)[0]["address"])


def empty_connection_table() -> None:
    with NFCTSocket() as connections:
        connections.flush()


def test_a_fallback_says_what_to_do_and_ends_with_it() -> None:
    with host(bpffs=False) as machine:
        machine.start()
        (ebpf,) = (each for each in findings(machine) if each["where"] == "ebpf")
        assert (ebpf["code"], ebpf["severity"]) == ("fallback", "warning")
        (command,) = re.findall(r"mkdir -p \S+ && mount -t bpf bpf \S+", ebpf["what"])
        machine.run("sh", "-c", command)
        machine.stop()
        machine.start()
        assert findings(machine) == []


def test_a_sandbox_whose_namespace_is_gone_is_made_again_by_a_restart(lab: Lab) -> None:
    gone = lab.join("gone")
    lab.host.run("umount", gone.netns)
    (missing,) = found(lab.host, "sandbox-missing")  # the endpoint's devices have gone with it
    assert gone.name in missing["where"]
    assert "restart linkspand" in missing["mend"]
    lab.host.stop()
    lab.host.start()
    assert findings(lab.host) == []
    assert lab.a.pings(gone.ip4)
    lab.host.api("DELETE", f"/linkspan/sandboxes/{gone.name}?force=1")


def test_the_command_shows_findings_mends_and_says_how_it_went(lab: Lab) -> None:
    lab.host.run("ip", "address", "del", f"{lab.a.gateway()}/24", "dev", lab.bridge)
    done = lab.host.linkspan("doctor", check=False)
    assert done.returncode == 1
    assert f"error address-missing: {lab.bridge}: address {lab.a.gateway()}/24 is missing" in done.stdout
    assert "mend: linkspan doctor --mend" in done.stdout
    done = lab.host.linkspan("doctor", "--mend", "--attached")
    assert f"mended: {lab.bridge}: address {lab.a.gateway()}/24 is missing" in done.stdout
    assert done.stdout.endswith("Nothing is wrong.\n")
    assert any(
        line.split()[:4] == [lab.a.host_ifname, "ingress", "clsact", "ls_ep_out"] for line in done.stdout.splitlines()
    )
