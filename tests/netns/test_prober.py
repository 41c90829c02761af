"""The prober between real namespaces: what is answered, what is lost, what is left alone, and what goes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from datapath.echoes import Answer, Ask, round_trips
from tests.hosts import Host, wait_for
from tests.isolated import held_namespace
from tests.netns.conftest import linkspan_host
from tests.netns.lab import Lab

pytestmark = pytest.mark.root

Series = tuple[str, str, str]
CONFIG = "[metrics.prober]\nenabled = true\ninterval-seconds = 1\ntimeout-seconds = 0.2\ntargets = 1\n"
OTHER = "ip link set lo up; ip address add 10.3.0.1/24 dev lo"


def test_each_request_has_its_own_answer_loss_or_lack_of_a_place() -> None:
    with held_namespace(OTHER) as path:
        here, nobody = ip_address("10.3.0.1"), ip_address("10.3.1.1")
        asks = [Ask(here, path), Ask(nobody, path), Ask(here, "/proc/1/none"), Ask(ip_address("::1"), path)]
        answers = round_trips([*asks, *[Ask(here, path, here)] * 70], 1.0)
        assert answers[1:3] == [Answer(), Answer(is_asked=False)]
        seconds = [each.seconds for each in (answers[0], *answers[3:])]
        assert len(seconds) == 72
        assert all(each is not None and 0 < each < 1 for each in seconds)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    path: Path = tmp_path_factory.mktemp("prober") / "linkspan.toml"
    path.write_text(CONFIG)
    with linkspan_host("--config", str(path)) as made:
        yield made


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    made = Lab(machine, "net")
    assert made.a.pings(made.b.ip4)
    return made


def probes(machine: Host, result: str) -> dict[Series, int]:
    """Counts of results by network, source and target."""
    text = machine.run("curl", "-sS", "--fail", "http://127.0.0.1:9478/metrics").stdout
    return {
        (sample.labels["network"], sample.labels["source"], sample.labels["target"]): int(sample.value)
        for metric in text_string_to_metric_families(text)
        if metric.name == "linkspan_probes"
        for sample in metric.samples
        if sample.labels["result"] == result and sample.labels["kind"] == "endpoint"
    }


def rtt_counts(machine: Host) -> dict[str, int]:
    text = machine.run("curl", "-sS", "--fail", "http://127.0.0.1:9478/metrics").stdout
    return {
        sample.labels["source"]: int(sample.value)
        for metric in text_string_to_metric_families(text)
        if metric.name == "linkspan_probe_rtt_seconds"
        for sample in metric.samples
        if sample.name.endswith("_count")
    }


def pair(lab: Lab, one: str, other: str) -> Series:
    return lab.name, getattr(lab, one).endpoint_id[:12], getattr(lab, other).endpoint_id[:12]


def test_answers_are_counted_and_timed_between_neighbours_in_the_ring(lab: Lab) -> None:
    ring = {pair(lab, "a", "b"), pair(lab, "b", "a")}
    wait_for(lambda: probes(lab.host, "answered").keys() == ring, "both to be asked")
    before = probes(lab.host, "answered")
    wait_for(lambda: all(n > before[each] for each, n in probes(lab.host, "answered").items()), "another round")
    assert set(probes(lab.host, "lost").values()) == {0}
    counts, answered = rtt_counts(lab.host), probes(lab.host, "answered")
    assert counts.keys() == {source for _, source, _ in answered}
    assert all(counts.values())


def test_who_is_away_is_lost_and_comes_back(lab: Lab) -> None:
    lab.b.run("ip", "link", "set", "eth0", "down")
    wait_for(lambda: probes(lab.host, "lost")[pair(lab, "a", "b")] >= 2, "losses to be counted")
    lab.host.api("POST", "/linkspan/doctor/mend")
    answered = probes(lab.host, "answered")[pair(lab, "a", "b")]
    wait_for(lambda: probes(lab.host, "answered")[pair(lab, "a", "b")] > answered, "answers again")


def test_series_go_with_their_endpoints(lab: Lab) -> None:
    gone, ring = lab.c.endpoint_id[:12], {pair(lab, "a", "b"), pair(lab, "b", "a")}
    wait_for(lambda: any(gone in each for each in probes(lab.host, "answered")), "the new one to be asked")
    lab.host.api("DELETE", f"/linkspan/sandboxes/{lab.c.name}")
    assert not any(gone in each for each in probes(lab.host, "answered"))
    wait_for(lambda: probes(lab.host, "answered").keys() == ring, "the ring to close")
