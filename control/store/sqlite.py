"""The embedded store: one SQLite file, owned by one linkspand for as long as it runs.

The file is in WAL mode with synchronous=NORMAL: a committed write survives the death of the process at any moment, and
a power loss can cost the last seconds but never the file. The kernel's state dies with the power too. See
docs/adr/0004-store.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self, final

from control.errors import ControlError, Exhausted, StoreError
from control.store.base import Change, Put

# In the file's header (sqlite.org/fileformat2.html, section 1.3): tells linkspand's files from other programs'.
APPLICATION_ID: Final = int.from_bytes(b"LNKS")

# One SQL statement, or a function that runs several on the connection, inside the transaction that it is given.
Migration = str | Callable[[sqlite3.Connection], object]

# Entry n takes a file from version n to n + 1. Entries are never changed once released; new ones go to the end.
MIGRATIONS: Final[tuple[Migration, ...]] = (
    "CREATE TABLE records (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, id))"
    " STRICT, WITHOUT ROWID",
)

# How long to wait for a lock at open: a process that was just killed, or a backup that runs.
_LOCK_WAIT_S: Final = 1.0


@final
class SqliteStore:
    """Implements `control.store.base.Store` in the file `path`, which is made (mode 0600) if it is not there.

    Opening locks the file, checks all of it, and brings it to the newest version after a copy to
    `<path>.v<version>.bak`. The lock is a POSIX one: nothing else in this process may open and close the file. Raises
    StoreError for a missing or unwritable directory, and for a file that is damaged, newer, another program's or in
    use; Exhausted for a full disk.
    """

    def __init__(self, path: str | os.PathLike[str], migrations: Sequence[Migration] = MIGRATIONS) -> None:
        self.path: Final = Path(path).absolute()
        self._lock = threading.Lock()
        with self._errors("open"):
            _prepare(self.path)
            self._connection = _connect(self.path)
        try:
            with self._errors("open"):
                self._lock_and_check(len(migrations))
                self._migrate(migrations)
        except BaseException:
            self._connection.close()
            raise

    def write(self, changes: Iterable[Change]) -> None:
        batch = list(changes)
        if not batch:
            return
        with self._lock, self._errors("write"), self._transaction():
            execute = self._connection.execute
            for change in batch:
                if isinstance(change, Put):
                    execute("REPLACE INTO records VALUES (?, ?, ?)", (change.kind, change.id, change.body))
                else:
                    execute("DELETE FROM records WHERE kind = ? AND id = ?", (change.kind, change.id))

    def read(self, kind: str) -> Iterator[tuple[str, bytes]]:
        with self._lock, self._errors("read"):
            rows: list[tuple[str, bytes]] = self._connection.execute(
                "SELECT id, body FROM records WHERE kind = ? ORDER BY id", (kind,)
            ).fetchall()
        return iter(rows)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _lock_and_check(self, newest: int) -> None:
        # Pages are a multiple of 512 bytes. SQLite itself reads a page that is cut off as if it went on with zeros.
        if self.path.stat().st_size % 512:
            raise self._damaged("it is cut off")
        # Exclusive before the first access in WAL mode: the lock is then held until close, and there is no -shm file,
        # whose memory mapping a full disk could turn into a SIGBUS.
        self._pragma("locking_mode = EXCLUSIVE")
        self._pragma("cell_size_check = ON")
        version = self._pragma("user_version")
        tables = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        application = self._pragma("application_id")
        if application != APPLICATION_ID and (application or version or tables):
            self._refuse("belongs to another program; move it away, or choose another directory with --state-dir")
        if version > newest:
            self._refuse(
                f"has version {version} and this linkspand knows versions up to {newest}; install a newer linkspand, "
                f"or move the file and {self.path.name}-wal away and restore the copy {self.path.name}.v{newest}.bak"
            )
        # Not quick_check, which misses keys out of order: those make records invisible.
        verdict = self._pragma("integrity_check(1)")
        if verdict != "ok":
            raise self._damaged(verdict)
        self._pragma("journal_mode = WAL")
        self._pragma("synchronous = NORMAL")
        with self._transaction():
            pass  # takes the lock now, in a file that was not in WAL mode yet too

    def _migrate(self, migrations: Sequence[Migration]) -> None:
        version = self._pragma("user_version")
        if 0 < version < len(migrations):
            self._back_up(self.path.with_name(f"{self.path.name}.v{version}.bak"))
        for number, migration in enumerate(migrations[version:], start=version + 1):
            with self._transaction():
                if isinstance(migration, str):
                    self._connection.execute(migration)
                else:
                    migration(self._connection)
                self._pragma(f"application_id = {APPLICATION_ID}")
                self._pragma(f"user_version = {number}")

    def _back_up(self, target: Path) -> None:
        # Through SQLite, since opening and closing the file ourselves would drop this process's lock on it.
        partial = target.with_name(f"{target.name}.tmp")
        try:
            partial.unlink(missing_ok=True)
            _prepare(partial)
            with contextlib.closing(_connect(partial)) as copy:
                self._connection.backup(copy)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _pragma(self, pragma: str) -> Any:
        row = self._connection.execute(f"PRAGMA {pragma}").fetchone()
        return row and row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full(action) from error
            raise self._unwritable(action, error) from error
        except UnicodeDecodeError as error:
            raise self._damaged(str(error)) from error
        except sqlite3.Error as error:
            raise self._explain(action, error) from error

    def _explain(self, action: str, error: sqlite3.Error) -> ControlError:
        # The low byte is the primary code (sqlite.org/rescode.html); errors of the Python module itself have none.
        match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
            case sqlite3.SQLITE_FULL:
                return self._full(action)
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return self._damaged(str(error))
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                pid = _lock_holder(self.path)
                holder = "another process" if pid is None else f"process {pid}"
                return StoreError(
                    f"state file {self.path} is in use by {holder}, most likely another linkspand; stop that one, or "
                    "give this one a directory of its own with --state-dir"
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return self._unwritable(action, error)
            case _:
                return StoreError(
                    f"cannot {action} state file {self.path}: {error}; nothing was changed, networks that run go on; "
                    "the kernel's log may say more"
                )

    def _full(self, action: str) -> Exhausted:
        return Exhausted(
            f"cannot {action} state file {self.path}: no space left; nothing was changed, networks that run go on; "
            "free space on its file system and try again"
        )

    def _unwritable(self, action: str, error: Exception) -> StoreError:
        return StoreError(
            f"cannot {action} state file {self.path}: {error}; make it and its directory writable for linkspand, or "
            "choose another directory with --state-dir"
        )

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"state file {self.path} is damaged ({what}); stop linkspand, then move the file and {self.path.name}-wal "
            "away, or restore a copy in their place; networks that run go on"
        )

    def _refuse(self, why: str) -> NoReturn:
        raise StoreError(f"state file {self.path} {why}")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
    # Text that is not UTF-8 is damage. The module's own decoding raises an error that cannot be told from others.
    connection.text_factory = bytes.decode
    return connection


def _prepare(path: Path) -> None:
    """Makes the file, readable by its owner alone, if it is not there; raises StoreError where it cannot be written."""
    if not path.parent.is_dir():
        raise StoreError(
            f"cannot open state file {path}: there is no directory {path.parent}; make it, or choose another with "
            "--state-dir"
        )
    _require_writable(path, path.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    if not path.is_file():
        raise StoreError(f"cannot open state file {path}: it is not a regular file; move it away")
    _require_writable(path, path)


def _require_writable(path: Path, needed: Path) -> None:
    # access(2) says no to root too, on a read-only file system and for an immutable file.
    if not os.access(needed, os.R_OK | os.W_OK, effective_ids=True):
        raise StoreError(
            f"cannot open state file {path}: {needed} is not writable for linkspand; make it so, or choose another "
            "directory with --state-dir"
        )


def _lock_holder(path: Path) -> int | None:
    """The process that holds a POSIX lock on the file, if the kernel says; reading /proc/locks opens no locked file.

    Source: proc(5), /proc/locks.
    """
    with contextlib.suppress(OSError):
        status = path.stat()
        inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            match line.split():
                case [_, "POSIX", _, _, pid, place, *_] if place == inode:
                    return int(pid)
    return None
