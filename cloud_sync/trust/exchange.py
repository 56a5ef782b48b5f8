"""What the verifier and its child say to each other, and how large each thing on the wire may be. Pure.

One JSON line each way. The child answers a request with what is still `need`ed, or with one of the ends; asked again with more blobs
in the folder, it goes on. A blob's name is that of the controller's blob service: `tuf/<file>.json` or `documents/<sha256 hex>`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec

from edge_runtime.errors import InputError

WIRE_VERSION = 1
MAX_MESSAGE_BYTES = 256 * 1024
MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_MODELS = 64
ROOT_MAX_BYTES = 64 * 1024
TIMESTAMP_MAX_BYTES = 16 * 1024
SNAPSHOT_MAX_BYTES = 64 * 1024
TARGETS_MAX_BYTES = 4 * 1024 * 1024
MAX_ROOT_ROTATIONS = 256
TURN_DEADLINE_S = 30

_METADATA = re.compile(r"tuf/(?:[1-9][0-9]{0,18}\.)?(root|timestamp|snapshot|targets)\.json")
_DOCUMENT = re.compile(r"documents/[0-9a-f]{64}")
_LIMITS = {"root": ROOT_MAX_BYTES, "timestamp": TIMESTAMP_MAX_BYTES, "snapshot": SNAPSHOT_MAX_BYTES, "targets": TARGETS_MAX_BYTES}

Revision = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Artifact(msgspec.Struct, frozen=True):
    """A file that the deployment needs, as it was signed offline. `name` is `models/<hex>.tar`, `digest` the bundle's `sha256:<hex>`.

    `sha256` is that of the file, `blocks` those of each MiB of it (hex; empty where the signer gave none).
    """

    name: str
    digest: str
    size_bytes: int
    sha256: str
    blocks: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True):
    """What the child shall judge. Paths are absolute; `absent` are names that the controller said it has not.

    `now_wall_ns` is the machine's clock; no time before `build_wall_ns` is believed.
    """

    trust_dir: str
    trust_root: str
    fetched: str
    message: str
    tenant: str
    gateway: str
    last_revision: int
    now_wall_ns: int
    build_wall_ns: int = 0
    absent: tuple[str, ...] = ()


class Accepted(msgspec.Struct, frozen=True):
    """A DesiredDeployment whose document is in a file, and what it needs. `signed_wall_ns` is the newest signed time."""

    revision: Revision
    digest: str
    document: str
    expires_wall_ns: int
    models: tuple[str, ...]
    artifacts: tuple[Artifact, ...]
    signed_wall_ns: int


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly one field but `message` is set: blobs to fetch, or how it ended."""

    need: tuple[str, ...] = ()
    desired: Accepted | None = None
    refused: str | None = None
    missing: tuple[str, str] | None = None
    failed: str | None = None
    message: str = ""


def blob_limit(name: str) -> int:
    """The most bytes that a metadata or document blob may have. Raises InputError for a name that the verifier never asks for."""
    if match := _METADATA.fullmatch(name):
        return _LIMITS[match[1]]
    if _DOCUMENT.fullmatch(name):
        return MAX_DOCUMENT_BYTES
    raise InputError(f"expected tuf/<role>.json or documents/<sha256>, got {name[:200]!r}")


def blob_path(folder: Path, name: str) -> Path:
    """Where a blob is kept for the child: one flat name in `folder`, whatever `name` holds."""
    return folder / quote(name, safe="")
