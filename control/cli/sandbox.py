"""`linkspan run`, `exec`, `ps`, `rm` and `logs`: processes in sandboxes, in the words of Docker's containers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from control.cli import complete
from control.cli.client import Client, segment
from control.cli.command import NO_ARGUMENTS, ONE_OR_MORE, Arity, Flag, command, exactly
from control.cli.errors import USAGE, ApiError, CliError
from control.cli.listing import LIST_FORMAT_HELP
from control.cli.progress import Progress
from control.cli.values import Bool, Filter, List, String, label, pairs

_DEFAULT_NETWORK: Final = "bridge"
_FOLLOW_PERIOD_S: Final = 0.1
_ALWAYS_SO: Final = "(always so; taken for Docker's sake)"


def _path(reference: str) -> str:
    if not reference.strip():
        raise CliError("invalid sandbox name or ID: value is empty")
    return f"/linkspan/sandboxes/{segment(reference)}"


def _network_option(text: str) -> list[dict[str, Any]]:
    """Parses one `--network`: names separated by commas, or Docker's "name=…,ip=…,alias=…" for one network."""
    if "=" not in text:
        return [{"Network": name} for name in text.split(",")]
    network: dict[str, Any] = {}
    addresses = {"ip": "IPv4Address", "ip6": "IPv6Address"}
    for field in text.split(","):
        key, equals, value = field.partition("=")
        key = key.strip().lower()
        if not equals:
            raise ValueError(f"invalid field {field}")
        if key == "name":
            network["Network"] = value
        elif key in addresses:
            network.setdefault("IPAMConfig", {})[addresses[key]] = value
        elif key == "link-local-ip":
            network.setdefault("IPAMConfig", {}).setdefault("LinkLocalIPs", []).append(value)
        elif key == "alias":
            network.setdefault("Aliases", []).append(value)
        elif key == "mac-address":
            network["MacAddress"] = value
        elif key == "driver-opt":
            option, _, setting = value.partition("=")
            network.setdefault("DriverOpts", {})[option] = setting
        else:
            raise ValueError(f"invalid field key {key}")
    if not network.get("Network"):
        raise ValueError("network name/id is not specified")
    return [network]


class _Networks(List):
    """`--network`, any number of times; collects one object per network in the order given."""

    label = "network"

    def parse(self, text: str) -> Any:
        return _network_option(text)

    def collect(self, values: Sequence[Any]) -> Any:
        return [network for value in values for network in value]


