"""A bundle's tar as the signer sees it: every file checked against the manifest before anything is signed. Extracts nothing."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from edge_runtime.bundle import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from edge_runtime.errors import ModelRefused, RefusalReason

BLOCK_BYTES = 1024 * 1024
MAX_TAR_BYTES = 1024**3
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Archive:
    """A checked tar. `digest` is the bundle's hex digest, `blocks` the sha256 of each MiB."""

    digest: str
    manifest: Manifest
    size_bytes: int
    sha256: str
    blocks: tuple[str, ...]


def read_archive(path: Path) -> Archive:
    """Raises ModelRefused(MISSING | UNREADABLE | TOO_LARGE) for anything that a gateway would not take."""
    try:
        size = path.stat().st_size
    except OSError as err:
        raise ModelRefused(RefusalReason.MISSING, f"{path}: {err.strerror}; expected the tar of a bundle") from err
    if size > MAX_TAR_BYTES:
        raise ModelRefused(RefusalReason.TOO_LARGE, f"{path} has {size} bytes, at most {MAX_TAR_BYTES} are signed")
    try:
        with tarfile.open(path, "r:") as tar:
            digest, manifest = _check_members(tar, path.name)
    except (tarfile.TarError, OSError, EOFError, ValueError) as err:
        if isinstance(err, ModelRefused):
            raise
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path} is no bundle's tar: {err}") from err
    sha256, blocks = _hash_blocks(path)
    return Archive(digest, manifest, size, sha256, blocks)


def _check_members(tar: tarfile.TarFile, source: str) -> tuple[str, Manifest]:
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > MAX_MANIFEST_BYTES:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: expected {MANIFEST} as the first file")
    text = _open(tar, first).read()
    manifest = parse_manifest(text, f"{source}:{MANIFEST}")
    left = dict(manifest.files)
    for number, member in enumerate(iter(tar.next, None)):
        entry = left.pop(member.name, None)
        if number > MAX_FILES or not member.isreg() or entry is None or entry.size_bytes != member.size:
            raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: `{member.name}` is not a file of the manifest, or not of its size")
        if hashlib.file_digest(_open(tar, member), "sha256").hexdigest() != entry.sha256:
            raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: `{member.name}` is not the file that the manifest lists")
    if left:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: `{next(iter(left))}` is missing")
    return hashlib.sha256(text).hexdigest(), manifest


def _open(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BufferedReader:
    stream = tar.extractfile(member)
    assert isinstance(stream, BufferedReader)
    return stream


def _hash_blocks(path: Path) -> tuple[str, tuple[str, ...]]:
    whole, blocks = hashlib.sha256(), []
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(hashlib.sha256(block).hexdigest())
    return whole.hexdigest(), tuple(blocks)
