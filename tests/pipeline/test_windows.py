"""Windows against a list that keeps everything, and what makes a window unknown."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.pipeline.windows import ChannelTiming, GapPolicy, Snapshot, Window
from edge_runtime.types import FloatArray, Quality, Reading, Timestamp

S = 10**9


class Source:
    """Feeds one window and keeps what comes out."""

    def __init__(self, size: int, hop: int, channels: int = 1, rates: list[float] | None = None, **options: object) -> None:
        self.windows: list[Snapshot] = []
        self.lost: list[str] = []
        hold = bool(options.pop("hold", False))
        timings = [ChannelTiming(rate, 3.0, hold) for rate in (rates or [10.0] * channels)]
        gap = options.pop("gap", GapPolicy())
        assert isinstance(gap, GapPolicy)
        assert not options
        self.window = Window(timings, size, hop, self._full, lambda reason, at, seq: self.lost.append(reason), gap)
        self.seq = 0

    def _full(self, window: Snapshot) -> None:
        self.windows.append(
            Snapshot(window.data.copy(), window.first_seq, window.last_seq, window.since_ns, window.at, window.quality, window.end)
        )

    def say(
        self,
        value: float | None,
        t_s: float = 0.0,
        *,
        channel: int = 0,
        block: FloatArray | None = None,
        rate_hz: float = 0.0,
        wall_s: float | None = None,
        quality: Quality = Quality.GOOD,
        source: str = "rig",
    ) -> None:
        self.seq += 1
        wall_ns = None if wall_s is None else round(wall_s * S)
        at = Timestamp(round(t_s * S), round(t_s * S), 0)
        self.window.push(channel, Reading(source, f"c{channel}", self.seq, at, value, "", quality, block, rate_hz, wall_ns))

    @property
    def values(self) -> list[list[float]]:
        return [window.data[0].tolist() for window in self.windows]


def block_of(*values: float) -> FloatArray:
    return np.array(values, np.float32)


@given(
    size=st.integers(1, 40),
    hop=st.integers(1, 60),
    pieces=st.lists(st.tuples(st.integers(1, 90), st.sampled_from([Quality.GOOD, Quality.GOOD, Quality.UNCERTAIN])), max_size=40),
    scalars=st.booleans(),
)
def test_any_split_gives_the_windows_of_a_list(size: int, hop: int, pieces: list[tuple[int, Quality]], scalars: bool) -> None:
    source = Source(size, hop)
    everything: list[float] = []
    behind: list[tuple[int, int, Quality]] = []  # per row: seq, time of its reading, quality
    noise = np.random.default_rng(size * 100 + hop)
    expected = []
    for count, quality in pieces:
        block = noise.standard_normal(count).astype(np.float32)
        as_scalar = scalars and count == 1
        start_s = len(everything) / 10
        source.say(
            float(block[0]) if as_scalar else None,
            start_s,
            block=None if as_scalar else block,
            rate_hz=10.0,
            wall_s=start_s,
            quality=quality,
        )
        for value in block.tolist():
            everything.append(value)
            behind.append((source.seq, round(start_s * S), quality))
            end = len(everything)
            if end >= size and (end - size) % hop == 0:
                rows = behind[end - size : end]
                expected.append((everything[end - size : end], rows[0][0], source.seq, rows[0][1], max(row[2] for row in rows)))
    got = [(w.data[0].tolist(), w.first_seq, w.last_seq, w.since_ns, w.quality) for w in source.windows]
    assert got == expected
    assert source.lost == []


@given(size=st.integers(1, 20), hop=st.integers(1, 20), cuts=st.lists(st.lists(st.integers(1, 30), max_size=20), min_size=3, max_size=3))
def test_blocks_of_several_channels_are_zipped_sample_by_sample(size: int, hop: int, cuts: list[list[int]]) -> None:
    source = Source(size, hop, channels=3, gap=GapPolicy(by="off"))
    sent: list[list[float]] = [[], [], []]
    for turn in range(max(map(len, cuts), default=0)):
        for channel, cut in enumerate(cuts):
            if turn < len(cut):
                first = len(sent[channel])
                block = np.arange(first, first + cut[turn], dtype=np.float32) + 1000 * channel
                sent[channel] += block.tolist()
                source.say(None, channel=channel, block=block)
    rows = min(map(len, sent))
    ends = range(size, rows + 1, hop)
    assert [window.data.tolist() for window in source.windows] == [[lane[end - size : end] for lane in sent] for end in ends]


def test_a_window_is_a_view_and_a_long_run_never_grows() -> None:
    taken: list[bool] = []
    window = Window([ChannelTiming(10, 3)], 8, 4, lambda w: taken.append(w.data.base is not None), lambda *_: None)
    held = window._buffer
    for seq in range(10_000):
        window.push(0, Reading("rig", "c", seq, Timestamp(seq * S // 10, 0, 0), float(seq), ""))
    assert all(taken)
    assert len(taken) == (10_000 - 8) // 4 + 1
    assert window._buffer is held


def test_a_block_larger_than_the_buffer_completes_all_its_windows() -> None:
    source = Source(4, 4)
    source.say(None, block=np.arange(20_000, dtype=np.float32), rate_hz=10.0)
    assert len(source.windows) == 5_000
    assert source.values[-1] == [19_996, 19_997, 19_998, 19_999]


@pytest.mark.parametrize(
    ("value", "quality", "reason"),
    [
        (None, Quality.BAD, "bad"),
        (None, Quality.STALE, "stale"),
        (None, Quality.GOOD, "not_finite"),
        (math.nan, Quality.GOOD, "not_finite"),
        (math.inf, Quality.GOOD, "not_finite"),
        (1e39, Quality.GOOD, "not_finite"),
    ],
)
def test_an_unknown_reading_empties_the_window(value: float | None, quality: Quality, reason: str) -> None:
    source = Source(3, 1)
    for step in range(2):
        source.say(float(step), step / 10)
    source.say(value, 0.2, quality=quality)
    assert source.lost == [reason]
    for step in range(3, 6):
        source.say(float(step), step / 10)
    assert source.values == [[3, 4, 5]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_block_with_one_bad_sample_empties_the_window(value: float) -> None:
    source = Source(2, 2)
    source.say(None, block=block_of(1, value, 3), rate_hz=10.0)
    assert (source.windows, source.lost) == ([], ["not_finite"])


def test_large_but_finite_samples_are_no_fault() -> None:
    source = Source(2, 2)
    source.say(None, block=block_of(1e30, 3e38), rate_hz=10.0)
    assert len(source.windows) == 1


def test_an_empty_block_is_nothing() -> None:
    source = Source(1, 1)
    source.say(None, block=block_of(), rate_hz=10.0)
    assert (source.windows, source.lost) == ([], [])


def test_one_missing_scalar_marks_the_window_and_more_reset_it() -> None:
    source = Source(3, 1)
    for wall_s in (0.0, 0.1, 0.3):
        source.say(wall_s, wall_s=wall_s)
    assert [window.quality for window in source.windows] == [Quality.UNCERTAIN]
    for wall_s in (0.4, 0.5):
        source.say(wall_s, wall_s=wall_s)
    assert source.windows[-1].quality is Quality.UNCERTAIN
    source.say(0.6, wall_s=0.6)
    assert source.windows[-1].quality is Quality.GOOD
    source.say(0.95, wall_s=0.95)
    assert source.lost == ["gap"]
    assert source.window.rows == 1


def test_a_missing_block_resets_the_window() -> None:
    source = Source(8, 8)
    source.say(None, block=block_of(0, 1, 2, 3), rate_hz=10.0, wall_s=0.0)
    source.say(None, block=block_of(8, 9, 10, 11), rate_hz=10.0, wall_s=0.8)
    assert source.lost == ["gap"]
    source.say(None, block=block_of(12, 13, 14, 15), rate_hz=10.0, wall_s=1.2)
    assert source.values == [[8, 9, 10, 11, 12, 13, 14, 15]]


def test_time_of_arrival_has_grace_for_jitter() -> None:
    source = Source(8, 8)
    source.say(None, 0.3, block=block_of(0, 1, 2, 3), rate_hz=10.0)
    source.say(None, 0.3 + 0.4 + 0.25, block=block_of(4, 5, 6, 7), rate_hz=10.0)
    assert source.lost == []
    source.say(None, 0.3 + 0.4 + 0.25 + 0.4 + 0.35, block=block_of(8, 9, 10, 11), rate_hz=10.0)
    assert source.lost == ["gap"]


def test_a_channel_that_holds_is_only_marked() -> None:
    source = Source(2, 1, hold=True)
    source.say(1.0, wall_s=0.0)
    source.say(2.0, wall_s=100.0)
    source.say(2.0, wall_s=100.1, quality=Quality.STALE)
    source.say(3.0, wall_s=100.2)
    assert source.lost == []
    assert source.values == [[1, 2], [2, 3]]
    assert source.windows[0].quality is Quality.UNCERTAIN


def test_duplicate_and_late_times_are_kept_and_marked() -> None:
    source = Source(1, 1)
    for wall_s in (0.0, 0.1, 0.1, 0.0, 0.2):
        source.say(wall_s, wall_s=wall_s)
    good, uncertain = Quality.GOOD, Quality.UNCERTAIN
    assert [window.quality for window in source.windows] == [good, good, uncertain, uncertain, good]


def test_a_source_that_starts_anew_empties_the_window() -> None:
    source = Source(2, 1)
    source.say(1.0, wall_s=1000.0)
    source.say(2.0, wall_s=0.0)
    assert source.lost == ["gap"]
    source.say(3.0, wall_s=0.1, source="other")
    assert source.lost == ["gap", "source_changed"]
    source.say(4.0, wall_s=0.2, source="other")
    assert source.values == [[3, 4]]


def test_scalars_are_zipped_row_by_row() -> None:
    source = Source(2, 1, channels=2)
    for step in range(3):
        source.say(step, wall_s=step / 10)
        source.say(step + 100, wall_s=step / 10, channel=1)
    assert [window.data.tolist() for window in source.windows] == [[[0, 1], [100, 101]], [[1, 2], [101, 102]]]
    assert [(window.first_seq, window.last_seq) for window in source.windows] == [(1, 4), (3, 6)]


def test_a_row_without_one_channel_does_not_shift_the_others() -> None:
    source = Source(1, 1, channels=2)
    source.say(100.0, wall_s=0.0, channel=1)
    for step in (1, 2):
        source.say(step, wall_s=step / 10)
        source.say(step + 100, wall_s=step / 10, channel=1)
    assert [window.data.tolist() for window in source.windows] == [[[1], [101]], [[2], [102]]]
    assert source.window.unpaired == 1


def test_the_slowest_channel_sets_the_pace() -> None:
    source = Source(2, 1, rates=[10.0, 2.5])
    for step in range(9):
        source.say(step, step / 10)
        if step % 4 == 0:
            source.say(step + 100, step / 10, channel=1)
    assert [window.data.tolist() for window in source.windows] == [[[0, 4], [100, 104]], [[4, 8], [104, 108]]]


def test_blocks_in_a_window_of_scalars_give_their_last_sample() -> None:
    source = Source(1, 1, rates=[10.0, 2.5])
    source.say(None, 0.4, block=block_of(1, 2, 3, 4), rate_hz=10.0)
    source.say(9.0, 0.4, channel=1)
    source.say(None, 0.8, block=block_of(5, 6, 7, 8), rate_hz=10.0)
    source.say(10.0, 0.8, channel=1)
    assert source.lost == []
    assert [window.data.tolist() for window in source.windows] == [[[4], [9]], [[8], [10]]]


def test_blocks_are_aligned_again_after_a_loss() -> None:
    source = Source(4, 4, channels=2)
    source.say(None, block=block_of(0, 1), rate_hz=10.0, wall_s=0.0)
    source.say(None, block=block_of(math.nan, 1), rate_hz=10.0, wall_s=0.0, channel=1)
    source.say(None, block=block_of(102, 103), rate_hz=10.0, wall_s=0.2, channel=1)
    for start in (4, 6):
        source.say(None, block=block_of(start, start + 1), rate_hz=10.0, wall_s=start / 10)
        source.say(None, block=block_of(start + 100, start + 101), rate_hz=10.0, wall_s=start / 10, channel=1)
    assert [window.data.tolist() for window in source.windows] == [[[4, 5, 6, 7], [104, 105, 106, 107]]]


def test_a_silent_channel_loses_the_window_or_holds() -> None:
    source = Source(2, 1)
    assert source.window.deadline_ns() is None
    source.say(1.0, 1.0)
    assert source.window.deadline_ns() == 4 * S
    source.window.expire(Timestamp(4 * S - 1, 0, 0))
    assert source.lost == []
    source.window.expire(Timestamp(4 * S, 0, 0))
    assert source.lost == ["stale"]
    assert source.window.deadline_ns() is None
    assert source.window.latest() is None


def test_a_held_channel_repeats_its_value_for_the_others() -> None:
    source = Source(1, 1, channels=2, hold=True)
    source.say(7.0, 0.0, channel=1)
    source.say(1.0, 0.0)
    source.window.expire(Timestamp(3 * S, 0, 0))
    source.say(2.0, 3.0)
    source.say(3.0, 3.1)
    assert [window.data.tolist() for window in source.windows] == [[[1], [7]], [[2], [7]], [[3], [7]]]
    assert source.windows[-1].quality is Quality.UNCERTAIN
    source.say(8.0, 3.2, channel=1)
    source.say(4.0, 3.2)
    assert source.windows[-1].data.tolist() == [[4], [8]]
    assert len(source.windows) == 4


def test_a_channel_far_ahead_of_a_dead_one_does_not_eat_memory() -> None:
    source = Source(16, 16, channels=2, gap=GapPolicy(by="off"))
    block = np.zeros(4096, np.float32)
    for _ in range(200):
        source.say(None, block=block)
    assert "unaligned" in source.lost
    assert source.window._buffer.nbytes <= 2 * 4 * 2 * 4 * 65_536


def test_the_latest_window_ignores_the_hop() -> None:
    source = Source(2, 10)
    for step in range(5):
        source.say(step, step / 10)
    latest = source.window.latest()
    assert latest is not None
    assert latest.data.tolist() == [[3, 4]]
    assert latest.last_seq == 5


def test_windows_that_follow_each_other_end_a_hop_apart_and_a_gap_starts_the_count_anew() -> None:
    source = Source(4, 3)
    for row in range(11):
        source.say(float(row), row / 10)
    for row in range(8):
        source.say(float(row), 60 + row / 10)
    assert len(source.lost) == 1
    assert [window.end for window in source.windows] == [4, 7, 10, 4, 7]
