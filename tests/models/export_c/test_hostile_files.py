"""Damaged model files: a refusal that says what is wrong, or an export; never another error, and never more memory than a model takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from adapters.firmware.native import Interpreter
from edge_runtime.errors import ModelRefused
from models.export_c.export import export

pytest.importorskip("onnx")
pytest.importorskip("flatbuffers")
pytest.importorskip("ai_edge_litert")

from tests.models.export_c import onnx_networks, tflite_networks

HURTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80")
MOST_BYTES = 64 * 1024 * 1024


def damaged(data: bytes, rounds: int, seed: int) -> Iterator[bytes]:
    """Cut short, or with one to three bytes or words set to what hurts."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        if rng.integers(8) == 0:
            yield data[: int(rng.integers(len(data)))]
            continue
        changed = bytearray(data)
        for at in rng.integers(0, len(data) - 8, rng.integers(1, 4)):
            value = (*HURTING, rng.bytes(1))[int(rng.integers(len(HURTING) + 1))]
            changed[at : at + len(value)] = value
        yield bytes(changed)


def attack(interpreter: Interpreter, path: Path, rounds: int) -> tuple[int, int]:
    """(exported, refused); anything else is raised. What is exported the node accepts."""
    data = path.read_bytes()
    exported = refused = 0
    tracemalloc.start()
    try:
        for content in damaged(data, rounds, len(data)):
            path.write_bytes(content)
            try:
                assert interpreter.check(export(path).data, 1 << 24) == 0
                exported += 1
            except ModelRefused:
                refused += 1
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    return exported, refused


MAKERS: dict[str, Callable[[Path, int], Path]] = {
    "onnx": lambda folder, seed: onnx_networks.RandomNetwork(seed).save(folder / "damaged.onnx"),
    "tflite": lambda folder, seed: tflite_networks.RandomNetwork(seed, softmax=True).save(folder / "damaged.tflite"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_files_are_refused_or_exported(interpreter: Interpreter, kind: str, tmp_path: Path) -> None:
    counts = np.array([attack(interpreter, MAKERS[kind](tmp_path, seed), 60) for seed in range(4)]).sum(axis=0)
    assert counts.min() > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_many_more_damaged_files(interpreter: Interpreter, kind: str, tmp_path: Path) -> None:
    for seed in range(10, 14):
        attack(interpreter, MAKERS[kind](tmp_path, seed), 150)
