"""Puts the REST API together. Every answer is JSON; every problem is `{"error": ...}` with a status that says whose it is."""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_sync.controller.api import enrolment, fleet, operators
from cloud_sync.controller.api.auth import Guesses
from cloud_sync.controller.context import Context
from cloud_sync.controller.deployments import Conflict
from cloud_sync.controller.metrics import ApiRequests
from edge_runtime import __version__
from edge_runtime.errors import ConfigError, EdgeRuntimeError, InputError

_log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 2 * 1024 * 1024


def create_app(context: Context) -> FastAPI:
    """The API over one controller's context. Its description is at /openapi.json, for people at /docs."""
    app = FastAPI(title="edge-runtime controller", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.context = context
    app.state.guesses = Guesses()
    app.include_router(fleet.router)
    app.include_router(operators.router)
    app.include_router(enrolment.router)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(EdgeRuntimeError, _failed)
    app.state.requests = ApiRequests()
    app.add_middleware(Counted, requests=app.state.requests)
    app.add_middleware(BodyLimit, max_bytes=_MAX_BODY_BYTES)
    return app


class Counted:
    """Counts every request by method, route and status, and how long it took."""

    def __init__(self, app: ASGIApp, requests: ApiRequests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "")
            self._requests.observe(scope["method"], route, status, time.monotonic() - begun)


class BodyLimit:
    """Refuses a request whose body is larger than the limit, whatever it declares, before it is kept in memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise HTTPException(413, f"a request has at most {self._max_bytes} bytes")
            return message

        await self._app(scope, limited, send)


async def _refused(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, StarletteHTTPException)
    return JSONResponse({"error": err.detail}, err.status_code, dict(err.headers or {}))


async def _malformed(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, RequestValidationError)
    problems = [{"key": ".".join(map(str, found["loc"][1:])), "message": found["msg"]} for found in err.errors()]
    return JSONResponse({"error": "the request is not what was expected", "problems": problems}, 422)


async def _failed(_request: Request, err: Exception) -> JSONResponse:
    """The product's own errors: the caller's fault is 4xx with every problem listed, anything else 503."""
    answer: dict[str, Any] = {"error": str(err)}
    if isinstance(err, ConfigError):
        answer["problems"] = [{"line": p.line, "key": p.key, "message": p.message} for p in err.problems]
    if isinstance(err, Conflict):
        return JSONResponse(answer, 409)
    if isinstance(err, InputError):
        return JSONResponse(answer, 422)
    _log.error("request failed: %s", err)
    return JSONResponse(answer, 503)
