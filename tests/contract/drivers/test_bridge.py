"""What the bridge driver has besides the contract: options that only it knows, shards, names of devices."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network

import msgspec
import pytest

from control.errors import Conflict, Exhausted, Forbidden, InvalidArgument
from control.model import (
    Endpoint,
    EndpointId,
    EndpointSpec,
    EndpointState,
    NetworkSpec,
    PoolSpec,
    SandboxId,
    utcnow,
)
from tests.contract.drivers.bench import Bench, unaccelerated
from tests.hosts import Host

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def bridge(machine: Host, inside: ThreadPoolExecutor) -> Bench:
    return Bench(unaccelerated(machine), machine, inside)


MTU = "com.docker.network.driver.mtu"
NAME = "com.docker.network.bridge.name"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value)
          for option in ("linkspan.accel", "com.docker.network.bridge.enable_icc",
                         "com.docker.network.bridge.enable_ip_masquerade")
          for value in ("", "yes", "2", "tru", "on ")),
        *((MTU, value) for value in ("", "0", "67", "65536", "-1", "1500.0", "9k", "\u0661\u0665\u0660\u0660")),
        *((NAME, value) for value in ("", ".", "..", "all", "a/b", "a b", "a:b", "sixteen-letters-", "tab\t")),
        *(("com.docker.network.container_iface_prefix", value) for value in ("", "0eth", "a b", "elevenchars", "ü")),
    ],
)  # fmt: skip
def test_a_malformed_option_is_refused_with_its_value(bridge: Bench, option: str, value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        bridge.driver.validate(NetworkSpec(name="net", options={option: value}), [])
    assert option in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_mtu_that_ipv6_cannot_live_with_is_refused(bridge: Bench) -> None:
    for mtu, is_fine in (("1279", False), ("1280", True)):
        spec = NetworkSpec(name="net", enable_ipv6=True, options={MTU: mtu})
        if is_fine:
            bridge.driver.validate(spec, [])
        else:
            with pytest.raises(InvalidArgument, match="1280"):
                bridge.driver.validate(spec, [])
        bridge.driver.validate(msgspec.structs.replace(spec, enable_ipv6=False), [])


def test_a_device_name_that_is_taken_is_refused(bridge: Bench) -> None:
    """By a device of the host, or by another network, whose bridge may not be there yet."""
    with pytest.raises(Conflict, match="device lo exists"):
        bridge.driver.validate(NetworkSpec(name="net", options={NAME: "lo"}), [])
    named = bridge.network(options={NAME: "mine"})
    unnamed = bridge.network()
    for other, name in ((named, "mine"), (unnamed, f"br-{unnamed.id[:12]}")):
        with pytest.raises(Conflict, match=f"{name}.*network {other.name}"):
            bridge.driver.validate(NetworkSpec(name="net", options={NAME: name}), [named, unnamed])
    bridge.driver.validate(NetworkSpec(name="net", options={NAME: "other"}), [named, unnamed])


def test_a_subnet_of_another_network_is_refused_even_where_ranges_do_not_meet(bridge: Bench) -> None:
    other = bridge.network()
    half = PoolSpec(subnet=IPv4Network("10.1.0.128/25"))
    with pytest.raises(Forbidden, match=rf"Pool overlaps with other one .*{other.name}"):
        bridge.driver.validate(NetworkSpec(name="net", pools=(half,)), [other])
    bridge.driver.validate(NetworkSpec(name="net", pools=(PoolSpec(subnet=IPv4Network("10.2.0.0/24")),)), [other])


@pytest.mark.parametrize("value", ["", ".", "lo", "a/b", "a b", "sixteen-letters-", "all"])
def test_a_malformed_interface_name_is_refused(bridge: Bench, value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"endpoint\.ifname"):
        bridge.driver.validate_endpoint(
            bridge.network(), EndpointSpec(driver_options={"com.docker.network.endpoint.ifname": value})
        )


def test_endpoints_fill_one_bridge_after_another_and_then_no_more_fit(
    bridge: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.drivers.bridge.SHARD_CAPACITY", 2)
    monkeypatch.setattr("control.drivers.bridge.MAX_SHARDS", 3)
    network, joined = bridge.network(), list[Endpoint]()
    raw = Endpoint(
        id=EndpointId("e" * 64),
        network_id=network.id,
        sandbox_id=SandboxId("c" * 64),
        state=EndpointState.JOINING,
        created=utcnow(),
        ifname="eth0",
    )
    for _ in range(6):
        joined.append(bridge.driver.settle_endpoint(network, raw, joined))
    assert [endpoint.shard for endpoint in joined] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(Exhausted, match=f"network {network.name} cannot take another endpoint: 6 are on it"):
        bridge.driver.settle_endpoint(network, raw, joined)
    # Room that is given back is used again, nearest to the gateway first.
    assert bridge.driver.settle_endpoint(network, raw, joined[1:]).shard == 0
    full = msgspec.structs.replace(raw, slot=16384)
    with pytest.raises(Exhausted):
        bridge.driver.settle_endpoint(network, full, [])
