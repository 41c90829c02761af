"""Passwords as they are kept: scrypt hashes in a file of users, one a line, NAME:$scrypt$ln=…,r=…,p=…$SALT$HASH.

Salt and hash are base64 without padding, as in the PHC string format. Source: RFC 7914; OWASP, Password Storage (the
cost, of the sets there that with the least memory).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LN, _R, _P = 13, 8, 10
_SALT_BYTES, _HASH_BYTES = 16, 32
_MOST_BYTES: Final = 64 << 20
"""Memory that checking one password may take: 128 bytes * r * 2**ln."""
_NAME: Final = re.compile(r"[^:\s\x00-\x1f\x7f]+")
_HASH: Final = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")


class UnusableUsers(Exception):
    """A file of users cannot be used; the text names it, the line, and what to do."""


def hash_password(password: str) -> str:
    """Takes a quarter of a second, as does each check."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"$scrypt$ln={_LN},r={_R},p={_P}${_encode(salt)}${_encode(_scrypt(password, salt, _LN, _R, _P))}"


def matches(password: str, hashed: str) -> bool:
    """Whether the password is the one that was hashed; raises ValueError for what `hash_password` does not return."""
    ln, r, p, salt, digest = _parse(hashed)
    return hmac.compare_digest(_scrypt(password, salt, ln, r, p, len(digest)), digest)


def check_name(name: str) -> None:
    """Raises ValueError for what cannot be a user's name; a colon ends it in HTTP (RFC 7617)."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a user's name: it takes characters without spaces and colons")


def read_users(path: str) -> dict[str, str]:
    """Hashes by user, of a file that may hold empty lines and such that begin with #; raises UnusableUsers."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableUsers(f"the users in {path} cannot be read: {error}") from error
    users: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        name, _, hashed = line.partition(":")
        try:
            check_name(name)
            _parse(hashed)
        except ValueError as error:
            raise UnusableUsers(
                f"{path}, line {number}: {error}; `linkspan metrics password NAME` prints such a line"
            ) from error
        if name in users:
            raise UnusableUsers(f"{path}, line {number}: user {name} is there twice: remove one of the lines")
        users[name] = hashed
    if not users:
        raise UnusableUsers(f"there is no user in {path}: `linkspan metrics password NAME` prints a line for it")
    return users


def is_user(users: Mapping[str, str], name: str, password: str) -> bool:
    """Takes as long for a name that is nobody's."""
    hashed = users.get(name)
    found = matches(password, hashed if hashed is not None else next(iter(users.values())))
    return found and hashed is not None


def _parse(hashed: str) -> tuple[int, int, int, bytes, bytes]:
    found = _HASH.fullmatch(hashed)
    if found is None:
        raise ValueError("there is no scrypt hash after the name")
    ln, r, p = (int(number) for number in found.groups()[:3])
    if not (ln >= 1 and r >= 1 and p >= 1 and 128 * r << ln < _MOST_BYTES):
        raise ValueError(f"the hash's cost cannot be: ln={ln}, r={r}, p={p}")
    return ln, r, p, _decode(found[4]), _decode(found[5])


def _scrypt(password: str, salt: bytes, ln: int, r: int, p: int, length: int = _HASH_BYTES) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << ln, r=r, p=p, maxmem=2 * _MOST_BYTES, dklen=length)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("the hash is cut off") from error
