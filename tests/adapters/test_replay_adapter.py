"""The driver `replay`: a recording comes out of it as it was measured, in the time it was measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.replay import FAULTS, ReplayAdapter, open_adapter
from edge_runtime.clock import SystemClock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.types import Quality, Sample

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
SECOND = 10**9
RUN = "time,temp,flow,anomaly\n100,1,10,0\n101,2,,0\n101,3,30,1\n99,4,40,0\n104,5,50,0\n"

Open = Callable[..., Any]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "run.csv"
    path.write_text(RUN)
    return path


def adapter_for(path: Path, clock: Any = None, **options: Any) -> ReplayAdapter:
    return open_adapter("rec", {"file": str(path), "speed": "max", **options}, clock or VirtualClock())


async def play(adapter: ReplayAdapter, *channels: str) -> list[Sample]:
    """Everything that the recordings hold."""
    samples: list[Sample] = []
    await adapter.open()
    async with asyncio.timeout(30):
        await adapter.stream(channels or [info.channel for info in adapter.channels()], samples.append)
    await adapter.close()
    return samples


async def spin(turns: int = 50) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_cells_come_in_file_order_with_the_time_of_their_source(recording: Path) -> None:
    samples = await play(adapter_for(recording))
    assert [(s.channel, s.value, s.quality, s.wall_ns) for s in samples] == [
        ("temp", 1.0, Quality.GOOD, 100 * SECOND),
        ("flow", 10.0, Quality.GOOD, 100 * SECOND),
        ("temp", 2.0, Quality.GOOD, 101 * SECOND),
        ("flow", None, Quality.BAD, 101 * SECOND),
        ("temp", 3.0, Quality.GOOD, 101 * SECOND),
        ("flow", 30.0, Quality.GOOD, 101 * SECOND),
        ("temp", 4.0, Quality.UNCERTAIN, 99 * SECOND),
        ("flow", 40.0, Quality.UNCERTAIN, 99 * SECOND),
        ("temp", 5.0, Quality.GOOD, 104 * SECOND),
        ("flow", 50.0, Quality.GOOD, 104 * SECOND),
    ]


async def test_only_wanted_channels_are_delivered_and_labels_are_none(recording: Path) -> None:
    adapter = adapter_for(recording, units={"temp": "degC"})
    assert {sample.channel for sample in await play(adapter, "temp")} == {"temp"}
    assert [(info.channel, info.unit, info.rate_hz) for info in adapter.channels()] == [("temp", "degC", 0.5), ("flow", "", 0.5)]
    assert [info.channel for info in (await _opened(adapter_for(recording, channels=["flow"]))).channels()] == ["flow"]


async def _opened(adapter: ReplayAdapter) -> ReplayAdapter:
    await adapter.open()
    return adapter


async def test_the_account_of_the_recording_is_in_its_health(recording: Path) -> None:
    recording.write_text(RUN + "105,x,1,0\n")
    adapter = adapter_for(recording)
    for _ in range(2):
        await play(adapter)
    counters = adapter.health().counters
    assert {name: counters[name] for name in ("duplicates", "out_of_order", "malformed")} == {
        "duplicates": 1,
        "out_of_order": 1,
        "malformed": 1,
    }
    assert {name: counters[name] for name in ("rows", "samples", "missing", "dropped")} == {
        "rows": 10,
        "samples": 20,
        "missing": 2,
        "dropped": 0,
    }


@pytest.mark.parametrize(("speed", "factor"), [(1.0, 1.0), (4, 4.0), (0.5, 0.5)])
async def test_rows_keep_their_distance_in_time_divided_by_speed(recording: Path, speed: float, factor: float) -> None:
    clock = VirtualClock()
    adapter = await _opened(adapter_for(recording, clock, speed=speed))
    came: list[tuple[float, float | None]] = []
    task = asyncio.create_task(adapter.stream(["temp"], lambda sample: came.append((clock.monotonic_ns() / SECOND * factor, sample.value))))
    while not task.done():
        await spin()
        clock.advance(0.25 / factor)
    assert came == [(0.0, 1.0), (1.0, 2.0), (1.0, 3.0), (1.0, 4.0), (4.0, 5.0)]
    await adapter.close()


async def test_a_long_gap_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "gap.csv"
    path.write_text("t,a\n0,1\n1000000,2\n")
    clock = VirtualClock()
    adapter = await _opened(adapter_for(path, clock, speed=1.0, longest_gap_s=5))
    task = asyncio.create_task(adapter.stream(["a"], lambda sample: None))
    await spin()
    clock.advance(4.99)
    await spin()
    assert not task.done()
    clock.advance(0.01)
    async with asyncio.timeout(10):
        await task


async def test_in_real_time_the_machine_clock_is_kept(recording: Path) -> None:
    clock = SystemClock()
    adapter = await _opened(adapter_for(recording, clock, speed=100))
    begin_ns = clock.monotonic_ns()
    async with asyncio.timeout(30):
        await adapter.stream(["temp"], lambda sample: None)
    assert clock.monotonic_ns() - begin_ns >= 0.04 * SECOND


async def test_loop_begins_again_until_cancelled(recording: Path) -> None:
    adapter = await _opened(adapter_for(recording, loop=True))
    samples: list[Sample] = []
    task = asyncio.create_task(adapter.stream(["temp"], samples.append))
    async with asyncio.timeout(10):
        while len(samples) < 12:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [sample.value for sample in samples[:12]] == [1, 2, 3, 4, 5] * 2 + [1, 2]


async def test_as_fast_as_possible_the_loop_still_turns(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("t,a\n" + "".join(f"{n},{n}\n" for n in range(5000)))
    adapter = await _opened(adapter_for(path))
    turns, done = 0, asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(count())
        samples: list[Sample] = []
        await adapter.stream(["a"], samples.append)
        done.set()
    assert [sample.value for sample in samples] == list(range(5000))
    assert turns >= 5000 // 256


# -- segments without times -------------------------------------------------------------------------------------------------


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    path = tmp_path / "vib.npz"
    np.savez(path, ball_0=np.arange(10, dtype=np.float32), normal_0=np.arange(5, dtype=np.float32))
    return path


async def test_segments_come_as_evenly_spaced_blocks(segments: Path) -> None:
    samples = await play(adapter_for(segments, rate_hz=100, block=4))
    assert [(s.channel, len(s.block), s.rate_hz, s.value) for s in samples if s.block is not None] == [
        ("ball_0", 4, 100, None),
        ("ball_0", 4, 100, None),
        ("ball_0", 2, 100, None),
        ("normal_0", 4, 100, None),
        ("normal_0", 1, 100, None),
    ]
    first = samples[0].block
    assert first is not None
    assert (first.dtype, first.tolist()) == (np.float32, [0, 1, 2, 3])


async def test_segments_may_follow_each_other_on_one_channel(segments: Path) -> None:
    adapter = adapter_for(segments, rate_hz=100, block=8, channel="vibration", units={"vibration": "g"})
    blocks = [sample.block for sample in await play(adapter, "vibration")]
    assert [block.tolist() for block in blocks if block is not None] == [list(range(8)), [8, 9], list(range(5))]
    assert [(info.channel, info.unit, info.rate_hz) for info in adapter.channels()] == [("vibration", "g", 100)]
    chosen = await play(adapter_for(segments, block=8, channel="vibration", channels=["normal_0"]))
    assert [sample.block.tolist() for sample in chosen if sample.block is not None] == [list(range(5))]


async def test_a_block_is_due_when_its_last_sample_was_taken(segments: Path) -> None:
    clock = VirtualClock()
    adapter = await _opened(adapter_for(segments, clock, speed=1.0, rate_hz=10, block=5))
    came: list[float] = []
    task = asyncio.create_task(adapter.stream(["ball_0"], lambda sample: came.append(clock.monotonic_ns() / SECOND)))
    while not task.done():
        await spin()
        clock.advance(0.25)
    assert came == [0.5, 1.0]


# -- faults -----------------------------------------------------------------------------------------------------------------


async def test_faults_change_what_comes_and_end_again(recording: Path) -> None:
    adapter = adapter_for(recording)
    clean = await play(adapter, "temp")

    adapter.inject("dropout", 1.0)
    assert await play(adapter, "temp") == []
    assert adapter.health().counters["dropped"] == 5
    assert not adapter.health().ok
    adapter.inject("dropout", 0.0)

    adapter.inject("freeze", 1.0)
    frozen = await play(adapter, "temp")
    assert [sample.value for sample in frozen] == [1.0] * 5
    assert [sample.wall_ns for sample in frozen] == [sample.wall_ns for sample in clean]
    adapter.inject("freeze", 0.0)

    adapter.inject("babble", 0.5)
    assert len(await play(adapter, "temp")) == 11 * len(clean)
    adapter.inject("babble", 0.0)

    assert await play(adapter, "temp") == clean


async def test_dropout_loses_about_its_share_and_counts_it(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("t,a\n" + "".join(f"{n},{n}\n" for n in range(2000)))
    adapter = adapter_for(path)
    adapter.inject("dropout", 0.25)
    came = await play(adapter)
    assert 1300 < len(came) < 1700
    assert len(came) + adapter.health().counters["dropped"] == 2000


async def test_a_frozen_block_repeats_its_first_value(segments: Path) -> None:
    adapter = adapter_for(segments, block=4)
    adapter.inject("freeze", 1)
    blocks = [sample.block for sample in await play(adapter, "ball_0")]
    assert [block.tolist() for block in blocks if block is not None] == [[0] * 4, [0] * 4, [0] * 2]


async def test_a_disconnection_is_felt_while_waiting_and_mended_by_opening(tmp_path: Path) -> None:
    path = tmp_path / "slow.csv"
    path.write_text("t,a\n0,1\n50,2\n")
    adapter = await _opened(adapter_for(path, SystemClock(), speed=1.0))
    task = asyncio.create_task(adapter.stream(["a"], lambda sample: None))
    await spin()
    adapter.inject("disconnect", 1)
    async with asyncio.timeout(10):
        with pytest.raises(AdapterDisconnected, match="the source is disconnected"):
            await task
    await adapter.close()
    with pytest.raises(AdapterDisconnected):
        await adapter.open()
    adapter.inject("disconnect", 0)
    await adapter.open()
    assert adapter.health().ok
    await adapter.close()


async def test_unknown_faults_and_severities_are_refused(recording: Path) -> None:
    adapter = adapter_for(recording)
    with pytest.raises(InputError, match="unknown fault `freez`; did you mean `freeze`"):
        adapter.inject("freez", 1)
    for fault in FAULTS:
        with pytest.raises(InputError, match=r"expected a number in 0\.\.1"):
            adapter.inject(fault, 1.5)


# -- what cannot be ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected `file` or `files`"),
        ({"file": "a.csv", "sped": 1}, "did you mean `speed`"),
        ({"file": "a.csv", "speed": "fast"}, r"rec\.options\.speed"),
        ({"file": "a.csv", "speed": 0}, "expected a number above 0 or `max`, got 0"),
        ({"file": "a.csv", "rate_hz": 0}, "expected rate_hz above 0"),
        ({"file": "a.csv", "block": 0}, "block of at least 1"),
        ({"file": "a.csv", "longest_gap_s": 0}, "longest_gap_s"),
        ({"file": 5}, r"rec\.options\.file: Expected `str"),
    ],
)
def test_options_are_checked(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter("rec", options, VirtualClock())


async def test_a_file_that_is_no_recording_fails_at_open_and_says_why(tmp_path: Path, recording: Path) -> None:
    with pytest.raises(AdapterError, match=r"rec: .*No such file"):
        await adapter_for(tmp_path / "absent.csv").open()
    with pytest.raises(AdapterError, match=r"rec\.options\.channels: no such channel `tempp`.*did you mean `temp`"):
        await adapter_for(recording, channels=["tempp"]).open()
    with pytest.raises(AdapterError, match=r"rec\.options\.units: no such channel `tempp`"):
        await adapter_for(recording, units={"tempp": "K"}).open()


# -- real recordings -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (DATA / "skab").is_dir(), reason="the SKAB recordings are not here")
async def test_skab_comes_out_cell_by_cell() -> None:
    adapter = adapter_for(DATA / "skab/valve1/1.csv")
    samples = await play(adapter)
    rows = (DATA / "skab/valve1/1.csv").read_text().splitlines()[1:]
    assert len(samples) == 8 * len(rows)
    assert [sample.value for sample in samples[:8]] == [float(cell) for cell in rows[0].split(";")[1:9]]
    assert {info.rate_hz for info in adapter.channels()} == {1.0}


@pytest.mark.skipif(not (DATA / "cwru").is_dir(), reason="the CWRU recordings are not here")
async def test_cwru_comes_out_sample_by_sample() -> None:
    path = DATA / "cwru/cwru_12k_drive_end_loads_0_1.npz"
    samples = await play(adapter_for(path, rate_hz=12000, block=1024, channel="vibration", channels=["Normal_0", "B007_0"]))
    with np.load(path) as file:
        expected = np.concatenate([file["B007_0"], file["Normal_0"]])
    np.testing.assert_array_equal(np.concatenate([sample.block for sample in samples]), expected)
