"""Brings a database to this program's schema (Alembic, run by the program itself), under a lock: several may start at once.

A change of `schema` needs a new module in `versions`. The layout of the first sinks, SQLite files marked `user_version` 1, is where
the first revision ends, and is migrated in place.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_sync.controller.address import Address
from edge_runtime.errors import MissingDependency, StoreError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

FIRST = "0001"
OLD_LAYOUT, THIS_LAYOUT = 1, 2
_ADVISORY_LOCK = 0x65646765  # the same in every controller
_LOCK_S = 60.0
_one_at_a_time = threading.Lock()  # Alembic's `op` is one per process


def migrate(address: Address) -> None:
    """Creates or upgrades the tables; blocks, so call it in a thread. Raises StoreError or MissingDependency; then nothing changed."""
    try:
        import alembic  # noqa: F401
    except ImportError as err:
        raise MissingDependency("alembic", "controller") from err
    with _one_at_a_time:
        if address.path is not None:
            _migrate_sqlite(address.path)
        else:
            asyncio.run(_migrate_postgres(address))


def _migrate_sqlite(path: Path) -> None:
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import DBAPIError

    engine = create_engine("sqlite://", creator=lambda: _open_sqlite(path), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            layout = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if layout > THIS_LAYOUT:
                raise StoreError(f"{path}: schema version {layout}, this program knows {THIS_LAYOUT}: update it or use another file")
            upgrade(connection, str(path), old_layout=layout == OLD_LAYOUT)
            connection.exec_driver_sql(f"PRAGMA user_version={THIS_LAYOUT}")
            connection.commit()
    except (DBAPIError, sqlite3.Error) as err:
        cause = err.orig if isinstance(err, DBAPIError) else err
        raise StoreError(f"{path}: expected a database of this controller: {cause}. Move it away to start a new one") from err
    finally:
        engine.dispose()


def _open_sqlite(path: Path) -> sqlite3.Connection:
    """Several programs may turn a new file to write-ahead logging at once, and SQLite then does not wait by itself."""
    from cloud_sync.controller.engine import prepare_sqlite

    deadline = time.monotonic() + _LOCK_S
    while True:
        connection = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_S)
        try:
            prepare_sqlite(connection)
        except sqlite3.OperationalError as err:
            connection.close()
            if "locked" not in str(err) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        except BaseException:
            connection.close()
            raise
        else:
            return connection


async def _migrate_postgres(address: Address) -> None:
    from sqlalchemy import NullPool
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import create_async_engine

    from cloud_sync.controller.postgres import connect

    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: connect(address), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            await connection.run_sync(upgrade, address.shown)
    except DBAPIError as err:
        raise StoreError(f"{address.shown}: cannot bring the tables to this program's schema: {err.orig}") from err
    finally:
        await engine.dispose()


def upgrade(connection: Connection, name: str, old_layout: bool = False) -> None:
    """Runs what is missing, in the caller's transaction. Raises StoreError for a schema that this program does not know."""
    from alembic import command
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = configuration(connection)
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if unknown := sorted(set(found) - known):
        newest = scripts.get_current_head()
        raise StoreError(f"{name}: schema {', '.join(unknown)[:80]}, this program knows up to {newest}: update it or use another database")
    if old_layout and not found:
        command.stamp(config, FIRST)
    command.upgrade(config, "head")


def configuration(connection: Any) -> Config:
    """Alembic's settings for this folder and an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
