"""Keeps Docker's firewall from cutting Linkspan's networks off: one chain of iptables, reached from DOCKER-USER.

Docker sets the policy of iptables' chain FORWARD to DROP, and with br_netfilter that drops even frames between the
ports of a bridge. A packet must be let through by each firewall on a host, so the table `linkspan` cannot help. Docker
leaves the chain DOCKER-USER to others and asks it first: from there one jump leads to our chain LINKSPAN, which accepts
what enters or leaves Linkspan's bridges. The table `linkspan` goes on judging the same packets.

The jump is the last of the rules that count, so the operator's own rules in DOCKER-USER stay in force. All is done with
the `iptables` and `ip6tables` that dockerd uses too, whatever they are links to. Where they are missing, or dockerd
has never run, there is nothing to do and nothing is done. Functions act on the calling thread's network namespace.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

CHAIN: Final = "LINKSPAN"
_DOCKERS: Final = "DOCKER-USER"
_TOOLS: Final = ("iptables", "ip6tables")
_LOCK_WAIT_S: Final = "10"
"""How long to wait for others who change iptables (xtables.lock)."""
_TABLE_BUSY: Final = 4
"""The exit status of iptables for a lack of resources, such as the lock."""
_JUMP: Final = f"-j {CHAIN}"
_RETURN: Final = "-j RETURN"
_BRIDGE: Final = re.compile(r"-i (\S+) -j ACCEPT")
_PLAIN_NAME: Final = re.compile(r"[^\s\"'\\]*[^\s\"'\\+]")
_lock = Lock()


class DockerFirewallError(OSError):
    """iptables could not apply a change; nothing of it was applied."""


def admit(bridges: Sequence[str]) -> None:
    """Lets what enters or leaves the bridges pass Docker's firewall; may be repeated. Raises DockerFirewallError."""
    _change(lambda present: [*present, *(bridge for bridge in bridges if bridge not in present)])


def dismiss(bridges: Sequence[str]) -> None:
    """Takes the bridges back, and with the last one chain and jump; may be repeated. Raises DockerFirewallError."""
    _change(lambda present: [bridge for bridge in present if bridge not in bridges])


def synchronize(bridges: Sequence[str]) -> None:
    """Makes the chain hold exactly these bridges, in one transaction. Raises DockerFirewallError."""
    _change(lambda present: list(dict.fromkeys(bridges)))


def _change(wanted: Callable[[list[str]], list[str]]) -> None:
    with _lock:
        for tool in _TOOLS:
            if shutil.which(tool) is not None:
                _change_one(tool, wanted)


def differs(bridges: Sequence[str]) -> bool:
    """Whether `synchronize` would change more than an order; changes nothing. Raises DockerFirewallError."""

    def wanted(present: list[str]) -> list[str]:
        return present if set(present) == set(bridges) else list(dict.fromkeys(bridges))

    with _lock:
        return any(_difference(tool, wanted) for tool in _TOOLS if shutil.which(tool) is not None)


def _change_one(tool: str, wanted: Callable[[list[str]], list[str]]) -> None:
    if lines := _difference(tool, wanted):
        _restore(tool, lines)


def _difference(tool: str, wanted: Callable[[list[str]], list[str]]) -> list[str]:
    """What is to be handed over to make of what is there what should be, mostly nothing."""
    chains = _chains(tool)
    present, users = chains.get(CHAIN), chains.get(_DOCKERS)
    bridges = wanted([match[1] for rule in present or () if (match := _BRIDGE.fullmatch(rule))])
    rules = [rule for bridge in bridges for rule in _rules(bridge)] if users is not None else []
    lines = []
    if (present or []) != rules or (present is not None and not rules):
        lines += [f":{CHAIN} - [0:0]", *(f"-A {CHAIN} {rule}" for rule in rules)]  # empties it if it is there
    if users is not None:
        lines += _jumps(users, is_wanted=bool(rules))
    if lines and not rules:
        lines.append(f"-X {CHAIN}")
    return lines


def _rules(bridge: str) -> list[str]:
    if not _PLAIN_NAME.fullmatch(bridge):
        raise DockerFirewallError(None, f"iptables cannot tell the device {bridge} from others: give it a plain name")
    return [f"-i {bridge} -j ACCEPT", f"-o {bridge} -j ACCEPT"]


def _jumps(users: Sequence[str], *, is_wanted: bool) -> list[str]:
    """What makes one jump stand before the first rule that returns all, which Docker puts at the end, or no jump."""
    others = [rule for rule in users if rule != _JUMP]
    place = others.index(_RETURN) if _RETURN in others else len(others)
    if list(users) == ([*others[:place], _JUMP, *others[place:]] if is_wanted else others):
        return []
    lines = [f"-D {_DOCKERS} {_JUMP}"] * (len(users) - len(others))
    return [*lines, f"-I {_DOCKERS} {place + 1} {_JUMP}"] if is_wanted else lines


def _chains(tool: str) -> dict[str, list[str]]:
    """The rules of each user-defined chain of the table filter, as iptables prints them without the chain.

    A host where iptables has no such table (no IPv6, rules that it cannot read) has no rules of Docker's in it either.
    """
    done = _run([tool, "-w", _LOCK_WAIT_S, "-S"])
    if done.returncode == _TABLE_BUSY:
        raise DockerFirewallError(None, f"{tool} could not list its rules: {_first_line(done.stderr)}")
    chains: dict[str, list[str]] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        verb, chain, *rule = line.split(" ", 2)
        if verb == "-N":
            chains[chain] = []
        elif verb == "-A" and chain in chains:
            chains[chain].append(rule[0])
    return chains


def _restore(tool: str, lines: Sequence[str]) -> None:
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    done = _run([f"{tool}-restore", "-w", _LOCK_WAIT_S, "--noflush"], text)
    if done.returncode:
        raise DockerFirewallError(None, f"{tool}-restore refused a change to {CHAIN}: {_first_line(done.stderr)}")


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line and not line.startswith("#")), "no reason given")
