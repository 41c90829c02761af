"""What is remembered of the ways to other nodes is never older than what was last seen to change."""

from __future__ import annotations

from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from control.drivers import overlay_ways
from control.drivers.overlay_ways import Ways
from datapath.link_monitor import LinkChange
from datapath.underlay import Route

HERE, NODE = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
UPLINK = 5


class Kernel:
    """Its routes have `mtu`; `meanwhile` is done once, between reading one and giving the answer."""

    def __init__(self) -> None:
        self.mtu = 1500
        self.meanwhile: Any = lambda: None

    def route(self, address: IPv4Address, source: IPv4Address) -> Route:
        found = Route("eth0", UPLINK, b"\2\0\0\0\0\1", self.mtu, source, None, is_local=False)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(overlay_ways.underlay, "route", made.route)
    monkeypatch.setattr(overlay_ways.devices, "holder", lambda address: "eth0")
    monkeypatch.setattr(overlay_ways.devices, "mac", lambda ifname: b"\2\0\0\0\0\1")
    monkeypatch.setattr(overlay_ways.devices, "need_ifindex", lambda ifname: UPLINK)
    return made


@pytest.fixture
def ways(kernel: Kernel) -> Ways:
    return Ways(SimpleNamespace(address=HERE))  # type: ignore[arg-type]


def mtu(ways: Ways) -> int:
    way = ways.to(NODE)
    assert way is not None
    return way.mtu


def test_a_way_is_remembered_until_a_device_on_it_changes(kernel: Kernel, ways: Ways) -> None:
    assert mtu(ways) == 1500
    kernel.mtu = 1400
    assert not ways.forget([LinkChange(UPLINK + 1, "other", is_gone=False)])
    assert mtu(ways) == 1500
    assert ways.forget([LinkChange(UPLINK, "eth0", is_gone=False)])
    assert mtu(ways) == 1400


def test_what_was_looked_up_before_a_change_is_not_remembered(kernel: Kernel, ways: Ways) -> None:
    def change() -> None:
        kernel.mtu = 1400
        ways.forget([LinkChange(UPLINK, "eth0", is_gone=False)])

    kernel.meanwhile = change
    assert mtu(ways) == 1500
    assert mtu(ways) == 1400


def test_the_slower_of_two_does_not_undo_what_the_later_one_found(kernel: Kernel, ways: Ways) -> None:
    """A route was added in between, of which the kernel tells nobody."""

    def other() -> None:
        kernel.mtu = 1400
        assert mtu(ways) == 1400

    kernel.meanwhile = other
    assert mtu(ways) == 1500
    assert mtu(ways) == 1400
