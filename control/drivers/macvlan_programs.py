"""The programs on the parents of macvlan networks: which networks have them, and what they are told of endpoints.

A parent that does not take them costs host access and police, not the endpoint; only veth pairs cannot do without.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence

from control.drivers.base import Join, Problem
from control.drivers.inside import mac_bytes
from control.drivers.macvlan_options import broadcast_limit, has_host_access, is_switched, parent_hook
from control.drivers.macvlan_parents import FollowedParents
from control.drivers.macvlan_stations import station_of
from control.drivers.macvlan_veth import switching
from control.drivers.options import ACCEL, is_on
from control.model import Endpoint, Network
from datapath import abi, devices
from datapath.attached import Expected
from datapath.switch import Switching
from datapath.uplink import Station, Uplinks

LOG = logging.getLogger(__name__)


class ParentPrograms:
    """Thread-safe. Networks are macvlan networks; endpoints of others are passed over."""

    def __init__(self, parents: FollowedParents, uplinks: Uplinks, *, default_accel: bool) -> None:
        self._parents = parents
        self._uplinks = uplinks
        self._default_accel = default_accel
        self._lock = threading.Lock()

    def are_for(self, network: Network) -> bool:
        """Whether the network's parent is to have them."""
        return is_switched(network) or is_on(network, ACCEL, self._default_accel)

    def start(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Runs them where they are to be. Never raises: see `problem`."""
        stations = self._stations(networks, endpoints)
        switches = {parent: how for parent, how in self._switches(networks).items() if how is not None}
        self._uplinks.start(stations, _host_access(stations), switches)

    def tell(self, network: Network, endpoint: Endpoint) -> None:
        """Has them know of the endpoint; they run on a parent as long as they know of one there."""
        parent, station = self._parents.ifname(network), station_of(network, endpoint)
        with self._lock:
            try:
                access = self._uplinks.has_host_access(parent, station)
                self._uplinks.attach(parent, access, switching(network))
                self._uplinks.add(parent, station)
                self._uplinks.fallbacks.pop(f"parent {parent}", None)
            except OSError as error:
                if is_switched(network):
                    raise
                self._uplinks.fallbacks[f"parent {parent}"] = str(error)
                LOG.warning("parent %s has no eBPF programs: %s", parent, error)

    def forget(self, network: Network, endpoint: Endpoint) -> None:
        parent = self._parents.ifname(network)
        with self._lock:
            self._uplinks.remove(parent, station_of(network, endpoint))
            if not self._uplinks.stations(parent):
                self._uplinks.detach(parent)
                self._uplinks.fallbacks.pop(f"parent {parent}", None)

    # -- looking -------------------------------------------------------------------------------------------------

    def problem(self, network: Network) -> str | None:
        """Why there are none on the network's parent."""
        return self._uplinks.problem or self._uplinks.fallbacks.get(f"parent {self._parents.ifname(network)}")

    def path(self, network: Network) -> str:
        """What packets of the network's endpoints take, in words."""
        if not self.are_for(network):
            return f"kernel macvlan ({ACCEL}=off)"
        problem = self.problem(network)
        if is_switched(network):
            return f"none: {problem}" if problem else f"eBPF switch ({self._uplinks.attachment}{self._hook(network)})"
        if problem:
            return f"kernel macvlan: {problem}"
        return f"kernel macvlan, eBPF on the parent ({self._uplinks.attachment})"

    def _hook(self, network: Network) -> str:
        if parent_hook(network) == "tc":
            return ""
        reason = self._uplinks.generic(self._parents.ifname(network))
        return f", generic XDP: {reason}" if reason else ", native XDP"

    def host_access(self, network: Network) -> str:
        """Whether host and endpoints reach each other, and if not, why, in words."""
        if not has_host_access(network):
            return "off"
        problem = self.problem(network) if self.are_for(network) else f"it takes the programs ({ACCEL}=off)"
        return f"off: {problem}" if problem else "on"

    def broadcast_limit(self, network: Network) -> str:
        """What an endpoint may send to everybody, in words."""
        limit = broadcast_limit(network) if self.are_for(network) and not self._uplinks.problem else 0
        return f"{limit} packets/s" if limit else "none"

    # -- looking whether all is right ----------------------------------------------------------------------------

    def problems(self, joins: Sequence[Join]) -> Iterator[Problem]:
        """What they do not know of these endpoints."""
        by_parent: dict[str, list[Join]] = {}
        for join in joins:
            if self.are_for(join.network):
                by_parent.setdefault(self._parents.ifname(join.network), []).append(join)
        for parent, on_it in by_parent.items():
            ids = {mac_bytes(join.endpoint.mac): join.endpoint.id for join in on_it}
            stations = [station_of(join.network, join.endpoint) for join in on_it]
            for mac, each in self._uplinks.differences(parent, stations):
                yield Problem(each.code, parent, f"{mac.hex(':')}: {each.what}", ids[mac])

    def extra(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[abi.StationKey]:
        """What they know of besides these endpoints."""
        return self._uplinks.extra(self._stations(networks, endpoints))

    def mend(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Has them run, and know of nobody else; raises OSError."""
        switches = self._switches(networks)
        with self._lock:
            stations = self._stations(networks, endpoints)
            self._uplinks.drop(self._uplinks.extra(stations))
            for parent, has_access in _host_access(stations).items():
                if devices.ifindex(parent) is not None:
                    self._uplinks.attach(parent, has_access, switches[parent])

    def attachments(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Expected]:
        """What is to run at the parents' hooks."""
        switches = self._switches(networks)
        return [
            each
            for parent in self._stations(networks, endpoints)
            for each in self._uplinks.attachments(parent, switches[parent])
        ]

    def _stations(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> dict[str, list[Station]]:
        """By parent."""
        by_id = {network.id: network for network in networks}
        found: dict[str, list[Station]] = {}
        for endpoint in endpoints:
            network = by_id.get(endpoint.network_id)
            if network is not None and self.are_for(network):
                found.setdefault(self._parents.ifname(network), []).append(station_of(network, endpoint))
        return found

    def _switches(self, networks: Sequence[Network]) -> dict[str, Switching | None]:
        """By parent."""
        return {self._parents.ifname(network): switching(network) for network in networks}


def _host_access(stations_by_parent: dict[str, list[Station]]) -> dict[str, bool]:
    """Whether any on the parent may reach the host."""
    return {parent: any(station.host_access for station in stations) for parent, stations in stations_by_parent.items()}
