"""The DHCP client against a server that does as it is told: what it says, when again, and which answers it takes."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from datapath.dhcp import Client, Extension, NoAnswer, Refused
from tests.dhcp_server import SERVER_MAC, Server

MAC = bytes.fromhex("0242c0a82040")
ME = Client(MAC, "web")
FIRST = IPv4Address("192.168.32.100")
AT = (IPv4Address("192.168.32.1"), bytes.fromhex(SERVER_MAC.replace(":", "")))


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_lease_is_asked_for_in_the_mac_s_name(server: Server) -> None:
    got = server.client().acquire("eth1", ME, within_s=10)
    assert (got.address, got.lease_s, got.server, got.server_mac) == (FIRST, 120, *AT)
    assert server.leases == {MAC.hex(":"): str(FIRST)}
    discover, request = server.heard
    assert (discover.kind, request.kind, request.address) == ("discover", "request", str(FIRST))
    for said in (discover, request):
        assert said.frame.src == said.mac == MAC.hex(":")
        assert said.options["client_id"] == b"\x01" + MAC
        assert said.options["hostname"] == b"web"
        assert said.frame[BOOTP].flags == "B"
    assert request.options["server_id"] == "192.168.32.1"
    assert discover.frame[BOOTP].xid == request.frame[BOOTP].xid


def test_an_address_is_asked_for_by_name(server: Server) -> None:
    wanted = IPv4Address("192.168.32.110")
    assert server.client().acquire("eth1", ME, wanted=wanted, within_s=10).address == wanted


def test_another_address_than_the_wanted_is_not_taken(server: Server) -> None:
    server.offers = "192.168.32.5"
    with pytest.raises(Refused, match=r"offered is 192.168.32.5 \(192.168.32.1\) instead"):
        server.client().acquire("eth1", ME, wanted=FIRST, within_s=10)
    assert set(server.kinds()) == {"discover"}
    assert server.elapsed_s < 2


def test_an_offer_that_is_not_acceptable_is_not_taken(server: Server) -> None:
    with pytest.raises(Refused, match=r"offered is 192.168.32.100 \(192.168.32.1\)$"):
        server.client().acquire("eth1", ME, accepts=lambda _: False, within_s=10)
    assert server.leases == {}


def test_silence_is_asked_into_again_and_again_and_ends(server: Server) -> None:
    server.is_silent = True
    with pytest.raises(NoAnswer):
        server.client().acquire("eth1", ME, within_s=20)
    assert server.elapsed_s == 20
    # After 1, 2, 4 and 8 s.
    assert server.kinds() == ["discover"] * 5
    assert [said.frame[BOOTP].secs for said in server.heard] == [0, 1, 3, 7, 15]


def test_a_server_that_falls_silent_after_its_offer_is_given_up(server: Server) -> None:
    client, answers = server.client(), server._answer

    def only_offers(packet, kind, mac, asked, options):  # type: ignore[no-untyped-def]
        return answers(packet, kind, mac, asked, options) if kind == "discover" else []

    server._answer = only_offers  # type: ignore[method-assign]
    with pytest.raises(NoAnswer, match=r"request for 192.168.32.100"):
        client.acquire("eth1", ME, within_s=5)
    assert server.kinds() == ["discover", "request", "request", "request"]


def test_a_refused_request_begins_anew_and_not_for_ever(server: Server) -> None:
    server.refuses = True
    with pytest.raises(Refused, match=r"server 192.168.32.1 refused 192.168.32.100"):
        server.client().acquire("eth1", ME, within_s=10)
    assert server.kinds() == ["discover", "request"] * 10
    assert len({said.frame[BOOTP].xid for said in server.heard}) == 10
    assert 0.5 < server.elapsed_s < 5


def test_a_probe_takes_nothing(server: Server) -> None:
    assert server.client().probe("eth1", ME, within_s=5).router == IPv4Address("192.168.32.1")
    assert server.kinds() == ["discover"]


@pytest.mark.parametrize(
    ("how", "ciaddr", "to", "flags"),
    [
        (Extension.RENEW, str(FIRST), (SERVER_MAC, "192.168.32.1"), 0),
        (Extension.REBIND, str(FIRST), ("ff:ff:ff:ff:ff:ff", "255.255.255.255"), 0),
        (Extension.REBOOT, "0.0.0.0", ("ff:ff:ff:ff:ff:ff", "255.255.255.255"), "B"),
    ],
)
def test_a_lease_is_extended_as_its_state_asks(
    server: Server, how: Extension, ciaddr: str, to: tuple[str, str], flags: object
) -> None:
    """RFC 2131, table 4: none names the server, and the address stands in one place alone."""
    assert server.client().extend("eth1", ME, FIRST, how=how, server=AT, within_s=4).address == FIRST
    (said,) = server.heard
    assert (said.kind, said.frame[BOOTP].ciaddr, said.frame[BOOTP].flags) == ("request", ciaddr, flags)
    assert (said.frame.dst, said.frame[IP].dst) == to
    assert said.frame[IP].src == ciaddr
    assert "server_id" not in said.options
    assert said.options.get("requested_addr") == (str(FIRST) if how is Extension.REBOOT else None)


def test_an_extension_that_is_refused_or_unanswered_says_which(server: Server) -> None:
    server.refuses = True
    with pytest.raises(Refused):
        server.client().extend("eth1", ME, FIRST, how=Extension.RENEW, server=AT, within_s=4)
    server.is_silent = True
    with pytest.raises(NoAnswer):
        server.client().extend("eth1", ME, FIRST, how=Extension.RENEW, server=AT, within_s=4)
    assert server.elapsed_s == 4


def test_another_server_s_refusal_does_not_end_a_renewal(server: Server) -> None:
    """It cannot have meant us: only the server of the lease was asked."""
    server.ip, server.refuses = "192.168.32.2", True
    with pytest.raises(NoAnswer):
        server.client().extend("eth1", ME, FIRST, how=Extension.RENEW, server=AT, within_s=4)


def test_an_address_is_given_back_to_its_server(server: Server) -> None:
    server.leases[MAC.hex(":")] = str(FIRST)
    server.client().release("eth1", ME, FIRST, AT)
    assert server.leases == {}
    (said,) = server.heard
    assert (said.kind, said.frame.dst, said.frame[IP].dst) == ("release", SERVER_MAC, "192.168.32.1")
    assert sorted(said.options) == ["client_id", "message-type", "server_id"]


def test_an_address_is_declined(server: Server) -> None:
    server.client().decline("eth1", ME, FIRST, AT[0])
    (said,) = server.heard
    assert (said.kind, said.frame[IP].dst, said.frame[IP].src) == ("decline", "255.255.255.255", "0.0.0.0")
    assert sorted(said.options) == ["client_id", "message-type", "requested_addr", "server_id"]


def test_garbage_is_ignored_and_told_of_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.garbage = [b"", b"\xff" * 400, b"\x02" * 12 + b"hello"]
    with caplog.at_level(logging.WARNING):
        assert server.client().acquire("eth1", ME, within_s=10).address == FIRST
    said = [record.message for record in caplog.records if record.name == "datapath.dhcp"]
    assert said == ["ignored a malformed DHCP answer from : it is cut off"]


def test_answers_to_others_are_not_taken(server: Server) -> None:
    """By transaction and by MAC; also an acknowledgement of another address, and one that nobody asked for."""
    answers = server._answer

    def with_strangers(packet, kind, mac, asked, options):  # type: ignore[no-untyped-def]
        right = answers(packet, kind, mac, asked, options)
        wrong = []
        for change in ({"xid": packet[BOOTP].xid ^ 1}, {"chaddr": b"\x02" * 6}, {"yiaddr": "192.168.32.9"}):
            frame = Ether(right[0])
            for name, value in change.items():
                if not (kind == "discover" and name == "yiaddr"):
                    setattr(frame[BOOTP], name, value)
            frame[DHCP].options = [
                ("message-type", "ack") if kind == "discover" else option for option in frame[DHCP].options[:1]
            ] + frame[DHCP].options[1:]
            for layer in ("IP", "UDP"):
                del frame[layer].chksum
                del frame[layer].len
            wrong.append(bytes(frame))
        return [*wrong, *right]

    server._answer = with_strangers  # type: ignore[method-assign]
    assert server.client().acquire("eth1", ME, within_s=10).address == FIRST
    assert server.elapsed_s == 0
