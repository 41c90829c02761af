"""Speaks HTTP with linkspand over its unix socket.

`http.client` costs a third of the program's start, so it is imported when the first request is made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from control.cli.errors import ApiError, CliError

if TYPE_CHECKING:
    from http.client import HTTPResponse

DEFAULT_HOST: Final = "unix:///run/linkspan/linkspan.sock"
_CONNECT_TIMEOUT_S: Final = 5.0
# The daemon bounds its own steps; this only keeps a command from hanging for ever on one that does not.
_ANSWER_TIMEOUT_S: Final = 120.0


def segment(text: str) -> str:
    """Makes one path segment of a name that a user gave; nothing in it can lead to another resource."""
    return quote(text, safe="")


class Client:
    """A connection to the daemon at `host` ("unix:///path"), made anew for each request.

    All methods raise CliError: ApiError for what the daemon refused, else one that says why it cannot be reached.
    """

    def __init__(self, host: str = DEFAULT_HOST, timeout: float = _ANSWER_TIMEOUT_S) -> None:
        self.host = host
        self.timeout = timeout

    def get(self, path: str, **query: str) -> Any:
        return self._json(self.request("GET", path, query))

    def get_raw(self, path: str, **query: str) -> bytes:
        """The answer's body as the daemon wrote it, spaces and order of keys included."""
        return self.request("GET", path, query)

    def post(self, path: str, body: Any = None, **query: str) -> Any:
        return self._json(self.request("POST", path, query, body))

    def delete(self, path: str, **query: str) -> None:
        self.request("DELETE", path, query)

    def request(self, method: str, path: str, query: dict[str, str] | None = None, body: Any = None) -> bytes:
        from http.client import HTTPException

        target = path + (f"?{urlencode(query)}" if query else "")
        try:
            response, answer = self._exchange(method, target, None if body is None else json.dumps(body).encode())
        except PermissionError as error:
            raise CliError(
                f"permission denied while trying to connect to linkspand at {self.host}: "
                "only root and members of the group linkspan may use it"
            ) from error
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise CliError(
                f"Cannot connect to linkspand at {self.host}. Is linkspand running? (systemctl status linkspand)"
            ) from error
        except TimeoutError as error:
            raise CliError(f"linkspand at {self.host} did not answer {method} {path} in {self.timeout:g} s") from error
        except (OSError, HTTPException) as error:
            raise CliError(f"error during {method} {path} at {self.host}: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise ApiError(response.status, self._message(response, answer))
        return answer

    def _exchange(self, method: str, target: str, body: bytes | None) -> tuple[HTTPResponse, bytes]:
        import socket
        from http.client import HTTPConnection

        connection = HTTPConnection("linkspan")
        headers = {"Host": "linkspan", "User-Agent": "linkspan", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(min(_CONNECT_TIMEOUT_S, self.timeout))
            peer.connect(self.socket_path)
            peer.settimeout(self.timeout)
            connection.sock = peer
            connection.request(method, target, body, headers)
            with connection.getresponse() as response:
                return response, response.read()

    @property
    def socket_path(self) -> str:
        """The path of the socket; raises CliError for a host that names none."""
        scheme, separator, path = self.host.partition("://")
        if scheme != "unix" or not separator or not path:
            raise CliError(f'invalid host "{self.host}": linkspand is reached by unix:///path/to/its.sock only')
        return path

    def _json(self, answer: bytes) -> Any:
        if not answer:
            return None
        try:
            return json.loads(answer)
        except ValueError as error:
            raise CliError(f"linkspand at {self.host} sent an answer that is not JSON: {error}") from error

    @staticmethod
    def _message(response: HTTPResponse, answer: bytes) -> str:
        try:
            message = json.loads(answer)["message"]
        except (ValueError, KeyError, TypeError):
            text = answer.decode(errors="replace").strip()
            return f"{response.status} {response.reason}" + (f": {text}" if text else "")
        return str(message)