def _endpoints(flags: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks to join; addresses and aliases given apart from `--network` are for the first, as in Docker."""
    networks: list[dict[str, Any]] = flags["network"] or [{"Network": _DEFAULT_NETWORK}]
    first = networks[0]
    for flag, key in (("ip", "IPv4Address"), ("ip6", "IPv6Address"), ("link_local_ip", "LinkLocalIPs")):
        if flags[flag]:
            _set(first.setdefault("IPAMConfig", {}), key, flags[flag], f"--{flag.replace('_', '-')}")
    if flags["mac_address"]:
        _set(first, "MacAddress", flags["mac_address"], "--mac-address")
    if flags["network_alias"]:
        _set(first, "Aliases", flags["network_alias"], "--network-alias")
    return networks


def _set(target: dict[str, Any], key: str, value: Any, flag: str) -> None:
    if key in target:
        raise CliError(f"conflicting options: {flag} and --network both set {key}", USAGE)
    target[key] = value


def _environment(settings: Sequence[str]) -> dict[str, str]:
    """Ours with the settings "NAME=value"; a NAME alone is passed on as it is, which it is anyway."""
    return {**os.environ, **pairs([setting for setting in settings if "=" in setting])}


def _check_environment(text: str) -> str:
    if not text.partition("=")[0]:
        raise ValueError(f"invalid environment variable: {text}")
    return text


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise CliError(
            f"linkspan: {what} needs root, because it enters the sandbox's namespaces: use sudo linkspan {what} …",
            USAGE,
        )


_PROCESS_FLAGS: Final = (
    ("env", List(_check_environment), "Set environment variables", "e"),
    ("interactive", Bool(), f"Keep STDIN open {_ALWAYS_SO}", "i"),
    ("tty", Bool(), f"Use the terminal of the command line {_ALWAYS_SO}", "t"),
    ("workdir", String(), "Working directory of the command", "w"),
)


def _process_flags() -> list[Flag]:
    return [Flag(name, kind, text, short=short) for name, kind, text, short in _PROCESS_FLAGS]


@command(
    "run",
    "[OPTIONS] COMMAND [ARG...]",
    ONE_OR_MORE,
    Flag("detach", Bool(), "Run the command in the background and print the sandbox ID", short="d"),
    Flag("ip", String(), "IPv4 address (e.g., 172.30.100.104)"),
    Flag("ip6", String(), "IPv6 address (e.g., 2001:db8::33)"),
    Flag("label", List(label), "Set meta data on a sandbox", short="l"),
    Flag("link-local-ip", List(), "IPv4/IPv6 link-local addresses"),
    Flag("mac-address", String(), "MAC address (e.g., 92:d0:c6:0a:29:33)"),
    Flag("name", String(), "Assign a name to the sandbox"),
    Flag("network", _Networks(), "Connect the sandbox to a network", also="net", complete=complete.network_list),
    Flag("network-alias", List(), "Add network-scoped alias for the sandbox", also="alias"),
    Flag("rm", Bool(), "Automatically remove the sandbox when it exits"),
    *_process_flags(),
    interspersed=False,
)
def run(client: Client, args: list[str], **flags: Any) -> int:
    """Create a sandbox and run a command in it"""
    _require_root("run")
    try:
        return _run(client, args, flags)
    except CliError as error:
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        text = error.message if error.message.startswith("linkspan: ") else f"linkspan: {error.message}"
        status = error.exit_status if error.exit_status > USAGE else USAGE
        raise CliError(f"{text}{notes}\n\nRun 'linkspan run --help' for more information", status) from error


def _run(client: Client, args: list[str], flags: dict[str, Any]) -> int:
    from control.cli.enter import View
    from control.cli.process import Program, run_detached, run_foreground

    program = Program(args, _environment(flags["env"]), flags["workdir"])
    body = {"Name": flags["name"], "Networks": _endpoints(flags), "Command": args, "Labels": pairs(flags["label"])}
    with Progress("creating a sandbox"):
        sandbox = client.post("/linkspan/sandboxes", body)
    identity, status_file = sandbox["Id"], sandbox["ExitStatusPath"]

    def announce(pid: int) -> None:
        client.post(f"{_path(identity)}/started", {"Pid": pid})

    try:
        if flags["detach"]:
            removal = [client.socket_path, identity] if flags["rm"] else []
            run_detached(View.of(sandbox), program, announce, status_file, removal)
            click.echo(identity)
            return 0
        code = run_foreground(View.of(sandbox), program, announce, status_file)
    except BaseException as error:
        try:
            client.delete(_path(identity), force="1")
        except CliError as failure:
            error.add_note(f"linkspan: sandbox {identity[:12]} is left: {failure.message}")
        raise
    if flags["rm"]:
        client.delete(_path(identity), force="1")
    return code


@command(
    "exec",
    "[OPTIONS] SANDBOX COMMAND [ARG...]",
    Arity(2, None),
    *_process_flags(),
    complete=complete.first_sandbox,
    interspersed=False,
)
def exec_(client: Client, args: list[str], env: list[str], workdir: str, **ignored: Any) -> None:
    """Execute a command in a sandbox"""
    from control.cli.enter import View, enter
    from control.cli.process import Program

    _require_root("exec")
    name, *words = args
    words = words[1:] if words[0] == "--" else words
    if not words:
        raise CliError("linkspan: exec needs a command after --", USAGE)
    sandbox = client.get(_path(name))
    if sandbox["State"] not in ("created", "running"):
        raise CliError(f"Error response from daemon: sandbox {name} is not running")
    try:
        enter(View.of(sandbox))
    except OSError as error:
        raise CliError(f"linkspan: cannot enter sandbox {name}: {error.strerror}", USAGE) from error
    Program(words, _environment(env), workdir).exec()


@command(
    "ps",
    "[OPTIONS]",
    NO_ARGUMENTS,
    Flag("all", Bool(), "Show all sandboxes (default shows those that have not exited)", short="a"),
    Flag("filter", Filter(), "Filter output based on conditions provided", short="f"),
    Flag("format", String(), LIST_FORMAT_HELP),
    Flag("no-trunc", Bool(), "Don't truncate output"),
    Flag("quiet", Bool(), "Only display sandbox IDs", short="q"),
)
def ps(
    client: Client,
    args: list[str],
    all: bool | None,
    filter: dict[str, dict[str, bool]],
    format: str,
    no_trunc: bool | None,
    quiet: bool | None,
) -> None:
    """List sandboxes"""
    from control.cli.filters import SANDBOXES as TESTS
    from control.cli.filters import matching
    from control.cli.listing import write
    from control.cli.rows import SANDBOXES

    query = {"all": "1"} if all or "status" in filter else {}
    with Progress("listing sandboxes"):
        found = matching(client.get("/linkspan/sandboxes", **query) or [], filter, TESTS, "sandboxes")
    found.sort(key=lambda sandbox: sandbox["Created"], reverse=True)
    write(SANDBOXES, found, format, quiet=bool(quiet), trunc=not no_trunc)


@command(
    "rm",
    "[OPTIONS] SANDBOX [SANDBOX...]",
    ONE_OR_MORE,
    Flag("force", Bool(), "Force the removal of a running sandbox (uses SIGKILL)", short="f"),
    complete=complete.sandboxes,
)
def rm(client: Client, args: list[str], force: bool | None) -> int:
    """Remove one or more sandboxes"""
    status = 0
    query = {"force": "1"} if force else {}
    for name in args:
        try:
            with Progress(f"removing sandbox {name}"):
                client.delete(_path(name), **query)
        except CliError as error:
            error.show()
            if not (force and isinstance(error, ApiError) and error.status == 404):
                status = error.exit_status
        else:
            click.echo(name)
    return status


@command(
    "logs",
    "[OPTIONS] SANDBOX",
    exactly(1),
    Flag("follow", Bool(), "Follow log output", short="f"),
    Flag("tail", String(), "Number of lines to show from the end of the logs", short="n", default="all", shown='"all"'),
    complete=complete.first_sandbox,
)
def logs(client: Client, args: list[str], follow: bool | None, tail: str) -> None:
    """Print the output of a detached sandbox"""
    from control.cli.process import log_path

    sandbox = client.get(_path(args[0]))
    path = Path(log_path(sandbox["ExitStatusPath"]))
    try:
        log = path.open("rb")
    except FileNotFoundError as error:
        raise CliError(f"sandbox {args[0]} has no log: only the output of run --detach is kept") from error
    except PermissionError as error:
        raise CliError(f"linkspan: logs needs root to read {path}: use sudo linkspan logs …") from error
    output = sys.stdout.buffer
    with log:
        output.write(_tail(log.read(), tail))
        while follow:
            output.flush()
            # Asked before the rest is read: what the process wrote before its end is not missed.
            follow = _is_running(client, sandbox["Id"])
            if follow:
                time.sleep(_FOLLOW_PERIOD_S)
            output.write(log.read())
        output.flush()


def _tail(text: bytes, count: str) -> bytes:
    if count == "all":
        return text
    if not count.isdecimal():
        raise CliError(f'linkspan: invalid value "{count}" of --tail: a number of lines, or "all"', USAGE)
    lines = text.splitlines(keepends=True)
    return b"".join(lines[max(0, len(lines) - int(count)) :])


def _is_running(client: Client, identity: str) -> bool:
    try:
        return bool(client.get(_path(identity))["State"] == "running")
    except ApiError:
        return False
