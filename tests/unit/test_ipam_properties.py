"""The built-in IPAM against a model of plain lists and sets, over subnets small enough to enumerate."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from control.errors import Exhausted, Forbidden, InvalidArgument
from control.ipam.defaults import DefaultPool
from control.ipam.pools import PoolIpam
from control.ipam.subnets import KEPT_BACK
from control.model import Address, Subnet
from tests.memory_store import MemoryStore

SHAPES = [
    ("10.0.0.0/28", None),
    ("10.0.0.0/28", "10.0.0.8/29"),
    ("10.0.0.0/28", "10.0.0.0/29"),
    ("10.0.0.0/30", None),
    ("10.0.0.0/31", None),
    ("10.0.0.0/32", None),
    ("10.0.0.0/24", None),
    ("fd00::/124", None),
    ("fd00::/124", "fd00::8/126"),
    ("fd00::/127", None),
]


class LeaseMachine(RuleBasedStateMachine):
    """One pool: every answer is foretold by the model, through restarts and any mix of requests and releases."""

    given = Bundle("given")

    @initialize(shape=st.sampled_from(SHAPES))
    def make_pool(self, shape: tuple[str, str | None]) -> None:
        self.subnet = ip_network(shape[0])
        self.range = ip_network(shape[1] or shape[0])
        self.store = MemoryStore()
        self.ipam = PoolIpam()
        pool, changes = self.ipam.request_pool(
            "local", subnet=self.subnet, ip_range=self.range if shape[1] else None, owner="network red"
        )
        self.store.write(changes)
        self.pool_id = pool.id
        everything = list(self.subnet)
        self.usable = everything if len(everything) <= 2 else [a for a in everything if a not in self.reserved()]
        # The model: who holds what, the order of release, and the place in the round.
        self.held: dict[Address, str] = {}
        self.released: list[Address] = []
        self.last: Address | None = None

    def reserved(self) -> set[Address]:
        if self.subnet.version == 6:
            return {self.subnet.network_address}
        return {self.subnet.network_address, self.subnet.broadcast_address}

    def foretold(self) -> Address | None:
        free = [a for a in self.usable if a in self.range and a not in self.held and a not in self.released]
        if free:
            return next((a for a in free if self.last is not None and a > self.last), free[0])
        return self.released[0] if self.released else None

    def took(self, address: Address, owner: str) -> None:
        assert address not in self.held
        assert address in self.usable
        self.held[address] = owner
        if address in self.released:
            self.released.remove(address)

    def gave_back(self, address: Address) -> None:
        del self.held[address]
        if address in self.range:
            self.released = [*self.released, address][-KEPT_BACK:]

    @rule(target=given, owner=st.sampled_from(["endpoint a", "endpoint b", ""]))
    def request_any(self, owner: str) -> object:
        expected = self.foretold()
        if expected is None:
            with pytest.raises(Exhausted, match="no available addresses on this pool"):
                self.ipam.request_address(self.pool_id)
            return multiple()
        if expected not in self.released:
            self.last = expected
        address, changes = self.ipam.request_address(self.pool_id, owner=owner)
        self.store.write(changes)
        assert address == expected
        assert address in self.range
        self.took(address, owner)
        return address

    @rule(target=given, offset=st.integers(-2, 17))
    def request_given(self, offset: int) -> object:
        wanted = ip_address(int(self.subnet.network_address) + offset)
        if wanted.version != self.subnet.version or wanted not in self.usable:
            with pytest.raises(InvalidArgument, match=r"out of range|is reserved"):
                self.ipam.request_address(self.pool_id, wanted)
            return multiple()
        if wanted in self.held:
            with pytest.raises(
                Forbidden, match=f"already in use: {wanted} .* held by {self.held[wanted] or 'network'}"
            ):
                self.ipam.request_address(self.pool_id, wanted)
            return multiple()
        address, changes = self.ipam.request_address(self.pool_id, wanted, owner="endpoint static")
        self.store.write(changes)
        assert address == wanted
        self.took(wanted, "endpoint static")
        return wanted

    @rule(address=given)
    def release(self, address: Address) -> None:
        self.store.write(self.ipam.release_address(self.pool_id, address))
        if address in self.held:
            self.gave_back(address)

    @rule(seed=st.integers(0, 2**32), part=st.integers(1, 300))
    def churn(self, seed: int, part: int) -> None:
        """Fills the pool, then releases some of it in a random order."""
        while self.foretold() is not None:
            self.request_any("endpoint churn")
        held = sorted(self.held, key=int)
        random.Random(seed).shuffle(held)
        for address in held[:part]:
            self.release(address)

    @rule(times=st.integers(1, 2 * KEPT_BACK))
    def rotate(self, times: int) -> None:
        """Requests and releases one address after the other."""
        for _ in range(times):
            address = self.foretold()
            if address is not None:
                self.request_any("endpoint short")
                self.release(address)

    @rule()
    def restart(self) -> None:
        self.ipam = PoolIpam()
        self.ipam.load(self.store)

    @invariant()
    def usage_is_exact(self) -> None:
        reserved = self.subnet.num_addresses - len(self.usable)
        free = sum(a in self.range and a not in self.held for a in self.usable)
        assert self.ipam.usage(self.pool_id) == (reserved + len(self.held), free)

    @invariant()
    def every_lease_is_stored(self) -> None:
        stored = {ip_address(record_id.rpartition("|")[2]) for record_id, _ in self.store.read("lease")}
        assert stored == set(self.held)


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def subnets_within(base: IPv4Network | IPv6Network, deepest: int) -> st.SearchStrategy[Subnet]:
    """Any subnet of the base, down to `deepest` more bits."""

    def nth(bits: int, n: int) -> Subnet:
        prefixlen = base.prefixlen + bits
        size = 1 << (base.max_prefixlen - prefixlen)
        return type(base)((int(base.network_address) + (n % (1 << bits)) * size, prefixlen))

    return st.builds(nth, st.integers(0, deepest), st.integers(0, (1 << deepest) - 1))


BASES = [IPv4Network("10.0.0.0/24"), IPv6Network("fd00::/60")]


@given(data=st.data(), base=st.sampled_from(BASES), cuts=st.lists(st.integers(0, 5), min_size=1, max_size=3))
@settings(deadline=None)
def test_random_pools_never_overlap_and_defaults_are_the_first_that_fit(
    data: st.DataObject, base: Subnet, cuts: list[int]
) -> None:
    subnets = subnets_within(base, 5)
    defaults = [
        DefaultPool(pool, min(pool.prefixlen + cut, base.prefixlen + 6))
        for pool, cut in zip(data.draw(st.lists(subnets, min_size=len(cuts), max_size=len(cuts))), cuts, strict=True)
    ]
    ipam = PoolIpam(defaults)
    live: dict[str, Subnet] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["given", "default", "default", "release"]))
        if action == "given":
            wanted = data.draw(subnets)
            in_the_way = [subnet for subnet in live.values() if subnet.overlaps(wanted)]
            if in_the_way:
                with pytest.raises(Forbidden):
                    ipam.request_pool("local", subnet=wanted)
            else:
                pool, _ = ipam.request_pool("local", subnet=wanted)
                live[pool.id] = pool.subnet
        elif action == "default":
            avoid = data.draw(st.lists(subnets, max_size=3))
            blocks = (block for pool in defaults for block in pool.base.subnets(new_prefix=pool.size))
            taken = [*live.values(), *avoid]
            expected = next((block for block in blocks if not any(block.overlaps(other) for other in taken)), None)
            if expected is None:
                with pytest.raises(Exhausted):
                    ipam.request_pool("local", v6=base.version == 6, avoid=avoid)
            else:
                pool, _ = ipam.request_pool("local", v6=base.version == 6, avoid=avoid)
                assert pool.subnet == expected
                live[pool.id] = pool.subnet
        elif live:
            pool_id = data.draw(st.sampled_from(sorted(live)))
            ipam.release_pool(pool_id)
            del live[pool_id]


@given(
    ranges=st.lists(subnets_within(IPv4Network("10.0.0.0/28"), 3), min_size=2, max_size=5),
    steps=st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 15)), st.booleans())),
)
@settings(deadline=None)
def test_pools_that_share_a_subnet_never_hand_out_one_address_twice(
    ranges: list[IPv4Network], steps: list[tuple[int, int | None, bool]]
) -> None:
    subnet = IPv4Network("10.0.0.0/28")
    usable = set(subnet.hosts())
    ipam, store = PoolIpam(), MemoryStore()
    pools: list[str] = []
    taken_ranges: list[IPv4Network] = []
    for ip_range in ranges:
        if any(ip_range.overlaps(other) for other in taken_ranges):
            with pytest.raises(Forbidden):
                ipam.request_pool("local", subnet=subnet, ip_range=ip_range)
        else:
            pool, changes = ipam.request_pool("local", subnet=subnet, ip_range=ip_range)
            store.write(changes)
            pools.append(pool.id)
            taken_ranges.append(ip_range)
    held: dict[Address, str] = {}
    for which, offset, is_release in steps:
        pool_id = pools[which % len(pools)]
        wanted = None if offset is None else subnet[offset]
        if is_release:
            if wanted is not None:
                store.write(ipam.release_address(pool_id, wanted))
                if held.get(wanted) == pool_id:
                    del held[wanted]
        else:
            try:
                address, changes = ipam.request_address(pool_id, wanted)
            except Forbidden:
                assert wanted in held
            except InvalidArgument:
                assert wanted not in usable
            except Exhausted:
                assert usable & set(taken_ranges[pools.index(pool_id)]) <= set(held)
            else:
                store.write(changes)
                assert address in usable
                assert address not in held
                held[address] = pool_id
    restarted = PoolIpam()
    restarted.load(store)
    for pool_id, ip_range in zip(pools, taken_ranges, strict=True):
        expected = (2 + len(held), len((usable & set(ip_range)) - set(held)))
        assert ipam.usage(pool_id) == restarted.usage(pool_id) == expected
    for pool_id in list(pools[1:]):
        store.write(ipam.release_pool(pool_id))
        held = {address: holder for address, holder in held.items() if holder != pool_id}
    assert ipam.usage(pools[0]) == (2 + len(held), len((usable & set(taken_ranges[0])) - set(held)))
