"""The TUF client workflow (specification 1.0, section 5) as the gateway runs it: python-tuf's updater with our limits and our time.

Knows nothing of deployments. Blobs come from a folder; what is not there ends the refresh with NotFetched.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.api.metadata import Root, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from cloud_sync.trust import exchange
from cloud_sync.trust.record import sync_folder

CONFIG = UpdaterConfig(
    max_root_rotations=exchange.MAX_ROOT_ROTATIONS,
    max_delegations=8,
    root_max_length=exchange.ROOT_MAX_BYTES,
    timestamp_max_length=exchange.TIMESTAMP_MAX_BYTES,
    snapshot_max_length=exchange.SNAPSHOT_MAX_BYTES,
    targets_max_length=exchange.TARGETS_MAX_BYTES,
)
BLOBS = "tuf/"
_TIMESTAMP = "tuf/timestamp.json"
_HTTP_NOT_FOUND = 404
_PIECE_BYTES = 64 * 1024


class NotFetched(DownloadError):
    """Blobs that are neither in the folder nor known to be absent: `names`, to be fetched."""

    def __init__(self, *names: str) -> None:
        self.names = names
        super().__init__(f"{', '.join(names)} has not been fetched yet")


class FolderFetcher(FetcherInterface):
    """Reads blobs that were fetched before. `absent` names answer as HTTP 404 does."""

    def __init__(self, folder: Path, absent: Collection[str]) -> None:
        self._folder = folder
        self._absent = frozenset(absent)

    def _fetch(self, url: str) -> Iterator[bytes]:
        exchange.blob_limit(url)
        if url in self._absent:
            raise DownloadHTTPError(f"the controller has no {url}", _HTTP_NOT_FOUND)
        try:
            file = exchange.blob_path(self._folder, url).open("rb")
        except FileNotFoundError as err:
            raise NotFetched(url, *self._soon(url)) from err
        return _pieces(file)

    def _soon(self, url: str) -> tuple[str, ...]:
        """What will be asked for after `url` in any case: one round trip less."""
        has_timestamp = _TIMESTAMP in self._absent or exchange.blob_path(self._folder, _TIMESTAMP).exists()
        return () if has_timestamp or url == _TIMESTAMP else (_TIMESTAMP,)


class TimedUpdater(Updater):
    """An updater whose expiry checks use a given time. Metadata that it accepted is on the disk when `refresh` returns."""

    def __init__(self, folder: Path, base_url: str, fetcher: FetcherInterface, bootstrap: bytes | None, at_wall_ns: int | None) -> None:
        super().__init__(str(folder), base_url, fetcher=fetcher, config=CONFIG, bootstrap=bootstrap)
        self._folder = folder
        if at_wall_ns is not None:
            self._trusted_set.reference_time = datetime.fromtimestamp(at_wall_ns // 10**9, UTC)

    @property
    def root(self) -> Root:
        """The newest root that is trusted."""
        return self._trusted_set.root

    @property
    def timestamp(self) -> Timestamp | None:
        """The newest timestamp whose signature held, be it expired."""
        return self._trusted_set.timestamp if Timestamp.type in self._trusted_set else None

    @property
    def targets(self) -> Targets:
        """The targets metadata signed offline, after `refresh`."""
        return self._trusted_set.targets

    def refresh(self) -> None:
        before = _states(self._folder)
        try:
            super().refresh()
        finally:
            _sync(self._folder, before)


def time_keys(root: Root) -> frozenset[str]:
    """Ids of the keys that may sign the time."""
    return frozenset(root.roles[Timestamp.type].keyids)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    files = [path for path in folder.rglob("*.json") if path.is_file() and not path.is_symlink()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def _sync(folder: Path, before: dict[Path, tuple[int, int]]) -> None:
    changed = [path for path, state in _states(folder).items() if before.get(path) != state]
    for path in changed:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for parent in {path.parent for path in changed} | ({folder} if changed else set()):
        sync_folder(parent)
