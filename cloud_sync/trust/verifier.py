"""The gateway's side of trust: hands a message to the child, brings what it asks for, and believes only its verdict.

Blobs come through the caller's `fetch`. A child that dies, hangs or babbles refuses the deployment; the gateway is not harmed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from cloud_sync.trust import exchange
from cloud_sync.trust.exchange import Accepted, Answer, Artifact, Request
from edge_runtime.clock import BUILD_WALL_NS
from edge_runtime.errors import DeploymentReason, DeploymentRefused, InputError, MissingDependency, StoreError
from edge_runtime.types import DesiredDeployment

MEMORY_MB = 192

Fetch = Callable[[str], Awaitable[bytes]]
"""Brings a blob by name, at most `blob_limit(name)` bytes. Raises FileNotFoundError when the controller says it has none of that name;
anything else it raises ends the verification and reaches the caller of `verify`."""

_PACKAGES = str(Path(__file__).resolve().parents[2])
_INCOMING = "incoming-"
_CHILD = "cloud_sync.trust.verify_process"
_ANSWER_BYTES = 8 * 1024 * 1024
_MAX_BLOBS = 2 * exchange.MAX_ROOT_ROTATIONS
_STDERR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Verified:
    """A deployment whose signatures hold. `artifacts` are the files it needs, in the order of `desired.models`."""

    desired: DesiredDeployment
    artifacts: tuple[Artifact, ...]
    signed_wall_ns: int


class Verifier:
    """Judges messages for one gateway. `trust_root` is the first root metadata; `trust_dir` survives restarts and is its own."""

    def __init__(
        self,
        trust_dir: Path,
        tenant: str,
        gateway: str,
        *,
        trust_root: Path,
        deadline_s: float = exchange.TURN_DEADLINE_S,
        memory_mb: int = MEMORY_MB,
    ) -> None:
        self._trust_dir = trust_dir
        self._trust_root = trust_root
        self._addressee = (tenant, gateway)
        self._deadline_s = deadline_s
        self._memory_mb = memory_mb
        self._busy = asyncio.Lock()

    async def verify(self, message: bytes, last_revision: int, now_wall_ns: int, fetch: Fetch) -> Verified:
        """The deployment in a dn/desired payload. `deadline_s` bounds each step of the child, not the fetching.

        Raises DeploymentRefused, MissingDependency, StoreError when the trust folder cannot be used, and what `fetch` raises.
        """
        if len(message) > exchange.MAX_MESSAGE_BYTES:
            text = f"a message of {len(message)} bytes; at most {exchange.MAX_MESSAGE_BYTES} are taken"
            raise DeploymentRefused(DeploymentReason.MALFORMED, text)
        async with self._busy:
            folder, request = await asyncio.to_thread(self._lay_out, message, last_revision, now_wall_ns)
            try:
                accepted = await self._converse(request, fetch)
                document = await asyncio.to_thread(Path(accepted.document).read_bytes)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return _verified(accepted, document)

    def _lay_out(self, message: bytes, last_revision: int, now_wall_ns: int) -> tuple[Path, Request]:
        """What an interrupted turn left goes; so may this folder be left."""
        try:
            self._trust_dir.mkdir(parents=True, exist_ok=True)
            for left in self._trust_dir.glob(f"{_INCOMING}*"):
                shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._trust_dir))
            (folder / "message").write_bytes(message)
        except OSError as err:
            raise StoreError(f"{self._trust_dir}: cannot keep what is fetched: {err.strerror}; free or mend the disk") from err
        return folder, self._request(folder, last_revision, now_wall_ns)

    def _request(self, folder: Path, last_revision: int, now_wall_ns: int) -> Request:
        return Request(
            trust_dir=str(self._trust_dir.resolve()),
            trust_root=str(self._trust_root.resolve()),
            fetched=str(folder.resolve()),
            message=str(folder.resolve() / "message"),
            tenant=self._addressee[0],
            gateway=self._addressee[1],
            last_revision=last_revision,
            now_wall_ns=now_wall_ns,
            build_wall_ns=BUILD_WALL_NS,
        )

    async def _converse(self, request: Request, fetch: Fetch) -> Accepted:
        with await asyncio.to_thread(tempfile.TemporaryFile) as words:
            child = await asyncio.create_subprocess_exec(
                *[sys.executable, "-P", "-m", _CHILD, str(self._memory_mb)],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=words,
                env=_environment(),
                start_new_session=True,
                limit=_ANSWER_BYTES,
            )
            try:
                return await self._ask_until_done(child, request, fetch, words)
            finally:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()

    async def _ask_until_done(self, child: asyncio.subprocess.Process, request: Request, fetch: Fetch, words: IO[bytes]) -> Accepted:
        asked: set[str] = set()
        while True:
            answer = await self._ask(child, request, words)
            if answer.desired is not None:
                return answer.desired
            _raise_end(answer)
            fresh = [name for name in answer.need if name not in asked]
            if not fresh or len(asked) + len(fresh) > _MAX_BLOBS:
                raise _broken(f"asked {len(asked)} blobs and then again for {answer.need[:1]}")
            asked.update(fresh)
            absent = [name for name in fresh if not await _bring(name, Path(request.fetched), fetch)]
            request = msgspec.structs.replace(request, absent=(*request.absent, *absent))

    async def _ask(self, child: asyncio.subprocess.Process, request: Request, words: IO[bytes]) -> Answer:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(self._deadline_s):
                child.stdin.write(msgspec.json.encode(request) + b"\n")
                await child.stdin.drain()
                return msgspec.json.decode(await child.stdout.readline(), type=Answer)
        except TimeoutError as err:
            text = f"the verifier gave no verdict within {self._deadline_s:g} s"
            raise DeploymentRefused(DeploymentReason.DEADLINE, text) from err
        except (ConnectionError, ValueError) as err:
            raise _broken(await asyncio.to_thread(_last_words, words)) from err


async def _bring(name: str, folder: Path, fetch: Fetch) -> bool:
    """Lays a blob where the child looks; False when the controller has none of that name."""
    try:
        limit = exchange.blob_limit(name)
    except InputError as err:
        raise _broken(str(err)) from err
    try:
        data = await fetch(name)
    except FileNotFoundError:
        return False
    if len(data) > limit:
        raise DeploymentRefused(DeploymentReason.MALFORMED, f"{name} has {len(data)} bytes; at most {limit} are taken")
    await asyncio.to_thread(exchange.blob_path(folder, name).write_bytes, data)
    return True


def _raise_end(answer: Answer) -> None:
    if answer.refused is not None:
        raise DeploymentRefused(DeploymentReason(answer.refused), answer.message)
    if answer.missing is not None:
        raise MissingDependency(*answer.missing)
    if answer.failed is not None:
        raise StoreError(answer.failed)


def _verified(accepted: Accepted, document: bytes) -> Verified:
    desired = DesiredDeployment(accepted.revision, accepted.digest, document, accepted.expires_wall_ns, accepted.models)
    return Verified(desired, accepted.artifacts, accepted.signed_wall_ns)


def _broken(text: str) -> DeploymentRefused:
    return DeploymentRefused(DeploymentReason.MALFORMED, f"the verifier broke on it: {text}")


def _environment() -> dict[str, str]:
    """The child finds this very package first."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([_PACKAGES, inherited] if inherited else [_PACKAGES])
    return {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": path}


def _last_words(words: IO[bytes]) -> str:
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - _STDERR_BYTES))
    lines = words.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it died without a word"
