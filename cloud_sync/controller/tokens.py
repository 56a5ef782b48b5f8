"""API tokens: `era1.<id>.<secret>`, of which only a hash is stored, and the roles that they carry.

A viewer reads, an operator also pushes and enrols, an approver also makes tokens and revokes. Nothing here knows HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_sync.controller.schema import api_tokens
from edge_runtime.errors import InputError

_PREFIX = "era1"
_ID_BYTES = 6
_SECRET_BYTES = 24
_MAX_TOKEN = 200
_MAX_NAME = 64
_DAY_NS = 86_400 * 10**9


class Role(StrEnum):
    """What a token's bearer may do; each may all that the one before may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"

    def includes(self, other: Role) -> bool:
        """Whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. `name` is what the audit log shows."""

    token_id: str
    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as it may be shown: without its secret."""

    id: str
    name: str
    role: Role
    created_wall_ns: int
    expires_wall_ns: int
    revoked_wall_ns: int


async def create_token(connection: AsyncConnection, name: str, role: Role, days: float = 365.0) -> str:
    """Makes a token and returns its text, which cannot be had again. Raises InputError for a name that cannot be shown."""
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise InputError(f"a token's name has 1 to {_MAX_NAME} printable characters, got {name[:80]!r}")
    if not 0 < days <= 3650:
        raise InputError(f"a token lives up to 3650 days, got {days:g}")
    token_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    now = time.time_ns()
    row = {
        "id": token_id,
        "name": name,
        "role": role.value,
        "secret_sha256": _hash(secret),
        "created_wall_ns": now,
        "expires_wall_ns": now + int(days * _DAY_NS),
    }
    await connection.execute(insert(api_tokens).values(row))
    return f"{_PREFIX}.{token_id}.{secret}"


async def authenticate(connection: AsyncConnection, text: str, now_wall_ns: int) -> Principal | None:
    """Who bears this token, or None when it is malformed, unknown, wrong, expired or revoked. Takes equally long for each."""
    prefix, _, rest = text[:_MAX_TOKEN].partition(".")
    token_id, _, secret = rest.partition(".")
    row = (await connection.execute(select(api_tokens).where(api_tokens.c.id == token_id))).one_or_none()
    same = hmac.compare_digest(_hash(secret), row.secret_sha256 if row else _hash(""))
    if row is None or not same or prefix != _PREFIX or row.revoked_wall_ns or row.expires_wall_ns <= now_wall_ns:
        return None
    return Principal(row.id, row.name, Role(row.role))


async def revoke_token(connection: AsyncConnection, token_id: str, now_wall_ns: int) -> None:
    """Ends a token at once. Raises InputError when there is none with this id."""
    done = await connection.execute(update(api_tokens).where(api_tokens.c.id == token_id).values(revoked_wall_ns=now_wall_ns))
    if done.rowcount == 0:
        raise InputError(f"no token has the id {token_id[:80]!r}; list them: GET /v1/tokens")


async def list_tokens(connection: AsyncConnection) -> Sequence[TokenInfo]:
    """Every token, newest first."""
    rows = await connection.execute(select(api_tokens).order_by(api_tokens.c.created_wall_ns.desc()))
    return [TokenInfo(r.id, r.name, Role(r.role), r.created_wall_ns, r.expires_wall_ns, r.revoked_wall_ns) for r in rows]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
