"""Judges one signed deployment: refreshes the metadata, then checks signature, addressee, revision, expiry, models and document.

Runs in the child only. Raises DeploymentRefused, or NotFetched when a blob is still to be brought.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard

import msgspec
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, TargetFile, Targets, Timestamp

from cloud_sync.trust import exchange, record
from cloud_sync.trust.exchange import Accepted, Artifact, Request
from cloud_sync.trust.updater import BLOBS, FolderFetcher, NotFetched, TimedUpdater, time_keys
from edge_runtime.errors import DeploymentReason, DeploymentRefused

DIRECTOR = "director"
DEPLOYMENT = "deployment"
EXTRA = "edge_runtime"

_MODEL = re.compile(r"models/([0-9a-f]{64})\.tar")
_BLOCK = re.compile(r"[0-9a-f]{64}")
_MAX_BLOCKS = 4096
_MAX_WALL_NS = 2**63 - 1
_ODD_CLOCK_NS = 400 * 86_400 * 10**9
_REASONS: tuple[tuple[type[Exception], DeploymentReason], ...] = (
    (ExpiredMetadataError, DeploymentReason.EXPIRED),
    (BadVersionNumberError, DeploymentReason.OLD_REVISION),
    (UnsignedMetadataError, DeploymentReason.UNSIGNED),
    (LengthOrHashMismatchError, DeploymentReason.UNSIGNED),
    (DownloadLengthMismatchError, DeploymentReason.MALFORMED),
    (RepositoryError, DeploymentReason.MALFORMED),
    (DownloadError, DeploymentReason.MODEL_UNAVAILABLE),
)


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of dn/desired: the director's metadata, and the document unless it is too large to travel along."""

    v: int
    metadata: msgspec.Raw
    document: str | None


class _Version(msgspec.Struct, frozen=True):
    v: int


def judge(request: Request) -> Accepted:
    """What the gateway shall run. Each refusal leaves the trust folder as trustworthy as it was."""
    try:
        return _judge(request)
    except NotFetched:
        raise
    except (RepositoryError, DownloadError) as err:
        raise _refusal(err) from err


