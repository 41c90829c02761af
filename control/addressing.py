"""Pools of a network and addresses of an endpoint: what the controller asks of IPAM, taken together or not at all."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Final

from control.errors import Conflict, Exhausted, InvalidArgument
from control.ipam.base import Ipam
from control.model import Address, Endpoint, EndpointSpec, Network, NetworkSpec, PoolConfig, PoolSpec, Subnet
from control.store.base import Change

LOCAL_SPACE: Final = "local"
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

Addresses = tuple[IPv4Interface | None, IPv6Interface | None]


def request_pools(
    ipam: Ipam,
    spec: NetworkSpec,
    *,
    owner: str,
    is_needed: bool,
    avoid: Sequence[Subnet],
    is_routerless: Callable[[Subnet], bool] = lambda _: False,
) -> tuple[tuple[PoolConfig, ...], list[Change]]:
    """Takes every pool, gateway and auxiliary address that the network asks for; default pools avoid the nets
    in `avoid`. A subnet that `is_routerless` has no gateway unless one is given."""
    if not is_needed:
        if spec.pools:
            raise InvalidArgument(f"the driver {spec.driver} takes no subnets: leave --subnet out")
        return (), []
    specs = _complete(spec)
    pools: list[PoolConfig] = []
    changes: list[Change] = []
    try:
        for pool_spec, v6 in specs:
            pool, new = ipam.request_pool(
                LOCAL_SPACE,
                subnet=pool_spec.subnet,
                ip_range=pool_spec.ip_range,
                v6=v6,
                avoid=avoid if pool_spec.subnet is None else (),
                owner=owner,
            )
            changes += new
            config = PoolConfig(pool_id=pool.id, subnet=pool.subnet, ip_range=pool.ip_range)
            pools.append(config)
            gateway, new = _request_reserved(ipam, config, pool_spec, owner, is_routerless(pool.subnet))
            changes += new
            pools[-1] = PoolConfig(
                pool_id=pool.id,
                subnet=pool.subnet,
                ip_range=pool.ip_range,
                gateway=gateway,
                aux_addresses=pool_spec.aux_addresses,
            )
    except Exception:
        release_pools(ipam, pools)
        raise
    return tuple(pools), changes


def _complete(spec: NetworkSpec) -> list[tuple[PoolSpec, bool]]:
    """(pool, is IPv6) for every pool the network needs, default ones for a family that has none."""
    if not spec.enable_ipv4 and not spec.enable_ipv6:
        raise InvalidArgument("IPv4 or IPv6 must be enabled")
    specs = []
    for pool in spec.pools:
        if pool.subnet is None:
            if pool.ip_range or pool.gateway or pool.aux_addresses:
                raise InvalidArgument("every ip-range or gateway must have a corresponding subnet")
            continue
        v6 = pool.subnet.version == 6
        if v6 and not spec.enable_ipv6:
            raise InvalidArgument(f"subnet {pool.subnet} is IPv6 and the network is not: add --ipv6")
        if not v6 and not spec.enable_ipv4:
            raise InvalidArgument(f"subnet {pool.subnet} is IPv4 and the network is not: leave --ipv4=false out")
        specs.append((pool, v6))
    for v6, is_enabled in ((False, spec.enable_ipv4), (True, spec.enable_ipv6)):
        if is_enabled and not any(is_v6 == v6 for _, is_v6 in specs):
            specs.append((PoolSpec(), v6))
    return specs


def _request_reserved(
    ipam: Ipam, pool: PoolConfig, spec: PoolSpec, owner: str, is_routerless: bool = False
) -> tuple[Address | None, list[Change]]:
    """The gateway, asked for or the subnet's first address (else any free one), and the auxiliary addresses."""
    changes: list[Change] = []
    gateway: Address | None = None
    if spec.gateway is not None:
        gateway, new = ipam.request_address(pool.pool_id, spec.gateway, owner=f"gateway of {owner}")
        changes += new
    for name, address in spec.aux_addresses.items():
        _, new = ipam.request_address(pool.pool_id, address, owner=f"auxiliary address {name} of {owner}")
        changes += new
    if spec.gateway is None and not is_routerless:
        first = pool.subnet.network_address + (1 if pool.subnet.num_addresses > 2 else 0)
        wanted = None if first in spec.aux_addresses.values() else first
        gateway, new = ipam.request_address(pool.pool_id, wanted, owner=f"gateway of {owner}")
        changes += new
    return gateway, changes


