"""Which gateways there are and by what they are known: one-use join tokens, certificates, renewal, revocation. In the database; no HTTP.

A token is used up in the transaction that records the certificate, and the same key may ask again with it: a gateway that was killed,
or never got the answer, is given the same certificate once more. Every refusal is audited.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_sync.controller import audit, mosquitto
from cloud_sync.controller.authority import (
    NAME_RULE,
    Issued,
    Request,
    certificate_key,
    is_name,
    moment,
    read_certificate,
    read_request,
)
from cloud_sync.controller.context import Context
from cloud_sync.controller.schema import certificates, gateways, join_tokens
from cloud_sync.controller.settings import RESERVED
from cloud_sync.controller.signing.files import locked, replace
from cloud_sync.controller.upsert import upsert
from edge_runtime.errors import InputError

_log = logging.getLogger(__name__)
_PREFIX = "ert1"
_ID_BYTES = 6
_SECRET_BYTES = 24
_MAX_TOKEN = 256
_MAX_HOURS = 24 * 90
_HOUR_NS = 3600 * 10**9
_DAY_NS = 24 * _HOUR_NS
_FRESH = 0.5
"""A certificate with more than this share of its life left is given again rather than a new one."""


class Refusal(StrEnum):
    """Why a gateway was not given a certificate."""

    TOKEN = "token"  # noqa: S105 - unknown, wrong, expired, used or for another gateway
    REQUEST = "request"
    NAME_TAKEN = "name_taken"
    REVOKED = "revoked"
    UNKNOWN = "unknown"
    EXPIRED = "expired"


class EnrolmentRefused(InputError):
    """A gateway that is not let in; `reason` says why, `guessed` that the secret of a token was wrong."""

    def __init__(self, reason: Refusal, message: str, *, guessed: bool = False) -> None:
        self.reason = reason
        self.guessed = guessed
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as it was made. `text` is not kept anywhere."""

    id: str
    text: str
    gateway: str
    expires_wall_ns: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a revocation did: serials that were valid until now, and what the broker made of it."""

    serials: tuple[str, ...]
    broker: str


async def create_token(context: Context, actor: str, gateway: str = "", hours: float = 24.0, *, rejoin: bool = False) -> JoinToken:
    """A token for one enrolment, of `gateway` only when given. `rejoin`: it may take a name that is in use, and ends its certificates."""
    if gateway:
        _check_name(gateway)
    if not 0 < hours <= _MAX_HOURS:
        raise InputError(f"a join token lives up to {_MAX_HOURS} hours, got {hours:g}")
    if rejoin and not gateway:
        raise InputError("a token that may take over a name must be for one gateway; name it")
    token_id, secret, now = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES), context.now_ns()
    expires = now + int(hours * _HOUR_NS)
    row = {
        "id": token_id,
        "secret_sha256": _hash(secret),
        "tenant": context.tenant,
        "gateway": gateway,
        "created_by": actor,
        "created_wall_ns": now,
        "expires_wall_ns": expires,
        "rejoin": rejoin,
    }
    async with context.database.engine.begin() as connection:
        await connection.execute(insert(join_tokens).values(row))
        await audit.append(connection, actor, "join_token", gateway or "any gateway", {"id": token_id, "hours": hours, "rejoin": rejoin})
    parts = [_PREFIX, token_id, secret, context.authority.fingerprint, *([gateway] if gateway else [])]
    return JoinToken(token_id, ".".join(parts), gateway, expires)


async def list_tokens(context: Context) -> list[dict[str, Any]]:
    """Every join token, newest first, without its secret."""
    columns = [column for column in join_tokens.c if column.name != "secret_sha256"]
    query = select(*columns).where(join_tokens.c.tenant == context.tenant).order_by(join_tokens.c.created_wall_ns.desc()).limit(1000)
    async with context.database.engine.connect() as connection:
        return [dict(row._mapping) for row in await connection.execute(query)]


async def withdraw_token(context: Context, actor: str, token_id: str) -> None:
    """Ends a token that was not used yet. Raises InputError when there is none."""
    now = context.now_ns()
    mine = (join_tokens.c.id == token_id, join_tokens.c.tenant == context.tenant, join_tokens.c.used_wall_ns == 0)
    async with context.database.engine.begin() as connection:
        done = await connection.execute(update(join_tokens).where(*mine).values(expires_wall_ns=now))
        if done.rowcount == 0:
            raise InputError(f"no unused join token has the id {token_id[:80]!r}; list them: GET /v1/join-tokens")
        await audit.append(connection, actor, "join_token_withdrawn", token_id, {})


async def join(context: Context, token: str, csr: str, address: str = "") -> Issued:
    """A certificate for the gateway and key that the request names. Raises EnrolmentRefused; that is audited with the `address`."""
    try:
        request = _read(csr)
        async with context.database.engine.begin() as connection:
            issued, freed = await _join(context, connection, token, request)
    except EnrolmentRefused as err:
        await _note_refusal(context, "join_refused", "join", err, address)
        raise
    if freed:
        await publish_revocations(context)
    return issued


async def renew(context: Context, der: bytes, csr: str | None = None, address: str = "") -> Issued:
    """A new certificate for whoever has shown this one in TLS, or the newest of its key while that is fresh. With `csr`, for a new key.

    An expired certificate is good for it within the grace period. Raises EnrolmentRefused; that is audited.
    """
    try:
        shown = read_certificate(der)
        request = _read(csr) if csr is not None else Request(shown.name, certificate_key(der), shown.key_sha256)
        async with context.database.engine.begin() as connection:
            return await _renew(context, connection, shown, request)
    except EnrolmentRefused as err:
        await _note_refusal(context, "renew_refused", "renew", err, address)
        raise


async def authenticate(context: Context, der: bytes) -> str:
    """The gateway whose certificate this is: known, neither revoked nor expired now. Raises EnrolmentRefused."""
    shown, now = read_certificate(der), context.now_ns()
    async with context.database.engine.connect() as connection:
        row = await _known(connection, context.tenant, shown)
    if row.not_after_wall_ns <= now:
        raise EnrolmentRefused(Refusal.EXPIRED, f"the certificate of `{shown.name}` has expired; renew it: POST /v1/renew")
    return shown.name


async def revoke(context: Context, actor: str, gateway: str, reason: str = "") -> Revoked:
    """Ends every certificate of a gateway at once, at the API and the broker. It decides on by itself. Raises InputError: no such."""
    now = context.now_ns()
    mine = (certificates.c.tenant == context.tenant, certificates.c.gateway == gateway)
    async with context.database.engine.begin() as connection:
        found = (await connection.execute(select(certificates.c.serial, certificates.c.revoked_wall_ns).where(*mine))).all()
        if not found:
            raise InputError(f"no gateway `{gateway[:80]}` has joined; list them: edge-runtime fleet list")
        ended = tuple(row.serial for row in found if not row.revoked_wall_ns)
        await _revoke(connection, context.tenant, ended, reason or f"revoked by {actor}", now)
        await audit.append(connection, actor, "revoke", f"{context.tenant}/{gateway}", {"serials": ended, "reason": reason[:1000]})
    return Revoked(ended, await publish_revocations(context))


async def publish_revocations(context: Context) -> str:
    """Writes the list of revoked certificates and the broker's access list from the database, and tells the broker; says how that went.

    Also to be called at start: a controller killed between a revocation and this has it in the database alone.
    """
    async with _alone(context):
        revoked, denied = await _revocations(context)
        before = context.settings.crl.read_bytes() if context.settings.crl.exists() else b""
        replace(context.settings.crl, context.authority.revocations(revoked, moment(context.now_ns()), before))
        mosquitto.write_access_list(context.settings, denied)
        outcome = mosquitto.reload(context.settings)
    if outcome != "reloaded":
        _log.warning("revocations_written broker=%r", outcome)
    return outcome


async def certificates_of(context: Context, gateway: str) -> list[dict[str, Any]]:
    """Every certificate that a gateway was given, newest first."""
    columns = [column for column in certificates.c if column.name != "pem"]
    mine = (certificates.c.tenant == context.tenant, certificates.c.gateway == gateway)
    query = select(*columns).where(*mine).order_by(certificates.c.not_after_wall_ns.desc()).limit(1000)
    async with context.database.engine.connect() as connection:
        return [dict(row._mapping) for row in await connection.execute(query)]


# -- joining --------------------------------------------------------------------------------------------------------------


async def _join(context: Context, connection: AsyncConnection, text: str, request: Request) -> tuple[Issued, bool]:
    """The certificate, and whether others ended for it."""
    token, now = await _token(connection, text), context.now_ns()
    if token.gateway and token.gateway != request.name:
        raise _refused_token(f"the join token is for the gateway `{token.gateway}`, not `{request.name}`")
    if token.expires_wall_ns <= now:
        raise _refused_token("the join token has expired; make another: edge-runtime fleet token")
    if token.used_wall_ns:
        return await _again(connection, token, request), False
    await connection.execute(_own_row(context, connection, request.name, now))
    ended = await _take_name(context, connection, request, now, rejoin=token.rejoin)
    used = {"used_wall_ns": now, "used_by": request.name}
    await connection.execute(update(join_tokens).where(join_tokens.c.id == token.id).values(used))
    issued = await _issue(context, connection, request, now)
    detail = {"token": token.id, "serial": issued.serial, "key": request.key_sha256, "ended": ended}
    await audit.append(connection, f"token {token.id}", "join", f"{context.tenant}/{request.name}", detail)
    return issued, token.rejoin


async def _token(connection: AsyncConnection, text: str) -> Row[Any]:
    """The token's row, locked. Raises EnrolmentRefused, the same for an unknown id and a wrong secret."""
    parts = text[:_MAX_TOKEN].split(".")
    prefix, token_id, secret = (*parts[:3], "", "", "")[:3]
    row = (await connection.execute(select(join_tokens).where(join_tokens.c.id == token_id[:64]).with_for_update())).one_or_none()
    same = hmac.compare_digest(_hash(secret), row.secret_sha256 if row else _hash(""))
    if row is None or not same or prefix != _PREFIX:
        raise _refused_token("the join token is not known here; make one: edge-runtime fleet token", guessed=True)
    return row


