"""Looks at a model file before any runtime does: size, what it really is, and whether it reaches outside itself.

It stops what is known to be wrong. What only running can show (a crash, a hang) is the probe's (`models.probe`).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.errors import ModelRefused, RefusalReason
from models import onnx_graph
from models.onnx_graph import GraphFacts
from models.protobuf import Malformed

MAX_BYTES = 512 * 1024 * 1024
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})

_HEAD_BYTES = 64
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the model: run `git lfs pull`",
    b"\x89HDF": "a Keras HDF5 file: convert it to .tflite or .onnx",
    b"PK\x03\x04": "a zip archive (PyTorch or Keras): export it to .onnx or .tflite",
    b"\x80\x02": "a Python pickle: export the model to .onnx",
    b"\x80\x03": "a Python pickle: export the model to .onnx",
    b"\x80\x04": "a Python pickle: export the model to .onnx",
    b"\x80\x05": "a Python pickle: export the model to .onnx",
    b"GGUF": "a GGUF language model: no backend here runs it",
}


def screen(path: Path, suffixes: Sequence[str]) -> None:
    """Raises ModelRefused(MISSING | UNREADABLE | TOO_LARGE | UNSUPPORTED_FORMAT) unless `path` can be a model of these suffixes."""
    if not path.exists():
        raise ModelRefused(RefusalReason.MISSING, f"there is no file {path}")
    if not path.is_file():
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path} is not a regular file")
    if path.suffix.lower() not in suffixes:
        raise ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, f"{path.name}: this backend opens {' and '.join(suffixes)} files")
    _check_size(path)
    _check_content(path)


def onnx_facts(path: Path) -> GraphFacts:
    """The facts of a screened .onnx file.

    Raises ModelRefused: UNREADABLE when it is no ONNX model, EXTERNAL_DATA when its weights lie in other files, UNSUPPORTED_FORMAT when it
    needs operators of an unknown domain.
    """
    try:
        facts = _walk(path)
    except Malformed as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name} is not a whole ONNX model ({err}); copy or export it again") from err
    if not facts.has_graph:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name} holds no ONNX graph; export it again")
    if facts.external:
        raise ModelRefused(
            RefusalReason.EXTERNAL_DATA,
            f"{path.name} keeps {len(facts.external)} tensors (`{facts.external[0]}`...) in other files; save it as one file "
            "(onnx.save_model(..., save_as_external_data=False))",
        )
    unknown = sorted({f"{domain}::{operator}" for domain, operator in facts.operators if domain not in KNOWN_DOMAINS | facts.local})
    if unknown:
        raise ModelRefused(
            RefusalReason.UNSUPPORTED_FORMAT, f"{path.name} needs custom operators ({', '.join(unknown[:5])}); export it with standard ones"
        )
    return facts


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size == 0:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path} is empty; copy or export it again")
    if size > MAX_BYTES:
        raise ModelRefused(RefusalReason.TOO_LARGE, f"{path.name} has {size / 2**20:.0f} MiB; the limit is {MAX_BYTES // 2**20} MiB")


def _check_content(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"cannot read {path}: {err.strerror}") from err
    for magic, meaning in _FOREIGN.items():
        if head.startswith(magic):
            raise ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, f"{path.name} is {meaning}")
    is_tflite, suffix = head[4:8] == b"TFL3", path.suffix.lower()
    if is_tflite and suffix != ".tflite":
        raise ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, f"{path.name} holds a TensorFlow Lite model; rename it to {path.stem}.tflite")
    if suffix == ".tflite" and not is_tflite:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name} is not a TensorFlow Lite model (no TFL3 mark){_resembles_onnx(path)}")


def _resembles_onnx(path: Path) -> str:
    try:
        return f"; it is an ONNX model, rename it to {path.stem}.onnx" if _walk(path).has_graph else ""
    except Malformed:
        return ""


def _walk(path: Path) -> GraphFacts:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return onnx_graph.read(memoryview(content))
