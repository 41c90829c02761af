"""The table `linkspan` in the kernel, as `nft -j` lists it."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from datapath import netns, nft
from datapath.nft import Policy, Publication
from tests.isolated import isolated, run

A = Policy(bridges=["br-a", "s01a"], subnets=[ip_network("10.1.0.0/24"), ip_network("fd01::/64")])
B = Policy(bridges=["br-b"], subnets=[ip_network("10.2.0.0/24")], internal=True)
C = Policy(bridges=["br-c"], subnets=[ip_network("10.3.0.0/25"), ip_network("10.3.0.128/25")], connected=False)


def ruleset() -> list[Any]:
    return list(json.loads(run("nft -j list ruleset"))["nftables"])


def sets() -> dict[str, list[Any]]:
    return {item["set"]["name"]: item["set"].get("elem", []) for item in ruleset() if "set" in item}


def ports() -> dict[str, list[Any]]:
    """[key, value] of each port or range, by map."""
    return {item["map"]["name"]: item["map"].get("elem", []) for item in ruleset() if "map" in item}


def port(address: str, host_port: int, first: int = 80, count: int = 1, **more: Any) -> Publication:
    return Publication(
        more.pop("protocol", "tcp"), ip_address(address), first, more.pop("host_ip", None), host_port, count
    )


def rules() -> list[str]:
    return [json.dumps(item["rule"]["expr"]) for item in ruleset() if "rule" in item]


def is_empty() -> bool:
    return all(elements == [] for elements in (*sets().values(), *ports().values()))


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


ANYWHERE4, ANYWHERE6 = {"prefix": {"addr": "0.0.0.0", "len": 0}}, {"prefix": {"addr": "::", "len": 0}}
WEB = port("10.1.0.2", 8080)
WEB6 = port("fd01::2", 8080, host_ip=ip_address("2001:db8::1"), protocol="udp")
RANGE = port("10.1.0.2", 9000, 9000, 1000)
MOVED = port("fd01::2", 9000, 8000, 2)
PORTS = {
    "translated4": [[{"concat": [ANYWHERE4, "tcp", 8080]}, {"concat": ["10.1.0.2", 80]}]],
    "published4": [[{"concat": [ANYWHERE4, "tcp", {"range": [9000, 9999]}]}, "10.1.0.2"]],
    "translated6": [
        [{"concat": ["2001:db8::1", "udp", 8080]}, {"concat": ["fd01::2", 80]}],
        [{"concat": [ANYWHERE6, "tcp", 9000]}, {"concat": ["fd01::2", 8000]}],
        [{"concat": [ANYWHERE6, "tcp", 9001]}, {"concat": ["fd01::2", 8001]}],
    ],
    "published6": [],
}


def as_a_set(listed: dict[str, list[Any]]) -> dict[str, set[str]]:
    return {name: {json.dumps(element) for element in elements} for name, elements in listed.items()}


@isolated
def test_ports_come_and_go_as_elements_and_rules_stay_the_same() -> None:
    nft.publish([WEB])
    first = rules()
    for publication in (WEB, WEB6, RANGE, MOVED):
        nft.publish([publication])
    nft.publish([RANGE, MOVED])
    assert as_a_set(ports()) == as_a_set(PORTS)
    for publication in (WEB6, RANGE, RANGE):
        nft.unpublish([publication])
    nft.unpublish([MOVED, WEB6, WEB])
    assert is_empty()
    assert rules() == first


@isolated
def test_unpublishing_without_a_table_makes_none() -> None:
    nft.unpublish([WEB])
    assert ruleset()[1:] == []


@isolated
def test_synchronizing_leaves_exactly_the_given_ports_and_forgets_them_without() -> None:
    nft.publish([port("10.9.0.9", 53, protocol="udp"), port("10.9.0.9", 9001, 9001)])
    nft.synchronize([A], [WEB, WEB6, RANGE, MOVED])
    assert as_a_set(ports()) == as_a_set(PORTS)
    assert sets()["bridges"] == ["br-a"]
    nft.synchronize([])
    assert is_empty()


@pytest.mark.parametrize(
    "taken",
    [
        port("10.1.0.3", 9000, 9000, 1000),
        port("10.1.0.3", 9500, 9500),
        port("10.1.0.2", 9500, 9500),
        port("10.1.0.3", 9999, 9999, 5),
        port("10.1.0.3", 8990, 8990, 20),
        port("10.1.0.3", 9500, 9500, host_ip=ip_address("203.0.113.1")),
    ],
)
@isolated
def test_a_port_that_another_endpoint_has_is_refused_with_all_that_comes_with_it(taken: Publication) -> None:
    nft.publish([RANGE])
    before = ports()
    with pytest.raises(nft.NftError, match="File exists") as caught:
        nft.publish([port("10.1.0.3", 7000), taken])
    assert caught.value.errno == errno.EEXIST
    assert ports() == before


@isolated
def test_ports_that_were_given_to_another_endpoint_are_not_unpublished() -> None:
    """The key alone would do to delete an element, and any key inside an interval."""
    nft.publish([RANGE, WEB, port("10.1.0.2", 7000)])
    before = ports()
    nft.unpublish([port("10.1.0.3", 9000, 9000, 1000), port("10.1.0.3", 8080), port("10.1.0.2", 9005, 9005)])
    assert ports() == before
    nft.unpublish([port("10.1.0.3", 8080), port("10.1.0.2", 7000)])
    assert ports() == {**before, "translated4": PORTS["translated4"]}


@isolated
def test_a_table_of_an_older_linkspan_gets_what_it_lacks() -> None:
    nft.add(A)
    run("nft flush chain inet linkspan prerouting; nft flush chain inet linkspan output")
    run("nft flush chain inet linkspan ports; nft delete map inet linkspan published4")
    nft.publish([RANGE])
    assert ports()["published4"] == PORTS["published4"]
    assert any('"type": "local"' in rule or "fib" in rule for rule in rules())


@isolated
def test_the_loopback_and_hairpin_switches_are_set_on_one_device() -> None:
    run("ip link add br-a type bridge && ip link add v0 type veth peer name v1 && ip link set v0 master br-a")
    for _ in range(2):
        nft.allow_loopback("br-a")
        nft.allow_hairpin("v0")
    values = [Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").read_text() for name in ("br-a", "v0", "all")]
    assert values == ["1\n", "0\n", "0\n"]
    (link,) = json.loads(run("ip -json -d link show v0"))
    assert link["linkinfo"]["info_slave_data"]["hairpin"] is True
    with pytest.raises(OSError, match="route_localnet"):
        nft.allow_loopback("br-z")
    with pytest.raises(OSError, match="device v9 is gone"):
        nft.allow_hairpin("v9")
    with pytest.raises(OSError, match="cannot set hairpin mode of br-a"):
        nft.allow_hairpin("br-a")
