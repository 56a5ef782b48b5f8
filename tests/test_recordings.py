"""Recordings: what a CSV or npz holds comes out as it stands there, and every row is accounted for."""

from __future__ import annotations

import io
import math
import zipfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.errors import InputError
from edge_runtime.recordings import Recording, canonical, open_recordings, parse_time
from edge_runtime.recordings.times import parse_times

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
SECOND = 10**9


@pytest.fixture
def write(tmp_path: Path):
    def write_csv(text: str | bytes, name: str = "run.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_csv


def read(path: Path, **options) -> Recording:
    (recording,) = open_recordings(path, **options)
    return recording


def seconds(recording: Recording) -> list[float]:
    assert recording.t_ns is not None
    return [t / SECOND for t in (recording.t_ns - recording.t_ns[0]).tolist()]


# -- times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("1970-01-01 00:00:01", SECOND),
        ("1970-01-01T00:00:01.5", 1_500_000_000),
        ("1970-01-01 00:00:00.123456789", 123_456_789),
        ("1970-01-01 00:00:00,25", 250_000_000),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1970-01-01T00:00:00.1Z", 100_000_000),
        ("1969-12-31T23:59:59.9Z", -100_000_000),
        ("1970-01-02", 86_400 * SECOND),
        ("1581168647", 1_581_168_647 * SECOND),
        ("1581168647.123456789", 1_581_168_647_123_456_789),
        ("1581168647123", 1_581_168_647_123_000_000),
        ("1581168647123456", 1_581_168_647_123_456_000),
        ("1581168647123456789", 1_581_168_647_123_456_789),
        ("-1.5", -1_500_000_000),
        ("0.5", 500_000_000),
        ("1e3", 1000 * SECOND),
    ],
)
def test_a_time_becomes_nanoseconds(text: str, expected_ns: int) -> None:
    assert parse_time(text) == expected_ns


@pytest.mark.parametrize(
    "text", ["", "yesterday", "nan", "inf", "2020-02-30 00:00:00", "1e30", "1_000", "0001-01-01", "9999-12-31", "24:00"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


zones = st.sampled_from([None, UTC, timezone(timedelta(hours=2)), timezone(timedelta(hours=-9, minutes=-30))])
moments = st.datetimes(datetime(1700, 1, 1), datetime(2260, 1, 1), timezones=zones)


@given(st.lists(moments, min_size=1, max_size=5), st.sampled_from("T "), st.sampled_from(["auto", "seconds", "milliseconds"]))
def test_a_column_of_times_reads_like_its_cells(values: list[datetime], separator: str, precision: str) -> None:
    cells = [moment.isoformat(separator, precision) for moment in values]
    assert parse_times(cells, 0).tolist() == [parse_time(cell) for cell in cells]


@given(st.lists(st.text("0123456789-T:. Z+", min_size=19, max_size=24), min_size=1, max_size=2))
@example(["2020-02-08 13:30+01"])
@example(["2020-02-30 00:00:00"])
@example(["2020-02-08 24:00:00"])
@example(["2020-02-08 13:30:47."])
@example(["0999-02-08 13:30:47"])
def test_no_text_reads_differently_in_a_column(cells: list[str]) -> None:
    try:
        expected = [parse_time(cell) for cell in cells]
    except ValueError:
        with pytest.raises(ValueError):
            parse_times(cells, 0)
    else:
        assert parse_times(cells, 0).tolist() == expected


def test_the_unit_of_an_epoch_is_told_once_for_the_whole_file(write) -> None:
    recording = read(write("t,a\n99999999999,1\n100000000001,2\n100000000002,3\n100000000003,4\n"))
    assert recording.report.time_format == "epoch ms"
    assert seconds(recording) == [0, 0.002, 0.003, 0.004]


def test_the_report_says_how_times_were_read(write) -> None:
    assert read(write("t,a\n2020-01-01T00:00:00Z,1\n")).report.time_format == "ISO 8601"
    assert read(write("t,a\n2020-01-01 00:00:00,1\n")).report.time_format == "ISO 8601 without zone, taken as UTC"
    assert read(write("t,a\n12.5,1\n")).report.time_format == "epoch s"


# -- CSV ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "t,a,b\n0,1.5,2\n1,-3,4e2\n",
        "t;a;b\n0;1,5;2\n1;-3;4e2\n",
        "t\ta\tb\n0\t1.5\t2\n1\t-3\t4e2\n",
        '"t","a","b"\n"0","1.5","2"\n"1","-3","4e2"\n',
        "\ufefft,a,b\r\n0,1.5,2\r\n1,-3,4e2\r\n",
        "t,a,b\r0,1.5,2\r1,-3,4e2",
        "t, a , b\n 0 , 1.5 , 2\n\n1,-3,4e2\n\n",
        "t,a,b\n1970-01-01 00:00:00,1.5,2\n1970-01-01 00:00:01,-3,4e2\n",
    ],
    ids=["comma", "semicolon and decimal comma", "tab", "quoted", "BOM and CRLF", "CR", "blanks", "ISO"],
)
def test_every_usual_dialect_gives_the_same_recording(write, text: str) -> None:
    recording = read(write(text))
    assert recording.name == "run"
    assert seconds(recording) == [0, 1]
    assert recording.columns["a"].tolist() == [1.5, -3]
    assert recording.columns["b"].tolist() == [2, 400]
    assert recording.report.columns == ("a", "b")
    assert (recording.report.rows, recording.report.malformed, recording.report.missing) == (2, 0, 0)


