"""What may not even reach a runtime, and that damage of any kind ends in a refusal, a run or a dead child, never in anything else."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import MissingDependency, ModelRefused, RefusalReason
from edge_runtime.types import TensorInfo
from models.backends import choose, registered
from models.probe import probe, specification
from models.runtime import RuntimeModel
from models.screening import MAX_BYTES, onnx_facts, screen

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "tests" / "assets" / "models"
SOUND = [("onnx", "dense.onnx"), ("litert", "dense_int8.tflite"), ("tflite", "dense_int8.tflite")]
SUFFIXES = (".onnx", ".tflite")
PROBED = 5


def reason(path: Path, *suffixes: str) -> RefusalReason:
    with pytest.raises(ModelRefused) as refused:
        screen(path, suffixes or (path.suffix,))
    return refused.value.reason


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


@pytest.mark.parametrize(("_", "file"), SOUND[:2])
def test_a_sound_model_passes(_: str, file: str) -> None:
    screen(ASSETS / file, (Path(file).suffix,))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_absent_one_a_folder_a_pipe_and_an_empty_one_are_told_apart(suffix: str, tmp_path: Path) -> None:
    folder, pipe, empty, device = (tmp_path / f"{name}{suffix}" for name in ("folder", "pipe", "empty", "device"))
    folder.mkdir()
    os.mkfifo(pipe)
    empty.touch()
    device.symlink_to("/dev/zero")
    assert reason(tmp_path / f"absent{suffix}") is RefusalReason.MISSING
    assert reason(empty) is RefusalReason.UNREADABLE
    for path in (folder, pipe, device):
        with pytest.raises(ModelRefused, match="is not a regular file") as refused:
            screen(path, (suffix,))
        assert refused.value.reason is RefusalReason.UNREADABLE


@pytest.mark.parametrize(("name", "file"), SOUND)
def test_another_suffix_is_refused_with_those_it_opens(name: str, file: str, tmp_path: Path) -> None:
    try:
        backend = registered()[name].load()()
    except MissingDependency as err:
        pytest.skip(str(err))
    path = tmp_path / "model.pth"
    path.write_bytes((ASSETS / file).read_bytes())
    with pytest.raises(ModelRefused, match=rf"model\.pth: this backend opens {Path(file).suffix} files") as refused:
        backend.load(path)
    assert refused.value.reason is RefusalReason.UNSUPPORTED_FORMAT
    with pytest.raises(ModelRefused, match=r"no backend opens `\.pth` files"):
        choose(path)


def test_one_kind_under_the_name_of_the_other_says_how_to_rename_it(tmp_path: Path) -> None:
    onnx, tflite = tmp_path / "a.onnx", tmp_path / "b.tflite"
    onnx.write_bytes((ASSETS / "dense_int8.tflite").read_bytes())
    tflite.write_bytes((ASSETS / "dense.onnx").read_bytes())
    with pytest.raises(ModelRefused, match=r"rename it to a\.tflite"):
        screen(onnx, (".onnx",))
    with pytest.raises(ModelRefused, match=r"rename it to b\.onnx"):
        screen(tflite, (".tflite",))


def test_a_larger_one_than_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert reason(path) is RefusalReason.TOO_LARGE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "Keras HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF" + bytes(60), "GGUF"),
    ],
    ids=["zip", "hdf5", "lfs", "gguf"],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_formats_are_called_by_their_name(content: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelRefused, match=words):
        screen(path, (suffix,))


class Harm:
    """What a pickle would do when read: leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("name", "suffix"), [("onnx", ".onnx"), ("litert", ".tflite")])
