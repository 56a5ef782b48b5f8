"""Models over HTTPS by range: from the controller's own server, and from servers that cut, lie, drip or never end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.controller import enrolment
from cloud_sync.controller.serving import tls_context
from cloud_sync.downloads import Downloads, open_downloads
from cloud_sync.https import Place
from cloud_sync.partial import BLOCK_BYTES, PIECE_BYTES
from cloud_sync.trust import Artifact
from edge_runtime.errors import DeadlineExceeded, DeploymentReason, DeploymentRefused, TransportError
from edge_runtime.types import LinkSettings

DATA = random.Random(5).randbytes(3 * BLOCK_BYTES + 70_001)
NAME = "models/" + "cd" * 32 + ".tar"
Until = Callable[..., Any]


def artifact(data: bytes = DATA) -> Artifact:
    blocks = tuple(hashlib.sha256(data[at : at + BLOCK_BYTES]).hexdigest() for at in range(0, len(data), BLOCK_BYTES))
    return Artifact(NAME, "sha256:" + "cd" * 32, len(data), hashlib.sha256(data).hexdigest(), blocks)


@dataclass
class Site:
    """A controller with one model, and a gateway that has joined it."""

    controller: Any
    folder: Path

    def downloads(self, place: Place | None = None, **options: Any) -> Downloads:
        mine = self.controller.identity("gw-1")
        return Downloads(place or self.controller.place, self.controller.settings.ca, mine.cert, mine.key, **options)

    @property
    def served(self) -> Path:
        return Path(self.controller.settings.folder) / "repository" / NAME

    @asynccontextmanager
    async def impostor(self, answer: Callable[[asyncio.StreamWriter, int, int], Any]) -> AsyncIterator[Place]:
        """A server with the controller's name and key that answers a range in its own way."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, last = head.partition("bytes=")[2].partition("\r")[0].split("-")
                await answer(writer, int(first), int(last))
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls_context(self.controller.settings))
        try:
            yield Place("localhost", server.sockets[0].getsockname()[1])
        finally:
            server.close()


@pytest.fixture
async def site(controller: Any, tmp_path: Path) -> Site:
    await controller.join("gw-1")
    made = Site(controller, tmp_path / "fetching")
    made.served.write_bytes(DATA)
    return made


def head(first: int, last: int, total: int = len(DATA), length: int | None = None) -> bytes:
    size = last - first + 1 if length is None else length
    return f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: {size}\r\n\r\n".encode()


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.exists() else 0


@pytest.mark.parametrize("size", [1, PIECE_BYTES, BLOCK_BYTES + 1, len(DATA)])
async def test_a_model_comes_whole_from_the_controllers_server(site: Site, size: int) -> None:
    site.served.write_bytes(DATA[:size])
    downloads = site.downloads()
    path = await downloads.fetch(artifact(DATA[:size]), site.folder)
    assert path.read_bytes() == DATA[:size]
    assert [left.name for left in site.folder.iterdir()] == [path.name]
    assert downloads.received == size


_CHILD = """
import asyncio, msgspec, sys
from pathlib import Path
from cloud_sync.downloads import Downloads
from cloud_sync.https import Place
from cloud_sync.trust import Artifact
port, ca, cert, key, folder, text = sys.argv[1:]
downloads = Downloads(Place("localhost", int(port)), Path(ca), Path(cert), Path(key), max_bytes_per_s=4_000_000)
asyncio.run(downloads.fetch(msgspec.json.decode(text, type=Artifact), Path(folder)))
"""


async def test_killed_on_the_way_it_goes_on_from_its_whole_blocks(site: Site, until: Until) -> None:
    import msgspec

    mine = site.controller.identity("gw-1")
    files = [str(site.controller.settings.ca), str(mine.cert), str(mine.key), str(site.folder)]
    text = msgspec.json.encode(artifact()).decode()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", _CHILD, str(site.controller.place.port), *files, text)
    await until(lambda: any(site.folder.glob("*.map")) if site.folder.exists() else False)
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    noted = next(site.folder.glob("*.map")).read_bytes()[-4:]
    downloads = site.downloads()
    assert (await downloads.fetch(artifact(), site.folder)).read_bytes() == DATA
    assert downloads.received == len(DATA) - sum(noted) * BLOCK_BYTES < len(DATA)


async def test_cut_short_again_and_again_it_still_arrives(site: Site) -> None:
    cuts = 0

    async def answer(writer: asyncio.StreamWriter, first: int, last: int) -> None:
        nonlocal cuts
        cuts += 1
        writer.write(head(first, last) + DATA[first : min(last + 1, first + BLOCK_BYTES + 1000)])
        await writer.drain()

    async with site.impostor(answer) as place:
        assert (await site.downloads(place).fetch(artifact(), site.folder)).read_bytes() == DATA
    assert cuts == 4


