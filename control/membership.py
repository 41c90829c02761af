"""This host's membership in a cluster: joined once, kept over restarts, followed for as long as it lasts.

What the user asked for is stored here, on this host. etcd may come and go: the node's records there end with its lease
when it is away for long, and are written again when it is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

import msgspec

from control.cluster.records import RemoteEndpoint
from control.cluster_spec import INGRESS, ClusterInfo, ClusterSpec, Difference, NodeInfo, not_joined
from control.deps import Deps
from control.errors import Conflict, ControlError, Forbidden, InvalidArgument, StoreError
from control.global_networks import GlobalNetworks
from control.model import Address, NetworkId, NetworkSpec, from_json, to_json, utcnow
from control.records import Records
from control.store.base import Delete, Put
from datapath import devices

if TYPE_CHECKING:
    from control.cluster.session import ClusterSession

LOG = logging.getLogger(__name__)

KIND: Final = "cluster"
_ID: Final = "membership"
_FIRST_READ_S: Final = 10.0
_LOOK_AGAIN_S: Final = 15.0
"""How often the ways to other nodes are looked up again: routes change without a word to anybody."""
_RETRY_S: Final = 2.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored: `identity` tells the cluster from another one of its name, and `incarnation` this node from
    another one of its."""

    spec: ClusterSpec
    identity: str
    incarnation: str
    since: datetime
