"""What is wrong with etcd, in one line that names it and says what to do.

StoreError
 |- EtcdUnavailable  503  nobody answers, or nobody who could: it may work later, and nothing is to be changed here
 |   `- LeaseLost     503  etcd has ended the lease that a record was to be written under
 `- EtcdRefused      500  etcd answers and refuses: somebody has to do something
     `- EtcdFull     503  it is out of space
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from control.errors import StoreError


class EtcdUnavailable(StoreError):
    """No member of etcd could be asked; what was asked may have been done or not."""

    http_status = 503


class LeaseLost(EtcdUnavailable):
    """The lease is over, and all that was written under it is gone."""


class EtcdRefused(StoreError):
    """etcd answers, and refuses what was asked."""


class EtcdFull(EtcdRefused):
    """etcd is out of space."""

    http_status = 503


class Compacted(Exception):
    """etcd does not have the revision that was asked for, or no longer. For callers inside of the client."""


@dataclass(frozen=True)
class Failure:
    """Why one member did not answer. `is_final`: asking again in a moment is no use."""

    text: str
    is_final: bool = False


_CLOSED: Final = Failure("it closed the connection")
CLOSES_TLS: Final = Failure("it closes the connection: if it speaks no TLS, write http://")
NO_ETCD: Final = Failure("what answers there is no etcd: check host and port (that for clients, mostly 2379)", True)
_SPEAKS_TLS: Final = Failure("it speaks TLS: write https://", True)
_SAYS_NOTHING: Final = Failure("it closes the connection: if it is an etcd that speaks TLS, write https://", True)

_CERTIFICATE: Final = {
    "expired": "its certificate has expired",
    "not yet valid": "its certificate is not valid yet: look at this host's clock",
    "mismatch": "its certificate is for another name or address",
}
_ALERTS: Final = {
    "CERTIFICATE_REQUIRED": "it wants a certificate of its clients: give --cert and --key",
    "BAD_CERTIFICATE": "it does not accept this node's certificate: missing, expired, or of another authority",
    "CERTIFICATE_EXPIRED": "this node's certificate has expired",
    "UNKNOWN_CA": "this node's certificate is of an authority that it does not know",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: write http://",
}
_PERMANENT: Final = {
    "corrupt cluster": "its members differ from each other (alarm CORRUPT): restore it from a snapshot",
    "permission denied": "permission denied: this node's user needs a role that writes below /linkspan/",
    "user name is empty": "it wants a user: give --cert and --key with the user's name as common name",
    "invalid auth token": "it does not take this node for the user that it says it is",
    "request is too large": "the request is larger than it takes: see its --max-request-bytes",
}
_ASK_LATER: Final = (
    Status.UNAVAILABLE,
    Status.DEADLINE_EXCEEDED,
    Status.CANCELLED,
    Status.RESOURCE_EXHAUSTED,
    Status.INTERNAL,
)
_FRESH: Final = "etcdserver: "


def refusal(error: GRPCError) -> EtcdRefused | LeaseLost | Compacted | None:
    """What an answer means that any other member would give as well; None when another is worth asking."""
    said = (error.message or "").removeprefix(_FRESH)
    if "required revision" in said:  # compacted, or still to come: the store is not the one that had it
        return Compacted(said)
    if "requested lease not found" in said:
        return LeaseLost("the node's lease in etcd is over; the node registers again")
    if "database space exceeded" in said:
        return EtcdFull(
            "etcd refuses: it is out of space (alarm NOSPACE): compact and defragment it, give it a larger "
            "--quota-backend-bytes, then `etcdctl alarm disarm`"
        )
    for known, meaning in _PERMANENT.items():
        if known in said:
            return EtcdRefused(f"etcd refuses: {meaning}")
    # UNKNOWN is what grpclib makes of answers that are not gRPC.
    if error.status in _ASK_LATER or error.status is Status.UNKNOWN:
        return None
    return EtcdRefused(f"etcd refuses: {said or error.status.name}")


def failure(error: BaseException) -> Failure:
    """Why a member did not answer."""
    match error:
        case TimeoutError():
            return Failure("no answer in time")
        case ConnectionRefusedError():
            return Failure("connection refused")
        case socket.gaierror():
            return Failure("the name does not resolve", is_final=True)
        case ssl.SSLCertVerificationError():
            said = error.verify_message
            known = next((text for part, text in _CERTIFICATE.items() if part in said), None)
            return Failure(known or "its certificate is of another authority than --cacert's", is_final=True)
        case ssl.SSLError():
            reason = error.reason or ""
            known = next((text for part, text in _ALERTS.items() if reason.endswith(part)), None)
            return Failure(known or f"TLS fails: {reason}", is_final=known is not None)
        case StreamTerminatedError() | ConnectionError():
            return _CLOSED
        case OSError():
            return Failure(error.strerror or str(error) or type(error).__name__)
        case GRPCError(status=Status.UNKNOWN | Status.UNIMPLEMENTED):
            return NO_ETCD
        case GRPCError():
            return Failure((error.message or error.status.name).removeprefix(_FRESH))
    return Failure(f"{type(error).__name__}: {error}")


def is_unexplained(found: Failure) -> bool:
    """Whether the member should be asked in another way what it does not like."""
    return found is _CLOSED


def explanation(answer: bytes) -> Failure:
    """What a member is that closes connections and gave this answer to a question in HTTP/1.1."""
    if not answer:
        return _SAYS_NOTHING
    if answer.startswith(b"\x15\x03") or b"HTTPS server" in answer:
        return _SPEAKS_TLS
    return _CLOSED if answer.startswith(b"HTTP/") and b"404" in answer.split(b"\r\n")[0] else NO_ETCD
