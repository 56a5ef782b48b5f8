"""Files become inputs: whole shapes, nothing invented, nothing lost silently; every misfit is told with the file's name."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import InputError
from edge_runtime.types import Array, TensorInfo
from models import labels
from models.inputs import Options, Source, cut, read

FOUR = TensorInfo("x", (-1, 4), "float32")
INT8 = TensorInfo("x", (1, 4), "int8", 0.5, 3)
INDICES = TensorInfo("x", (1, 4), "int32")
SERIES = TensorInfo("x", (1, -1, 2), "float32")
NO_OPTIONS = Options()


def sources(path: Path, *tensors: TensorInfo, options: Options = NO_OPTIONS) -> list[Source]:
    return list(read(path, tensors or (FOUR,), options))


def only(path: Path, *tensors: TensorInfo, options: Options = NO_OPTIONS) -> Array:
    """The runs of a one-input model, one over the other."""
    (source,) = sources(path, *tensors, options=options)
    return np.concatenate([run[0] for run in source.runs])


def saved(path: Path, array: Array) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 4), (8,), (2, 2, 2), (3, 1, 4)])
def test_a_file_of_k_inputs_is_k_runs_of_one(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (source,) = sources(saved(tmp_path / "x.npy", values))
    assert [run[0].shape for run in source.runs] == [(1, 4)] * (values.size // 4)
    np.testing.assert_array_equal(np.concatenate([run[0] for run in source.runs]).reshape(-1), values.reshape(-1))


def test_a_misfit_says_what_it_holds_and_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.npy: holds 6 values of shape 6; input `x` takes \?x4.*multiple of 4 values"):
        sources(saved(tmp_path / "x.npy", np.zeros(6, np.float32)))


def test_stored_values_stay_as_they_are_and_others_become_real_numbers(tmp_path: Path) -> None:
    stored = np.array([[-128, 0, 3, 127]], np.int8)
    assert only(saved(tmp_path / "stored.npy", stored), INT8).dtype == np.int8
    real = only(saved(tmp_path / "real.npy", np.array([[1, 2, 3, 4]], np.int64)), INT8)
    assert real.dtype == np.float32
    assert only(saved(tmp_path / "double.npy", np.zeros((1, 4))), FOUR).dtype == np.float32


def test_whole_numbers_are_taken_as_indices_and_broken_ones_are_not(tmp_path: Path) -> None:
    assert only(saved(tmp_path / "whole.npy", np.array([1.0, 2.0, 3.0, 4.0])), INDICES).dtype == np.int32
    with pytest.raises(InputError, match="holds values that are no int32"):
        sources(saved(tmp_path / "broken.npy", np.array([1.5, 2.0, 3.0, 4.0])), INDICES)


def test_objects_are_not_unpacked(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"objects\.npy: cannot be read"):
        sources(tmp_path / "objects.npy")
    with pytest.raises(InputError, match="not numbers"):
        sources(saved(tmp_path / "words.npy", np.array(["a", "b", "c", "d"])))


def test_an_archive_gives_the_array_of_the_inputs_name_else_each_but_the_time(tmp_path: Path) -> None:
    ones = np.ones((1, 4), np.float32)
    np.savez(tmp_path / "named.npz", x=ones, other=ones * 2)
    assert only(tmp_path / "named.npz").tolist() == ones.tolist()
    np.savez(tmp_path / "each.npz", t=np.arange(3), left=ones, right=ones * 2)
    assert [source.name for source in sources(tmp_path / "each.npz")] == ["each.npz[left]", "each.npz[right]"]
    np.savez(tmp_path / "misfit.npz", left=ones, right=ones[:, :3])
    with pytest.raises(InputError, match=r"misfit\.npz\[right\]: holds 3 values"):
        sources(tmp_path / "misfit.npz")


def test_a_model_of_two_inputs_takes_an_archive_with_both(tmp_path: Path) -> None:
    y = TensorInfo("y", (1, 2), "float32")
    np.savez(tmp_path / "both.npz", y=np.zeros((1, 2), np.float32), x=np.ones((1, 4), np.float32))
    (source,) = sources(tmp_path / "both.npz", FOUR, y)
    assert [array.shape for array in source.runs[0]] == [(1, 4), (1, 2)]
    np.savez(tmp_path / "half.npz", x=np.ones((1, 4), np.float32))
    with pytest.raises(InputError, match="has no array y; the model takes x"):
        sources(tmp_path / "half.npz", FOUR, y)
    with pytest.raises(InputError, match=r"takes 2 inputs; give one \.npz"):
        sources(saved(tmp_path / "x.npy", np.zeros(4)), FOUR, y)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3,4\n5,6,7,8\n",
        "a,b,c,d\n1,2,3,4\n5,6,7,8\n",
        "1;2;3;4\r\n5;6;7;8\r\n",
        "1\t2\t3\t4\n5\t6\t7\t8",
        "\ufefftime,a,b,c,d\n0.1,1,2,3,4\n0.2,5,6,7,8\n",
        "2026-01-01T00:00:00,1,2,3,4\n2026-01-01T00:00:01,5,6,7,8\n",
    ],
    ids=["plain", "header", "semicolon", "tab", "time-column", "time-without-header"],
)
def test_tables_of_every_kind(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    assert only(path).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("1,x,3,4\n1,2,3,4\n", r"table\.csv:1: .*'x'"),
        ("1,2,3,4\n1,2\n", "different numbers of columns"),
        ("1,2,3,4\n1,2,x,4\n", r"table\.csv:2: .*'x'"),
    ],
)
def test_a_broken_table_names_its_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        sources(path)


def test_raw_bytes_are_read_in_the_dtype_that_makes_whole_inputs(tmp_path: Path) -> None:
    path = tmp_path / "values.bin"
    np.arange(8, dtype=np.float32).tofile(path)
    assert only(path).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    np.array([1, 2, 3, 4], np.int8).tofile(path)
    assert only(path, INT8).tolist() == [[1, 2, 3, 4]]
    path.write_bytes(bytes(7))
    with pytest.raises(InputError, match="7 bytes are no whole number of int16 values"):
        sources(path, options=Options(dtype="int16"))


@pytest.mark.parametrize(("dtype", "full"), [("u1", 255), ("<i2", 32767), ("<i4", 2147483647)])
def test_sound_lies_in_minus_one_to_one(dtype: str, full: int, tmp_path: Path) -> None:
    low = 0 if dtype == "u1" else -full - 1
    middle = 128 if dtype == "u1" else 0
    samples = np.array([low, middle, full, middle], dtype)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(samples.itemsize)
        sound.setframerate(8000)
        sound.writeframes(samples.tobytes())
    np.testing.assert_allclose(only(tmp_path / "sound.wav"), [[-1, 0, 1, 0]], atol=0.01)


def test_a_file_that_only_calls_itself_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    for content in (b"", b"RIFF", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"sound\.wav"):
            sources(path)


def test_an_unknown_kind_and_an_absent_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "input.xyz"
    with pytest.raises(InputError, match="there is no input file"):
        sources(path)
    path.touch()
    with pytest.raises(InputError, match=r"`\.xyz` is no known kind of input \(known: pictures, \.npy"):
        sources(path)


def test_mean_and_scale_shift_the_values(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", np.array([0, 2, 4, 6]))
    assert only(path, options=Options(mean=(2.0,), scale=(4.0,))).tolist() == [[-0.5, 0.0, 0.5, 1.0]]


def test_a_free_inner_dimension_takes_what_comes_in_whole_rows() -> None:
    (run,), note = cut(np.arange(10, dtype=np.float32), SERIES, NO_OPTIONS)
    assert (run.shape, note) == ((1, 5, 2), "read as shape 1x5x2")
    with pytest.raises(InputError, match="multiple of 2 values"):
        cut(np.arange(9, dtype=np.float32), SERIES, NO_OPTIONS)


@given(count=st.integers(4, 60), hop=st.integers(1, 9))
def test_windows_start_every_hop_and_the_rest_is_told(count: int, hop: int) -> None:
    values = np.arange(count, dtype=np.float32)
    runs, note = cut(values, FOUR, Options(window=4, hop=hop))
    assert [run[0].tolist() for run in runs] == [values[at : at + 4].tolist() for at in range(0, count - 3, hop)]
    rest = (count - 4) % hop
    assert (f", {rest} values left over" in note) is (rest > 0)


@pytest.mark.parametrize(("window", "count", "words"), [(5, 20, "takes 4 values"), (4, 3, "only 3 values")])
def test_a_window_that_cannot_be_is_refused(window: int, count: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cut(np.zeros(count, np.float32), FOUR, Options(window=window))


class TestPictures:
    RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14

    @pytest.fixture
    def picture(self, tmp_path: Path) -> Path:
        image = pytest.importorskip("PIL.Image")
        path = tmp_path / "picture.png"
        image.fromarray(self.RGB, "RGB").save(path)
        return path

    def test_pixels_as_they_are_for_uint8(self, picture: Path) -> None:
        assert only(picture, TensorInfo("x", (1, 2, 3, 3), "uint8", 1 / 128, 128)).tolist() == [self.RGB.tolist()]

    @pytest.mark.parametrize(("scale", "zero_point"), [(1 / 255, -128), (2 / 255, 0), (1.0, -128), (1.0, 0)])
    def test_pixels_shifted_exactly_for_int8_of_a_usual_range(self, picture: Path, scale: float, zero_point: int) -> None:
        got = only(picture, TensorInfo("x", (1, 2, 3, 3), "int8", scale, zero_point))
        assert got.dtype == np.int8
        assert got.tolist() == [(self.RGB.astype(int) - 128).tolist()]

    def test_minus_one_to_one_for_floats_and_channels_first_where_the_model_has_them_first(self, picture: Path) -> None:
        last = only(picture, TensorInfo("x", (-1, 2, 3, 3), "float32"))
        np.testing.assert_allclose(last[0], self.RGB / 127.5 - 1, atol=1e-6)
        first = only(picture, TensorInfo("x", (1, 3, 4, 5), "float32"))
        assert first.shape == (1, 3, 4, 5)

    def test_a_photo_is_turned_as_its_camera_noted(self, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        orientation = image.Exif()
        orientation[0x0112] = 6  # a quarter turn clockwise brings it upright
        image.fromarray(np.rot90(self.RGB), "RGB").save(tmp_path / "photo.png", exif=orientation)
        assert only(tmp_path / "photo.png", TensorInfo("x", (1, 2, 3, 3), "uint8", 1 / 128, 128)).tolist() == [self.RGB.tolist()]

    def test_sixteen_bits_a_pixel_become_eight(self, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        image.fromarray(np.array([[0, 256, 32_768], [65_535, 255, 511]], np.uint16)).save(tmp_path / "deep.png")
        got = only(tmp_path / "deep.png", TensorInfo("x", (1, 2, 3, 1), "uint8", 1 / 128, 128))
        assert got[0, :, :, 0].tolist() == [[0, 1, 128], [255, 0, 1]]

    def test_a_picture_too_large_to_decode_is_refused_before_it_is(self, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
        with pytest.raises(InputError, match=r"bomb\.png: 12000 x 12000 pixels, at most 128000000 are read"):
            only(tmp_path / "bomb.png", TensorInfo("x", (1, 2, 3, 3), "uint8", 1 / 128, 128))

    def test_grey_without_an_axis_for_channels(self, picture: Path) -> None:
        assert only(picture, TensorInfo("x", (1, 2, 3), "uint8")).shape == (1, 2, 3)

    def test_a_model_that_takes_no_pictures_says_so(self, picture: Path) -> None:
        with pytest.raises(InputError, match=r"takes shape \?x4, which is no picture"):
            sources(picture)

    def test_a_broken_picture_is_named(self, picture: Path) -> None:
        picture.write_bytes(picture.read_bytes()[:45])
        with pytest.raises(InputError, match=r"picture\.png: not a picture that can be read"):
            sources(picture, TensorInfo("x", (1, 2, 3, 3), "uint8"))

    def test_one_mean_per_channel_or_one_for_all(self, picture: Path) -> None:
        tensor = TensorInfo("x", (1, 2, 3, 3), "float32")
        got = only(picture, tensor, options=Options(mean=(1.0, 2.0, 3.0), scale=(2.0,)))
        np.testing.assert_allclose(got[0], (self.RGB - np.array([1.0, 2.0, 3.0])) / 2, atol=1e-5)
        with pytest.raises(InputError, match=r"one per channel \(3\), got 2 and 1"):
            sources(picture, tensor, options=Options(mean=(1.0, 2.0)))


class TestLabels:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("cat\ndog\n", ["cat", "dog"]),
            ("0 cat\n1 dog\n\n", ["cat", "dog"]),
            ("1: dog\n0: cat\n", ["cat", "dog"]),
            ("0 cat\n2 dog\n", ["cat", "", "dog"]),
            ("1 cat\n1 dog\n", ["1 cat", "1 dog"]),
            ("cat\n\ndog\n", ["cat", "", "dog"]),
        ],
        ids=["plain", "numbered", "out-of-order", "gap", "numbers-twice", "empty-line"],
    )
    def test_read(self, text: str, names: list[str], tmp_path: Path) -> None:
        path = tmp_path / "labels.txt"
        path.write_text(text)
        assert labels.read(path) == names

    @pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
    def test_no_labels_are_told(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "labels.txt"
        path.write_bytes(content)
        with pytest.raises(InputError, match="labels"):
            labels.read(path)

    def test_their_number_is_the_models(self) -> None:
        assert labels.fit(["background", "cat", "dog"], 2) == ["cat", "dog"]
        assert labels.fit(["background", "cat"], 2) == ["background", "cat"]
        with pytest.raises(InputError, match="3 labels for 2 classes"):
            labels.fit(["a", "b", "c"], 2)