def test_a_pickle_is_never_unpacked(name: str, suffix: str, protocol: int, tmp_path: Path) -> None:
    try:
        backend = registered()[name].load()()
    except MissingDependency as err:
        pytest.skip(str(err))
    trace, path = tmp_path / "trace", tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Harm(trace), protocol))
    with pytest.raises(ModelRefused) as refused:
        backend.load(path)
    assert refused.value.reason in (RefusalReason.UNSUPPORTED_FORMAT, RefusalReason.UNREADABLE)
    assert ("Python pickle" in str(refused.value)) is (protocol >= 2)
    assert not trace.exists()


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "weights.bin"])
def test_weights_in_other_files_are_refused_wherever_they_hide(location: str, tmp_path: Path) -> None:
    """As an initializer, in a node's attribute, in a subgraph and in a function: the file is refused before a runtime opens it."""
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    entry = field(13, field(1, b"location") + field(2, location.encode()))
    tensor = field(8, b"w") + entry + b"\x70\x01"
    attribute = field(5, field(1, b"value") + field(5, tensor))
    subgraph = field(5, field(1, b"body") + field(6, field(5, tensor)))
    hidden = {
        "initializer": field(7, field(5, tensor)),
        "attribute": field(7, field(1, attribute)),
        "subgraph": field(7, field(1, subgraph)),
        "function": field(7, b"") + field(25, field(7, attribute)),
    }
    for where, content in hidden.items():
        path = tmp_path / f"{where}.onnx"
        path.write_bytes(b"\x08\x0a" + content)
        with pytest.raises(ModelRefused, match="in other files") as refused:
            onnx_facts(path)
        assert refused.value.reason is RefusalReason.EXTERNAL_DATA, where


def test_graphs_nested_without_end_are_no_models(tmp_path: Path) -> None:
    graph = b""
    for _ in range(500):
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "nested.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(ModelRefused) as refused:
        onnx_facts(path)
    assert refused.value.reason is RefusalReason.UNREADABLE


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES))
def test_no_bytes_get_anything_but_a_verdict(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    assert screened(path) in (True, False)


def screened(path: Path) -> bool:
    """Whether the file would be handed to a runtime. Anything but ModelRefused is a breach and comes out."""
    try:
        screen(path, (path.suffix,))
        if path.suffix == ".onnx":
            onnx_facts(path)
    except ModelRefused:
        return False
    return True


def damaged(content: bytes) -> dict[str, bytes]:
    """Cut short at every twentieth, and one byte changed at every hundredth of the length."""
    rng = random.Random(7)
    made = {f"cut{n:02}": content[: len(content) * n // 20] for n in range(20)}
    for n in range(100):
        at = len(content) * n // 100
        made[f"flip{n:02}"] = content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :]
    return made


@pytest.mark.parametrize(("name", "file"), SOUND)
def test_a_damaged_model_is_refused_or_runs(name: str, file: str, tmp_path: Path) -> None:
    try:
        registered()[name].load()()
    except MissingDependency as err:
        pytest.skip(str(err))
    paths = []
    for variant, content in damaged((ASSETS / file).read_bytes()).items():
        path = tmp_path / f"{variant}{Path(file).suffix}"
        path.write_bytes(content)
        paths.append(path)
    passed = [path for path in paths if screened(path)]
    assert not [path.name for path in passed if path.name.startswith("cut00")]
    outcomes = tried(name, passed)
    assert set(outcomes) == set(map(str, passed))
    breaches = {Path(path).name: found for path, found in outcomes.items() if found.startswith("raised") or not found}
    assert breaches == {}
    kinds = Counter(found.split()[0] for found in outcomes.values())
    assert kinds["ran"], "some flips hit padding or a weight"
    deadly = [Path(path) for path, found in outcomes.items() if found.startswith("signal")]
    for path in deadly[:PROBED]:
        with contextlib.suppress(ModelRefused):  # what reads beyond its buffer may live or die: it depends on what lies there
            probe(path, name, deadline_s=10.0, memory_mb=512)


def tried(name: str, paths: list[Path]) -> dict[str, str]:
    """Outcome by path, from one child that forks per file."""
    command = [sys.executable, "-P", str(ASSETS / "trial.py"), specification(name), *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "EDGE_RUNTIME_NATIVE_LOGS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=50, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_shape_that_no_array_can_have_is_refused_when_the_model_is_loaded() -> None:
    class Damaged(RuntimeModel):
        def _invoke(self, feeds: list[Any]) -> list[Any]:
            raise AssertionError

        def close(self) -> None: ...

    with pytest.raises(ModelRefused, match="`x` has 52226 dimensions") as refusal:
        Damaged([TensorInfo("x", (1,) * 52_226, "int8")], [], "int8")
    assert refusal.value.reason is RefusalReason.WRONG_SHAPE
