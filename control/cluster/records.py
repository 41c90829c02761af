"""What the nodes of a cluster write into etcd: keys and records.

Keys lie under `/linkspan/<cluster>/` as in ADR 0015, values are JSON. Their names are such that what every node follows
(endpoints, names, networks, nodes) is one range of keys, and what only writers look at lies outside of it.
"""

from __future__ import annotations

import re
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from control.cluster_spec import INGRESS, VNI_LIST
from control.errors import InvalidArgument
from control.model import Address, EndpointId, Network, NetworkId, NetworkState, PoolConfig, Subnet

MIN_VNI: Final = 4096
MAX_VNI: Final = (1 << 24) - 1
MAX_NODE_ID: Final = (1 << 16) - 1
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host of the cluster, for as long as its lease lives.

    `id` is 1 to 65535, unique among the nodes. `address` is where its VXLAN packets come from and go to, `mtu` (bytes)
    and `mac` those of the device that has it; the MAC is empty where the device has none. `public_keys` are those of
    WireGuard, (key id, base64). `incarnation` tells a node that returns from another one of the same name.
    """

    name: str
    id: int
    address: Address
    since: datetime
    incarnation: str
    mtu: int = 0
    mac: str = ""
    public_keys: tuple[tuple[int, str], ...] = ()


class GlobalNetwork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network of all nodes: `control.model.Network` without what each host adds, and the VNI."""

    id: NetworkId
    name: str
    vni: int
    created: datetime
    driver: str = "overlay"
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] = {}
    pools: tuple[PoolConfig, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    config_from: str = ""

    def on_host(self) -> Network:
        """The network as a host has it, but for `segment`; its VNI is among the options too, where Docker shows it."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        fields["options"] = {**self.options, VNI_LIST: str(self.vni)}
        is_predefined = self.name == INGRESS
        return Network(**fields, scope="global", segment=0, state=NetworkState.ACTIVE, predefined=is_predefined)


class RemoteEndpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An endpoint as other nodes need it. `names` are the sandbox's name and its aliases; `direct` says that its node
    takes packets for it without VXLAN too."""

    node: str
    mac: str
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    names: tuple[str, ...] = ()
    direct: bool = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        if self.ipv6 is None:
            return () if self.ipv4 is None else (self.ipv4,)
        return (self.ipv6,) if self.ipv4 is None else (self.ipv4, self.ipv6)


class AddressHolder(msgspec.Struct, frozen=True):
    """Who has an address."""

    endpoint: EndpointId
    node: str


class NetworkSubnets(msgspec.Struct, frozen=True):
    """One network's part of `Pools`; the name is for messages."""

    name: str
    subnets: tuple[Subnet, ...]


class Pools(msgspec.Struct, frozen=True):
    """All subnets of the cluster: one record, so that an overlap cannot come about between two writers."""

    networks: dict[NetworkId, NetworkSubnets] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is settled once for a cluster. `id` is random: it tells it from another cluster of the same name at another
    etcd. IPv6 subnets that nobody chose come from the unique local /48 of `ula` (40 bits in hex, RFC 4193)."""

    id: str
    ula: str
    created: datetime


class Keys:
    """The keys of one cluster; raises InvalidArgument for a name that cannot be one's."""

    def __init__(self, cluster: str) -> None:
        check_name("cluster", cluster)
        self.root = f"/linkspan/{cluster}/"
        self.settings = f"{self.root}settings"
        self.pools = f"{self.root}pools"
        self.endpoints = f"{self.root}endpoints/"
        self.networks = f"{self.root}networks/"
        self.nodes = f"{self.root}nodes/"
        self.followed = self.endpoints, f"{self.root}nodes0"
        """First and end of what every node follows; `0` comes after `/`."""

    def node(self, name: str) -> str:
        return f"{self.nodes}{name}"

    def number(self, node_id: int) -> str:
        """Taken with the name: a node id is one node's."""
        return f"{self.root}numbers/{node_id}"

    def network(self, network_id: str) -> str:
        return f"{self.networks}{network_id}"

    def name(self, name: str) -> str:
        return f"{self.root}names/{name}"

    def vni(self, vni: int) -> str:
        return f"{self.root}vnis/{vni}"

    def addresses_of(self, network_id: str) -> str:
        return f"{self.root}addresses/{network_id}/"

    def address(self, network_id: str, address: Address) -> str:
        return f"{self.addresses_of(network_id)}{address}"

    def endpoints_of(self, network_id: str) -> str:
        return f"{self.endpoints}{network_id}/"

    def endpoint(self, network_id: str, endpoint_id: str) -> str:
        return f"{self.endpoints_of(network_id)}{endpoint_id}"


def check_name(kind: str, name: str) -> None:
    """Raises InvalidArgument for what cannot name a node or a cluster."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"invalid {kind} name {name!r}: at most 63 letters, digits, _ . and -, beginning with a letter or digit"
        )
