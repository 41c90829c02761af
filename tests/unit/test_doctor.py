"""Findings of doctor that no test host can be brought to, judged from a /proc, rules and offloads that were made up."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control.cluster_spec import ClusterSpec, NodeInfo
from control.doctor import firewall, host, mtu, offloads
from control.doctor.findings import KINDS, Finding, Severity
from control.doctor.view import View
from control.drivers.base import Join
from control.model import Endpoint, EndpointId, EndpointState, Network, NetworkId, NetworkState, SandboxId
from datapath import features
from datapath.features import Answer, Check
from datapath.offloads import Offloads
from tests.fake_cluster import FakeCluster
from tests.fakes import fake_controller
from tests.hosts import ROOT

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALL_ON = Offloads(tx_checksum=True, scatter_gather=True, tso=True, gso=True, gro=True, lro=False)


def network(driver: str = "bridge", **changes: Any) -> Network:
    settings = {"scope": "global" if driver == "overlay" else "local", **changes}
    return Network(
        id=NetworkId("ab" * 32),
        name="net",
        driver=driver,
        state=NetworkState.ACTIVE,
        created=NOW,
        segment=1,
        **settings,
    )


def join(on: Network, number: int = 1) -> Join:
    endpoint = Endpoint(
        id=EndpointId(f"{number:064x}"), network_id=on.id, sandbox_id=SandboxId(""), state=EndpointState.JOINED,
        created=NOW, ipv4=ip_interface(f"10.0.{number // 250}.{number % 250 + 1}/16"),
    )  # fmt: skip
    return Join(network=on, endpoint=endpoint, sandbox=None, netns_path=None)


def view(tmp_path: Path, *networks: Network, endpoints: int = 1, files: dict[str, str] | None = None) -> View:
    for name, text in (files or {}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    joins = [join(each, number) for each in networks for number in range(endpoints)]
    cluster = FakeCluster()
    made = View({}, networks, joins, networks, [each.endpoint for each in joins], cluster, proc=tmp_path)
    made.__dict__.update(ruleset=[], uplinks=["eth0"], links={})
    return made


def codes(findings: Any) -> list[tuple[str, Severity]]:
    return [(each.code, each.severity) for each in findings]


@pytest.mark.parametrize(("count", "expected"), [(79, []), (80, [Severity.WARNING]), (95, [Severity.ERROR])])
def test_a_connection_table_that_fills_up(tmp_path: Path, count: int, expected: list[Severity]) -> None:
    files = {"sys/net/netfilter/nf_conntrack_count": str(count), "sys/net/netfilter/nf_conntrack_max": "100"}
    found = list(host.conntrack(view(tmp_path, network(), files=files)))
    assert codes(found) == [("conntrack-full", severity) for severity in expected]
    assert [each.mend for each in found] == ["sysctl -w net.netfilter.nf_conntrack_max=200"] * len(expected)


def test_a_host_without_connection_tracking_has_no_full_table(tmp_path: Path) -> None:
    assert list(host.conntrack(view(tmp_path, network()))) == []


@pytest.mark.parametrize(("endpoints", "entries", "is_found"), [(10, 5, False), (11, 5, True), (10, 8, True)])
def test_a_neighbour_table_that_is_too_small(tmp_path: Path, endpoints: int, entries: int, is_found: bool) -> None:
    files = {
        "sys/net/ipv4/neigh/default/gc_thresh3": "10",
        "net/stat/arp_cache": f"entries  allocs\n{entries:08x} 00000001\n{entries:08x} 00000002",
    }
    found = list(host.neighbours(view(tmp_path, network(), endpoints=endpoints, files=files)))
    assert bool(found) is is_found
    if found:
        assert (found[0].code, found[0].where) == ("neighbours-full", "host")
        assert found[0].mend == f"sysctl -w net.ipv4.neigh.default.gc_thresh3={4 * max(10, endpoints)}"


@pytest.mark.parametrize(("every", "one", "is_found"), [("0", "0", False), ("1", "0", True), ("1", "2", False)])
def test_a_strict_reverse_path_matters_for_direct_packets(tmp_path: Path, every: str, one: str, is_found: bool) -> None:
    files = {"sys/net/ipv4/conf/all/rp_filter": every, "sys/net/ipv4/conf/eth0/rp_filter": one}
    direct = network("overlay", options={"linkspan.direct": "auto"})
    assert bool(list(host.reverse_path(view(tmp_path, direct, files=files)))) is is_found
    assert list(host.reverse_path(view(tmp_path, network("overlay"), files=files))) == []


def test_locked_memory_is_scarce_before_5_11_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr("datapath.features.kernel_version", lambda: (5, 10))
    assert codes(host.memlock(view(tmp_path))) == [("memlock-low", Severity.WARNING)]
    monkeypatch.setattr("datapath.features.kernel_version", lambda: (5, 11))
    assert list(host.memlock(view(tmp_path))) == []
    monkeypatch.setattr("datapath.features.kernel_version", lambda: (5, 10))
    monkeypatch.setattr("resource.getrlimit", lambda _: (-1, -1))
    assert list(host.memlock(view(tmp_path))) == []


def test_merged_packets_hurt_on_any_uplink_and_unmerged_ones_on_cards(tmp_path: Path) -> None:
    lro = Offloads(tx_checksum=True, scatter_gather=True, tso=True, gso=True, gro=True, lro=True)
    none = Offloads(tx_checksum=True, scatter_gather=True, tso=True, gso=True, gro=False, lro=False)
    (found,) = offloads.judge_uplink("eth0", "", lro)
    assert (found.code, found.where, found.mend) == ("lro-on", "eth0", "ethtool -K eth0 lro off")
    assert codes(offloads.judge_uplink("eth0", "", none)) == [("gro-off", Severity.WARNING)]
    assert list(offloads.judge_uplink("eth0", "veth", none)) == []
    assert list(offloads.judge_uplink("eth0", "", ALL_ON)) == []


def test_programs_that_are_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch is the machine's, and so for no test to touch."""
    monkeypatch.setattr("datapath.features.check", lambda name: Check(name, Answer.NO, "", "", None))
    (found,) = host.jit(view(tmp_path))
    assert (found.code, found.where) == ("jit-off", "kernel")
    assert found.mend.startswith("sysctl -w net.core.bpf_jit_enable=1")
    made = view(tmp_path)
    made.fallbacks = {"ebpf": "no programs at all"}
    assert list(host.jit(made)) == []


