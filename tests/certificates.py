"""Certificates for tests, made by openssl: an authority and what it signs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """Paths of PEM files; `cacert` is the authority that signed it."""

    cacert: Path
    cert: Path
    key: Path


class Authority:
    """Signs certificates for servers and clients; two authorities in different folders do not know each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.cacert, self._key = folder / "ca.pem", folder / "ca.key"
        self._openssl("req", "-x509", *_new_key(self._key), "-out", self.cacert, "-subj", f"/CN={folder.name}")

    def issue(self, name: str, addresses: Sequence[str] = ("127.0.0.1",), *, is_expired: bool = False) -> Certificate:
        """A certificate for both ends, good for these IP addresses for 30 days, or since yesterday no more."""
        cert, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        self._openssl("req", *_new_key(key), "-out", request, "-subj", f"/CN={name}")
        extensions = self.folder / f"{name}.cnf"
        alternatives = ",".join(f"IP:{address}" for address in addresses)
        extensions.write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            "x509", "-req", "-in", request, "-out", cert, "-CA", self.cacert, "-CAkey", self._key,
            "-CAcreateserial", "-extfile", extensions, "-days", "-1" if is_expired else "30",
        )  # fmt: skip
        return Certificate(self.cacert, cert, key)

    def _openssl(self, *args: str | Path) -> None:
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, cwd=self.folder)


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path
