"""Damaged model blobs: the node refuses them, or runs them within their arena. Shown by the interpreter built with sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from adapters.firmware.build import FOLDER
from adapters.firmware.native import SOURCES, MissingHostCompiler, host_compiler
from models.export_c import factory
from models.export_c.export import export
from models.export_c.network import Rounding

pytest.importorskip("onnx")
pytest.importorskip("flatbuffers")
pytest.importorskip("ai_edge_litert")

from tests.models.export_c import onnx_networks, tflite_networks

HARNESS = Path(__file__).with_name("nn_fuzz.c")
FLAGS = ("-std=c11", "-O1", "-Wall", "-Wextra", "-fwrapv", "-ffp-contract=off")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        compiler = host_compiler()
    except MissingHostCompiler as err:
        pytest.skip(str(err))
    program = tmp_path_factory.mktemp("fuzz") / "nn_fuzz"
    command = [compiler, *FLAGS, *SANITIZERS, f"-I{FOLDER / 'src'}", str(HARNESS), *map(str, SOURCES), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if done.returncode != 0 and "asan" in done.stderr:
        pytest.skip(f"{compiler} has no sanitizers here")
    assert done.returncode == 0, done.stderr
    return program


def blobs(folder: Path, seeds: range) -> list[Path]:
    """The factory model and random networks in all roundings."""
    found = [folder / "factory.ern"]
    found[0].write_bytes(factory.exported().data)
    for seed in seeds:
        graph = onnx_networks.RandomNetwork(seed, unsigned=bool(seed % 2)).save(folder / "random.onnx")
        lite = tflite_networks.RandomNetwork(seed, softmax=seed % 2 == 0).save(folder / "random.tflite")
        for path, rounding in ((graph, Rounding.HALF_EVEN), (lite, list(Rounding)[seed % 3])):
            found.append(folder / f"{seed}{path.suffix}.ern")
            found[-1].write_bytes(export(path, rounding=rounding).data)
    return found


def attack(fuzzer: Path, rounds: int, found: list[Path]) -> tuple[int, int]:
    """(accepted, refused)."""
    done = subprocess.run([fuzzer, str(rounds), *found], capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    accepted, refused, _ = map(int, done.stdout.split())
    return accepted, refused


def test_damaged_blobs_are_refused_or_stay_within_their_arena(fuzzer: Path, tmp_path: Path) -> None:
    accepted, refused = attack(fuzzer, 1_000, blobs(tmp_path, range(3)))
    assert accepted > 10_000
    assert refused > 10_000


@pytest.mark.slow
def test_many_more_damaged_blobs(fuzzer: Path, tmp_path: Path) -> None:
    attack(fuzzer, 20_000, blobs(tmp_path, range(4, 9)))
