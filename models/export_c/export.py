"""From a quantized model file to the signed blob, with what it costs: the entry of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import find_model, verify
from edge_runtime.errors import EdgeRuntimeError, InputError, ModelRefused, RefusalReason
from models.export_c import arena, blob, limits
from models.export_c.network import Network, Rounding
from models.export_c.report import Report, report

_NAME_BYTES = 16
_CONTRADICTIONS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True)
class Exported:
    """The blob's bytes, the network in them, and the report."""

    data: bytes
    network: Network
    report: Report


def export(
    model: Path,
    *,
    rounding: Rounding = Rounding.HALF_EVEN,
    name: str = "",
    version: int | None = None,
    key: bytes = blob.DEVELOPMENT_KEY,
) -> Exported:
    """The blob of a .onnx or .tflite file, or of a bundle, whose name and version are taken unless others are given.

    Raises ModelRefused naming the operator and its node when the firmware cannot run it, InputError for a wrong key or version.
    """
    path, bundle = find_model(model)
    if bundle is not None:
        verify(bundle)
        name, version = name or bundle.manifest.name, version or max(bundle.manifest.version, 1)
    network = read(path, rounding)
    return pack(network, rounding, name=name or path.stem, version=version or 1, key=key)


def pack(network: Network, rounding: Rounding, *, name: str, version: int, key: bytes = blob.DEVELOPMENT_KEY) -> Exported:
    """The blob of a network."""
    if not name.isascii() or not name:
        raise InputError(f"expected a model name of 1 to {_NAME_BYTES} ASCII characters, got {name!r}")
    with np.errstate(all="ignore"):
        limits.require(network)
        placed = arena.place(network)
        written = blob.write(network, placed, rounding, name=name[:_NAME_BYTES], version=version, key=key)
    return Exported(written.data, network, report(network, written, placed, rounding, name[:_NAME_BYTES], version))


def read(path: Path, rounding: Rounding) -> Network:
    """A model file as a network, bounded and refused like every model that comes from outside.

    A graph at odds with itself shows in many errors of its reader; all are one refusal here.
    """
    from models.screening import screen

    screen(path, (".onnx", ".tflite"))
    try:
        with np.errstate(all="ignore"):
            return _read(path, rounding)
    except EdgeRuntimeError:
        raise
    except _CONTRADICTIONS as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name} contradicts itself ({err}); copy or export it again") from err


def _read(path: Path, rounding: Rounding) -> Network:
    if path.suffix.lower() == ".onnx":
        from models.export_c import from_onnx

        return from_onnx.read(path)
    from models.export_c import from_tflite

    return from_tflite.read(path, rounding)


def c_array(exported: Exported, symbol: str = "edge_model") -> str:
    """The blob as C source: `const unsigned char <symbol>[]`, aligned as the interpreter needs it, and its size."""
    if not symbol.isidentifier():
        raise InputError(f"expected a C identifier, got {symbol!r}")
    data = exported.data
    rows = "\n".join("    " + " ".join(f"0x{byte:02x}," for byte in data[at : at + 16]) for at in range(0, len(data), 16))
    said = exported.report
    return (
        f"/* Model `{said.name}`, version {said.version}, {said.rounding} rounding: {len(data)} bytes, arena {said.arena_bytes} bytes.\n"
        " * Written by `edge-runtime model export-c`; do not edit.\n */\n"
        f"#include <stddef.h>\n\n_Alignas(8) const unsigned char {symbol}[] = {{\n{rows}\n}};\n"
        f"const size_t {symbol}_bytes = sizeof {symbol};\n"
    )


def key_from(path: Path | None) -> bytes:
    """A node's key from its file: 32 bytes, or 64 hexadecimal digits. None: the development key."""
    if path is None:
        return blob.DEVELOPMENT_KEY
    try:
        with path.open("rb") as file:
            raw = file.read(256)
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; expected a key of {blob.KEY_BYTES} bytes") from err
    if len(raw) == blob.KEY_BYTES:
        return raw
    try:
        found = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:
        found = b""
    if len(found) != blob.KEY_BYTES:
        raise InputError(f"{path}: expected {blob.KEY_BYTES} bytes, or {2 * blob.KEY_BYTES} hexadecimal digits")
    return found


def as_json(exported: Exported) -> dict[str, Any]:
    """The report as one document."""
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(exported.report)
    return document


__all__ = ["Exported", "ModelRefused", "RefusalReason", "as_json", "c_array", "export", "key_from", "pack", "read"]
