"""The program on an uplink: beside others' filters and a macvlan parent's programs, and gone when nobody needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from datapath.uplink import Uplinks
from tests.netns.overlay import SEGMENT, UNDERLAY, Machine, Overlay
from tests.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overlay]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Overlay(tmp_path_factory.mktemp("overlay")) as made:
        made.accelerate(made.two)
        yield made


def restart(overlay: Overlay, attachment: str) -> Machine:
    """Node one with a fresh linkspand that attaches so."""
    overlay.accelerate(overlay.one, attachment=attachment)
    return overlay.one


def hooks(machine: Machine) -> tuple[str, list[str]]:
    """What tc(8) shows, which are no tcx links, and all pins and marks of what is attached to devices."""

    def pins() -> list[str]:
        return sorted(str(path) for kind in ("uplinks", "parents") for path in (machine.bpffs / kind).glob("*"))

    return machine.sh(f"tc qdisc show dev {UNDERLAY}; tc filter show dev {UNDERLAY} ingress"), machine.call(pins)


def names(machine: Machine, attachment: str) -> set[str]:
    shown, pins = hooks(machine)
    if attachment == "tcx":
        return {path.split("/")[-2] for path in pins if path.endswith("-in")}
    return {kind for kind, name in (("uplinks", "ls_uplink_in"), ("parents", "ls_parent_in")) if name in shown}


def is_fast(overlay: Overlay) -> bool:
    with overlay.growth() as grown:
        assert overlay.a.run("ping", "-n", "-c10", "-i0.01", overlay.b.ip4).returncode == 0
    return grown.get(("e1", "in_fast_packets"), 0) >= 10


@pytest.mark.parametrize("attachment", ["tcx", "clsact"])
def test_the_program_comes_with_the_first_peer_and_goes_with_the_last(overlay: Overlay, attachment: str) -> None:
    machine = overlay.one
    before = hooks(machine)
    restart(overlay, attachment)
    assert names(machine, attachment) == {"uplinks"}
    assert is_fast(overlay)
    machine.call(machine.peers.close, SEGMENT)
    until(lambda: hooks(machine) == before)
    assert machine.call(machine.peers.uplinks) == set()


@pytest.mark.parametrize("attachment", ["tcx", "clsact"])
def test_a_macvlan_parent_is_an_uplink_too(overlay: Overlay, attachment: str) -> None:
    """Whichever comes first, and whichever goes first."""
    machine = overlay.one
    before = hooks(machine)
    for overlay_first in (True, False):
        restart(overlay, attachment)
        uplinks = Uplinks(machine.accel.programs, attachment)  # type: ignore[arg-type]
        machine.call(uplinks.start, {}, {UNDERLAY: True})
        assert names(machine, attachment) == {"uplinks", "parents"}
        assert is_fast(overlay)
        if overlay_first:
            machine.call(machine.peers.close, SEGMENT)
            assert not is_fast(overlay)
            machine.call(uplinks.detach, UNDERLAY)
        else:
            machine.call(uplinks.detach, UNDERLAY)
            assert is_fast(overlay)
            machine.call(machine.peers.close, SEGMENT)
        until(lambda: hooks(machine) == before)


def test_a_device_that_takes_no_program_is_named_and_the_kernel_takes_in(overlay: Overlay) -> None:
    machine = overlay.one
    machine.sh(f"tc qdisc add dev {UNDERLAY} ingress")
    try:
        machine.load(attachment="clsact")
        machine.call(machine.accel.start, [each.port() for each in machine.endpoints])
        machine.call(machine.peers.start, [SEGMENT])
        overlay.synchronize(machine)
        [(what, why)] = machine.peers.fallbacks.items()
        assert what.startswith("uplink ")
        assert "clsact" in why
        assert not is_fast(overlay)
        machine.call(machine.peers.close, SEGMENT)
    finally:
        machine.sh(f"tc qdisc del dev {UNDERLAY} ingress")
