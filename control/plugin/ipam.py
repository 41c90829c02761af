"""Docker's remote IPAM driver.

Source: moby, libnetwork/docs/ipam.md.
"""

from __future__ import annotations

from typing import Any, Final

from control.controller import NetworkController
from control.errors import InvalidArgument
from control.plugin import schema
from control.plugin.schema import Nothing, PoolMessage, PoolRequest
from control.plugin.server import Route
from control.remote_ipam import SPACE

_GLOBAL_SPACE: Final = f"{SPACE}-global"


class IpamDriver:
    """Pools and addresses at the engine's word."""

    def __init__(self, controller: NetworkController) -> None:
        self._ipam = controller.remote_ipam

    def routes(self) -> list[Route[Any]]:
        return [
            Route("IpamDriver.GetCapabilities", Nothing, self.capabilities),
            Route("IpamDriver.GetDefaultAddressSpaces", Nothing, self.address_spaces),
            Route("IpamDriver.RequestPool", PoolRequest, self.request_pool),
            Route("IpamDriver.ReleasePool", PoolMessage, self.release_pool),
            Route("IpamDriver.RequestAddress", PoolMessage, self.request_address),
            Route("IpamDriver.ReleaseAddress", PoolMessage, self.release_address),
        ]

    def capabilities(self, _: Nothing) -> dict[str, Any]:
        """MAC addresses tell a repeated request from a new one; leases are stored, so nothing needs a replay."""
        return {"RequiresMACAddress": True, "RequiresRequestReplay": False}

    def address_spaces(self, _: Nothing) -> dict[str, Any]:
        return {"LocalDefaultAddressSpace": SPACE, "GlobalDefaultAddressSpace": _GLOBAL_SPACE}

    def request_pool(self, message: PoolRequest) -> dict[str, Any]:
        if message.address_space != SPACE:
            raise InvalidArgument(f"invalid address space {message.address_space!r}: networks of linkspan are local")
        for option in message.options or ():
            raise InvalidArgument(f"unknown option {option!r}: the IPAM driver linkspan has no options")
        subnet, ip_range = schema.subnet(message.pool, "pool"), schema.subnet(message.sub_pool, "sub-pool")
        if subnet is None and ip_range is not None:
            raise InvalidArgument(f"invalid address subpool: {ip_range} needs its subnet; add --subnet")
        if subnet is not None and (subnet.version == 6) != message.v6:
            raise InvalidArgument(f"invalid address pool: {subnet} is not an IPv{6 if message.v6 else 4} subnet")
        pool = self._ipam.request_pool(subnet, ip_range, v6=message.v6)
        return {"PoolID": pool.id, "Pool": str(pool.subnet), "Data": {}}

    def release_pool(self, message: PoolMessage) -> dict[str, Any]:
        self._ipam.release_pool(message.pool_id)
        return {}

    def request_address(self, message: PoolMessage) -> dict[str, Any]:
        options = message.options or {}
        given = self._ipam.request_address(
            message.pool_id,
            schema.address(message.address, "address"),
            gateway=options.get(schema.REQUEST_TYPE) == schema.GATEWAY,
            mac=options.get(schema.ENDPOINT_MAC, ""),
        )
        return {"Address": str(given), "Data": {}}

    def release_address(self, message: PoolMessage) -> dict[str, Any]:
        address = schema.address(message.address, "address")
        if address is None:
            raise schema.MalformedMessage("malformed request: Address is missing")
        self._ipam.release_address(message.pool_id, address)
        return {}
