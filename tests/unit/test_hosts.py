"""The text of /etc/hosts, and its writing in rounds."""

from __future__ import annotations

import threading
from collections import Counter
from ipaddress import IPv4Interface, IPv6Interface

import msgspec
import pytest

from control.hosts import LOCALHOST, HostsTable, HostsWriter
from control.model import Endpoint, EndpointId, EndpointState, NetworkId, Sandbox, SandboxId, SandboxState, utcnow
from tests.hosts import wait_for


def sandbox(name: str) -> Sandbox:
    identifier = SandboxId((name.encode().hex() * 64)[:64])
    return Sandbox(id=identifier, name=name, state=SandboxState.CREATED, created=utcnow())


def endpoint(owner: Sandbox, network: str, ipv4: str | None, ipv6: str | None = None, *aliases: str) -> Endpoint:
    return Endpoint(
        id=EndpointId(f"{owner.name}-{network}"),
        network_id=NetworkId(network),
        sandbox_id=owner.id,
        state=EndpointState.JOINED,
        created=utcnow(),
        ipv4=IPv4Interface(ipv4) if ipv4 else None,
        ipv6=IPv6Interface(ipv6) if ipv6 else None,
        aliases=aliases,
    )


WEB, DB = sandbox("web"), sandbox("db")


def names(text: str) -> dict[str, list[str]]:
    """Addresses by name, in the order in which the resolver finds them."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        address, *own = line.split()
        for name in own:
            found.setdefault(name, []).append(address)
    return found


def test_a_sandbox_finds_itself_and_everybody_on_its_networks() -> None:
    table = HostsTable()
    web = endpoint(WEB, "red", "10.0.0.2/24", "fd00::2/64", "www", "shop")
    db = endpoint(DB, "red", "10.0.0.3/24")
    elsewhere = endpoint(DB, "blue", "10.9.0.3/24")
    for each, owner in ((web, WEB), (db, DB), (elsewhere, DB)):
        table.add(each, owner)
    text = table.text(WEB, [web])
    assert text.startswith(LOCALHOST)
    found = names(text)
    assert set(found["web"]) == set(found[WEB.id[:12]]) | {"10.0.0.2", "fd00::2"}
    assert found["www"] == found["shop"] == ["10.0.0.2", "fd00::2"]
    assert found["db"] == ["10.0.0.3"]
    assert set(names(table.text(DB, [db, elsewhere]))["db"]) == {"10.0.0.3", "10.9.0.3"}
    assert names(table.text(DB, [elsewhere])).keys() & {"web", "www"} == set()


def test_links_are_names_for_the_one_that_has_them() -> None:
    table = HostsTable()
    links = (("db", "store"), (DB.id[:12], "base"), ("nobody", "ghost"))
    web = msgspec.structs.replace(endpoint(WEB, "red", "10.0.0.2/24"), links=links)
    db, elsewhere = endpoint(DB, "red", "10.0.0.3/24", "fd00::3/64"), endpoint(DB, "blue", "10.9.0.3/24")
    for each, owner in ((web, WEB), (db, DB), (elsewhere, DB)):
        table.add(each, owner)
    found = names(table.text(WEB, [web]))
    assert found["store"] == found["base"] == ["10.0.0.3", "fd00::3"]
    assert "ghost" not in found
    assert names(table.text(DB, [db, elsewhere])).keys() & {"store", "base"} == set()
    table.remove(db)
    assert "store" not in names(table.text(WEB, [web]))


def test_who_leaves_is_found_no_more() -> None:
    table = HostsTable()
    web, db = endpoint(WEB, "red", "10.0.0.2/24"), endpoint(DB, "red", "10.0.0.3/24")
    table.add(web, WEB)
    table.add(db, DB)
    assert "10.0.0.3" in table.text(WEB, [web])
    for _ in range(2):
        table.remove(db)
        assert "10.0.0.3" not in table.text(WEB, [web])
    table.remove(endpoint(DB, "never", "10.7.0.1/24"))


def test_an_endpoint_that_is_added_again_is_there_once_with_its_new_aliases() -> None:
    table = HostsTable()
    web, db = endpoint(WEB, "red", "10.0.0.2/24"), endpoint(DB, "red", "10.0.0.3/24", None, "old")
    table.add(db, DB)
    table.add(endpoint(DB, "red", "10.0.0.3/24", None, "new"), DB)
    found = names(table.text(WEB, [web]))
    assert found["db"] == ["10.0.0.3"]
    assert "old" not in found
    assert found["new"] == ["10.0.0.3"]


def test_an_endpoint_without_addresses_has_no_line() -> None:
    table = HostsTable()
    bare = endpoint(WEB, "none", None)
    table.add(bare, WEB)
    assert table.text(WEB, [bare]) == LOCALHOST


class Files:
    """Counts how often each file is written; waits for `gate` first, and fails for ids in `broken`."""

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.broken: set[str] = set()
        self.entered = threading.Event()

    def write(self, sandbox_id: str) -> None:
        self.entered.set()
        assert self.gate.wait(20)
        self.written[sandbox_id] += 1
        if sandbox_id in self.broken:
            raise OSError(28, "No space left on device")


def test_a_burst_of_changes_is_written_in_few_rounds() -> None:
    files = Files()
    writer = HostsWriter(files.write, pause_s=0.001)
    files.gate.clear()
    writer.start()
    for _ in range(100):
        writer.mark(["a", "b", "c"])
    assert files.entered.wait(20)
    writer.mark(["a", "b", "c"])
    files.gate.set()
    assert writer.flush()
    assert all(files.written[name] in (1, 2) for name in "abc"), files.written
    writer.close()


def test_every_mark_is_followed_by_a_writing() -> None:
    files = Files()
    writer = HostsWriter(files.write, pause_s=0.0)
    writer.start()
    for number in range(1, 20):
        before = files.written["a"]
        writer.mark(["a"])
        wait_for(lambda before=before: files.written["a"] > before, f"writing {number}")  # type: ignore[misc]
    writer.close()


def test_a_file_that_cannot_be_written_does_not_keep_others_from_being(caplog: pytest.LogCaptureFixture) -> None:
    files = Files()
    files.broken = {"bad"}
    writer = HostsWriter(files.write, pause_s=0.0)
    writer.start()
    writer.mark(["bad", "good"])
    assert writer.flush()
    assert files.written["good"] == 1
    assert "cannot write the hosts file of sandbox bad" in caplog.text
    writer.mark(["good"])
    assert writer.flush()
    assert files.written["good"] == 2
    writer.close()


def test_closing_writes_what_is_waiting_and_may_be_repeated() -> None:
    files = Files()
    writer = HostsWriter(files.write, pause_s=5.0)
    writer.start()
    writer.mark(["first"])
    assert writer.flush()
    writer.mark(["last"])
    writer.close()
    writer.close()
    assert files.written["last"] == 1


def test_a_flush_that_takes_too_long_says_so() -> None:
    files = Files()
    files.gate.clear()
    writer = HostsWriter(files.write)
    writer.start()
    writer.mark(["a"])
    assert not writer.flush(0.05)
    files.gate.set()
    assert writer.flush()
    writer.close()
