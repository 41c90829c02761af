"""How the plugin socket is spoken to: what the real engine sends, and what nobody should.

Expectations are moby's docs/extend/plugin_api.md and pkg/plugins/client.go.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from control.config import ApiSection
from control.model import EndpointId, EndpointState, NetworkId
from tests.api_server import ask
from tests.plugin_server import (
    EP,
    KEY,
    MIMETYPE,
    NET,
    PORT_MAP,
    Host,
    PluginServer,
    endpoint,
    ident,
    ids,
    join,
    network,
)

ENDPOINT_CALLS = [
    f"NetworkDriver.{name}"
    for name in (
        "CreateEndpoint",
        "EndpointOperInfo",
        "DeleteEndpoint",
        "Join",
        "Leave",
        "ProgramExternalConnectivity",
        "RevokeExternalConnectivity",
    )
]
NETWORK_CALLS = ["NetworkDriver.CreateNetwork", "NetworkDriver.DeleteNetwork"]
POOL_CALLS = ["IpamDriver.ReleasePool", "IpamDriver.RequestAddress", "IpamDriver.ReleaseAddress"]
WITH_BODY = [*NETWORK_CALLS, *ENDPOINT_CALLS, *POOL_CALLS]
WITHOUT_BODY = {
    "Plugin.Activate": {"Implements": ["NetworkDriver", "IpamDriver"]},
    "NetworkDriver.GetCapabilities": {"Scope": "local", "ConnectivityScope": "local"},
    "IpamDriver.GetCapabilities": {"RequiresMACAddress": True, "RequiresRequestReplay": False},
    "IpamDriver.GetDefaultAddressSpaces": {
        "LocalDefaultAddressSpace": "docker",
        "GlobalDefaultAddressSpace": "docker-global",
    },
}


LIMITS = ApiSection(body_timeout_seconds=0.3, max_body_bytes=1 << 16)


@pytest.fixture
def plugin(host: Host) -> Iterator[PluginServer]:
    with PluginServer(host, LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginServer]:
    """One for all calls that change nothing, with an endpoint that has joined."""
    with PluginServer(Host(tmp_path_factory.mktemp("joined")), LIMITS) as running:
        running.call("NetworkDriver.CreateNetwork", network())
        running.call("NetworkDriver.CreateEndpoint", endpoint())
        running.call("NetworkDriver.Join", join())
        running.call("IpamDriver.RequestPool", {"AddressSpace": "docker", "Pool": "10.0.0.0/8"})
        yield running


def assert_malformed(joined: PluginServer, method: str, *body: Any, raw: bytes | None = None) -> str:
    """Asserts that the call is 400, says why under the protocol's key, and changes nothing; returns what it says."""
    before = joined.host.state()
    reply = joined.post(method, *body, raw=raw)
    assert reply.status == 400, reply.body
    assert reply.headers["content-type"] == MIMETYPE
    assert joined.host.state() == before
    return error_of(method, reply.json)


def error_key(method: str) -> str:
    return "Error" if method.startswith("IpamDriver.") else "Err"


def error_of(method: str, document: dict[str, Any]) -> str:
    assert document.keys() == {error_key(method), "Err"}, document
    return str(document[error_key(method)])


@pytest.mark.parametrize("method", WITHOUT_BODY)
def test_calls_without_a_body_are_answered(plugin: PluginServer, method: str) -> None:
    for raw in (b"", b"{}", b"{}\n", b" \n"):
        reply = plugin.post(method, raw=raw)
        assert (reply.status, reply.json) == (200, WITHOUT_BODY[method])
        assert reply.headers["content-type"] == MIMETYPE


