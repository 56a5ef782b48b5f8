"""The controller's signed repository: approving models offline, directing gateways online, rotating any key.

The folder is the controller's: `repository/metadata`, `repository/models`, `keys/online`, `keys/offline` (to be moved away). Every
change is whole or absent after a crash, and other processes may change the same folder. Nothing here speaks to gateways.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from cloud_sync.controller.signing import roles as tuf_roles
from cloud_sync.controller.signing.bundles import Archive, read_archive
from cloud_sync.controller.signing.files import is_changing, locked, recover, replace_all, sync_folder
from cloud_sync.controller.signing.keys import KeyRing, PublicKey, Signer
from cloud_sync.controller.signing.roles import DEPLOYMENT, DIRECTOR, EXTRA, LIFETIME_NS, OFFLINE, ONLINE, ROOT_KEYS, ROOT_THRESHOLD, Roles
from edge_runtime.errors import InputError

WIRE_VERSION = 1
INLINE_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 256 * 1024

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_ARTIFACT = re.compile(r"models/[0-9a-f]{64}\.tar")
_METADATA = re.compile(r"tuf/((?:[1-9][0-9]{0,18}\.)?(?:root|timestamp|snapshot|targets)\.json)")
_ROOT = re.compile(r"([1-9][0-9]{0,18})\.root\.json")


@dataclass(frozen=True, slots=True)
class Approved:
    """A bundle that was signed offline. `name` is that of its artifact, `digest` the bundle's `sha256:<hex>`."""

    name: str
    digest: str
    model: str
    version: int
    size_bytes: int
    sha256: str