def _judge(request: Request) -> Accepted:
    envelope = _read_envelope(Path(request.message))
    offer = _parse_metadata(bytes(envelope.metadata))
    updater, kept, at_ns = _refresh(request)
    _check_signature(updater.targets, offer)
    signed = offer.signed
    _check_addressee(signed, request)
    if signed.is_expired(datetime.fromtimestamp(at_ns // 10**9, UTC)):
        raise _expired(f"revision {signed.version} was good until {signed.expires:%Y-%m-%dT%H:%M:%SZ}", request, kept, at_ns)
    digest = hashlib.sha256(offer.signed_bytes).hexdigest()
    _check_revision(updater.targets, signed.version, digest, request.last_revision, kept)
    artifacts = _check_models(updater, signed.targets)
    document = _take_document(request, signed.targets, envelope.document)
    record.save(Path(request.trust_dir), msgspec.structs.replace(kept, revision=signed.version, digest=digest))
    return Accepted(
        revision=signed.version,
        digest=f"sha256:{signed.targets[DEPLOYMENT].hashes['sha256']}",
        document=str(document),
        expires_wall_ns=int(signed.expires.timestamp()) * 10**9,
        models=tuple(artifact.digest for artifact in artifacts),
        artifacts=artifacts,
        signed_wall_ns=kept.signed_wall_ns,
    )


def _read_envelope(path: Path) -> Envelope:
    with path.open("rb") as file:
        text = file.read(exchange.MAX_MESSAGE_BYTES + 1)
    if len(text) > exchange.MAX_MESSAGE_BYTES:
        raise _malformed(f"expected at most {exchange.MAX_MESSAGE_BYTES} bytes")
    try:
        version = msgspec.json.decode(text, type=_Version).v
        if version != exchange.WIRE_VERSION:
            raise _malformed(f"the message has version {version}, this program knows {exchange.WIRE_VERSION}: update the gateway")
        return msgspec.json.decode(text, type=Envelope)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as err:
        raise _malformed(f"expected a signed deployment in JSON: {err}") from err


def _parse_metadata(text: bytes) -> Metadata[Targets]:
    try:
        metadata = Metadata[Targets].from_bytes(text)
        if not isinstance(metadata.signed, Targets):
            raise _malformed(f"expected targets metadata, got {metadata.signed.type}")
        if metadata.signed.version > _MAX_WALL_NS:
            raise _malformed("the revision does not fit into 63 bits")
        metadata.signed_bytes  # noqa: B018 -- canonical JSON has no floats: refuse them here
    except (RepositoryError, RecursionError, ValueError) as err:
        raise err if isinstance(err, DeploymentRefused) else _malformed(f"the signed part is not understood: {err}") from err
    return metadata


def _refresh(request: Request) -> tuple[TimedUpdater, record.Record, int]:
    """Metadata as new as can be had, the record with its time, and the time that was judged by (ns)."""
    folder = Path(request.trust_dir)
    kept = record.load(folder)
    at_ns = max(request.now_wall_ns, kept.signed_wall_ns, request.build_wall_ns)
    updater = _updater(request, at_ns)
    try:
        updater.refresh()
    except ExpiredMetadataError as err:
        floor_ns = kept.time_floor_ns(time_keys(updater.root))
        if floor_ns == kept.signed_wall_ns:
            _keep_time(folder, kept, updater)
            raise _expired(str(err), request, kept, at_ns) from err
        kept = kept.with_time(0, time_keys(updater.root))
        at_ns = max(request.now_wall_ns, floor_ns, request.build_wall_ns)
        updater = _updater(request, at_ns)
        updater.refresh()
    return updater, _keep_time(folder, kept, updater), at_ns


def _updater(request: Request, at_ns: int) -> TimedUpdater:
    folder = Path(request.trust_dir, "metadata")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("tmp*"):  # what a killed updater was writing
        left.unlink()
    with Path(request.trust_root).open("rb") as file:
        bootstrap = file.read(exchange.ROOT_MAX_BYTES + 1)
    return TimedUpdater(folder, BLOBS, FolderFetcher(Path(request.fetched), request.absent), bootstrap, at_ns)


def _keep_time(folder: Path, kept: record.Record, updater: TimedUpdater) -> record.Record:
    """The record with the newest signed time, saved when it has changed."""
    timestamp = updater.timestamp
    if timestamp is None:
        return kept
    newer = kept.with_time(_issued_ns(timestamp), time_keys(updater.root))
    if newer != kept:
        record.save(folder, newer)
    return newer


def _issued_ns(timestamp: Timestamp) -> int:
    extra = timestamp.unrecognized_fields.get(EXTRA)
    issued = extra.get("issued") if isinstance(extra, dict) else None
    return issued if _is_number(issued, _MAX_WALL_NS) else 0


def _check_signature(targets: Targets, offer: Metadata[Targets]) -> None:
    try:
        targets.verify_delegate(DIRECTOR, offer.signed_bytes, offer.signatures)
    except (UnsignedMetadataError, ValueError) as err:
        message = f"the message is not signed by the director that the repository names: {err}"
        raise DeploymentRefused(DeploymentReason.UNSIGNED, message) from err


def _check_addressee(signed: Targets, request: Request) -> None:
    extra = signed.unrecognized_fields.get(EXTRA)
    named = (extra.get("tenant"), extra.get("gateway")) if isinstance(extra, dict) else (None, None)
    if named != (request.tenant, request.gateway):
        message = f"it is made out to {named[0]}/{named[1]}, this is {request.tenant}/{request.gateway}"
        raise DeploymentRefused(DeploymentReason.WRONG_GATEWAY, message[:400])


def _check_revision(targets: Targets, revision: int, digest: str, last_revision: int, kept: record.Record) -> None:
    first, last = _revisions(targets)
    seen = max(last_revision, kept.revision)
    if revision > last:
        raise _malformed(f"revision {revision} is above {last}, the highest that this director may sign: rotate the director key")
    if revision < first:
        raise _old(f"revision {revision} is below {first}, where the present director began")
    if revision < seen:
        raise _old(f"revision {revision} is older than {seen}, which was taken before")
    if revision == kept.revision and digest != kept.digest:
        raise _old(f"revision {revision} was taken before with another content: push again under a higher revision")


def _revisions(targets: Targets) -> tuple[int, int]:
    """First and last revision of the director's term of office, as signed offline."""
    extra = targets.get_delegated_role(DIRECTOR).unrecognized_fields.get(EXTRA)
    limits = extra.get("revisions") if isinstance(extra, dict) else None
    first, last = (limits.get("first"), limits.get("last")) if isinstance(limits, dict) else (None, None)
    if not _is_number(first, _MAX_WALL_NS) or not _is_number(last, _MAX_WALL_NS):
        raise _malformed("the repository does not say which revisions its director may sign")
    return first, last


def _check_models(updater: TimedUpdater, named: Mapping[str, TargetFile]) -> tuple[Artifact, ...]:
    models = sorted(set(named) - {DEPLOYMENT})
    strange = [name for name in models if not _MODEL.fullmatch(name)]
    if strange or DEPLOYMENT not in named:
        raise _malformed(
            f"expected `{DEPLOYMENT}` and models/<digest>.tar, got {strange[0]!r:.200}" if strange else f"no `{DEPLOYMENT}` in it"
        )
    if len(models) > exchange.MAX_MODELS:
        raise _malformed(f"it names {len(models)} models, at most {exchange.MAX_MODELS} are taken")
    return tuple(_check_model(updater, name, named[name]) for name in models)


def _check_model(updater: TimedUpdater, name: str, wanted: TargetFile) -> Artifact:
    approved = updater.targets.targets.get(name)
    if approved is None:
        raise DeploymentRefused(DeploymentReason.UNKNOWN_MODEL, f"{name} was not signed offline; approve it at the controller")
    if (approved.length, approved.hashes) != (wanted.length, wanted.hashes) or "sha256" not in approved.hashes:
        raise DeploymentRefused(DeploymentReason.UNKNOWN_MODEL, f"{name} is not the file that was signed offline")
    digest = name.removeprefix("models/").removesuffix(".tar")
    return Artifact(name, f"sha256:{digest}", approved.length, approved.hashes["sha256"], _blocks(approved))


def _blocks(approved: TargetFile) -> tuple[str, ...]:
    custom = approved.custom
    blocks = custom.get("blocks") if isinstance(custom, dict) else None
    if not isinstance(blocks, list) or len(blocks) > _MAX_BLOCKS:
        return ()
    return tuple(blocks) if all(isinstance(block, str) and _BLOCK.fullmatch(block) for block in blocks) else ()


def _take_document(request: Request, named: Mapping[str, TargetFile], inline: str | None) -> Path:
    """The document as a file, compared with what was signed."""
    wanted = named[DEPLOYMENT]
    digest = wanted.hashes.get("sha256", "")
    if not _BLOCK.fullmatch(digest) or wanted.length > exchange.MAX_DOCUMENT_BYTES:
        raise _malformed(f"expected a document of at most {exchange.MAX_DOCUMENT_BYTES} bytes and its sha256")
    path = Path(request.fetched, "document")
    if inline is not None:
        path.write_bytes(inline.encode())
    else:
        path = _fetched_document(request, f"documents/{digest}")
    with path.open("rb") as file:
        try:
            wanted.verify_length_and_hashes(file)
        except LengthOrHashMismatchError as err:
            raise DeploymentRefused(DeploymentReason.UNSIGNED, f"the document is not the one that was signed: {err}") from err
    return path


def _fetched_document(request: Request, name: str) -> Path:
    if name in request.absent:
        raise DeploymentRefused(DeploymentReason.MODEL_UNAVAILABLE, f"the controller has no {name}")
    path = exchange.blob_path(Path(request.fetched), name)
    if not path.exists():
        raise NotFetched(name)
    return path


def _refusal(err: RepositoryError | DownloadError) -> DeploymentRefused:
    """A library's error on what was fetched, as the refusal that it means."""
    reason = next(reason for kind, reason in _REASONS if isinstance(err, kind))
    return DeploymentRefused(reason, f"the repository's metadata: {err}"[:600])


def _expired(what: str, request: Request, kept: record.Record, at_ns: int) -> DeploymentRefused:
    hint = "refresh it at the controller, or push again"
    if request.now_wall_ns == at_ns and at_ns - kept.signed_wall_ns > _ODD_CLOCK_NS and kept.signed_wall_ns:
        hint = f"the newest signed time seen here is {_iso(kept.signed_wall_ns)}: check this gateway's clock"
    return DeploymentRefused(DeploymentReason.EXPIRED, f"{what}; the time taken is {_iso(at_ns)}; {hint}")


def _iso(wall_ns: int) -> str:
    return f"{datetime.fromtimestamp(wall_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _is_number(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _malformed(message: str) -> DeploymentRefused:
    return DeploymentRefused(DeploymentReason.MALFORMED, message[:600])


def _old(message: str) -> DeploymentRefused:
    return DeploymentRefused(DeploymentReason.OLD_REVISION, message)
