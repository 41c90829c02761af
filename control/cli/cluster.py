"""`linkspan cluster …`: makes this host a node of a cluster, and shows the cluster as the node knows it."""

from __future__ import annotations

import json as jsonlib
import os
from typing import Any

import click

from control.cli.client import Client
from control.cli.command import NO_ARGUMENTS, Flag, Group, command, usage_error
from control.cli.errors import BAD_TEMPLATE, CliError
from control.cli.listing import INSPECT_FORMAT_HELP, LIST_FORMAT_HELP
from control.cli.progress import Progress
from control.cli.values import Bool, Filter, String, Strings

cluster = Group(
    "cluster",
    short="Manage this host's membership in a cluster",
    members={name: f"control.cli.cluster:{name}" for name in ("info", "join", "leave", "ls")},
    aliases={"list": "ls"},
)


@command(
    "join",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("advertise", String(), "Address of this host that other nodes send to (required)"),
    Flag("cacert", String(), "File with the authority that etcd's certificate comes from"),
    Flag("cert", String(), "File with the certificate that this host shows to etcd"),
    Flag("cluster", String(), "Name of the cluster; several can share one etcd", default="default", shown='"default"'),
    Flag("etcd", Strings(), 'URLs of etcd\'s members (e.g., "http://10.0.0.1:2379") (required)'),
    Flag("key", String(), "File with the private key of --cert"),
    Flag("name", String(), "Name of this host in the cluster (required)"),
)
def join(client: Client, args: list[str], **flags: Any) -> None:
    """Make this host a node of a cluster"""
    missing = [f'"{name}"' for name in ("advertise", "etcd", "name") if not flags[name]]
    if missing:
        raise usage_error(click.get_current_context(), f"required flag(s) {', '.join(missing)} not set")
    body = {
        "Etcd": flags["etcd"],
        "Name": flags["name"],
        "Advertise": flags["advertise"],
        "Cluster": flags["cluster"],
        # The daemon has another working directory.
        **{
            key: os.path.abspath(flags[flag])
            for key, flag in (("CACert", "cacert"), ("Cert", "cert"), ("Key", "key"))
            if flags[flag]
        },
    }
    with Progress(f"joining the cluster {flags['cluster']}"):
        joined = client.post("/linkspan/cluster/join", body)
    click.echo(f"This node joined the cluster {joined['Cluster']} as {joined['Node']}.")


@command(
    "leave",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("force", Bool(), "Leave even with endpoints on overlay networks, or without etcd", short="f"),
)
def leave(client: Client, args: list[str], force: bool | None) -> None:
    """Make this host no node of its cluster any more"""
    with Progress("leaving the cluster"):
        client.post("/linkspan/cluster/leave", **({"force": "1"} if force else {}))
    click.echo("This node left the cluster.")


@command(
    "ls",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("filter", Filter(), 'Provide filter values (e.g. "state=lost")', short="f"),
    Flag("format", String(), LIST_FORMAT_HELP),
    Flag("json", Bool(), "Print in JSON format, as the daemon has it"),
    Flag("no-trunc", Bool(), "Do not truncate the output"),
    Flag("quiet", Bool(), "Only display node names", short="q"),
    aliases=["list"],
)
def ls(
    client: Client,
    args: list[str],
    filter: dict[str, dict[str, bool]],
    format: str,
    json: bool | None,
    no_trunc: bool | None,
    quiet: bool | None,
) -> None:
    """List the nodes of the cluster"""
    from control.cli.filters import NODES as TESTS
    from control.cli.filters import matching
    from control.cli.listing import write
    from control.cli.natural import natural_key
    from control.cli.rows import NODES

    with Progress("listing nodes"):
        nodes = matching(client.get("/linkspan/cluster/nodes") or [], filter, TESTS, "nodes")
    nodes.sort(key=lambda node: natural_key(node["Name"]))
    if json:
        _print_json(nodes)
    else:
        write(NODES, nodes, format, quiet=bool(quiet), trunc=not no_trunc)


@command(
    "info",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("format", String(), INSPECT_FORMAT_HELP, short="f"),
    Flag("json", Bool(), "Print in JSON format, as the daemon has it"),
)
def info(client: Client, args: list[str], format: str, json: bool | None) -> None:
    """Display the cluster that this host is in, and how it follows it"""
    with Progress("asking for the cluster"):
        found = client.get("/linkspan/cluster")
    if json:
        _print_json(found)
    elif format:
        click.echo(_templated(format, found))
    else:
        click.echo(_text(found), nl=False)


def _print_json(document: Any) -> None:
    click.echo(jsonlib.dumps(document, indent=4, ensure_ascii=False))


def _templated(format: str, found: dict[str, Any]) -> str:
    from control.cli.template import Template, TemplateError

    try:
        return Template("{{json .}}" if format == "json" else format).execute(found)
    except TemplateError as error:
        raise CliError(f"template parsing error: {error}", BAD_TEMPLATE) from error


def _text(found: dict[str, Any]) -> str:
    if not found["Joined"]:
        return "Cluster: not joined\n"
    rows = {
        "Node": found["Node"],
        "Address": found["Advertise"],
        "Etcd": ", ".join(found["Etcd"]),
        "State": found["State"],
        "Revision": found["Revision"],
        "Since": found["Since"],
    }
    return f"Cluster: {found['Cluster']}\n" + "".join(f" {label + ':':<9} {value}\n" for label, value in rows.items())
