"""The gateway's sync agent: takes the signed deployment that the controller wants here, and says what became of it.

One offer at a time, the newest; an older one still being verified or fetched is given up for it. Verified in a child process, models
fetched and installed, then handed to the host, which decides. What was refused is remembered over restarts and not tried again until the
message changes; what may mend itself is tried again with back-off. Nothing here is ever waited for by the local loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cloud_sync.backoff import full_jitter_s
from cloud_sync.blobs import Puller
from cloud_sync.downloads import Downloads
from cloud_sync.identity import replace
from cloud_sync.topics import GatewayTopics
from cloud_sync.trust import MAX_MESSAGE_BYTES, Artifact, Verified, Verifier
from edge_runtime.clock import Clock
from edge_runtime.errors import DeadlineExceeded, DeploymentReason, DeploymentRefused, EdgeRuntimeError, InputError, TransportError
from edge_runtime.ports import DeploymentHost, TransportSession
from edge_runtime.types import DeploymentPhase

_log = logging.getLogger(__name__)
_MENDABLE = (DeploymentReason.EXPIRED, DeploymentReason.MODEL_UNAVAILABLE, DeploymentReason.NO_SPACE, DeploymentReason.DEADLINE)
_RETRY_BASE_S, _RETRY_MAX_S = 5.0, 900.0
_FETCH_S = 6 * 3600.0
_MAX_NOTE_BYTES = 64 * 1024
_MAX_META_BYTES = 64 * 1024


class Note(msgspec.Struct, frozen=True):
    """What became of the last message before the host saw it. `message` is its SHA-256; `reason` empty: the host has taken it."""

    message: str
    revision: int = 0
    digest: str = ""
    reason: str = ""
    detail: str = ""


class SyncAgent:
    """One gateway's agent. `report` asks for up/state to be sent soon. Its folder holds trust, downloads and the note."""

    def __init__(
        self,
        host: DeploymentHost,
        verifier: Verifier,
        topics: GatewayTopics,
        folder: Path,
        clock: Clock,
        report: Callable[[], None],
        *,
        downloads: Downloads | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._downloads = downloads
        self._host = host
        self._verifier = verifier
        self._topics = topics
        self._folder = folder
        self._clock = clock
        self._report = report
        self._draw = draw
        self._newest: bytes | None = None
        self._meta: bytes = b""
        self._arrived = asyncio.Event()
        self._note = _read_note(folder / "offer.json")
        self.refusals = 0

    def merged(self, status: Mapping[str, Any]) -> dict[str, Any]:
        """A status whose `deployment` also tells of an offer that was refused before the host saw it."""
        told = dict(status.get("deployment", {}))
        note = self._note
        if note is not None and note.reason and note.revision >= told.get("revision", 0):
            refused = {"revision": note.revision, "digest": note.digest, "reason": note.reason, "message": note.detail}
            told |= refused | {"phase": DeploymentPhase.REFUSED.value}
        return {**status, "deployment": told}

    async def serve(self, session: TransportSession) -> None:
        """Works on one session. Ends by cancellation or with the session's TransportError."""
        puller = Puller(session, self._topics)
        await puller.start()
        await session.subscribe(self._topics.meta, self._on_meta)
        await session.subscribe(self._topics.desired, self._on_desired)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_changes(), name="sync-report")
            tasks.create_task(self._work(puller), name="sync-work")

    def _on_desired(self, _topic: str, payload: bytes) -> None:
        self._newest = payload[: MAX_MESSAGE_BYTES + 1]
        self._arrived.set()

    def _on_meta(self, _topic: str, payload: bytes) -> None:
        if payload != self._meta and len(payload) <= _MAX_META_BYTES:
            self._meta = payload
            self._arrived.set()

    async def _tell_changes(self) -> None:
        while True:
            await self._host.deployment_changed()
            self._report()

    async def _work(self, puller: Puller) -> None:
        """The newest message to its end, given up for a newer one only while the host has not begun with it."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            message = self._newest
            if not message or not self._worth_trying(message):
                continue
            task = asyncio.ensure_future(self._until_settled(puller, message))
            try:
                while not task.done():
                    arrival = asyncio.ensure_future(self._arrived.wait())
                    await asyncio.wait((task, arrival), return_when=asyncio.FIRST_COMPLETED)
                    arrival.cancel()
                    if not task.done():
                        self._arrived.clear()
                        if self._newest != message:
                            break
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.wait((task,))
                    self._arrived.set()
            if not task.cancelled():
                task.result()

    def _worth_trying(self, message: bytes) -> bool:
        note = self._note
        if note is None or note.message != _sha256(message):
            return True
        if note.reason:
            return note.reason in {reason.value for reason in _MENDABLE} | {DeploymentReason.UNSIGNED.value}
        told = self._host.reported()
        return told.revision < note.revision

    async def _until_settled(self, puller: Puller, message: bytes) -> None:
        """Tries until the message is taken or refused for good. The link's end goes to the caller."""
        attempt = 0
        while True:
            try:
                await self._take(puller, message)
                return
            except DeploymentRefused as err:
                self._refuse(message, err)
                if err.reason not in _MENDABLE:
                    return
            except (TransportError, asyncio.CancelledError):
                raise
            except EdgeRuntimeError as err:
                self._refuse(message, DeploymentRefused(DeploymentReason.DEADLINE, str(err)))
            await asyncio.sleep(full_jitter_s(attempt, _RETRY_BASE_S, _RETRY_MAX_S, self._draw))
            attempt += 1

    async def _take(self, puller: Puller, message: bytes) -> None:
        async def fetch(name: str) -> bytes:
            return self._meta if name == "tuf/timestamp.json" and self._meta else await puller.fetch_small(name)

        now = self._clock.now().wall_ns
        verified = await self._verifier.verify(message, self._host.reported().revision, now, fetch)
        await self._fetch_models(puller, verified)
        desired = verified.desired
        self._keep(Note(_sha256(message), desired.revision, desired.digest))
        applied = asyncio.ensure_future(self._host.apply(desired))
        try:
            await asyncio.shield(applied)
        except DeploymentRefused as err:
            _log.warning("deployment_refused revision=%d reason=%s", desired.revision, err)
        finally:
            self._report()

    async def _fetch_models(self, puller: Puller, verified: Verified) -> None:
        try:
            async with asyncio.timeout(_FETCH_S):
                for artifact in verified.artifacts:
                    if not self._host.has_model(artifact.digest):
                        path = await self._fetch(puller, artifact)
                        await self._host.install_model(path, artifact.digest)
                        path.unlink(missing_ok=True)
        except TimeoutError as err:
            raise DeadlineExceeded(f"the models did not come within {_FETCH_S / 3600:g} h") from err
        except FileNotFoundError as err:
            raise DeploymentRefused(DeploymentReason.MODEL_UNAVAILABLE, f"the controller has no {err}") from err

    async def _fetch(self, puller: Puller, artifact: Artifact) -> Path:
        """Over HTTPS where the controller's API is known; what fails there goes on over MQTT, from the blocks that are whole."""
        folder = self._folder / "fetching"
        if self._downloads is not None and self._downloads.open:
            try:
                return await self._downloads.fetch(artifact, folder)
            except DeploymentRefused as err:
                if err.reason is not DeploymentReason.MODEL_UNAVAILABLE:
                    raise
                _log.warning("download_over_mqtt name=%s reason=%r", artifact.name, str(err))
            except (TransportError, DeadlineExceeded, InputError) as err:
                _log.warning("download_over_mqtt name=%s reason=%r", artifact.name, str(err))
        return await puller.fetch(artifact, folder)

    def _refuse(self, message: bytes, err: DeploymentRefused) -> None:
        self.refusals += 1
        revision, digest = _claimed(message)
        _log.warning("deployment_refused revision=%d reason=%s", revision, err)
        self._keep(Note(_sha256(message), revision, digest, err.reason.value, str(err).removeprefix(f"{err.reason.value}: ")[:1000]))
        self._report()

    def _keep(self, note: Note) -> None:
        self._note = note
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace(self._folder / "offer.json", msgspec.json.encode(note))
        except OSError as err:
            _log.warning("cannot note what became of revision %d: %s", note.revision, err)


def _read_note(path: Path) -> Note | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_NOTE_BYTES), type=Note)
    except (OSError, msgspec.MsgspecError):
        return None


def _sha256(message: bytes) -> str:
    return hashlib.sha256(message).hexdigest()


def _claimed(message: bytes) -> tuple[int, str]:
    """Revision and digest as an unverified message claims them, for the report alone."""
    try:
        signed = msgspec.json.decode(message)["metadata"]["signed"]
        revision, digest = signed["version"], signed["targets"]["deployment"]["hashes"]["sha256"]
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError):
        return 0, ""
    fits = isinstance(revision, int) and 0 <= revision < 2**63 and isinstance(digest, str) and len(digest) == 64
    return (revision, f"sha256:{digest}") if fits else (0, "")
