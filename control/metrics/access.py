"""Who may scrape: TLS, clients' certificates, users with passwords."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Final

from aiohttp import BasicAuth, hdrs, web

from control.config import ConfigError, MetricsSection, listen_address
from control.passwords import UnusableUsers, is_user, read_users

LOG = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CHALLENGE: Final = {hdrs.WWW_AUTHENTICATE: 'Basic realm="linkspan metrics", charset="UTF-8"'}


class Access:
    """What the configuration says, with its files read. `tls` is None for plain HTTP."""

    def __init__(self, section: MetricsSection) -> None:
        """Raises ConfigError, naming the key, for a file that cannot be used."""
        self.tls = _context(section) if section.tls_cert else None
        try:
            self._users = read_users(section.users) if section.users else {}
        except UnusableUsers as error:
            raise ConfigError(f"metrics.users: {error}") from error
        self._key = secrets.token_bytes(32)
        self._known: set[bytes] = set()
        self._checking = asyncio.Lock()

    def warn(self, section: MetricsSection) -> None:
        """Says once what others on the network can see."""
        address = listen_address(section.listen)
        if address is None or ipaddress.ip_address(address[0]).is_loopback:
            return
        if self.tls is None and not self._users:
            LOG.warning(
                "everybody who reaches %s can read the metrics: set metrics.users, or metrics.tls-cert with "
                "metrics.tls-client-ca, or listen on 127.0.0.1",
                section.listen,
            )
        elif self.tls is None:
            LOG.warning(
                "passwords for %s can be read on the way: set metrics.tls-cert and metrics.tls-key", section.listen
            )
        elif not self._users and not section.tls_client_ca:
            LOG.warning(
                "everybody who reaches %s can read the metrics: set metrics.users or metrics.tls-client-ca",
                section.listen,
            )

    def guard(self, handler: Handler) -> Handler:
        """The handler, for those alone who show that they are users, if there are any."""
        if not self._users:
            return handler

        async def guarded(request: web.Request) -> web.StreamResponse:
            if not await self._is_user(request.headers.get(hdrs.AUTHORIZATION, "")):
                return web.Response(status=401, headers=_CHALLENGE, text="a user's name and password are needed\n")
            return await handler(request)

        return guarded

    async def _is_user(self, credentials: str) -> bool:
        """Checks a password the first time that it comes, which is slow on purpose; then knows it by a digest that is
        of no use to anybody else. One at a time, so that who guesses takes no more than one core."""
        digest = hmac.digest(self._key, credentials.encode(errors="surrogateescape"), sha256)
        if digest in self._known:
            return True
        try:
            asked = BasicAuth.decode(credentials, encoding="utf-8")
        except ValueError:
            return False
        async with self._checking:
            if not await asyncio.to_thread(_check, self._users, asked):
                return False
        self._known.add(digest)
        return True


def _check(users: Mapping[str, str], asked: BasicAuth) -> bool:
    return is_user(users, asked.login, asked.password)


def _context(section: MetricsSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(section.tls_cert, section.tls_key, password="")
    except OSError as error:
        raise ConfigError(
            f"metrics.tls-cert: {section.tls_cert} and {section.tls_key} are no certificate with its key, in PEM form "
            f"and without a password: {error}"
        ) from error
    if section.tls_client_ca:
        try:
            context.load_verify_locations(section.tls_client_ca)
        except OSError as error:
            raise ConfigError(
                f"metrics.tls-client-ca: {section.tls_client_ca} holds no certificate in PEM form: {error}"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
