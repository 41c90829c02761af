"""ls_station_out: what a station sends to everybody, up to its limit. A test run has class 0, so it is slot 0's."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from scapy.layers.l2 import Ether

from tests.bpf.lab import SHOT, UNSPEC, A, Host
from tests.bpf.packets import PAYLOAD, SAMPLES
from tests.bpf.parents import Seen
from tests.waiting import until

pytestmark = pytest.mark.root

FIRST: Host = replace(A, slot=0)
FOR_ALL = ("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01")
FOR_SOME = ("01:00:5e:00:00:02", "01:00:5e:00:01:01", "33:33:00:00:00:02", "33:33:ff:00:00:01", "01:80:c2:00:00:00",
            "02:42:0a:09:00:63", "fe:ff:ff:ff:ff:ff", "ff:ff:ff:ff:ff:fe")  # fmt: skip
DROPPED = {(0, "storm"): 1}


def to(mac):
    return Ether(src=FIRST.mac, dst=mac) / PAYLOAD


@pytest.mark.parametrize("mac", FOR_ALL)
def test_what_everybody_gets_passes_up_to_the_limit(parent, mac):
    parent.maps.limit_put(0, 5)
    for _ in range(5):
        assert parent.run("ls_station_out", to(mac)) == Seen(UNSPEC, bytes(to(mac)), {})
    assert parent.run("ls_station_out", to(mac)) == Seen(SHOT, bytes(to(mac)), DROPPED)


def test_the_limit_is_one_for_all_that_everybody_gets_and_what_is_dropped_counts_for_nothing(parent):
    parent.maps.limit_put(0, len(FOR_ALL))
    begin = time.monotonic()
    assert [parent.run("ls_station_out", to(mac)).retval for mac in FOR_ALL] == [UNSPEC] * 3
    verdicts = [parent.run("ls_station_out", to(FOR_ALL[0])).retval for _ in range(50)]
    let_through = len(FOR_ALL) * (time.monotonic() - begin)  # a share of a second brings its share of the limit
    assert verdicts.count(SHOT) == 50 - verdicts.count(UNSPEC) >= 50 - let_through
    until(lambda: parent.run("ls_station_out", to(FOR_ALL[0])).retval == UNSPEC, within_s=2)


@pytest.mark.parametrize("mac", FOR_SOME)
def test_what_not_everybody_gets_has_no_limit(parent, mac):
    parent.maps.limit_put(0, 1)
    for _ in range(10):
        assert parent.run("ls_station_out", to(mac)) == Seen(UNSPEC, bytes(to(mac)), {})


@pytest.mark.parametrize("name", SAMPLES)
def test_without_a_limit_everything_passes_unchanged(parent, name):
    parent.maps.limit_put(0, 0)
    for _ in range(3):
        assert parent.run("ls_station_out", SAMPLES[name]) == Seen(UNSPEC, bytes(SAMPLES[name]), {})
