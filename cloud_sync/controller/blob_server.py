"""Answers gateways that pull files: signed metadata, models, documents. Nothing else of the disk, and no more than each may ask for.

A request is answered piece by piece at QoS 0; one over the gateway's budget is dropped, and asked for again. It reads in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from cloud_sync.blobs import VERSION, Piece, PieceRequest, decode_request, encode
from cloud_sync.controller.schema import documents
from cloud_sync.controller.signing import Repository
from cloud_sync.partial import PIECE_BYTES
from cloud_sync.topics import GatewayTopics, parse_uplink
from edge_runtime.errors import InputError, TransportError
from edge_runtime.ports import TransportSession

_log = logging.getLogger(__name__)
_DOCUMENT = re.compile(r"documents/([0-9a-f]{64})")
_BYTES_PER_S = 32 * 1024 * 1024
_BURST_BYTES = 16 * 1024 * 1024
_MAX_GATEWAYS = 16_384
_MAX_WAITING = 1024


class Budget:
    """Bytes that each gateway may still ask for now."""

    def __init__(self, bytes_per_s: float, burst: float) -> None:
        self._rate, self._burst = bytes_per_s, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, gateway: str, size: int, now_s: float) -> bool:
        """Whether it may; then it is spent."""
        left, at = self._left.pop(gateway, (self._burst, now_s))
        left = min(self._burst, left + (now_s - at) * self._rate)
        allowed = left >= size
        self._left[gateway] = (left - size if allowed else left, now_s)
        while len(self._left) > _MAX_GATEWAYS:
            self._left.popitem(last=False)
        return allowed


class BlobServer:
    """Serves one session at a time: `receive` takes requests, `run` answers them."""

    def __init__(self, repository: Repository, engine: AsyncEngine, tenant: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self._repository = repository
        self._engine = engine
        self._tenant = tenant
        self._now_s = now_s
        self._budget = Budget(_BYTES_PER_S, _BURST_BYTES)
        self._waiting: asyncio.Queue[tuple[GatewayTopics, PieceRequest]] = asyncio.Queue(_MAX_WAITING)
        self.served = 0
        self.refused = 0

    def receive(self, topic: str, payload: bytes) -> None:
        """One up/blob/req. Never raises."""
        try:
            origin = parse_uplink(topic)
            topics = GatewayTopics(origin.tenant, origin.gateway)
            request = decode_request(payload)
        except InputError as err:
            self.refused += 1
            _log.debug("blob_request_refused topic=%r reason=%s", topic[:200], err)
            return
        if self._waiting.full() or not self._budget.take(topics.root, request.count * PIECE_BYTES, self._now_s()):
            self.refused += 1
            return
        self._waiting.put_nowait((topics, request))

    async def run(self, session: TransportSession) -> None:
        """Answers for ever; ends by cancellation or with the session's TransportError."""
        while True:
            topics, request = await self._waiting.get()
            for piece in await self._pieces(request):
                try:
                    await session.publish(topics.blob(request.sid), encode(piece), qos=0)
                except TransportError:
                    if session.max_packet_bytes > 2 * PIECE_BYTES:
                        raise
            self.served += request.count

    async def _pieces(self, request: PieceRequest) -> list[Piece]:
        try:
            if match := _DOCUMENT.fullmatch(request.name):
                return _cut(request, await self._document(match[1]))
            return await asyncio.to_thread(self._read, request)
        except (InputError, FileNotFoundError):
            return [Piece(VERSION, request.name, error="there is no such file here")]

    async def _document(self, digest: str) -> bytes:
        async with self._engine.connect() as connection:
            text = await connection.scalar(select(documents.c.text).where(documents.c.digest == f"sha256:{digest}"))
        if text is None:
            raise FileNotFoundError(digest)
        return str(text).encode()

    def _read(self, request: PieceRequest) -> list[Piece]:
        with self._repository.blob(request.name).open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            file.seek(request.first * PIECE_BYTES)
            data = file.read(request.count * PIECE_BYTES)
        return _pieces(request, data, total)


def _cut(request: PieceRequest, whole: bytes) -> list[Piece]:
    start = request.first * PIECE_BYTES
    return _pieces(request, whole[start : start + request.count * PIECE_BYTES], len(whole))


def _pieces(request: PieceRequest, data: bytes, total: int) -> list[Piece]:
    """The pieces that `data`, which begins at the first one asked for, holds."""
    offsets = range(0, max(1, len(data)), PIECE_BYTES)
    return [
        Piece(VERSION, request.name, request.first + index, total, data[offset : offset + PIECE_BYTES])
        for index, offset in enumerate(offsets)
    ]
