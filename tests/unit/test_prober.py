"""Whom the prober asks, whom it leaves alone, and what it counts, with answers that a test gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from prometheus_client.registry import CollectorRegistry

from control.cluster_spec import ClusterSpec, NodeInfo
from control.config import ConfigError, ProberSection, load
from control.controller import NetworkController
from control.counted import Counts
from control.metrics.probes import ProbeCollector
from control.model import SandboxSpec
from control.prober import Pair, Prober
from datapath.echoes import Answer, Ask
from datapath.latency import Histogram, Kind
from tests.fake_cluster import JOINED, FakeCluster
from tests.fakes import fake_controller, histograms


class Line:
    """Keeps what is asked; answers with `seconds` for each."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.answer = Answer(0.0003)

    def __call__(self, asks: Sequence[Ask], timeout_s: float) -> list[Answer]:
        self.asked = list(asks)
        return [self.answer] * len(asks)


@pytest.fixture
def line() -> Line:
    return Line()


def started(tmp_path: Path, sandboxes: int, cluster: FakeCluster | None = None) -> NetworkController:
    controller = fake_controller(tmp_path, cluster=cluster)
    controller.start()
    for number in range(sandboxes):
        controller.create_sandbox(SandboxSpec(name=f"box{number}"))
    return controller


def test_each_asks_a_bounded_number_of_others_and_all_are_asked(tmp_path: Path, line: Line) -> None:
    controller = started(tmp_path, 20)
    prober = Prober(controller, ProberSection(targets=3), line)
    prober.round()
    pairs = prober.tallies()
    assert set(Counter(pair.source for pair in pairs).values()) == {3}
    assert set(Counter(pair.target for pair in pairs).values()) == {3}
    assert len(line.asked) == len(pairs) == 60
    assert all(ask.source != ask.target and ask.netns_path for ask in line.asked)
    assert all(pair.network == "bridge" and pair.kind == "endpoint" for pair in pairs)


@pytest.mark.parametrize(("sandboxes", "asked"), [(0, 0), (1, 0), (2, 2), (3, 6)])
def test_few_ask_each_other_once(tmp_path: Path, line: Line, sandboxes: int, asked: int) -> None:
    Prober(started(tmp_path, sandboxes), ProberSection(targets=4), line).round()
    assert len(line.asked) == asked


def test_answers_losses_and_those_that_were_not_asked(tmp_path: Path, line: Line) -> None:
    prober = Prober(started(tmp_path, 2), ProberSection(), line)
    for line.answer in (Answer(0.0003), Answer(0.02), Answer(5.0), Answer(None), Answer(is_asked=False)):
        prober.round()
    registry = CollectorRegistry()
    registry.register(ProbeCollector(prober))
    for pair in prober.tallies():
        labels = pair._asdict()
        assert registry.get_sample_value("linkspan_probes_total", {**labels, "result": "answered"}) == 3
        assert registry.get_sample_value("linkspan_probes_total", {**labels, "result": "lost"}) == 1
        name = "linkspan_probe_rtt_seconds"
        assert registry.get_sample_value(f"{name}_sum", labels) == pytest.approx(5.0203)
        counts = {le: registry.get_sample_value(f"{name}_bucket", {**labels, "le": le}) for le in ("0.0002", "0.0004")}
        assert counts == {"0.0002": 0, "0.0004": 1}
        assert registry.get_sample_value(f"{name}_bucket", {**labels, "le": "1.0"}) == 2
        assert registry.get_sample_value(f"{name}_bucket", {**labels, "le": "+Inf"}) == 3


def test_who_has_new_round_trips_of_tcp_is_left_alone_until_it_is_idle(
    tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = started(tmp_path, 2)
    busy, idle = controller.endpoints()
    samples: list[int] = [0]

    def counted() -> Counts:
        timed = histograms({busy.slot: {Kind.TCP_RTT: Histogram({3: samples[0]}, 0.1)}} if samples[0] else {})
        return Counts(latencies=timed, slots={each.id: each.slot for each in (busy, idle)})

    monkeypatch.setattr(controller, "counted", counted)
    prober, eager = Prober(controller, ProberSection(), line), Prober(controller, ProberSection(idle_only=False), line)
    asked = []
    for samples[0] in (0, 4, 9, 9):
        prober.round()
        asked.append(len(line.asked))
        eager.round()
        assert len(line.asked) == 2
    assert asked == [2, 1, 1, 2]
    assert prober.tallies()[Pair("bridge", "endpoint", idle.id[:12], busy.id[:12])].answered == 4


def test_series_go_at_once_with_their_endpoints(tmp_path: Path, line: Line) -> None:
    controller = started(tmp_path, 3)
    prober = Prober(controller, ProberSection(targets=2), line)
    prober.round()
    assert len(prober.tallies()) == 6
    controller.remove_sandbox("box0", force=True)
    assert len(prober.tallies()) == 2
    prober.round()
    assert len(line.asked) == 2


def test_nodes_ask_the_next_ones_from_their_own_address(tmp_path: Path, line: Line) -> None:
    cluster = FakeCluster()
    cluster.spec = ClusterSpec(etcd=("http://127.0.0.1:2379",), name="c", advertise=ip_address("10.0.0.3"))
    cluster.others = [
        NodeInfo(n, ip_address(f"10.0.0.{i}"), "ready", JOINED, False, i, 0) for i, n in enumerate("abd", 5)
    ]
    prober = Prober(started(tmp_path, 0, cluster), ProberSection(targets=2), line)
    prober.round()
    assert set(prober.tallies()) == {Pair("", "node", "c", "d"), Pair("", "node", "c", "a")}
    assert {ask.source for ask in line.asked} == {ip_address("10.0.0.3")}


@pytest.mark.parametrize("text", ["interval-seconds = 0.5", "timeout-seconds = 11.0", "targets = 0", "targets = 17"])
def test_settings_that_cannot_be_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "linkspan.toml"
    path.write_text(f"[metrics.prober]\n{text}\n")
    with pytest.raises(ConfigError, match=f"metrics.prober.{text.partition(' ')[0]}"):
        load(path)
