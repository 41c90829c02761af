"""Questions for an address and what is taken for an answer, judged by scapy; which address comes after one in use."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP
from scapy.packet import Packet
from scapy.utils6 import in6_getnsma, in6_getnsmac

from control.controller import NetworkController
from control.drivers.base import Join
from control.endpoints import ADDRESSES_TRIED
from control.errors import AddressInUse, Conflict, ControlError
from control.model import EndpointSpec, NetworkSpec, PoolSpec, SandboxSpec
from control.plan import Step
from datapath import conflict
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore

MINE, OTHERS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
A4, B4 = IPv4Address("192.168.1.9"), IPv4Address("192.168.1.10")
A6, B6 = IPv6Address("fd00:1::12:3456"), IPv6Address("fd00:2::12:3456")  # one solicited-node group
v4 = st.integers(1, 2**32 - 1).map(IPv4Address)
v6 = st.integers(1, 2**128 - 1).map(IPv6Address)


# -- what is asked ---------------------------------------------------------------------------------------------------


@given(v4)
def test_an_arp_probe_names_the_address_and_no_sender(address: IPv4Address) -> None:
    expected = ARP(op=1, hwsrc=MINE.hex(":"), psrc="0.0.0.0", hwdst="00:00:00:00:00:00", pdst=str(address))
    assert conflict.arp_probe(address, MINE) == bytes(expected)


@given(v6)
def test_a_solicitation_goes_from_nobody_to_the_group_of_the_address(address: IPv6Address) -> None:
    group = in6_getnsma(address.packed)
    expected = IPv6(src="::", dst=socket.inet_ntop(socket.AF_INET6, group), hlim=255) / ICMPv6ND_NS(tgt=str(address))
    assert conflict.solicitation(address) == bytes(expected)
    assert conflict.multicast_mac(conflict.solicited_node(address)).hex(":") == in6_getnsmac(group)


# -- what is an answer -----------------------------------------------------------------------------------------------


def arp(**fields: Any) -> bytes:
    return bytes(ARP(**{"hwsrc": OTHERS.hex(":"), "hwdst": "00:00:00:00:00:00", **fields}))


def nd(message: Packet, src: str = "::", **fields: Any) -> bytes:
    return bytes(IPv6(src=src, dst="ff02::1", **{"hlim": 255, **fields}) / message)


@pytest.mark.parametrize(
    ("packet", "is_answer"),
    [
        (arp(op=2, psrc=str(A4), pdst="0.0.0.0"), True),
        (arp(op=1, psrc=str(A4), pdst=str(A4)), True),
        (arp(op=1, psrc=str(A4), pdst=str(B4)), True),
        (arp(op=1, psrc="0.0.0.0", pdst=str(A4)), True),
        (arp(op=1, psrc="0.0.0.0", pdst=str(A4)) + bytes(18), True),  # padded to an Ethernet frame of 60 bytes
        (arp(op=1, psrc=str(B4), pdst=str(A4)), False),
        (arp(op=2, psrc=str(B4), pdst=str(A4)), False),
        (arp(op=2, psrc="0.0.0.0", pdst=str(A4)), False),
        (arp(op=1, psrc="0.0.0.0", pdst=str(B4)), False),
        (arp(op=8, psrc=str(A4), pdst=str(A4)), False),
        (arp(op=2, psrc=str(A4), pdst=str(A4), hwtype=6), False),
        (arp(op=2, psrc=str(A4), pdst=str(A4), ptype=0x86DD), False),
    ],
)
def test_arp_packets_are_judged_by_rfc_5227(packet: bytes, is_answer: bool) -> None:
    assert conflict.judge_arp(A4, MINE, packet, OTHERS) == (OTHERS if is_answer else None)


def test_a_probe_of_ours_that_is_reflected_is_no_answer_and_a_claim_with_our_mac_is() -> None:
    assert conflict.judge_arp(A4, MINE, conflict.arp_probe(A4, MINE), MINE) is None
    assert conflict.judge_nd(A6, MINE, conflict.solicitation(A6), MINE) is None
    assert conflict.judge_arp(A4, MINE, arp(op=2, psrc=str(A4), hwsrc=MINE.hex(":")), MINE) == MINE
    assert conflict.judge_nd(A6, MINE, nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6)), MINE) == MINE


@pytest.mark.parametrize(
    ("packet", "is_answer"),
    [
        (nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6)), True),
        (nd(ICMPv6ND_NA(tgt=str(A6)) / ICMPv6NDOptDstLLAddr(lladdr=OTHERS.hex(":")), src="fe80::2"), True),
        (nd(ICMPv6ND_NS(tgt=str(A6))), True),
        (nd(ICMPv6ND_NS(tgt=str(A6))) + bytes(6), True),  # padded by the device
        (nd(ICMPv6ND_NS(tgt=str(A6)), src="fe80::2"), False),
        (nd(ICMPv6ND_NS(tgt=str(B6))), False),
        (nd(ICMPv6ND_NA(tgt=str(B6)), src=str(A6)), False),
        (nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6), hlim=254), False),
        (nd(ICMPv6ND_NA(tgt=str(A6), code=1), src=str(A6)), False),
        (nd(ICMPv6ND_NA(tgt=str(A6), cksum=1), src=str(A6)), False),
        (nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6), nh=17), False),
        (nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6), plen=23), False),
        (nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6), plen=25), False),
        (nd(ICMPv6ND_NA(tgt=str(A6), type=137), src=str(A6)), False),
    ],
)
def test_neighbour_discovery_is_judged_by_rfc_4862(packet: bytes, is_answer: bool) -> None:
    assert conflict.judge_nd(A6, MINE, packet, OTHERS) == (OTHERS if is_answer else None)


def test_a_packet_that_is_cut_off_is_no_answer() -> None:
    whole = arp(op=2, psrc=str(A4), pdst=str(A4))
    assert [conflict.judge_arp(A4, MINE, whole[:end], OTHERS) for end in range(len(whole))] == [None] * len(whole)
    whole = nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6))
    assert [conflict.judge_nd(A6, MINE, whole[:end], OTHERS) for end in range(len(whole))] == [None] * len(whole)


@given(st.binary(max_size=128))
def test_what_is_no_packet_at_all_is_no_answer(noise: bytes) -> None:
    assert conflict.judge_arp(A4, MINE, noise, OTHERS) is None
    assert conflict.judge_nd(A6, MINE, noise, OTHERS) is None


# -- filters, run by the kernel on a pair of local sockets -----------------------------------------------------------


def passed(program: Sequence[conflict.Instruction], packets: Sequence[bytes]) -> list[bytes]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with closing(left), closing(right):
        conflict.attach_filter(right, program)
        got = []
        for packet in packets:
            try:
                left.send(packet)
                got.append(right.recv(2048))
            except (BlockingIOError, PermissionError):  # EPERM: the filter let nothing through
                continue
        return got


def test_the_arp_filter_passes_what_names_the_address() -> None:
    about = [arp(psrc=str(A4), pdst=str(B4)), arp(psrc=str(B4), pdst=str(A4)), arp(psrc=str(A4), pdst=str(A4))]
    others = [arp(psrc=str(B4), pdst=str(B4)), about[1][:27], b"", b"x"]
    assert passed(conflict.arp_filter(A4), [*others, *about, *others]) == about


def test_the_neighbour_discovery_filter_passes_what_is_about_the_address() -> None:
    about = [nd(ICMPv6ND_NS(tgt=str(A6))), nd(ICMPv6ND_NA(tgt=str(A6)), src=str(A6))]
    near = [IPv6Address(int(A6) ^ 1 << shift) for shift in (0, 32, 64, 96)]
    others = [nd(ICMPv6ND_NA(tgt=str(address))) for address in near]
    others += [nd(ICMPv6ND_NS(tgt=str(A6), type=kind)) for kind in (134, 137)]
    others += [nd(ICMPv6ND_NS(tgt=str(A6)), nh=17), about[0][:63], b"", b"x"]
    assert passed(conflict.nd_filter(A6), [*others, *about, *others]) == about


# -- which address comes next ----------------------------------------------------------------------------------------


class Contested(FakeDriver):
    """A link on which others have the addresses in `used`; `seen` are those that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()
        self.seen: list[str] = []

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        def look() -> None:
            for each in (join.endpoint.ipv4, join.endpoint.ipv6):
                if each is not None:
                    self.seen.append(str(each.ip))
                    if str(each.ip) in self.used:
                        raise AddressInUse(f"address {each.ip} is in use; choose another", each.ip)

        return [Step("look", look, lambda: None), *super().endpoint_steps(join)]


