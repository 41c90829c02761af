"""How the programs are attached, as tc and bpftool see it: by shared clsact blocks or tcx links, or not at all."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datapath.accel import BLOCK_IN, BLOCK_OUT
from datapath.loader import sources
from tests.hosts import ROOT, Host
from tests.netns.conftest import linkspan_host
from tests.netns.lab import Lab
from tests.require import require
from tests.traffic import Station, growth, tallies

pytestmark = pytest.mark.xdist_group("attachment")

BPF_LINK_TYPE_TCX = 11  # linux/bpf.h

# linkspand with its programs' sources in another directory.
OTHER_SOURCES = """
import sys
from pathlib import Path
from datapath.loader import sources
sources.DIRECTORY = Path(sys.argv.pop(1))
from control.daemon import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    return Lab(machine, "with")


@pytest.fixture(scope="module")
def bare(machine: Host) -> Lab:
    return Lab(machine, "without", accel="off")


@pytest.fixture
def tcx(tmp_path: Path) -> Iterator[Host]:
    """A host whose programs are attached by tcx links; `config` of it can be written anew."""
    require("tcx")
    with linkspan_host("--config", str(config(tmp_path, "tcx"))) as made:
        yield made


def config(directory: Path, attach: str) -> Path:
    path = directory / "linkspan.toml"
    path.write_text(f'[datapath]\nattach = "{attach}"\n')
    return path


def other_sources(directory: Path) -> Path:
    """A copy of bpf/ that differs by a comment, so its programs are others and do the same."""
    copy = directory / "bpf"
    shutil.copytree(ROOT / "bpf", copy)
    with (copy / "tc_endpoint_out.c").open("a") as source:
        source.write("/* changed */\n")
    with (copy / "tc_endpoint_in.c").open("a") as source:
        source.write("/* changed */\n")
    return copy


def filters(host: Host, block: int) -> list[Any]:
    """The programs of a shared block, as `tc -json` shows them."""
    shown = host.run("tc", "-json", "filter", "show", "block", str(block), check=False).stdout
    return [each["options"] for each in json.loads(shown or "[]") if "options" in each]


def attached(host: Host, ifname: str) -> list[Any]:
    """The clsact filters that bpftool finds on a device; it knows tcx from version 7.3 on."""
    (found,) = json.loads(host.run("bpftool", "-j", "net", "show", "dev", ifname).stdout)
    return [each for each in found["tc"] if each["kind"].startswith("clsact")]


def clsact(host: Host, ifname: str) -> list[Any]:
    return [
        q for q in json.loads(host.run("tc", "-json", "qdisc", "show", "dev", ifname).stdout) if q["kind"] == "clsact"
    ]


def pinned(host: Host, directory: str) -> list[str]:
    return sorted(
        host.run("find", str(host.bpffs / "linkspan"), "-path", f"*/{directory}/*", "-printf", "%f\\n").stdout.split()
    )


def program_id(host: Host, name: str) -> int:
    (pin,) = [each for each in pinned(host, "progs") if each.startswith(name)]
    path = host.bpffs / "linkspan/abi-1/progs" / pin
    return int(json.loads(host.run("bpftool", "-j", "prog", "show", "pinned", str(path)).stdout)["id"])


