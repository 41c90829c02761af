"""The files of deploy/prometheus, judged by promtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.hosts import ROOT
from tests.prometheus.server import SHIPPED

CASES = Path(__file__).parent / "alerts.yml"
ALERTS = (SHIPPED / "alerts.yml").read_text()
NAMES = re.findall(r"- alert: (\w+)", ALERTS)


def promtool(*args: str | Path) -> None:
    done = subprocess.run(["promtool", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_and_the_rules_are_valid() -> None:
    promtool("check", "config", SHIPPED / "prometheus.yml")
    promtool("check", "rules", SHIPPED / "recording.yml", SHIPPED / "alerts.yml")


def test_alerts_fire_when_they_should_and_not_else() -> None:
    promtool("test", "rules", CASES)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    quiet, firing = set(), set()
    for case in re.split(r"(?=alertname: )", CASES.read_text())[1:]:
        name = case.removeprefix("alertname: ").split(",")[0].split()[0]
        (firing if "exp_alerts:" in case else quiet).add(name)
    assert sorted(firing) == sorted(quiet) == sorted(NAMES)


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    runbook = set(re.findall(r"^### (\w+)$", (ROOT / "docs/dashboards.md").read_text(), re.MULTILINE))
    assert len(NAMES) == len(set(NAMES))
    for name, body in zip(NAMES, re.split(r"- alert: ", ALERTS)[1:], strict=True):
        assert re.search(r"^        for: \d+m$", body, re.MULTILINE), name
        assert re.search(r"labels: {severity: (critical|warning|info)}", body), name
        assert all(re.search(rf"^          {key}: .+$", body, re.MULTILINE) for key in ("summary", "description")), name
        assert f"runbook: docs/dashboards.md#{name.lower()}\n" in body, name
        assert name in runbook, name
    assert runbook == set(NAMES)