async def test_a_source_that_sends_nothing_whole_is_given_up(site: Site) -> None:
    async def answer(writer: asyncio.StreamWriter, first: int, last: int) -> None:
        writer.write(head(first, last) + DATA[first : first + 100])
        await writer.drain()

    async with site.impostor(answer) as place:
        downloads = site.downloads(place)
        with pytest.raises(TransportError, match="before the file did"):
            await downloads.fetch(artifact(), site.folder)
        assert not downloads.open


@pytest.mark.parametrize("says", [{"total": 10**12}, {"length": 10**12}, {}], ids=["larger", "longer", "more than it says"])
async def test_an_endless_download_is_refused_and_the_disk_stays_bounded(site: Site, says: dict[str, int]) -> None:
    async def answer(writer: asyncio.StreamWriter, first: int, last: int) -> None:
        writer.write(head(first, last, **says))
        if not says:
            writer.write(DATA[first : last + 1])
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with site.impostor(answer) as place:
        downloads = site.downloads(place)
        if says:
            with pytest.raises(TransportError, match="expected `bytes"):
                await downloads.fetch(artifact(), site.folder)
        else:
            assert (await downloads.fetch(artifact(), site.folder)).read_bytes() == DATA
        assert downloads.received <= len(DATA)
        assert on_disk(site.folder) <= len(DATA) + 1024


async def test_a_file_that_is_not_what_was_signed_is_given_up(site: Site) -> None:
    site.served.write_bytes(DATA[:-1] + b"\0")
    for signed in (artifact(), Artifact(NAME, artifact().digest, len(DATA), artifact().sha256, ())):
        with pytest.raises(DeploymentRefused) as refused:
            await site.downloads().fetch(signed, site.folder)
        assert refused.value.reason is DeploymentReason.MODEL_UNAVAILABLE
    assert not (site.folder / NAME.replace("/", "-")).exists()


async def test_a_silent_server_is_given_up(site: Site) -> None:
    async def answer(writer: asyncio.StreamWriter, first: int, last: int) -> None:
        writer.write(head(first, last)[:-1])
        await asyncio.sleep(60)

    async with site.impostor(answer) as place:
        with pytest.raises(DeadlineExceeded, match="nothing came"):
            await site.downloads(place, patience_s=0.2).fetch(artifact(), site.folder)


async def test_a_slow_server_is_given_up(site: Site) -> None:
    async def answer(writer: asyncio.StreamWriter, first: int, last: int) -> None:
        writer.write(head(first, last) + DATA[first : last + 1])
        await writer.drain()

    async with site.impostor(answer) as place:
        with pytest.raises(DeadlineExceeded, match="slower than"):
            await site.downloads(place, slack_s=-1e6).fetch(artifact(), site.folder)


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere/\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"x" * 1_000_000,
        b"HTTP/1.1 206 Partial Content\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"",
    ],
    ids=["whole", "elsewhere", "ssh", "zeros", "no end", "many headers", "nothing"],
)
async def test_what_is_no_answer_is_refused(site: Site, text: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter, first: int, last: int) -> None:
        writer.write(text)
        await writer.drain()

    async with site.impostor(answer) as place:
        with pytest.raises(TransportError):
            await site.downloads(place).fetch(artifact(), site.folder)
    assert on_disk(site.folder) == 0


async def test_a_rate_is_kept(site: Site) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    await site.downloads(max_bytes_per_s=1_000_000, sleep=sleep).fetch(artifact(), site.folder)
    assert sum(slept) == pytest.approx(len(DATA) / 1_000_000)


async def test_only_gateways_of_the_fleet_are_served(site: Site) -> None:
    call = site.controller.call
    assert (await call("GET", f"/v1/artifacts/{NAME}"))[0] == 401
    await enrolment.revoke(site.controller.context, "ada", "gw-1", "stolen")
    assert (await call("GET", f"/v1/artifacts/{NAME}", site.controller.identity("gw-1")))[0] == 403
    with pytest.raises(TransportError, match="answered 403"):
        await site.downloads().fetch(artifact(), site.folder)


async def test_an_expired_certificate_fetches_nothing(site: Site) -> None:
    site.controller.advance(30)
    with pytest.raises(TransportError, match="answered 403"):
        await site.downloads().fetch(artifact(), site.folder)


async def test_nobody_there(site: Site) -> None:
    from cloud_sync.controller.broker import free_port

    with pytest.raises(TransportError, match="cannot reach"):
        await site.downloads(Place("localhost", free_port())).fetch(artifact(), site.folder)


def test_a_gateway_that_never_joined_downloads_nothing_over_https() -> None:
    assert open_downloads(LinkSettings(host="localhost", port=1883, tenant="t", gateway="g", boot="b", version="1")) is None
