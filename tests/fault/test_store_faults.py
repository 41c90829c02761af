"""The store on a full disk, a read-only one, without permission, and in a file that is damaged under it.

Faults that need a mount or another user run in a child of their own mount namespace; run as a script, this file is
that child: `test_store_faults.py <fault> <directory>`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from control.errors import Exhausted, StoreError
from control.ipam.pools import PoolIpam
from control.store.base import Put
from control.store.sqlite import MIGRATIONS, SqliteStore

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096


def body(n: int) -> bytes:
    return b'{"n":%d,"filler":"%s"}' % (n, b"x" * 300)


def fill_disk(folder: Path, leave: int = 0) -> Path:
    """Takes all free blocks of the file system but `leave` bytes."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize - leave)
    return ballast


def expect_full(store: SqliteStore, changes: list[Put]) -> None:
    with pytest.raises(Exhausted, match=r"no space left.*free space on its file system") as refused:
        store.write(changes)
    assert str(store.path) in str(refused.value)


# The faults, each in its own mount namespace


def full_disk(folder: Path) -> None:
    """Each write is there whole or not at all, and the next one works when there is space again."""
    path = folder / "state.db"
    store = SqliteStore(path)
    ballast = fill_disk(folder, leave=64 * PAGE)
    written = 0
    while True:
        pair = [Put("network", f"{written:05}", body(written)), Put("lease", f"{written:05}", b"{}")]
        try:
            store.write(pair)
        except Exhausted:
            break
        written += 1
        assert written < 10_000
    assert written > 5
    for _ in range(3):
        expect_full(store, pair)
    expected = [f"{n:05}" for n in range(written)]
    for kind in ("network", "lease"):
        assert [record_id for record_id, _ in store.read(kind)] == expected

    ballast.unlink()
    store.write(pair)
    store.close()
    with SqliteStore(path) as again:
        assert [record_id for record_id, _ in again.read("network")] == [*expected, f"{written:05}"]


def full_disk_then_kill(folder: Path) -> None:
    """A process that ends on a full disk, without closing, loses nothing that it had written."""
    path = folder / "state.db"
    child = os.fork()
    if child == 0:
        store = SqliteStore(path)
        store.write([Put("network", "a", body(1))])
        fill_disk(folder)
        expect_full(store, [Put("network", f"{n}", body(n)) for n in range(1000)])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with SqliteStore(path) as store:
        assert list(store.read("network")) == [("a", body(1))]


def full_disk_at_close(folder: Path) -> None:
    """A close that cannot fold the log into the file keeps the log, and the next open finds all records."""
    path = folder / "state.db"
    store = SqliteStore(path)
    store.write([Put("network", f"{n:05}", body(n)) for n in range(100)])
    ballast = fill_disk(folder)
    store.close()
    with SqliteStore(path) as again:
        assert len(list(again.read("network"))) == 100
    ballast.unlink()
    with SqliteStore(path) as again:
        assert len(list(again.read("network"))) == 100


def full_disk_at_start(folder: Path) -> None:
    """A new store on a full disk is refused, and made once there is space."""
    ballast = fill_disk(folder)
    path = folder / "state.db"
    with pytest.raises(Exhausted, match=f"^cannot open state file {path}: no space left"):
        SqliteStore(path)
    ballast.unlink()
    with SqliteStore(path) as store:
        store.write([Put("network", "a", b"1")])


def full_disk_at_migration(folder: Path) -> None:
    """Without space for the copy nothing is migrated, and no part of a copy is left."""
    path = folder / "state.db"
    with SqliteStore(path) as store:
        store.write([Put("network", f"{n:05}", body(n)) for n in range(100)])
    ballast = fill_disk(folder, leave=4 * PAGE)
    newer = (*MIGRATIONS, "CREATE TABLE more (x)")
    with pytest.raises(Exhausted, match=f"^cannot open state file {path}: no space left"):
        SqliteStore(path, newer)
    assert sorted(file.name for file in folder.iterdir()) == ["ballast", "state.db"]
    ballast.unlink()
    with SqliteStore(path) as store:
        assert len(list(store.read("network"))) == 100
    SqliteStore(path, newer).close()


def read_only_disk(folder: Path) -> None:
    """A read-only file system is refused at open, for a file that is there and for a new one."""
    SqliteStore(folder / "state.db").close()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    for path in (folder / "state.db", folder / "new.db"):
        with pytest.raises(StoreError, match=f"^cannot open state file {path}: {folder} is not writable for linkspand"):
            SqliteStore(path)


def other_user(folder: Path) -> None:
    """A user who may not write the directory, the file, or not even look is told what to make writable."""
    # A tree of its own, because how far another user sees into the directories above `folder` is pytest's affair.
    shared = Path("/mnt")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "linkspan-test", shared], check=True)
    for name, mode in (("hidden", 0o700), ("closed", 0o755), ("open", 0o777)):
        (shared / name / "state").mkdir(parents=True)
        (shared / name / "state").chmod(mode | 0o055)
        (shared / name).chmod(mode)
        SqliteStore(shared / name / "state" / "state.db").close()
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    path = shared / "hidden" / "state" / "state.db"
    with pytest.raises(StoreError, match=f"^cannot open state file {path}: .*make it and its directory writable"):
        SqliteStore(path)
    with pytest.raises(StoreError, match=f"{shared}/closed/state is not writable for linkspand"):
        SqliteStore(shared / "closed" / "state" / "state.db")
    with pytest.raises(StoreError, match=f"{shared}/open/state/state.db is not writable for linkspand"):
        SqliteStore(shared / "open" / "state" / "state.db")