def test_the_bytes_that_dockerd_sends_are_understood(plugin: PluginServer) -> None:
    """Go's client as captured from dockerd 20.10: an empty Host, no Content-Type."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.settimeout(10)
        raw.connect(str(plugin.path))
        raw.sendall(
            b"POST /Plugin.Activate HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n"
            b"Accept: application/vnd.docker.plugins.v1.2+json\r\nAccept-Encoding: gzip\r\n\r\n"
        )
        head, _, body = raw.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body) == WITHOUT_BODY["Plugin.Activate"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "plugin.moby.localhost"},
        {"Content_Type": "application/json"},
        {"Content_Type": "text/plain"},
        {"Content_Type": MIMETYPE},
        {"Content_Type": "nonsense;;;"},
        {"Content_Type": ""},
        {"Accept": "text/html"},
        {"Accept": ""},
    ],
    ids=str,
)
def test_headers_do_not_matter(plugin: PluginServer, headers: dict[str, str]) -> None:
    raw = json.dumps(network()).encode()
    reply = plugin.post("NetworkDriver.CreateNetwork", raw=raw, **headers)
    assert (reply.status, reply.json, reply.headers["content-type"]) == (200, {}, MIMETYPE)


def test_a_body_in_chunks_is_read(plugin: PluginServer) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Type": ""}
    reply = ask(plugin.path, "POST", "/NetworkDriver.CreateNetwork", raw=_chunks(network()), headers=headers)
    assert (reply.status, reply.json) == (200, {})


def _chunks(body: Any) -> bytes:
    raw = json.dumps(body).encode()
    half = len(raw) // 2
    parts = [f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (raw[:half], raw[half:], b"")]
    return b"".join(parts)


def test_unknown_fields_and_nulls_are_passed_over(plugin: PluginServer) -> None:
    body = network()
    body |= {"Future": {"a": [1, None]}, "IPv6Data": None}
    assert plugin.call("NetworkDriver.CreateNetwork", body) == {}
    assert plugin.call("NetworkDriver.CreateEndpoint", {**endpoint(), "Options": None, "Future": 1}).keys()
    assert plugin.call("NetworkDriver.EndpointOperInfo", ids(Options=None, Interface=None)).keys() == {"Value"}


@pytest.mark.parametrize(
    "method",
    [
        "NetworkDriver.AllocateNetwork",
        "NetworkDriver.FreeNetwork",
        "NetworkDriver.GwAllocCheck",
        "NetworkDriver.Nonsense",
        "NetworkDriver.Join/",
        "NetworkDriver",
        "networkdriver.join",
        "IpamDriver.Nonsense",
        "VolumeDriver.Create",
        "Plugin.Deactivate",
        "",
        "v1.24/networks",
        "../NetworkDriver.Join",
        "%FF%00",
    ],
)
def test_a_method_that_is_not_served_is_404(joined: PluginServer, method: str) -> None:
    before = joined.host.state()
    reply = joined.post(method, network())
    assert reply.status == 404
    assert reply.headers["content-type"] == MIMETYPE
    assert "not implemented" in reply.json["Err"]
    assert joined.host.state() == before


@pytest.mark.parametrize("verb", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("method", ["Plugin.Activate", "NetworkDriver.CreateNetwork"])
def test_other_verbs_than_post_are_refused(joined: PluginServer, verb: str, method: str) -> None:
    before = joined.host.state()
    assert ask(joined.path, verb, f"/{method}", network()).status in (404, 405)
    assert joined.host.state() == before


GARBAGE = {
    "not json": b"hello",
    "cut": json.dumps(endpoint()).encode()[:-5],
    "two documents": b"{}{}",
    "bytes": bytes(range(256)),
    "utf-16": '{"NetworkID": 1}'.encode("utf-16"),
    "bad utf-8 in a field that is passed over": b'{"Future": "\xff\xfe"}',
    "lone surrogate": b'{"NetworkID": "\\ud800"}',
    "list": b"[]",
    "null": b"null",
    "text": b'"NetworkID"',
    "number": b"1e999",
    "nan": b"NaN",
    "deep": b'{"Future":' * 3000,
    "deep list": b"[" * 30000,
    "empty": b"",
    "no fields": b"{}",
    "form": b"NetworkID=1&EndpointID=2",
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("method", WITH_BODY)
def test_what_is_no_message_is_400_with_the_protocols_key(joined: PluginServer, method: str, raw: bytes) -> None:
    assert assert_malformed(joined, method, raw=raw).startswith("malformed request: ")


WRONG = [
    {"NetworkID": 5},
    {"NetworkID": None},
    {"NetworkID": [NET]},
    {"NetworkID": ""},
    {"NetworkID": NET[:12]},
    {"NetworkID": NET.upper()},
    {"NetworkID": NET + "0"},
    {"NetworkID": NET[:-1] + "\n"},
    {"NetworkID": "../" + NET[3:]},
    {"NetworkID": "bridge"},
]
WRONG_NETWORK = [
    *WRONG,
    {"Options": []},
    {"Options": {"com.docker.network.generic": "x"}},
    {"Options": {"com.docker.network.generic": {"linkspan.accel": True}}},
    {"Options": {"com.docker.network.internal": "yes"}},
    {"Options": {"com.docker.network.enable_ipv6": 1}},
    {"IPv4Data": {}},
    {"IPv4Data": ["10.0.0.0/8"]},
    {"IPv4Data": [{"Pool": 7}]},
    {"IPv4Data": [{"Pool": "10.0.0.0/8", "AuxAddresses": ["10.0.0.7/8"]}]},
    {"IPv6Data": "none"},
]
WRONG_ENDPOINT = [
    *WRONG,
    {"EndpointID": 5},
    {"EndpointID": ""},
    {"EndpointID": EP[:-1]},
    {"EndpointID": "é" * 64},
    {"Interface": []},
    {"Interface": {"Address": 1}},
    {"Interface": {"MacAddress": ["02:42:0a:09:00:02"]}},
    {"Options": "x"},
]


@pytest.mark.parametrize("change", WRONG_NETWORK, ids=str)
def test_a_network_of_wrong_shape_is_400(joined: PluginServer, change: dict[str, Any]) -> None:
    assert_malformed(joined, "NetworkDriver.CreateNetwork", {**network(ident("other")), **change})


@pytest.mark.parametrize("change", WRONG_ENDPOINT, ids=str)
@pytest.mark.parametrize("method", ENDPOINT_CALLS)
def test_an_endpoint_of_wrong_shape_is_400(joined: PluginServer, method: str, change: dict[str, Any]) -> None:
    assert_malformed(joined, method, {**join(), **endpoint(), **change})


@pytest.mark.parametrize("method", ENDPOINT_CALLS)
@pytest.mark.parametrize("field", ["NetworkID", "EndpointID"])
def test_a_missing_id_is_400(joined: PluginServer, method: str, field: str) -> None:
    body = {**endpoint(), "SandboxKey": KEY}
    del body[field]
    assert field in assert_malformed(joined, method, body)


@pytest.mark.parametrize("key", [{}, {"SandboxKey": None}, {"SandboxKey": ""}], ids=str)
def test_a_join_without_a_sandbox_is_400(joined: PluginServer, key: dict[str, Any]) -> None:
    assert "SandboxKey" in assert_malformed(joined, "NetworkDriver.Join", ids(**key))


@pytest.mark.parametrize(
    "bindings",
    ["80", [80], [{"Proto": "tcp", "Port": 80}], [{"Port": 80}], [{"Proto": 6, "Port": 80, "HostPort": "8080"}]],
    ids=str,
)
def test_a_port_map_of_wrong_shape_is_400(joined: PluginServer, bindings: Any) -> None:
    assert_malformed(joined, "NetworkDriver.ProgramExternalConnectivity", ids(Options={PORT_MAP: bindings}))


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("IpamDriver.RequestPool", {"AddressSpace": 1}),
        ("IpamDriver.RequestPool", {"AddressSpace": "docker", "Pool": ["10.0.0.0/8"]}),
        ("IpamDriver.RequestPool", {"AddressSpace": "docker", "V6": "yes"}),
        ("IpamDriver.RequestPool", {"AddressSpace": "docker", "Options": {"a": 1}}),
        ("IpamDriver.RequestAddress", {"PoolID": 1}),
        ("IpamDriver.RequestAddress", {"PoolID": "docker/10.0.0.0/8", "Address": 5}),
        ("IpamDriver.ReleaseAddress", {"PoolID": "docker/10.0.0.0/8"}),
        ("IpamDriver.ReleaseAddress", {"PoolID": "docker/10.0.0.0/8", "Address": ""}),
        ("IpamDriver.ReleasePool", {"PoolID": None}),
    ],
)
def test_ipam_messages_of_wrong_shape_are_400(joined: PluginServer, method: str, body: Any) -> None:
    assert assert_malformed(joined, method, body).startswith("malformed request: ")


@pytest.mark.parametrize("method", [*ENDPOINT_CALLS, *POOL_CALLS])
def test_a_body_over_the_limit_is_413(plugin: PluginServer, method: str) -> None:
    for length in (str((1 << 16) + 1), str(1 << 62)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            raw.settimeout(10)
            raw.connect(str(plugin.path))
            raw.sendall(f"POST /{method} HTTP/1.1\r\nHost: \r\nContent-Length: {length}\r\n\r\n".encode())
            head, _, body = raw.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert error_of(method, json.loads(body))


def test_chunks_over_the_limit_are_413(plugin: PluginServer) -> None:
    body = network(fake_option="x" * (1 << 17))
    headers = {"Transfer-Encoding": "chunked"}
    reply = ask(plugin.path, "POST", "/NetworkDriver.CreateNetwork", raw=_chunks(body), headers=headers)
    assert reply.status == 413
    assert error_of("NetworkDriver.CreateNetwork", reply.json)


@pytest.mark.parametrize("method", ["NetworkDriver.Join", "IpamDriver.RequestPool"])
def test_a_body_that_does_not_come_is_408_and_holds_up_nobody(plugin: PluginServer, method: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slow:
        slow.settimeout(10)
        slow.connect(str(plugin.path))
        slow.sendall(f"POST /{method} HTTP/1.1\r\nHost: \r\nContent-Length: 50\r\n\r\n{{".encode())
        assert plugin.call("Plugin.Activate")
        head, _, body = slow.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert "did not arrive" in error_of(method, json.loads(body))


def test_a_client_that_goes_away_half_way_is_no_error_of_ours(
    plugin: PluginServer, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.connect(str(plugin.path))
        raw.sendall(b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: \r\nContent-Length: 50\r\n\r\n{")
    deadline = time.monotonic() + 0.6  # past the body's own
    while time.monotonic() < deadline:
        assert plugin.call("Plugin.Activate")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_call_that_waits_for_the_kernel_holds_up_no_other(plugin: PluginServer, host: Host) -> None:
    plugin.call("NetworkDriver.CreateNetwork", network())
    plugin.call("NetworkDriver.CreateEndpoint", endpoint())
    host.driver.gate = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, plugin.path, "POST", "/NetworkDriver.Join", join()) for _ in range(2)]
        while host.controller.remote.endpoint(NetworkId(NET), EndpointId(EP)).state is not EndpointState.JOINING:
            pass
        other = ident("other")
        plugin.call("NetworkDriver.CreateEndpoint", endpoint(other, v4="10.9.0.3/16"))
        plugin.call("NetworkDriver.EndpointOperInfo", ids(other))
        plugin.call("NetworkDriver.Leave", ids(other))
        plugin.call("IpamDriver.RequestPool", {"AddressSpace": "docker", "Pool": "10.0.0.0/8"})
        assert not any(each.done() for each in waiting)
        host.driver.gate.set()
        first, second = (each.result(10).json for each in waiting)
    assert first == second  # the one that came twice is the same


def test_one_connection_serves_many_calls_whatever_became_of_the_first(plugin: PluginServer) -> None:
    for _ in range(3):
        assert plugin.post("NetworkDriver.Join", raw=b"?").status == 400
        assert plugin.post("NetworkDriver.Nonsense", raw=b"{}").status == 404
        assert plugin.call("NetworkDriver.GetCapabilities")["Scope"] == "local"


@pytest.mark.parametrize("method", ["NetworkDriver.DiscoverNew", "NetworkDriver.DiscoverDelete"])
def test_nodes_of_a_swarm_are_taken_note_of_and_forgotten(plugin: PluginServer, host: Host, method: str) -> None:
    before = host.state()
    node = {"DiscoveryType": 1, "DiscoveryData": {"Address": "192.0.2.1", "BindAddress": "192.0.2.1", "Self": True}}
    assert plugin.call(method, node) == {}
    assert host.state() == before


def test_every_call_is_timed_under_its_own_name(plugin: PluginServer) -> None:
    plugin.post("NetworkDriver.CreateNetwork", network())
    plugin.post("NetworkDriver.CreateNetwork", raw=b"?")
    families = text_string_to_metric_families(b"".join(plugin.metrics.expose()).decode())
    counts = {
        (sample.labels["route"], sample.labels["method"], sample.labels["status"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "linkspan_request_seconds_count"
    }
    assert counts == {("/NetworkDriver.CreateNetwork", "POST", status): 1.0 for status in ("200", "400")}


def test_a_fault_of_ours_is_500_with_a_reference_and_no_trace(
    plugin: PluginServer, host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    plugin.call("NetworkDriver.CreateNetwork", network())
    monkeypatch.setattr(host.driver, "validate_endpoint", broken)
    before = host.state()
    reply = plugin.post("NetworkDriver.CreateEndpoint", endpoint())
    assert reply.status == 500
    text = error_of("NetworkDriver.CreateEndpoint", reply.json)
    assert "secret" not in text
    assert any(record.exc_info and record.message.rpartition(" ")[2] in text for record in caplog.records)
    assert host.state() == before
