"""`linkspan doctor`: what this kernel can do, asked here and now, what linkspand says of itself, and what it finds
wrong with the host; with `--cluster` whether this node holds what the cluster's store has."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from control.cli.client import Client
from control.cli.command import NO_ARGUMENTS, Flag, command, usage_error
from control.cli.errors import FAILED, CliError
from control.cli.progress import Progress
from control.cli.values import Bool

if TYPE_CHECKING:
    from datapath.features import Check

# Without these no network works; all else makes networks faster or is for drivers that not everybody uses.
REQUIRED: Final = frozenset({"veth", "bridge", "nftables"})


@command(
    "doctor",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("attached", Bool(), "Show what is attached to networks' devices, too"),
    Flag("cluster", Bool(), "Compare this node with its cluster instead"),
    Flag("json", Bool(), "Print in JSON format"),
    Flag("kernel", Bool(), "Check only what this kernel can do"),
    Flag("mend", Bool(), "Mend what differs from linkspand's records"),
)
def doctor(
    client: Client,
    args: list[str],
    attached: bool | None,
    cluster: bool | None,
    json: bool | None,
    kernel: bool | None,
    mend: bool | None,
) -> int:
    """Check this host, its networks, and how linkspand fares"""
    if kernel and (cluster or mend or attached):
        raise usage_error(click.get_current_context(), "--kernel goes with --json alone")
    if cluster and attached:
        raise usage_error(click.get_current_context(), "--attached and --cluster exclude each other")
    if cluster:
        return _examine_cluster(client, is_json=bool(json), mends=bool(mend))
    from datapath.features import Answer, report

    with Progress("probing the kernel"):
        checks = report()
    said = _Said() if kernel else _ask(client, mends=bool(mend))
    if json:
        click.echo(_document(checks, said), nl=False)
    else:
        click.echo(_text(client.host, checks, said, with_attached=bool(attached)), nl=False)
    missing = [check.name for check in checks if check.name in REQUIRED and check.answer is Answer.NO]
    if missing and not json:
        click.echo(f"\nLinkspan cannot work here without {' and '.join(missing)}.")
    return FAILED if missing or any(each["severity"] == "error" for each in said.findings) else 0


@dataclass
class _Said:
    """What linkspand says; `problem` is why it does not."""

    status: dict[str, Any] | None = None
    problem: str = ""
    findings: list[dict[str, str]] = field(default_factory=list)
    mended: list[dict[str, str]] = field(default_factory=list)
    attached: list[dict[str, Any]] = field(default_factory=list)


def _ask(client: Client, *, mends: bool) -> _Said:
    """Raises CliError when linkspand is there and refuses; that it is not there is one of the answers."""
    said = _Said()
    try:
        said.status = client.get("/linkspan/status")
    except CliError as error:
        if mends:
            raise
        said.problem = error.message
        return said
    with Progress("examining this host"):
        if mends:
            said.mended = client.post("/linkspan/doctor/mend")["mended"]
        examined = client.get("/linkspan/doctor")
    said.findings, said.attached = examined["findings"], examined["attached"]
    return said


def _examine_cluster(client: Client, *, is_json: bool, mends: bool) -> int:
    """Prints what differs between node and store; the exit status says whether anything is left."""
    differed: list[dict[str, str]] = []
    with Progress("comparing this node with the cluster"):
        if mends:
            differed = client.post("/linkspan/cluster/mend") or []
        left = client.get("/linkspan/cluster/check") or []
    mended = [found for found in differed if found not in left]
    if is_json:
        click.echo(json.dumps({"mended": mended, "differences": left}, indent=4, ensure_ascii=False))
    else:
        click.echo(_cluster_text(mended, left), nl=False)
    return FAILED if left else 0


def _cluster_text(mended: list[dict[str, str]], left: list[dict[str, str]]) -> str:
    text = "".join(f"Mended on network {found['Network']}: {found['What']}\n" for found in mended)
    if not left:
        return f"{text}This node holds what the cluster's store has.\n"
    lines = ["NODE\tNETWORK\tDIFFERENCE\tMENDED BY"]
    lines += ["\t".join(found[key] for key in ("Node", "Network", "What", "Mend")) for found in left]
    return text + _aligned(lines)


def _document(checks: list[Check], said: _Said) -> str:
    document = {
        "checks": [
            {
                "name": check.name,
                "answer": check.answer.value,
                "reason": check.reason,
                "needed_for": check.needed_for,
                "minimum_kernel": ".".join(map(str, check.minimum)) if check.minimum else None,
                "required": check.name in REQUIRED,
            }
            for check in checks
        ],
        "daemon": said.status,
        "daemon_error": said.problem or None,
        "findings": said.findings,
        "mended": said.mended,
        "attached": said.attached,
    }
    return json.dumps(document, indent=4, ensure_ascii=False) + "\n"


def _text(host: str, checks: list[Check], said: _Said, *, with_attached: bool) -> str:
    lines = ["CHECK\tANSWER\tNEEDED FOR\tREASON"]
    lines += [f"{check.name}\t{check.answer.value}\t{check.needed_for}\t{check.reason}" for check in checks]
    table = _aligned(lines)
    if said.status is None:
        return f"{table}\n{said.problem}\n" if said.problem else table
    counts = ", ".join(f"{value} {name}" for name, value in said.status.items() if isinstance(value, int))
    text = f"{table}\nlinkspand at {host}: {counts}\n{_sections(said.status)}"
    if with_attached:
        text += "\n" + _attached_text(said.attached)
    return text + _findings_text(said)


def _attached_text(attached: list[dict[str, Any]]) -> str:
    keys = ("device", "hook", "by", "program", "id", "owner")
    rows = [{**each, "owner": _owner(each)} for each in attached]
    return _aligned(
        ["\t".join(key.upper() for key in keys)] + ["\t".join(str(row[key]) for key in keys) for row in rows]
    )


def _owner(program: dict[str, Any]) -> str:
    """With all that is known of another's: who holds it, else that its device or a pin does, and who has loaded it."""
    if not program["loaded_by"]:
        return str(program["owner"])
    holders = ", ".join(program["held_by"]) or "no process"
    return f"{program['owner']}: held by {holders}, loaded by {program['loaded_by']} at {program['loaded']}"


