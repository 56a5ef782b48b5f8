"""A bundle as one file: a plain tar of the manifest and the files it lists. Nothing is compressed; only what can be checked is read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from edge_runtime.bundle import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, Bundle, Manifest, parse_manifest, read_bundle, verify
from edge_runtime.errors import ModelRefused, RefusalReason

MAX_BYTES = 1024**3


def pack(bundle: Bundle, out: Path) -> None:
    """Writes the verified bundle; the same bundle gives the same bytes."""
    verify(bundle)
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in (MANIFEST, *sorted(bundle.manifest.files)):
            content = (bundle.folder / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))


def unpack(archive: Path, folder: Path) -> Bundle:
    """The bundle in `folder`, which is empty before. The manifest comes first and says what may follow.

    Raises ModelRefused(UNREADABLE | TOO_LARGE): another name, a link, a path, a size that differs, a file twice or too few.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            _extract(tar, archive.name, folder)
    except (tarfile.TarError, OSError, EOFError, ValueError) as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{archive.name} is no bundle: {err}") from err
    bundle = read_bundle(folder)
    verify(bundle)
    return bundle


def _extract(tar: tarfile.TarFile, source: str, folder: Path) -> None:
    manifest: Manifest | None = None
    wanted: dict[str, int] = {}
    for number, member in enumerate(tar):
        if number > MAX_FILES or not member.isreg():
            raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: `{member.name}` is no plain file of a bundle")
        if manifest is None:
            manifest = _first(tar, member, source, folder)
            wanted = {name: entry.size_bytes for name, entry in manifest.files.items()}
        elif wanted.pop(member.name, None) != member.size:
            raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: `{member.name}` is not in the manifest, or not of that size, or twice")
        else:
            (folder / member.name).write_bytes(_content(tar, member))
    if manifest is None or wanted:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: {next(iter(wanted), MANIFEST)} is missing; it was cut short")


def _first(tar: tarfile.TarFile, member: tarfile.TarInfo, source: str, folder: Path) -> Manifest:
    if member.name != MANIFEST or member.size > MAX_MANIFEST_BYTES:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: expected {MANIFEST} first, got `{member.name}` of {member.size} bytes")
    text = _content(tar, member)
    manifest = parse_manifest(text, f"{source}:{MANIFEST}")
    total = sum(entry.size_bytes for entry in manifest.files.values())
    if total > MAX_BYTES:
        raise ModelRefused(RefusalReason.TOO_LARGE, f"{source}: holds {total} bytes, at most {MAX_BYTES} are taken")
    (folder / MANIFEST).write_bytes(text)
    return manifest


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    if len(content) != member.size:
        raise ModelRefused(RefusalReason.UNREADABLE, f"`{member.name}` is cut short")
    return content
