"""`linkspan trace`: one packet through the real programs, each decision in words, and where the kernel takes over."""

from __future__ import annotations

import json as json_
from typing import Any

import click

from control.cli.client import Client
from control.cli.command import Flag, command, exactly
from control.cli.errors import FAILED
from control.cli.progress import Progress
from control.cli.values import Bool, String

_ARRIVES = frozenset({"delivered", "answered", "sent"})


@command(
    "trace",
    "[OPTIONS] SOURCE DESTINATION",
    exactly(2),
    Flag("from-ip", String(), "Forge the packet's source address"),
    Flag("from-mac", String(), "Forge the packet's source MAC address"),
    Flag("json", Bool(), "Print in JSON format"),
    Flag("port", String(), "Destination port of tcp or udp (default 80)"),
    Flag("proto", String(), 'Protocol of the packet: "tcp", "udp" or "icmp" (default "icmp")'),
)
def trace(
    client: Client,
    args: list[str],
    from_ip: str,
    from_mac: str,
    json: bool | None,
    port: str,
    proto: str,
) -> int:
    """Follow one packet through the programs and the kernel, without sending it"""
    query = {"proto": proto or ("tcp" if port else ""), "port": port, "from_mac": from_mac, "from_ip": from_ip}
    with Progress("following the packet"):
        found = client.get("/linkspan/trace", **{"from": args[0], "to": args[1]}, **query)
    click.echo(json_.dumps(found, indent=4, ensure_ascii=False) if json else _text(found))
    return 0 if found["end"]["outcome"] in _ARRIVES else FAILED


def _text(found: dict[str, Any]) -> str:
    lines = [f"{found['packet']}, network {found['network']} ({found['driver']})"]
    for number, step in enumerate(found["steps"], 1):
        at = f" on {step['device']}" if step["device"] else ""
        place = f" in {step['place']}" if step["place"] != "host" else ""
        lines.append(f"{number:>3}  {step['by']}{at}{place}: {step['text']}")
    end = found["end"]
    return "\n".join([*lines, f"  => {end['outcome']}: {end['text']}"])
