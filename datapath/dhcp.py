"""A DHCP client for addresses of others: it asks on a device of this host, in the name of a MAC that is somewhere else.

Every exchange has a packet socket of its own on the device, which hears what comes in before anybody else has it
(ETH_P_ALL), the macvlan devices included that take away what is for their MACs; its filter passes the answers to this
exchange alone. Nothing is kept between exchanges: who has a lease keeps its times.

Source: RFC 2131, 3 and 4.4 (the client); RFC 2132; packet(7). Design: docs/adr/0013.
"""

from __future__ import annotations

import logging
import random
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv4Address
from typing import Final, Protocol, Self

from pyroute2.dhcp.enums.dhcp import MessageType, Option

from datapath.conflict import Instruction, attach_filter
from datapath.dhcp_message import UNSPECIFIED, Answer, Malformed, build, parse
from datapath.errors import DatapathError

LOG = logging.getLogger(__name__)

FIRST_WAIT_S: Final = 1.0
"""How long is waited before a message is repeated; then twice as long each time, by a quarter more or less.

RFC 2131, 4.1 says 4 s; a join waits for this, and a server on a switched network that has an answer has it at once.
"""
OTHER_OFFERS_S: Final = 1.0
"""How long other servers may take to offer what was asked for, once one has offered something else."""
_REFUSALS: Final = 10
_CALM_S: Final = (0.05, 0.5)
"""How often, and after how long, an offer that is refused when it is taken is followed by another question. Servers
(dnsmasq) may offer one address to several who ask at once, and refuse it to all but the first."""
_ASKED_FOR: Final = bytes(
    [
        Option.SUBNET_MASK,
        Option.ROUTER,
        Option.LEASE_TIME,
        Option.SERVER_ID,
        Option.RENEWAL_TIME,
        Option.REBINDING_TIME,
    ]
)
_LARGEST: Final = (1472).to_bytes(2)
_CLIENT_ID_ETHERNET: Final = b"\x01"


class DhcpError(DatapathError):
    """No lease; the text says why."""


class NoAnswer(DhcpError):
    """No server said anything in time."""


class Refused(DhcpError):
    """The server does not give what was asked for, or nothing at all."""


class Extension(Enum):
    """How a lease is gone on with (RFC 2131, 4.3.2): asked of its server, of any, or after a time of not knowing."""

    RENEW = auto()
    REBIND = auto()
    REBOOT = auto()


@dataclass(frozen=True)
class Client:
    """In whose name is asked. Its identifier is its MAC (RFC 2132, 9.14, type 1), so that servers know it by either."""

    mac: bytes
    hostname: str = ""

    def options(self) -> dict[Option, bytes]:
        """Of questions; other messages have the identifier alone."""
        named = {Option.HOST_NAME: self.hostname.encode("ascii")} if self.hostname else {}
        return {
            Option.CLIENT_ID: self.identifier,
            Option.MAX_MSG_SIZE: _LARGEST,
            Option.PARAMETER_LIST: _ASKED_FOR,
            **named,
        }

    @property
    def identifier(self) -> bytes:
        return _CLIENT_ID_ETHERNET + self.mac


class Wire(Protocol):
    """Where the frames of one exchange go out and come in."""

    def send(self, frame: bytes) -> None:
        """Raises OSError when the device is down or gone."""

    def receive(self, within_s: float) -> tuple[bytes, bool] | None:
        """The next frame, and whether its UDP checksum is filled in; None when none came. Raises OSError."""


OpenWire = Callable[[str, bytes, int], AbstractContextManager[Wire]]
"""Called with the device's name, the MAC and the transaction's number. Raises OSError."""


