"""What a node of a cluster is asked for and tells: the contract of `Cluster`, its values, and how they are checked.

A cluster is a set of hosts (nodes) with one etcd, by which they know each other's overlay networks. Nothing here
touches etcd or the kernel; `require_certificates` reads files.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, Protocol

import msgspec

from control.errors import Forbidden, InvalidArgument
from control.model import Address

DEFAULT_CLUSTER: Final = "default"
INGRESS: Final = "ingress"
"""The overlay network that every cluster has."""
VNI_LIST: Final = "com.docker.network.driver.overlay.vxlanid_list"
"""Docker's option for the VNIs of an overlay network, and where it shows them."""
ETCD_PORT: Final = 2379
"""etcd's port for clients, which a URL without a port means."""
NAME_MAX_CHARS: Final = 253
"""The longest name of a host; RFC 1035, section 2.3.4, as text."""
_LABEL_MAX_CHARS: Final = 63
_SHOWN_CHARS: Final = 64
_LABEL: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?")
_URL: Final = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_AUTHORITY: Final = re.compile(r"(\[(?P<ip>[^\]]*)\]|(?P<host>[^:]*))(:(?P<port>.*))?", re.DOTALL)
_HOW_TO_JOIN: Final = "run `linkspan cluster join --etcd URL --advertise ADDR --name NODE` first"


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `cluster join` asks for; `parse_spec` makes one that can be.

    `etcd` are URLs "http[s]://HOST:PORT", all of one scheme; `name` is this node's; `advertise` is where the other
    nodes send its packets. `cacert`, `cert` and `key` are absolute paths of PEM files, empty for none.
    """

    etcd: tuple[str, ...]
    name: str
    advertise: Address
    cluster: str = DEFAULT_CLUSTER
    cacert: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True)
class ClusterTimes:
    """How long a node's records outlive it in etcd (`lease_s`, whole seconds), and after how long its keys for
    encrypted networks are followed by new ones. Each node has its own."""

    lease_s: int = 10
    key_lifetime_s: float = 86_400.0


@dataclass(frozen=True)
class NodeInfo:
    """A node as this one knows it; `networks` is the number of overlay networks that it has endpoints on."""

    name: str
    address: Address
    state: Literal["ready", "lost"]
    since: datetime
    is_self: bool
    id: int
    networks: int


@dataclass(frozen=True)
class ClusterInfo:
    """This node's membership; while it is in no cluster the names are empty and `advertise` and `since` are None.

    `state` is "synchronized", "waiting for etcd: " with the reason, or "not joined"; `revision` is the last one of
    etcd's that this node has seen.
    """

    is_joined: bool
    cluster: str = ""
    node: str = ""
    advertise: Address | None = None
    etcd: tuple[str, ...] = ()
    state: str = "not joined"
    revision: int = 0
    since: datetime | None = None


@dataclass(frozen=True)
class Difference:
    """Something of `network` (a name) that `node` holds otherwise than the cluster's store has it: what, and what mends
    it, in words."""

    node: str
    network: str
    what: str
    mend: str


@dataclass(frozen=True)
class ClusterHealth:
    """How a node of a cluster is: whether changes come as they are made, and if not for how long they have not, in
    seconds; how many nodes there are by state, this one included."""

    is_connected: bool
    lag_s: float
    nodes: Mapping[str, int]


class Cluster(Protocol):
    """This host's membership in a cluster. All methods block and may be called from any thread."""

    def load(self) -> None:
        """Takes up what this host remembers; raises StoreError."""

    def start(self) -> None:
        """Goes on as a node; waits for nobody, and never raises."""

    def stop(self) -> None:
        """Follows the cluster no more, without leaving it. Idempotent."""

    def problems(self) -> dict[str, str]:
        """What the cluster has no room for, and why, by the words that messages have for it."""

    def join(self, spec: ClusterSpec) -> None:
        """Makes this host a node, and keeps it one over restarts; networks of this host are not touched.

        Raises Conflict (a node already, or a live node has the name), InvalidArgument (`advertise` is not this host's,
        etcd does not take the certificates), Exhausted (etcd is out of space), DeadlineExceeded (no answer from etcd).
        """

    def leave(self, *, force: bool = False) -> None:
        """Makes this host no node any more, and drops what it had of overlay networks.

        Raises Forbidden when it is in no cluster, or has endpoints on overlay networks; with `force` these go, and an
        etcd that does not answer is no hindrance: the node's records end with its lease.
        """

    def info(self) -> ClusterInfo:
        """Asks nobody: what this node knows at the moment."""

    def health(self) -> ClusterHealth | None:
        """Asks nobody; None while this host is in no cluster."""

    def nodes(self) -> list[NodeInfo]:
        """All nodes, this one included; raises Forbidden when this host is in no cluster."""

    def peers(self, network_id: str) -> list[NodeInfo]:
        """The nodes with endpoints on an overlay network, this one included; none when this host is in no cluster."""

    def check(self) -> list[Difference]:
        """Compares the maps, FDB and neighbour tables of this node with the store; raises Forbidden when this host is
        in no cluster, DeadlineExceeded when etcd does not answer."""

    def mend(self) -> list[Difference]:
        """Brings this node to what the store has, and returns what differed; what still does is for `check` to say.

        Raises what `check` does.
        """


