"""What the checks look at: records as they were, and the kernel's tables, each read when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from control.cluster_spec import Cluster
from control.drivers.base import Driver, Join
from control.model import Address, Endpoint, Network
from datapath import links, nft, rtnl, rtnl_read
from datapath.attached import Expected, Hooks


@dataclass
class View:
    """`networks` are active, `joins` those of their endpoints that have come to rest; `all_networks` and
    `all_endpoints` are all that are recorded. `reaches` tells whether a packet of so many bytes, which nobody may cut
    up, gets to an address and back. `proc` is the root of proc(5).
    """

    drivers: Mapping[str, Driver]
    networks: Sequence[Network]
    joins: Sequence[Join]
    all_networks: Sequence[Network]
    all_endpoints: Sequence[Endpoint]
    cluster: Cluster
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    reaches: Callable[[Address, int], bool] = lambda address, size: True
    proc: Path = Path("/proc")

    def on(self, network: Network) -> list[Join]:
        return self._by_network.get(network.id, [])

    @cached_property
    def _by_network(self) -> dict[str, list[Join]]:
        found: dict[str, list[Join]] = {}
        for join in self.joins:
            found.setdefault(join.network.id, []).append(join)
        return found

    def of(self, driver: Driver) -> tuple[list[Network], list[Join]]:
        networks = [network for network in self.networks if network.driver == driver.name]
        return networks, [join for network in networks for join in self.on(network)]

    @cached_property
    def links(self) -> dict[str, links.LinkInfo]:
        """The devices of linkspand's namespace."""
        return {link.ifname: link for link in links.dump()}

    @cached_property
    def hooks(self) -> Hooks:
        return Hooks()

    @cached_property
    def devices(self) -> dict[str, str]:
        """The devices that networks are made of, by name, with the id of the network or endpoint."""
        found: dict[str, str] = {}
        for driver in self.drivers.values():
            networks, joins = self.of(driver)
            found |= driver.devices(networks, [join.endpoint for join in joins])
        return {ifname: id_ for ifname, id_ in found.items() if ifname in self.links}

    @cached_property
    def expected(self) -> list[Expected]:
        """The programs that are to run on devices of this host."""
        found: dict[Expected, None] = {}
        for driver in self.drivers.values():
            networks, joins = self.of(driver)
            found |= dict.fromkeys(driver.attachments(networks, [join.endpoint for join in joins]))
        return list(found)

    @cached_property
    def uplinks(self) -> list[str]:
        """The devices by which packets leave the host: by default routes, and to other nodes."""
        with rtnl.Rtnl() as netlink:
            routed = set(rtnl_read.default_routes(netlink))
        names = {link.ifname for link in self.links.values() if link.ifindex in routed}
        return sorted(names | {each.ifname for each in self.expected if each.ifname not in self.devices})

    @cached_property
    def parents(self) -> list[str]:
        """The devices of the host that networks are on."""
        found = {ifname for ifname, id_ in self.devices.items() if self._is_parent(ifname, id_)}
        return sorted(found)

    def _is_parent(self, ifname: str, id_: str) -> bool:
        network = next((each for each in self.networks if each.id == id_), None)
        return network is not None and self.drivers[network.driver].parent(network) is not None

    @cached_property
    def ruleset(self) -> list[dict[str, Any]]:
        """All of nftables but Linkspan's own table, as `nft -j list ruleset` shows it."""
        return nft.others()

    def sysctl(self, name: str) -> str | None:
        """A setting of linkspand's namespace, as "net/ipv4/ip_forward"; None where the kernel has no such."""
        try:
            return (self.proc / "sys" / name).read_text().strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        text = self.sysctl(name)
        return int(text) if text and text.lstrip("-").isdigit() else None
