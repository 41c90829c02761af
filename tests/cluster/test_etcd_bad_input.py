"""What users get wrong, and what is wrong with an etcd: one line that names it, and local networks untouched."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from control.cluster import etcd_messages as api
from control.cluster.etcd import Etcd
from control.cluster.etcd_errors import EtcdRefused, EtcdUnavailable
from control.errors import InvalidArgument, StoreError
from tests.certificates import Authority, Certificate
from tests.etcd_server import EtcdMember, etcd_cluster, free_port
from tests.waiting import until


def complaint(*urls: str, timeout_s: float = 3, **files: object) -> tuple[type[Exception] | None, str]:
    try:
        with Etcd(urls, timeout_s=timeout_s, **{name: str(path) for name, path in files.items()}) as client:
            client.get("/x")
    except (StoreError, InvalidArgument) as error:
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://10.0.0.5:2379", "is not whole: write it as http://10.0.0.5:2379"),
        ("10.0.0.5:2379", "is not whole"),
        ("http://10.0.0.5", "is not whole"),
        ("http://:2379", "is not whole"),
        ("http://10.0.0.5:port", "Port could not be cast"),
        ("http://10.0.0.5:99999", "Port out of range"),
        ("http://10.0.0.5:2379/v3", "more than host and port"),
        ("http://root:secret@10.0.0.5:2379", "more than host and port"),
        ("http://[fe80::1:2379", "Invalid IPv6 URL"),
    ],
)
def test_wrong_url(url: str, why: str) -> None:
    kind, said = complaint(url)
    assert kind is InvalidArgument
    assert why in said
    assert repr(url) in said


def test_no_url() -> None:
    with pytest.raises(InvalidArgument, match="needs one URL"):
        Etcd([])


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert complaint(url, timeout_s=0.5) == (EtcdUnavailable, f"etcd cannot be reached: {url}: connection refused")


def test_name_that_does_not_resolve() -> None:
    url = "http://etcd.invalid:2379"
    assert complaint(url) == (EtcdUnavailable, f"etcd cannot be reached: {url}: the name does not resolve")


@contextmanager
def something(answer: bytes | None) -> Iterator[str]:
    """A server that gives this answer to everything and hangs up, or with None says nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    if answer is None:
                        held.append(connection)
                        continue
                    with connection, suppress(OSError):
                        connection.recv(4096)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"220 mail ready\r\n"])
def test_what_answers_is_no_etcd(answer: bytes) -> None:
    with something(answer) as url:
        kind, said = complaint(url)
    assert kind is EtcdUnavailable
    assert f"{url}: what answers there is no etcd" in said


def test_who_hangs_is_not_waited_for_for_ever() -> None:
    with something(None) as url:
        said = complaint(url, timeout_s=0.3)
        assert said == (EtcdUnavailable, f"etcd cannot be reached: {url}: no answer in time")


def test_one_wrong_member_among_others_does_no_harm(member: EtcdMember) -> None:
    for _ in range(4):  # whichever it begins with
        assert complaint(f"http://127.0.0.1:{free_port()}", member.url) == (None, "")


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca") / "authority")


@pytest.fixture(scope="module")
def node(authority: Authority) -> Certificate:
    return authority.issue("node")


@pytest.fixture(scope="module")
def secure(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMember]:
    with etcd_cluster(tmp_path_factory.mktemp("secure"), tls=authority.issue("server")) as members:
        yield members[0]


def test_tls_with_a_certificate_of_the_authority(secure: EtcdMember, node: Certificate) -> None:
    with Etcd([secure.url], cacert=str(node.cacert), cert=str(node.cert), key=str(node.key)) as client:
        client.txn([], [api.put("/a", b"1")])
    assert secure.get("/a") == "1"


def test_certificate_was_not_given(secure: EtcdMember, authority: Authority) -> None:
    kind, said = complaint(secure.url, cacert=authority.cacert)
    assert kind is EtcdUnavailable
    assert "give --cert and --key" in said or "missing" in said


def test_clients_certificate_has_expired(secure: EtcdMember, authority: Authority) -> None:
    old = authority.issue("old", is_expired=True)
    kind, said = complaint(secure.url, cacert=old.cacert, cert=old.cert, key=old.key)
    assert kind is EtcdUnavailable
    assert "expired" in said


