"""Debian's Prometheus with the files of deploy/prometheus, in a host's namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.hosts import ROOT, Host, wait_for

SHIPPED: Final = ROOT / "deploy/prometheus"
_URL: Final = "http://127.0.0.1:9090"
_SHIPPED_TARGETS: Final = '["127.0.0.1:9478"]'
_SHIPPED_INTERVAL: Final = "15s"
INTERVAL: Final = "2s"
"""How often it scrapes and evaluates here, so that nobody waits for minutes."""


class Prometheus:
    """A server that answers; asked over its HTTP API, version 1."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; an AssertionError with the server's words when there is none."""
        asked = [part for item in parameters.items() for part in ("--data-urlencode", "=".join(item))]
        answer = json.loads(self._host.run("curl", "-sS", "--get", *asked, f"{_URL}/api/v1/{path}").stdout)
        assert answer["status"] == "success", f"{parameters}: {answer['error']}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; values are texts, NaN among them."""
        return list(self.ask("query", query=expression)["result"])

    def query_range(self, expression: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """The series between two Unix times."""
        span = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_s}"}
        return list(self.ask("query_range", query=expression, **span)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health and the error of its last evaluation."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


@contextmanager
def prometheus(host: Host, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Runs until the block ends, with all targets scraped at least once before it begins."""
    folder = host.dir / "prometheus"
    folder.mkdir()
    for name in ("recording.yml", "alerts.yml"):
        (folder / name).symlink_to(SHIPPED / name)
    config = (SHIPPED / "prometheus.yml").read_text()
    assert config.count(_SHIPPED_TARGETS) == 1
    config = config.replace(_SHIPPED_TARGETS, json.dumps(list(targets))).replace(_SHIPPED_INTERVAL, INTERVAL)
    (folder / "prometheus.yml").write_text(config)
    with (folder / "log").open("w") as log, subprocess.Popen(_command(host, folder), stdout=log, stderr=log) as server:
        try:
            made = Prometheus(host)
            wait_for(
                lambda: _has_scraped(made, len(targets)),
                lambda: f"Prometheus to scrape {targets}; its log:\n{(folder / 'log').read_text()}",
            )
            yield made
        finally:
            server.kill()


def _command(host: Host, folder: Path) -> list[str]:
    return host.enter(
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:9090",
        "--log.level=warn",
    )


def _has_scraped(server: Prometheus, targets: int) -> bool:
    try:
        return len(server.query('up{job="linkspan"} == 1')) == targets
    except (AssertionError, json.JSONDecodeError):
        return False
