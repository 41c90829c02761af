"""The text that is handed to nft, and what becomes of its refusals; tests/netns/test_nft_kernel.py has the kernel."""

from __future__ import annotations

import errno
import re
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from datapath import conntrack, nft
from datapath.nft import NftError, Policy, Publication

BOTH = [ip_network("10.1.0.0/24"), ip_network("fd01::/64")]


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What nft is asked for; the table is there."""
    asked: list[str] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if "-f" in command:
            asked.append(str(options["input"]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def elements(transaction: str, verb: str = "add") -> dict[str, list[str]]:
    """What is added to (or deleted from) each set."""
    found: dict[str, list[str]] = {}
    for line in transaction.splitlines():
        if line.startswith(f"{verb} element inet linkspan "):
            name, _, element = line.removeprefix(f"{verb} element inet linkspan ").partition(" ")
            found.setdefault(name, []).append(element.strip("{ }"))
    return found


def test_an_ordinary_network_is_let_out_masqueraded_and_talks_with_itself(transactions: list[str]) -> None:
    nft.add(Policy(bridges=["br0"], subnets=BOTH))
    (transaction,) = transactions
    assert elements(transaction) == {
        "bridges": ['"br0"'],
        "hairpin": ['"br0" . "br0"'],
        "own4": ['10.1.0.0/24 . "br0"'],
        "own6": ['fd01::/64 . "br0"'],
        "masquerade4": ["10.1.0.0/24"],
        "masquerade6": ["fd01::/64"],
    }


@pytest.mark.parametrize(
    ("policy", "missing", "added"),
    [
        (Policy(bridges=["br0"], subnets=BOTH, connected=False), {"hairpin"}, set()),
        (Policy(bridges=["br0"], subnets=BOTH, masquerade=False), {"masquerade4", "masquerade6"}, set()),
        (Policy(bridges=["br0"], subnets=BOTH, internal=True), {"masquerade4", "masquerade6"}, {"internal"}),
        (Policy(bridges=["br0"], subnets=BOTH[:1]), {"own6", "masquerade6"}, set()),
        (Policy(bridges=["br0"], subnets=BOTH[1:]), {"own4", "masquerade4"}, set()),
    ],
)
def test_what_a_network_is_not_allowed_is_left_out(
    transactions: list[str], policy: Policy, missing: set[str], added: set[str]
) -> None:
    nft.add(policy)
    ordinary = {"bridges", "hairpin", "own4", "own6", "masquerade4", "masquerade6"}
    assert elements(transactions[0]).keys() == ordinary - missing | added


def test_only_the_first_bridge_of_a_network_routes_but_none_is_masqueraded_within(transactions: list[str]) -> None:
    nft.add(Policy(bridges=["br0", "s01", "s02"], subnets=BOTH[:1]))
    found = elements(transactions[0])
    assert found["bridges"] == ['"br0"']
    assert found["hairpin"] == ['"br0" . "br0"']
    assert found["own4"] == [f'10.1.0.0/24 . "{bridge}"' for bridge in ("br0", "s01", "s02")]
    assert found["shards"] == ['"s01"', '"s02"']


def test_a_removal_deletes_what_an_addition_adds(transactions: list[str]) -> None:
    policy = Policy(bridges=["br0", "s01"], subnets=BOTH, internal=True)
    nft.add(policy)
    nft.remove(policy)
    added = elements(transactions[0])
    assert elements(transactions[1], "delete") == {name: added[name][::-1] for name in added}


def publication(**changes: Any) -> Publication:
    settings = {"protocol": "tcp", "address": "10.1.0.2", "port": 80, "host_ip": None, "host_port": 8080} | changes
    for name in ("address", "host_ip"):
        settings[name] = settings[name] and ip_address(settings[name])
    return Publication(**settings)


@pytest.mark.parametrize(
    ("changes", "where", "expected"),
    [
        ({}, "translated4", ["0.0.0.0/0 . tcp . 8080 : 10.1.0.2 . 80"]),
        ({"port": 8080}, "published4", ["0.0.0.0/0 . tcp . 8080 : 10.1.0.2"]),
        ({"port": 8080, "count": 11}, "published4", ["0.0.0.0/0 . tcp . 8080-8090 : 10.1.0.2"]),
        ({"port": 8080, "host_ip": "203.0.113.1"}, "published4", ["203.0.113.1 . tcp . 8080 : 10.1.0.2"]),
        ({"port": 8080, "host_ip": "0.0.0.0"}, "published4", ["0.0.0.0/0 . tcp . 8080 : 10.1.0.2"]),
        ({"address": "fd01::2", "port": 8080}, "published6", ["::/0 . tcp . 8080 : fd01::2"]),
        ({"address": "fd01::2", "host_ip": "::"}, "translated6", ["::/0 . tcp . 8080 : fd01::2 . 80"]),
        (
            {"address": "fd01::2", "host_ip": "2001:db8::1", "count": 2},
            "translated6",
            ["2001:db8::1 . tcp . 8080 : fd01::2 . 80", "2001:db8::1 . tcp . 8081 : fd01::2 . 81"],
        ),
    ],
)
def test_a_port_or_a_range_that_keeps_its_ports_is_one_element(
    transactions: list[str], changes: dict[str, Any], where: str, expected: list[str]
) -> None:
    nft.publish([publication(**changes)])
    assert elements(transactions[0]) == {where: expected}
    nft.unpublish([publication(**changes)])
    assert elements(transactions[1], "delete") == {where: expected[::-1]}


def test_udp_flows_are_ended_and_tcp_connections_are_not(
    transactions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(conntrack, "forget_udp_past", lambda *args: ended.append(args))
    monkeypatch.setattr(conntrack, "forget_udp_to", lambda *args: ended.append(args))
    both = [publication(), publication(protocol="udp", count=3)]
    nft.publish(both)
    assert ended == [(ip_address("10.1.0.2"), None, range(8080, 8083))]
    nft.unpublish(both)
    assert ended[1:] == [(ip_address("10.1.0.2"), range(8080, 8083))]
    assert len(transactions) == 2


def test_flows_that_the_kernel_does_not_let_go_are_told(
    transactions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dump(self: object, **options: object) -> None:
        raise NetlinkError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(conntrack.NFCTSocket, "dump", dump)
    for change in (nft.publish, nft.unpublish):
        with pytest.raises(OSError, match="cannot end the UDP flows of a published port: Operation not") as caught:
            change([publication(protocol="udp")])
        assert caught.value.errno == errno.EPERM


def test_for_no_ports_nothing_is_run(transactions: list[str]) -> None:
    nft.publish([])
    nft.unpublish([])
    assert transactions == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": "sctp"}, "ports of sctp cannot be published"),
        ({"count": 0}, "0 ports cannot be published"),
        ({"port": 0}, "1 ports from 0 cannot be published"),
        ({"port": 65535, "count": 2}, "2 ports from 65535 cannot be published"),
        ({"host_port": 0}, "1 ports from 0 cannot be published"),
        ({"host_port": 65536}, "1 ports from 65536 cannot be published"),
        ({"host_port": 65000, "count": 600}, "600 ports from 65000 cannot be published"),
        ({"host_ip": "::"}, ":: cannot stand for 10.1.0.2: they are of different families"),
        ({"address": "fd01::2", "host_ip": "127.0.0.1"}, "127.0.0.1 cannot stand for fd01::2"),
        ({"address": "fd01::2", "host_ip": "::1"}, "::1 cannot stand for an endpoint"),
    ],
)
def test_what_cannot_be_published_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        publication(**changes)


def test_synchronizing_empties_every_set_that_the_rules_declare_and_fills_it_in_one_transaction(
    transactions: list[str],
) -> None:
    nft.synchronize([Policy(bridges=["br0"], subnets=BOTH), Policy(bridges=["br1"], subnets=[], internal=True)])
    (transaction,) = transactions
    lines = transaction.splitlines()
    declared = {line.split()[4] for line in lines if line.startswith(("add set ", "add map "))}
    flushed = {line.split()[4] for line in lines if line.startswith(("flush set ", "flush map "))}
    assert declared == flushed
    assert elements(transaction)["bridges"] == ['"br0"', '"br1"']
    assert transaction.index("flush set") < transaction.index("add element")


def test_a_host_without_nft_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NftError, match="apt-get install nftables"):
        nft.delete_table()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Error: syntax error' >&2; echo 'second line' >&2; exit 1", "table inet linkspan: Error: syntax error$"),
        ("exit 3", "table inet linkspan: exit status 3$"),
    ],
)
def test_a_refusal_is_told_in_nfts_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, says: str
) -> None:
    fake = tmp_path / "nft"
    fake.write_text(f"#!/bin/sh\ncat >/dev/null\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(NftError, match=says):
        nft.delete_table()
