"""Files as a bundle's manifest declares its inputs: what reaches the model, and what is said when a file is not what was declared."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle import Manifest, Port, Window, write_manifest
from edge_runtime.cli.main import main
from edge_runtime.errors import InputError, ModelRefused
from edge_runtime.steps import Chain, output_shape, parse_steps
from edge_runtime.types import Array, TensorInfo
from models.declared import declared_inputs, read
from models.inputs import Options
from models.sound import resampled

PLAIN = Options()


def manifest(port: Port, **fields: Any) -> Manifest:
    return Manifest(schema=1, name="m", version=1, model="m.onnx", files={}, inputs=(port,), outputs=(), license="none", **fields)


def port(shape: Sequence[int], dtype: str = "float32", **fields: Any) -> Port:
    return Port(name="x", shape=tuple(shape), dtype=dtype, **fields)


def runs(path: Path, given: Port, options: Options = PLAIN, scale: float = 0.0, **fields: Any) -> tuple[list[Array], str]:
    """The arrays that reach the model's only input, and the notes."""
    tensor = TensorInfo(given.name, given.shape, given.dtype, scale)
    declared = declared_inputs(manifest(given, **fields), [tensor])["x"]
    found = list(read(path, declared, options))
    return [run[0] for source in found for run in source.runs], "; ".join(source.note for source in found)


# -- pictures -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """4 wide, 2 high: red, green, blue, white over black, black, grey, grey."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.array(
        [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], [[0, 0, 0], [0, 0, 0], [128, 128, 128], [128, 128, 128]]], np.uint8
    )
    path = tmp_path / "picture.png"
    image.fromarray(pixels).save(path)
    return path


def test_a_picture_is_standardized_in_the_layout_of_the_shape(picture: Path) -> None:
    mean, std = (123.0, 117.0, 104.0), (58.0, 57.0, 56.0)
    (nhwc,), note = runs(picture, port((1, 2, 4, 3), kind="image", mean=mean, std=std))
    (nchw,), _ = runs(picture, port((-1, 3, 2, 4), kind="image", mean=mean, std=std))
    assert note == "4x2 RGB by stretch, (pixels - 123,117,104) / 58,57,56, as the manifest says"
    np.testing.assert_allclose(nhwc[0, 0, 0], [(255 - 123) / 58, -117 / 57, -104 / 56], rtol=1e-6)
    np.testing.assert_array_equal(nchw, nhwc.transpose(0, 3, 1, 2))
    assert nchw.flags["C_CONTIGUOUS"]


def test_colours_come_in_the_order_that_the_manifest_names(picture: Path) -> None:
    (rgb,), _ = runs(picture, port((1, 2, 4, 3), "uint8", kind="image"))
    (bgr,), note = runs(picture, port((1, 2, 4, 3), "uint8", kind="image", channels=("B", "G", "R")))
    np.testing.assert_array_equal(bgr, rgb[..., ::-1])
    assert "BGR" in note


@pytest.mark.parametrize(
    ("dtype", "scale", "white"),
    [("uint8", 0.0, 255), ("uint8", 0.1, 255), ("int8", 0.0, 127), ("int8", 1 / 128, 127), ("float32", 0.0, 255.0)],
)
def test_without_mean_and_std_the_input_holds_the_pixels(picture: Path, dtype: str, scale: float, white: float) -> None:
    (array,), _ = runs(picture, port((1, 2, 4, 3), dtype, kind="image"), scale=scale)
    assert (array.dtype, array[0, 0, 3, 0]) == (np.dtype(dtype), white)


def test_with_them_a_quantized_input_gets_real_numbers_to_quantize(picture: Path) -> None:
    (array,), _ = runs(picture, port((1, 2, 4, 3), "int8", kind="image", mean=(127.5,), std=(127.5,)), scale=1 / 128)
    assert (array.dtype, array[0, 0, 3, 0]) == (np.float32, 1.0)


def test_grey_inputs_take_the_luminance(picture: Path) -> None:
    (ranked,), note = runs(picture, port((1, 2, 4, 1), "uint8", kind="image"))
    (flat,), _ = runs(picture, port((1, 2, 4), "uint8", kind="image"))
    assert ranked[0, 0, :, 0].tolist() == [76, 150, 29, 255]
    np.testing.assert_array_equal(flat, ranked[..., 0])
    assert "grey" in note


