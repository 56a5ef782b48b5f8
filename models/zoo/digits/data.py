"""Handwritten digits of 8x8 pixels, and the split that every figure stands on. No training.

The images are those of scikit-learn's `load_digits`: the test part of the UCI set "Optical Recognition of Handwritten Digits" (E. Alpaydin,
C. Kaynak; CC BY 4.0). The only module that imports scikit-learn.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from edge_runtime.errors import InputError, MissingDependency
from edge_runtime.types import Array

SIZE = 8
CLASSES = 10
LEVELS = 16
SHARES = {"train": 0.7, "validation": 0.1}
"""Of all images; the rest is held out. Which ones is drawn by a seed."""


@dataclass(frozen=True, slots=True)
class Part:
    """Images uint8 [n, 8, 8] of 0..255, bright on dark, and digits int64 [n]."""

    x: Array
    y: Array

    def inputs(self) -> Array:
        """float32 [n, 1, 8, 8] of 0..1: what the manifest's `std` of 255 makes of a picture."""
        result: Array = (self.x[:, None] / np.float32(255)).astype(np.float32)
        return result


def load(paths: Sequence[Path]) -> Part:
    """All images of an npz with `x` [n, 8, 8] of 0..16 and `y` [n], or scikit-learn's without one. Raises InputError, MissingDependency."""
    x, y = _file(paths) if paths else _scikit_learn()
    if x.shape[1:] != (SIZE, SIZE) or y.shape != x.shape[:1] or y.dtype.kind not in "iu" or x.dtype.kind not in "fiu":
        raise InputError(f"expected x [n, {SIZE}, {SIZE}] and whole numbers y [n], got {x.dtype} {x.shape} and {y.dtype} {y.shape}")
    if len(x) < 10 or x.min() < 0 or x.max() > LEVELS or y.min() < 0 or y.max() >= CLASSES:
        raise InputError(f"expected ten images or more with pixels of 0..{LEVELS}, and digits of 0..{CLASSES - 1}; check `x` and `y`")
    return Part(np.rint(x * (255 / LEVELS)).astype(np.uint8), y.astype(np.int64))


def split(whole: Part, seed: int) -> dict[str, Part]:
    """`train`, `validation` and `test`, disjoint."""
    order = np.random.default_rng(seed).permutation(len(whole.y))
    first, second = (int(len(order) * share) for share in (SHARES["train"], sum(SHARES.values())))
    rows = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
    return {name: Part(whole.x[chosen], whole.y[chosen]) for name, chosen in rows.items()}


def png(image: Array) -> bytes:
    """A grey picture uint8 [height, width] as PNG: one IDAT, no filter."""
    height, width = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _scikit_learn() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise MissingDependency("scikit-learn", "train") from err
    found = load_digits()
    return found.images, found.target


def _file(paths: Sequence[Path]) -> tuple[Array, Array]:
    if len(paths) != 1:
        raise InputError(f"--data: expected one npz, got {len(paths)} files")
    try:
        with np.load(paths[0], allow_pickle=False) as archive:
            return archive["x"], archive["y"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as err:
        raise InputError(f"{paths[0]}: expected an npz with arrays `x` and `y`: {err}") from err