def release_pools(ipam: Ipam, pools: Sequence[PoolConfig]) -> list[Change]:
    """Gives the pools back with all that was taken from them; those of a container engine are not ours to give."""
    return [change for pool in pools if pool.pool_id for change in ipam.release_pool(pool.pool_id)]


def retake_pools(ipam: Ipam, pools: Sequence[PoolConfig], *, owner: str) -> None:
    """The opposite of `release_pools`, for when its changes could not be stored."""
    for pool in (pool for pool in pools if pool.pool_id):
        ipam.request_pool(LOCAL_SPACE, subnet=pool.subnet, ip_range=pool.ip_range, owner=owner)
        spec = PoolSpec(subnet=pool.subnet, gateway=pool.gateway, aux_addresses=pool.aux_addresses)
        _request_reserved(ipam, pool, spec, owner, pool.gateway is None)


def request_addresses(
    ipam: Ipam, network: Network, spec: EndpointSpec, *, owner: str
) -> tuple[Addresses, list[Change]]:
    """One address of each family that the network has; raises InvalidArgument, Forbidden, Exhausted."""
    for version, wanted in ((4, spec.ipv4), (6, spec.ipv6)):
        if wanted is not None and not _pools_of(network, version):
            raise InvalidArgument(
                f"network {network.name} has no IPv{version} subnet: {wanted} cannot be given to {owner}"
            )
    address, changes = _request_family(ipam, network, 4, spec.ipv4, owner)
    ipv4 = address if isinstance(address, IPv4Interface) else None
    try:
        address, more = _request_family(ipam, network, 6, spec.ipv6, owner)
    except Exception:
        release_addresses(ipam, network, ipv4, None)
        raise
    ipv6 = address if isinstance(address, IPv6Interface) else None
    return (ipv4, ipv6), [*changes, *more]


def given_addresses(network: Network, spec: EndpointSpec) -> Addresses:
    """The addresses that `spec` names, which somebody else has given; raises InvalidArgument for others than the
    network's."""
    ipv4, ipv6 = (
        None if address is None else ip_interface(f"{address}/{pools_with(network, address)[0].subnet.prefixlen}")
        for address in (spec.ipv4, spec.ipv6)
    )
    assert not isinstance(ipv4, IPv6Interface)
    assert not isinstance(ipv6, IPv4Interface)
    return ipv4, ipv6


def _request_family(
    ipam: Ipam, network: Network, version: int, wanted: Address | None, owner: str
) -> tuple[IPv4Interface | IPv6Interface | None, list[Change]]:
    """An address from the pool that contains the wanted one, else from the first pool that has any left."""
    pools = _pools_of(network, version)
    if not pools:
        return None, []
    if wanted is not None:
        pools = pools_with(network, wanted)
    for pool in pools:
        try:
            address, changes = ipam.request_address(pool.pool_id, wanted, owner=owner)
        except Exhausted:
            if pool is pools[-1]:
                raise
            continue
        return ip_interface(f"{address}/{pool.subnet.prefixlen}"), list(changes)
    raise AssertionError("unreachable: the last pool either gave an address or raised")


def pools_with(network: Network, wanted: Address) -> list[PoolConfig]:
    """The pools that an address can be from; raises InvalidArgument when there are none."""
    pools = _pools_of(network, wanted.version)
    found = [pool for pool in pools if wanted in pool.subnet]
    if not found:
        subnets = ", ".join(str(pool.subnet) for pool in pools)
        raise InvalidArgument(
            f"invalid address {wanted}: no configured subnet contains it: network {network.name} has {subnets}"
        )
    return found


