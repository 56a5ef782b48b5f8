"""SML: recordings of seventeen real meters, files of our own making, and whatever noise does to them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.meters.readings import channel_name
from adapters.meters.sml import MAX_FILE_BYTES, START, SmlStream, crc16_x25, crc_fits, parse_sml
from edge_runtime.units import parse_unit
from tests.adapters.meters.telegrams import entry, get_list, items, message, octets, signed, sml, sml_file, unsigned

RECORDINGS = Path(__file__).resolve().parents[3] / "../shared/data/sml"
FILES = sorted(RECORDINGS.glob("*.bin"))
_END = b"\x1b\x1b\x1b\x1b\x1a"
_NEVER_WHOLE = {"EMH-ED300L_delivery.bin": 2, "eBZ_DD3_DD32R06DTA-SMZ1.bin": 4}

needs_recordings = pytest.mark.skipif(not FILES, reason="the recordings of real meters are not here (../shared/data/sml)")


def test_the_checksums_are_the_published_ones() -> None:
    assert crc16_x25(b"123456789") == 0x906E
    assert crc16_x25(b"123456789", 0, 0) == 0x2189
    assert crc_fits(b"123456789", b"\x6e\x90")
    assert crc_fits(b"123456789", b"\x90\x6e")
    assert crc_fits(b"123456789", b"\x89\x21")
    assert not crc_fits(b"123456789", b"\x00\x00")


@needs_recordings
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recordings_parse_into_readings_with_units(path: Path) -> None:
    stream, data = SmlStream(), path.read_bytes()
    files = list(stream.feed(data))
    assert stream.counts.frames == _NEVER_WHOLE.get(path.name, data.count(_END))
    assert not stream.bad_messages
    energies = [reading for file in files for reading in file if channel_name(reading.obis).startswith("energy_")]
    assert energies
    for reading in energies:
        assert reading.unit == "Wh"
        assert isinstance(reading.value, float)
        assert 0 <= reading.value < 1e9
    for file in files:
        for reading in file:
            parse_unit(reading.unit)


@needs_recordings
def test_known_values_of_recordings() -> None:
    def last(name: str) -> dict[str, object]:
        return {channel_name(r.obis): r.value for r in parse_sml([(RECORDINGS / name).read_bytes()])}

    assert last("DZG_DVS-7412.2_jmberg.bin")["power"] == -299.12
    assert last("HOLLEY_DTZ541-BDBA_without_PIN.bin")["energy_import_total"] == 2_324_000.0
    phases = last("EMH_mME40-AE6AKF0K0.bin")
    assert phases["power"] == pytest.approx(sum(float(str(phases[f"power_l{n}"])) for n in (1, 2, 3)), abs=2)


@needs_recordings
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(FILES))
def test_the_cuts_between_pieces_change_nothing(seed: int, path: Path) -> None:
    data, rng = path.read_bytes(), random.Random(seed)
    assert parse_sml(_cut(data, rng)) == parse_sml([data])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_noise_between_files_loses_none(seed: int) -> None:
    """Noise made of what frames are made of; each whole file after it is found, once a following one has shown its end."""
    rng, stream, found, data = random.Random(seed), SmlStream(), [], b""
    for power in range(1, 5):
        data += _noise(rng) + sml(power_w=power, energy=rng.choice([0x1B1B1B1B, 0x1B1B1B1B1B1B1B1B, 5]), kermit=rng.random() < 0.3)
    for piece in [*_cut(data, rng), bytes(MAX_FILE_BYTES)]:
        found += [reading.value for file in stream.feed(piece) for reading in file if reading.unit == "W"]
    assert found == [1.0, 2.0, 3.0, 4.0]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_nothing_raises(data: bytes) -> None:
    stream = SmlStream()
    list(stream.feed(data))
    list(stream.feed(sml_file(data)))
    list(stream.feed(sml_file(message(data))))


@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_raise_nothing_and_are_found_out(seed: int) -> None:
    """250 mutations each: a file with changed bytes is given up, the one behind it is read."""
    rng, wrong = random.Random(seed), 0
    for _ in range(250):
        frame = bytearray(sml(power_w=111))
        for _ in range(rng.randint(1, 3)):
            frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
        stream = SmlStream()
        values = [r.value for file in stream.feed(bytes(frame) + sml(power_w=222)) for r in file if r.unit == "W"]
        assert values[-1:] == [222.0]
        wrong += values[:-1] not in ([], [111.0])
    assert not wrong


@pytest.mark.parametrize("seed", range(8))
def test_files_with_right_checksums_and_hostile_content_raise_nothing(seed: int) -> None:
    """The content is changed before the checksums are made, so that it reaches the innermost parser."""
    rng = random.Random(seed)
    body = items(unsigned(0x0701, 2), items(b"\x01", b"\x01", b"\x01", b"\x01", items(entry(b"\1\0\1\x08\0\xff", 30, -1, unsigned(5, 8)))))
    stream = SmlStream()
    for _ in range(400):
        content = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.choice([0, 1, 0x1B, 0x7F, 0x8F, 0xF1, 0xFF, rng.randrange(256)])
        list(stream.feed(sml_file(message(bytes(content)))))
    assert stream.counts.frames == 400


def test_depth_and_size_are_bounded() -> None:
    stream = SmlStream()
    list(stream.feed(sml_file(message(b"\x71" * 1000 + b"\x01"))))
    list(stream.feed(sml_file(message(b"\xff\x8f\x8f\x8f\x8f\x8f\x0f"))))
    list(stream.feed(sml_file(message(b"\xff\x8f\x8f\x0f" + b"\x01" * 5000))))
    assert stream.bad_messages == 3
    list(stream.feed(START + bytes(10 * MAX_FILE_BYTES)))
    assert stream.counts.resyncs == 1
    assert len(stream._framer._buffer) <= MAX_FILE_BYTES
    assert [r.value for file in stream.feed(sml()) for r in file] == [12345.6, 230.0]


def test_hostile_starts_cost_bounded_work() -> None:
    """Beginnings hidden in escapes, each of which would be looked through to the end again: 1 MB of them."""
    stream = SmlStream()
    for _ in range(64):
        list(stream.feed((b"\x1b" * 8 + b"\x01" * 4) * 1365 + _END + b"\x00\x00\x00"))
    assert not stream.counts.frames


def test_a_stream_that_begins_in_the_middle_of_a_file() -> None:
    whole = sml(power_w=7)
    for cut in range(1, len(whole)):
        values = [r.value for r in parse_sml([whole[cut:], whole]) if r.unit == "W"]
        assert values == [7.0]


def test_a_message_with_a_bad_checksum_is_left_out() -> None:
    good = get_list([entry(b"\1\0\1\x08\0\xff", 30, 0, unsigned(5, 1))])
    stream = SmlStream()
    readings = [r for file in stream.feed(sml_file(good + message(b"\x01", crc=1) + good)) for r in file]
    assert [r.value for r in readings] == [5.0]
    assert stream.bad_messages == 1


def test_values_of_every_type() -> None:
    code = bytes([1, 0, 1, 8, 0, 255])
    values = [signed(-5, 1), signed(-500_000, 3), unsigned(2**64 - 1, 8), b"\x42\x01", octets(b"text"), octets(b"\x00\xff"), b"\x01"]
    readings = parse_sml([sml_file(get_list([entry(code, 255, -1, value) for value in values]))])
    assert [r.value for r in readings] == [-0.5, -50_000.0, (2**64 - 1) / 10, 0.1, "text", "00ff"]


def _cut(data: bytes, rng: random.Random) -> list[bytes]:
    pieces, at = [], 0
    while at < len(data):
        size = rng.choice([1, 2, 3, 7, 64, 500])
        pieces.append(data[at : at + size])
        at += size
    return pieces


def _noise(rng: random.Random) -> bytes:
    parts = [b"\x1b", b"\x1b" * 4, b"\x1b" * 8, START, START[:6], _END, _END + b"\0\1\2", b"\x01", b"\x1a", sml(9)[: rng.randrange(60)]]
    return b"".join(rng.choice([*parts, rng.randbytes(rng.randrange(20))]) for _ in range(rng.randrange(8)))