class Repository:
    """Safe for threads and processes. `clock` gives wall time in ns."""

    def __init__(self, folder: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self._folder = folder
        self._clock = clock
        self._online = KeyRing(folder / "keys/online")
        self._threads = threading.Lock()
        self._cached: tuple[object, Roles] | None = None

    @classmethod
    def create(cls, folder: Path, *, passphrase: bytes | None = None, clock: Callable[[], int] = time.time_ns) -> Repository:
        """A new repository and all its keys. `passphrase` encrypts the offline ones. Raises InputError where there is one already."""
        self = cls(folder, clock)
        if self.metadata_dir.exists() and any(self.metadata_dir.glob("*.json")):
            raise InputError(f"{folder} has a repository already; a new one would lock out every gateway that trusts it")
        self.metadata_dir.mkdir(parents=True, exist_ok=True)
        self._models.mkdir(exist_ok=True)
        offline = KeyRing(self.offline_keys, passphrase)
        with self._changing():
            signers = {role: [offline.generate(role) for _ in range(_key_count(role))] for role in OFFLINE}
            signers |= {role: [self._online.generate(role)] for role in ONLINE}
            now_ns = clock()
            made = tuf_roles.first({role: [signer.public_key for signer in group] for role, group in signers.items()}, now_ns)
            tuf_roles.sign(made.root, signers["root"])
            tuf_roles.sign(made.targets, signers["targets"])
            self._publish(_first_online(made, signers, now_ns))
        return self

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], int] = time.time_ns) -> Repository:
        """One that exists; a change that was interrupted is finished. Raises InputError when there is none."""
        self = cls(folder, clock)
        if not (self.metadata_dir / "timestamp.json").exists() and not is_changing(self.metadata_dir):
            raise InputError(f"{folder} has no repository; make one: edge-runtime controller init")
        with self._changing():
            self._roles()
        return self

    @property
    def metadata_dir(self) -> Path:
        """What is served as `tuf/<file>`."""
        return self._folder / "repository/metadata"

    @property
    def offline_keys(self) -> Path:
        """Where `create` leaves the offline keys."""
        return self._folder / "keys/offline"

    @property
    def trust_root(self) -> Path:
        """The newest root metadata: what a gateway that joins is given."""
        return self.metadata_dir / "root.json"

    def blob(self, name: str) -> Path:
        """The file served under a blob's name (`tuf/...` or `models/...`). Raises InputError, FileNotFoundError."""
        if match := _METADATA.fullmatch(name):
            return _existing(self.metadata_dir / match[1])
        return self.artifact(name)

    def artifact(self, name: str) -> Path:
        """The file of `models/<hex>.tar`. Raises InputError for another kind of name, FileNotFoundError."""
        if not _ARTIFACT.fullmatch(name):
            raise InputError(f"expected models/<digest>.tar, got {name[:200]!r}")
        return _existing(self._folder / "repository" / name)

    def approved(self) -> tuple[Approved, ...]:
        """Every model that was signed offline, by name of artifact."""
        files = self._current().targets.signed.targets
        return tuple(_approved(files[name]) for name in sorted(files))

    def expiries(self) -> Mapping[str, int]:
        """When each role's metadata expires, wall ns."""
        now = self._current()
        signed: list[Signed] = [now.root.signed, now.targets.signed, now.snapshot.signed, now.timestamp.signed]
        return {part.type: tuf_roles.expires_ns(part) for part in signed}

    @property
    def term(self) -> tuple[int, int]:
        """First and last revision that the present director may sign."""
        return self._current().revisions

    def state(self) -> object:
        """Compares equal for as long as nothing was published, by this process or another."""
        return self._mark()

    def next_revision(self, newest: int) -> int:
        """The revision after `newest` that the present director may sign. Raises InputError when its term is used up."""
        first, last = self._current().revisions
        wanted = max(newest + 1, first)
        if wanted > last:
            raise InputError(f"the director may sign revisions up to {last}, {wanted} is wanted; rotate its key")
        return wanted

    def approve(self, bundle_tar: Path, offline_keys: Path | KeyRing) -> Approved:
        """Checks a bundle's tar, takes it in and signs it with the targets key; one that is approved already is left as it is.

        Raises ModelRefused, InputError when the key is not there.
        """
        archive = read_archive(bundle_tar)
        name = f"models/{archive.digest}.tar"
        with self._changing():
            now = self._roles()
            known = now.targets.signed.targets.get(name)
            if known is not None and (self._folder / "repository" / name).exists():
                return _approved(known)
            signers = _ring(offline_keys).need("targets", now.keyids("targets"), 1)
            if known is None or known.hashes["sha256"] != archive.sha256:
                known = _target(name, archive)
            self._take_in(bundle_tar, name, archive.sha256)
            self._publish_targets(tuf_roles.next_targets(now, self._clock(), [known]), signers)
        return _approved(known)

    def withdraw(self, digests: Collection[str], offline_keys: Path | KeyRing) -> None:
        """Takes back the approval of models: no deployment with them is signed or taken any more. Files stay for those that run them."""
        names = [_artifact_name(digest) for digest in digests]
        with self._changing():
            now = self._roles()
            signers = _ring(offline_keys).need("targets", now.keyids("targets"), 1)
            self._publish_targets(tuf_roles.next_targets(now, self._clock(), without=names), signers)

    def refresh_timestamp(self, now_wall_ns: int | None = None) -> bytes:
        """Signs a new timestamp, and a new snapshot where that is in its second half; returns the timestamp's bytes."""
        now_ns = self._clock() if now_wall_ns is None else now_wall_ns
        with self._changing():
            now = self._roles()
            old = tuf_roles.expires_ns(now.snapshot.signed) - now_ns < LIFETIME_NS["snapshot"] // 2
            newer = self._sign_snapshot(now, now_ns) if old else now
            newer = self._sign_timestamp(newer, now_ns)
            self._publish(newer)
        return newer.files()["timestamp.json"]

    def renew(self, role: str, offline_keys: Path | KeyRing) -> None:
        """Signs the next version of `root` or `targets` with the same keys, for a new lifetime."""
        if role not in OFFLINE:
            raise InputError(f"expected root or targets, got `{role}`; the others are renewed by themselves")
        ring = _ring(offline_keys)
        with self._changing():
            now, now_ns = self._roles(), self._clock()
            if role == "targets":
                self._publish_targets(tuf_roles.next_targets(now, now_ns), ring.need("targets", now.keyids("targets"), 1))
                return
            newer = tuf_roles.next_root(now, {}, now_ns)
            tuf_roles.sign(newer.root, ring.need("root", now.keyids("root"), ROOT_THRESHOLD))
            self._publish(newer)

    def rotate(self, role: str | Collection[str], offline_keys: Path | KeyRing) -> None:
        """Gives one or more roles new keys and forgets the old ones, in one step.

        The director needs the targets key, every other role two root keys. After an online machine was in foreign hands rotate
        `("director", "snapshot", "timestamp")` together: gateways then forget what versions and times those keys had claimed, and
        the director's revisions begin above all that the old key could sign. Deployments must be signed again after the director.
        """
        wanted = [role] if isinstance(role, str) else list(role)
        if not wanted or set(wanted) - {*OFFLINE, *ONLINE}:
            raise InputError(f"expected some of {', '.join((*OFFLINE, *ONLINE))}, got {', '.join(wanted) or 'none'}")
        with self._changing():
            _Rotation(self._roles(), _ring(offline_keys), self._online, self._clock()).run(wanted, self._publish)

    def sign_desired(
        self, tenant: str, gateway: str, revision: int, previous: int, document: str, models: Sequence[str], expires_s: float
    ) -> bytes:
        """The dn/desired payload that makes `document` the deployment of one gateway. `models` are bundle digests.

        A document over 64 KiB is left out: it is served as the blob `documents/<sha256 hex>`. Raises InputError for a model that was
        not signed offline and for a revision outside the director's term.
        """
        now = self._current()
        if self.next_revision(revision - 1) != revision:
            raise InputError(f"the director's revisions begin at {now.revisions[0]}, got {revision}; take `next_revision`")
        text, now_ns = document.encode(), self._clock()
        targets = {name: _signed_offline(now, name) for name in map(_artifact_name, models)}
        signed = Targets(version=revision, expires=tuf_roles.expires_in(now_ns + int(expires_s * 1e9)), targets=targets)
        signed.targets[DEPLOYMENT] = TargetFile(len(text), {"sha256": hashlib.sha256(text).hexdigest()}, DEPLOYMENT)
        signed.unrecognized_fields[EXTRA] = {"tenant": tenant, "gateway": gateway, "previous": previous, "issued": now_ns}
        metadata = Metadata(signed)
        tuf_roles.sign(metadata, self._online.need(DIRECTOR, now.keyids(DIRECTOR), 1))
        inline = document if len(text) <= INLINE_BYTES else None
        message = msgspec.json.encode({"v": WIRE_VERSION, "metadata": metadata.to_dict(), "document": inline})
        if len(message) > MAX_MESSAGE_BYTES:
            raise InputError(
                f"the deployment makes a message of {len(message)} bytes, gateways take {MAX_MESSAGE_BYTES}: name fewer models"
            )
        return message

    @property
    def _models(self) -> Path:
        return self._folder / "repository/models"

    def _changing(self) -> Any:
        return locked(self._folder / "repository/.lock")

    def _current(self) -> Roles:
        """The state as published; read again only when a file has changed."""
        mark = self._mark()
        with self._threads:
            if self._cached is not None and self._cached[0] == mark:
                return self._cached[1]
        with self._changing():
            mark, roles = self._mark(), self._roles()
        with self._threads:
            self._cached = (mark, roles)
        return roles

    def _mark(self) -> object:
        stats = [(self.metadata_dir / name).stat() for name in ("timestamp.json", "root.json")]
        return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]

    def _roles(self) -> Roles:
        """What timestamp.json stands for, with the newest root. The caller holds the lock."""
        recover(self.metadata_dir)
        numbers = [int(match[1]) for path in self.metadata_dir.iterdir() if (match := _ROOT.fullmatch(path.name))]
        timestamp = Metadata[Timestamp].from_file(str(self.metadata_dir / "timestamp.json"))
        snapshot_version = timestamp.signed.snapshot_meta.version
        snapshot = Metadata[Snapshot].from_file(str(self.metadata_dir / f"{snapshot_version}.snapshot.json"))
        targets_version = snapshot.signed.meta["targets.json"].version
        targets = Metadata[Targets].from_file(str(self.metadata_dir / f"{targets_version}.targets.json"))
        return Roles(Metadata[Root].from_file(str(self.metadata_dir / f"{max(numbers)}.root.json")), targets, snapshot, timestamp)

    def _publish(self, made: Roles) -> None:
        """Checks as a gateway would, then replaces the files as one step."""
        made.check()
        files = made.files()
        fresh = {name: data for name, data in files.items() if not _same(self.metadata_dir / name, data)}
        replace_all(self.metadata_dir, fresh)

    def _publish_targets(self, made: Roles, signers: Sequence[Signer]) -> None:
        tuf_roles.sign(made.targets, signers)
        now_ns = self._clock()
        self._publish(self._sign_timestamp(self._sign_snapshot(made, now_ns), now_ns))

    def _sign_snapshot(self, made: Roles, now_ns: int) -> Roles:
        newer = tuf_roles.next_snapshot(made, now_ns)
        tuf_roles.sign(newer.snapshot, self._online.need("snapshot", made.keyids("snapshot"), 1))
        return newer

    def _sign_timestamp(self, made: Roles, now_ns: int) -> Roles:
        newer = tuf_roles.next_timestamp(made, now_ns)
        tuf_roles.sign(newer.timestamp, self._online.need("timestamp", made.keyids("timestamp"), 1))
        return newer

    def _take_in(self, bundle_tar: Path, name: str, sha256: str) -> None:
        part = self._models / ".incoming.part"
        with bundle_tar.open("rb") as source, part.open("wb") as copied:
            shutil.copyfileobj(source, copied, 1024 * 1024)
            copied.flush()
            os.fsync(copied.fileno())
        with part.open("rb") as copied_file:
            if hashlib.file_digest(copied_file, "sha256").hexdigest() != sha256:
                raise InputError(f"{bundle_tar} changed while it was being approved; approve it again")
        part.replace(self._folder / "repository" / name)
        sync_folder(self._models)


