"""The contract between the controller and a network driver.

A driver describes changes as steps and never applies them itself. The controller stores its records first, then
executes; the same steps, reverted, tear down. Steps run in a worker thread and may block; they run concurrently for
different endpoints, also of one network, and can be applied or reverted any number of times. A driver keeps no state
that the records and the kernel do not hold.

Adding a driver: one file here, one line in `control/drivers/__init__.py`, one entry in the contract suite's parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from control.drivers.walk import Walk
from control.errors import InvalidArgument, NotImplementedByDriver
from control.model import Endpoint, EndpointSpec, Network, NetworkSpec, Sandbox
from control.plan import Step
from datapath.attached import Expected
from datapath.link_monitor import LinkChange


@dataclass(frozen=True)
class Join:
    """All that a driver gets to know of one endpoint.

    `netns_path` names the sandbox's namespace; `default_v4` and `default_v6` say whether this endpoint's gateway is
    to be the sandbox's default route of that family. Without a sandbox the endpoint is a container engine's: the
    driver leaves the device, with its MAC and down, in its own namespace under the endpoint's `ifname`, and the engine
    moves it to where it belongs and sets it up there. With a namespace but no sandbox the engine has done so before,
    and the device is `lost`: the driver makes it there, and does the engine's part as well.
    """

    network: Network
    endpoint: Endpoint
    sandbox: Sandbox | None
    netns_path: str | None
    default_v4: bool = True
    default_v6: bool = True

    @property
    def holder(self) -> str:
        """Who has the endpoint, for messages."""
        return self.sandbox.name if self.sandbox is not None else f"of endpoint {self.endpoint.id[:12]}"


@dataclass(frozen=True)
class Capabilities:
    """What the controller settles before it asks the driver for steps.

    `addresses`: endpoints get addresses from IPAM and the network has pools. `own_netns`: a sandbox on it has a network
    namespace of its own. `exclusive`: a sandbox on it can be on no other network. `singleton`: only the predefined
    network of this driver exists. `existing`: its networks are parts of networks that exist outside of this host, so
    that the host may well have a route to their subnets. `scope`: "global" networks are those of a cluster, known on
    all of its nodes.
    """

    addresses: bool = True
    own_netns: bool = True
    exclusive: bool = False
    singleton: bool = False
    existing: bool = False
    scope: str = "local"


@dataclass(frozen=True)
class ParentState:
    """How the device of the host is that a network is on.

    `ifname` is its name in the network's options; `state` is a few words, as in "up" or "renamed to eth9"; `is_up`:
    whether packets can pass.
    """

    ifname: str
    state: str
    is_up: bool


class EndpointCounters(msgspec.Struct, frozen=True, gc=False):
    """What one endpoint sent (out) and was delivered (in), by the path that carried it; drops by reason.

    Packets are wire packets, bytes include the Ethernet header.
    """

    out_fast_packets: int = 0
    out_fast_bytes: int = 0
    out_slow_packets: int = 0
    out_slow_bytes: int = 0
    in_fast_packets: int = 0
    in_fast_bytes: int = 0
    in_slow_packets: int = 0
    in_slow_bytes: int = 0
    drops: Mapping[str, int] = {}


@dataclass(frozen=True)
class Problem:
    """Something that the kernel holds other than steps leave it, or lacks.

    `code` tells the kind (see docs/doctor.md), `where` names the device or map, `what` says it in words. The steps of
    the network or endpoint with the id `subject` mend it; without one `Driver.mend_shared` does, unless `mend` says
    what only the operator can do.
    """

    code: str
    where: str
    what: str
    subject: str = ""
    mend: str = ""


class Driver:
    """One way to build networks; this base makes nothing in the kernel.

    Constructors store; only `start` and steps act.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities] = Capabilities()

    def start(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Prepares what the driver's networks share and removes its leftovers that no record explains.

        Called once, with this driver's records, after half-made objects were undone and before anything is applied.
        """

    def validate(self, spec: NetworkSpec, others: Sequence[Network]) -> None:
        """Raises InvalidArgument (unknown or malformed option, unusable combination) or Forbidden.

        Looks, but changes nothing.
        """
        for option in spec.options:
            raise InvalidArgument(f"unknown option {option!r}: the driver {self.name} has no options")

    def settle_spec(self, spec: NetworkSpec) -> NetworkSpec:
        """The specification of a global network with what this host settles for all nodes. Looks, but changes
        nothing."""
        return spec

    def wanted_vni(self, spec: NetworkSpec) -> int:
        """The VNI that a global network is to have, 0 for any. Pure."""
        return 0

    def validate_endpoint(self, network: Network, spec: EndpointSpec) -> None:
        """Raises InvalidArgument for an unknown or malformed option of an endpoint, or a MAC that cannot be; Conflict
        for one that is taken. Looks, but changes nothing."""
        for option in spec.driver_options:
            raise InvalidArgument(
                f"unknown option {option!r} for an endpoint: the driver {self.name} has no endpoint options"
            )

    def shares_link(self, network: Network, other: Network) -> bool:
        """Whether endpoints of both networks are on one link, where no MAC may be there twice. Pure."""
        return network.id == other.id

    def dhcp_link(self, network: Network | NetworkSpec) -> str:
        """The name of the host's device by which the network's DHCP servers are reached; raises InvalidArgument for
        networks that have none. Looks, but changes nothing."""
        raise InvalidArgument(
            f"no DHCP server can be reached from a network of driver {self.name}: the IPAM driver dhcp is for macvlan"
        )

    def network_steps(self, network: Network) -> Sequence[Step]:
        """What makes the network exist on this host."""
        return ()

    def settle_endpoint(self, network: Network, endpoint: Endpoint, siblings: Sequence[Endpoint]) -> Endpoint:
        """The endpoint with the driver's own fields (host_ifname, shard) filled in; raises Exhausted. Quick, changes
        nothing: called with the controller's lock held; `siblings` are the network's other endpoints."""
        return endpoint

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        """What brings the endpoint into its sandbox; network_steps were applied before."""
        return ()

    def moved_in(self, network: Network, endpoint: Endpoint) -> None:
        """Called when a container engine has moved an endpoint's device to its sandbox, perhaps more than once, perhaps
        too early. Never raises: the endpoint works without it."""

    def publish_steps(self, network: Network, endpoint: Endpoint) -> Sequence[Step]:
        """What makes the endpoint's `ports` reachable at the host's."""
        raise NotImplementedByDriver(f"the driver {self.name} publishes no ports: leave them out")

    def restore_firewall(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Puts back what others may have taken out of the host's firewall. May be repeated."""

    def remains(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint's device is where it belongs, in whatever condition.

        That is its sandbox, or until a container engine first moves it there, this namespace.
        """
        return True

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> set[str]:
        """The ids of those networks and endpoints that the kernel holds whole; the rest are applied again."""
        return {network.id for network in networks} | {endpoint.id for endpoint in endpoints}

    def peers_changed(self, network: Network, *, anew: bool = False) -> None:
        """Brings what this host knows of a global network's endpoints on other nodes in line with the cluster; harmless
        for a network that has no endpoint here. `anew` also mends what others did to it. Raises OSError."""

    def takes_direct(self, network: Network) -> bool:
        """Whether endpoints of a global network take packets of other nodes as they are, without encapsulation."""
        return False

    def differences(self, network: Network) -> list[str]:
        """In words, what this host has of a global network's peers other than the cluster wants; raises OSError."""
        return []

    def examine(self, networks: Sequence[Network], joins: Sequence[Join]) -> list[Problem]:
        """What is not in the kernel as it is to be, of these networks and endpoints, which are all there.

        Looks, but changes nothing. Raises OSError.
        """
        return []

    def examine_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Problem]:
        """As `examine`, of what networks share: maps, firewall, pins. These are all of the host, whatever their
        driver."""
        return []

    def mend_shared(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Puts right what `examine_shared` finds and no endpoint's steps do, and deletes what nobody has a record of.

        Called with the records locked: these are all that there are or are coming. Raises OSError.
        """

    def attachments(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> list[Expected]:
        """The programs that run on the host's devices when all is well. Raises OSError."""
        return []

    def devices(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> Mapping[str, str]:
        """The devices in linkspand's namespace that these are made of, by name, with the id of who has it."""
        return {}

    def parent(self, network: Network) -> ParentState | None:
        """The device of the host that the network is on; None for networks that are on none."""
        return None

    def concerned(
        self, networks: Sequence[Network], changes: Collection[LinkChange] | None, failed: Collection[str]
    ) -> list[Network]:
        """Those networks of which something may have to be applied again, now that it can, after these changes of the
        host's devices; None stands for any change.

        `failed` are the ids of networks that were not made whole the last time. Takes note of what it finds, so that
        the same is not told twice. Raises OSError.
        """
        return []

    def lost(self, endpoint: Endpoint) -> bool:
        """Whether a container engine's sandbox is there, and the endpoint's device, which it had, is not: it has gone
        with the device of the host below it."""
        return False

    def info(self, network: Network) -> dict[str, str]:
        """What `inspect` shows under Status: device names, the path packets take, fallbacks and why."""
        return {}

    def trace(self, walk: Walk) -> None:
        """Follows a frame from the endpoint's device to where it ends, and tells in the walk what happens to it. Sends
        nothing and changes nothing; may block for a second. Raises OSError and LoaderError."""
        raise NotImplementedByDriver(f"the driver {self.name} traces no packets")

    def trace_arrival(self, walk: Walk, mac: bytes | None) -> None:
        """As `trace`, a packet for the endpoint that comes from outside of this host, sent by `mac` or whoever has the
        address `walk.origin`. Raises NotFound where nobody is known who could send it."""
        raise NotImplementedByDriver(f"the driver {self.name} traces no packets from outside: begin at a sandbox")

    def counters(self, endpoints: Sequence[Endpoint]) -> dict[str, EndpointCounters]:
        """Counters by endpoint id; endpoints whose packets the driver does not see are left out."""
        return {}

    def last_counters(self, endpoint: Endpoint) -> EndpointCounters | None:
        """The counters of an endpoint that go with its device, which is about to go; None for those that stay in its
        slot."""
        return None

    def status(self) -> DriverStatus:
        """How the driver works on this host."""
        return DriverStatus()


@dataclass(frozen=True)
class DriverStatus:
    """`facts` in words for `doctor`; `fallbacks` maps a feature that is missing to why, and is empty when all
    is well."""

    facts: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