FAULTS = [
    full_disk,
    full_disk_then_kill,
    full_disk_at_close,
    full_disk_at_start,
    full_disk_at_migration,
    read_only_disk,
    other_user,
]


@pytest.mark.root
@pytest.mark.parametrize("fault", [fault.__name__ for fault in FAULTS])
def test_a_disk_that_fails_is_a_clear_error_and_costs_no_record(fault: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to mount a small disk")
    before = Path("/proc/self/mountinfo").read_text()
    result = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, fault, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert Path("/proc/self/mountinfo").read_text() == before
    assert not list(tmp_path.iterdir())


# Damage


def filled(path: Path, count: int = 400) -> dict[str, bytes]:
    records = {f"{n:05}": body(n) for n in range(count)}
    with SqliteStore(path) as store:
        store.write([Put("network", record_id, record) for record_id, record in records.items()])
    return records


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def expect_damage(path: Path) -> None:
    with pytest.raises(StoreError) as refused:
        SqliteStore(path)
    for part in (str(path), "is damaged", "stop linkspand", "restore a copy", "networks that run go on"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "content", [bytes(PAGE), b"\xff" * PAGE, random.Random(7).randbytes(PAGE)], ids=["0", "1", "?"]
)
def test_any_overwritten_page_is_found_at_open_and_the_file_left_alone(tmp_path: Path, content: bytes) -> None:
    path, copy = tmp_path / "state.db", tmp_path / "copy.db"
    filled(copy)
    for page in range(copy.stat().st_size // PAGE):
        shutil.copy(copy, path)
        overwrite(path, page * PAGE, content)
        damaged = path.read_bytes()
        expect_damage(path)
        assert path.read_bytes() == damaged
    shutil.copy(copy, path)
    with SqliteStore(path) as store:
        assert len(list(store.read("network"))) == 400


def test_a_file_cut_off_anywhere_is_found_at_open(tmp_path: Path) -> None:
    path, copy = tmp_path / "state.db", tmp_path / "copy.db"
    filled(copy)
    size = copy.stat().st_size
    for length in [1, 99, 100, 511, 512, PAGE - 1, *range(PAGE, size, PAGE), size - PAGE + 1, size - 1]:
        shutil.copy(copy, path)
        os.truncate(path, length)
        expect_damage(path)


def test_damage_under_a_running_store_is_found_by_the_read_that_meets_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    records = filled(path, 20_000)
    with SqliteStore(path) as store:
        # Not through open(): a file that this process opens and closes costs it the store's lock.
        damage = f"dd if=/dev/zero of={path} bs={PAGE} seek=2 count=1200 conv=notrunc status=none"
        subprocess.run(["sh", "-c", damage], check=True)
        with pytest.raises(StoreError, match=r"is damaged .*stop linkspand, then move the file and state\.db-wal away"):
            store.read("network")
        with pytest.raises(StoreError, match="is damaged"):
            store.write([Put("network", record_id, b"{}") for record_id in records])


def test_random_damage_is_an_error_or_costs_nothing_but_what_it_hit(tmp_path: Path) -> None:
    path, copy = tmp_path / "state.db", tmp_path / "copy.db"
    records = filled(copy)
    size = copy.stat().st_size
    source = random.Random(11)
    for _ in range(300):
        shutil.copy(copy, path)
        overwrite(path, source.randrange(size - 8), source.randbytes(8))
        with contextlib.suppress(StoreError), SqliteStore(path) as store:
            found = dict(store.read("network"))
            # Eight bytes lie in at most two records; what no check of structure sees, the reader of the JSON must.
            assert len(set(records.items()) - set(found.items())) <= 2


def test_a_log_that_was_cut_off_loses_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with SqliteStore(path) as store:
        for n in range(20):
            store.write([Put("network", f"{n:05}", body(n)), Put("lease", f"{n:05}", b"{}")])
        copies = [tmp_path / "copy.db", tmp_path / "copy.db-wal"]
        for source, copy in zip((path, tmp_path / "state.db-wal"), copies, strict=True):
            subprocess.run(["cp", source, copy], check=True)
    log = copies[1].read_bytes()
    counts = set()
    for length in [*range(0, len(log), PAGE // 2), len(log)]:
        cut, cut_log = tmp_path / "cut.db", tmp_path / "cut.db-wal"
        shutil.copy(copies[0], cut)
        cut_log.write_bytes(log[:length])
        with SqliteStore(cut) as store:
            networks = [record_id for record_id, _ in store.read("network")]
            assert networks == [f"{n:05}" for n in range(len(networks))]
            assert [record_id for record_id, _ in store.read("lease")] == networks, "half a batch"
        counts.add(len(networks))
        cut.unlink()
    assert counts == set(range(21))


def test_the_ipam_names_the_record_whose_json_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with SqliteStore(path) as store:
        pool, changes = PoolIpam().request_pool("local")
        store.write(changes)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE records SET body = CAST(replace(body, '172.17', '999.17') AS BLOB)")
    with SqliteStore(path) as store, pytest.raises(StoreError, match=f"stored record pool {pool.id} is damaged"):
        PoolIpam().load(store)


if __name__ == "__main__":
    disk = Path(sys.argv[2])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "linkspan-test", disk], check=True)
    next(fault for fault in FAULTS if fault.__name__ == sys.argv[1])(disk)
