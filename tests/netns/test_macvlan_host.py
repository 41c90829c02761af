"""The host and its macvlan endpoints: streams, counters, police, restarts, and what is shown of it."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.hosts import Host, wait_for
from tests.netns.lan import HOST4, PARENT, ROUTER4, Lan, lan_host, lan_net, parent_state
from tests.traffic import Station, iperf3

pytestmark = pytest.mark.root
net, machine = lan_net, lan_host
METRICS = "http://127.0.0.1:9478/metrics"


def join(machine: Host, name: str = "web", **options: str) -> Station:
    if not any(network["Name"] == "pub" for network in machine.api("GET", "/networks")):
        config = {"Subnet": "192.168.32.0/24", "Gateway": ROUTER4, "IPRange": "192.168.32.64/26"}
        body = {
            "Name": "pub",
            "Driver": "macvlan",
            "Options": {"parent": PARENT, "linkspan.conflict_check": "off", **options},
            "IPAM": {"Config": [config]},
        }
        machine.api("POST", "/networks/create", body)
    machine.sandbox(name, "pub")
    return Station(machine, name)


def packets(machine: Host, name: str) -> dict[tuple[str, str], int]:
    """By direction and path, from /metrics."""
    found = {}
    for line in machine.run("curl", "-sS", "--fail", METRICS).stdout.splitlines():
        if line.startswith("linkspan_endpoint_packets_total{") and f'sandbox="{name}"' in line:
            labels: Any = dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(","))
            found[labels["direction"].strip('"'), labels["path"].strip('"')] = int(line.split()[-1])
    return found


def full_packets(report: Any) -> int:
    """The fewest packets that what arrived fits in; iperf3 may end before all that it was asked for has."""
    count = int(report["end"]["sum_received"]["bytes"]) // (1500 - 20 - 20)
    assert count > 100
    return count


def pins(machine: Host) -> list[str]:
    """Of the links that hold programs on parents."""
    return machine.run("find", str(machine.bpffs / "linkspan/parents"), "-type", "f", check=False).stdout.split()


def status(machine: Host) -> dict[str, str]:
    return dict(machine.api("GET", "/networks/pub")["Status"]["Linkspan"])


def test_streams_pass_both_ways_and_are_counted_as_short_cuts(machine: Host, net: Lan) -> None:
    web = join(machine)
    assert status(machine)["linkspan.host_access"] == "on"
    before = packets(machine, "web")
    received = full_packets(iperf3(net.host.place, web, web.ip4, "-n", "5M"))
    sent = full_packets(iperf3(web, net.host.place, HOST4, "-n", "5M"))
    after = packets(machine, "web")
    grown = {key: after[key] - before[key] for key in after}
    assert grown["in", "fast"] >= received
    assert grown["out", "fast"] >= sent
    assert grown["in", "slow"] + grown["out", "slow"] < 50
    sent_out = full_packets(iperf3(web, net.router.place, ROUTER4, "-n", "1M"))
    later = packets(machine, "web")
    assert later["out", "slow"] - after["out", "slow"] >= sent_out
    assert later["out", "fast"] - after["out", "fast"] < 50


def test_a_forged_sender_is_dropped_and_counted(machine: Host, net: Lan) -> None:
    web = join(machine)
    web.run("ip", "addr", "add", "192.168.32.200/24", "dev", web.ifname)
    done = web.run("ping", "-c2", "-i0.2", "-W1", "-I", "192.168.32.200", ROUTER4, check=False)
    assert done.returncode != 0
    text = machine.run("curl", "-sS", "--fail", METRICS).stdout
    assert any('sandbox="web"' in line and "spoofed" in line for line in text.splitlines() if "drops_total{" in line)
    assert web.pings(ROUTER4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_host_and_endpoint_talk_on_while_linkspand_is_away_and_after(
    machine: Host, net: Lan, number: signal.Signals
) -> None:
    web = join(machine)
    assert net.host.place.pings(web.ip4)
    machine.stop(number)
    assert net.host.place.pings(web.ip4)
    assert web.pings(HOST4)
    machine.start()
    assert net.host.place.pings(web.ip4)
    db = join(machine, "db")
    assert net.host.place.pings(db.ip4)
    assert db.pings(web.ip4)


def test_the_programs_go_with_the_last_endpoint(machine: Host, net: Lan) -> None:
    before = parent_state(machine)
    join(machine)
    join(machine, "db")
    assert parent_state(machine) != before
    assert pins(machine)
    for name in ("web", "db"):
        machine.api("DELETE", f"/linkspan/sandboxes/{name}?force=1")
    wait_for(lambda: parent_state(machine) == before, "the parent to be as it was", 5)
    assert pins(machine) == []


def test_host_access_cannot_be_had_in_passthru(machine: Host) -> None:
    body = {
        "Name": "pub",
        "Driver": "macvlan",
        "Options": {"parent": PARENT, "macvlan_mode": "passthru", "linkspan.host_access": "on"},
        "IPAM": {"Config": [{"Subnet": "192.168.32.0/24"}]},
    }
    reply = machine.ask("POST", "/networks/create", body)
    assert reply.status == 400
    assert "passthru" in reply.json["message"]