class PacketWire:
    """A packet socket on a device of the calling thread's namespace; the device takes in the MAC meanwhile."""

    def __init__(self, ifname: str, mac: bytes, xid: int) -> None:
        # Protocol 0 takes nothing in: the filter must be there first.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            attach_filter(self._socket, answer_filter(xid))
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            membership = struct.pack("=iHH8s", socket.if_nametoindex(ifname), _PACKET_MR_UNICAST, len(mac), mac)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
            self._socket.bind((ifname, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        self._socket.settimeout(None)
        self._socket.send(frame)

    def receive(self, within_s: float) -> tuple[bytes, bool] | None:
        # A time of 0 would make the socket non-blocking.
        self._socket.settimeout(max(within_s, 0.001))
        try:
            frame, ancillary, _, _ = self._socket.recvmsg(2048, socket.CMSG_SPACE(_AUXDATA.size))
        except TimeoutError:
            return None
        status = next((_AUXDATA.unpack(body)[0] for *_, body in ancillary if len(body) == _AUXDATA.size), 0)
        return frame, not status & _TP_STATUS_CSUMNOTREADY


class DhcpClient:
    """Asks DHCP servers. Thread-safe: every call has a wire of its own. All calls raise OSError for the device."""

    def __init__(
        self,
        open_wire: OpenWire = PacketWire,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._open = open_wire
        self._sleep = sleep
        self._now = now
        self._jitter = jitter

    def probe(self, ifname: str, client: Client, *, within_s: float) -> Answer:
        """The first offer, which is not taken up and so costs no address for long; raises NoAnswer."""
        xid = _new_xid()
        with self._open(ifname, client.mac, xid) as wire:
            talk = _Talk(wire, client, xid, self._now, self._jitter)
            return talk.discover(None, lambda _: True, self._now() + within_s)

    def acquire(
        self,
        ifname: str,
        client: Client,
        *,
        wanted: IPv4Address | None = None,
        accepts: Callable[[IPv4Address], bool] = lambda _: True,
        within_s: float,
    ) -> Answer:
        """A lease: the acknowledgement of the server whose offer is the first that `accepts` holds of.

        With `wanted` that address and no other. Raises NoAnswer, or Refused with nothing taken.
        """
        end = self._now() + within_s
        for left in reversed(range(_REFUSALS)):
            xid = _new_xid()
            with self._open(ifname, client.mac, xid) as wire:
                talk = _Talk(wire, client, xid, self._now, self._jitter)
                offer = talk.discover(wanted, accepts, end)
                try:
                    return talk.take(offer, end)
                except Refused as error:
                    if not left:
                        raise
                    LOG.info("%s; asking again", error)
            self._sleep(self._jitter(*_CALM_S))
        raise AssertionError("unreachable: the last refusal is raised")

    def extend(
        self,
        ifname: str,
        client: Client,
        address: IPv4Address,
        *,
        how: Extension,
        server: tuple[IPv4Address, bytes],
        within_s: float,
    ) -> Answer:
        """More time for a lease; raises NoAnswer, which leaves the lease as it is, and Refused, which ends it."""
        xid = _new_xid()
        with self._open(ifname, client.mac, xid) as wire:
            talk = _Talk(wire, client, xid, self._now, self._jitter)
            return talk.extend(address, how, server, self._now() + within_s)

    def release(self, ifname: str, client: Client, address: IPv4Address, server: tuple[IPv4Address, bytes]) -> None:
        """Gives the address back. No server answers to that, so it is said once (RFC 2131, 4.4.6)."""
        options = {Option.SERVER_ID: server[0].packed, Option.CLIENT_ID: client.identifier}
        self._say(ifname, client, MessageType.RELEASE, options, address=address, server=server)

    def decline(self, ifname: str, client: Client, address: IPv4Address, server: IPv4Address) -> None:
        """Tells the server that somebody else has the address (RFC 2131, 4.4.4)."""
        options = {
            Option.REQUESTED_IP: address.packed,
            Option.SERVER_ID: server.packed,
            Option.CLIENT_ID: client.identifier,
        }
        self._say(ifname, client, MessageType.DECLINE, options)

    def _say(
        self,
        ifname: str,
        client: Client,
        kind: MessageType,
        options: Mapping[Option, bytes],
        *,
        address: IPv4Address = UNSPECIFIED,
        server: tuple[IPv4Address, bytes] | None = None,
    ) -> None:
        xid = _new_xid()
        with self._open(ifname, client.mac, xid) as wire:
            wire.send(build(kind, xid=xid, mac=client.mac, address=address, options=options, server=server))


class _Talk:
    """One transaction: what is asked, again while nobody answers, and which answers count."""

    def __init__(
        self,
        wire: Wire,
        client: Client,
        xid: int,
        now: Callable[[], float],
        jitter: Callable[[float, float], float],
    ) -> None:
        self._wire = wire
        self._client = client
        self._xid = xid
        self._now = now
        self._jitter = jitter
        self._begin = now()
        self._has_complained = False

    def discover(self, wanted: IPv4Address | None, accepts: Callable[[IPv4Address], bool], end: float) -> Answer:
        options = self._client.options()
        if wanted is not None:
            options[Option.REQUESTED_IP] = wanted.packed
        others: list[Answer] = []

        def choose(answer: Answer) -> Answer | None:
            if answer.kind is not MessageType.OFFER:
                return None
            if accepts(answer.address) and wanted in (None, answer.address):
                return answer
            others.append(answer)
            return None

        def patience() -> float:
            return self._now() + OTHER_OFFERS_S if others else end

        found = self._ask(MessageType.DISCOVER, options, choose, end, patience)
        if found is not None:
            return found
        if others:
            offers = ", ".join(
                f"{each.address} ({each.server})" for each in {each.address: each for each in others}.values()
            )
            raise Refused(f"offered is {offers} instead" if wanted is not None else f"offered is {offers}")
        raise NoAnswer("no server answered")

    def take(self, offer: Answer, end: float) -> Answer:
        options = self._client.options()
        options |= {Option.REQUESTED_IP: offer.address.packed, Option.SERVER_ID: offer.server.packed}
        return self._request(options, offer.address, end, only=offer.server)

    def extend(self, address: IPv4Address, how: Extension, server: tuple[IPv4Address, bytes], end: float) -> Answer:
        options = self._client.options()
        if how is Extension.REBOOT:
            options[Option.REQUESTED_IP] = address.packed
            return self._request(options, address, end)
        to = server if how is Extension.RENEW else None
        return self._request(options, address, end, using=address, to=to, only=to and to[0])

    def _request(
        self,
        options: Mapping[Option, bytes],
        address: IPv4Address,
        end: float,
        *,
        using: IPv4Address = UNSPECIFIED,
        to: tuple[IPv4Address, bytes] | None = None,
        only: IPv4Address | None = None,
    ) -> Answer:
        def choose(answer: Answer) -> Answer | None:
            if answer.kind is MessageType.OFFER or only not in (None, answer.server):
                return None
            if answer.kind is MessageType.NAK:
                why = f": {answer.text}" if answer.text else ""
                raise Refused(f"server {answer.server} refused {address}{why}")
            return answer if answer.address == address else None

        found = self._ask(MessageType.REQUEST, options, choose, end, lambda: end, using=using, to=to)
        if found is None:
            raise NoAnswer(f"no server answered the request for {address}")
        return found

    def _ask(
        self,
        kind: MessageType,
        options: Mapping[Option, bytes],
        choose: Callable[[Answer], Answer | None],
        end: float,
        patience: Callable[[], float],
        *,
        using: IPv4Address = UNSPECIFIED,
        to: tuple[IPv4Address, bytes] | None = None,
    ) -> Answer | None:
        """The first answer that is chosen. With each that is not, `patience` says until when is waited for another."""
        wait_s = FIRST_WAIT_S
        while (now := self._now()) < end:
            frame = build(
                kind, xid=self._xid, mac=self._client.mac, seconds=int(now - self._begin), address=using,
                options=options, server=to,
            )  # fmt: skip
            self._wire.send(frame)
            again = min(end, now + wait_s * self._jitter(0.75, 1.25))
            while (left := min(again, end) - self._now()) > 0:
                answer = self._hear(left)
                if answer is None:
                    continue
                chosen = choose(answer)
                if chosen is not None:
                    return chosen
                end = min(end, patience())
            wait_s *= 2
        return None

    def _hear(self, within_s: float) -> Answer | None:
        heard = self._wire.receive(within_s)
        if heard is None:
            return None
        frame, is_summed = heard
        try:
            answer = parse(frame, is_summed=is_summed)
        except Malformed as error:
            # Said once: who sends one can send any number.
            LOG.log(
                logging.DEBUG if self._has_complained else logging.WARNING,
                "ignored a malformed DHCP answer from %s: %s", frame[6:12].hex(":"), error,
            )  # fmt: skip
            self._has_complained = True
            return None
        return answer if (answer.xid, answer.mac) == (self._xid, self._client.mac) else None


def _new_xid() -> int:
    return secrets.randbits(32)


# -- the socket (packet(7), linux/if_packet.h) ---------------------------------------------------------------------

_ETH_P_ALL: Final = 0x0003
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 1, 8, 23
_PACKET_MR_UNICAST: Final = 3
_AUXDATA: Final = struct.Struct("=IIIHHHH")
_TP_STATUS_CSUMNOTREADY: Final = 0x08

_LOAD_WORD_AT_X, _LOAD_HALF, _LOAD_HALF_AT_X, _LOAD_BYTE = 0x40, 0x28, 0x48, 0x30
_LOAD_X_HEADER_LENGTH, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0xB1, 0x15, 0x45, 0x06
"""BPF_LD with BPF_ABS or BPF_IND; BPF_LDX | BPF_MSH; BPF_JMP; BPF_RET (linux/bpf_common.h)."""
_VLAN_TAG_PRESENT: Final = 0xFFFFF000 + 48
"""SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT (linux/filter.h)."""


def answer_filter(xid: int) -> list[Instruction]:
    """Passes untagged frames with UDP over IPv4 to port 68 whose BOOTP reply is of the transaction.

    With a VLAN tag they are of another network, and the sub-interface for it sees them without.
    """
    return [
        (_LOAD_BYTE, 0, 0, _VLAN_TAG_PRESENT),
        (_JUMP_EQUAL, 0, 14, 0),
        (_LOAD_HALF, 0, 0, 12),
        (_JUMP_EQUAL, 0, 12, 0x0800),
        (_LOAD_BYTE, 0, 0, 23),
        (_JUMP_EQUAL, 0, 10, socket.IPPROTO_UDP),
        (_LOAD_HALF, 0, 0, 20),
        (_JUMP_SET, 8, 0, 0x1FFF),
        (_LOAD_X_HEADER_LENGTH, 0, 0, 14),
        (_LOAD_HALF_AT_X, 0, 0, 14 + 2),
        (_JUMP_EQUAL, 0, 5, 68),
        (_LOAD_HALF_AT_X, 0, 0, 14 + 8),
        (_JUMP_EQUAL, 0, 3, 0x0201),
        (_LOAD_WORD_AT_X, 0, 0, 14 + 8 + 4),
        (_JUMP_EQUAL, 0, 1, xid),
        (_RETURN, 0, 0, 0xFFFF),
        (_RETURN, 0, 0, 0),
    ]
