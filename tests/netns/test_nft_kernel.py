"""The table `linkspan` in the kernel, as `nft -j` lists it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from datapath import netns, nft
from datapath.nft import Policy
from tests.isolated import isolated, run

A = Policy(bridges=["br-a", "s01a"], subnets=[ip_network("10.1.0.0/24"), ip_network("fd01::/64")])
B = Policy(bridges=["br-b"], subnets=[ip_network("10.2.0.0/24")], internal=True)
C = Policy(bridges=["br-c"], subnets=[ip_network("10.3.0.0/25"), ip_network("10.3.0.128/25")], connected=False)


def ruleset() -> list[Any]:
    return list(json.loads(run("nft -j list ruleset"))["nftables"])


def sets() -> dict[str, list[Any]]:
    return {item["set"]["name"]: item["set"].get("elem", []) for item in ruleset() if "set" in item}


def rules() -> list[str]:
    return [json.dumps(item["rule"]["expr"]) for item in ruleset() if "rule" in item]


def is_empty() -> bool:
    return all(elements == [] for elements in sets().values())


@isolated
def test_networks_come_and_go_as_elements_and_rules_stay_the_same() -> None:
    assert not nft.exists()
    nft.add(A)
    assert nft.exists()
    first = rules()
    for policy in (B, C, C):
        nft.add(policy)
    assert rules() == first
    found = sets()
    assert found["bridges"] == ["br-a", "br-b", "br-c"]
    assert found["internal"] == ["br-b"]
    assert found["hairpin"] == [{"concat": ["br-a", "br-a"]}, {"concat": ["br-b", "br-b"]}]
    assert len(found["own4"]) == 2 + 1 + 2
    assert len(found["own6"]) == 2
    # Two halves next to each other are listed as they were added, not as one.
    assert len(found["masquerade4"]) == 3
    for policy in (C, A, B, B):
        nft.remove(policy)
    assert is_empty()
    assert rules() == first


@isolated
def test_removing_without_a_table_makes_none() -> None:
    nft.remove(A)
    assert ruleset()[1:] == []


@isolated
def test_synchronizing_leaves_exactly_the_given_networks() -> None:
    nft.add(A)
    nft.add(B)
    for _ in range(2):
        nft.synchronize([C])
        assert sets()["bridges"] == ["br-c"]
        assert sets()["own6"] == sets()["internal"] == []
    nft.synchronize([])
    assert is_empty()


@isolated
def test_rules_that_somebody_changed_are_set_right() -> None:
    nft.synchronize([A])
    right = rules()
    run("nft add rule inet linkspan forward accept; nft flush chain inet linkspan postrouting")
    assert rules() != right
    nft.synchronize([A])
    assert rules() == right


@isolated
def test_a_table_that_somebody_deleted_comes_back_with_the_next_network() -> None:
    nft.add(A)
    run("nft delete table inet linkspan")
    nft.add(B)
    assert sets()["bridges"] == ["br-b"]


@isolated
def test_other_tables_are_not_touched() -> None:
    run("nft add table inet other")
    run("nft add chain inet other forward '{ type filter hook forward priority 0; policy drop; }'")
    before = [item for item in ruleset() if "linkspan" not in json.dumps(item)]
    nft.add(A)
    nft.synchronize([B])
    nft.remove(B)
    nft.delete_table()
    nft.delete_table()
    assert [item for item in ruleset() if "linkspan" not in json.dumps(item)] == before


@isolated
def test_many_networks_may_come_and_go_at_once(tmp_path: Path) -> None:
    run(f"mount -t tmpfs sandboxes {tmp_path}")
    here = str(tmp_path / "here")
    run(f"touch {here}; mount --bind /proc/self/ns/net {here}")
    policies = [Policy(bridges=[f"br{n}"], subnets=[ip_network(f"10.{n}.0.0/16")]) for n in range(20)]
    with ThreadPoolExecutor(8, initializer=lambda: netns.enter(here)) as pool:
        list(pool.map(nft.add, policies))
        assert len(sets()["bridges"]) == len(sets()["masquerade4"]) == 20
        list(pool.map(nft.remove, policies))
    assert is_empty()


@isolated
def test_what_nft_refuses_is_told_and_nothing_of_it_is_done() -> None:
    nft.add(A)
    with pytest.raises(nft.NftError, match="nft refused a change to table inet linkspan: "):
        nft.add(Policy(bridges=["a-name-of-more-than-15-characters"], subnets=[ip_network("10.9.0.0/24")]))
    assert "10.9.0.0" not in json.dumps(sets())
