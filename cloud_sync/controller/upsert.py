"""INSERT .. ON CONFLICT DO UPDATE, which SQLite and PostgreSQL both have and SQLAlchemy spells per dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


def upsert(
    connection: AsyncConnection, table: Table, row: Mapping[str, Any], changes: Mapping[str, Any]
) -> postgresql.Insert | sqlite.Insert:
    """Inserts `row`, or makes `changes` to the row that has its primary key. Can be given a `returning`."""
    keys = [column.name for column in table.primary_key]
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).values(dict(row)).on_conflict_do_update(index_elements=keys, set_=dict(changes))
    return sqlite.insert(table).values(dict(row)).on_conflict_do_update(index_elements=keys, set_=dict(changes))
