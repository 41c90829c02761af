"""Errors of the control plane, by kind; every kind has one HTTP status and one exit status.

    ControlError
     |- InvalidArgument        400  a request that can never work: the text says what to change
     |- NotFound               404  no such network, sandbox, endpoint or driver
     |- Forbidden              403  understood, but not allowed in the present state or ever
     |- Conflict               409  the name or the object is taken
     |   `- AddressInUse            somebody outside of Linkspan has the address
     |- Exhausted              503  a pool, a table or a disk is full
     |- StoreError             500  the store could not be read or written
     |- DeadlineExceeded       504  a step did not end in time
     |- NotImplementedByDriver 501  the driver cannot do this
     `- DatapathFailed         500  the kernel refused a step; the cause says which

Messages name the object and say what to do. Where scripts depend on Docker's wording, it is Docker's.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address


class ControlError(Exception):
    """The root of all errors that a user can cause or must see."""

    http_status = 500
    exit_status = 1


class InvalidArgument(ControlError):
    """The request can never work as it stands."""

    http_status = 400


class NotFound(ControlError):
    """The named object does not exist."""

    http_status = 404


class Forbidden(ControlError):
    """The request is understood and refused in the object's present state."""

    http_status = 403


class Conflict(ControlError):
    """The name or object is taken."""

    http_status = 409


class AddressInUse(Conflict):
    """Somebody that IPAM does not know of has the address that an endpoint was to get."""

    def __init__(self, message: str, address: IPv4Address | IPv6Address) -> None:
        super().__init__(message)
        self.address = address


class Exhausted(ControlError):
    """A pool, table or disk is full."""

    http_status = 503


class StoreError(ControlError):
    """The store could not be read or written; nothing was changed."""


class DeadlineExceeded(ControlError):
    """A step did not end in time."""

    http_status = 504


class NotImplementedByDriver(ControlError):
    """The driver cannot do what was asked."""

    http_status = 501


class DatapathFailed(ControlError):
    """The kernel refused a step; everything done before it was undone."""