class _Rotation:
    """One change of keys, from the offline ring and the online one."""

    def __init__(self, now: Roles, offline: KeyRing, online: KeyRing, now_ns: int) -> None:
        self._now = now
        self._rings = {**dict.fromkeys(OFFLINE, offline), **dict.fromkeys(ONLINE, online)}
        self._now_ns = now_ns

    def run(self, wanted: Sequence[str], publish: Callable[[Roles], None]) -> None:
        now, now_ns = self._now, self._now_ns
        in_root = [role for role in wanted if role != DIRECTOR]
        old_root = self._need("root", ROOT_THRESHOLD) if in_root else []
        if DIRECTOR in wanted and "targets" not in wanted:
            self._need("targets", 1)
        fresh = {role: [self._rings[role].generate(role) for _ in range(_key_count(role))] for role in wanted}
        made = now
        if in_root:
            made = tuf_roles.next_root(made, {role: _public(fresh[role]) for role in in_root}, now_ns)
            tuf_roles.sign(made.root, [*old_root, *fresh.get("root", ())])
        if DIRECTOR in wanted:
            made = tuf_roles.next_director(made, _public(fresh[DIRECTOR]), now_ns)
        elif "targets" in wanted:
            made = tuf_roles.next_targets(made, now_ns)
        if made.targets is not now.targets:
            tuf_roles.sign(made.targets, self._signers("targets", fresh))
        made = tuf_roles.next_snapshot(made, now_ns)
        tuf_roles.sign(made.snapshot, self._signers("snapshot", fresh))
        made = tuf_roles.next_timestamp(made, now_ns)
        tuf_roles.sign(made.timestamp, self._signers("timestamp", fresh))
        publish(made)
        for role in wanted:
            self._rings[role].forget(role, now.keyids(role))

    def _signers(self, role: str, fresh: Mapping[str, Sequence[Signer]]) -> Sequence[Signer]:
        return fresh[role] if role in fresh else self._need(role, 1)

    def _need(self, role: str, count: int) -> list[Signer]:
        return self._rings[role].need(role, self._now.keyids(role), count)