class InvalidOption(InvalidArgument):
    """One option of joining a cluster cannot be; `option` is its name without dashes, `problem` what is wrong and what
    to do."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"--{option}: {problem}")
        self.option = option
        self.problem = problem


def not_joined(network_name: str = "") -> Forbidden:
    """The error of what needs a cluster on a host that is in none; for overlay networks with the network's name.

    Its status is that which the Engine API documents for an overlay network on an engine outside of a Swarm, 403.
    """
    needed = f", which the overlay network {network_name} needs" if network_name else ""
    return Forbidden(f"This node is not in a cluster{needed}: {_HOW_TO_JOIN}")


def parse_spec(
    *,
    etcd: Sequence[str],
    name: str,
    advertise: str,
    cluster: str = DEFAULT_CLUSTER,
    cacert: str = "",
    cert: str = "",
    key: str = "",
) -> ClusterSpec:
    """Returns what the texts ask for, with every URL's port filled in; raises InvalidOption for the first that cannot
    be. Files are not looked at."""
    urls = tuple(dict.fromkeys(_url(text) for text in etcd))
    if not urls:
        raise InvalidOption("etcd", f"give at least one URL, as http://10.0.0.1:{ETCD_PORT}")
    schemes = {url.partition(":")[0] for url in urls}
    if len(schemes) > 1:
        raise InvalidOption("etcd", "some URLs are http and some https: all members of one etcd have the same scheme")
    _check_paths({"cacert": cacert, "cert": cert, "key": key}, is_tls="https" in schemes)
    return ClusterSpec(
        etcd=urls,
        name=_name("name", name),
        advertise=_advertised(advertise),
        cluster=_name("cluster", cluster),
        cacert=cacert,
        cert=cert,
        key=key,
    )


def _url(text: str) -> str:
    shown = text[:_SHOWN_CHARS]
    found = _URL.fullmatch(text)
    if found is None:
        raise InvalidOption("etcd", f'"{shown}" is no URL: write it as http://HOST:{ETCD_PORT}, or with https for TLS')
    scheme = found["scheme"].lower()
    if scheme not in ("http", "https"):
        raise InvalidOption("etcd", f'"{shown}" has the scheme {scheme[:_SHOWN_CHARS]}: etcd speaks http and https')
    if "@" in found["authority"]:
        raise InvalidOption("etcd", "a URL holds a user: leave that out, nodes show etcd a certificate")
    if found["rest"] not in ("", "/"):
        raise InvalidOption("etcd", f'"{shown}" goes on after the host: leave out "{found["rest"][:_SHOWN_CHARS]}"')
    return f"{scheme}://{_host_and_port(found['authority'], shown)}"


def _host_and_port(authority: str, shown: str) -> str:
    parts = _AUTHORITY.fullmatch(authority)
    host = "" if parts is None else parts["ip"] or parts["host"] or ""
    if parts is None or not _is_host(host, is_bracketed=parts["ip"] is not None):
        raise InvalidOption("etcd", f'"{shown}" names no host: write a name, an IPv4 address, or an IPv6 one in []')
    port = str(ETCD_PORT) if parts["port"] is None else parts["port"]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise InvalidOption("etcd", f'"{shown}" has a port that is not in 1..65535: that of etcd is {ETCD_PORT}')
    return f"[{host}]:{int(port)}" if parts["ip"] is not None else f"{host}:{int(port)}"


def _is_host(text: str, *, is_bracketed: bool) -> bool:
    """Whether the text is an address of the right family, or a name; one that ends in a number can only be an
    address."""
    if is_bracketed or text.rpartition(".")[2].isdigit():
        try:
            return (ip_address(text).version == 6) == is_bracketed and "%" not in text
        except ValueError:
            return False
    return _is_name(text.removesuffix("."))


def _is_name(text: str) -> bool:
    """Whether the text is a host name; RFC 1123, section 2.1."""
    return len(text) <= NAME_MAX_CHARS and all(
        len(label) <= _LABEL_MAX_CHARS and _LABEL.fullmatch(label) for label in text.split(".")
    )


def _name(option: str, text: str) -> str:
    if not text:
        raise InvalidOption(option, "the name is empty: give one")
    if not _is_name(text):
        raise InvalidOption(
            option,
            f'"{text[:_SHOWN_CHARS]}" is no name: take one as host names are, letters, digits, "-" and ".", '
            f"at most {NAME_MAX_CHARS}",
        )
    return text


def _advertised(text: str) -> Address:
    try:
        address = ip_address(text)
    except ValueError as error:
        raise InvalidOption(
            "advertise",
            f'"{text[:_SHOWN_CHARS]}" is no address: give the IPv4 or IPv6 address that other nodes send to',
        ) from error
    is_v6_of_link = isinstance(address, IPv6Address) and (address.is_link_local or address.ipv4_mapped is not None)
    is_broadcast = int(address) == (1 << 32) - 1 and address.version == 4
    if address.is_unspecified or address.is_loopback or address.is_multicast or is_v6_of_link or is_broadcast:
        raise InvalidOption("advertise", f"other nodes cannot reach this host by {text}: give the address they send to")
    return address


def _check_paths(paths: dict[str, str], *, is_tls: bool) -> None:
    given = {option: path for option, path in paths.items() if path}
    for option, path in given.items():
        if not is_tls:
            raise InvalidOption(option, "certificates are for URLs with https: write those, or leave this out")
        if not os.path.isabs(path) or "\0" in path:
            raise InvalidOption(option, f'"{path[:_SHOWN_CHARS]}" is no absolute path: write it from / on')
    for option, other in (("key", "cert"), ("cert", "key")):
        if other in given and option not in given:
            raise InvalidOption(option, f"{other} is of no use without it: give both or none")


def require_certificates(spec: ClusterSpec) -> None:
    """Raises InvalidOption unless every file of `spec` can be read, holds what it is to hold, and the key is the
    certificate's. Whether a certificate has expired is for the other side to say."""
    for option in ("cacert", "cert"):
        if path := getattr(spec, option):
            _require_file(option, path)
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
            except ssl.SSLError as error:
                raise InvalidOption(option, f"{path} holds no certificate: it has to be in PEM form") from error
    if not spec.key:
        return
    _require_file("key", spec.key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(spec.cert, spec.key, password="")
    except ssl.SSLError as error:
        problem = (
            f"{spec.key} is not the key of the certificate in {spec.cert}: give those that belong together"
            if error.reason == "KEY_VALUES_MISMATCH"
            else f"{spec.key} holds no private key that can be used: it has to be in PEM form, without a password"
        )
        raise InvalidOption("key", problem) from error


def _require_file(option: str, path: str) -> None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidOption(option, f"{path} is not a file: give the path of one in PEM form")
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise InvalidOption(option, f"linkspand cannot read {path}: {reason}") from error
