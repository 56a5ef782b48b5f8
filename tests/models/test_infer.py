"""`edge-runtime infer` as a user meets it: what it prints, what it refuses by name, and the exit code of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.cli.main import main
from edge_runtime.types import Array

pytest.importorskip("onnxruntime")

ASSETS = Path(__file__).parents[1] / "assets" / "models"
DENSE = ASSETS / "dense.onnx"
INT8 = ASSETS / "dense_int8.tflite"
ROWS = np.array([[0.5, -1.0, 2.0, 1.5], [4.0, 0.0, 0.0, 0.0]], np.float32)
ANSWERS = [[0.5, -0.25, -0.25], [4.0, 1.0, 0.0]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, ROWS)
    return path


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog\nfox\n")
    return path


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["infer", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def document(out: str) -> dict[str, Any]:
    (line,) = out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def values(report: dict[str, Any]) -> list[list[float]]:
    return [result["values"] for result in report["results"]]


def test_one_json_document_holds_every_run(printed: Any, rows: Path) -> None:
    code, out, err = printed(DENSE, "--input", rows, "--json")
    report = document(out)
    assert (code, err) == (0, "")
    assert (report["model"], report["backend"], report["precision"]) == ("dense.onnx", "onnx", "float32")
    assert values(report) == ANSWERS
    assert [(result["input"], result["run"]) for result in report["results"]] == [("rows.npy", 1), ("rows.npy", 2)]
    assert report["results"][0]["outputs"] == [{"name": "y", "shape": [1, 3], "dtype": "float32"}]
    assert report["notes"] == ["rows.npy: 2 inputs of shape 1x4"]
    assert report["probe"]["runs"] == 10
    assert all(result["latency_ms"] > 0 for result in report["results"])


@pytest.mark.parametrize(("backend", "module"), [("litert", "ai_edge_litert"), ("tflite", "tflite_runtime")])
def test_int8_outputs_are_real_numbers_and_precision_is_told(backend: str, module: str, printed: Any, rows: Path) -> None:
    pytest.importorskip(module)
    code, out, _ = printed(INT8, "--input", rows, "--backend", backend, "--no-probe", "--json")
    report = document(out)
    assert (code, report["precision"], report["probe"]) == (0, "int8", None)
    np.testing.assert_allclose(values(report), ANSWERS, atol=0.0625)


def test_stored_values_and_real_ones_give_the_same(printed: Any, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    stored = np.array([[8, -16, 32, 24]], np.int8)
    np.save(tmp_path / "stored.npy", stored)
    np.save(tmp_path / "real.npy", stored * np.float32(0.0625))
    _, out, _ = printed(INT8, "--input", tmp_path / "stored.npy", tmp_path / "real.npy", "--backend", "litert", "--no-probe", "--json")
    first, second = values(document(out))
    assert first == second


def test_the_text_names_classes_best_first(printed: Any, rows: Path, names: Path) -> None:
    code, out, _ = printed(DENSE, "--input", rows, "--labels", names, "--top", 2)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "dense.onnx: backend onnx, precision float32"
    assert lines[1].startswith("probe: loads in ")
    assert [line.split()[-2:] for line in lines if "(" in line and line.endswith(")")] == [
        ["cat", "(0)"], ["dog", "(1)"], ["cat", "(0)"], ["dog", "(1)"],
    ]  # fmt: skip
    assert lines[-1].startswith("2 runs: latency p50 ")


def test_many_runs_are_summed_up_and_json_has_them_all(printed: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.zeros((40, 4), np.float32))
    _, out, _ = printed(DENSE, "--input", tmp_path / "many.npy", "--no-probe")
    assert "... 28 more runs (--json has them all)" in out
    _, out, _ = printed(DENSE, "--input", tmp_path / "many.npy", "--no-probe", "--json")
    assert len(document(out)["results"]) == 40


def test_windows_are_cut_where_asked(printed: Any, tmp_path: Path) -> None:
    series: Array = np.arange(10, dtype=np.float32)
    series.tofile(tmp_path / "series.bin")
    _, out, _ = printed(DENSE, "--input", tmp_path / "series.bin", "--window", 4, "--hop", 3, "--no-probe", "--json")
    report = document(out)
    assert [result["values"][0] for result in report["results"]] == [0.0, 3.0, 6.0]
    assert report["notes"] == ["series.bin: 10 raw float32 values; 3 windows of 4 values every 3"]


def test_a_model_that_gives_back_what_it_takes_is_judged_by_its_error(printed: Any, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    np.save(tmp_path / "x.npy", np.array([[0.5 + 0.25, 0.25, 2.0]], np.float32))
    arguments = (ASSETS / "per_axis_int8.tflite", "--input", tmp_path / "x.npy", "--backend", "litert", "--no-probe")
    _, out, _ = printed(*arguments, "--json")
    (result,) = document(out)["results"]
    assert result["values"] == [1.0, 0.25, 2.0]
    assert result["reconstruction_mse"] == pytest.approx(0.25**2 / 3)
    assert result["top"] == []
    _, out, _ = printed(*arguments)
    assert "reconstruction error 0.0208 (mean squared)" in out


def test_the_backend_taken_is_said_where_others_could_be(printed: Any, rows: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("tflite_runtime")
    code, out, err = printed(INT8, "--input", rows, "--no-probe", "--json")
    assert (code, document(out)["backend"]) == (0, "litert")
    assert err == "backend litert taken (also possible: --backend tflite)\n"


def test_the_zoos_model_runs_by_its_name(printed: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "window.npy", np.zeros(1024, np.float32))
    code, out, _ = printed("zoo:bearing", "--input", tmp_path / "window.npy", "--no-probe", "--json")
    assert (code, document(out)["precision"]) == (0, "int8")
    code, _, err = printed("zoo:unheard", "--input", tmp_path / "window.npy")
    assert code == 2
    assert "unheard" in err


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("absent.onnx", (), "missing"),
        ("broken.onnx", (), "unreadable"),
        ("model.pth", (), "unsupported_format"),
        ("endless.tflite", ("--deadline", 1), "probe_timeout"),
        ("recursive.tflite", (), "probe_crashed"),
        ("hog.onnx", ("--memory", 128), "probe_memory"),
    ],
)
def test_a_refused_model_is_exit_1_with_its_reason(
    model: str, options: tuple[object, ...], reason: str, as_json: bool, printed: Any, rows: Path, tmp_path: Path
) -> None:
    if model.endswith(".tflite"):
        pytest.importorskip("ai_edge_litert")
        options = (*options, "--backend", "litert")
    (tmp_path / "broken.onnx").write_bytes(DENSE.read_bytes()[:100])
    (tmp_path / "model.pth").write_bytes(DENSE.read_bytes())
    path = ASSETS / model if (ASSETS / model).exists() else tmp_path / model
    code, out, err = printed(path, "--input", rows, *options, *(["--json"] if as_json else []))
    assert code == 1
    assert f"edge-runtime: model refused: {reason}: " in err
    if as_json:
        refused = document(out)["refused"]
        assert refused["reason"] == reason
        assert refused["message"] in err
    else:
        assert out == ""


def test_a_window_with_nan_is_refused_by_an_int8_model_and_runs_through_a_float_one(printed: Any, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    np.save(tmp_path / "gap.npy", np.array([[0, np.nan, 0, 0]], np.float32))
    code, _, err = printed(INT8, "--input", tmp_path / "gap.npy", "--backend", "litert", "--no-probe")
    assert code == 1
    assert "run_failed: input `x` holds NaN" in err
    code, out, _ = printed(DENSE, "--input", tmp_path / "gap.npy", "--no-probe")
    assert code == 0
    assert "nan" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "onxx"), "`onxx` is no model backend (known: onnx, litert, tflite)"),
        (("--labels", "absent.txt"), "cannot read the labels absent.txt"),
        (("--window", 5), "--window 5: input `x` takes 4 values"),
    ],
)
def test_a_wrong_option_is_exit_2(options: tuple[object, ...], words: str, printed: Any, rows: Path) -> None:
    code, out, err = printed(DENSE, "--input", rows, "--no-probe", *options)
    assert (code, out) == (2, "")
    assert words in err


def test_a_wrong_input_file_is_exit_2_with_its_name(printed: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.zeros(5))
    for file, words in {"absent.npy": "there is no input file", "five.npy": "holds 5 values"}.items():
        code, _, err = printed(DENSE, "--input", tmp_path / file, "--no-probe")
        assert code == 2
        assert words in err
        assert file in err


@pytest.mark.parametrize("words", [("--top", "0"), ("--threads", "-1"), ("--mean", "a"), ("--dtype", "text"), ()])
def test_what_the_parser_refuses_is_exit_2_with_the_usage(words: tuple[str, ...], rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--input", str(rows), *words] if words else []
    with pytest.raises(SystemExit) as ended:
        main(["infer", str(DENSE), *given])
    assert ended.value.code == 2
    assert "usage: edge-runtime infer" in capsys.readouterr().err
