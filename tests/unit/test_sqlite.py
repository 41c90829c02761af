"""The SQLite store's file: durability, versions, locking, and every file that it must refuse."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from control.errors import StoreError
from control.store.base import Put
from control.store.sqlite import APPLICATION_ID, MIGRATIONS, SqliteStore

HOLD = """
import sys
from control.store.base import Put
from control.store.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
store.write([Put("network", "held", b"{}")])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def refusal(path: Path) -> str:
    """Opening the file must fail with a StoreError that names it; returns the message."""
    with pytest.raises(StoreError) as refused:
        SqliteStore(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


def sql(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Runs statements with SQLite itself, past the store; returns the rows of the last."""
    rows = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def hold(path: Path) -> subprocess.Popen[bytes]:
    """A process that has the file open, after one write."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate(timeout=10)


def test_records_outlive_the_store(path: Path) -> None:
    with SqliteStore(path) as store:
        store.write([Put("network", "a", b"1")])
    with SqliteStore(path) as store:
        assert list(store.read("network")) == [("a", b"1")]


def test_a_write_outlives_the_kill_of_its_process(path: Path) -> None:
    end(hold(path))
    assert path.with_name("state.db-wal").stat().st_size, "nothing was left to recover"
    with SqliteStore(path) as store:
        assert list(store.read("network")) == [("held", b"{}")]


def test_sqlite_itself_reads_the_file_as_documented(path: Path) -> None:
    with SqliteStore(path) as store:
        store.write([Put("network", "a", b'{"x":1}')])
    assert sql(path, "SELECT kind, id, body FROM records") == [("network", "a", b'{"x":1}')]
    assert sql(path, "PRAGMA journal_mode") == [("wal",)]
    assert sql(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert sql(path, "PRAGMA application_id") == [(int.from_bytes(b"LNKS"),)]


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    with SqliteStore(path) as store:
        store.write([Put("sandbox", "a", b"{}")])
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_closed_store_leaves_one_file(path: Path) -> None:
    with SqliteStore(path) as store:
        store.write([Put("network", "a", b"1")])
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


def test_a_relative_path_still_names_the_file_after_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SqliteStore("state.db") as store:
        monkeypatch.chdir("/")
        assert store.path == tmp_path / "state.db"


@pytest.mark.parametrize("name", ["a b.db", "what?mode=ro", "file:x", "#1%20", "ü.db"])
def test_a_path_is_never_taken_for_a_uri(tmp_path: Path, name: str) -> None:
    with SqliteStore(tmp_path / name) as store:
        store.write([Put("network", "a", b"1")])
    assert [file.name for file in tmp_path.iterdir()] == [name]


# Locking


def test_a_second_process_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    child = hold(path)
    try:
        message = refusal(path)
        assert f"is in use by process {child.pid}, most likely another linkspand" in message
        assert "--state-dir" in message
    finally:
        end(child)
    with SqliteStore(path) as store:
        assert list(store.read("network")) == [("held", b"{}")]


def test_a_second_store_in_this_process_is_refused_and_the_first_keeps_its_lock(path: Path) -> None:
    with SqliteStore(path) as store:
        assert f"is in use by process {os.getpid()}" in refusal(path)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            subprocess_read(path)
        store.write([Put("network", "a", b"1")])


def subprocess_read(path: Path) -> None:
    """Reads the file with another process' SQLite; raises its sqlite3.OperationalError."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT count(*) FROM records')"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    if result.returncode:
        raise sqlite3.OperationalError(result.stderr)


def test_the_lock_holds_from_the_first_open_of_a_new_file(path: Path) -> None:
    with SqliteStore(path), pytest.raises(sqlite3.OperationalError, match="locked"):
        subprocess_read(path)


def test_a_lock_that_ends_soon_is_waited_for(path: Path) -> None:
    SqliteStore(path).close()
    opened: list[SqliteStore] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        opening = threading.Thread(target=lambda: opened.append(SqliteStore(path)))
        opening.start()
        opening.join(0.2)
        assert opening.is_alive(), "it did not wait"
        other.execute("COMMIT")
    opening.join(10)
    opened[0].close()


# Files that are refused


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path / "missing" / "state.db")
    assert f"there is no directory {tmp_path / 'missing'}; make it, or choose another with --state-dir" in message


def test_a_directory_in_the_files_place_is_refused(path: Path) -> None:
    path.mkdir()
    assert "not a regular file" in refusal(path)


def test_a_link_to_nowhere_is_refused(path: Path) -> None:
    path.symlink_to(path.parent / "gone")
    assert "not a regular file" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"SQLite format 3\0" + bytes(400),
        b"hello, this is no database\n" * 400,
        b"SQLite format 3\0" + b"\xff" * 8192,
        bytes(8192),
    ],
    ids=["one byte", "half a header", "text", "header alone", "zeros"],
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = refusal(path)
    assert "is damaged" in message
    assert "move the file and state.db-wal away, or restore a copy" in message
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE notes (x)"],
        ["PRAGMA user_version = 1"],
        ["PRAGMA application_id = 7", "CREATE TABLE notes (x)"],
        ["PRAGMA application_id = 7"],
        ["PRAGMA journal_mode = WAL", "CREATE TABLE notes (x)"],
    ],
)
def test_another_programs_database_is_refused_and_left_alone(path: Path, statements: list[str]) -> None:
    sql(path, *statements)
    before = path.read_bytes()
    assert "belongs to another program" in refusal(path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with SqliteStore(path) as store:
        store.write([Put("network", "a", b"1")])
        assert list(store.read("network")) == [("a", b"1")]


def test_a_newer_version_is_refused_and_names_the_copy(path: Path) -> None:
    SqliteStore(path, (*MIGRATIONS, "CREATE TABLE future (x)")).close()
    before = path.read_bytes()
    message = refusal(path)
    assert "has version 2 and this linkspand knows versions up to 1; install a newer linkspand" in message
    assert "restore the copy state.db.v1.bak" in message
    assert path.read_bytes() == before


# Migrations


def filled(path: Path, count: int = 3) -> None:
    with SqliteStore(path) as store:
        store.write([Put("network", f"{n:05}", b'{"n":%d}' % n) for n in range(count)])


def rename_kind(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE records SET kind = 'net' WHERE kind = 'network'")
    connection.execute("CREATE TABLE more (x)")


def test_migrations_run_in_order_once_after_a_copy(path: Path) -> None:
    filled(path)
    newer = (*MIGRATIONS, rename_kind, "ALTER TABLE more ADD COLUMN y")
    for _ in range(2):
        with SqliteStore(path, newer) as store:
            assert len(list(store.read("net"))) == 3
            assert not list(store.read("network"))
    assert sql(path, "PRAGMA user_version") == [(3,)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["state.db", "state.db.v1.bak"]

    restored = path.parent / "restored.db"
    shutil.copy(path.with_name("state.db.v1.bak"), restored)
    with SqliteStore(restored) as store:
        assert [record_id for record_id, _ in store.read("network")] == ["00000", "00001", "00002"]


def test_the_copy_is_readable_by_its_owner_alone(path: Path) -> None:
    filled(path)
    SqliteStore(path, (*MIGRATIONS, rename_kind)).close()
    assert stat.S_IMODE(path.with_name("state.db.v1.bak").stat().st_mode) == 0o600


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        rename_kind(connection)
        connection.execute("INSERT INTO nowhere VALUES (1)")

    filled(path)
    with pytest.raises(StoreError, match=r"state\.db: no such table: nowhere"):
        SqliteStore(path, (*MIGRATIONS, half))
    with SqliteStore(path) as store:
        assert len(list(store.read("network"))) == 3
    assert sql(path, "SELECT name FROM sqlite_schema") == [("records",)]


def test_migrations_before_the_one_that_fails_are_kept(path: Path) -> None:
    filled(path)
    with pytest.raises(StoreError):
        SqliteStore(path, (*MIGRATIONS, rename_kind, "nonsense"))
    assert sql(path, "PRAGMA user_version") == [(2,)]
    with SqliteStore(path, (*MIGRATIONS, rename_kind, "CREATE TABLE third (x)")) as store:
        assert len(list(store.read("net"))) == 3


def test_a_copy_left_by_an_earlier_try_is_replaced(path: Path) -> None:
    filled(path)
    path.with_name("state.db.v1.bak").write_bytes(b"old")
    path.with_name("state.db.v1.bak.tmp").write_bytes(b"cut off")
    SqliteStore(path, (*MIGRATIONS, rename_kind)).close()
    assert sql(path.with_name("state.db.v1.bak"), "SELECT count(*) FROM records") == [(3,)]
    assert not path.with_name("state.db.v1.bak.tmp").exists()


def test_released_migrations_are_never_changed() -> None:
    assert APPLICATION_ID == 0x4C4E4B53
    assert MIGRATIONS[0] == (
        "CREATE TABLE records (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, id))"
        " STRICT, WITHOUT ROWID"
    )


def test_the_lock_survives_a_migration(path: Path) -> None:
    filled(path)
    with SqliteStore(path, (*MIGRATIONS, rename_kind)), pytest.raises(sqlite3.OperationalError, match="locked"):
        subprocess_read(path)