def _findings_text(said: _Said) -> str:
    lines = [f"\nmended: {each['where']}: {each['what']}" for each in said.mended]
    for each in said.findings:
        lines.append(f"\n{each['severity']} {each['code']}: {each['where']}: {each['what']}")
        lines += [f"    why: {each['why']}", f"    mend: {each['mend']}"]
    if not any(each["severity"] != "note" for each in said.findings):
        lines.append("\nNothing is wrong.")
    return "".join(f"{line}\n" for line in lines)


def _aligned(lines: list[str]) -> str:
    from control.cli.tabwriter import aligned

    return aligned("".join(f"{line}\n" for line in lines))


def _sections(status: dict[str, Any]) -> str:
    """What the daemon tells besides counts: facts by driver, fallbacks with their reasons, devices of the host that are
    not as networks on them need them, and what could not be repaired."""
    lines = []
    for driver, facts in (status.get("drivers") or {}).items():
        shown = ", ".join(f"{name} {value}" for name, value in facts.items()) or "ready"
        lines.append(f"  driver {driver}: {shown}\n")
    for feature, reason in (status.get("fallbacks") or {}).items():
        lines.append(f"  fallback, {feature}: {reason}\n")
    for parent in status.get("parents") or ():
        if parent["state"] != "up":
            lines.append(f"  parent {parent['parent']} of network {parent['network']} is {parent['state']}\n")
    for what, reason in (status.get("broken") or {}).items():
        lines.append(f"  not whole, {what}: {reason}\n")
    return "".join(lines)
