"""Published ports: what an endpoint gets of what it asks for, who is told to be in the way, and that nothing is kept
of what was refused."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address

import msgspec
import pytest

from control import ports
from control.errors import Conflict, ControlError, InvalidArgument
from control.model import (
    Endpoint,
    EndpointId,
    EndpointState,
    Network,
    NetworkId,
    NetworkState,
    PublishedPort,
    SandboxId,
    utcnow,
)
from control.ports import PortWish
from tests.plugin_server import EP, NET, StrictPorts, ident

KEY = "/var/run/docker/netns/0123456789abcdef"
NETWORK = Network(
    id=NetworkId(NET), name="front", driver="bridge", state=NetworkState.ACTIVE, created=utcnow(), segment=1
)


def endpoint(
    name: str = EP, v4: str | None = "10.9.0.2/16", v6: str | None = None, taken: tuple[PublishedPort, ...] = ()
) -> Endpoint:
    return Endpoint(
        id=EndpointId(name),
        network_id=NETWORK.id,
        sandbox_id=SandboxId(""),
        state=EndpointState.JOINED,
        created=utcnow(),
        sandbox_key=KEY,
        ipv4=IPv4Interface(v4) if v4 else None,
        ipv6=IPv6Interface(v6) if v6 else None,
        ports=taken,
    )


def wish(port: int, host_port: int = 0, end: int = 0, ip: str = "", protocol: str = "tcp") -> PortWish:
    host_ip = ip_address(ip) if ip else None
    return PortWish(protocol=protocol, port=port, host_ip=host_ip, host_port=host_port, host_port_end=end)


def published(port: int, host_port: int, count: int = 1, ip: str = "", protocol: str = "tcp") -> PublishedPort:
    host_ip = ip_address(ip) if ip else None
    return PublishedPort(protocol=protocol, port=port, host_ip=host_ip, host_port=host_port, count=count)


def span(protocol: str, first: int, last: int, ip: str = "None") -> set[tuple[str, str, int]]:
    return {(protocol, ip, number) for number in range(first, last + 1)}


@pytest.fixture
def holder() -> StrictPorts:
    return StrictPorts()


DUAL = endpoint(v6="fd00::2/64")


@pytest.mark.parametrize(
    ("wishes", "settled"),
    [
        ([], []),
        ([wish(80, 8080)], [published(80, 8080)]),
        ([wish(80, 8080, 8080)], [published(80, 8080)]),
        ([wish(80, 8080, protocol="udp")], [published(80, 8080, protocol="udp")]),
        ([wish(80, 80), wish(81, 81), wish(82, 82)], [published(80, 80, 3)]),
        ([wish(82, 82), wish(80, 80), wish(81, 81)], [published(80, 80, 3)]),
        ([wish(80, 8000), wish(81, 8001)], [published(80, 8000, 2)]),
        ([wish(81, 8000), wish(80, 8001)], [published(81, 8000), published(80, 8001)]),
        ([wish(80, 8000), wish(80, 8001)], [published(80, 8000), published(80, 8001)]),
        ([wish(80, 8000), wish(82, 8002)], [published(80, 8000), published(82, 8002)]),
        ([wish(80, 8000), wish(80, 8000)], [published(80, 8000)]),
        ([wish(80, 8000), wish(80, 8000, protocol="udp")], [published(80, 8000), published(80, 8000, protocol="udp")]),
        ([wish(80, 80, ip="192.0.2.1")], [published(80, 80, ip="192.0.2.1")]),
        (
            [wish(80, 80, ip="192.0.2.1"), wish(81, 81, ip="192.0.2.2")],
            [published(80, 80, ip="192.0.2.1"), published(81, 81, ip="192.0.2.2")],
        ),
        (
            [wish(80, 80, ip="192.0.2.1"), wish(80, 80, ip="192.0.2.2")],
            [published(80, 80, ip="192.0.2.1"), published(80, 80, ip="192.0.2.2")],
        ),
        ([wish(80, 80, ip="192.0.2.1"), wish(81, 81, ip="192.0.2.1")], [published(80, 80, 2, ip="192.0.2.1")]),
        ([wish(80, 80, ip="fd00:1::1")], [published(80, 80, ip="fd00:1::1")]),
        ([wish(80, 80, ip="127.0.0.1")], [published(80, 80, ip="127.0.0.1")]),
        ([wish(65534, 65534), wish(65535, 65535)], [published(65534, 65534, 2)]),
        ([wish(1, 1)], [published(1, 1)]),
        ([wish(n, n) for n in range(1000, 2000)], [published(1000, 1000, 1000)]),
    ],
    ids=lambda value: ",".join(str(each.port) for each in value[:4]),
)
def test_wishes_that_leave_no_choice_are_fulfilled(
    holder: StrictPorts, wishes: list[PortWish], settled: list[PublishedPort]
) -> None:
    got = ports.settle(wishes, DUAL, [], holder)
    assert sorted(got, key=str) == sorted(settled, key=str)
    everything = [span(p.protocol, p.host_port, p.host_port + p.count - 1, str(p.host_ip)) for p in settled]
    assert holder.held == set().union(*everything)
    ports.release(got, holder)
    ports.release(got, holder)
    assert holder.held == set()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (wish(80, 80, protocol="sctp"), "80/sctp cannot be published: only tcp and udp can"),
        (wish(80, 80, protocol="protocol 1"), "80/protocol 1 cannot be published"),
        (wish(80, 80, ip="::1"), "80/tcp cannot be published at ::1"),
        (wish(80, 80, ip="0:0::1"), "cannot be published at ::1"),
        (wish(80, 0, ip="::1"), "cannot be published at ::1"),
        (wish(80, 80, ip="fd00:1::1"), "at fd00:1::1: the endpoint has no IPv6 address"),
        (wish(80, 80, ip="::"), "at ::: the endpoint has no IPv6 address"),
        (wish(0, 80), "ports are 1 to 65535"),
        (wish(-1, 80), "ports are 1 to 65535"),
        (wish(65536, 80), "ports are 1 to 65535"),
        (wish(80, 65536), "ports are 1 to 65535"),
        (wish(80, -1), "ports are 1 to 65535"),
        (wish(80, 8001, 8000), "ports are 1 to 65535"),
        (wish(80, 65530, 65536), "ports are 1 to 65535"),
        (wish(80, 8000, -5), "ports are 1 to 65535"),
        (wish(1 << 70, 1 << 70), "ports are 1 to 65535"),
    ],
    ids=str,
)
def test_a_wish_that_can_never_be_fulfilled_is_refused_with_all_others(
    holder: StrictPorts, bad: PortWish, says: str
) -> None:
    for wishes in ([bad], [wish(90, 90), bad], [bad, wish(90, 0)]):
        with pytest.raises(InvalidArgument) as refused:
            ports.settle(wishes, endpoint(), [], holder)
        assert says in str(refused.value)
        assert holder.held == set()


def test_an_address_of_a_family_that_the_endpoint_lacks_is_refused(holder: StrictPorts) -> None:
    only_v6 = endpoint(v4=None, v6="fd00::2/64")
    with pytest.raises(InvalidArgument, match=r"at 192\.0\.2\.1: the endpoint has no IPv4 address"):
        ports.settle([wish(80, 80, ip="192.0.2.1")], only_v6, [], holder)
    assert ports.settle([wish(80, 80, ip="fd00:1::1")], only_v6, [], holder) == (published(80, 80, ip="fd00:1::1"),)


class Families(StrictPorts):
    """Takes note of the families that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[bool, bool]] = []

    def hold(
        self,
        protocol: str,
        host_ip: IPv4Address | IPv6Address | None,
        first: int,
        count: int = 1,
        *,
        v4: bool = True,
        v6: bool = True,
    ) -> None:
        self.asked.append((v4, v6))
        super().hold(protocol, host_ip, first, count, v4=v4, v6=v6)


