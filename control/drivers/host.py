"""The driver `host`: the sandbox uses the host's own network stack."""

from __future__ import annotations

from control.drivers.base import Capabilities, Driver


class HostDriver(Driver):
    """No isolation: interfaces, addresses and ports are the host's."""

    name = "host"
    capabilities = Capabilities(addresses=False, own_netns=False, exclusive=True, singleton=True)