async def _again(connection: AsyncConnection, token: Row[Any], request: Request) -> Issued:
    """The certificate that this token and key brought already: its answer may have been lost."""
    mine = (certificates.c.tenant == token.tenant, certificates.c.gateway == token.used_by, certificates.c.key_sha256 == request.key_sha256)
    row = (await connection.execute(select(certificates).where(*mine).order_by(certificates.c.not_after_wall_ns.desc()).limit(1))).first()
    if row is None or token.used_by != request.name:
        raise _refused_token("the join token has been used already; make another: edge-runtime fleet token")
    if row.revoked_wall_ns:
        raise EnrolmentRefused(Refusal.REVOKED, f"the certificate of `{request.name}` was revoked: {row.reason}")
    return _as_issued(row)


async def _take_name(context: Context, connection: AsyncConnection, request: Request, now: int, *, rejoin: bool) -> list[str]:
    """Sees that the name is free, or frees it; returns the serials that ended. The gateway's row is locked already."""
    mine = (certificates.c.tenant == context.tenant, certificates.c.gateway == request.name)
    rows = (await connection.execute(select(certificates).where(*mine))).all()
    others = [row for row in rows if row.key_sha256 != request.key_sha256]
    revoked = any(row.revoked_wall_ns for row in rows)
    if rejoin:
        ended = [row.serial for row in others if not row.revoked_wall_ns]
        await _revoke(connection, context.tenant, ended, "another took the name by a token for it", now)
        return ended
    if others or revoked:
        raise EnrolmentRefused(
            Refusal.NAME_TAKEN,
            f"a gateway `{request.name}` has joined already{' and was revoked' if revoked else ''}; choose another --id, or let it "
            f"join anew: edge-runtime fleet token --gateway {request.name} --rejoin",
        )
    return []


