"""Three members, of which one dies, hangs, or is cut off from the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from control.cluster import etcd_messages as api
from control.cluster.etcd import Etcd
from control.cluster.etcd_errors import EtcdUnavailable
from tests.cluster.test_etcd import Witness
from tests.etcd_server import EtcdMember, etcd_cluster, leader
from tests.waiting import until


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EtcdMember]]:
    with etcd_cluster(tmp_path_factory.mktemp("three"), 3) as three:
        yield three


def others(members: list[EtcdMember], one: EtcdMember) -> list[EtcdMember]:
    return [member for member in members if member is not one]


@contextmanager
def talking_to(member: EtcdMember, members: list[EtcdMember], monkeypatch: pytest.MonkeyPatch) -> Iterator[Etcd]:
    """A client that begins with this member."""
    monkeypatch.setattr("random.shuffle", lambda given: given.sort(key=lambda each: each.url != member.url))
    with Etcd([each.url for each in members]) as client:
        yield client


@contextmanager
def being_away(member: EtcdMember, how: str, members: list[EtcdMember]) -> Iterator[None]:
    if how == "killed":
        member.stop(9)
        yield
        member.start()
    elif how == "frozen":
        member.freeze()
        yield
        member.thaw()
        member.wait()
    else:
        alone = others(members, member)
        for other in alone:
            other.freeze()
        # It finds out, and has been without a leader for a while, when it says so itself.
        until(lambda: member.run("get", "/x", check=False).returncode != 0, within_s=30)
        for other in alone:
            other.thaw()
        yield
        member.wait()


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("which", ["leader", "follower"])
def test_calls_and_watches_go_on_when_a_member_fails(
    members: list[EtcdMember], monkeypatch: pytest.MonkeyPatch, which: str, how: str
) -> None:
    key = f"/{which}-{how}"
    leading = leader(members)
    failing = leading if which == "leader" else others(members, leading)[0]
    with talking_to(failing, members, monkeypatch) as client:
        witness = Witness()
        client.follow(key, key + "0", witness)
        until(lambda: witness.is_connected)
        lost = threading.Event()
        lease = client.grant(10)
        client.keep_alive(lease, 10, lost.set)
        client.txn([], [api.put(f"{key}/before", b"1", lease)])
        with being_away(failing, how, members):
            deadline = time.monotonic() + 30
            while True:
                try:
                    client.txn([api.is_absent(f"{key}/after")], [api.put(f"{key}/after", b"2", lease)])
                    break
                except EtcdUnavailable:  # an election on a busy machine may take longer than a call
                    assert time.monotonic() < deadline
            until(lambda: witness.keys == {f"{key}/before": "1", f"{key}/after": "2"}, within_s=30)
            assert others(members, failing)[0].get(f"{key}/after") == "2"
        assert witness.reads == 1
        assert [event[0] for event in witness.events] == [f"{key}/before", f"{key}/after"]
        assert not lost.is_set()


def test_member_without_a_leader_is_left(members: list[EtcdMember], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = others(members, leader(members))[0]
    rest = others(members, alone)
    with Etcd([alone.url], timeout_s=3) as client:
        for member in rest:
            member.freeze()
        try:
            until(lambda: "no leader" in _complaint(client), within_s=30)
        finally:
            for member in rest:
                member.thaw()
        until(lambda: _complaint(client) == "", within_s=30)


def test_majority_that_is_gone_is_named_with_why(members: list[EtcdMember]) -> None:
    first, *rest = members
    with Etcd([member.url for member in members], timeout_s=3) as client:
        client.get("/x")
        for member in rest:
            member.stop(9)
        try:
            until(lambda: "no leader" in _complaint(client), within_s=30)
            said = _complaint(client)
            assert f"{rest[0].url}: connection refused" in said
            assert f"{first.url}: no leader" in said
        finally:
            for member in rest:
                member.start(wait=False)
            for member in members:
                member.wait()
        until(lambda: _complaint(client) == "", within_s=30)


def _complaint(client: Etcd) -> str:
    try:
        client.get("/x")
    except EtcdUnavailable as error:
        return str(error)
    return ""
