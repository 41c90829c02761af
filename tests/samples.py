"""Networks as the Engine API describes them."""

from __future__ import annotations

from typing import Any

NET1: dict[str, Any] = {
    "Name": "net1",
    "Id": "a" * 64,
    "Created": "2024-01-02T03:04:05.123456789Z",
    "Scope": "local",
    "Driver": "bridge",
    "EnableIPv4": True,
    "EnableIPv6": False,
    "IPAM": {
        "Driver": "default",
        "Options": {},
        "Config": [
            {"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"},
            {"Subnet": "fd00::/64", "IPRange": "fd00::/80", "AuxiliaryAddresses": {"a": "fd00::5"}},
        ],
    },
    "Internal": False,
    "Attachable": False,
    "Ingress": False,
    "ConfigFrom": {"Network": ""},
    "ConfigOnly": False,
    "Containers": {
        "c" * 64: {
            "Name": "web",
            "EndpointID": "e" * 64,
            "MacAddress": "02:42:ac:11:00:02",
            "IPv4Address": "172.17.0.2/16",
            "IPv6Address": "",
        },
        "d" * 64: {
            "Name": 'db <&> \u2028 "q"',
            "EndpointID": "f" * 64,
            "MacAddress": "02:42:ac:11:00:03",
            "IPv4Address": "172.17.0.3/16",
            "IPv6Address": "fd00::3/64",
        },
    },
    "Options": {"com.docker.network.bridge.name": "docker0", "b": "<x>"},
    "Labels": {"one": "1"},
}
B10 = {**NET1, "Name": "b10", "Id": "b" * 64, "Labels": None, "Options": None, "Containers": None, "EnableIPv6": True}
B9 = {**NET1, "Name": "b9", "Id": "d" * 64, "Driver": "host", "Created": "2024-05-02T03:04:05+02:00", "Internal": True}
WIDE = {**NET1, "Name": "日本-a-rather-long-name", "Id": "9" * 64, "Driver": "macvlan"}
SWARM = {**NET1, "Name": "ingress", "Ingress": True}
