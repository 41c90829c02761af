"""The model's values: lifecycles, and their stored form."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.cluster.records import RemoteEndpoint
from control.model import (
    ENDPOINT_TRANSITIONS,
    NETWORK_TRANSITIONS,
    SANDBOX_TRANSITIONS,
    Endpoint,
    EndpointId,
    EndpointState,
    Network,
    NetworkId,
    NetworkState,
    PoolConfig,
    Sandbox,
    SandboxId,
    SandboxState,
    advance,
    from_json,
    to_json,
    utcnow,
)

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
NETWORK = Network(
    id=NetworkId("aa" * 32),
    name="net",
    driver="bridge",
    state=NetworkState.CREATING,
    created=WHEN,
    segment=3,
    enable_ipv6=True,
    pools=(
        PoolConfig(
            pool_id="local/10.0.0.0/24/10.0.0.128/25",
            subnet=ip_network("10.0.0.0/24"),
            ip_range=ip_network("10.0.0.128/25"),
            gateway=IPv4Address("10.0.0.1"),
            aux_addresses={"router": IPv4Address("10.0.0.2")},
        ),
        PoolConfig(pool_id="local/fd00::/64", subnet=ip_network("fd00::/64"), gateway=IPv6Address("fd00::1")),
    ),
    options={"linkspan.accel": "off"},
    labels={"name": "wert"},
)
ENDPOINT = Endpoint(
    id=EndpointId("bb" * 32),
    network_id=NETWORK.id,
    sandbox_id=SandboxId("cc" * 32),
    state=EndpointState.JOINING,
    created=WHEN,
    slot=5,
    shard=1,
    ifname="eth0",
    host_ifname="lsbbbbbbbbbbbb",
    mac="02:42:0a:00:00:80",
    ipv4=IPv4Interface("10.0.0.128/24"),
    ipv6=IPv6Interface("fd00::80/64"),
    aliases=("web",),
    gateway_priority=-7,
    link_local_ips=(IPv4Address("169.254.7.7"), IPv6Address("fe80::77")),
)
SANDBOX = Sandbox(
    id=SandboxId("cc" * 32),
    name="box",
    state=SandboxState.RUNNING,
    created=WHEN,
    command=("sleep", "1"),
    pid=12,
    pid_start=34,
    started=WHEN,
)


@pytest.mark.parametrize("record", [NETWORK, ENDPOINT, SANDBOX], ids=lambda record: type(record).__name__)
def test_records_come_back_from_the_store_as_they_went(record: Any) -> None:
    body = to_json(record)
    assert from_json(type(record), body) == record
    assert from_json(type(record), body.decode()) == record


def test_the_stored_form_is_readable() -> None:
    text = to_json(NETWORK).decode()
    for part in ('"10.0.0.128/25"', '"fd00::1"', '"2026-01-02T03:04:05.678901Z"', '"creating"'):
        assert part in text


def test_fields_that_an_older_version_did_not_store_have_their_defaults() -> None:
    old = msgspec.json.decode(to_json(ENDPOINT))
    for name in ("gateway_priority", "aliases", "driver_options", "shard", "link_local_ips"):
        del old[name]
    assert from_json(Endpoint, msgspec.json.encode(old)) == msgspec.structs.replace(
        ENDPOINT, gateway_priority=0, aliases=(), shard=0, link_local_ips=()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"state": "flying"},
        {"pools": [{"subnet": "10.0.0.1/24"}]},
        {"pools": [{"subnet": "10.0.0.0/33"}]},
        {"pools": [{"subnet": "10.0.0.0/24", "gateway": "nowhere"}]},
        {"created": "yesterday"},
        {"segment": "three"},
        {"id": None},
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, Any]) -> None:
    body = msgspec.json.encode(msgspec.json.decode(to_json(NETWORK)) | change)
    with pytest.raises((msgspec.ValidationError, ValueError)):
        from_json(Network, body)


@given(st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 32), st.integers(0, 128))
def test_every_address_comes_back(four: Any, six: Any, length4: int, length6: int) -> None:
    endpoint = msgspec.structs.replace(
        ENDPOINT, ipv4=IPv4Interface(f"{four}/{length4}"), ipv6=IPv6Interface(f"{six}/{length6}")
    )
    pool = PoolConfig(subnet=ip_network(f"{six}/{length6}", strict=False), gateway=four)
    assert from_json(Endpoint, to_json(endpoint)) == endpoint
    assert from_json(PoolConfig, to_json(pool)) == pool


_TEXTS = st.one_of(
    st.ip_addresses().map(str),
    st.text("0123456789abcdef.:%x ", max_size=20),
    st.sampled_from(
        ["010.0.0.1", "10.0.0", "10.0.0.256", "::ffff:10.0.0.1", "fe80::1%eth0", "1::2::3", "\u0661.0.0.1"]
    ),
)


@given(text=_TEXTS)
def test_an_address_is_read_as_the_standard_library_reads_it(text: str) -> None:
    body = msgspec.json.encode({"node": "n1", "mac": "02:00:00:00:00:01", "ipv4": text})
    body6 = msgspec.json.encode({"node": "n1", "mac": "02:00:00:00:00:01", "ipv6": text})
    for family, field, stored in ((IPv4Address, "ipv4", body), (IPv6Address, "ipv6", body6)):
        try:
            expected = family(text)
        except ValueError:
            with pytest.raises(msgspec.ValidationError):
                from_json(RemoteEndpoint, stored)
        else:
            assert getattr(from_json(RemoteEndpoint, stored), field) == expected


@pytest.mark.parametrize(
    ("record", "table"),
    [(NETWORK, NETWORK_TRANSITIONS), (ENDPOINT, ENDPOINT_TRANSITIONS), (SANDBOX, SANDBOX_TRANSITIONS)],
    ids=["network", "endpoint", "sandbox"],
)
def test_lifecycles_allow_their_transitions_and_no_other(record: Any, table: dict[Any, set[Any]]) -> None:
    for before, after in product(table, table):
        at_first = msgspec.structs.replace(record, state=before)
        if after in table[before]:
            assert advance(at_first, after).state is after
        else:
            with pytest.raises(ValueError, match=f"cannot go from {before} to {after}"):
                advance(at_first, after)


def test_every_object_can_be_removed_from_every_state_and_comes_back_from_none() -> None:
    tables: list[tuple[Any, Any]] = [
        (NETWORK_TRANSITIONS, NetworkState.REMOVING),
        (ENDPOINT_TRANSITIONS, EndpointState.LEAVING),
        (SANDBOX_TRANSITIONS, SandboxState.REMOVING),
    ]
    for table, last in tables:
        assert table[last] == set()
        assert all(last in following for state, following in table.items() if state is not last)


def test_advance_changes_what_it_is_given_and_leaves_the_old_value_alone() -> None:
    ended = advance(SANDBOX, SandboxState.EXITED, finished=WHEN, exit_code=3)
    assert (ended.state, ended.exit_code, ended.name) == (SandboxState.EXITED, 3, "box")
    assert SANDBOX.state is SandboxState.RUNNING
    with pytest.raises(AttributeError):
        SANDBOX.state = SandboxState.EXITED  # type: ignore[misc]


def test_now_is_in_utc() -> None:
    assert utcnow().tzinfo is UTC
