"""Docker's remote network driver.

Source: moby, libnetwork/docs/remote.md. A handler never calls the engine back, and answers fields only that the engine
left empty.
"""

from __future__ import annotations

from typing import Any, Final

from control import addressing
from control.controller import NetworkController
from control.errors import NotImplementedByDriver
from control.model import EndpointId, NetworkId
from control.plugin import schema
from control.plugin.schema import EndpointMessage, NetworkMessage, Nothing
from control.plugin.server import Route

_IFACE_PREFIX: Final = "com.docker.network.container_iface_prefix"


class NetworkDriver:
    """Networks, endpoints and published ports at the engine's word."""

    def __init__(self, controller: NetworkController) -> None:
        self._remote = controller.remote
        self._restore_firewall = controller.restore_firewall
        self._drivers = controller.driver_names()

    def routes(self) -> list[Route[Any]]:
        return [
            Route("Plugin.Activate", Nothing, self.activate),
            Route("NetworkDriver.GetCapabilities", Nothing, self.capabilities),
            Route("NetworkDriver.CreateNetwork", NetworkMessage, self.create_network),
            Route("NetworkDriver.DeleteNetwork", NetworkMessage, self.delete_network),
            Route("NetworkDriver.CreateEndpoint", EndpointMessage, self.create_endpoint),
            Route("NetworkDriver.EndpointOperInfo", EndpointMessage, self.endpoint_info),
            Route("NetworkDriver.DeleteEndpoint", EndpointMessage, self.delete_endpoint),
            Route("NetworkDriver.Join", EndpointMessage, self.join),
            Route("NetworkDriver.Leave", EndpointMessage, self.leave),
            Route("NetworkDriver.ProgramExternalConnectivity", EndpointMessage, self.publish),
            Route("NetworkDriver.RevokeExternalConnectivity", EndpointMessage, self.unpublish),
            Route("NetworkDriver.DiscoverNew", Nothing, self.ignore),
            Route("NetworkDriver.DiscoverDelete", Nothing, self.ignore),
        ]

    def activate(self, _: Nothing) -> dict[str, Any]:
        """The engine's first call, and the first after each of its starts, which may change the firewall."""
        self._restore_firewall()
        return {"Implements": ["NetworkDriver", "IpamDriver"]}

    def capabilities(self, _: Nothing) -> dict[str, Any]:
        """Local: a network is known to this engine alone, and is made without a swarm's manager."""
        return {"Scope": "local", "ConnectivityScope": "local"}

    def ignore(self, _: Nothing) -> dict[str, Any]:
        """Nodes of a swarm that come and go are nothing to a local network."""
        return {}

    def create_network(self, message: NetworkMessage) -> dict[str, Any]:
        network_id = _network_id(message)
        spec = schema.network_spec(message)
        if spec.driver not in self._drivers:
            raise NotImplementedByDriver(
                f"{schema.DRIVER}={spec.driver} is not available: drivers here are {', '.join(sorted(self._drivers))}"
            )
        self._remote.create_network(network_id, spec)
        return {}

    def delete_network(self, message: NetworkMessage) -> dict[str, Any]:
        self._remote.delete_network(_network_id(message))
        return {}

    def create_endpoint(self, message: EndpointMessage) -> dict[str, Any]:
        interface = message.interface or schema.EndpointInterface()
        endpoint = self._remote.create_endpoint(
            *_ids(message),
            ipv4=schema.interface_v4(interface.address),
            ipv6=schema.interface_v6(interface.address_ipv6),
            mac=interface.mac_address or None,
            options=schema.endpoint_options(message),
        )
        return {} if interface.mac_address else {"Interface": {"MacAddress": endpoint.mac}}

    def endpoint_info(self, message: EndpointMessage) -> dict[str, Any]:
        endpoint = self._remote.endpoint(*_ids(message))
        return {
            "Value": {
                "linkspan.device": endpoint.host_ifname,
                "linkspan.ports": [str(port) for port in endpoint.ports],
            }
        }

    def delete_endpoint(self, message: EndpointMessage) -> dict[str, Any]:
        self._remote.delete_endpoint(*_ids(message))
        return {}

    def join(self, message: EndpointMessage) -> dict[str, Any]:
        """Without a gateway and with the gateway service left on, the engine would add an interface of its own."""
        ids = _ids(message)
        if not message.sandbox_key:
            raise schema.MalformedMessage("malformed request: SandboxKey is missing")
        network, endpoint = self._remote.join(*ids, message.sandbox_key)
        prefix = network.options.get(_IFACE_PREFIX, "eth")
        answer: dict[str, Any] = {"InterfaceName": {"SrcName": endpoint.ifname, "DstPrefix": prefix}}
        if not network.internal:
            for field, address in (("Gateway", endpoint.ipv4), ("GatewayIPv6", endpoint.ipv6)):
                gateway = addressing.gateway_for(network, address)
                if gateway is not None:
                    answer[field] = str(gateway)
        answer["DisableGatewayService"] = "Gateway" not in answer and "GatewayIPv6" not in answer
        return answer

    def leave(self, message: EndpointMessage) -> dict[str, Any]:
        self._remote.leave(*_ids(message))
        return {}

    def publish(self, message: EndpointMessage) -> dict[str, Any]:
        self._remote.publish(*_ids(message), schema.port_wishes(message))
        return {}

    def unpublish(self, message: EndpointMessage) -> dict[str, Any]:
        self._remote.unpublish(*_ids(message))
        return {}


def _network_id(message: NetworkMessage | EndpointMessage) -> NetworkId:
    return NetworkId(schema.checked_id("NetworkID", message.network_id))


def _ids(message: EndpointMessage) -> tuple[NetworkId, EndpointId]:
    return _network_id(message), EndpointId(schema.checked_id("EndpointID", message.endpoint_id))
