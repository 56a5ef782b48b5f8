"""The probe's child takes the harm: a model that hangs, dies or eats memory is refused by name and this process goes on."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.ports import ModelBackend
from models.backends import registered
from models.probe import probe, probe_async

ASSETS = Path(__file__).parents[1] / "assets" / "models"
TFLITE = ["litert", "tflite"]
SOUND = [("onnx", "dense.onnx"), ("litert", "dense_int8.tflite"), ("tflite", "dense_int8.tflite")]
HOGS = [("onnx", "hog.onnx"), ("litert", "hog.tflite"), ("tflite", "hog.tflite")]


def backend(name: str) -> ModelBackend:
    try:
        made: ModelBackend = registered()[name].load()()
    except MissingDependency as err:
        pytest.skip(str(err))
    return made


def refusal(path: Path, name: str, *, deadline_s: float = 20.0, memory_mb: int = 256) -> ModelRefused:
    backend(name)
    with pytest.raises(ModelRefused) as refused:
        probe(path, name, deadline_s=deadline_s, memory_mb=memory_mb)
    return refused.value


@pytest.fixture(autouse=True)
def unharmed() -> Iterator[None]:
    """No child is left, no limit of the child has become this process's."""
    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]
    files = psutil.Process().num_fds()
    yield
    assert children() == []
    assert [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)] == limits
    assert psutil.Process().num_fds() <= files + 4, "an event loop may stay open, nothing that grows"


def children() -> list[int]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "models.probe_process" in child.cmdline():
                found.append(child.pid)
    return found


@pytest.mark.parametrize(("name", "file"), SOUND)
def test_a_sound_model_is_described(name: str, file: str) -> None:
    made = backend(name)
    report = probe(ASSETS / file, name)
    loaded = made.load(ASSETS / file)
    assert (report.backend, report.inputs, report.outputs) == (name, loaded.inputs, loaded.outputs)
    assert report.runs == 10
    assert report.load_ms > 0
    assert 0 <= report.rss_mb < 256


@pytest.mark.parametrize("name", TFLITE)
def test_one_that_never_ends_is_stopped_at_its_deadline(name: str) -> None:
    refused = refusal(ASSETS / "endless.tflite", name, deadline_s=2.0)
    assert refused.reason is RefusalReason.PROBE_TIMEOUT
    assert "endless.tflite did not load and run within 2 s" in str(refused)


@pytest.mark.parametrize("name", TFLITE)
def test_one_that_kills_its_process_kills_only_the_child(name: str) -> None:
    refused = refusal(ASSETS / "recursive.tflite", name)
    assert refused.reason is RefusalReason.PROBE_CRASHED
    assert "recursive.tflite kills the process that runs it (SIGSEGV)" in str(refused)


@pytest.mark.parametrize(("name", "file"), HOGS)
def test_one_that_eats_memory_is_refused_with_the_limit(name: str, file: str) -> None:
    refused = refusal(ASSETS / file, name)
    assert refused.reason is RefusalReason.PROBE_MEMORY
    assert str(refused) == f"probe_memory: {file} needs more than the 256 MB it may have"


@pytest.mark.parametrize(("name", "file"), SOUND)
def test_a_corrupt_one_is_refused_as_the_load_refuses_it(name: str, file: str, tmp_path: Path) -> None:
    content = (ASSETS / file).read_bytes()
    path = tmp_path / file
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelRefused) as refused:
        backend(name).load(path)
    assert refused.value.reason in (RefusalReason.LOAD_FAILED, RefusalReason.UNREADABLE)
    assert str(refusal(path, name)) == str(refused.value)


def test_the_loop_goes_on_while_a_model_hangs_and_the_serving_one_still_serves() -> None:
    backend("litert")
    serving = backend("onnx").load(ASSETS / "dense.onnx")
    x = np.ones((1, 4), np.float32)
    before = np.array(serving.run([x])[0])

    async def scene() -> int:
        ticks = 0
        hanging = asyncio.create_task(probe_async(ASSETS / "endless.tflite", "litert", deadline_s=1.0))
        while not hanging.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(ModelRefused, match="probe_timeout"):
            await hanging
        return ticks

    assert asyncio.run(scene()) > 10
    np.testing.assert_array_equal(serving.run([x])[0], before)


async def test_a_cancelled_probe_takes_its_child_down() -> None:
    backend("litert")
    task = asyncio.create_task(probe_async(ASSETS / "endless.tflite", "litert", deadline_s=20.0))
    async with asyncio.timeout(15):
        while not children():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        ("os.abort()", RefusalReason.PROBE_CRASHED, r"\(SIGABRT\)"),
        ("os._exit(3)", RefusalReason.PROBE_CRASHED, "ended with code 3 and no verdict"),
        ("os.kill(os.getpid(), 9)", RefusalReason.PROBE_MEMORY, "as the kernel does when memory runs out"),
        ("raise LookupError('no such kernel')", RefusalReason.PROBE_CRASHED, "LookupError: no such kernel"),
        ("bytearray(2**30)", RefusalReason.PROBE_MEMORY, "needs more than the 256 MB"),
        ("time.sleep(60)", RefusalReason.PROBE_TIMEOUT, "within 1 s"),
    ],
    ids=["abort", "exit", "killed", "foreign-exception", "python-memory", "sleep"],
)
def test_every_way_to_end_has_its_name(
    body: str, reason: RefusalReason, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rogue.py").write_text(f"import os, time\nclass Rogue:\n    def load(self, path, threads=1):\n        {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelRefused, match=words) as refused:
        probe(ASSETS / "dense.onnx", "rogue:Rogue", deadline_s=1.0 if "sleep" in body else 20.0, memory_mb=256)
    assert refused.value.reason is reason


def test_what_a_library_prints_is_not_taken_for_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend("onnx")
    (tmp_path / "chatty.py").write_text(
        "from models.onnx import OnnxBackend\n"
        "class Chatty(OnnxBackend):\n"
        "    def load(self, path, threads=1):\n"
        "        print('{\"report\": {}}', flush=True)\n"
        "        return super().load(path, threads)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe(ASSETS / "dense.onnx", "chatty:Chatty").runs == 10


def test_a_backend_nobody_registered_is_named() -> None:
    with pytest.raises(InputError, match="`onxx` is not a registered model backend"):
        probe(ASSETS / "dense.onnx", "onxx")
