"""A node's private keys in a file that only root can read."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from control import decoding

LOG = logging.getLogger(__name__)

KEY_BYTES: Final = 32


class Key(msgspec.Struct, frozen=True):
    """A private key; `private` is in base64, `made_at` in seconds since 1970."""

    number: int
    private: str
    made_at: float

    def __repr__(self) -> str:
        return f"Key({self.number})"


def new_key(number: int, made_at: float) -> Key:
    """A random X25519 key, "clamped" as the kernel shows it again (RFC 7748, section 5)."""
    key = bytearray(os.urandom(KEY_BYTES))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return Key(number, base64.b64encode(key).decode(), made_at)


class KeyFile:
    """The file; nobody else uses it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[int, Key]:
        """The keys by number; none, with an error in the log, of a file that is damaged. Raises OSError."""
        try:
            stored = decoding.decode(self._path.read_bytes(), list[Key])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            LOG.error("%s is damaged, so this node makes a new key: %s", self._path, error)
            return {}
        return {key.number: key for key in stored}

    def write(self, keys: Mapping[int, Key]) -> None:
        """Has the file hold exactly these, all or none of them, when it returns. Raises OSError."""
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(list(keys.values())))
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)

    def remove(self) -> None:
        """May be repeated."""
        self._path.unlink(missing_ok=True)