async def _renew(context: Context, connection: AsyncConnection, shown: Issued, request: Request) -> Issued:
    now, limits = context.now_ns(), context.settings.certificates
    row = await _known(connection, context.tenant, shown)
    if request.name != shown.name:
        raise EnrolmentRefused(Refusal.REQUEST, f"`{shown.name}` may not ask for a certificate of `{request.name}`")
    if now > row.not_after_wall_ns + int(limits.grace_days * _DAY_NS):
        late = (now - row.not_after_wall_ns) / _DAY_NS
        raise EnrolmentRefused(
            Refusal.EXPIRED,
            f"the certificate of `{shown.name}` expired {late:.0f} days ago, over the {limits.grace_days:g} days of grace; "
            f"let it join anew: edge-runtime fleet token --gateway {shown.name} --rejoin",
        )
    newest = await _newest(connection, context.tenant, request)
    if newest is not None and newest.not_after_wall_ns - now > _FRESH * limits.days * _DAY_NS:
        return _as_issued(newest)
    issued = await _issue(context, connection, request, now)
    detail = {"shown": shown.serial, "serial": issued.serial, "expired": row.not_after_wall_ns <= now}
    await audit.append(connection, shown.name, "renew", f"{context.tenant}/{shown.name}", detail)
    return issued


