"""Telegrams of the P1 port as the versions and countries have them, and what noise does to them."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.meters.dsmr import MAX_TELEGRAM_BYTES, DsmrStream, crc16_arc, parse_dsmr, telegram_readings, wall_time_ns
from adapters.meters.readings import MeterReading, channel_name
from edge_runtime.units import parse_unit
from tests.adapters.meters.telegrams import dsmr, household


def _named(readings: list[MeterReading]) -> dict[str, tuple[float, str]]:
    return {r.name or channel_name(r.obis): (r.value, r.unit) for r in readings if isinstance(r.value, float)}


def test_the_checksum_is_the_published_one() -> None:
    assert crc16_arc(b"123456789") == 0xBB3D


def test_a_household_has_names_and_units() -> None:
    assert _named(parse_dsmr([household()])) == {
        "energy_import_tariff1": (123.456, "kWh"),
        "energy_import_tariff2": (200.001, "kWh"),
        "energy_export_tariff1": (0.0, "kWh"),
        "tariff": (2.0, ""),
        "power_import": (0.5, "kW"),
        "power_failures": (4.0, ""),
        "voltage_sags_l1": (2.0, ""),
        "voltage_l1": (230.1, "V"),
        "current_l1": (2.0, "A"),
        "power_import_l1": (0.378, "kW"),
        "gas_total": (12.5, "m3"),
    }


def test_a_gas_reading_has_its_own_time() -> None:
    gas = [r for r in parse_dsmr([household()]) if r.name == "gas_total"]
    assert gas[0].wall_ns == datetime(2023, 11, 24, 11, tzinfo=UTC).timestamp() * 1e9


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("230701120000S", datetime(2023, 7, 1, 10, tzinfo=UTC)),
        ("230101000000W", datetime(2022, 12, 31, 23, tzinfo=UTC)),
        ("231301000000W", None),
        ("230101000000", None),
        ("000101010000X", None),
        ("", None),
    ],
)
def test_times_of_summer_and_winter(text: str, utc: datetime | None) -> None:
    assert wall_time_ns(text) == (None if utc is None else utc.timestamp() * 1e9)


def test_version_2_has_no_checksum_and_its_gas_in_seven_groups() -> None:
    telegram = dsmr(
        [
            "0-0:96.1.1(204B413655303031363630323937393132)",
            "1-0:1.8.1(12345.678*kWh)",
            "1-0:1.7.0(0001.19*kW)",
            "0-0:96.14.0(0002)",
            "0-1:24.1.0(3)",
            "0-1:24.3.0(121030140000)(00)(60)(1)(0-1:24.2.1)(m3)",
            "(00024.123)",
        ],
        crc=False,
    )
    named = _named(parse_dsmr([telegram]))
    assert named["gas_total"] == (24.123, "m3")
    assert named["power_import"] == (1.19, "kW")


def test_belgium_has_peaks_of_the_month_gas_and_water() -> None:
    telegram = dsmr(
        [
            "0-0:96.1.4(50217)",
            "1-0:1.4.0(02.351*kW)",
            "1-0:1.6.0(220904103000S)(02.589*kW)",
            "0-0:98.1.0(1)(1-0:1.6.0)(1-0:1.6.0)(220901000000S)(220810160000S)(04.329*kW)",
            "0-0:96.3.10(1)",
            "0-0:17.0.0(999.9*kW)",
            "1-0:31.4.0(999*A)",
            "0-1:24.1.0(003)",
            "0-1:24.4.0(1)",
            "0-1:24.2.3(220904134500S)(00112.384*m3)",
            "0-2:24.1.0(007)",
            "0-2:24.2.1(220904134400S)(00872.234*m3)",
        ],
        header="/FLU5\\253769484_A",
    )
    named = _named(parse_dsmr([telegram]))
    assert named["power_import_average"] == (2.351, "kW")
    assert named["power_import_peak"] == (2.589, "kW")
    assert named["power_limit"] == (999.9, "kW")
    assert named["current_limit_l1"] == (999.0, "A")
    assert named["breaker"] == (1.0, "")
    assert named["gas_total"] == (112.384, "m3")
    assert named["water_total"] == (872.234, "m3")


def test_sweden_has_totals_and_reactive_power() -> None:
    telegram = dsmr(["1-0:1.8.0(00000896.020*kWh)", "1-0:3.8.0(00000005.600*kvarh)", "1-0:43.7.0(0000.1*kVAr)", "1-0:16.7.0(-0001.5*kW)"])
    named = _named(parse_dsmr([telegram]))
    assert named == {
        "energy_import_total": (896.02, "kWh"),
        "reactive_energy_import_total": (5.6, "kvarh"),
        "reactive_power_import_l2": (0.1, "kvar"),
        "power": (-1.5, "kW"),
    }


def test_codes_with_a_billing_period_and_codes_unknown() -> None:
    named = _named(parse_dsmr([dsmr(["1-0:1.8.0*255(000001.5*kWh)", "1-0:2.8.0*96(000002.5*kWh)", "1-0:200.7.3(7*V)", "7-0:3.0.0(3*m3)"])]))
    assert set(named) == {"energy_import_total", "energy_export_total_last_day", "obis/1-0:200.7.3", "obis/7-0:3.0.0"}


def test_two_devices_of_a_kind_are_told_apart() -> None:
    lines = [line for n in (1, 3) for line in (f"0-{n}:24.1.0(003)", f"0-{n}:24.2.1(230101000000W)(0000{n}.0*m3)")]
    assert _named(parse_dsmr([dsmr(lines)])) == {"gas_total": (1.0, "m3"), "gas_total/3": (3.0, "m3")}


def test_a_device_of_an_unknown_kind_keeps_its_code() -> None:
    assert _named(parse_dsmr([dsmr(["0-4:24.2.1(230101000000W)(00001.0*GJ)"])])) == {"obis/0-4:24.2.1": (1.0, "GJ")}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_noise_between_telegrams_loses_none_and_cuts_change_nothing(seed: int) -> None:
    rng, data = random.Random(seed), b""
    for power in range(1, 5):
        data += _noise(rng) + household(power_kw=power)
    pieces, at = [], 0
    while at < len(data):
        size = rng.choice([1, 5, 80, 900])
        pieces.append(data[at : at + size])
        at += size
    found = parse_dsmr([*pieces, bytes(MAX_TELEGRAM_BYTES)])
    assert [r.value for r in found if channel_name(r.obis) == "power_import"] == [1.0, 2.0, 3.0, 4.0]
    assert found == parse_dsmr([data + bytes(MAX_TELEGRAM_BYTES)])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.text(alphabet="0123456789-:.*()kWh/!SW\r\n", max_size=300))
def test_nothing_raises(data: bytes, text: str) -> None:
    stream = DsmrStream()
    list(stream.feed(data))
    list(stream.feed(b"/" + text.encode() + b"!\r\n"))
    for readings in stream.feed(dsmr(text.splitlines())):
        for reading in readings:
            parse_unit(reading.unit)


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_are_found_out(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(250):
        broken = bytearray(household(power_kw=1))
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        stream = DsmrStream()
        list(stream.feed(household(power_kw=3)))
        values = [r.value for t in stream.feed(bytes(broken) + household(power_kw=2)) for r in t if channel_name(r.obis) == "power_import"]
        assert values in ([2.0], [1.0, 2.0])


def test_once_checksums_were_seen_a_telegram_without_one_is_broken() -> None:
    bare = dsmr(["1-0:1.7.0(0001.19*kW)"], crc=False)
    assert parse_dsmr([bare])
    assert not [r for r in parse_dsmr([household(), bare]) if r.value == 1.19]


def test_a_telegram_that_begins_in_the_middle() -> None:
    whole = household(power_kw=2)
    for cut in range(1, len(whole), 7):
        values = [r.value for r in parse_dsmr([whole[cut:], whole]) if channel_name(r.obis) == "power_import"]
        assert values == [2.0]


def test_sizes_are_bounded() -> None:
    stream = DsmrStream()
    list(stream.feed(b"/" + b"x" * (5 * MAX_TELEGRAM_BYTES)))
    assert len(stream._framer._buffer) <= MAX_TELEGRAM_BYTES
    assert stream.counts.resyncs
    assert len(telegram_readings("1-0:1.7.0(0001.19*kW)\r\n" * 3000)) == 1024
    assert list(stream.feed(household()))


def _noise(rng: random.Random) -> bytes:
    parts = [b"/", b"!", b"!ABCD\r\n", b"!\r\n", b"\r\n", b"/ABC5x\r\n\r\n", household(9)[: rng.randrange(200)]]
    return b"".join(rng.choice([*parts, rng.randbytes(rng.randrange(20))]) for _ in range(rng.randrange(8)))
