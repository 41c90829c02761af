"""`linkspan doctor`: what this kernel can do, asked here and now, and what linkspand says of itself; with `--cluster`
whether this node holds what the cluster's store has."""

from __future__ import annotations

import json
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
    Flag("cluster", Bool(), "Compare this node with its cluster instead"),
    Flag("json", Bool(), "Print in JSON format"),
    Flag("mend", Bool(), "With --cluster, mend what differs"),
)
def doctor(client: Client, args: list[str], cluster: bool | None, json: bool | None, mend: bool | None) -> int:
    """Check what this host can do, and how linkspand fares"""
    if mend and not cluster:
        raise usage_error(click.get_current_context(), "--mend needs --cluster")
    if cluster:
        return _examine_cluster(client, is_json=bool(json), mends=bool(mend))
    from datapath.features import Answer, report

    with Progress("probing the kernel"):
        checks = report()
    status: dict[str, Any] | None = None
    problem = ""
    try:
        status = client.get("/linkspan/status")
    except CliError as error:
        problem = error.message
    click.echo(_document(checks, status, problem) if json else _text(client.host, checks, status, problem), nl=False)
    missing = [check.name for check in checks if check.name in REQUIRED and check.answer is Answer.NO]
    if missing and not json:
        click.echo(f"\nLinkspan cannot work here without {' and '.join(missing)}.")
    return FAILED if missing else 0


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
    from control.cli.tabwriter import aligned

    text = "".join(f"Mended on network {found['Network']}: {found['What']}\n" for found in mended)
    if not left:
        return f"{text}This node holds what the cluster's store has.\n"
    lines = ["NODE\tNETWORK\tDIFFERENCE\tMENDED BY"]
    lines += ["\t".join(found[key] for key in ("Node", "Network", "What", "Mend")) for found in left]
    return text + aligned("".join(f"{line}\n" for line in lines))


def _document(checks: list[Check], status: dict[str, Any] | None, problem: str) -> str:
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
        "daemon": status,
        "daemon_error": problem or None,
    }
    return json.dumps(document, indent=4, ensure_ascii=False) + "\n"


def _text(host: str, checks: list[Check], status: dict[str, Any] | None, problem: str) -> str:
    from control.cli.tabwriter import aligned

    lines = ["CHECK\tANSWER\tNEEDED FOR\tREASON"]
    lines += [f"{check.name}\t{check.answer.value}\t{check.needed_for}\t{check.reason}" for check in checks]
    table = aligned("".join(f"{line}\n" for line in lines))
    if status is None:
        return f"{table}\n{problem}\n"
    counts = ", ".join(f"{value} {name}" for name, value in status.items() if isinstance(value, int))
    return f"{table}\nlinkspand at {host}: {counts}\n{_sections(status)}"


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