def _first_online(made: Roles, signers: Mapping[str, Sequence[Signer]], now_ns: int) -> Roles:
    """Snapshot and timestamp of version 1 over the signed targets."""
    made = tuf_roles.next_snapshot(made, now_ns)
    made.snapshot.signed.version = 1
    tuf_roles.sign(made.snapshot, signers["snapshot"])
    made = tuf_roles.next_timestamp(made, now_ns)
    made.timestamp.signed.version = 1
    tuf_roles.sign(made.timestamp, signers["timestamp"])
    return made


def _ring(offline_keys: Path | KeyRing) -> KeyRing:
    return offline_keys if isinstance(offline_keys, KeyRing) else KeyRing(offline_keys)


def _key_count(role: str) -> int:
    return ROOT_KEYS if role == "root" else 1


def _public(signers: Sequence[Signer]) -> list[PublicKey]:
    return [signer.public_key for signer in signers]


def _artifact_name(digest: str) -> str:
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InputError(f"expected sha256:<64 hex digits> of a bundle, got {digest[:100]!r}")
    return f"models/{match[1]}.tar"


def _target(name: str, archive: Archive) -> TargetFile:
    custom = {"name": archive.manifest.name, "version": archive.manifest.version, "blocks": list(archive.blocks)}
    return TargetFile(archive.size_bytes, {"sha256": archive.sha256}, name, {"custom": custom})


def _approved(file: TargetFile) -> Approved:
    digest = "sha256:" + file.path.removeprefix("models/").removesuffix(".tar")
    return Approved(file.path, digest, file.custom["name"], file.custom["version"], file.length, file.hashes["sha256"])


def _signed_offline(now: Roles, name: str) -> TargetFile:
    """The director's entry of a model: that of the offline targets, without what is only for whoever fetches."""
    approved = now.targets.signed.targets.get(name)
    if approved is None:
        raise InputError(f"{name} was not signed offline; approve it: edge-runtime controller approve")
    return TargetFile(approved.length, dict(approved.hashes), name)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in the repository")
    return path


def _same(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes() == data
