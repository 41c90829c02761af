"""A sandbox that sends without end to everybody: the others get as much of it as its network's limit allows."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import pytest
from scapy.layers.l2 import Ether

from tests.hosts import Host
from tests.netns.lan import PARENT, Lan, lan_host, lan_net
from tests.netns.test_macvlan import SUBNET4, create, join, made, status
from tests.traffic import BROADCAST, Place, tallies

pytestmark = pytest.mark.root
net, machine = lan_net, lan_host

LIMIT, SENT = 50, 400
OPTION = "linkspan.broadcast_limit"
TEXT = b"for everybody"


def storm(source: Place, *others: Place, to: str = BROADCAST, mac: str = "") -> tuple[list[int], float]:
    """Sends many packets; how many of them each of the others has got, and how many the limit lets through by then."""
    frame = bytes(Ether(src=mac or source.mac, dst=to, type=0x88B5) / TEXT)
    wires = [other.wire() for other in others]
    with source.wire() as wire:
        begin = time.monotonic()
        for _ in range(SENT):
            with suppress(OSError):  # ENOBUFS: dropped at the egress
                wire.send(frame)
        allowed = LIMIT * (1 + time.monotonic() - begin)
    got = []
    for wire in wires:
        with wire:
            got.append(sum(TEXT in heard for heard in wire.until_idle()))
    return got, allowed


def storms(machine: Host, sandbox: str) -> int:
    return tallies(machine, sandbox).get(("drops", "storm"), 0)


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_others_and_the_wire_get_what_the_limit_allows(net: Lan, machine: Host, mode: str) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT, macvlan_mode=mode, linkspan__broadcast_limit=str(LIMIT))
    assert status(machine, "pub")[OPTION] == f"{LIMIT} packets/s"
    a, b = join(machine, "a", "pub"), join(machine, "b", "pub")
    (local, outside), allowed = storm(a, b, net.router.place)
    assert LIMIT - 10 <= outside <= allowed  # the device may have said something itself
    assert local == (outside if mode == "bridge" else 0)
    assert outside + storms(machine, "a") == SENT
    time.sleep(0.1)  # for the next few packets
    assert a.pings(net.router.ip4)


def test_a_mac_of_ones_own_making_is_no_way_round(net: Lan, machine: Host) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT, linkspan__broadcast_limit=str(LIMIT))
    a, b = join(machine, "a", "pub"), join(machine, "b", "pub")
    (local,), allowed = storm(a, b, mac="02:de:ad:be:ef:00")
    assert local <= allowed


def test_multicast_that_somebody_asked_for_is_not_limited(net: Lan, machine: Host) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT, linkspan__broadcast_limit=str(LIMIT))
    a = join(machine, "a", "pub")
    (outside,), _ = storm(a, net.router.place, to="01:00:5e:01:02:03")
    assert outside == SENT


@pytest.mark.parametrize("options", [{OPTION: "0"}, {"linkspan.accel": "off"}], ids=str)
def test_without_a_limit_others_get_everything(net: Lan, machine: Host, options: dict[str, str]) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT, **options)
    assert status(machine, "pub")[OPTION] == "none"
    a, b = join(machine, "a", "pub"), join(machine, "b", "pub")
    got, _ = storm(a, b, net.router.place)
    assert got == [SENT, SENT]


def test_the_limit_goes_on_without_linkspand_and_after_its_next_start(net: Lan, machine: Host) -> None:
    made(machine, "pub", SUBNET4, parent=PARENT, linkspan__broadcast_limit=str(LIMIT))
    a, b = join(machine, "a", "pub"), join(machine, "b", "pub")
    machine.stop(signal.SIGKILL)
    (local,), allowed = storm(a, b)
    assert local <= allowed
    machine.start()
    before = storms(machine, "a")
    (local,), allowed = storm(a, b)
    assert local <= allowed
    assert storms(machine, "a") - before == SENT - local


@pytest.mark.parametrize("value", ["", "-1", "1.5", "many", "1000001", "٣"])
def test_what_is_no_rate_is_refused(machine: Host, value: str) -> None:
    reply = create(machine, "pub", SUBNET4, parent=PARENT, linkspan__broadcast_limit=value)
    assert reply.status == 400
    assert reply.message == (
        f"invalid value {value!r} for option {OPTION}: use packets per second, up to 1000000, or 0 for no limit"
    )