def test_sides_that_do_not_fit_are_stretched_cut_off_or_padded(picture: Path) -> None:
    given = {name: runs(picture, port((1, 2, 2, 3), "uint8", kind="image", resize=name))[0][0] for name in ("stretch", "crop", "pad")}
    np.testing.assert_array_equal(given["crop"][0, 0], [[0, 255, 0], [0, 0, 255]])
    assert given["stretch"].tolist() != given["crop"].tolist()
    (padded,), _ = runs(picture, port((1, 4, 4, 3), "uint8", kind="image", resize="pad"))
    assert not padded[0, 0].any()
    assert not padded[0, 3].any()
    np.testing.assert_array_equal(padded[0, 1, 0], [255, 0, 0])


def test_options_go_before_the_manifest(picture: Path) -> None:
    (array,), _ = runs(picture, port((1, 2, 4, 3), kind="image", mean=(1.0,)), Options(mean=(0.0,), scale=(255.0,)))
    assert array.max() == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            port((1, 2, 4, 3), kind="image", channels=("R", "G")),
            r"takes 3 colours; the manifest's channels are R, G \(expected R\+G\+B or B\+G\+R",
        ),
        (port((1, 2, 4, 3), kind="image", mean=(1.0, 2.0)), r"one number or one a colour \(3\)"),
        (port((1, 2, 4, 3), kind="image", std=(0.0,)), "std none that is 0"),
        (port((1, 16), kind="image"), "declares a picture, but input `x` takes shape 1x16"),
    ],
)
def test_a_port_that_is_no_picture_is_refused(picture: Path, given: Port, message: str) -> None:
    with pytest.raises(ModelRefused, match=message):
        runs(picture, given)


# -- sound ----------------------------------------------------------------------------------------------------------------


def write_wav(path: Path, samples: Array, rate_hz: int, width: int = 2) -> Path:
    """`samples` [n] or [channels, n] in -1..1."""
    rows = np.atleast_2d(samples)
    whole = np.round(rows.T * (2 ** (8 * width - 1) - 1)).astype("<i4")
    content = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(len(rows))
        sound.setsampwidth(width)
        sound.setframerate(rate_hz)
        sound.writeframes(content)
    return path


def tone(hz: float, rate_hz: int, seconds: float) -> Array:
    return np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz).astype(np.float32) * np.float32(0.5)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_a_sound_is_averaged_resampled_and_cut(tmp_path: Path, width: int) -> None:
    left = tone(440, 44_100, 1.0)
    path = write_wav(tmp_path / "tone.wav", np.stack([left, left * 0]), 44_100, width)
    arrays, note = runs(path, port((1, 4000), kind="audio", rate_hz=16_000), window=Window(4000, 2000))
    assert note == "44100 Hz sound in -1..1, channels averaged, resampled to 16000 Hz; 7 windows of 4000 samples every 2000"
    np.testing.assert_allclose(arrays[3][0], (tone(440, 16_000, 1.0) / 2)[6000:10_000], atol=1e-3)


@pytest.mark.parametrize(("rate_hz", "wanted_hz"), [(44_100, 16_000), (8000, 16_000), (48_000, 16_000), (22_050, 16_000), (16_000, 11_025)])
def test_resampling_keeps_what_both_rates_can_hold_and_nothing_else(rate_hz: int, wanted_hz: int) -> None:
    low, inner = 0.3 * min(rate_hz, wanted_hz) / 2, slice(200, -200)
    got = resampled(tone(low, rate_hz, 0.5), rate_hz, wanted_hz)
    assert abs(len(got) - 0.5 * wanted_hz) <= 1
    np.testing.assert_allclose(got[inner], tone(low, wanted_hz, 0.6)[: len(got)][inner], atol=1e-3)
    if wanted_hz < rate_hz:
        assert np.abs(resampled(tone(0.6 * wanted_hz, rate_hz, 0.5), rate_hz, wanted_hz)[inner]).max() < 0.01


