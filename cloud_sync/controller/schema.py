"""The controller's tables, for SQLite and PostgreSQL alike. Definitions only: `engine` opens a database and migrates it.

Times are wall clock nanoseconds. Documents and states are kept as the bytes or text that came, so that a signature over them holds.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKeyConstraint, Index, Integer, LargeBinary, MetaData, String, Table, Text, text

metadata = MetaData()

_ID = String(64)
_NS = BigInteger
_AUTO = BigInteger().with_variant(Integer, "sqlite")


def _who() -> tuple[Column[str], Column[str]]:
    return Column("tenant", _ID, primary_key=True), Column("gateway", _ID, primary_key=True)


gateways = Table(
    "gateways",
    metadata,
    *_who(),
    Column("boot", _ID, nullable=False, server_default=""),
    Column("online", Boolean, nullable=False, server_default="0"),
    Column("version", _ID, nullable=False, server_default=""),
    Column("status_wall_ns", _NS, nullable=False, server_default="0"),
    Column("state", Text, nullable=False, server_default="{}"),
    Column("state_boot", _ID, nullable=False, server_default=""),
    Column("state_seq", _NS, nullable=False, server_default="0"),
    Column("state_wall_ns", _NS, nullable=False, server_default="0"),
    Column("duplicates", _NS, nullable=False, server_default="0"),
    Column("site", _ID, nullable=False, server_default=""),
    Column("labels", Text, nullable=False, server_default="{}"),
    Column("joined_wall_ns", _NS, nullable=False, server_default="0"),
)
"""One row per gateway heard of or joined. `state` is the newest up/state as JSON."""

records = Table(
    "records",
    metadata,
    *_who(),
    Column("boot", _ID, primary_key=True),
    Column("seq", _NS, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("mono_ns", _NS, nullable=False),
    Column("wall_ns", _NS, nullable=False),
    Column("wall_err_ns", _NS, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("received_wall_ns", _NS, nullable=False),
    sqlite_with_rowid=False,
)
"""Every record, once: the primary key is what makes delivery exactly-once."""

boots = Table(
    "boots",
    metadata,
    *_who(),
    Column("boot", _ID, primary_key=True),
    Column("rows", _NS, nullable=False),
    Column("first_seq", _NS, nullable=False),
    Column("last_seq", _NS, nullable=False),
    Column("first_wall_ns", _NS, nullable=False),
    sqlite_with_rowid=False,
)
"""What `records` holds of every boot of a gateway, kept with every commit, so that nobody has to count. `first_wall_ns`: received."""

quarantine = Table(
    "quarantine",
    metadata,
    *_who(),
    Column("boot", _ID, primary_key=True),
    Column("first_seq", _NS, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("received_wall_ns", _NS, nullable=False),
    sqlite_with_rowid=False,
)

counters = Table("counters", metadata, Column("name", _ID, primary_key=True), Column("value", _NS, nullable=False), sqlite_with_rowid=False)

documents = Table(
    "documents",
    metadata,
    Column("digest", String(71), primary_key=True),
    Column("text", Text, nullable=False),
    Column("created_by", _ID, nullable=False),
    Column("created_wall_ns", _NS, nullable=False),
)
"""Deployments as they were pushed, by `sha256:<hex>` of their text."""

desired = Table(
    "desired",
    metadata,
    *_who(),
    Column("revision", _NS, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False),
    Column("expires_wall_ns", _NS, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("created_by", _ID, nullable=False),
    Column("created_wall_ns", _NS, nullable=False),
    Column("phase", String(16), nullable=False, server_default="offered"),
    Column("reason", Text, nullable=False, server_default=""),
    Column("phase_wall_ns", _NS, nullable=False, server_default="0"),
    ForeignKeyConstraint(["digest"], ["documents.digest"]),
)
"""Every revision ever offered to a gateway; the highest is the desired one. `message` is the signed dn/desired payload.

`phase`: offered, then what the gateway reported of it (probation, confirmed, reverted, refused), or superseded.
"""

artifacts = Table(
    "artifacts",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", _NS, nullable=False),
    Column("model", _ID, nullable=False, server_default=""),
    Column("version", _NS, nullable=False, server_default="0"),
    Column("created_by", _ID, nullable=False),
    Column("created_wall_ns", _NS, nullable=False),
)
"""Files that gateways may fetch, such as `models/<hex of the bundle's digest>.tar`."""

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", _ID, nullable=False),
    Column("role", String(16), nullable=False),
    Column("tenant", _ID, nullable=False, server_default="*"),
    Column("secret_sha256", String(64), nullable=False),
    Column("created_wall_ns", _NS, nullable=False),
    Column("expires_wall_ns", _NS, nullable=False),
    Column("revoked_wall_ns", _NS, nullable=False, server_default="0"),
)
"""Who may use the REST API. `role`: viewer, operator, approver."""

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("tenant", _ID, nullable=False),
    Column("gateway", _ID, nullable=False, server_default=""),
    Column("created_by", _ID, nullable=False),
    Column("created_wall_ns", _NS, nullable=False),
    Column("expires_wall_ns", _NS, nullable=False),
    Column("used_wall_ns", _NS, nullable=False, server_default="0"),
    Column("used_by", _ID, nullable=False, server_default=""),
    Column("rejoin", Boolean, nullable=False, server_default="0"),
)
"""Bootstrap tokens, each for one enrolment. `gateway` empty: the gateway names itself. `rejoin`: it may take a name that is in use."""

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),
    Column("tenant", _ID, nullable=False),
    Column("gateway", _ID, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("not_before_wall_ns", _NS, nullable=False),
    Column("not_after_wall_ns", _NS, nullable=False),
    Column("revoked_wall_ns", _NS, nullable=False, server_default="0"),
    Column("reason", Text, nullable=False, server_default=""),
    Column("key_sha256", String(64), nullable=False, server_default=""),
    Column("pem", Text, nullable=False, server_default=""),
)
"""Every certificate ever given to a gateway. `key_sha256` is over its public key, so that a key is known again."""

audit = Table(
    "audit",
    metadata,
    Column("seq", _AUTO, primary_key=True, autoincrement=False),
    Column("wall_ns", _NS, nullable=False),
    Column("actor", _ID, nullable=False),
    Column("action", _ID, nullable=False),
    Column("subject", String(160), nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
"""Append-only: `hash` is over the row and the hash before it, so that a changed or missing row is seen."""

Index("records_by_time", records.c.tenant, records.c.gateway, records.c.wall_ns)
NOT_A_READING = text("kind <> 'r'")
Index(
    "records_by_kind",
    records.c.tenant,
    records.c.gateway,
    records.c.kind,
    records.c.wall_ns,
    sqlite_where=NOT_A_READING,
    postgresql_where=NOT_A_READING,
)
Index("certificates_by_gateway", certificates.c.tenant, certificates.c.gateway)