@pytest.fixture
def driver() -> Contested:
    return Contested()


@pytest.fixture
def controller(tmp_path: Path, driver: Contested) -> Iterator[NetworkController]:
    made = fake_controller(tmp_path, driver, MemoryStore())
    made.start()
    made.create_network(NetworkSpec(name="small", pools=(PoolSpec(subnet=IPv4Network("10.1.0.0/29")),)))
    made.create_network(NetworkSpec(name="large", pools=(PoolSpec(subnet=IPv4Network("10.2.0.0/24")),)))
    pools = (PoolSpec(subnet=IPv4Network("10.3.0.0/24")), PoolSpec(subnet=IPv6Network("fd03::/64")))
    made.create_network(NetworkSpec(name="dual", enable_ipv6=True, pools=pools))
    yield made
    made.stop()


Connect = Callable[..., list[str]]


@pytest.fixture
def connect(controller: NetworkController) -> Connect:
    """Makes a sandbox on the network; its addresses there."""

    def run(network: str, **spec: IPv4Address | IPv6Address) -> list[str]:
        name = f"box{len(controller.endpoints())}"
        controller.create_sandbox(SandboxSpec(name=name, networks=((network, EndpointSpec(**spec)),)))  # type: ignore[arg-type]
        endpoint = controller.endpoints()[-1]
        return [str(each.ip) for each in (endpoint.ipv4, endpoint.ipv6) if each is not None]

    return run


