"""What the gates decide, on figures and ratios that are known; that they hold on this machine is `make bench-gate`."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from bench import slowdown
from bench.gate import __main__ as gates
from bench.gate import builds, decide, limits
from bench.gate.bed import Bed, Build, bed, timed_ns, verdict
from bench.gate.limits import Limit
from bench.gate.outcome import Outcome
from bench.report import Table


def decided(true: float, noise: float, seed: int) -> tuple[str, int]:
    """What becomes of log-normal ratios around a true one, and after how many of them."""
    order, values = random.Random(seed), list[float]()
    while not decide.is_enough(values, 1.05):
        values.append(true * math.exp(order.gauss(0, noise)))
    return decide.verdict(values, 1.05), len(values)


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_ten_percent_fail_and_no_change_passes(noise: float) -> None:
    assert {decided(1.10, noise, seed)[0] for seed in range(200)} == {"FAILED"}
    assert {decided(1.00, noise, seed)[0] for seed in range(200)} == {"passed"}


def test_a_noisier_machine_measures_longer() -> None:
    counts = [decided(1.00, noise, seed=1)[1] for noise in (0.01, 0.04, 0.06)]
    assert counts == sorted(counts)
    assert counts[0] == decide.LEAST


def test_what_lies_at_the_limit_is_given_up_undecided() -> None:
    verdict, count = decided(1.05, 0.03, seed=1)
    assert (verdict, count) == ("undecided", decide.MOST)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    order = random.Random(1)
    found = [decide.ratio([order.lognormvariate(0, 0.1) for _ in range(30)]) for _ in range(3000)]
    missed = sum(not one.least <= 1 <= one.most for one in found)
    assert missed <= 12, "99.9 % of 3,000 is 3; 12 is five standard deviations off"


def test_figures_fail_past_their_limit_without_one_and_when_they_are_missing() -> None:
    known = [Limit("joins", "calls", 100, 5, "they cost"), Limit("joins", "messages", 14, 0, "they cost")]
    assert limits.judge({"calls": 105, "messages": 14}, known)[1] == []
    assert limits.judge({"calls": 105.1, "messages": 14}, known)[1] == ["calls is 105.1, more than 105: they cost"]
    assert "messages has a limit and was not measured" in limits.judge({"calls": 1}, known)[1]
    assert limits.judge({"calls": 1, "messages": 1, "new": 3}, known)[1][0].startswith("new is 3 and has no limit")


def test_figures_of_another_kernel_are_shown_and_neither_judged_nor_blessed(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    own = ".".join(os.uname().release.split(".")[:2])
    limits.write([Limit("sizes", "theirs", 10, 5, "why", "2.6"), Limit("sizes", "ours", 10, 5, "why", own)], file)
    assert limits.judge({"theirs": 99, "ours": 10}, limits.read(file))[1] == []
    limits.bless({"theirs": 99, "ours": 12}, file)
    assert [one.today for one in limits.read(file)] == [10, 12]


def test_blessing_keeps_reasons_and_slack(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    limits.write([Limit("joins", 'calls "in all"', 10, 5, "because")], file)
    limits.bless({'calls "in all"': 20.12345}, file)
    assert limits.read(file) == [Limit("joins", 'calls "in all"', 20.123, 5, "because")]
    assert limits.read(file)[0].limit == pytest.approx(21.129, abs=0.001)


@pytest.fixture(scope="module")
def place() -> Iterator[Bed]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with bed() as made:
        yield made


@pytest.mark.parametrize("build", [builds.today, builds.frozen])
def test_todays_program_and_the_frozen_copy_agree_on_every_packet(place: Bed, build: Callable[[], Build]) -> None:
    program = place.load(place.compile(build()))
    for case, (packet, wanted) in builds.CASES.items():
        assert place.call(verdict, program, packet) == wanted, case
        assert 1 < place.call(timed_ns, program, packet, 1000) < 100_000, "nanoseconds"


def test_what_is_frozen_is_what_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "FROZEN_TEXT", tmp_path / "frozen" / "p.c")
    monkeypatch.setattr(builds, "FROZEN_ELEMENTS", tmp_path / "frozen" / "p.json")
    build = builds.today()
    builds.freeze(build)
    again = builds.frozen()
    assert again.elements == build.elements
    kept = (line for line in build.text.splitlines() if not line.startswith("#line"))
    assert again.text.splitlines() == list(kept)


def test_a_slowed_program_still_judges_every_packet_as_before(place: Bed, tmp_path: Path) -> None:
    program = place.load(place.compile(builds.today(slowdown.slowed(tmp_path, 24))))
    for case, (packet, wanted) in builds.CASES.items():
        assert place.call(verdict, program, packet) == wanted, case


@pytest.mark.parametrize(
    ("gate", "failing", "status", "measured"),
    [("trips", 0, 0, 1), ("trips", 2, 0, 3), ("trips", 3, 1, 3), ("cost", 3, 1, 3), ("sizes", 1, 1, 1)],
)
def test_a_failure_in_time_has_to_show_itself_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gate: str, failing: int, status: int, measured: int
) -> None:
    """A count is what it is at once."""
    outcomes: list[Outcome] = []

    def found(_: Path) -> Outcome:
        failures = ["too slow"] if len(outcomes) < failing else []
        outcomes.append(Outcome(Table("", ("what",), []), failures, {}))
        return outcomes[-1]

    monkeypatch.setitem(cast("dict[str, Callable[[Path], Outcome]]", gates.GATES), gate, found)
    monkeypatch.setattr(gates, "_PAUSE_S", 0)
    assert (gates.main([gate, "--sources", str(tmp_path)]), len(outcomes)) == (status, measured)
