"""The offloads of devices, as `ethtool -k` shows them (SIOCETHTOOL, include/uapi/linux/ethtool.h)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from typing import Final

from datapath import netns

_SIOCETHTOOL: Final = 0x8946
_GTXCSUM, _GSG, _GTSO, _GGSO, _GFLAGS, _GGRO = 0x16, 0x18, 0x1E, 0x23, 0x25, 0x2B
_FLAG_LRO: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class Offloads:
    """Whether each is on; a driver that does not know one has it off."""

    tx_checksum: bool
    scatter_gather: bool
    tso: bool
    gso: bool
    gro: bool
    lro: bool


def read(ifname: str, netns_path: str | None = None) -> Offloads | None:
    """The offloads of a device in a namespace (None: the calling thread's), None of a device that is not there.

    Raises OSError.
    """
    with socket.socket(fileno=netns.open_socket(netns_path, socket.AF_INET, socket.SOCK_DGRAM)) as control:
        try:
            return Offloads(
                tx_checksum=bool(_ask(control, ifname, _GTXCSUM)),
                scatter_gather=bool(_ask(control, ifname, _GSG)),
                tso=bool(_ask(control, ifname, _GTSO)),
                gso=bool(_ask(control, ifname, _GGSO)),
                gro=bool(_ask(control, ifname, _GGRO)),
                lro=bool(_ask(control, ifname, _GFLAGS) & _FLAG_LRO),
            )
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise


def _ask(control: socket.socket, ifname: str, command: int) -> int:
    value = ctypes.create_string_buffer(struct.pack("=II", command, 0))
    request = struct.pack("16sP16x", ifname.encode(), ctypes.addressof(value))
    try:
        fcntl.ioctl(control, _SIOCETHTOOL, request)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return 0
    return int(struct.unpack_from("=I", value.raw, 4)[0])