def test_log_mel_features_are_made_where_the_manifest_names_them(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "tone.wav", tone(1000, 16_000, 1.0), 16_000)
    steps = ("log_mel(16000, 480, 320, 40)", "dct(10)")
    (array,), note = runs(path, port((1, 49, 10, 1), kind="audio", rate_hz=16_000), window=Window(16_000, 16_000), preprocess=steps)
    parsed = parse_steps(steps)
    expected = np.empty(output_shape(parsed, (1, 16_000)), np.float32)
    with wave.open(str(path)) as sound:
        samples = np.frombuffer(sound.readframes(16_000), "<i2").astype(np.float32) / np.float32(32_768)
    Chain(parsed, (1, 16_000), expected)(samples[np.newaxis])
    np.testing.assert_array_equal(array[0, :, :, 0], expected[0])
    assert note.endswith("through log_mel(16000, 480, 320, 40), dct(10)")


def test_a_signal_is_not_resampled_but_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "vibration.wav", tone(50, 8000, 0.5), 8000)
    with pytest.raises(InputError, match=r"vibration.wav: expected a recording at 1600 Hz, .*; this one is at 8000 Hz"):
        runs(path, port((1, 100), kind="signal", rate_hz=1600))


def test_a_rate_beyond_reach_and_a_sound_cut_short_are_named(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "slow.wav", tone(1, 100, 1.0), 100)
    with pytest.raises(InputError, match=r"slow.wav: expected a sound near 16000 Hz, got 100 Hz, which is too far to resample"):
        runs(path, port((1, 100), kind="audio", rate_hz=16_000))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="no WAV sound that can be read"):
        runs(path, port((1, 100), kind="audio", rate_hz=100))


# -- tables and signals ---------------------------------------------------------------------------------------------------


