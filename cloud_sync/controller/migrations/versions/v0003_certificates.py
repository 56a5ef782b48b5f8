"""Certificates are kept whole and by their key, so that a lost answer can be given again; a token may allow a name to be taken anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("certificates", sa.Column("key_sha256", sa.String(64), nullable=False, server_default=""))
    op.add_column("certificates", sa.Column("pem", sa.Text, nullable=False, server_default=""))
    op.add_column("join_tokens", sa.Column("rejoin", sa.Boolean, nullable=False, server_default="0"))