@pytest.mark.parametrize(("jited_bytes", "answer"), [(0, Answer.NO), (64, Answer.YES)])
def test_a_program_without_machine_code_is_interpreted(
    monkeypatch: pytest.MonkeyPatch, jited_bytes: int, answer: Answer
) -> None:
    monkeypatch.setattr("datapath.bpf.prog_load", lambda *_, **__: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr("datapath.bpf.prog_info", lambda _: SimpleNamespace(jited_bytes=jited_bytes))
    assert features.check("jit").answer is answer


def test_a_check_that_cannot_be_made_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(view: View) -> Iterator[Finding]:
        raise OSError("netlink is deaf")

    monkeypatch.setattr("control.doctor.doctor.CHECKS", (broken,))
    controller = fake_controller(tmp_path)
    controller.start()
    (found,) = controller.doctor.examine()
    assert (found.code, found.where.rpartition(".")[2], found.what) == ("check-failed", "broken", "netlink is deaf")
    assert found.mend
    controller.stop()


def chain(hook: str, policy: str = "accept", table: str = "hers") -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": table, "name": "c", "hook": hook, "policy": policy}}


def rule(*expr: Any) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "hers", "chain": "c", "handle": 7, "expr": list(expr)}}


def match(left: str, right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"field": left}}, "right": right}}


@pytest.mark.parametrize(
    ("ruleset", "severity"),
    [
        ([chain("input")], None),
        ([chain("input", "drop")], Severity.WARNING),
        ([chain("input", "drop"), rule(match("dport", 4789), {"accept": None})], None),
        ([chain("input"), rule(match("dport", 4789), {"drop": None})], Severity.ERROR),
    ],
)
def test_a_firewall_in_the_way_of_vxlan(tmp_path: Path, ruleset: list[Any], severity: Severity | None) -> None:
    for driver, expected in (("overlay", severity), ("bridge", None)):
        made = view(tmp_path, network(driver))
        made.__dict__["ruleset"] = ruleset
        assert codes(firewall.vxlan(made)) == ([("vxlan-port", expected)] if expected else [])


def test_dockers_own_policy_is_taken_care_of(tmp_path: Path) -> None:
    made = view(tmp_path, network())
    made.__dict__["ruleset"] = [chain("forward", "drop")]
    assert codes(firewall.forwarded(made)) == [("forward-drop", Severity.WARNING)]
    made.__dict__["ruleset"].append({"chain": {"family": "inet", "table": "hers", "name": "DOCKER-USER"}})
    assert list(firewall.forwarded(made)) == []


@pytest.mark.parametrize(
    ("said", "is_found"),
    [
        (match("type", "destination-unreachable"), True),
        (match("protocol", "icmp"), True),
        (match("type", "echo-request"), False),
        (match("dport", 22), False),
    ],
)
def test_rules_that_hide_that_a_packet_is_too_big(tmp_path: Path, said: Any, is_found: bool) -> None:
    made = view(tmp_path, network())
    made.__dict__["ruleset"] = [chain("input"), rule(said, {"drop": None})]
    assert bool(list(firewall.path_mtu(made))) is is_found


def test_a_node_that_small_packets_reach_and_large_ones_do_not(tmp_path: Path) -> None:
    made = view(tmp_path, network("overlay", options={"com.docker.network.driver.mtu": "1450"}))
    made.cluster = cluster = FakeCluster()
    cluster.spec = ClusterSpec(etcd=("http://127.0.0.1:2379",), name="a", advertise=ip_address("10.0.0.1"))
    cluster.others = [NodeInfo("b", ip_address("10.0.0.2"), "ready", NOW, False, 2, 1)]
    asked: list[int] = []
    made.reaches = lambda _, size: asked.append(size) or size == 0  # type: ignore[func-returns-value]
    assert codes(mtu.black_holes(made)) == [("mtu-blackhole", Severity.ERROR)]
    assert asked == [0, 1500]
    made.reaches = lambda *_: False
    assert list(mtu.black_holes(made)) == []


def test_every_kind_of_finding_is_in_the_docs() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", (ROOT / "docs/doctor.md").read_text(), re.MULTILINE)
    assert dict(rows) == {code: kind.severity.value for code, kind in KINDS.items()}
