"""The rows of `network ls`, `ps` and `cluster ls` with the fields that `--format` can name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from control.cli.listing import Listing
from control.cli.shapes import Row, Time

_ID_LENGTH: Final = 12
_COMMAND_LENGTH: Final = 20
_ELLIPSIS: Final = "…"


class _Record(Row):
    """A row made of one JSON object of the API."""

    def __init__(self, record: dict[str, Any], trunc: bool) -> None:
        self._record = record
        self._trunc = trunc

    def _id(self) -> str:
        identity: str = self._record["Id"]
        return identity[:_ID_LENGTH] if self._trunc else identity

    def _labels(self) -> dict[str, str]:
        return self._record.get("Labels") or {}

    def _label_list(self) -> str:
        return ",".join(sorted(f"{name}={value}" for name, value in self._labels().items()))

    def methods(self) -> dict[str, Callable[[str], Any]]:
        return {"Label": lambda name: self._labels().get(name, "")}


class NetworkRow(_Record):
    go_type = "*network.networkContext"

    def fields(self) -> dict[str, Any]:
        record = self._record
        return {
            "CreatedAt": str(Time(record["Created"])),
            "Driver": record["Driver"],
            "ID": self._id(),
            "IPv4": _boolean(record.get("EnableIPv4")),
            "IPv6": _boolean(record.get("EnableIPv6")),
            "Internal": _boolean(record.get("Internal")),
            "Labels": self._label_list(),
            "Name": record["Name"],
            "Scope": record["Scope"],
        }


class SandboxRow(_Record):
    go_type = "*sandbox.sandboxContext"

    def fields(self) -> dict[str, Any]:
        record = self._record
        created = Time(record["Created"])
        code = record.get("ExitCode")
        return {
            "Command": self._command(),
            "CreatedAt": str(created),
            "ExitCode": "" if code is None else str(code),
            "ID": self._id(),
            "Labels": self._label_list(),
            "Name": record["Name"],
            "Networks": ",".join(sorted(record.get("Networks") or {})),
            "PID": str(record["Pid"]) if record.get("Pid") and record["State"] == "running" else "",
            "RunningFor": _ago(created),
            "State": record["State"],
            "Status": f"{record['State']} ({code})"
            if record["State"] == "exited" and code is not None
            else record["State"],
        }

    def _command(self) -> str:
        import shlex

        text = shlex.join(self._record.get("Command") or [])
        if self._trunc and len(text) > _COMMAND_LENGTH:
            text = text[: _COMMAND_LENGTH - 1] + _ELLIPSIS
        return f'"{text}"'


class NodeRow(_Record):
    go_type = "*cluster.nodeContext"

    def fields(self) -> dict[str, Any]:
        record = self._record
        return {
            "Address": record["Address"],
            "ID": str(record["ID"]),
            "Name": record["Name"],
            "Networks": str(record["Networks"]),
            "Self": _boolean(record["Self"]),
            "Since": _ago(Time(record["Since"])) if self._trunc else record["Since"],
            "State": record["State"],
        }


def _ago(time: Time) -> str:
    return f"{human_duration((datetime.now(UTC) - time.moment()).total_seconds())} ago"


def _boolean(value: Any) -> str:
    return "true" if value else "false"


def human_duration(seconds: float) -> str:
    """A duration in the words of `docker ps`: "Less than a second", "About an hour", "3 weeks"."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    days = hours // 24
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    if days < 730:
        return f"{days // 30} months"
    return f"{days // 365} years"


NETWORKS: Final = Listing(
    row=NetworkRow,
    headers={
        "CreatedAt": "CREATED AT",
        "Driver": "DRIVER",
        "ID": "NETWORK ID",
        "IPv4": "IPV4",
        "IPv6": "IPV6",
        "Internal": "INTERNAL",
        "Labels": "LABELS",
        "Name": "NAME",
        "Scope": "SCOPE",
    },
    table="{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    raw="network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n",
    raw_quiet="network_id: {{.ID}}",
)
SANDBOXES: Final = Listing(
    row=SandboxRow,
    headers={
        "Command": "COMMAND",
        "CreatedAt": "CREATED AT",
        "ExitCode": "EXIT CODE",
        "ID": "SANDBOX ID",
        "Labels": "LABELS",
        "Name": "NAME",
        "Networks": "NETWORKS",
        "PID": "PID",
        "RunningFor": "CREATED",
        "State": "STATE",
        "Status": "STATE",
    },
    table="{{.ID}}\t{{.Name}}\t{{.Status}}\t{{.PID}}\t{{.Networks}}\t{{.Command}}\t{{.RunningFor}}",
    raw="sandbox_id: {{.ID}}\nname: {{.Name}}\nstate: {{.Status}}\nnetworks: {{.Networks}}\ncommand: {{.Command}}\n",
    raw_quiet="sandbox_id: {{.ID}}",
)
NODES: Final = Listing(
    row=NodeRow,
    headers={
        "Address": "ADDRESS",
        "ID": "NODE ID",
        "Name": "NODE",
        "Networks": "NETWORKS",
        "Self": "SELF",
        "Since": "SINCE",
        "State": "STATE",
    },
    table="{{.Name}}\t{{.Address}}\t{{.State}}\t{{.Since}}",
    raw="node: {{.Name}}\naddress: {{.Address}}\nstate: {{.State}}\nsince: {{.Since}}\n",
    raw_quiet="node: {{.Name}}",
    quiet="Name",
)
