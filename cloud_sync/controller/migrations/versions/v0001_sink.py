"""The tables of the first sinks: records, gateways, quarantine and counters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "records",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("gateway", sa.String(64), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("mono_ns", sa.BigInteger, nullable=False),
        sa.Column("wall_ns", sa.BigInteger, nullable=False),
        sa.Column("wall_err_ns", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("received_wall_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "gateway", "boot", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "gateways",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("gateway", sa.String(64), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False, server_default=""),
        sa.Column("online", sa.Boolean, nullable=False, server_default="0"),
        sa.Column("version", sa.String(64), nullable=False, server_default=""),
        sa.Column("status_wall_ns", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("state", sa.Text, nullable=False, server_default="{}"),
        sa.Column("state_boot", sa.String(64), nullable=False, server_default=""),
        sa.Column("state_seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("state_wall_ns", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("duplicates", sa.BigInteger, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("tenant", "gateway"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quarantine",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("gateway", sa.String(64), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("received_wall_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "gateway", "boot", "first_seq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
