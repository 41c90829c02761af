"""Others' rules that stop what Linkspan lets through: a packet must be let through by every table that sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from control.doctor.findings import Finding, Severity, finding
from control.doctor.view import View
from datapath.rtnl_vxlan import PORT

_DROPS: Final = ("drop", "reject")
_PMTU: Final = ("destination-unreachable", "frag-needed", "packet-too-big")


def forwarded(view: View) -> Iterator[Finding]:
    """Docker's chain is taken care of (`datapath.docker_firewall`)."""
    if not any(network.driver in ("bridge", "overlay") and view.on(network) for network in view.networks):
        return
    dockers = {(each["family"], each["table"]) for each in _chains(view) if each["name"] == "DOCKER-USER"}
    for chain in _chains(view):
        is_docker = (chain["family"], chain["table"]) in dockers
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and not is_docker:
            mend = f"let through what comes from and goes to Linkspan's bridges: {_accept(chain, 'iifname')}"
            yield finding("forward-drop", _name(chain), "its policy is drop", mend)


def vxlan(view: View) -> Iterator[Finding]:
    if not any(network.is_global and view.on(network) for network in view.networks):
        return
    for chain in _chains(view):
        if chain.get("hook") not in ("input", "prerouting"):
            continue
        rules = [rule for rule in _rules(view, chain) if str(PORT) in json.dumps(rule)]
        mend = f"nft insert rule {_name(chain)} udp dport {PORT} accept"
        if any(_verdict(rule) in _DROPS for rule in rules):
            what = f"a rule drops what is for UDP port {PORT}"
            yield finding("vxlan-port", _name(chain), what, mend, severity=Severity.ERROR)
        elif chain.get("policy") == "drop" and not rules:
            yield finding("vxlan-port", _name(chain), f"its policy is drop, and no rule has UDP port {PORT}", mend)


def path_mtu(view: View) -> Iterator[Finding]:
    """Rules that drop the messages by which senders are told that a packet is too big (RFC 1191, RFC 8201)."""
    for chain in _chains(view):
        for rule in _rules(view, chain):
            said = json.dumps(rule.get("expr", ()))
            if _verdict(rule) in _DROPS and (any(each in said for each in _PMTU) or _is_all_icmp(rule)):
                mend = f"nft delete rule {_name(chain)} handle {rule['handle']}, or accept those messages before it"
                yield finding("pmtu-blocked", _name(chain), "a rule drops ICMP that tells of packets too big", mend)


def _is_all_icmp(rule: Any) -> bool:
    """Whether the rule is about the protocol alone."""
    matches = [each["match"] for each in rule.get("expr", ()) if "match" in each]
    return len(matches) == 1 and matches[0].get("op") == "==" and matches[0].get("right") in ("icmp", "ipv6-icmp")


def _chains(view: View) -> list[Any]:
    return [each["chain"] for each in view.ruleset if "chain" in each]


def _rules(view: View, chain: Any) -> list[Any]:
    place = (chain["family"], chain["table"], chain["name"])
    rules = [each["rule"] for each in view.ruleset if "rule" in each]
    return [rule for rule in rules if (rule["family"], rule["table"], rule["chain"]) == place]


def _verdict(rule: Any) -> str:
    return next((kind for each in rule.get("expr", ()) for kind in each if kind in (*_DROPS, "accept")), "")


def _name(chain: Any) -> str:
    return f"{chain['family']} {chain['table']} {chain['name']}"


def _accept(chain: Any, selector: str) -> str:
    return f'nft insert rule {_name(chain)} {selector} "br-*" accept, and the same with oifname'