def text(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


COLUMNS = port((-1, 2), kind="tabular", channels=("flow", "temp"), units=("l/min", "degC"))


def test_columns_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    path = text(tmp_path, "note,Temp,pressure,Flow", "1,20,3,7", "2,21,3,8")
    arrays, note = runs(path, COLUMNS)
    np.testing.assert_array_equal(np.concatenate(arrays), [[7, 20], [8, 21]])
    assert note == "2 rows"


def test_units_in_the_header_are_converted(tmp_path: Path) -> None:
    path = text(tmp_path, "time,temp [degF],flow (l/s)", "0,212,1", "1,32,2")
    arrays, note = runs(path, COLUMNS)
    np.testing.assert_allclose(np.concatenate(arrays), [[60, 100], [120, 0]], atol=1e-4)
    assert note == "time column `time` left out; flow (l/s) converted to l/min; temp [degF] converted to degC; 2 rows"


def test_a_unit_of_another_quantity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column `temp \[bar\]`: unit `bar` is pressure, expected temperature .*; the model takes degC"):
        runs(text(tmp_path, "temp [bar],flow", "1,2"), COLUMNS)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    message = r"expected the model's columns flow, temp; missing: `temp` \(there are: flow, pressure\)"
    with pytest.raises(InputError, match=message):
        runs(text(tmp_path, "flow,pressure", "1,2"), COLUMNS)
    with pytest.raises(InputError, match=r"missing: `flow`, `temp` \(there are: 3 without a header\)"):
        runs(text(tmp_path, "1,2,3"), COLUMNS)


def test_windows_of_a_table_go_through_the_steps(tmp_path: Path) -> None:
    path = text(tmp_path, "a,b", *(f"{row},{10 * row}" for row in range(6)))
    given = port((1, 3, 2), kind="signal", channels=("b", "a"))
    arrays, note = runs(path, given, window=Window(3, 2), preprocess=("demean", "scale(2)"))
    np.testing.assert_array_equal(np.concatenate(arrays), [[[-20, -2], [0, 0], [20, 2]]] * 2)
    assert note == "2 windows of 3 samples every 2; through demean, scale(2)"


def test_windows_with_missing_values_are_left_out_and_counted(tmp_path: Path) -> None:
    path = text(tmp_path, "a,b", "1,1", "2,", "3,3", "4,4", "5,5")
    arrays, note = runs(path, port((1, 2, 2), kind="signal", channels=("a", "b")), window=Window(2, 1))
    assert len(arrays) == 2
    assert note == "2 windows of 2 samples every 1; 2 left out for missing values"
    with pytest.raises(InputError, match="every window of 5 samples holds a missing value"):
        runs(path, port((1, 2, 5), kind="signal", channels=("a", "b")), window=Window(5, 1))


def test_a_table_of_another_rate_is_refused_and_one_of_nearly_that_rate_is_not(tmp_path: Path) -> None:
    given = port((1, 2), kind="signal", rate_hz=10.0)
    for step, fine in ((0.1, True), (0.102, True), (0.2, False)):
        path = text(tmp_path, "time,a", *(f"{row * step:.3f},{row}" for row in range(6)))
        if fine:
            assert len(runs(path, given)[0]) == 3
        else:
            with pytest.raises(InputError, match="expected a recording at 10 Hz, as the model was made for; this one is at 5 Hz"):
                runs(path, given)


@pytest.mark.parametrize("shape", [(40, 3), (3, 40)])
def test_arrays_are_turned_to_channels_by_samples(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = np.arange(120, dtype=np.float64).reshape(3, 40)
    np.save(tmp_path / "a.npy", values if shape[0] == 3 else values.T)
    arrays, _ = runs(tmp_path / "a.npy", port((-1, 3, 20), kind="signal"), window=Window(20, 20))
    np.testing.assert_array_equal(np.concatenate(arrays), [values[:, :20], values[:, 20:]])


def test_an_array_of_the_inputs_own_shape_is_taken_as_it_is(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)
    np.save(tmp_path / "ready.npy", values)
    arrays, _ = runs(tmp_path / "ready.npy", port((1, 1, 3, 4), kind="signal"), window=Window(4, 4), preprocess=("standardize",))
    np.testing.assert_array_equal(np.concatenate(arrays), values)
    np.savez(tmp_path / "ready.npz", x=values[:1, 0, 0], y=values)
    arrays, _ = runs(tmp_path / "ready.npz", port((1, 4), kind="signal"), preprocess=("standardize",))
    np.testing.assert_array_equal(arrays[0], values[0, 0, :1])


def test_channels_of_an_npz_are_found_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", t=np.arange(4) * 0.5, b=np.full(4, 2.0), a=np.ones(4))
    given = port((1, 2, 4), kind="signal", channels=("a", "b"), rate_hz=2.0)
    (array,), _ = runs(tmp_path / "r.npz", given)
    np.testing.assert_array_equal(array, [[[1] * 4, [2] * 4]])
    with pytest.raises(InputError, match=r"expected arrays a, c; missing: c"):
        runs(tmp_path / "r.npz", msgspec.structs.replace(given, channels=("a", "c")))
    with pytest.raises(InputError, match="expected a recording at 4 Hz"):
        runs(tmp_path / "r.npz", msgspec.structs.replace(given, rate_hz=4.0))


def test_raw_values_are_samples(tmp_path: Path) -> None:
    np.arange(8, dtype="<i2").tofile(tmp_path / "a.pcm")
    arrays, note = runs(tmp_path / "a.pcm", port((1, 4), kind="signal", rate_hz=50.0), Options(dtype="int16"))
    np.testing.assert_array_equal(np.concatenate(arrays), [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert note.startswith("8 raw int16 values, taken at 50 Hz")


def test_whole_numbers_reach_an_input_of_whole_numbers_and_others_are_refused(tmp_path: Path) -> None:
    given = port((1, 2), "int64", kind="tabular", channels=("a", "b"))
    (array,), _ = runs(text(tmp_path, "a,b", "3,4"), given)
    assert (array.dtype, array.tolist()) == (np.int64, [[3, 4]])
    with pytest.raises(InputError, match="holds values that are no int64"):
        runs(text(tmp_path, "a,b", "3.5,4"), given)


@pytest.mark.parametrize(
    ("values", "fields", "message"),
    [
        (np.zeros((2, 5)), {"channels": ("a", "b", "c")}, r"takes 3 channels \(a, b, c\), got shape 2x5"),
        (np.zeros(3), {}, "expected at least one window of 4 samples, got 3"),
        (np.zeros((2, 3, 4)), {}, "takes channels by samples, got shape 2x3x4"),
        (np.array(["a"]), {}, "holds <U1, not numbers"),
    ],
)
def test_arrays_that_are_no_such_signal_are_named(tmp_path: Path, values: Array, fields: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=message):
        runs(tmp_path / "a.npy", port((1, 12) if fields else (1, 4), kind="signal", **fields))


def test_a_window_that_preprocessing_makes_infinite_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([0.0, 0, 0, -2]))
    with pytest.raises(InputError, match=r"a.npy: window 2 is NaN or infinite after preprocessing"):
        runs(tmp_path / "a.npy", port((1, 2), kind="signal"), window=Window(2, 2), preprocess=("log1p",))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("image", "a.wav", "takes a picture .*; got `.wav`"),
        ("audio", "a.csv", r"takes a sound \(.wav\), .*; got `.csv`"),
        ("signal", "a.png", "takes a signal: .csv, .npy, .npz, .wav or raw values; got `.png`"),
        ("tabular", "a.jpg", "takes a table: .csv, .npy or .npz; got `.jpg`"),
        ("signal", "a.txt.gz", "got `.gz`"),
    ],
)
def test_a_file_of_another_kind_says_what_is_expected(tmp_path: Path, kind: Any, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        runs(tmp_path / name, port((1, 4, 4, 3), kind=kind))


# -- manifests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "found", "message"),
    [
        (port((1, 4)), TensorInfo("y", (1, 4), "float32"), "wrong_shape: m: the graph has an input `y`, its manifest lists x"),
        (port((1, 4)), TensorInfo("x", (1, 5), "float32"), "wrong_shape: m: input `x` is 1x4 in the manifest and 1x5 in the graph"),
        (port((1, 4)), TensorInfo("x", (1, 4), "int8"), "wrong_dtype: m: input `x` is float32 in the manifest and int8 in the graph"),
    ],
)
def test_a_manifest_of_another_graph_is_refused(given: Port, found: TensorInfo, message: str) -> None:
    with pytest.raises(ModelRefused, match=message):
        declared_inputs(manifest(given), [found])


def test_a_manifest_that_declares_nothing_leaves_files_to_the_shapes() -> None:
    tensor = TensorInfo("x", (1, 4), "float32")
    assert declared_inputs(manifest(port((1, 4))), [tensor]) == {}
    assert declared_inputs(msgspec.structs.replace(manifest(port((1, 4))), inputs=()), [tensor]) == {}


# -- infer ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Runs `infer --no-probe --json`: (exit code, document, stderr)."""

    def run(*arguments: object) -> tuple[int, Any, str]:
        code = main(["infer", *map(str, arguments), "--no-probe", "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


@pytest.fixture
def summing(tmp_path: Path) -> Path:
    """A bundle: `total` of a [1, 2] and b [1, 3], and a running `sum` that is its own next input `before`."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from models.qdq import Graph

    graph = Graph("summing", int8=False)
    a, b, before = graph.input("a", [1, 2]), graph.input("b", [1, 3]), graph.input("before", [1])
    parts = [graph.op("Reshape", graph.op("ReduceSum", x, keepdims=0), graph.constant([1], np.int64)) for x in (a, b)]
    total = graph.op("Add", *parts)
    graph.output(total, "total", [1])
    graph.output(graph.op("Add", before, total), "sum", [1])
    graph.output(graph.op("Add", before, total), "next", [1])
    folder = tmp_path / "summing"
    folder.mkdir()
    graph.save(folder / "summing.onnx")
    made = Manifest(
        schema=1,
        name="summing",
        version=1,
        model="summing.onnx",
        files={},
        inputs=(
            Port(name="a", shape=(1, 2), dtype="float32", kind="tabular", channels=("u", "v")),
            Port(name="b", shape=(1, 3), dtype="float32"),
            Port(name="before", shape=(1,), dtype="float32"),
        ),
        outputs=tuple(Port(name=name, shape=(1,), dtype="float32") for name in ("total", "sum", "next")),
        state={"next": "before"},
        license="none",
    )
    write_manifest(folder, made, ["summing.onnx"])
    return folder


def test_each_input_has_its_file_and_the_state_goes_on_until_the_next(printed: Any, summing: Path, tmp_path: Path) -> None:
    table = text(tmp_path, "v,u", "1,1", "2,2", "3,3")
    np.save(tmp_path / "b.npy", np.ones(3, np.float32))
    pair = (f"a={table}", f"b={tmp_path / 'b.npy'}")
    code, report, _ = printed(summing, "--input", *pair, *pair)
    assert code == 0
    assert [result["values"] for result in report["results"]] == [[5, 5], [7, 12], [9, 21]] * 2
    assert [output["name"] for output in report["results"][0]["outputs"]] == ["total", "sum"]
    assert report["results"][0]["input"] == "rows.csv+b.npy"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=rows.csv"], "set 1 has no file for input `b`; give a=FILE b=FILE"),
        (["a=rows.csv", "b=b.npy", "b=b.npy"], "set 2 has no file for input `a`"),
        (["c=rows.csv"], r"the model has no input `c` \(it has: a, b\)"),
        (["a=rows.csv", "b.npy"], "expected NAME=FILE as for the others"),
        (["before=b.npy", "a=rows.csv", "b=b.npy"], "the model has no input `before`"),
        (["a=rows.csv", "b=two.npy"], "rows.csv gives 3 runs, two.npy gives 2 runs; expected as many from each, or one"),
        (["rows.csv"], "the model takes 2 inputs; give one .npz"),
    ],
)
def test_files_that_do_not_make_a_set_are_exit_2(
    printed: Any, summing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], message: str
) -> None:
    import re

    text(tmp_path, "v,u", "1,1", "2,2", "3,3")
    np.save(tmp_path / "b.npy", np.ones(3, np.float32))
    np.save(tmp_path / "two.npy", np.ones((2, 3), np.float32))
    monkeypatch.chdir(tmp_path)
    code, report, err = printed(summing, "--input", *given)
    assert (code, report) == (2, None)
    assert re.search(message, err)


def test_a_step_of_a_newer_version_is_refused_by_name(printed: Any, summing: Path) -> None:
    manifest_file = summing / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace('"license"', '"preprocess": ["wavelet(3)"], "license"'))
    code, report, err = printed(summing, "--input", "x.csv")
    assert code == 1
    assert report["refused"]["reason"] == "unsupported_format"
    assert "unknown preprocessing step `wavelet(3)`" in err


def test_a_kind_of_a_newer_version_is_refused_by_name(printed: Any, summing: Path) -> None:
    manifest_file = summing / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace('"tabular"', '"video"'))
    code, report, err = printed(summing, "--input", "x.csv")
    assert (code, report["refused"]["reason"]) == (1, "unreadable")
    assert "Invalid enum value 'video' - at `$.inputs[0].kind`" in err


def test_the_zoos_classifier_names_its_classes_and_standardizes_by_itself(printed: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    noise = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    np.save(tmp_path / "a.npy", noise)
    np.save(tmp_path / "b.npy", noise * 50 + 9)
    code, report, _ = printed("zoo:bearing", "--input", tmp_path / "a.npy", tmp_path / "b.npy")
    assert code == 0
    assert report["results"][0]["top"][0]["label"] in ("normal", "outer_race", "inner_race", "ball")
    assert "4 windows of 1024 samples every 512; through standardize" in report["notes"][0]
    first, second = (np.array([r["values"] for r in report["results"] if r["input"] == name]) for name in ("a.npy", "b.npy"))
    np.testing.assert_allclose(first, second, atol=0.02)


def test_a_score_goes_through_the_manifests_steps(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from edge_runtime.bundle import read_bundle
    from models.onnx import OnnxBackend
    from models.train.scoring import result_of
    from models.zoo import path as zoo_path

    zoo = read_bundle(zoo_path("bearing").parent)
    signal = np.random.default_rng(1).normal(size=8192) + np.sin(np.arange(8192) / 3)
    np.savez(tmp_path / "plain.npz", normal_a=signal)
    np.savez(tmp_path / "scaled.npz", normal_a=signal * 1000 + 5000)
    scores = [result_of(zoo, OnnxBackend().load(zoo.model), [tmp_path / f"{name}.npz"], "anomaly", 0) for name in ("plain", "scaled")]
    assert scores[0].windows == 8
    assert scores[0] == scores[1]