@pytest.mark.parametrize(("v4", "v6"), [("10.9.0.2/16", None), (None, "fd00::2/64"), ("10.9.0.2/16", "fd00::2/64")])
def test_ports_of_all_addresses_are_held_in_the_endpoints_families(v4: str | None, v6: str | None) -> None:
    holder = Families()
    ports.settle([wish(80, 80), wish(80)], endpoint(v4=v4, v6=v6), [], holder)
    assert holder.asked == [(v4 is not None, v6 is not None)] * 2


TAKEN = {
    "all": published(80, 8080),
    "one address": published(80, 8080, ip="192.0.2.1"),
    "every v4": published(80, 8080, ip="0.0.0.0"),
    "range": published(80, 8070, 20),
    "udp": published(80, 8080, protocol="udp"),
    "v6": published(80, 8080, ip="fd00:1::1"),
}


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        ("all", wish(80, 8080)),
        ("all", wish(80, 8080, ip="192.0.2.1")),
        ("all", wish(80, 8080, ip="fd00:1::1")),
        ("one address", wish(80, 8080)),
        ("one address", wish(80, 8080, ip="192.0.2.1")),
        ("one address", wish(80, 8080, ip="0.0.0.0")),
        ("every v4", wish(80, 8080, ip="192.0.2.7")),
        ("range", wish(80, 8070)),
        ("range", wish(80, 8089)),
        ("v6", wish(80, 8080, ip="::")),
        ("udp", wish(80, 8080, protocol="udp")),
    ],
    ids=str,
)
def test_a_port_of_another_endpoint_is_refused_naming_it(holder: StrictPorts, taken: str, wanted: PortWish) -> None:
    rival = endpoint(ident("rival"), v4="10.9.0.3/16", taken=(TAKEN[taken],))
    with pytest.raises(Conflict) as refused:
        ports.settle([wish(79, 79), wanted], DUAL, [(NETWORK, rival)], holder)
    assert str(TAKEN[taken]) in str(refused.value)
    assert "published by sandbox 0123456789ab on network front" in str(refused.value)
    assert holder.held == set()


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        ("all", wish(80, 8081)),
        ("all", wish(80, 8080, protocol="udp")),
        ("one address", wish(80, 8080, ip="192.0.2.2")),
        ("every v4", wish(80, 8080, ip="fd00:1::1")),
        ("range", wish(80, 8069)),
        ("range", wish(80, 8090)),
        ("v6", wish(80, 8080, ip="192.0.2.1")),
    ],
    ids=str,
)
def test_a_port_that_only_looks_taken_is_given(holder: StrictPorts, taken: str, wanted: PortWish) -> None:
    rival = endpoint(ident("rival"), v4="10.9.0.3/16", taken=(TAKEN[taken],))
    (got,) = ports.settle([wanted], DUAL, [(NETWORK, rival)], holder)
    assert (got.host_port, got.host_ip) == (wanted.host_port, wanted.host_ip)


