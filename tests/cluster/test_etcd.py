"""The client against a real etcd: keys, transactions, leases, and ranges that are followed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from control.cluster import etcd as etcd_module
from control.cluster import etcd_messages as api
from control.cluster.etcd import Etcd
from control.cluster.etcd_errors import LeaseLost
from tests.etcd_server import EtcdMember, etcd_cluster, free_port
from tests.waiting import until


class Witness:
    """Follows a range and notes what it is told; `keys` is what it believes to be there."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.reads = 0
        self.events: list[tuple[str, str | None]] = []
        self.states: list[str] = []

    def read(self, snapshot: Iterable[Any]) -> None:
        self.keys = {kv.key.decode(): kv.value.decode() for kv in snapshot}
        self.reads += 1

    def change(self, events: Sequence[Any], revision: int) -> None:
        for event in events:
            key = event.kv.key.decode()
            if event.type == api.DELETED:
                del self.keys[key]
                self.events.append((key, None))
            else:
                self.keys[key] = event.kv.value.decode()
                self.events.append((key, self.keys[key]))
        assert events[-1].kv.mod_revision == revision

    def connected(self) -> None:
        self.states.append("")

    def waiting(self, why: str) -> None:
        self.states.append(why)

    @property
    def is_connected(self) -> bool:
        return self.states[-1:] == [""]


def test_transaction_compares_and_then_writes(etcd: Etcd, member: EtcdMember, root: str) -> None:
    key = f"{root}a"
    assert etcd.txn([api.is_absent(key)], [api.put(key, b"one")]).succeeded
    refused = etcd.txn([api.is_absent(key)], [api.put(key, b"two")], [api.get(key)])
    assert not refused.succeeded
    assert refused.responses[0].range.kvs[0].value == b"one"
    assert member.get(key) == "one"


@pytest.mark.parametrize("is_there", [True, False])
def test_what_can_be_compared(etcd: Etcd, member: EtcdMember, root: str, is_there: bool) -> None:
    key = f"{root}things/a"
    if is_there:
        member.put(key, "one")
    stored = etcd.get(key)
    revision = stored.mod_revision if stored else 0
    holds = {
        api.is_absent: (not is_there, (key,)),
        api.are_absent: (not is_there, (f"{root}things/",)),
        api.is_present: (is_there, (key,)),
        api.has_value: (is_there, (key, b"one")),
        api.is_unchanged: (True, (key, revision)),
    }
    for claim, (expected, arguments) in holds.items():
        assert etcd.txn([claim(*arguments)], []).succeeded is expected, claim.__name__
    assert not etcd.txn([api.has_value(key, b"two")], []).succeeded
    assert not etcd.txn([api.is_unchanged(key, revision + 1)], []).succeeded


def test_range_is_of_one_revision_however_many_pages(
    etcd: Etcd, member: EtcdMember, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_module, "PAGE", 3)
    wanted = [f"{root}k/{number:02}" for number in range(10)]
    for key in wanted:
        member.put(key, "old")
    found = iter(read := etcd.prefix(f"{root}k/"))
    first = next(found)
    member.put(f"{root}k/05x", "new")
    member.put(f"{root}k/09", "new")
    rest = list(found)
    assert [kv.key.decode() for kv in (first, *rest)] == wanted
    assert rest[-1].value == b"old"
    assert read.revision < member.revision
    assert [kv.value for kv in etcd.prefix(f"{root}k/", keys_only=True)] == [b""] * 11


def test_empty_range_has_a_revision_too(etcd: Etcd, member: EtcdMember, root: str) -> None:
    nothing = etcd.prefix(root)
    assert list(nothing) == []
    assert nothing.revision == member.revision


def test_lease_lives_as_long_as_it_is_renewed(etcd: Etcd, member: EtcdMember, root: str) -> None:
    is_lost = threading.Event()
    renewed, left_alone = etcd.grant(2), etcd.grant(2)
    etcd.keep_alive(renewed, 2, is_lost.set)
    etcd.txn([], [api.put(f"{root}renewed", b"", renewed), api.put(f"{root}left", b"", left_alone)])
    until(lambda: member.keys(root) == [f"{root}renewed"], within_s=20)
    assert not is_lost.is_set()
    member.run("lease", "revoke", f"{renewed:x}")
    assert is_lost.wait(10)
    assert member.keys(root) == []


def test_revoking_ends_what_is_under_a_lease_and_may_be_done_twice(etcd: Etcd, member: EtcdMember, root: str) -> None:
    lease = etcd.grant(60)
    etcd.txn([], [api.put(f"{root}a", b"", lease)])
    etcd.revoke(lease)
    etcd.revoke(lease)
    assert member.keys(root) == []
    with pytest.raises(LeaseLost):
        etcd.txn([], [api.put(f"{root}a", b"", lease)])


