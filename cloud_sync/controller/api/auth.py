"""Who is asking, and may they: bearer tokens with roles, guesses slowed down per address. Refusals are written to the audit log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cloud_sync.controller import audit
from cloud_sync.controller.context import Context
from cloud_sync.controller.tokens import Principal, Role, authenticate

_bearer = HTTPBearer(auto_error=False, description="An API token: `edge-runtime controller token`")
_MAX_GUESSES = 10
_FORGIVEN_NS = 60 * 10**9
_MAX_ADDRESSES = 4096


class Guesses:
    """Wrong tokens by address: after ten within a minute, no more are looked at."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def blocked(self, address: str, now_ns: int) -> bool:
        count, since_ns = self._seen.get(address, (0, now_ns))
        return count >= _MAX_GUESSES and now_ns - since_ns < _FORGIVEN_NS

    def wrong(self, address: str, now_ns: int) -> None:
        count, since_ns = self._seen.pop(address, (0, now_ns))
        if now_ns - since_ns >= _FORGIVEN_NS:
            count, since_ns = 0, now_ns
        self._seen[address] = (count + 1, since_ns)
        while len(self._seen) > _MAX_ADDRESSES:
            self._seen.popitem(last=False)


def context_of(request: Request) -> Context:
    """The controller's context, as `create_app` keeps it."""
    context: Context = request.app.state.context
    return context


ContextOf = Annotated[Context, Depends(context_of)]


def require(role: Role) -> Callable[..., Awaitable[Principal]]:
    """A dependency that lets in bearers of `role` or more: 401 without a valid token, 403 with too small a role, 429 when guessing."""

    async def admitted(
        request: Request, context: ContextOf, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Principal:
        address = request.client.host if request.client else ""
        guesses: Guesses = request.app.state.guesses
        now_ns = context.now_ns()
        if guesses.blocked(address, now_ns):
            raise HTTPException(429, "too many wrong tokens from this address; wait a minute", {"Retry-After": "60"})
        principal = None
        if credentials is not None:
            async with context.database.engine.connect() as connection:
                principal = await authenticate(connection, credentials.credentials, now_ns)
        if principal is None:
            if credentials is not None:
                guesses.wrong(address, now_ns)
            raise HTTPException(401, "expected an API token: Authorization: Bearer era1...", {"WWW-Authenticate": "Bearer"})
        if not principal.role.includes(role):
            await _note_refusal(context, principal, request, role)
            raise HTTPException(403, f"`{principal.name}` is a {principal.role}; this needs the role {role}")
        return principal

    return admitted


Viewer = Annotated[Principal, Depends(require(Role.VIEWER))]
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]
Approver = Annotated[Principal, Depends(require(Role.APPROVER))]


async def _note_refusal(context: Context, principal: Principal, request: Request, role: Role) -> None:
    async with context.database.engine.begin() as connection:
        detail = {"needs": role.value, "has": principal.role.value}
        await audit.append(connection, principal.name, "refused", f"{request.method} {request.url.path}"[:160], detail)
