"""Deployments on the disk: a folder for each, and the small file `current` that says which one is good and which one is on probation.

A switch is one rename, so that a start finds the old deployment or the new one, whole. `current` has a copy, written after it; a start with
both damaged runs the factory's. Nothing here decides: the moves are `state`'s.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_runtime.config.deployment import Deployment
from edge_runtime.config.load import parse_deployment
from edge_runtime.deploy.disk import Disk
from edge_runtime.deploy.state import Kept, State, seal, unseal
from edge_runtime.errors import DeploymentReason, DeploymentRefused, InputError
from edge_runtime.types import DesiredDeployment

log = logging.getLogger(__name__)

FOLDER = "deployments"
CURRENT = "current"
COPY = "current.copy"
DOCUMENT = "deployment.yaml"
MAX_DOCUMENT_BYTES = 1024 * 1024
_MAX_STATE_BYTES = 256 * 1024
_SLOT = re.compile(r"(\d{1,20})-[0-9a-f]{16}")


class Slots:
    """The folder `deployments` of a state folder. Reading raises nothing but what it says; writing raises OSError. Thread-safe."""

    def __init__(self, state_dir: Path, disk: Disk | None = None) -> None:
        self.root = state_dir / FOLDER
        self.disk = disk or Disk()
        self._lock = threading.Lock()

    def read(self) -> tuple[State, str]:
        """What the disk says, and what is damaged there (empty: nothing)."""
        found, damaged = [], []
        for name in (CURRENT, COPY):
            data = _bounded(self.root / name, _MAX_STATE_BYTES)
            state = unseal(data) if data is not None else None
            found += [state] if state else []
            damaged += [name] if data is not None and state is None else []
        if found:
            return found[0], f"{self.root}: {', '.join(damaged)} damaged; the other copy is used" if damaged else ""
        seen = self._revisions()
        if not seen and not damaged:
            return State(), ""
        return State(high_water=max(seen, default=0)), f"{self.root}: `{CURRENT}` and its copy are lost; the factory deployment is used"

    def save(self, state: State, *, both: bool = True) -> None:
        """Puts a state in force: atomic, and on the disk on return. `both`: its copy too."""
        data = seal(state)
        with self._lock:
            self.disk.make(self.root)
            self.disk.put(self.root / CURRENT, data)
            if both:
                self.disk.put(self.root / COPY, data)

    def stage(self, desired: DesiredDeployment, beside: Mapping[str, bytes] | None = None) -> Kept:
        """The document's folder, on the disk, with the files `beside` it; nothing points to it yet."""
        folder = f"{desired.revision}-{desired.digest.removeprefix('sha256:')[:16]}"
        with self._lock:
            self.disk.make(self.root)
            self.disk.put_folder(self.root / folder, {DOCUMENT: desired.document, **(beside or {})})
        return Kept(desired.revision, desired.digest, folder)

    def load(self, kept: Kept) -> Deployment:
        """The deployment, under the revision that it was offered as. Raises DeploymentRefused(MALFORMED) when the disk has damaged it."""
        path = self.root / kept.folder / DOCUMENT
        text = _bounded(path, MAX_DOCUMENT_BYTES) if _SLOT.fullmatch(kept.folder) else None
        if text is None or digest_of(text) != kept.digest:
            what = "cannot be read" if text is None else "is not what was signed"
            raise DeploymentRefused(DeploymentReason.MALFORMED, f"{path} {what}: the disk has damaged revision {kept.revision}")
        try:
            return msgspec.structs.replace(parse_deployment(text, str(path)), revision=kept.revision)
        except InputError as err:
            raise DeploymentRefused(DeploymentReason.MALFORMED, f"revision {kept.revision} is not understood here: {err}") from err

    def digest(self, kept: Kept) -> str:
        """Of the document as it is on the disk now; empty when it cannot be read."""
        text = _bounded(self.root / kept.folder / DOCUMENT, MAX_DOCUMENT_BYTES)
        return digest_of(text) if text is not None else ""

    def beside(self, kept: Kept, name: str) -> bytes | None:
        """A file that was staged with a document, or None."""
        return _bounded(self.root / kept.folder / name, MAX_DOCUMENT_BYTES)

    def folder(self, kept: Kept) -> Path:
        return self.root / kept.folder

    def sweep(self, state: State) -> None:
        """Clears away what no slot names. Costs room when it fails, no more."""
        held = {kept.folder for kept in (state.good, state.candidate) if kept}
        with self._lock:
            try:
                for path in self.disk.scratch(self.root):
                    self.disk.remove(path)
                for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
                    if _SLOT.fullmatch(path.name) and path.name not in held:
                        self.disk.remove(path)
            except OSError as err:
                log.warning("old deployments not cleared away error=%s", err)

    def _revisions(self) -> list[int]:
        try:
            return [int(match[1]) for path in self.root.iterdir() if (match := _SLOT.fullmatch(path.name))]
        except OSError:
            return []


def digest_of(text: bytes) -> str:
    """`sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(text).hexdigest()


def _bounded(path: Path, limit: int) -> bytes | None:
    """A file's bytes; None when it is not there, cannot be read or is longer than `limit`, which nothing of ours is."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        log.warning("cannot be read path=%s error=%s", path, err)
        return b"" if limit == _MAX_STATE_BYTES else None
    return data if len(data) <= limit else b""
