"""The driver `none`: a sandbox with loopback alone."""

from __future__ import annotations

from control.drivers.base import Capabilities, Driver


class NoneDriver(Driver):
    """Full isolation: a network namespace of its own with nothing in it but `lo`. Docker calls the driver "null"."""

    name = "null"
    capabilities = Capabilities(addresses=False, exclusive=True, singleton=True)
