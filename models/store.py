"""The models of one gateway on its disk: a folder per bundle, named by digest, put there whole or not at all.

A deployment names a digest; `use` notes which one a name serves and which one it served before, so that neither is cleared away. It loads
nothing and probes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_runtime.bundle import MANIFEST, Bundle, find_model, read_bundle, verify
from edge_runtime.errors import InputError, ModelRefused, RefusalReason
from models import archive

_IN_USE = "in-use.json"
_MAX_STATE_BYTES = 1024 * 1024


class Use(msgspec.Struct, frozen=True):
    """Digests that a model's name serves now and served before."""

    active: str
    previous: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """One bundle in the store. `use` is `active`, `previous` or empty."""

    digest: str
    name: str
    version: int
    size_bytes: int
    use: str


class ModelStore:
    """The store in a folder, which is made when the first bundle comes. One process at a time writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(self, source: Path) -> Bundle:
        """A bundle's folder or tar, verified and copied; returns the store's own. One that is there already is left as it is.

        Raises ModelRefused when it is not what its manifest says, OSError (such as a full disk) with nothing left behind.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._scratch() as scratch:
            bundle = archive.unpack(source, scratch) if source.is_file() else _copy(source, scratch)
            place = self._place(bundle.digest)
            if not (place / MANIFEST).exists():
                _sync(scratch)
                shutil.rmtree(place, ignore_errors=True)
                scratch.rename(place)
                _sync_folder(self.root)
        return self.get(bundle.digest)

    def get(self, digest: str) -> Bundle:
        """A bundle of the store; its files are not hashed. Raises ModelRefused(MISSING)."""
        place = self._place(digest)
        if not (place / MANIFEST).is_file():
            raise ModelRefused(RefusalReason.MISSING, f"{digest} is not in the model store {self.root}")
        return read_bundle(place)

    def entries(self) -> list[Entry]:
        """Every bundle, by name and version. One that is damaged is left out."""
        marks = {digest: mark for use in self._uses().values() for digest, mark in ((use.previous, "previous"), (use.active, "active"))}
        found = []
        for path in sorted(self.root.glob(f"*/{MANIFEST}")):
            try:
                bundle = read_bundle(path.parent)
            except ModelRefused:
                continue
            manifest = bundle.manifest
            found.append(Entry(bundle.digest, manifest.name, manifest.version, _size(path.parent), marks.get(bundle.digest, "")))
        return sorted(found, key=lambda entry: (entry.name, entry.version, entry.digest))

    def use(self, name: str, digest: str) -> None:
        """From now on `name` serves `digest`; what it served is the previous one. Raises ModelRefused(MISSING)."""
        self.get(digest)
        uses = self._uses()
        before = uses.get(name)
        if before is None or before.active != digest:
            uses[name] = Use(digest, before.active if before else None)
            self._write(uses)

    def revert(self, name: str) -> str:
        """`name` serves its previous digest again; returns it. Raises InputError when there is none."""
        uses = self._uses()
        before = uses.get(name)
        if before is None or before.previous is None:
            raise InputError(f"`{name}` has no previous model to go back to")
        uses[name] = Use(before.previous, before.active)
        self._write(uses)
        return before.previous

    def remove(self, digest: str) -> None:
        """Deletes a bundle. Raises InputError while a name serves it or served it before, ModelRefused(MISSING)."""
        self.get(digest)
        for name, use in self._uses().items():
            if digest in (use.active, use.previous):
                raise InputError(f"{digest} is the {'active' if digest == use.active else 'previous'} model of `{name}`; replace it first")
        self._delete(digest)

    def collect(self, max_bytes: int) -> list[str]:
        """Deletes bundles that no name serves or served, the oldest first, until the rest fits; returns their digests."""
        entries = self.entries()
        total = sum(entry.size_bytes for entry in entries)
        spare = [entry for entry in entries if not entry.use]
        gone = []
        for entry in sorted(spare, key=lambda entry: self._place(entry.digest).stat().st_mtime_ns):
            if total <= max_bytes:
                break
            self._delete(entry.digest)
            total -= entry.size_bytes
            gone.append(entry.digest)
        return gone

    def _place(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise InputError(f"expected a digest sha256:<64 hex digits>, got `{digest}`")
        return self.root / name

    def _delete(self, digest: str) -> None:
        """First out of its place, so that a half deleted bundle is never found."""
        with self._scratch() as scratch:
            self._place(digest).rename(scratch / "gone")

    def _uses(self) -> dict[str, Use]:
        try:
            with (self.root / _IN_USE).open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_STATE_BYTES), type=dict[str, Use])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _write(self, uses: dict[str, Use]) -> None:
        with self._scratch() as scratch:
            fresh = scratch / _IN_USE
            fresh.write_bytes(msgspec.json.encode(uses))
            _sync(scratch)
            fresh.replace(self.root / _IN_USE)
            _sync_folder(self.root)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder beside the bundles, gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, folder: Path) -> Bundle:
    _, bundle = find_model(source)
    if bundle is None:
        raise InputError(f"{source}: expected a bundle: a folder with a {MANIFEST}, or a tar of one")
    verify(bundle)
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.folder / name, folder / name)
    copied = read_bundle(folder)
    verify(copied)
    return copied


def _sync(folder: Path) -> None:
    """Every file, then the folder, on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    folder.chmod(0o755)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
