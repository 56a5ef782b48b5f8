"""Files pulled over MQTT in numbered pieces: what travels, and a download that goes on where an earlier one ended (`partial`).

The gateway asks for pieces (`up/blob/req`, QoS 0) and gets each in a message of its own (`dn/blob/{sid}`, QoS 0); what does not come is
asked for again. Knows nothing of what the files mean; the declared size bounds everything.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import msgspec

from cloud_sync.partial import MIN_RATE, PIECE_BYTES, SLACK_S, PartialFile, count_pieces, piece_length, unavailable
from cloud_sync.topics import GatewayTopics
from cloud_sync.trust import Artifact, blob_limit
from edge_runtime.errors import InputError
from edge_runtime.ports import TransportSession

VERSION = 1
MAX_PIECES = 64  # in one request
MAX_REQUEST_BYTES = 1024
WINDOW = 16
_PATIENCE_S = 2.0
_STALL_S = 30.0

Name = Annotated[str, msgspec.Meta(max_length=160)]
Sid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8,32}$")]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class PieceRequest(msgspec.Struct, frozen=True):
    """Payload of up/blob/req: `count` pieces of a file from number `first` on, to be sent to dn/blob/`sid`."""

    v: int
    sid: Sid
    name: Name
    first: Number
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PIECES)]


class Piece(msgspec.Struct, frozen=True):
    """Payload of dn/blob/{sid}: one piece of a file of `total_bytes`, or why there is none."""

    v: int
    name: Name
    piece: Number = 0
    total_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    data: bytes = b""
    error: Annotated[str, msgspec.Meta(max_length=300)] = ""


_pack = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(PieceRequest)
_pieces = msgspec.msgpack.Decoder(Piece)


def encode(message: PieceRequest | Piece) -> bytes:
    return _pack.encode(message)


def decode_request(payload: bytes) -> PieceRequest:
    """One up/blob/req payload. Raises InputError."""
    if len(payload) > MAX_REQUEST_BYTES:
        raise InputError(f"a request of {len(payload)} bytes, at most {MAX_REQUEST_BYTES}")
    try:
        request = _requests.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise InputError(f"a request that cannot be read: {err}") from err
    if request.v != VERSION:
        raise InputError(f"a request of version {request.v}, this program knows {VERSION}")
    return request


def decode_piece(payload: bytes) -> Piece:
    """One dn/blob payload. Raises InputError."""
    try:
        piece = _pieces.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise InputError(f"a piece that cannot be read: {err}") from err
    if piece.v != VERSION or len(piece.data) > PIECE_BYTES:
        raise InputError(f"expected a piece of version {VERSION} with up to {PIECE_BYTES} bytes")
    return piece


class Puller:
    """Fetches files over one session, once started. `max_bytes_per_s` 0: no limit."""

    def __init__(
        self,
        session: TransportSession,
        topics: GatewayTopics,
        *,
        window: int = WINDOW,
        patience_s: float = _PATIENCE_S,
        stall_s: float = _STALL_S,
        slack_s: float = SLACK_S,
        max_bytes_per_s: int = 0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._topics = topics
        self._window = window
        self._patience_s = patience_s
        self._stall_s = stall_s
        self._slack_s = slack_s
        self._rate = max_bytes_per_s
        self._sleep = sleep
        self._streams: dict[str, _Stream] = {}
        self.requested = 0
        self.ignored = 0

    async def start(self) -> None:
        """Subscribes to every answer that this gateway may get."""
        await self._session.subscribe(self._topics.blob("+"), self._receive, qos=0)

    def _receive(self, topic: str, payload: bytes) -> None:
        stream = self._streams.get(topic.rpartition("/")[2])
        if stream is None or not stream.offer(payload):
            self.ignored += 1

    async def fetch_small(self, name: str) -> bytes:
        """A metadata or document blob, in memory. Raises FileNotFoundError when the controller has none, DeploymentRefused."""
        limit = blob_limit(name)
        kept: dict[int, bytes] = {}

        async def take(piece: Piece) -> None:
            kept[piece.piece] = piece.data

        with _Stream(self, name) as stream:
            total = await stream.size(limit, take)
            await stream.pull(set(range(count_pieces(total))) - set(kept), total, take)
        return b"".join(kept[number] for number in sorted(kept))

    async def fetch(self, artifact: Artifact, folder: Path) -> Path:
        """A signed file into `folder`, going on where an earlier attempt ended; checked by block and as a whole.

        Raises DeploymentRefused(MODEL_UNAVAILABLE | NO_SPACE), with what was fetched kept for the next time.
        """

        async def take(piece: Piece) -> None:
            await part.take(piece.piece, piece.data)

        with _Stream(self, artifact.name) as stream, PartialFile(artifact, folder) as part:
            while missing := part.missing():
                await stream.pull(missing, artifact.size_bytes, take)
                part.check()
            return await part.finish()


class _Stream:
    """The answers to one file's requests."""

    def __init__(self, puller: Puller, name: str) -> None:
        self._puller = puller
        self._name = name
        self._sid = secrets.token_hex(8)
        self._arrived: asyncio.Queue[Piece] = asyncio.Queue(4 * MAX_PIECES)

    def __enter__(self) -> _Stream:
        self._puller._streams[self._sid] = self
        return self

    def __exit__(self, *_: object) -> None:
        del self._puller._streams[self._sid]

    def offer(self, payload: bytes) -> bool:
        """Takes a message that came for this stream; False when it is none of its own."""
        try:
            piece = decode_piece(payload)
        except InputError:
            return False
        if piece.name != self._name or self._arrived.full():
            return False
        self._arrived.put_nowait(piece)
        return True

    async def size(self, limit: int, take: Callable[[Piece], Awaitable[None]]) -> int:
        """The file's size, from its first piece, which is taken."""
        first = await self._one(limit)
        await take(first)
        return first.total_bytes

    async def pull(self, wanted: set[int], total: int, take: Callable[[Piece], Awaitable[None]]) -> None:
        """Every wanted piece once; asks again for what stays away. Raises DeploymentRefused when nothing comes any more."""
        loop = asyncio.get_running_loop()
        begun = moved = loop.time()
        deadline = begun + self._puller._slack_s + len(wanted) * PIECE_BYTES / MIN_RATE
        asked: dict[int, float] = {}
        while wanted:
            await self._ask(wanted, asked, loop.time())
            try:
                async with asyncio.timeout(self._puller._patience_s):
                    piece = await self._arrived.get()
            except TimeoutError:
                if loop.time() - moved > self._puller._stall_s:
                    raise unavailable(f"{self._name}: nothing came for {self._puller._stall_s:g} s") from None
                asked.clear()
                continue
            self._refuse_error(piece)
            if piece.piece not in wanted or piece.total_bytes != total or len(piece.data) != piece_length(piece.piece, total):
                self._puller.ignored += 1
                continue
            await take(piece)
            wanted.discard(piece.piece)
            asked.pop(piece.piece, None)
            moved = loop.time()
            if moved > deadline:
                raise unavailable(f"{self._name}: slower than {MIN_RATE} bytes a second")

    async def _one(self, limit: int) -> Piece:
        for _ in range(max(1, round(self._puller._stall_s / self._puller._patience_s))):
            await self._request(0, 1)
            try:
                async with asyncio.timeout(self._puller._patience_s):
                    while True:
                        piece = await self._arrived.get()
                        self._refuse_error(piece)
                        if piece.total_bytes > limit:
                            raise unavailable(f"{self._name}: {piece.total_bytes} bytes, at most {limit} are taken")
                        if piece.piece == 0 and len(piece.data) == piece_length(0, piece.total_bytes):
                            return piece
            except TimeoutError:
                continue
        raise unavailable(f"{self._name}: the controller does not answer")

    async def _ask(self, wanted: set[int], asked: dict[int, float], now: float) -> None:
        for number in [number for number, at in asked.items() if now - at > self._puller._patience_s]:
            del asked[number]
        if len(asked) > self._puller._window // 2:
            return
        fresh = sorted(wanted - asked.keys())[: self._puller._window - len(asked)]
        for first, count in _runs(fresh):
            await self._request(first, count)
            asked.update(dict.fromkeys(range(first, first + count), now))

    async def _request(self, first: int, count: int) -> None:
        if self._puller._rate:
            await self._puller._sleep(count * PIECE_BYTES / self._puller._rate)
        self._puller.requested += count
        request = encode(PieceRequest(VERSION, self._sid, self._name, first, count))
        await self._puller._session.publish(self._puller._topics.blob_request, request, qos=0)

    def _refuse_error(self, piece: Piece) -> None:
        if piece.error:
            raise FileNotFoundError(f"{self._name}: {piece.error}")


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, count)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number and runs[-1][1] < MAX_PIECES:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