def test_follower_is_told_all_and_then_every_change(etcd: Etcd, member: EtcdMember, root: str) -> None:
    member.put(f"{root}a", "1")
    witness = Witness()
    following = etcd.follow(root, api.after(root), witness)
    until(lambda: witness.is_connected)
    assert witness.keys == {f"{root}a": "1"}
    member.put(f"{root}b", "2")
    member.put(f"{root}b", "3")
    member.run("del", f"{root}a")
    until(lambda: len(witness.events) == 3)
    assert witness.events == [(f"{root}b", "2"), (f"{root}b", "3"), (f"{root}a", None)]
    following.stop()
    member.put(f"{root}c", "4")
    assert witness.keys == {f"{root}b": "3"}
    assert witness.reads == 1


def test_follower_that_was_away_is_told_what_it_missed(tmp_path: Any) -> None:
    with etcd_cluster(tmp_path) as (member,), Etcd([member.url]) as client:
        witness = Witness()
        client.follow("/a", "/b", witness)
        until(lambda: witness.is_connected)
        member.put("/a/1", "old")
        until(lambda: len(witness.events) == 1)
        member.stop()
        until(lambda: not witness.is_connected)
        assert member.url in witness.states[-1]
        assert witness.keys == {"/a/1": "old"}
        member.start()
        member.put("/a/2", "new")
        until(lambda: "/a/2" in witness.keys)
        assert witness.events == [("/a/1", "old"), ("/a/2", "new")]
        assert witness.reads == 1


def test_follower_reads_all_again_after_a_compaction_in_its_absence(tmp_path: Any) -> None:
    with etcd_cluster(tmp_path) as (member,), Etcd([member.url]) as client:
        member.put("/a/1", "goes")
        witness = Witness()
        client.follow("/a", "/b", witness)
        until(lambda: witness.is_connected)
        port = member.client_port
        member.stop()
        member.client_port = free_port()  # for a while, where the client does not find it
        member.start()
        member.run("del", "/a/1")
        member.put("/a/2", "comes")
        member.compact()
        member.stop()
        member.client_port = port
        member.start()
        until(lambda: witness.reads == 2)
        assert witness.keys == {"/a/2": "comes"}
        assert witness.events == []
        member.put("/a/2", "changes")
        until(lambda: witness.events == [("/a/2", "changes")])


def test_follower_reads_all_again_from_an_etcd_that_lost_what_it_had(tmp_path: Any) -> None:
    with etcd_cluster(tmp_path) as (member,), Etcd([member.url]) as client:
        for number in range(5):
            member.put("/a/1", str(number))
        witness = Witness()
        client.follow("/a", "/b", witness)
        until(lambda: witness.is_connected)
        member.stop()
        (member.folder / member.name).rename(tmp_path / "lost")
        member.start()
        until(lambda: witness.reads == 2)
        assert witness.keys == {}
        member.put("/a/2", "new")
        until(lambda: witness.keys == {"/a/2": "new"})


def test_follower_whose_own_error_is_logged_is_given_all_again(
    etcd: Etcd, root: str, member: EtcdMember, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("control.cluster.etcd_following._MIX_UP_PAUSE_S", 0.1)
    witness = Witness()
    tell, failures = witness.change, iter([True])

    def change(events: Sequence[Any], revision: int) -> None:
        if next(failures, False):
            raise ValueError("not understood")
        tell(events, revision)

    witness.change = change  # type: ignore[method-assign]
    etcd.follow(root, api.after(root), witness)
    until(lambda: witness.is_connected)
    member.put(f"{root}a", "1")
    until(lambda: witness.keys == {f"{root}a": "1"})
    assert witness.reads == 2
    assert "not understood" in caplog.text


def test_many_threads_share_a_client(etcd: Etcd, member: EtcdMember, root: str) -> None:
    key, wins = f"{root}counter", []

    def count() -> None:
        for _ in range(10):
            while True:
                stored = etcd.get(key)
                value = int(stored.value) if stored else 0
                revision = stored.mod_revision if stored else 0
                if etcd.txn([api.is_unchanged(key, revision)], [api.put(key, b"%d" % (value + 1))]).succeeded:
                    wins.append(value)
                    break

    threads = [threading.Thread(target=count) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert member.get(key) == "50"
    assert sorted(wins) == list(range(50))


def test_callbacks_may_call_the_client(etcd: Etcd, member: EtcdMember, root: str) -> None:
    witness = Witness()
    tell = witness.change

    def change(events: Sequence[Any], revision: int) -> None:
        etcd.txn([], [api.put(f"{root}seen", events[0].kv.value)])
        tell(events, revision)

    witness.change = change  # type: ignore[method-assign]
    etcd.follow(f"{root}in/", api.after(f"{root}in/"), witness)
    until(lambda: witness.is_connected)
    member.put(f"{root}in/a", "1")
    until(lambda: member.get(f"{root}seen") == "1")


def test_closing_leaves_no_thread_and_no_connection(member: EtcdMember, root: str) -> None:
    before = set(threading.enumerate())
    client = Etcd([member.url]).start()
    client.follow(root, api.after(root), witness := Witness())
    client.keep_alive(client.grant(5), 5, lambda: None)
    until(lambda: witness.is_connected)
    client.close()
    client.close()
    assert set(threading.enumerate()) == before