def test_addresses_that_others_have_are_passed_over(driver: Contested, connect: Connect) -> None:
    driver.used = {"10.1.0.2", "10.1.0.3"}
    assert connect("small") == ["10.1.0.4"]
    assert connect("small") == ["10.1.0.5"]
    assert driver.seen == ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"]
    driver.used.clear()
    assert {connect("small")[0] for _ in range(3)} == {"10.1.0.2", "10.1.0.3", "10.1.0.6"}


def test_either_family_is_passed_over(driver: Contested, connect: Connect) -> None:
    driver.used = {"10.3.0.2", "fd03::3"}
    ipv4, ipv6 = connect("dual")
    assert not {ipv4, ipv6} & driver.used


def test_an_address_that_was_asked_for_is_not_replaced(driver: Contested, connect: Connect) -> None:
    driver.used = {"10.1.0.4", "fd03::4"}
    with pytest.raises(AddressInUse, match=r"address 10\.1\.0\.4 is in use"):
        connect("small", ipv4=IPv4Address("10.1.0.4"))
    with pytest.raises(AddressInUse, match="address fd03::4 is in use"):
        connect("dual", ipv6=IPv6Address("fd03::4"))
    driver.used = {"10.3.0.3"}
    assert connect("dual", ipv6=IPv6Address("fd03::4"))[1] == "fd03::4"


def test_a_range_that_others_have_whole_is_tried_once(
    driver: Contested, controller: NetworkController, connect: Connect
) -> None:
    driver.used = {f"10.1.0.{number}" for number in range(2, 7)}
    with pytest.raises(AddressInUse):
        connect("small")
    assert sorted(driver.seen) == sorted(driver.used)
    assert controller.endpoints() == []


def test_trying_ends_and_says_what_to_do(driver: Contested, controller: NetworkController, connect: Connect) -> None:
    driver.used = {f"10.2.0.{number}" for number in range(2, 255)}
    with pytest.raises(Conflict, match=f"{ADDRESSES_TRIED} addresses of network large .* --ip-range"):
        connect("large")
    assert len(driver.seen) == ADDRESSES_TRIED
    assert controller.endpoints() == []


def test_what_fails_on_the_second_try_is_the_error_and_leaves_nothing(
    driver: Contested, controller: NetworkController, connect: Connect
) -> None:
    driver.used = {"10.1.0.2"}
    driver.failing["endpoint"] = OSError(95, "cannot add veth: Operation not supported")
    with pytest.raises(ControlError, match="Operation not supported"):
        connect("small")
    assert controller.endpoints() == []