@contextmanager
def nothing_lost(sender: Station, target: str) -> Iterator[None]:
    """Fails when an echo request or its answer is lost meanwhile, but for the one that is under way at the end."""
    command = sender.command("ping", "-n", "-q", "-i0.002", target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
        try:
            yield
        finally:
            ping.send_signal(signal.SIGINT)
            report, _ = ping.communicate()
    sent, received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", report))
    assert sent > 100
    assert sent - received <= 1, report


def test_a_network_without_acceleration_has_no_program_on_its_devices(lab: Lab, bare: Lab) -> None:
    assert lab.a.pings(lab.b.ip4)
    for station in (bare.a, bare.b):
        assert attached(bare.host, station.host_ifname) == []
        assert clsact(bare.host, station.host_ifname) == []
    assert attached(bare.host, bare.bridge) == []
    before = tallies(bare.host, bare.a.name)
    assert bare.a.pings(bare.b.ip4)
    assert not [key for key in growth(before, tallies(bare.host, bare.a.name)) if "fast" in key]
    status = bare.host.api("GET", f"/networks/{bare.name}")["Status"]["Linkspan"]
    assert status["linkspan.path"].startswith("kernel bridge")


def test_all_devices_share_two_blocks_with_one_program_each(lab: Lab) -> None:
    for station in (lab.a, lab.b, lab.c):
        (qdisc,) = clsact(lab.host, station.host_ifname)
        assert (qdisc["ingress_block"], qdisc["egress_block"]) == (BLOCK_OUT, BLOCK_IN)
    for block, name in ((BLOCK_OUT, "ls_ep_out"), (BLOCK_IN, "ls_ep_in")):
        (only,) = filters(lab.host, block)
        assert only["bpf_name"] == name
        assert only["direct-action"] is True
        assert only["prog"]["id"] == program_id(lab.host, name)
    assert lab.host.api("GET", f"/networks/{lab.name}")["Status"]["Linkspan"]["linkspan.path"] == "eBPF (clsact)"


def test_a_changed_program_takes_the_place_of_the_old_one_while_traffic_flows(lab: Lab, tmp_path: Path) -> None:
    host = lab.host
    old = {name: program_id(host, name) for name in ("ls_ep_out", "ls_ep_in")}
    qdiscs = [clsact(host, station.host_ifname) for station in (lab.a, lab.b)]
    before = tallies(host, lab.a.name)
    for program in ([sys.executable, "-c", OTHER_SOURCES, str(other_sources(tmp_path))], ()):
        with nothing_lost(lab.a, lab.b.ip4):
            host.stop()
            host.start(program=program, env={"PYTHONPATH": str(ROOT)})
        new = {name: program_id(host, name) for name in old}
        for block, name in ((BLOCK_OUT, "ls_ep_out"), (BLOCK_IN, "ls_ep_in")):
            assert new[name] != old[name]
            assert [each["prog"]["id"] for each in filters(host, block)] == [new[name]]
        assert len(pinned(host, "progs")) == len(sources.PROGRAMS)
        old = new
    assert [clsact(host, station.host_ifname) for station in (lab.a, lab.b)] == qdiscs
    assert growth(before, tallies(host, lab.a.name))["packets", "out", "fast"] > 200


def test_blocks_go_with_the_last_device(make_host: Any) -> None:
    host = make_host()
    host.sandbox("only", "bridge")
    assert len(filters(host, BLOCK_OUT)) == 1
    host.api("DELETE", "/linkspan/sandboxes/only")
    assert filters(host, BLOCK_OUT) == filters(host, BLOCK_IN) == []


def links_of(host: Host, station: Station) -> dict[str, tuple[int, int]]:
    """(link id, program id) by direction, of the links that are pinned for a device."""
    found = {}
    for direction in ("in", "out"):
        path = host.bpffs / "linkspan/links" / f"{station.host_ifname}-{direction}"
        shown = json.loads(host.run("bpftool", "-j", "link", "show", "pinned", str(path)).stdout)
        assert shown["type"] in (BPF_LINK_TYPE_TCX, "tcx")
        found[direction] = shown["id"], shown["prog_id"]
    return found


def test_tcx_links_are_pinned_survive_a_restart_and_get_new_programs_in_place(tcx: Host, tmp_path: Path) -> None:
    lab = Lab(tcx, "links", EnableIPv6=True)
    settings = "--config", str(config(tmp_path, "tcx"))
    assert lab.a.pings(lab.b.ip4)
    first = links_of(tcx, lab.a)
    assert first["out"][1] == program_id(tcx, "ls_ep_out")
    assert first["in"][1] == program_id(tcx, "ls_ep_in")
    assert clsact(tcx, lab.a.host_ifname) == []
    pins = [f"{station.host_ifname}-{direction}" for station in (lab.a, lab.b) for direction in ("in", "out")]
    assert pinned(tcx, "links") == sorted(pins)

    with nothing_lost(lab.a, lab.b.ip4):
        tcx.stop(signal.SIGKILL)
        tcx.start(*settings)
        assert links_of(tcx, lab.a) == first
        tcx.stop()
        changed = [sys.executable, "-c", OTHER_SOURCES, str(other_sources(tmp_path))]
        tcx.start(*settings, program=changed, env={"PYTHONPATH": str(ROOT)})
    second = links_of(tcx, lab.a)
    assert {kind: link for kind, (link, _) in second.items()} == {kind: link for kind, (link, _) in first.items()}
    assert second["out"][1] == program_id(tcx, "ls_ep_out") != first["out"][1]
    assert second["in"][1] == program_id(tcx, "ls_ep_in") != first["in"][1]
    before = tallies(tcx, lab.a.name)
    for target in (lab.b.ip4, lab.b.ip6, str(lab.a.gateway())):
        assert lab.a.pings(target)
    assert growth(before, tallies(tcx, lab.a.name))["packets", "out", "fast"] >= 2
    tcx.api("DELETE", f"/linkspan/sandboxes/{lab.b.name}")
    assert pinned(tcx, "links") == sorted(pins[:2])


def test_the_way_of_attaching_can_be_changed_at_a_restart(tcx: Host, tmp_path: Path) -> None:
    """And each packet is still counted once."""
    lab = Lab(tcx, "both", EnableIPv6=True)
    assert lab.a.pings(lab.b.ip4)
    for attach in ("clsact", "tcx"):
        with nothing_lost(lab.a, lab.b.ip4):
            tcx.stop()
            tcx.start("--config", str(config(tmp_path, attach)))
        assert len(attached(tcx, lab.a.host_ifname)) == (2 if attach == "clsact" else 0)
        assert len(pinned(tcx, "links")) == (4 if attach == "tcx" else 0)
        before = tallies(tcx, lab.a.name)
        lab.a.run("ping", "-n", "-q", "-c10", "-i0.002", lab.b.ip4)
        grown = growth(before, tallies(tcx, lab.a.name))
        assert grown["packets", "out", "fast"] == grown["packets", "in", "fast"] == 10


def test_links_of_endpoints_that_are_gone_are_unpinned_at_start(tcx: Host, tmp_path: Path) -> None:
    """A linkspand that was killed while an endpoint left may have left its pins."""
    lab = Lab(tcx, "gone")
    kept = pinned(tcx, "links") if lab.a.pings(str(lab.a.gateway())) else []
    stray = tcx.bpffs / "linkspan/links" / "ls0123456789ab-out"
    link, _ = links_of(tcx, lab.a)["out"]
    tcx.stop()
    tcx.run("bpftool", "link", "pin", "id", str(link), str(stray))
    tcx.start("--config", str(config(tmp_path, "tcx")))
    assert pinned(tcx, "links") == kept
