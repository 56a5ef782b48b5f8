"""Puts fetched bundles into the model store, under the digest that was signed and under no other."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path

from edge_runtime.bundle import MANIFEST, MAX_MANIFEST_BYTES
from edge_runtime.errors import DeploymentReason, DeploymentRefused, InputError, StoreFull
from edge_runtime.ports import ModelFolder

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Incoming:
    """Bundles that came for a deployment which is not staged yet: nothing clears them away before it is."""

    def __init__(self, models: ModelFolder, max_bytes: int, held: Callable[[], Collection[str]]) -> None:
        self.fresh: set[str] = set()
        self._models = models
        self._max_bytes = max_bytes
        self._held = held

    async def install(self, archive: Path, digest: str) -> None:
        """See `edge_runtime.ports.DeploymentHost.install_model`."""
        keep = {*self._held(), *self.fresh}
        try:
            await asyncio.to_thread(self._install, archive, digest, keep)
        except StoreFull as err:
            raise DeploymentRefused(DeploymentReason.NO_SPACE, str(err)) from err
        except InputError as err:
            full = isinstance(err.__cause__, OSError) and err.__cause__.errno in _FULL
            reason = DeploymentReason.NO_SPACE if full else DeploymentReason.MODEL_REFUSED
            raise DeploymentRefused(reason, f"{digest}: {err}") from err
        except OSError as err:
            raise DeploymentRefused(DeploymentReason.NO_SPACE, f"{digest} cannot be stored: {err.strerror or err}") from err
        self.fresh.add(digest)
        log.info("model installed digest=%s", digest)

    def settled(self, digests: Collection[str]) -> None:
        """The deployment that these came for is staged or refused: slots hold what they name, the rest may go."""
        self.fresh.difference_update(digests)

    def _install(self, archive: Path, digest: str, keep: Collection[str]) -> None:
        found = manifest_digest(archive)
        if found != digest:
            raise InputError(f"the archive holds {found or 'no bundle'}; fetch it again")
        self._models.install(archive, max_bytes=self._max_bytes, keep=keep)


def manifest_digest(archive: Path) -> str:
    """The digest of a bundle's tar: of its manifest, which comes first. Empty when there is none."""
    try:
        with tarfile.open(archive, "r:") as tar:
            member = tar.next()
            file = tar.extractfile(member) if member and member.isreg() and member.name == MANIFEST else None
            return "sha256:" + hashlib.sha256(file.read(MAX_MANIFEST_BYTES + 1)).hexdigest() if file else ""
    except (tarfile.TarError, ValueError, EOFError):
        return ""