def test_the_delimiter_is_the_one_that_header_and_rows_agree_on(write) -> None:
    recording = read(write("time;temp, inner;x,y\n2020-01-01;1,5;2,5\n"))
    assert {name: values.tolist() for name, values in recording.columns.items()} == {"temp, inner": [1.5], "x,y": [2.5]}


def test_missing_and_infinite_cells_are_kept_as_missing(write) -> None:
    recording = read(write("t,a,b\n0,,1\n1,NaN,2\n2,null,inf\n3,N/A,4\n4,5,None\n"))
    assert recording.report.rows == 5
    assert recording.report.missing == 6
    assert np.isnan(recording.columns["a"]).tolist() == [True, True, True, True, False]
    assert np.isnan(recording.columns["b"]).tolist() == [False, False, True, False, True]


def test_words_for_truth_are_numbers(write) -> None:
    assert read(write("t,open\n0,true\n1,FALSE\n")).columns["open"].tolist() == [1, 0]


def test_duplicate_and_out_of_order_times_stay_in_file_order_and_are_counted(write) -> None:
    recording = read(write("t,a\n10,0\n11,1\n11,2\n9,3\n12,4\n11,5\n20,6\n"))
    assert seconds(recording) == [0, 1, 1, -1, 2, 1, 10]
    assert recording.columns["a"].tolist() == list(range(7))
    report = recording.report
    assert (report.rows, report.duplicates, report.out_of_order, report.gaps) == (7, 2, 2, 1)
    assert (report.first_ns, report.last_ns) == (10 * SECOND, 20 * SECOND)


def test_malformed_rows_are_counted_by_reason_and_named(write) -> None:
    path = write("t,a,b\n0,1,2\n1,2\n2,1,2,3\nlater,1,2\n3,1_000,2\n4,1,two\n5,6,7\n")
    recording = read(path)
    assert seconds(recording) == [0, 5]
    assert recording.report.malformed == 5
    assert recording.report.reasons == {"too few cells": 1, "too many cells": 1, "not a time": 1, "not a number": 2}
    assert recording.report.problems == (
        f"{path}:3: expected 3 cells, got 2",
        f"{path}:4: expected 3 cells, got 4; has the header a name too few, as for row numbers?",
        f"{path}:5:t: expected a time (ISO 8601 or epoch seconds), got `later`",
        f"{path}:6:a: expected a number, got `1_000`",
        f"{path}:7:b: expected a number, got `two`",
    )
    with pytest.raises(InputError, match=r"run\.csv:3: expected 3 cells, got 2"):
        open_recordings(path, strict=True)


def test_an_open_quote_harms_only_its_own_row(write) -> None:
    recording = read(write('t,a\n0,"1\n1,"2"\n2,3\n'))
    assert recording.columns["a"].tolist() == [1, 2, 3]


def test_line_numbers_hold_beyond_the_first_chunk(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.recordings.csv_table._CHUNK", 64)
    path = write("t,a\n" + "".join(f"{n},{n}\n" for n in range(100)) + "100,x\n" + "".join(f"{n},{n}\n" for n in range(101, 200)))
    recording = read(path)
    assert recording.report.problems == (f"{path}:102:a: expected a number, got `x`",)
    assert recording.columns["a"].tolist() == [n for n in range(200) if n != 100]


cells = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["", "nan", " 1 ", "true", "1_0", "x", '"2"', '"', "1,5", "inf", "٣"]),
)


