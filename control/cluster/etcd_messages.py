"""The part of etcd's API that Linkspan speaks: messages, methods, and the clauses of a transaction.

Message classes are built when this is imported, from the table below, so nothing is generated and nothing is vendored.
A `oneof` is a plain field here: on the wire it is the same. Source: etcd API reference v3.4 (names and numbers), the
gRPC protocol over HTTP/2.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from control.protos import message_classes

_PACKAGE: Final = "linkspan.etcd"

_TABLE: Final[dict[str, str]] = {
    "Header": "revision:int64:3",
    "KeyValue": "key:bytes:1 create_revision:int64:2 mod_revision:int64:3 version:int64:4 value:bytes:5 lease:int64:6",
    "RangeRequest": "key:bytes:1 range_end:bytes:2 limit:int64:3 revision:int64:4 keys_only:bool:8",
    "RangeResponse": "header:Header:1 kvs:KeyValue*:2 more:bool:3 count:int64:4",
    "PutRequest": "key:bytes:1 value:bytes:2 lease:int64:3",
    "DeleteRequest": "key:bytes:1 range_end:bytes:2",
    "RequestOp": "range:RangeRequest:1 put:PutRequest:2 delete:DeleteRequest:3",
    "ResponseOp": "range:RangeResponse:1",
    "Compare": "result:int32:1 target:int32:2 key:bytes:3 version:int64:4 create_revision:int64:5 mod_revision:int64:6"
    " value:bytes:7 range_end:bytes:64",
    "TxnRequest": "compare:Compare*:1 success:RequestOp*:2 failure:RequestOp*:3",
    "TxnResponse": "header:Header:1 succeeded:bool:2 responses:ResponseOp*:3",
    "GrantRequest": "ttl:int64:1 id:int64:2",
    "GrantResponse": "header:Header:1 id:int64:2 ttl:int64:3",
    "RevokeRequest": "id:int64:1",
    "RevokeResponse": "header:Header:1",
    "KeepAliveRequest": "id:int64:1",
    "KeepAliveResponse": "header:Header:1 id:int64:2 ttl:int64:3",
    "Event": "type:int32:1 kv:KeyValue:2",
    "WatchCreate": "key:bytes:1 range_end:bytes:2 start_revision:int64:3",
    "Progress": "",
    "WatchRequest": "create:WatchCreate:1 progress:Progress:3",
    "WatchResponse": "header:Header:1 created:bool:3 canceled:bool:4 compact_revision:int64:5 cancel_reason:string:6"
    " events:Event*:11",
}

_CLASSES: Final = message_classes("linkspan/etcd.proto", _PACKAGE, "proto3", _TABLE)
RangeRequest: Final[Any] = _CLASSES["RangeRequest"]
TxnRequest: Final[Any] = _CLASSES["TxnRequest"]
GrantRequest: Final[Any] = _CLASSES["GrantRequest"]
RevokeRequest: Final[Any] = _CLASSES["RevokeRequest"]
KeepAliveRequest: Final[Any] = _CLASSES["KeepAliveRequest"]
WatchRequest: Final[Any] = _CLASSES["WatchRequest"]


class Method(NamedTuple):
    """One method of etcd's gRPC services."""

    path: str
    request: Any
    response: Any

    @property
    def name(self) -> str:
        """What the call does, as in "range"."""
        return self.path.rpartition("/")[2].lower()


def _method(path: str, request: str, response: str) -> Method:
    return Method(f"/etcdserverpb.{path}", _CLASSES[request], _CLASSES[response])


RANGE: Final = _method("KV/Range", "RangeRequest", "RangeResponse")
TXN: Final = _method("KV/Txn", "TxnRequest", "TxnResponse")
GRANT: Final = _method("Lease/LeaseGrant", "GrantRequest", "GrantResponse")
REVOKE: Final = _method("Lease/LeaseRevoke", "RevokeRequest", "RevokeResponse")
KEEP_ALIVE: Final = _method("Lease/LeaseKeepAlive", "KeepAliveRequest", "KeepAliveResponse")
WATCH: Final = _method("Watch/Watch", "WatchRequest", "WatchResponse")

MAX_OPS: Final = 128
"""So many clauses a transaction may have in each of its three lists, unless etcd was told otherwise (--max-txn-ops)."""
DELETED: Final = 1
"""`Event.type` of a key that is gone; its `kv` has the key alone."""


class KeyValue(Protocol):
    """A key as etcd has it; revisions count all changes of the store, `version` those of this key."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class Event(Protocol):
    """A change of one key."""

    type: int
    kv: KeyValue


def after(prefix: str) -> str:
    """The end of the range of all keys that begin with `prefix`, whose last character is not the last of ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


# -- what a transaction compares -------------------------------------------------------------------------------------

_EQUAL, _GREATER = 0, 1
_VERSION, _CREATE, _MOD, _VALUE = 0, 1, 2, 3
_Compare: Final[Any] = _CLASSES["Compare"]


def is_absent(key: str) -> Any:
    return _Compare(result=_EQUAL, target=_CREATE, key=key.encode(), create_revision=0)


def are_absent(prefix: str) -> Any:
    """Whether no key begins with `prefix`: etcd compares a range without keys as one key that is not there."""
    return _Compare(
        result=_EQUAL, target=_CREATE, key=prefix.encode(), range_end=after(prefix).encode(), create_revision=0
    )


def is_present(key: str) -> Any:
    return _Compare(result=_GREATER, target=_VERSION, key=key.encode(), version=0)


def is_unchanged(key: str, mod_revision: int) -> Any:
    """Whether the key was last changed at `mod_revision`; 0 is that of a key that is not there."""
    return _Compare(result=_EQUAL, target=_MOD, key=key.encode(), mod_revision=mod_revision)


def has_value(key: str, value: bytes) -> Any:
    """Does not hold for a key that is not there."""
    return _Compare(result=_EQUAL, target=_VALUE, key=key.encode(), value=value)


# -- what a transaction does -----------------------------------------------------------------------------------------

_Op: Final[Any] = _CLASSES["RequestOp"]


def get(key: str) -> Any:
    return _Op(range=RangeRequest(key=key.encode()))


def get_some(prefix: str, limit: int) -> Any:
    return _Op(range=RangeRequest(key=prefix.encode(), range_end=after(prefix).encode(), limit=limit))


def put(key: str, value: bytes, lease: int = 0) -> Any:
    return _Op(put=_CLASSES["PutRequest"](key=key.encode(), value=value, lease=lease))


def delete(key: str) -> Any:
    return _Op(delete=_CLASSES["DeleteRequest"](key=key.encode()))
