"""The models of one gateway on its disk: a folder per bundle, named by digest, put there whole or not at all.

A deployment names a digest; `use` notes which one a name serves and which one it served before, so that neither is cleared away. Several
processes may share the folder: whoever writes holds its lock. It loads nothing and probes nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_runtime.bundle import MANIFEST, Bundle, find_model, read_bundle, verify
from edge_runtime.errors import InputError, ModelRefused, RefusalReason, StoreFull
from models import archive

_IN_USE = "in-use.json"
_LOCK = ".lock"
_SCRATCH = ".new-"
_MAX_STATE_BYTES = 1024 * 1024
_DIGITS = re.compile(r"[0-9a-f]{64}")


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
    """The store in a folder, which is made when the first bundle comes. See `edge_runtime.ports.ModelFolder`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(self, source: Path, *, max_bytes: int | None = None, keep: Collection[str] = ()) -> Bundle:
        """A bundle's folder or tar, verified and copied; returns the store's own. One that is there already is left as it is.

        With `max_bytes`, what neither a name uses nor `keep` holds goes first, the oldest before the others. Raises ModelRefused when it
        is not what its manifest says, StoreFull when it does not fit, OSError (such as a full disk); nothing is left behind then.
        """
        with self._locked(), self._scratch() as scratch:
            bundle = archive.unpack(source, scratch) if source.is_file() else _copy(source, scratch)
            place = self._place(bundle.digest)
            if not (place / MANIFEST).exists():
                if max_bytes is not None:
                    self._make_room(bundle, max_bytes, keep)
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

    def has(self, digest: str) -> bool:
        """Whether the bundle is here. Raises InputError for what is no digest."""
        return (self._place(digest) / MANIFEST).is_file()

    def entries(self) -> list[Entry]:
        """Every bundle, by name and version. One that is damaged is left out."""
        marks = {digest: mark for use in self._uses().values() for digest, mark in ((use.previous, "previous"), (use.active, "active"))}
        found = []
        for path in self._folders():
            try:
                bundle = read_bundle(path)
            except ModelRefused:
                continue
            manifest = bundle.manifest
            found.append(Entry(_digest(path), manifest.name, manifest.version, _size(path), marks.get(_digest(path), "")))
        return sorted(found, key=lambda entry: (entry.name, entry.version, entry.digest))

    def use(self, name: str, digest: str) -> None:
        """From now on `name` serves `digest`; what it served is the previous one. Raises ModelRefused(MISSING)."""
        with self._locked():
            self.get(digest)
            uses = self._uses()
            before = uses.get(name)
            if before is None or before.active != digest:
                uses[name] = Use(digest, before.active if before else None)
                self._write(uses)

    def release(self, name: str) -> None:
        """`name` serves nothing more: neither of its two bundles is held by it."""
        if self.root.is_dir():
            with self._locked():
                uses = self._uses()
                if uses.pop(name, None) is not None:
                    self._write(uses)

    def revert(self, name: str) -> str:
        """`name` serves its previous digest again; returns it. Raises InputError when there is none."""
        with self._locked():
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
        with self._locked():
            for name, use in self._uses().items():
                if digest in (use.active, use.previous):
                    what = "active" if digest == use.active else "previous"
                    raise InputError(f"{digest} is the {what} model of `{name}`; replace it first")
            self._delete(digest)

    def collect(self, max_bytes: int, keep: Collection[str] = ()) -> list[str]:
        """Deletes what neither a name uses nor `keep` holds, the oldest first, until the rest fits; returns the digests deleted.

        A damaged bundle that nothing holds counts as the oldest.
        """
        if not self.root.is_dir():
            return []
        with self._locked():
            return self._collect(max_bytes, keep)

    def _collect(self, max_bytes: int, keep: Collection[str]) -> list[str]:
        held = {digest for use in self._uses().values() for digest in (use.active, use.previous)} | set(keep)
        sizes = {_digest(path): _size(path) for path in self._folders()}
        total, gone = sum(sizes.values()), []
        for digest in sorted(sizes.keys() - held, key=self._age):
            if total <= max_bytes:
                break
            self._delete(digest)
            total -= sizes[digest]
            gone.append(digest)
        return gone

    def _make_room(self, bundle: Bundle, max_bytes: int, keep: Collection[str]) -> None:
        wanted = _size(bundle.folder)
        if wanted <= max_bytes:
            self._collect(max_bytes - wanted, keep)
        taken = sum(map(_size, self._folders()))
        if taken + wanted > max_bytes:
            raise StoreFull(
                f"{bundle.manifest.name} takes {wanted} bytes; the model store may hold {max_bytes} and {taken} of them are in use. "
                "Raise store.models_max_bytes in the gateway file, or serve fewer models"
            )

    def _age(self, digest: str) -> tuple[bool, int]:
        place = self._place(digest)
        return (place / MANIFEST).is_file(), place.stat().st_mtime_ns

    def _folders(self) -> list[Path]:
        """The place of every bundle."""
        try:
            return sorted(path for path in self.root.iterdir() if _DIGITS.fullmatch(path.name) and path.is_dir())
        except OSError:
            return []

    def _place(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        if not _DIGITS.fullmatch(name):
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
    def _locked(self) -> Iterator[None]:
        """One writer at a time, of whatever process; what a writer that died has left behind is cleared away."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in self.root.glob(f"{_SCRATCH}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder beside the bundles, gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.root))
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


def _digest(place: Path) -> str:
    return f"sha256:{place.name}"
