"""The model bundle: a folder with a graph, its manifest and its golden runs, named by the digest of the manifest.

The manifest lists every file with its sha256, so one digest stands for all of them. This module reads, verifies and writes
manifests; it loads no model. A bundle travels as a plain tar of the same files (`models.store`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge_runtime.errors import ModelRefused, RefusalReason

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 1024
MAX_FILES = 64

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One input or output of the graph. `shape` has -1 for free dimensions.

    With `scale`, real = scale * (stored - zero_point). `channels` names the rows of a window or the columns of a table, in order, and
    `units` says their units one by one where they differ from `unit`; `rate_hz` is that of a signal or a sound. Of a picture,
    `channels` are its colours (default R, G, B), `mean` and `std` (one number, or one a colour) turn 0..255 into (value - mean) / std,
    and `resize` says what gives way when its sides do not fit.
    """

    name: Text
    shape: tuple[int, ...]
    dtype: Text
    scale: float = 0.0
    zero_point: int = 0
    unit: Text = ""
    rate_hz: float = 0.0
    channels: tuple[Text, ...] = ()
    kind: Literal["", "tabular", "signal", "image", "audio"] = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    units: tuple[Text, ...] = ()
    resize: Literal["stretch", "crop", "pad"] = "stretch"


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and the outputs that they gave where the model was made: arrays `in<i>` and `out<i>` of an npz, one run per row."""

    file: FileName
    tolerance: Annotated[float, msgspec.Meta(ge=0)]


class Window(msgspec.Struct, frozen=True):
    """Samples per inference, and samples between two."""

    size: Annotated[int, msgspec.Meta(ge=1)]
    hop: Annotated[int, msgspec.Meta(ge=1)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model is, needs, was made from and costs. Unknown keys are kept out of the way: newer makers may add some.

    `state` names the output that becomes an input of the next run: such inputs start at zero and are nobody else's. `preprocess` are
    steps (`edge_runtime.steps`) from a window, a sound or a table to what the graph takes.
    """

    schema: Literal[1]
    name: ModelName
    version: Annotated[int, msgspec.Meta(ge=0)]
    task: Literal["classifier", "detector", "other"] = "other"
    model: FileName
    files: dict[FileName, FileEntry]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    labels: tuple[Text, ...] = ()
    window: Window | None = None
    preprocess: tuple[Text, ...] = ()
    state: dict[Text, Text] = {}
    golden: Golden | None = None
    precision: Text = ""
    target: Literal["any", "x86", "arm", "mcu"] = "any"
    license: Text
    provenance: dict[str, Any] = {}
    measured: dict[str, Any] = {}


class Bundle(msgspec.Struct, frozen=True):
    """A folder whose manifest has been read. `digest` is `sha256:<hex>` of the manifest's bytes."""

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def model(self) -> Path:
        """The graph's file."""
        return self.folder / self.manifest.model

    @property
    def golden(self) -> Path | None:
        """The golden runs' file."""
        return self.folder / self.manifest.golden.file if self.manifest.golden else None


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder; hashes nothing but the manifest. Raises ModelRefused(MISSING | UNREADABLE)."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as err:
        raise ModelRefused(RefusalReason.MISSING, f"{path}: {err.strerror}; a bundle is a folder with a {MANIFEST}") from err
    return Bundle(folder, parse_manifest(text, str(path)), "sha256:" + hashlib.sha256(text).hexdigest())


def parse_manifest(text: bytes, source: str) -> Manifest:
    """A manifest from its bytes. Raises ModelRefused(UNREADABLE) naming the key."""
    if len(text) > MAX_MANIFEST_BYTES:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: expected at most {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: {err}") from err
    wanted = [manifest.model, *([manifest.golden.file] if manifest.golden else [])]
    missing = [name for name in wanted if name not in manifest.files]
    if missing or MANIFEST in manifest.files or len(manifest.files) > MAX_FILES:
        what = f"`{missing[0]}` is not" if missing else f"`{MANIFEST}` or more than {MAX_FILES} files are"
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: files: {what} in the list; make the bundle again")
    if manifest.state:
        _check_state(manifest, source)
    return manifest


def _check_state(manifest: Manifest, source: str) -> None:
    """Each state is one output that feeds one input of its own, and one input is left to the outside."""
    outputs, inputs = ({port.name for port in ports} for ports in (manifest.outputs, manifest.inputs))
    fed = list(manifest.state.values())
    unknown = [name for name in manifest.state if name not in outputs] + [name for name in fed if name not in inputs]
    if unknown:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: state: `{unknown[0]}` is no output, or no input, of this manifest")
    if len(set(fed)) < len(fed) or len(fed) >= len(inputs):
        raise ModelRefused(RefusalReason.UNREADABLE, f"{source}: state: expected an input of its own for each output and one more for data")


def verify(bundle: Bundle) -> None:
    """Compares every listed file with its digest. Raises ModelRefused(MISSING | UNREADABLE) naming the first that differs."""
    for name, entry in bundle.manifest.files.items():
        path = bundle.folder / name
        if path.is_symlink() or not path.is_file():
            raise ModelRefused(RefusalReason.MISSING, f"{path} is listed in the manifest and is not a file of the bundle")
        if path.stat().st_size != entry.size_bytes or _sha256(path) != entry.sha256:
            raise ModelRefused(RefusalReason.UNREADABLE, f"{path} is not the file that the manifest lists; fetch the bundle again")


def write_manifest(folder: Path, manifest: Manifest, files: Sequence[str]) -> Bundle:
    """Writes the manifest of a finished folder, with the digests of `files`; the same content gives the same bytes."""
    entries = {name: FileEntry(_sha256(folder / name), (folder / name).stat().st_size) for name in sorted(files)}
    whole = msgspec.structs.replace(manifest, files=entries)
    text = msgspec.json.format(msgspec.json.encode(whole, order="deterministic"), indent=2) + b"\n"
    parse_manifest(text, str(folder / MANIFEST))
    (folder / MANIFEST).write_bytes(text)
    return read_bundle(folder)


def find_model(path: Path) -> tuple[Path, Bundle | None]:
    """The graph's file for a file or a bundle's folder, and the bundle where there is one.

    Raises ModelRefused(MISSING | UNREADABLE).
    """
    if path.is_dir():
        bundle = read_bundle(path)
        return bundle.model, bundle
    if path.name == MANIFEST:
        return find_model(path.parent)
    if not path.is_file():
        raise ModelRefused(RefusalReason.MISSING, f"there is no model {path}")
    if (path.parent / MANIFEST).is_file():
        bundle = read_bundle(path.parent)
        return path, bundle if bundle.model == path else None
    return path, None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
