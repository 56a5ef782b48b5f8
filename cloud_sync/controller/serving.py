"""Serves the REST API over HTTPS (uvicorn). A client may show a certificate of the controller's authority; routes find it in the request.

An expired certificate passes TLS, for a gateway that was away too long must be able to renew: `enrolment` judges its time.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from cloud_sync.controller.settings import Settings
from edge_runtime.errors import MissingDependency

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as err:
    raise MissingDependency("uvicorn", "controller") from err

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python does not name
_SHOWN = "edge_runtime.client_certificate"


def server(app: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Server:
    """A server that is not started. `options` go to uvicorn; signals are its caller's unless `serve` is what is run."""
    config: dict[str, Any] = {
        "host": settings.api.host or None,
        "port": settings.api.port,
        "http": CertificateProtocol,
        "ws": "none",
        "lifespan": "off",
        "ssl_certfile": settings.server_cert,
        "ssl_keyfile": settings.server_key,
        "server_header": False,
        "access_log": False,
        "log_config": None,
        "timeout_keep_alive": 15,
        "limit_concurrency": 1000,
        "h11_max_incomplete_event_size": 64 * 1024,
    }
    return uvicorn.Server(_Config(tls_context(settings), app, **(config | options)))


def tls_context(settings: Settings) -> ssl.SSLContext:
    """TLS >= 1.2 with the server's certificate; a client's is optional and must be of this authority, its times apart."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.server_cert, settings.server_key)
    context.load_verify_locations(settings.ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    context.options |= ssl.OP_NO_TICKET  # a resumed session would show no certificate
    context.num_tickets = 0
    return context


def client_certificate(request: HTTPConnection) -> bytes | None:
    """The certificate (DER) that the client of this connection has shown and proved to hold the key of, or None."""
    shown = request.scope.get("extensions", {}).get(_SHOWN)
    return shown if isinstance(shown, bytes) else None


class _Config(uvicorn.Config):
    """uvicorn's settings with a TLS context that is made already."""

    def __init__(self, context: ssl.SSLContext, app: ASGIApp, **options: Any) -> None:
        super().__init__(app, **options)
        self._context = context

    def load(self) -> None:
        super().load()
        self.ssl = self._context


class CertificateProtocol(H11Protocol):
    """HTTP/1.1 whose requests carry the certificate that the TLS connection was made with."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self.app = _Shown(self.app, tls.getpeercert(binary_form=True) if tls is not None else None)


class _Shown:
    def __init__(self, app: Any, certificate: bytes | None) -> None:
        self._app = app
        self._certificate = certificate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), _SHOWN: self._certificate}
        await self._app(scope, receive, send)