def test_a_range_that_another_endpoint_has_a_port_of_is_refused_whole(holder: StrictPorts) -> None:
    rival = endpoint(ident("rival"), taken=(TAKEN["all"],))
    wishes = [wish(number, number) for number in range(8070, 8090)]
    with pytest.raises(Conflict, match=r"\*:8070-8089->8070-8089/tcp cannot be published: \*:8080->80/tcp is"):
        ports.settle(wishes, endpoint(), [(NETWORK, rival)], holder)
    assert holder.held == set()


def test_an_endpoint_in_no_sandbox_is_named_by_its_id(holder: StrictPorts) -> None:
    rival = msgspec.structs.replace(endpoint(ident("rival"), taken=(TAKEN["all"],)), sandbox_key="")
    with pytest.raises(Conflict, match=f"published by sandbox {ident('rival')[:12]} "):
        ports.settle([wish(80, 8080)], endpoint(), [(NETWORK, rival)], holder)


def test_a_port_of_a_process_is_refused_naming_it(holder: StrictPorts) -> None:
    holder.taken.add(("tcp", 8080))
    for wishes in ([wish(80, 8080)], [wish(79, 79), wish(80, 8080)], [wish(n, 8000 + n) for n in range(60, 100)]):
        with pytest.raises(Conflict, match=r"cannot be published: port 8080/tcp is in use by nginx \(process 7\)"):
            ports.settle(wishes, endpoint(), [], holder)
        assert holder.held == set()


def test_one_port_of_the_host_for_two_of_the_endpoint_is_refused(holder: StrictPorts) -> None:
    for other in (wish(81, 8080), wish(80, 8080, ip="192.0.2.1")):
        with pytest.raises(Conflict, match="8080/tcp is published already"):
            ports.settle([wish(80, 8080), other], endpoint(), [], holder)
        assert holder.held == set()


