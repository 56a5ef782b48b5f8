"""Telegrams and SML files made for tests, with right checksums; and meters that speak over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from adapters.meters.dsmr import crc16_arc
from adapters.meters.sml import START, crc16_x25

GAS_TIME = "231124120000W"


def dsmr(lines: Sequence[str], header: str = "/ABC5\\TEST-METER", *, crc: bool = True, newline: str = "\r\n") -> bytes:
    body = (newline.join([header, "", *lines]) + newline + "!").encode()
    return body + (f"{crc16_arc(body):04X}" if crc else "").encode() + newline.encode()


def household(power_kw: float = 0.5, gas_m3: float = 12.5, gas_time: str = GAS_TIME) -> bytes:
    """A telegram as DSMR 5 has it: two tariffs, three phases, gas behind M-Bus channel 1."""
    return dsmr(
        [
            "1-3:0.2.8(50)",
            "0-0:1.0.0(231124121530W)",
            "0-0:96.1.1(4530303331)",
            "1-0:1.8.1(000123.456*kWh)",
            "1-0:1.8.2(000200.001*kWh)",
            "1-0:2.8.1(000000.000*kWh)",
            "0-0:96.14.0(0002)",
            f"1-0:1.7.0({power_kw:06.3f}*kW)",
            "0-0:96.7.21(00004)",
            "1-0:99.97.0(1)(0-0:96.7.19)(200101000000W)(0000000240*s)",
            "1-0:32.32.0(00002)",
            "0-0:96.13.0()",
            "1-0:32.7.0(230.1*V)",
            "1-0:31.7.0(002*A)",
            "1-0:21.7.0(00.378*kW)",
            "0-1:24.1.0(003)",
            "0-1:96.1.0(4730303332)",
            f"0-1:24.2.1({gas_time})({gas_m3:09.3f}*m3)",
        ]
    )


def octets(data: bytes) -> bytes:
    length = len(data) + 1
    return bytes([length]) + data if length < 16 else bytes([0x80 | (length + 1) >> 4, (length + 1) & 15]) + data


def unsigned(value: int, size: int) -> bytes:
    return bytes([0x60 | size + 1]) + value.to_bytes(size, "big")


def signed(value: int, size: int) -> bytes:
    return bytes([0x50 | size + 1]) + value.to_bytes(size, "big", signed=True)


def items(*parts: bytes) -> bytes:
    count = len(parts)
    head = bytes([0x70 | count]) if count < 16 else bytes([0xF0 | count >> 4, count & 15])
    return head + b"".join(parts)


def entry(code: bytes, unit: int, scaler: int, value: bytes) -> bytes:
    return items(octets(code), b"\x01", b"\x01", unsigned(unit, 1), signed(scaler, 1), value, b"\x01")


def message(body: bytes, crc: int | None = None) -> bytes:
    fields = octets(b"\x01\x02") + unsigned(0, 1) + unsigned(0, 1) + body
    head = b"\x76" + fields
    sum_ = crc16_x25(head) if crc is None else crc
    return head + b"\x63" + sum_.to_bytes(2, "little") + b"\x00"


def get_list(entries: Sequence[bytes]) -> bytes:
    return message(items(unsigned(0x0701, 2), items(b"\x01", octets(b"\x0a\x01ABC"), b"\x01", b"\x01", items(*entries), b"\x01", b"\x01")))


def sml_file(messages: bytes, *, kermit: bool = False) -> bytes:
    fill = -len(messages) % 4
    escaped = messages.replace(b"\x1b" * 4, b"\x1b" * 8) + bytes(fill)
    frame = START + escaped + b"\x1b\x1b\x1b\x1b\x1a" + bytes([fill])
    return frame + (crc16_x25(frame, 0, 0) if kermit else crc16_x25(frame)).to_bytes(2, "little")


def sml(power_w: int = 230, energy: int = 123_456, *, kermit: bool = False) -> bytes:
    entries = [
        entry(bytes([1, 0, 1, 8, 0, 255]), 30, -1, unsigned(energy, 8)),
        entry(bytes([1, 0, 16, 7, 0, 255]), 27, 0, signed(power_w, 4)),
    ]
    return sml_file(get_list(entries), kermit=kermit)


class Meter:
    """A meter behind a TCP serial server: says what it is told to, to whoever is connected."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.connections = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"socket://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            await reader.read()
        except ConnectionError:
            pass
        finally:
            self.writers.remove(writer)
            writer.close()

    def say(self, data: bytes) -> None:
        for writer in self.writers:
            writer.write(data)

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.close()

    async def stop(self) -> None:
        self.hang_up()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
