"""Routes by which gateways come in, stay in and are put out: join, renew, join tokens, revocation."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, Field

from cloud_sync.controller import enrolment
from cloud_sync.controller.api.auth import Approver, ContextOf, Guesses, Operator, Viewer
from cloud_sync.controller.authority import MAX_REQUEST_BYTES, Issued
from cloud_sync.controller.context import Context
from cloud_sync.controller.enrolment import EnrolmentRefused, Refusal
from cloud_sync.controller.serving import client_certificate

router = APIRouter()

_STATUS = {
    Refusal.TOKEN: 401,
    Refusal.REQUEST: 422,
    Refusal.NAME_TAKEN: 409,
    Refusal.REVOKED: 403,
    Refusal.UNKNOWN: 401,
    Refusal.EXPIRED: 403,
}
Csr = Annotated[str, Field(max_length=MAX_REQUEST_BYTES, description="PKCS #10 in PEM, ECDSA P-256; the common name is the gateway's")]


class JoinRequest(BaseModel):
    """What a gateway comes with: the token that it was given, and a request for the key that it has made itself."""

    token: Annotated[str, Field(max_length=256)]
    csr: Csr


class RenewRequest(BaseModel):
    """Empty for a new certificate of the same key; with `csr` for a new key."""

    csr: Csr | None = None


class Certificate(BaseModel):
    """A gateway's certificate (PEM) and the authority's."""

    certificate: str
    ca: str
    not_before_wall_ns: int
    not_after_wall_ns: int


class BrokerAddress(BaseModel):
    """Where the broker is. Without `host`: where the API is."""

    host: str | None
    port: int


class Joined(Certificate):
    """Everything that a gateway needs to speak to its controller from now on."""

    gateway: str
    tenant: str
    trust_root: Annotated[str, Field(description="root metadata that signs deployments, as text")]
    broker: BrokerAddress


class NewJoinToken(BaseModel):
    """A join token to make."""

    gateway: Annotated[str, Field(max_length=64, description="the only name that may join with it; empty: any free one")] = ""
    hours: Annotated[float, Field(gt=0, le=2160)] = 24.0
    rejoin: Annotated[bool, Field(description="the name may be taken from a gateway that has it")] = False


class MadeJoinToken(BaseModel):
    """A join token. Its text is not kept: this is the only time it is shown."""

    id: str
    token: str
    gateway: str
    expires_wall_ns: int
    url: str


class Revocation(BaseModel):
    """Why, for the audit log."""

    reason: Annotated[str, Field(max_length=1000)] = ""


async def _gateway(request: Request, context: ContextOf) -> str:
    """A dependency that lets in gateways with a valid certificate: 401 without, 403 with a revoked or expired one."""
    try:
        return await enrolment.authenticate(context, _shown(request))
    except EnrolmentRefused as err:
        raise _http(err) from err


Gateway = Annotated[str, Depends(_gateway)]


@router.get("/v1/ca", tags=["gateways"], summary="the authority's certificate (PEM); a join token pins it")
async def get_ca(context: ContextOf) -> dict[str, str]:
    return {"ca": context.authority.pem, "sha256": context.authority.fingerprint}


@router.post("/v1/join", tags=["gateways"], summary="a certificate for a gateway that has a token")
async def post_join(wanted: JoinRequest, request: Request, context: ContextOf) -> Joined:
    address, guesses = request.client.host if request.client else "", _guesses(request)
    if guesses.blocked(address, context.now_ns()):
        raise HTTPException(429, "too many wrong tokens from this address; wait a minute", {"Retry-After": "60"})
    try:
        issued = await enrolment.join(context, wanted.token, wanted.csr, address)
    except EnrolmentRefused as err:
        if err.guessed:
            guesses.wrong(address, context.now_ns())
        raise _http(err) from err
    broker = context.settings.broker
    return Joined(
        **_certificate(context, issued),
        gateway=issued.name,
        tenant=context.tenant,
        trust_root=context.repository.trust_root.read_text(),
        broker=BrokerAddress(host=broker.public_host or None, port=broker.port),
    )


@router.post("/v1/renew", tags=["gateways"], summary="a new certificate for the gateway that shows its present one")
async def post_renew(wanted: RenewRequest, request: Request, context: ContextOf) -> Certificate:
    address = request.client.host if request.client else ""
    try:
        issued = await enrolment.renew(context, _shown(request), wanted.csr, address)
    except EnrolmentRefused as err:
        raise _http(err) from err
    return Certificate(**_certificate(context, issued))


@router.get("/v1/whoami", tags=["gateways"], summary="the gateway whose certificate is shown")
async def get_whoami(gateway: Gateway) -> dict[str, str]:
    return {"gateway": gateway}


@router.post("/v1/join-tokens", tags=["fleet"], status_code=201, summary="make a token with which one gateway may join")
async def post_join_token(wanted: NewJoinToken, context: ContextOf, who: Operator) -> MadeJoinToken:
    made = await enrolment.create_token(context, who.name, wanted.gateway, wanted.hours, rejoin=wanted.rejoin)
    return MadeJoinToken(id=made.id, token=made.text, gateway=made.gateway, expires_wall_ns=made.expires_wall_ns, url=context.settings.url)


@router.get("/v1/join-tokens", tags=["fleet"], summary="every join token, without its secret")
async def get_join_tokens(context: ContextOf, _who: Operator) -> list[dict[str, Any]]:
    return await enrolment.list_tokens(context)


@router.delete("/v1/join-tokens/{token_id}", tags=["fleet"], status_code=204, summary="end a join token that was not used")
async def delete_join_token(token_id: str, context: ContextOf, who: Operator) -> None:
    await enrolment.withdraw_token(context, who.name, token_id)


@router.get("/v1/gateways/{gateway}/certificates", tags=["fleet"], summary="every certificate that a gateway was given")
async def get_certificates(gateway: str, context: ContextOf, _who: Viewer) -> list[dict[str, Any]]:
    return await enrolment.certificates_of(context, gateway)


@router.post("/v1/gateways/{gateway}/revoke", tags=["fleet"], summary="end every certificate of a gateway at once")
async def post_revoke(gateway: str, wanted: Revocation, context: ContextOf, who: Approver) -> dict[str, Any]:
    done = await enrolment.revoke(context, who.name, gateway, wanted.reason)
    return {"gateway": gateway, "revoked": list(done.serials), "broker": done.broker}


def _shown(request: Request) -> bytes:
    shown = client_certificate(request)
    if shown is None:
        raise HTTPException(401, "expected a gateway's certificate in TLS; there is none")
    return shown


def _guesses(request: Request) -> Guesses:
    guesses: Guesses = request.app.state.guesses
    return guesses


def _certificate(context: Context, issued: Issued) -> dict[str, Any]:
    times = {"not_before_wall_ns": issued.not_before_wall_ns, "not_after_wall_ns": issued.not_after_wall_ns}
    return {"certificate": issued.pem, "ca": context.authority.pem, **times}


def _http(err: EnrolmentRefused) -> HTTPException:
    return HTTPException(_STATUS[err.reason], str(err))
