"""What the nftables table `linkspan` does with a packet: its rules are read back from the kernel, its sets asked there.

Only the first packet of a connection is asked about, and only expressions that stand in the table are known: a rule
with another one is named as such, never passed over in silence. What other tables do is not told, but that they look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

from datapath import nft

Address = IPv4Address | IPv6Address

_FAMILY: Final = nft.TABLE.split()[0]
_TABLE: Final = nft.TABLE.split()[1]
_VALUE: Final = re.compile(r"elements = \{ .* : (\S+)(?: \. (\d+))? \}")
_HANDLE: Final = re.compile(r"\s*(?P<text>.*?) # handle (?P<handle>\d+)$")
_COUNTER: Final = re.compile(r"counter packets \d+ bytes \d+ ")
_SILENT: Final = frozenset({"counter", "notrack"})
_VERDICTS: Final = frozenset({"accept", "drop", "return", "masquerade"})


@dataclass(frozen=True)
class Packet:
    """What rules look at. `port` is the destination's, 0 without ports; a device is empty where there is none yet.
    `is_local`: the destination is one of the host's; `is_translated`: it was changed by a rule."""

    source: Address
    destination: Address
    protocol: str
    port: int
    iif: str
    oif: str = ""
    is_local: bool = False
    is_translated: bool = False


@dataclass(frozen=True)
class Ruling:
    """What a chain does. `verdict` is "accept", "drop", "masquerade", "dnat" or "unknown"; `rule` is the rule's text
    as nft(8) lists it, empty for the policy; `to` and `port` are the new destination of "dnat"."""

    verdict: str
    chain: str
    rule: str = ""
    to: Address | None = None
    port: int = 0


class Firewall:
    """The table as it is when this is made. Raises NftError."""

    def __init__(self) -> None:
        listed = nft.listed("-j", "list", "table", _FAMILY, _TABLE)
        self._rules: dict[str, list[dict[str, Any]]] = {}
        for entry in json.loads(listed)["nftables"] if listed else ():
            if "rule" in entry:
                self._rules.setdefault(entry["rule"]["chain"], []).append(entry["rule"])
        lines = nft.listed("-a", "list", "table", _FAMILY, _TABLE).splitlines()
        found = filter(None, map(_HANDLE.match, lines))
        self._texts = {int(match["handle"]): _COUNTER.sub("", match["text"]) for match in found}

    def is_bridge(self, ifname: str) -> bool:
        """Whether a device is the bridge by which a network of ours is routed."""
        return bool(_element("bridges", [f'"{ifname}"']))

    def judge(self, chain: str, packet: Packet) -> Ruling:
        """What a base chain of the table does with the packet."""
        return self._walk(chain, packet) or Ruling("accept", chain)

    def others(self, hook: str) -> list[str]:
        """The base chains of other tables that see packets at a hook, as in "ip filter FORWARD (policy drop)"."""
        found = []
        for entry in json.loads(nft.listed("-j", "list", "chains") or '{"nftables": []}')["nftables"]:
            chain = entry.get("chain", {})
            if chain.get("hook") == hook and (chain["family"], chain["table"]) != (_FAMILY, _TABLE):
                text = f"{chain['family']} {chain['table']} {chain['name']}"
                found.append(f"{text} (policy {chain['policy']})" if chain.get("policy") else text)
        return found

    def _walk(self, chain: str, packet: Packet) -> Ruling | None:
        for rule in self._rules.get(chain, ()):
            text = self._texts.get(rule["handle"], f"handle {rule['handle']}")
            for statement in rule["expr"]:
                [(kind, body)] = statement.items()
                if kind == "match":
                    try:
                        holds = _holds(body, packet)
                    except KeyError:
                        return Ruling("unknown", chain, text)
                    if not holds:
                        break
                elif kind == "jump":
                    ruling = self._walk(body["target"], packet)
                    if ruling is not None:
                        return ruling
                elif kind == "dnat":
                    ruling = _translate(body, packet, chain, text)
                    if ruling is not None:
                        return ruling
                    break
                elif kind == "return":
                    return None
                elif kind in _VERDICTS:
                    return Ruling(kind, chain, text)
                elif kind not in _SILENT:
                    return Ruling("unknown", chain, text)
        return None


def translated(packet: Packet, ruling: Ruling) -> Packet:
    """The packet with the destination that a ruling "dnat" gives it."""
    assert ruling.to is not None
    return replace(packet, destination=ruling.to, port=ruling.port or packet.port, is_local=False, is_translated=True)


def _holds(match: dict[str, Any], packet: Packet) -> bool:
    """Raises KeyError for an expression that is not known."""
    left = _read(match["left"], packet)
    if left is None:  # not a field of this packet
        return False
    is_in = _is_in(left, match["right"])
    return not is_in if match["op"] == "!=" else is_in


def _read(expression: dict[str, Any], packet: Packet) -> Sequence[str] | None:
    [(kind, body)] = expression.items()
    if kind == "concat":
        parts = [_read(part, packet) for part in body]
        return None if any(part is None for part in parts) else [text for part in parts for text in part or ()]
    if kind == "meta":
        return [{"iifname": f'"{packet.iif}"', "oifname": f'"{packet.oif}"', "l4proto": packet.protocol}[body["key"]]]
    if kind == "fib":
        return ["local" if packet.is_local else "unicast"]
    if kind == "ct":
        return {"status": ["dnat"] if packet.is_translated else [""], "state": ["new"]}[body["key"]]
    if kind != "payload":
        raise KeyError(kind)
    field = (body["protocol"], body["field"])
    if field == ("th", "dport"):
        return [str(packet.port)] if packet.port else None
    if {"ip": 4, "ip6": 6}[field[0]] != packet.source.version:
        return None
    values = {"saddr": str(packet.source), "daddr": str(packet.destination)}
    return [{**values, "protocol": packet.protocol, "nexthdr": packet.protocol}[field[1]]]


def _is_in(left: Sequence[str], right: Any) -> bool:
    if isinstance(right, str) and right.startswith("@"):
        return bool(_element(right[1:], left))
    if isinstance(right, dict) and "set" in right:
        return left[0] in right["set"]
    if isinstance(right, dict):
        prefix = right["prefix"]
        return ip_address(left[0]) in ip_network(f"{prefix['addr']}/{prefix['len']}")
    return left[0] in right if isinstance(right, list) else left[0] == right


def _element(name: str, key: Sequence[str]) -> str:
    """The element of a set or map that a key is in, as nft(8) lists it; empty if it is in none."""
    return nft.listed("get", "element", _FAMILY, _TABLE, name, "{", " . ".join(key), "}")


def _translate(body: dict[str, Any], packet: Packet, chain: str, text: str) -> Ruling | None:
    table = body["addr"]["map"]
    key = _read(table["key"], packet)
    match = _VALUE.search(_element(table["data"][1:], key)) if key is not None else None
    return match and Ruling("dnat", chain, text, ip_address(match[1]), int(match[2] or 0))