def release_addresses(
    ipam: Ipam, network: Network | None, ipv4: IPv4Interface | None, ipv6: IPv6Interface | None
) -> list[Change]:
    """Gives an endpoint's addresses back; a network that is gone took its pools along."""
    if network is None:
        return []
    return [
        change
        for interface in (ipv4, ipv6)
        if interface is not None
        for pool in network.pools
        if pool.pool_id and interface.ip in pool.subnet
        for change in ipam.release_address(pool.pool_id, interface.ip)
    ]


def exchange_address(
    ipam: Ipam, network: Network, old: IPv4Interface | None, new: Address, *, owner: str
) -> tuple[IPv4Interface, list[Change]]:
    """Takes `new` and then gives `old` back; raises as `request_addresses` does, with nothing changed."""
    interface, changes = _request_family(ipam, network, 4, new, owner)
    assert isinstance(interface, IPv4Interface)
    return interface, [*changes, *release_addresses(ipam, network, old, None)]


def _pools_of(network: Network, version: int) -> list[PoolConfig]:
    return [pool for pool in network.pools if pool.subnet.version == version]


def gateway_for(network: Network, interface: IPv4Interface | IPv6Interface | None) -> Address | None:
    """The gateway of the pool that the address is from."""
    if interface is None:
        return None
    return next((pool.gateway for pool in network.pools if interface.ip in pool.subnet), None)


def has_gateway(network: Network, version: int) -> bool:
    """Whether endpoints of the network can take it as their default route."""
    return not network.internal and any(pool.gateway is not None for pool in _pools_of(network, version))


def link_local(mac: str) -> IPv6Address:
    """The EUI-64 link-local address of a MAC (RFC 4291, appendix A), of a /64."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:6]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def check_link_locals(
    network: Network, endpoint: Endpoint, on_link: Sequence[Endpoint]
) -> tuple[Address, Endpoint] | None:
    """A link-local address of the endpoint's that one of `on_link` has already, and that one.

    Raises InvalidArgument for an address that no endpoint of the network can have.
    """
    for address in endpoint.link_local_ips:
        subnet = next((pool.subnet for pool in network.pools if address in pool.subnet), None)
        if subnet is not None:
            raise InvalidArgument(
                f"invalid link-local IP address {address}: it is in subnet {subnet} of network {network.name}: ask for "
                f"it as IPv{address.version} address"
            )
        if not network.pools or (address.version == 6 and not _pools_of(network, 6)):
            raise InvalidArgument(
                f"network {network.name} has no IPv{address.version} subnet: link-local address {address} cannot be had"
            )
    own = {*endpoint.link_local_ips, *_own_link_local(endpoint)}
    for other in on_link:
        for address in _addresses(other) if endpoint.link_local_ips else other.link_local_ips:
            if address in own:
                return address, other
    return None


def _addresses(endpoint: Endpoint) -> list[Address]:
    return [*endpoint.addresses, *_own_link_local(endpoint), *endpoint.link_local_ips]


def _own_link_local(endpoint: Endpoint) -> list[Address]:
    return [link_local(endpoint.mac)] if endpoint.ipv6 is not None else []


def check_mac(mac: str, network: Network, siblings: Sequence[Endpoint]) -> str:
    """The address in its usual form; raises InvalidArgument, or Conflict when it is taken on the network."""
    normal = mac.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(normal):
        raise InvalidArgument(f"invalid MAC address {mac!r}: write it as 02:42:ac:11:00:02")
    if int(normal[:2], 16) & 1 or normal == "00:00:00:00:00:00":
        raise InvalidArgument(f"invalid MAC address {mac}: it must be a unicast address")
    if any(endpoint.mac == normal for endpoint in siblings):
        raise Conflict(f"MAC address {normal} is in use on network {network.name}: choose another")
    return normal


def make_mac(ipv4: IPv4Interface | None, siblings: Sequence[Endpoint]) -> str:
    """A locally administered address that none of the network's endpoints has.

    02:42 and the IPv4 address as Docker has it; random without one, and where somebody asked for that MAC before.
    """
    taken = {sibling.mac for sibling in siblings}
    tail = ipv4.ip.packed if ipv4 is not None else secrets.token_bytes(4)
    while (mac := (b"\x02\x42" + tail).hex(":")) in taken:
        tail = secrets.token_bytes(4)
    return mac
