"""The controller's own tables: deployments, artifacts, tokens, certificates and audit log; and what it knows of a gateway itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _gateways()
    _deployments()
    _tokens()
    _certificates()
    _audit()
    _records()


def _gateways() -> None:
    op.add_column("gateways", sa.Column("site", sa.String(64), nullable=False, server_default=""))
    op.add_column("gateways", sa.Column("labels", sa.Text, nullable=False, server_default="{}"))
    op.add_column("gateways", sa.Column("joined_wall_ns", sa.BigInteger, nullable=False, server_default="0"))


def _records() -> None:
    op.create_index("records_by_time", "records", ["tenant", "gateway", "wall_ns"])
    bulk = sa.text("kind <> 'r'")
    op.create_index("records_by_kind", "records", ["tenant", "gateway", "kind", "wall_ns"], sqlite_where=bulk, postgresql_where=bulk)
    op.create_table(
        "boots",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("gateway", sa.String(64), primary_key=True),
        sa.Column("boot", sa.String(64), primary_key=True),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("first_wall_ns", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO boots SELECT tenant, gateway, boot, count(*), min(seq), max(seq), min(received_wall_ns) FROM records "
        "GROUP BY tenant, gateway, boot"
    )


def _deployments() -> None:
    op.create_table(
        "documents",
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_wall_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "desired",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("gateway", sa.String(64), primary_key=True),
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("expires_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False, server_default="offered"),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("phase_wall_ns", sa.BigInteger, nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(["digest"], ["documents.digest"]),
    )
    op.create_table(
        "artifacts",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(64), nullable=False, server_default=""),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_wall_ns", sa.BigInteger, nullable=False),
    )


def _tokens() -> None:
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False, server_default="*"),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("created_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("revoked_wall_ns", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("gateway", sa.String(64), nullable=False, server_default=""),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("used_wall_ns", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("used_by", sa.String(64), nullable=False, server_default=""),
    )


def _certificates() -> None:
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("gateway", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("not_before_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("not_after_wall_ns", sa.BigInteger, nullable=False),
        sa.Column("revoked_wall_ns", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
    )
    op.create_index("certificates_by_gateway", "certificates", ["tenant", "gateway"])


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("wall_ns", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(160), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
