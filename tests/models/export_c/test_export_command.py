"""`edge-runtime model export-c` and what it writes."""

from __future__ import annotations

import json
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from adapters.firmware.native import Interpreter, host_compiler
from edge_runtime.bundle import find_model
from edge_runtime.cli.main import main
from edge_runtime.errors import ModelRefused
from models.export_c import factory
from models.export_c.blob import DEVELOPMENT_KEY
from models.export_c.export import c_array, export, key_from

pytest.importorskip("onnx")

ZOO = Path(__file__).resolve().parents[3] / "models/zoo"
ASSETS = Path(__file__).resolve().parents[2] / "assets/models"


def test_it_writes_blob_source_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "export-c", "zoo:bearing", "--out", str(tmp_path), "--version", "7", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    report, data = answer["report"], (tmp_path / "bearing.ern").read_bytes()
    assert report["version"] == struct.unpack_from("<I", data, 12)[0] == 7
    assert report["flash_bytes"] == len(data) == struct.unpack_from("<I", data, 8)[0]
    assert report["arena_bytes"] == struct.unpack_from("<I", data, 16)[0]
    assert report["macs"] == sum(layer["macs"] for layer in report["layers"]) == 530_816
    assert zlib.crc32(data[:-36]) == struct.unpack_from("<I", data, len(data) - 36)[0]
    assert [Path(name).name for name in answer["files"]] == ["bearing.ern", "bearing.c", "bearing.json"]
    assert json.loads((tmp_path / "bearing.json").read_text()) == report


def test_people_read_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "export-c", "zoo:digits", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for word in ("bytes of flash", "bytes of RAM", "multiply-accumulates", "not a time", "development key", "fully connected"):
        assert word in said


def test_the_source_holds_the_blob(tmp_path: Path) -> None:
    exported = factory.exported()
    (tmp_path / "model.c").write_text(
        c_array(exported) + "#include <stdio.h>\nint main(void) { fwrite(edge_model, 1, edge_model_bytes, stdout); }"
    )
    subprocess.run([host_compiler(), "-std=c11", "-Wall", "-Werror", "-o", tmp_path / "model", tmp_path / "model.c"], check=True)
    assert subprocess.run([tmp_path / "model"], capture_output=True, check=True).stdout == exported.data


def test_the_factory_model_of_the_firmware_is_the_one_of_the_exporter() -> None:
    committed = Path(__file__).resolve().parents[3] / "adapters/firmware/src/factory_model.c"
    assert committed.read_text() == factory.source(), "run `python -m models.export_c.factory`"


def test_the_factory_model_says_what_it_is_made_for(interpreter: Interpreter) -> None:
    calm, rising, hot = [20] * 16, [20] * 8 + [30] * 8, [70] * 16
    shares = interpreter.run(factory.exported().data, np.array([calm, rising, hot], np.int8))
    assert [factory.LABELS[index] for index in shares.argmax(axis=1)] == list(factory.LABELS)


@pytest.mark.parametrize("name", ["bearing", "digits"])
def test_models_of_the_zoo_agree_with_their_runtime(interpreter: Interpreter, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path, _ = find_model(ZOO / name)
    exported = export(ZOO / name)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    rows = np.random.default_rng(0).normal(0, 1, (200, exported.network.input.shape.count)).astype(np.float32)
    scale, zero = exported.report.input_scale, exported.report.input_zero_point
    rows = np.abs(rows) if zero == 0 else rows
    shape = [1, *(int(size) for size in given.shape[1:])]
    expected = np.array([session.run(None, {given.name: row.reshape(shape)})[0].reshape(-1) for row in rows])
    stored = np.clip(np.rint(rows / np.float32(scale)) + zero, 0, 255).astype(np.uint8)
    shares = (interpreter.run(exported.data, stored).astype(float) + 128) / 256
    assert np.max(np.abs(shares - expected)) <= 1.5 / 256


def test_an_operator_that_the_firmware_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "export-c", "zoo:pump", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "operator Conv (node `t0`)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dense_float.tflite", "FULLY_CONNECTED"),
        ("endless.tflite", "WHILE"),
        ("per_axis_int8.tflite", "one scale"),
        ("hog.onnx", "operator "),
    ],
)
def test_refusals_name_the_operator(name: str, expected: str) -> None:
    with pytest.raises(ModelRefused, match=expected):
        export(ASSETS / name)


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--version", "0"], 2), (["--name", "Wärme"], 2), (["--key", "missing.key"], 2)],
)
def test_a_wrong_command_says_so(tmp_path: Path, options: list[str], code: int) -> None:
    assert main(["model", "export-c", "zoo:digits", "--out", str(tmp_path), *options]) == code


def test_a_key_is_bytes_or_hex(tmp_path: Path) -> None:
    raw, text = tmp_path / "raw.key", tmp_path / "hex.key"
    raw.write_bytes(bytes(range(100, 132)))
    text.write_text(bytes(range(100, 132)).hex() + "\n")
    assert key_from(raw) == key_from(text) == bytes(range(100, 132))
    assert key_from(None) == DEVELOPMENT_KEY
    signed = export(ZOO / "digits", key=key_from(raw)).data
    plain = export(ZOO / "digits").data
    assert signed[:-32] == plain[:-32]
    assert signed[-32:] != plain[-32:]