@given(st.lists(st.tuples(st.integers(0, 10**10).map(str) | cells, cells, cells), max_size=8), st.sampled_from(",;\t"))
def test_rows_and_whole_columns_read_alike(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], delimiter: str) -> None:
    """A row that needs a second look makes its chunk be read row by row; the others must not change by that."""
    folder = tmp_path_factory.mktemp("alike")
    lines = [delimiter.join(row) for row in rows]
    header = delimiter.join("tab")

    def load(name: str, body: list[str]) -> Recording | None:
        path = folder / name
        path.write_text("\n".join([header, *body, ""]), encoding="utf-8")
        try:
            return read(path)
        except InputError:
            return None

    anchor = delimiter.join("123")
    fast, slow = load("fast.csv", [anchor, *lines]), load("slow.csv", [anchor, *lines, delimiter.join("xxx")])
    assert fast is not None
    assert slow is not None
    assert fast.t_ns is not None
    assert slow.t_ns is not None
    assert fast.t_ns.tolist() == slow.t_ns.tolist()
    for name in "ab":
        np.testing.assert_array_equal(fast.columns[name], slow.columns[name])
    assert fast.report.rows + fast.report.malformed == 1 + sum(bool(line.strip()) for line in lines)
    assert slow.report.malformed == fast.report.malformed + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a header"),
        (b"just one column\n1\n2\n", "expected a header with a time column and at least one channel"),
        (b"t,a,a\n0,1,2\n", "expected different, non-empty column names, got `a`"),
        (b"t,a,\n0,1,2\n", "expected different, non-empty column names, got ``"),
        (b"2020-01-01,1,2\n2020-01-02,3,4\n", "expected a header with column names, got numbers"),
        (b"t,a\n0,1\n1,\xe9\n", r"run.csv:3: expected UTF-8 text, got byte 0xe9 as character 3.*iconv"),
        ("t,a\n0,1\n".encode("utf-16"), "UTF-16"),
        (b"t,a\nnever,1\nnever,2\n", r"run.csv:2:t: expected a time.*none of the other 1 rows"),
        (b"t,a\n1,0,1\n2,0,1\n", "name too few"),
    ],
)
def test_what_is_no_recording_is_refused_in_clear_words(write, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_recordings(write(content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_recordings(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="cannot be read"):
        open_recordings(tmp_path)


def test_a_header_alone_is_an_empty_recording(write) -> None:
    recording = read(write("t,a\n"))
    assert recording.report.rows == 0
    assert recording.columns["a"].tolist() == []


def test_a_file_above_the_bound_is_refused_before_it_is_read(write) -> None:
    with pytest.raises(InputError, match="at most 10 bytes, got 12"):
        open_recordings(write("t,a\n0,1\n1,2\n"), max_bytes=10)


def test_label_columns_are_told_apart(write) -> None:
    recording = read(write("t,a,Anomaly,changepoint\n0,1,0,0\n"))
    assert list(recording.channels) == ["a"]
    assert list(recording.labels) == ["Anomaly", "changepoint"]
    assert canonical("Volume Flow RateRMS") == "volumeflowraterms"


# -- npz ------------------------------------------------------------------------------------------------------------------


def test_an_npz_with_times_is_one_recording(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    np.savez(path, t=np.array([1.5e9, 1.5e9 + 0.25, 1.5e9]), a=np.array([1, 2, 3], np.int16), b=np.array([1, np.nan, np.inf]))
    recording = read(path)
    assert recording.t_ns is not None
    assert recording.t_ns.tolist() == [1_500_000_000 * SECOND, 1_500_000_000_250_000_000, 1_500_000_000 * SECOND]
    assert recording.columns["a"].tolist() == [1, 2, 3]
    assert (recording.report.missing, recording.report.duplicates, recording.report.out_of_order) == (2, 1, 1)


@pytest.mark.parametrize(
    ("t", "words"),
    [
        (np.array([1_581_168_647_123, 1_581_168_647_124]), "epoch ms"),
        (np.array(["2020-02-08T13:30:47.123", "2020-02-08T13:30:47.124"], "datetime64[ms]"), "datetime64[ms]"),
    ],
)
def test_times_of_an_npz_may_be_whole_numbers_or_datetimes(tmp_path: Path, t: np.ndarray, words: str) -> None:
    np.savez_compressed(tmp_path / "run.npz", t=t, a=np.zeros(2))
    recording = read(tmp_path / "run.npz")
    assert recording.report.time_format == words
    assert seconds(recording) == [0, 0.001]


def test_an_npz_without_times_is_one_recording_for_each_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", ball_0=np.ones(5, np.float32), normal_0=np.zeros(3, np.float32))
    recordings = open_recordings(tmp_path / "run.npz")
    assert [(r.name, r.t_ns, r.report.rows) for r in recordings] == [("ball_0", None, 5), ("normal_0", None, 3)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected at least one array"),
        ({"t": np.zeros(2)}, "besides `t`"),
        ({"t": np.zeros(2), "a": np.zeros(3)}, "expected 2 values like `t`, got 3"),
        ({"t": np.array([0, np.nan]), "a": np.zeros(2)}, "expected finite times"),
        ({"t": np.array([1, 1, 1e18]), "a": np.zeros(3)}, "times of one unit"),
        ({"a": np.zeros((2, 2))}, "1-D array of numbers, got float64 of shape"),
        ({"a": np.array(["x"])}, "1-D array of numbers"),
        ({"a": np.zeros(2, complex)}, "1-D array of numbers"),
    ],
)
def test_arrays_that_are_no_recording_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "run.npz", **arrays)
    with pytest.raises(InputError, match=message):
        open_recordings(tmp_path / "run.npz")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", a=np.array([print], object), allow_pickle=True)
    with pytest.raises(InputError, match="1-D array of numbers, got object"):
        open_recordings(tmp_path / "run.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(200_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    with pytest.raises(InputError, match=r"unpacks to 1600128 bytes, more than 100000"):
        open_recordings(tmp_path / "bomb.npz", max_bytes=100_000)


def _npy(shape: tuple[int, ...], data: bytes) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return header.getvalue() + data


@pytest.mark.parametrize("shape", [(10**15,), (-1,), (9,)])
def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with zipfile.ZipFile(tmp_path / "run.npz", "w") as archive:
        archive.writestr("a.npy", _npy(shape, b"\0" * 64))
    with pytest.raises(InputError, match="cut short or damaged"):
        open_recordings(tmp_path / "run.npz")


@given(st.data())
def test_a_damaged_npz_is_refused_or_reads_as_numbers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, t=np.arange(50.0), a=np.arange(50.0))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "run.npz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        recordings = open_recordings(path)
    except InputError:
        return
    assert all(values.dtype == np.float64 for recording in recordings for values in recording.columns.values())


# -- real recordings --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (DATA / "skab").is_dir(), reason="the SKAB recordings are not here")
def test_every_row_of_skab_is_read() -> None:
    path = DATA / "skab/anomaly-free/anomaly-free.csv"
    recording = read(path, strict=True)
    lines = path.read_text().splitlines()
    assert recording.report.rows == len(lines) - 1
    assert len(recording.channels) == 8
    assert recording.report.step_ns == SECOND
    assert recording.report.gaps > 0
    assert recording.columns["Pressure"].tolist() == [float(line.split(";")[4]) for line in lines[1:]]

    labelled = read(DATA / "skab/valve1/0.csv", strict=True)
    assert len(labelled.channels) == 8
    assert set(labelled.labels) == {"anomaly", "changepoint"}
    assert set(np.unique(labelled.labels["anomaly"])) == {0, 1}


@pytest.mark.skipif(not (DATA / "cwru").is_dir(), reason="the CWRU recordings are not here")
def test_every_array_of_cwru_is_a_recording() -> None:
    recordings = open_recordings(DATA / "cwru/cwru_12k_drive_end_loads_0_1.npz")
    assert len(recordings) == 19
    assert sum(recording.report.rows for recording in recordings) > 2_000_000
    assert all(math.isfinite(recording.columns[recording.name].sum()) for recording in recordings)


@pytest.mark.skipif(not (DATA / "occupancy").is_dir(), reason="the occupancy recordings are not here")
def test_a_header_without_a_name_for_row_numbers_is_explained() -> None:
    with pytest.raises(InputError, match="has the header a name too few, as for row numbers"):
        open_recordings(DATA / "occupancy/datatest.txt")
