"""Opens the SQLite file with the settings that make a commit a promise, under a lock that keeps other processes out.

WAL with synchronous=FULL: a commit is on the disk when it returns. The page cap, the small write-ahead log and the reserve file
are what lets a store still delete, and so drain, when the disk is full. It knows nothing of records.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.errors import StoreError
from edge_runtime.store import schema

MIN_BYTES = 1024 * 1024
CHECK_UP_TO_BYTES = 32 * 1024 * 1024
_BUSY_TIMEOUT_S = 5.0


class Unusable(StoreError):
    """The file is there and cannot be used; `state` is `corrupt` or `newer`."""

    def __init__(self, state: str, message: str) -> None:
        self.state = state
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Limits:
    """How `max_bytes` is shared out: reserve file, write-ahead log (twice its checkpoint size), database."""

    max_bytes: int
    reserve_bytes: int
    checkpoint_pages: int
    database_pages: int
    headroom_pages: int

    @classmethod
    def share(cls, max_bytes: int, reserve_bytes: int) -> Limits:
        """Raises StoreError below 1 MiB. The reserve is at most a quarter of the whole."""
        if max_bytes < MIN_BYTES:
            raise StoreError(f"store.max_bytes must be at least {MIN_BYTES}: got {max_bytes}")
        reserve = min(max(reserve_bytes, 65_536), max_bytes // 4)
        checkpoint = max(16, reserve // 4 // schema.PAGE_BYTES)
        pages = (max_bytes - reserve) // schema.PAGE_BYTES - 2 * checkpoint
        return cls(max_bytes, reserve, checkpoint, pages, max(8, pages // 32))

    @property
    def transaction_bytes(self) -> int:
        """Most that one transaction may carry, before compression."""
        return self.checkpoint_pages * schema.PAGE_BYTES


class DirectoryLock:
    """The exclusive right to a store's directory, held until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        path = directory / schema.LOCK
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise StoreError(f"{path} cannot be opened ({err.strerror}): give this user write access to {directory}") from err
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreError(f"{directory} is in use by process {holder}: stop it first, or choose another --state") from err
        self._sign()

    def release(self) -> None:
        """Lets others in. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _sign(self) -> None:
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            return  # a full disk: the lock holds without the name in it


class Reserve:
    """A file of real blocks that is given back to a full disk, so that the store can delete and checkpoint."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._path = directory / schema.RESERVE
        self._directory = directory
        self._size = size_bytes

    def free_bytes(self) -> int:
        """What this user may still write on the disk."""
        try:
            stat = os.statvfs(self._directory)
        except OSError:
            return 1 << 62  # unknown: whoever writes will be told
        return stat.f_bavail * stat.f_frsize

    def held(self) -> bool:
        try:
            return self._path.stat().st_size >= self._size
        except OSError:
            return False

    def release(self) -> None:
        """Gives the blocks back. Safe to call twice."""
        self._path.unlink(missing_ok=True)

    def make(self, margin_bytes: int = 0) -> bool:
        """Takes the blocks, unless that would leave less than `margin_bytes` on the disk; whether they are held now."""
        if self.held():
            return True
        if self.free_bytes() < self._size + margin_bytes:
            return False
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size)
            finally:
                os.close(fd)
        except OSError:
            self.release()
            return False
        return True


def make_directory(directory: Path) -> None:
    """Creates the directory for this user alone. Raises StoreError when that, or writing in it, is not permitted."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise StoreError(f"{directory} cannot be made ({err.strerror}): choose another --state, or make it for this user") from err
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        raise StoreError(f"{directory} is not writable by user {os.geteuid()}: give this user write access, or choose another --state")


def open_database(directory: Path, limits: Limits) -> sqlite3.Connection:
    """The write connection of a checked database, new when there was none.

    Raises Unusable when the file is damaged or of a newer version, StoreError when the disk does not let us.
    """
    path = directory / schema.DATABASE
    try:
        connection = _connect(path, limits)
    except sqlite3.DatabaseError as err:
        raise wrapped(err, path) from err
    try:
        _check(connection, path)
        return connection
    except sqlite3.DatabaseError as err:
        connection.close()
        raise wrapped(err, path) from err
    except StoreError:
        connection.close()
        raise


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection, beside a running writer, after a killed one, or on a read-only disk."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            if os.access(path.parent, os.W_OK):
                raise
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.DatabaseError as err:
        raise wrapped(err, path) from err
    return connection


def primary_code(err: sqlite3.Error) -> int:
    """SQLite's primary result code of an error (0 when it has none)."""
    return getattr(err, "sqlite_errorcode", 0) & 0xFF


def is_damage(err: sqlite3.Error) -> bool:
    """Whether the error says that the file itself is damaged."""
    return primary_code(err) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def wrapped(err: sqlite3.DatabaseError, path: Path) -> StoreError:
    """The product's error for one of SQLite's."""
    if is_damage(err):
        return Unusable("corrupt", f"{path}: {err}")
    return StoreError(f"{path} cannot be used: {err}; check the disk and the rights of user {os.geteuid()}")


def _connect(path: Path, limits: Limits) -> sqlite3.Connection:
    old_mask = os.umask(0o077)
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            _identify(connection, path)  # before any setting that would change a file that is not ours
            for setting in _settings(limits):
                connection.execute(f"PRAGMA {setting}")
        except (sqlite3.DatabaseError, StoreError):
            connection.close()
            raise
    finally:
        os.umask(old_mask)
    return connection


def _settings(limits: Limits) -> tuple[str, ...]:
    return (
        f"page_size = {schema.PAGE_BYTES}",
        "journal_mode = WAL",
        "synchronous = FULL",
        f"wal_autocheckpoint = {limits.checkpoint_pages}",
        f"journal_size_limit = {2 * limits.checkpoint_pages * schema.PAGE_BYTES}",
        f"max_page_count = {limits.database_pages}",
        "secure_delete = OFF",  # some distributions build it on: a delete would then write as much as an insert
        "temp_store = MEMORY",
        "cell_size_check = ON",
        "trusted_schema = OFF",
    )


def _identify(connection: sqlite3.Connection, path: Path) -> None:
    if _is_blank(connection):
        return
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != schema.APPLICATION_ID:
        raise Unusable("corrupt", f"{path} is not a store of this product (application id {application:#x})")
    if version > schema.VERSION:
        raise Unusable("newer", f"{path} has schema {version}, this version reads up to {schema.VERSION}")


def _is_blank(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if _is_blank(connection):
        connection.executescript(f"BEGIN;{schema.SCHEMA}COMMIT;")
    elif path.stat().st_size <= CHECK_UP_TO_BYTES:
        finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if finding != "ok":
            raise Unusable("corrupt", f"{path}: {finding}")
