"""What the built-in IPAM makes of failed writes, restarts and damaged records."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from control.errors import Forbidden, NotFound, StoreError
from control.ipam.pools import PoolIpam
from control.store.base import Put
from tests.memory_store import MemoryStore


def take_all(ipam: PoolIpam, pool_id: str) -> list[str]:
    return [str(ipam.request_address(pool_id)[0]) for _ in range(ipam.usage(pool_id)[1])]


def test_the_opposite_call_undoes_a_change_whose_write_failed() -> None:
    ipam, store = PoolIpam(), MemoryStore()
    pool, changes = ipam.request_pool("local", subnet=ip_network("10.0.0.0/29"))
    store.write(changes)
    held, changes = ipam.request_address(pool.id, owner="endpoint web")
    store.write(changes)
    used = ipam.usage(pool.id)

    lost, _ = ipam.request_address(pool.id)
    ipam.release_address(pool.id, lost)
    assert ipam.usage(pool.id) == used

    ipam.release_address(pool.id, held)
    assert ipam.request_address(pool.id, held, owner="endpoint web")[0] == held
    assert ipam.usage(pool.id) == used

    restarted = PoolIpam()
    restarted.load(store)
    assert restarted.usage(pool.id) == used


def restart_after(steps: list[str | None]) -> tuple[PoolIpam, PoolIpam, str]:
    """Requests (None) and releases (an address) on a /29; returns the ipam, one loaded from its store, and the pool."""
    ipam, store = PoolIpam(), MemoryStore()
    pool, changes = ipam.request_pool("local", subnet=ip_network("10.0.0.0/29"), owner="network red")
    store.write(changes)
    for step in steps:
        if step is None:
            store.write(ipam.request_address(pool.id, owner="endpoint web")[1])
        else:
            store.write(ipam.release_address(pool.id, ip_address(step)))
    restarted = PoolIpam()
    restarted.load(store)
    return ipam, restarted, pool.id


@pytest.mark.parametrize(
    "steps",
    [
        [None, "10.0.0.1"],
        [None, None, "10.0.0.2", None],
        [*[None] * 6, "10.0.0.6", "10.0.0.2"],
        [*[None] * 4, "10.0.0.1", None, None, "10.0.0.3"],
        [*[None] * 6, "10.0.0.4", "10.0.0.2", None, "10.0.0.1"],
    ],
)
def test_a_restart_does_not_change_what_comes_next(steps: list[str | None]) -> None:
    ipam, restarted, pool = restart_after(steps)
    assert restarted.usage(pool) == ipam.usage(pool)
    assert take_all(restarted, pool) == take_all(ipam, pool)


def test_an_address_released_just_before_a_restart_is_not_handed_out_at_once() -> None:
    _, restarted, pool = restart_after([*[None] * 6, *(f"10.0.0.{n}" for n in range(1, 6)), None, "10.0.0.1"])
    assert take_all(restarted, pool) == ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.1"]


def test_the_place_in_the_round_survives_a_restart_in_a_big_pool() -> None:
    ipam, store = PoolIpam(), MemoryStore()
    pool, changes = ipam.request_pool("local", subnet=ip_network("10.0.0.0/16"))
    store.write(changes)
    for _ in range(1000):
        address, changes = ipam.request_address(pool.id)
        store.write(changes)
        store.write(ipam.release_address(pool.id, address))
    held = [ipam.request_address(pool.id) for _ in range(3)]
    for _, changes in held:
        store.write(changes)
    restarted = PoolIpam()
    restarted.load(store)
    assert str(restarted.request_address(pool.id)[0]) == "10.0.3.236", "the 1,004th address"


def test_owners_survive_a_restart() -> None:
    _, restarted, pool = restart_after([None])
    with pytest.raises(Forbidden, match="held by endpoint web"):
        restarted.request_address(pool, ip_address("10.0.0.1"))
    with pytest.raises(Forbidden, match="of network red"):
        restarted.request_pool("local", subnet=ip_network("10.0.0.0/24"))


POOL_BODY = (
    b'{"pool":{"id":"local/10.0.0.0/24","space":"local","subnet":"10.0.0.0/24","ip_range":null,"owner":"red"},'
    b'"cursor":"10.0.0.9","kept_back":[]}'
)


def damaged(old: bytes, new: bytes) -> bytes:
    assert old in POOL_BODY
    return POOL_BODY.replace(old, new)


@pytest.mark.parametrize(
    ("kind", "record_id", "body"),
    [
        ("pool", "local/10.0.0.0/24", b""),
        ("pool", "local/10.0.0.0/24", POOL_BODY[:-7]),
        ("pool", "local/10.0.0.0/24", b"\xff\x00{}"),
        ("pool", "local/10.0.0.0/24", b"[]"),
        ("pool", "local/10.0.0.0/24", damaged(b'"red"', b'"\xff"')),
        ("pool", "local/10.0.1.0/24", POOL_BODY),
        ("pool", "local/10.0.0.0/24", damaged(b'"subnet":"10.0.0.0/24"', b'"subnet":"10.0.0.1/24"')),
        ("pool", "local/10.0.0.0/24", damaged(b'"space":"local"', b'"space":""')),
        ("pool", "local/10.0.0.0/24", damaged(b'"ip_range":null', b'"ip_range":"10.1.0.0/24"')),
        ("pool", "local/10.0.0.0/24", damaged(b"10.0.0.9", b"10.0.1.9")),
        ("pool", "local/10.0.0.0/24", damaged(b"10.0.0.9", b"fd00::1")),
        ("pool", "local/10.0.0.0/24", damaged(b"[]", b'["10.0.0.x"]')),
        ("pool", "local/10.0.0.0/24", damaged(b"[]", b'["10.0.0.0"]')),
        ("pool", "local/10.0.0.0/25", POOL_BODY.replace(b"10.0.0.0/24", b"10.0.0.0/25")),
        ("lease", "local/10.0.0.0/24|10.0.0.5", b"{"),
        ("lease", "local/10.0.0.0/24|10.0.0.5", b'{"owner":5}'),
        ("lease", "local/10.0.0.0/24|10.0.0.555", b'{"owner":""}'),
        ("lease", "local/10.0.0.0/24|10.0.9.5", b'{"owner":""}'),
        ("lease", "local/10.0.0.0/24|10.0.0.255", b'{"owner":""}'),
        ("lease", "local/10.0.0.0/24|::ffff:10.0.0.5", b'{"owner":""}'),
        ("lease", "local/10.7.0.0/24|10.7.0.5", b'{"owner":""}'),
        ("lease", "no separator", b'{"owner":""}'),
        ("meta", "ula", b'{"global_id":"xx"}'),
        ("meta", "ula", b'{"global_id":"0102"}'),
        ("meta", "ula", b"null"),
    ],
)
def test_a_damaged_record_is_named_and_nothing_is_taken_up(kind: str, record_id: str, body: bytes) -> None:
    store = MemoryStore()
    store.write([Put("pool", "local/10.0.0.0/24", POOL_BODY), Put(kind, record_id, body)])
    ipam = PoolIpam()
    with pytest.raises(StoreError, match=r"is damaged: .*restore a copy of its state file") as refused:
        ipam.load(store)
    assert f"stored record {kind} {record_id} " in str(refused.value)
    with pytest.raises(NotFound):
        ipam.usage("local/10.0.0.0/24")


def test_meta_records_of_others_are_left_alone() -> None:
    store = MemoryStore()
    store.write([Put("meta", "something else", b"not even JSON")])
    PoolIpam().load(store)
