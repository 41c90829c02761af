"""The contract between the controller and a network driver.

A driver describes changes as steps and never applies them itself. The controller stores its records first, then
executes; the same steps, reverted, tear down. Steps run in a worker thread and may block; they run concurrently for
different endpoints, also of one network, and can be applied or reverted any number of times. A driver keeps no state that
the records and the kernel do not hold.

Adding a driver: one file here, one line in `control/drivers/__init__.py`, one entry in the contract suite's parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from control.model import Endpoint, Network, NetworkSpec, Sandbox
from control.plan import Step


@dataclass(frozen=True)
class Join:
    """All that a driver gets to know of one endpoint.

    `netns_path` names the sandbox's namespace; `default_v4` and `default_v6` say whether this endpoint's gateway is to be
    the sandbox's default route of that family.
    """

    network: Network
    endpoint: Endpoint
    sandbox: Sandbox
    netns_path: str
    default_v4: bool = True
    default_v6: bool = True


@dataclass(frozen=True)
class Capabilities:
    """What the controller settles before it asks the driver for steps.

    `addresses`: endpoints get addresses from IPAM and the network has pools. `own_netns`: a sandbox on it has a network
    namespace of its own. `exclusive`: a sandbox on it can be on no other network. `singleton`: only the predefined network
    of this driver exists.
    """

    addresses: bool = True
    own_netns: bool = True
    exclusive: bool = False
    singleton: bool = False


class Driver(Protocol):
    """One way to build networks. Constructors store; nothing is touched before a step is applied."""

    name: str
    capabilities: Capabilities

    def validate(self, spec: NetworkSpec, others: Sequence[Network]) -> None:
        """Raises InvalidArgument (unknown or malformed option, unusable combination) or Forbidden. Looks, but changes nothing."""

    def network_steps(self, network: Network) -> Sequence[Step]:
        """What makes the network exist on this host."""

    def endpoint_steps(self, join: Join) -> Sequence[Step]:
        """What brings the endpoint into its sandbox; network_steps were applied before."""

    def settle_endpoint(self, network: Network, endpoint: Endpoint, siblings: Sequence[Endpoint]) -> Endpoint:
        """The endpoint with the driver's own fields (host_ifname, shard) filled in; raises Exhausted. Pure."""

    def intact(self, networks: Sequence[Network], endpoints: Sequence[Endpoint]) -> tuple[set[str], set[str]]:
        """The ids of those networks and of those endpoints that the kernel holds whole; the rest are applied again."""

    def info(self, network: Network, endpoints: Sequence[Endpoint]) -> dict[str, str]:
        """What `inspect` shows under Status: device names, the path packets take, fallbacks and why."""
