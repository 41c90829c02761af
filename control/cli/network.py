"""`linkspan network …`: the words, flags, requests and texts of `docker network`."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from control.cli import complete
from control.cli.client import Client, segment
from control.cli.command import NO_ARGUMENTS, ONE_OR_MORE, Flag, Group, command, exactly
from control.cli.errors import ApiError, CliError
from control.cli.listing import INSPECT_FORMAT_HELP, LIST_FORMAT_HELP
from control.cli.progress import Progress
from control.cli.values import Bool, Filter, Int, List, Map, String, Strings, label, link, pairs

_PRUNE_WARNING: Final = (
    "WARNING! This will remove all custom networks not used by at least one container.\n"
    "Are you sure you want to continue?"
)
_INGRESS_WARNING: Final = (
    "WARNING! Before removing the routing-mesh network, make sure all the nodes in your swarm run the same docker "
    "engine version. Otherwise, removal may not be effective and functionality of newly create ingress networks "
    "will be impaired.\nAre you sure you want to continue?"
)

network = Group(
    "network",
    short="Manage networks",
    members={
        name: f"control.cli.network:{name}"
        for name in ("connect", "create", "disconnect", "inspect", "ls", "prune", "rm")
    },
    aliases={"list": "ls", "remove": "rm"},
)


def _path(reference: str) -> str:
    if not reference.strip():
        raise CliError("invalid network name or ID: value is empty")
    return f"/networks/{segment(reference)}"


def _confirmed(question: str) -> bool:
    """Asks on stdout; only "y" or "Y" is a yes, and the end of the input is a no."""
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip() in ("y", "Y")


@command(
    "create",
    "[OPTIONS] NETWORK",
    exactly(1),
    Flag("attachable", Bool(), "Enable manual container attachment"),
    Flag("aux-address", Map(), "Auxiliary IPv4 or IPv6 addresses used by Network driver", shown="map[]"),
    Flag("config-from", String(), "The network from which to copy the configuration"),
    Flag("config-only", Bool(), "Create a configuration only network"),
    Flag("driver", String(), "Driver to manage the Network", short="d", default="bridge", shown='"bridge"'),
    Flag("gateway", Strings(), "IPv4 or IPv6 Gateway for the master subnet"),
    Flag("ingress", Bool(), "Create swarm routing-mesh network"),
    Flag("internal", Bool(), "Restrict external access to the network"),
    Flag("ip-range", Strings(), "Allocate container ip from a sub-range"),
    Flag("ipam-driver", String(), "IP Address Management Driver", default="default", shown='"default"'),
    Flag("ipam-opt", Map(), "Set IPAM driver specific options", shown="map[]"),
    Flag("ipv4", Bool(), "Enable or disable IPv4 address assignment", shown="true"),
    Flag("ipv6", Bool(), "Enable or disable IPv6 address assignment"),
    Flag("label", List(label), "Set metadata on a network"),
    Flag("opt", Map(), "Set driver specific options", short="o", shown="map[]"),
    Flag("scope", String(), "Control the network's scope"),
    Flag("subnet", Strings(), "Subnet in CIDR format that represents a network segment"),
)
def create(client: Client, args: list[str], **flags: Any) -> None:
    """Create a network"""
    from control.cli.subnets import ipam_config

    body: dict[str, Any] = {
        "Name": args[0],
        "Driver": flags["driver"],
        "Scope": flags["scope"],
        "IPAM": {
            "Driver": flags["ipam_driver"],
            "Options": flags["ipam_opt"],
            "Config": ipam_config(flags["subnet"], flags["ip_range"], flags["gateway"], flags["aux_address"]),
        },
        "Internal": bool(flags["internal"]),
        "Attachable": bool(flags["attachable"]),
        "Ingress": bool(flags["ingress"]),
        "ConfigOnly": bool(flags["config_only"]),
        "ConfigFrom": {"Network": flags["config_from"]} if flags["config_from"] else None,
        "Options": flags["opt"],
        "Labels": pairs(flags["label"]),
    }
    # The server's defaults stand for what was not said.
    for key, flag in (("EnableIPv4", "ipv4"), ("EnableIPv6", "ipv6")):
        if flags[flag] is not None:
            body[key] = flags[flag]
    with Progress(f"creating network {args[0]}"):
        answer = client.post("/networks/create", body)
    if answer.get("Warning"):
        click.echo(f"WARNING: {answer['Warning']}", err=True)
    click.echo(answer["Id"])


@command(
    "connect",
    "[OPTIONS] NETWORK CONTAINER",
    exactly(2),
    Flag("alias", Strings(), "Add network-scoped alias for the container"),
    Flag("driver-opt", Strings(), "driver options for the network"),
    Flag(
        "gw-priority",
        Int(),
        "Highest gw-priority provides the default gateway. Accepts positive and negative values.",
        default=0,
    ),
    Flag("ip", String(), 'IPv4 address (e.g., "172.30.100.104")'),
    Flag("ip6", String(), 'IPv6 address (e.g., "2001:db8::33")'),
    Flag("link", List(link), "Add link to another container"),
    Flag("link-local-ip", Strings(), "Add a link-local address for the container"),
    Flag("mac-address", String(), 'MAC address (e.g., "92:d0:c6:0a:29:33")'),
    complete=complete.network_then_sandbox,
)
def connect(client: Client, args: list[str], **flags: Any) -> None:
    """Connect a container to a network"""
    addresses = {"IPv4Address": flags["ip"], "IPv6Address": flags["ip6"], "LinkLocalIPs": flags["link_local_ip"]}
    endpoint = {
        "IPAMConfig": {key: value for key, value in addresses.items() if value},
        "Links": flags["link"] or None,
        "Aliases": flags["alias"],
        "MacAddress": flags["mac_address"],
        "DriverOpts": driver_options(flags["driver_opt"]),
        "GwPriority": flags["gw_priority"],
    }
    target, sandbox = args
    with Progress(f"connecting {sandbox} to {target}"):
        client.post(f"{_path(target)}/connect", {"Container": sandbox, "EndpointConfig": endpoint})


def driver_options(items: list[str]) -> dict[str, str]:
    """Parses "key=value" items of `--driver-opt`; raises CliError for one without a key or without "="."""
    options = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise CliError("invalid key/value pair format in driver options")
        options[key.strip()] = value.strip()
    return options


@command(
    "disconnect",
    "[OPTIONS] NETWORK CONTAINER",
    exactly(2),
    Flag("force", Bool(), "Force the container to disconnect from a network", short="f"),
    complete=complete.network_then_sandbox,
)
def disconnect(client: Client, args: list[str], force: bool | None) -> None:
    """Disconnect a container from a network"""
    target, sandbox = args
    with Progress(f"disconnecting {sandbox} from {target}"):
        client.post(f"{_path(target)}/disconnect", {"Container": sandbox, "Force": bool(force)})


@command(
    "ls",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("filter", Filter(), 'Provide filter values (e.g. "driver=bridge")', short="f"),
    Flag("format", String(), LIST_FORMAT_HELP),
    Flag("no-trunc", Bool(), "Do not truncate the output"),
    Flag("quiet", Bool(), "Only display network IDs", short="q"),
    aliases=["list"],
)
def ls(
    client: Client, args: list[str], filter: dict[str, Any], format: str, no_trunc: bool | None, quiet: bool | None
) -> None:
    """List networks"""
    from control.cli.listing import write
    from control.cli.natural import natural_key
    from control.cli.rows import NETWORKS

    with Progress("listing networks"):
        networks = client.get("/networks", **_filters(filter)) or []
    networks.sort(key=lambda record: natural_key(record["Name"]))
    write(NETWORKS, networks, format, quiet=bool(quiet), trunc=not no_trunc)


def _filters(filters: dict[str, Any]) -> dict[str, str]:
    return {"filters": json.dumps(filters, separators=(",", ":"), sort_keys=True)} if filters else {}


@command(
    "inspect",
    "[OPTIONS] NETWORK [NETWORK...]",
    ONE_OR_MORE,
    Flag("format", String(), INSPECT_FORMAT_HELP, short="f"),
    Flag("verbose", Bool(), "Verbose output for diagnostics", short="v"),
    complete=complete.networks,
)
def inspect(client: Client, args: list[str], format: str, verbose: bool | None) -> int:
    """Display detailed information on one or more networks"""
    from control.cli.inspecting import inspect_all
    from control.cli.shapes import NETWORK

    query = {"verbose": "true"} if verbose else {}

    def fetch(name: str) -> bytes:
        with Progress(f"inspecting network {name}"):
            return client.get_raw(_path(name), **query)

    return inspect_all(args, format, fetch, NETWORK)


@command(
    "rm",
    "NETWORK [NETWORK...]",
    ONE_OR_MORE,
    Flag("abandoned", Bool(), "Also remove a network whose container engine is gone"),
    Flag("force", Bool(), "Do not error if the network does not exist", short="f"),
    aliases=["remove"],
    complete=complete.networks,
)
def rm(client: Client, args: list[str], abandoned: bool | None, force: bool | None) -> int:
    """Remove one or more networks"""
    status = 0
    for name in args:
        try:
            if not _may_remove(client, name):
                continue
            with Progress(f"removing network {name}"):
                client.delete(_path(name), **({"force": "1"} if abandoned else {}))
        except CliError as error:
            if force and isinstance(error, ApiError) and error.status == 404:
                continue
            error.show()
            status = error.exit_status
        else:
            click.echo(name)
    return status


def _may_remove(client: Client, name: str) -> bool:
    """Asks before a routing-mesh network goes; a failing look-up leaves it to the removal to say what is wrong."""
    try:
        found = client.get(_path(name))
    except ApiError:
        return True
    return not found.get("Ingress") or _confirmed(_INGRESS_WARNING)


@command(
    "prune",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("filter", Filter(), 'Provide filter values (e.g. "until=<timestamp>")'),
    Flag("force", Bool(), "Do not prompt for confirmation", short="f"),
)
def prune(client: Client, args: list[str], filter: dict[str, Any], force: bool | None) -> None:
    """Remove all unused networks"""
    if not force and not _confirmed(_PRUNE_WARNING):
        return
    with Progress("removing unused networks"):
        answer = client.post("/networks/prune", **_filters(filter))
    if answer and answer.get("NetworksDeleted"):
        click.echo("Deleted Networks:\n" + "".join(f"{name}\n" for name in answer["NetworksDeleted"]))