class Elsewhere(StrictPorts):
    """Has no address 192.0.2.9."""

    def hold(
        self,
        protocol: str,
        host_ip: IPv4Address | IPv6Address | None,
        first: int,
        count: int = 1,
        *,
        v4: bool = True,
        v6: bool = True,
    ) -> None:
        if host_ip == IPv4Address("192.0.2.9"):
            raise OSError(errno.EADDRNOTAVAIL, "this host has no address 192.0.2.9 to publish a port of")
        super().hold(protocol, host_ip, first, count, v4=v4, v6=v6)


def test_an_address_that_the_host_has_not_is_refused_naming_it() -> None:
    holder = Elsewhere()
    with pytest.raises(Conflict, match=r"this host has no address 192\.0\.2\.9"):
        ports.settle([wish(80, 80), wish(80, 80, ip="192.0.2.9")], endpoint(), [], holder)
    assert holder.held == set()


# -- a choice of ports -----------------------------------------------------------------------------------------------


def test_a_port_of_no_number_is_one_of_the_hosts_ephemeral_ports(holder: StrictPorts) -> None:
    got = ports.settle([wish(80), wish(81), wish(80, protocol="udp")], endpoint(), [], holder)
    assert [(port.protocol, port.port, port.count) for port in got] == [("tcp", 80, 1), ("tcp", 81, 1), ("udp", 80, 1)]
    assert {port.host_port for port in got} <= {40000, 40001, 40002, 40003}
    assert got[0].host_port != got[1].host_port


def test_all_ephemeral_ports_can_be_had_and_then_no_more(holder: StrictPorts) -> None:
    got = ports.settle([wish(n) for n in range(1, 5)], endpoint(), [], holder)
    assert sorted(port.host_port for port in got) == [40000, 40001, 40002, 40003]
    with pytest.raises(Conflict, match="port 80/tcp cannot be published: all ports of the host from 40000 to 40003"):
        ports.settle([wish(90, 90), wish(80)], endpoint(), [], holder)
    assert holder.held == span("tcp", 40000, 40003)


def test_ports_in_use_are_stepped_over(holder: StrictPorts) -> None:
    holder.taken |= {("tcp", 40000), ("tcp", 40001)}
    rival = endpoint(ident("rival"), taken=(published(1, 40002),))
    for _ in range(8):  # it begins anywhere
        (got,) = ports.settle([wish(80)], endpoint(), [(NETWORK, rival)], holder)
        assert got.host_port == 40003
        ports.release([got], holder)


def test_of_a_range_the_first_free_port_is_given(holder: StrictPorts) -> None:
    holder.taken.add(("tcp", 8000))
    rival = endpoint(ident("rival"), taken=(published(1, 8001),))
    got = ports.settle([wish(80, 8000, 8003), wish(80, 8000, 8003)], endpoint(), [(NETWORK, rival)], holder)
    assert [port.host_port for port in got] == [8002, 8003]
    with pytest.raises(Conflict, match="all ports of the host from 8000 to 8003 are in use"):
        ports.settle([wish(80, 8000, 8003)], endpoint(), [(NETWORK, rival)], holder)


def test_fixed_ports_are_taken_before_those_that_leave_a_choice(holder: StrictPorts) -> None:
    got = ports.settle([wish(80, 8000, 8001), wish(81, 8000)], endpoint(), [], holder)
    assert {(port.port, port.host_port) for port in got} == {(81, 8000), (80, 8001)}


def test_a_choice_at_an_address_is_made_there(holder: StrictPorts) -> None:
    (got,) = ports.settle([wish(80, ip="127.0.0.1")], endpoint(), [], holder)
    assert got.host_ip == IPv4Address("127.0.0.1")
    assert holder.held == {("tcp", "127.0.0.1", got.host_port)}


def test_ports_that_a_record_names_are_held_again_or_refused(holder: StrictPorts) -> None:
    port = published(80, 8000, 10)
    ports.hold(port, endpoint(), holder)
    assert holder.held == span("tcp", 8000, 8009)
    with pytest.raises(ControlError, match="published already"):
        ports.hold(published(80, 8009), endpoint(), holder)