def test_clients_certificate_is_of_another_authority(secure: EtcdMember, authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign").issue("node")
    kind, said = complaint(secure.url, cacert=authority.cacert, cert=foreign.cert, key=foreign.key)
    assert kind is EtcdUnavailable
    assert "another authority" in said or "does not know" in said


def test_servers_authority_is_unknown(secure: EtcdMember, node: Certificate, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign")
    assert complaint(secure.url, cacert=foreign.cacert, cert=node.cert, key=node.key) == (
        EtcdUnavailable,
        f"etcd cannot be reached: {secure.url}: its certificate is of another authority than --cacert's",
    )


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"is_expired": True}, "its certificate has expired"),
        ({"addresses": ["192.0.2.1"]}, "its certificate is for another name or address"),
    ],
)
def test_servers_certificate_is_wrong(
    authority: Authority, node: Certificate, tmp_path: Path, made: dict[str, object], why: str
) -> None:
    bad = authority.issue("bad", **made)  # type: ignore[arg-type]
    wrong = EtcdMember("etcd0", tmp_path, "127.0.0.1", free_port(), free_port(), tls=bad)
    wrong.start(wait=False)
    try:
        kind, said = None, "connection refused"
        while "connection refused" in said:
            kind, said = complaint(wrong.url, cacert=node.cacert, cert=node.cert, key=node.key)
        assert (kind, said) == (EtcdUnavailable, f"etcd cannot be reached: {wrong.url}: {why}")
    finally:
        wrong.stop(9)


def test_wrong_scheme(secure: EtcdMember, member: EtcdMember, node: Certificate) -> None:
    plain = secure.url.replace("https", "http")
    assert "if it is an etcd that speaks TLS, write https://" in complaint(plain)[1]
    encrypted = member.url.replace("http", "https")
    assert "speaks no TLS" in (said := complaint(encrypted, cacert=node.cacert)[1])
    assert "write http://" in said


def test_files_that_cannot_be_used(node: Certificate, authority: Authority, tmp_path: Path) -> None:
    url = "https://127.0.0.1:2379"
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for files, why in (
        ({"cert": node.cert}, "needs its key"),
        ({"cacert": tmp_path / "none.pem"}, "--cacert .*none.pem: there is no such file"),
        ({"cacert": text}, "--cacert .*text.pem: no certificate"),
        ({"cacert": node.cacert, "cert": text, "key": text}, "--cert .* cannot be used"),
        ({"cacert": node.cacert, "cert": node.cert, "key": authority.issue("other").key}, "KEY_VALUES_MISMATCH"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            Etcd([url], **{name: str(path) for name, path in files.items()})
    with pytest.raises(InvalidArgument, match="write https://"):
        Etcd(["http://127.0.0.1:2379"], cacert=str(node.cacert))


# -- an etcd that refuses --------------------------------------------------------------------------------------------


def test_etcd_out_of_space_is_refused_by_name_and_can_still_be_read(tmp_path: Path) -> None:
    with (
        etcd_cluster(tmp_path, extra_args=["--quota-backend-bytes", str(1 << 20)]) as (member,),
        Etcd([member.url]) as client,
    ):
        client.txn([], [api.put("/a", b"kept")])
        until(lambda: member.run("put", "/b", "x" * 100_000, check=False).returncode != 0)
        with pytest.raises(EtcdRefused, match=r"out of space \(alarm NOSPACE\).*alarm disarm"):
            client.txn([], [api.put("/c", b"")])
        stored = client.get("/a")
        assert stored is not None
        assert stored.value == b"kept"


def test_read_only_user(authority: Authority, tmp_path: Path) -> None:
    root, reader = authority.issue("root"), authority.issue("reader")
    with etcd_cluster(tmp_path, tls=root) as (member,):
        for command in (
            "user add root --no-password", "user grant-role root root",
            "role add reading", "role grant-permission reading read --prefix=true /linkspan/",
            "user add reader --no-password", "user grant-role reader reading", "auth enable",
        ):  # fmt: skip
            member.run(*command.split())
        with Etcd([member.url], cacert=str(reader.cacert), cert=str(reader.cert), key=str(reader.key)) as client:
            assert client.get("/linkspan/x") is None
            with pytest.raises(EtcdRefused, match=r"permission denied: .* a role that writes below /linkspan/"):
                client.txn([], [api.put("/linkspan/x", b"")])


def test_errors_have_http_statuses() -> None:
    assert (EtcdUnavailable.http_status, EtcdRefused.http_status) == (503, 500)
