"""The Internet checksum."""

from __future__ import annotations

import struct


def internet_checksum(data: bytes) -> int:
    """RFC 1071, in host byte order; 0 for data that holds its own and is whole."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
