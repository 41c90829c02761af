"""What is no request of the API's: not HTTP, no JSON, too much of it, or nothing that there is."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
from typing import Any

import pytest

from tests.api_server import ApiServer, UnixConnection

LIMIT = 1 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"BREW /networks HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /networks/create HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"POST /networks/create HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_with_400_and_the_connection_closed(server: ApiServer, raw: bytes) -> None:
    connection = UnixConnection(server.socket_path)
    connection.connect()
    connection.sock.sendall(raw)
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    assert response.status == 400
    assert b"Traceback" not in response.read()
    response.close()
    connection.close()


@pytest.mark.parametrize(
    ("raw", "headers", "says"),
    [
        (b"", {}, "invalid JSON: got EOF while reading request body"),
        (b"  \n", {}, "invalid JSON: got EOF while reading request body"),
        (b'{"Name": "new"', {}, "invalid JSON"),
        (b"Name=new", {}, "invalid JSON"),
        (b'{"Name": "new"} {"Name": "newer"}', {}, "unexpected content after JSON"),
        (b'{"Name": "new"}x', {}, "unexpected content after JSON"),
        (b"[]", {}, "Expected `object`, got `array`"),
        (b"null", {}, "Expected `object`, got `null`"),
        (b'"new"', {}, "Expected `object`, got `str`"),
        (b'{"Name": "n\xffw"}', {}, "not UTF-8"),
        (b'{"Name": "n\x00w"}', {}, "invalid JSON"),
        (b'{"x": ' + b"[" * 100_000, {}, "invalid JSON"),
        (b"[" * 100_000, {}, "invalid JSON"),
        (b'{"Name": "new"}', {"Content-Type": "text/plain"}, "unsupported Content-Type header (text/plain)"),
        (b'{"Name": "new"}', {"Content-Type": ""}, "unsupported Content-Type header"),
        (b'{"Name": "new"}', {"Content-Type": "application/x-www-form-urlencoded"}, "must be 'application/json'"),
        (gzip.compress(b'{"Name": "new"}', mtime=0), {"Content-Encoding": "gzip"}, "invalid JSON"),
    ],
)
@pytest.mark.parametrize(
    "target",
    ["/networks/create", "/networks/taken/connect", "/networks/taken/disconnect", "/linkspan/cluster/join"],
)
def test_a_body_that_is_not_one_json_object_is_refused(
    server: ApiServer, target: str, raw: bytes, headers: dict[str, str], says: str
) -> None:
    reply = server.ask("POST", target, raw=raw, headers=headers)
    assert reply.status == 400
    assert says in reply.message


def test_a_body_without_any_content_type_is_refused(server: ApiServer) -> None:
    connection = UnixConnection(server.socket_path)
    connection.putrequest("POST", "/networks/create")
    connection.putheader("Content-Length", "15")
    connection.endheaders(b'{"Name": "new"}')
    response = connection.getresponse()
    assert response.status == 400
    assert "Content-Type" in json.loads(response.read())["message"]
    connection.close()


def test_a_content_type_with_parameters_is_json_all_the_same(server: ApiServer) -> None:
    reply = server.ask(
        "POST", "/networks/create", raw=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert "name cannot be empty" in reply.message


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_and_the_limit_named(server: ApiServer, declared: bool) -> None:
    raw = b'{"Name": "new", "Labels": {"x": "' + b"y" * LIMIT + b'"}}'
    connection = UnixConnection(server.socket_path)
    body: Any = raw if declared else iter([raw[:1000], raw[1000:]])  # an iterator goes out in chunks, of unknown length
    with contextlib.suppress(BrokenPipeError):  # refused before it was all sent; the answer is there nevertheless
        connection.request("POST", "/networks/create", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["message"] == f"the request's body is over the limit of {LIMIT} bytes"
    connection.close()


def test_a_body_just_under_the_limit_is_read(server: ApiServer) -> None:
    head, tail = b'{"Name": "", "Labels": {"x": "', b'"}}'
    raw = head + b"y" * (LIMIT - len(head) - len(tail)) + tail
    assert "name cannot be empty" in server.ask("POST", "/networks/create", raw=raw).message


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("1.99", "client version 1.99 is too new. Maximum supported API version is 1.56"),
        ("2.0", "client version 2.0 is too new. Maximum supported API version is 1.56"),
        (
            "1.23",
            "client version 1.23 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
        ("1", "client version 1 is too old"),
        ("1.", "client version 1. is too old"),
        ("1.2.3", "client version 1.2.3 is too old"),
        ("9" * 30 + ".1", "is too old"),
    ],
)
def test_versions_out_of_range_are_refused_in_dockers_words(server: ApiServer, version: str, says: str) -> None:
    for target in ("/networks", "/_ping", "/containers/json"):
        reply = server.ask("GET", f"/v{version}{target}")
        assert reply.status == 400
        assert says in reply.message


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("GET", "/v1.41"),
        ("GET", "/v1.41/nowhere"),
        ("GET", "/no%0Awhere"),
        ("GET", "/linkspan/no%0Awhere/x"),
        ("POST", "/networks/taken"),
        ("PUT", "/networks"),
        ("PATCH", "/networks/taken"),
        ("POST", "/_ping"),
        ("GET", "/linkspan"),
    ],
)
def test_an_unknown_operation_is_dockers_page_not_found(server: ApiServer, method: str, target: str) -> None:
    reply = server.ask(method, target)
    assert (reply.status, reply.message) == (404, "page not found")


@pytest.mark.parametrize(
    ("target", "instead"),
    [
        ("/containers/json", "linkspan run"),
        ("/v1.44/containers/web/json", "linkspan run"),
        ("/exec/1/start", "linkspan exec"),
        *(
            (f"/{kind}", "ask Docker's own engine")
            for kind in (
                *(
                    "auth",
                    "build",
                    "commit",
                    "configs",
                    "debug/vars",
                    "distribution/x/json",
                    "grpc",
                    "nodes",
                    "plugins",
                ),
                *("secrets", "services", "session", "swarm", "system/df", "tasks", "v1.41/images/json", "volumes"),
            )
        ),
    ],
)
def test_the_rest_of_docker_is_said_to_be_missing(server: ApiServer, target: str, instead: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        reply = server.ask(method, target)
        assert reply.status == 501
        assert reply.message.startswith("linkspand serves Docker's network API only")
        assert "not supported" in reply.message  # by these words docker inspect knows to try the next kind of object
        assert instead in reply.message
