"""Files pulled in pieces: over a lossy, doubling, damaging, slow or lying link, and on from where a killed download was."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.blobs import VERSION, Piece, PieceRequest, Puller, decode_piece, decode_request, encode
from cloud_sync.controller.blob_server import BlobServer, Budget
from cloud_sync.loopback import LoopbackBroker, LoopbackSession, LoopbackTransport
from cloud_sync.partial import BLOCK_BYTES, PIECE_BYTES
from cloud_sync.topics import GatewayTopics
from cloud_sync.trust import Artifact
from edge_runtime.errors import DeploymentReason, DeploymentRefused, InputError

TOPICS = GatewayTopics("plant", "gw-1")
NAME = "models/" + "ab" * 32 + ".tar"


@dataclass
class Files:
    """A repository of files by name."""

    folder: Path
    files: dict[str, bytes] = field(default_factory=dict)

    def blob(self, name: str) -> Path:
        if name not in self.files:
            raise FileNotFoundError(name)
        path = self.folder / "served"
        path.write_bytes(self.files[name])
        return path


@dataclass
class Wire:
    """A gateway and a blob server on one broker; `mangle` gets every piece on its way and gives what arrives."""

    files: Files
    session: LoopbackSession
    puller: Puller
    mangle: Callable[[bytes], list[bytes]] = lambda payload: [payload]


@asynccontextmanager
async def wire(folder: Path, mangle: Callable[[bytes], list[bytes]] = lambda payload: [payload], **options: Any) -> AsyncIterator[Wire]:
    broker = LoopbackBroker()
    files = Files(folder)
    gateway = await LoopbackTransport(broker).connect()
    served = await LoopbackTransport(broker).connect()
    server = BlobServer(cast(Any, files), cast(Any, None), "plant")
    await served.subscribe("fl/v1/plant/g/+/up/blob/req", server.receive, qos=0)
    receive = gateway.receive

    def arrive(topic: str, payload: bytes) -> None:
        for arrived in mangle(payload) if "/dn/blob/" in topic else [payload]:
            receive(topic, arrived)

    gateway.receive = arrive  # type: ignore[method-assign]
    puller = Puller(gateway, TOPICS, **({"patience_s": 0.05, "stall_s": 0.5} | options))
    await puller.start()
    serving = asyncio.ensure_future(server.run(served))
    try:
        yield Wire(files, gateway, puller)
    finally:
        serving.cancel()
        await asyncio.wait((serving,))


def artifact(data: bytes, **changes: Any) -> Artifact:
    blocks = tuple(hashlib.sha256(data[at : at + BLOCK_BYTES]).hexdigest() for at in range(0, len(data), BLOCK_BYTES))
    made = Artifact(NAME, "sha256:" + "ab" * 32, len(data), hashlib.sha256(data).hexdigest(), blocks)
    return msgspec.structs.replace(made, **changes)


DATA = random.Random(4).randbytes(3 * BLOCK_BYTES + 70_001)


@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, BLOCK_BYTES, len(DATA)])
async def test_a_file_comes_whole(tmp_path: Path, size: int) -> None:
    async with wire(tmp_path) as link:
        link.files.files[NAME] = DATA[:size]
        path = await link.puller.fetch(artifact(DATA[:size]), tmp_path / "fetching")
        assert path.read_bytes() == DATA[:size]
        assert [left.name for left in path.parent.iterdir()] == [path.name]


async def test_lost_doubled_and_reordered_pieces_do_no_harm(tmp_path: Path) -> None:
    draw = random.Random(7)
    held: list[bytes] = []

    def mangle(payload: bytes) -> list[bytes]:
        if draw.random() < 0.2:
            return []
        if draw.random() < 0.2:
            held.append(payload)
            return []
        return [payload, payload, *(held.pop() for _ in range(len(held)))]

    async with wire(tmp_path, mangle) as link:
        link.files.files[NAME] = DATA
        path = await link.puller.fetch(artifact(DATA), tmp_path / "fetching")
        assert path.read_bytes() == DATA


async def test_damaged_pieces_are_fetched_again(tmp_path: Path) -> None:
    damage = [3, 20]

    def mangle(payload: bytes) -> list[bytes]:
        piece = decode_piece(payload)
        if piece.piece in damage:
            damage.remove(piece.piece)
            return [encode(msgspec.structs.replace(piece, data=b"\0" * len(piece.data)))]
        return [payload]

    async with wire(tmp_path, mangle) as link:
        link.files.files[NAME] = DATA
        path = await link.puller.fetch(artifact(DATA), tmp_path / "fetching")
        assert path.read_bytes() == DATA
        assert not damage


async def test_a_file_that_is_not_what_was_signed_is_given_up(tmp_path: Path) -> None:
    async with wire(tmp_path) as link:
        link.files.files[NAME] = DATA[:-1] + b"\0"
        for signed in (artifact(DATA), artifact(DATA, blocks=())):
            with pytest.raises(DeploymentRefused) as refused:
                await link.puller.fetch(signed, tmp_path / "fetching")
            assert refused.value.reason is DeploymentReason.MODEL_UNAVAILABLE


async def test_a_file_longer_than_signed_never_arrives(tmp_path: Path) -> None:
    async with wire(tmp_path) as link:
        link.files.files[NAME] = DATA + DATA
        with pytest.raises(DeploymentRefused, match="nothing came"):
            await link.puller.fetch(artifact(DATA), tmp_path / "fetching")
        assert sum(path.stat().st_size for path in (tmp_path / "fetching").iterdir()) <= len(DATA) + 1024


async def test_a_silent_source_is_given_up(tmp_path: Path) -> None:
    async with wire(tmp_path, lambda payload: []) as link:
        link.files.files[NAME] = DATA
        with pytest.raises(DeploymentRefused, match="nothing came"):
            await link.puller.fetch(artifact(DATA), tmp_path / "fetching")
        with pytest.raises(DeploymentRefused, match="does not answer"):
            await link.puller.fetch_small("tuf/root.json")


async def test_a_source_that_drips_is_given_up(tmp_path: Path) -> None:
    """A piece for every tenth that is asked for: it never stalls, and it is below the least rate once the slack is used up."""
    came = 0

    def mangle(payload: bytes) -> list[bytes]:
        nonlocal came
        came += 1
        return [payload] if came % 10 == 0 else []

    async with wire(tmp_path, mangle, slack_s=-1e6) as link:
        link.files.files[NAME] = DATA
        with pytest.raises(DeploymentRefused, match="slower than"):
            await link.puller.fetch(artifact(DATA), tmp_path / "fetching")


async def test_an_interrupted_download_goes_on_from_its_whole_blocks(tmp_path: Path) -> None:
    arrived = 0
    enough = asyncio.Event()

    def mangle(payload: bytes) -> list[bytes]:
        nonlocal arrived
        arrived += 1
        if arrived > 40:
            enough.set()
            return []
        return [payload]

    async with wire(tmp_path, mangle, stall_s=30.0) as link:
        link.files.files[NAME] = DATA
        fetching = asyncio.ensure_future(link.puller.fetch(artifact(DATA), tmp_path / "fetching"))
        await enough.wait()
        fetching.cancel()
        await asyncio.wait((fetching,))
    async with wire(tmp_path) as link:
        link.files.files[NAME] = DATA
        assert (await link.puller.fetch(artifact(DATA), tmp_path / "fetching")).read_bytes() == DATA
        assert link.puller.requested <= 50 - 32 + 16


async def test_a_damaged_note_of_progress_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "fetching").mkdir()
    stem = tmp_path / "fetching" / NAME.replace("/", "-")
    stem.with_suffix(".part").write_bytes(b"x" * len(DATA))
    for note in (b"", b"\1" * 5, artifact(DATA).sha256.encode() + b"\1", b"\xff" * 10_000):
        stem.with_suffix(".map").write_bytes(note)
        async with wire(tmp_path) as link:
            link.files.files[NAME] = DATA
            assert (await link.puller.fetch(artifact(DATA), tmp_path / "fetching")).read_bytes() == DATA


async def test_small_blobs_are_bounded_and_missing_ones_named(tmp_path: Path) -> None:
    async with wire(tmp_path) as link:
        link.files.files |= {"tuf/root.json": b"{}", "tuf/timestamp.json": b"x" * 100_000}
        assert await link.puller.fetch_small("tuf/root.json") == b"{}"
        with pytest.raises(FileNotFoundError):
            await link.puller.fetch_small("tuf/2.root.json")
        with pytest.raises(DeploymentRefused, match="at most"):
            await link.puller.fetch_small("tuf/timestamp.json")
        with pytest.raises(InputError):
            await link.puller.fetch_small("../ca/ca.key")


async def test_a_rate_is_kept(tmp_path: Path) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with wire(tmp_path, max_bytes_per_s=1_000_000, sleep=sleep) as link:
        link.files.files[NAME] = DATA
        await link.puller.fetch(artifact(DATA), tmp_path / "fetching")
    assert sum(slept) >= len(DATA) / 1_000_000


def test_a_gateway_may_ask_for_so_much() -> None:
    budget = Budget(100.0, 1000.0)
    assert budget.take("a", 1000, 0.0)
    assert not budget.take("a", 1, 0.0)
    assert budget.take("b", 1000, 0.0)
    assert budget.take("a", 100, 1.0)


@given(st.binary(max_size=300))
def test_garbage_is_refused_not_raised(payload: bytes) -> None:
    for decode in (decode_request, decode_piece):
        with contextlib.suppress(InputError):
            decode(payload)


@pytest.mark.parametrize(
    "request_",
    [
        PieceRequest(2, "ab" * 4, NAME, 0, 1),
        PieceRequest(VERSION, "../x", NAME, 0, 1),
        PieceRequest(VERSION, "ab" * 4, "n" * 200, 0, 1),
        PieceRequest(VERSION, "ab" * 4, NAME, -1, 1),
        PieceRequest(VERSION, "ab" * 4, NAME, 0, 10_000),
    ],
)
def test_a_request_out_of_bounds_is_refused(request_: PieceRequest) -> None:
    with pytest.raises(InputError):
        decode_request(encode(request_))


def test_a_piece_is_no_larger_than_agreed() -> None:
    with pytest.raises(InputError):
        decode_piece(encode(Piece(VERSION, NAME, 0, 10**6, b"x" * (PIECE_BYTES + 1))))