async def _known(connection: AsyncConnection, tenant: str, shown: Issued) -> Row[Any]:
    """The row of a certificate that is not revoked. Raises EnrolmentRefused."""
    mine = (certificates.c.serial == shown.serial, certificates.c.tenant == tenant)
    row = (await connection.execute(select(certificates).where(*mine).with_for_update())).one_or_none()
    if row is None or row.sha256 != shown.sha256 or row.gateway != shown.name:
        raise EnrolmentRefused(Refusal.UNKNOWN, f"the certificate of `{shown.name:.64}` is not in this controller's records; join anew")
    if row.revoked_wall_ns:
        raise EnrolmentRefused(Refusal.REVOKED, f"the certificate of `{shown.name}` was revoked: {row.reason}")
    return row


async def _newest(connection: AsyncConnection, tenant: str, request: Request) -> Row[Any] | None:
    mine = (certificates.c.tenant == tenant, certificates.c.gateway == request.name, certificates.c.key_sha256 == request.key_sha256)
    valid = select(certificates).where(*mine, certificates.c.revoked_wall_ns == 0)
    return (await connection.execute(valid.order_by(certificates.c.not_after_wall_ns.desc()).limit(1))).first()


async def _issue(context: Context, connection: AsyncConnection, request: Request, now: int) -> Issued:
    issued = context.authority.issue(request.name, request.key, moment(now), context.settings.certificates.days)
    row = {name: getattr(issued, name) for name in ("serial", "sha256", "key_sha256", "not_before_wall_ns", "not_after_wall_ns", "pem")}
    await connection.execute(insert(certificates).values(row | {"tenant": context.tenant, "gateway": request.name}))
    return issued


def _own_row(context: Context, connection: AsyncConnection, name: str, now: int) -> Any:
    """Makes or touches the gateway's row, which also makes another enrolment of the same name wait."""
    row = {"tenant": context.tenant, "gateway": name, "joined_wall_ns": now}
    return upsert(connection, gateways, row, {"joined_wall_ns": now})


# -- revoking -------------------------------------------------------------------------------------------------------------


async def _revoke(connection: AsyncConnection, tenant: str, serials: Sequence[str], reason: str, now: int) -> None:
    if serials:
        mine = (certificates.c.tenant == tenant, certificates.c.serial.in_(serials), certificates.c.revoked_wall_ns == 0)
        await connection.execute(update(certificates).where(*mine).values(revoked_wall_ns=now, reason=reason[:1000]))


async def _revocations(context: Context) -> tuple[list[tuple[str, int]], list[str]]:
    """What the list must hold, and the gateways that have no certificate left that is not revoked."""
    mine = certificates.c.tenant == context.tenant
    since = context.now_ns() - _DAY_NS  # one that has expired needs no list
    listed = select(certificates.c.serial, certificates.c.revoked_wall_ns).where(
        mine, certificates.c.revoked_wall_ns > 0, certificates.c.not_after_wall_ns > since
    )
    names = select(certificates.c.gateway).where(mine).distinct()
    async with context.database.engine.connect() as connection:
        revoked = [(row.serial, row.revoked_wall_ns) for row in await connection.execute(listed)]
        every = {row.gateway for row in await connection.execute(names)}
        valid = {row.gateway for row in await connection.execute(names.where(certificates.c.revoked_wall_ns == 0))}
    return revoked, sorted(every - valid)


@asynccontextmanager
async def _alone(context: Context) -> AsyncIterator[None]:
    """One writer of the two files at a time, in this process and any other: an older reading must not overwrite a newer one."""
    lock = locked(context.settings.folder / "ca/.lock")
    await asyncio.to_thread(lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


# -- small parts ------------------------------------------------------------------------------------------------------------


def _read(csr: str) -> Request:
    try:
        request = read_request(csr)
        _check_name(request.name)
    except InputError as err:
        raise EnrolmentRefused(Refusal.REQUEST, str(err)) from err
    return request


def _check_name(name: str) -> None:
    if not is_name(name) or name in RESERVED:
        raise InputError(f"{name!r:.100} cannot be a gateway's name; expected {NAME_RULE}, and not {' or '.join(RESERVED)}")


def _refused_token(message: str, *, guessed: bool = False) -> EnrolmentRefused:
    return EnrolmentRefused(Refusal.TOKEN, message, guessed=guessed)


async def _note_refusal(context: Context, action: str, actor: str, err: EnrolmentRefused, address: str) -> None:
    async with context.database.engine.begin() as connection:
        await audit.append(connection, actor, action, address, {"reason": err.reason.value, "message": str(err)[:1000]})


def _as_issued(row: Row[Any]) -> Issued:
    return Issued(row.serial, row.gateway, row.sha256, row.key_sha256, row.not_before_wall_ns, row.not_after_wall_ns, row.pem)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
