"""TUF metadata made and re-made: root, targets, snapshot, timestamp, and the director's delegation. Pure: no files, no keys of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from cloud_sync.controller.signing.keys import PublicKey, Signer

DIRECTOR = "director"
DIRECTED = "gateways/*"
DEPLOYMENT = "deployment"
EXTRA = "edge_runtime"
OFFLINE = ("root", "targets")
ONLINE = ("snapshot", "timestamp", DIRECTOR)
ROOT_KEYS = 3
ROOT_THRESHOLD = 2
REVISIONS_A_TERM = 10**9

_DAY_NS = 86_400 * 10**9
LIFETIME_NS = {"root": 730 * _DAY_NS, "targets": 365 * _DAY_NS, "snapshot": 30 * _DAY_NS, "timestamp": 7 * _DAY_NS}
_SERIALIZER = JSONSerializer(compact=True)
_Signed = TypeVar("_Signed", Root, Targets, Snapshot, Timestamp)
Keys = Mapping[str, Sequence[PublicKey]]


@dataclass(frozen=True)
class Roles:
    """One consistent state of the repository."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def keyids(self, role: str) -> list[str]:
        """Ids of the keys that may sign `role`, the director included."""
        return list(self.director.keyids if role == DIRECTOR else self.root.signed.roles[role].keyids)

    @property
    def director(self) -> DelegatedRole:
        """The delegation to the online key that signs deployments."""
        delegations = self.targets.signed.delegations
        assert delegations is not None
        assert delegations.roles is not None
        return delegations.roles[DIRECTOR]

    @property
    def revisions(self) -> tuple[int, int]:
        """First and last revision that the present director may sign."""
        limits = self.director.unrecognized_fields[EXTRA]["revisions"]
        return int(limits["first"]), int(limits["last"])

    def files(self) -> dict[str, bytes]:
        """By file name as served: consistent snapshots, and the newest root also as `root.json`."""
        root = self.root.to_bytes(_SERIALIZER)
        return {
            "root.json": root,
            f"{self.root.signed.version}.root.json": root,
            f"{self.targets.signed.version}.targets.json": self.targets.to_bytes(_SERIALIZER),
            f"{self.snapshot.signed.version}.snapshot.json": self.snapshot.to_bytes(_SERIALIZER),
            "timestamp.json": self.timestamp.to_bytes(_SERIALIZER),
        }

    def check(self) -> None:
        """Raises UnsignedMetadataError when a gateway would refuse one of the four."""
        root = self.root.signed
        root.verify_delegate("root", self.root.signed_bytes, self.root.signatures)
        for role, metadata in (("targets", self.targets), ("snapshot", self.snapshot), ("timestamp", self.timestamp)):
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def first(keys: Keys, now_ns: int) -> Roles:
    """Version 1 of everything, unsigned."""
    root = Root(version=1, expires=_expiry("root", now_ns), consistent_snapshot=True)
    root.roles["root"] = Role([], ROOT_THRESHOLD)
    for role in TOP_LEVEL_ROLE_NAMES:
        for key in keys[role]:
            root.add_key(key, role)
    targets = Targets(version=1, expires=_expiry("targets", now_ns))
    targets.delegations = _delegations(keys[DIRECTOR], 1)
    snapshot = Snapshot(version=1, expires=_expiry("snapshot", now_ns))
    timestamp = Timestamp(version=1, expires=_expiry("timestamp", now_ns))
    return Roles(Metadata(root), Metadata(targets), Metadata(snapshot), Metadata(timestamp))


def next_root(roles: Roles, keys: Keys, now_ns: int) -> Roles:
    """With root N+1, unsigned, where `keys` take the places of the roles they name."""
    root = _next(roles.root.signed, "root", now_ns)
    for role, fresh in keys.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for key in fresh:
            root.add_key(key, role)
    return replace(roles, root=Metadata(root))


def next_targets(roles: Roles, now_ns: int, files: Iterable[TargetFile] = (), without: Iterable[str] = ()) -> Roles:
    """With the next targets version, unsigned: `files` added, the names in `without` taken out."""
    targets = _next(roles.targets.signed, "targets", now_ns)
    targets.targets.update({file.path: file for file in files})
    for name in without:
        targets.targets.pop(name, None)
    return replace(roles, targets=Metadata(targets))


def next_director(roles: Roles, keys: Sequence[PublicKey], now_ns: int) -> Roles:
    """With a new director, whose revisions begin where the old one's would have ended; targets unsigned."""
    changed = next_targets(roles, now_ns)
    changed.targets.signed.delegations = _delegations(keys, roles.revisions[1] + 1)
    return changed


def next_snapshot(roles: Roles, now_ns: int) -> Roles:
    """With the next snapshot of the present targets, unsigned."""
    snapshot = _next(roles.snapshot.signed, "snapshot", now_ns)
    snapshot.meta["targets.json"] = _meta(roles.targets)
    return replace(roles, snapshot=Metadata(snapshot))


def next_timestamp(roles: Roles, now_ns: int) -> Roles:
    """With the next timestamp of the present snapshot, unsigned. It says when it was made: gateways without a clock go by that."""
    timestamp = _next(roles.timestamp.signed, "timestamp", now_ns)
    timestamp.snapshot_meta = _meta(roles.snapshot)
    timestamp.unrecognized_fields[EXTRA] = {"issued": now_ns}
    return replace(roles, timestamp=Metadata(timestamp))


def sign(metadata: Metadata[_Signed], signers: Iterable[Signer]) -> None:
    """Adds a signature of each signer."""
    for signer in signers:
        metadata.sign(signer, append=True)


def expires_in(expires_ns: int) -> datetime:
    """An expiry as TUF writes it: whole seconds."""
    return datetime.fromtimestamp(expires_ns // 10**9, UTC)


def expires_ns(signed: Signed) -> int:
    return int(signed.expires.timestamp()) * 10**9


def _meta(metadata: Metadata[_Signed]) -> MetaFile:
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(_SERIALIZER), ["sha256"])


def _next(signed: _Signed, role: str, now_ns: int) -> _Signed:
    """A copy one version on, with a new expiry."""
    newer = copy.deepcopy(signed)
    newer.version += 1
    newer.expires = _expiry(role, now_ns)
    return newer


def _expiry(role: str, now_ns: int) -> datetime:
    return expires_in(now_ns + LIFETIME_NS[role])


def _delegations(keys: Sequence[PublicKey], first_revision: int) -> Delegations:
    term = {"revisions": {"first": first_revision, "last": first_revision + REVISIONS_A_TERM - 1}}
    role = DelegatedRole(DIRECTOR, [key.keyid for key in keys], 1, True, paths=[DIRECTED], unrecognized_fields={EXTRA: term})
    return Delegations({key.keyid: key for key in keys}, {DIRECTOR: role})
