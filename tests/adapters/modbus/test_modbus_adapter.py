"""The driver `modbus` against pymodbus's own server, over real TCP and over a pty pair; against liars; and the contract."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from adapters.modbus import ModbusAdapter, open_adapter
from edge_runtime.clock import Clock, SystemClock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.types import ChannelKind, Quality

REGISTERS: dict[str, Any] = {
    "power": {"address": 100, "type": "i16", "scale": 0.1, "unit": "W"},
    "energy": {"address": 102, "type": "u32", "unit": "Wh"},
    "frequency": {"address": 104, "type": "f32", "unit": "Hz"},
    "alarm": {"address": 106, "bit": 3},
    "temperature": {"address": 7, "table": "input", "type": "i16", "scale": 0.01, "unit": "degC", "invalid": [-32768]},
    "door": {"address": 2, "table": "discrete"},
    "maker": {"address": 200, "type": "string", "length": 3},
    "relay": {"address": 1, "table": "coil", "access": "write"},
    "mode": {"address": 300, "access": "write", "states": {"auto": 0, "manual": 2}},
    "set_point": {"address": 301, "access": "write", "type": "i16", "scale": 0.5, "minimum": -10, "maximum": 40, "unit": "degC"},
}
SENSORS = ["power", "energy", "frequency", "alarm", "temperature", "door"]


def _device(number: int, action: Any = None) -> SimDevice:
    return SimDevice(
        number,
        simdata=(
            [SimData(0, values=[False] * 8, datatype=DataType.BITS)],
            [SimData(0, values=[False, False, True] + [False] * 5, datatype=DataType.BITS)],
            [
                SimData(100, values=[0x10000 - 1234, 0], datatype=DataType.REGISTERS),
                SimData(102, values=123_456_789, datatype=DataType.UINT32),
                SimData(104, values=50.02, datatype=DataType.FLOAT32),
                SimData(106, values=0b1000, datatype=DataType.REGISTERS),
                SimData(200, values="ACME-1", datatype=DataType.STRING),
                SimData(300, values=[0, 0], datatype=DataType.REGISTERS),
            ],
            [SimData(7, values=2_150, datatype=DataType.REGISTERS)],
        ),
        action=action,
    )


@contextlib.asynccontextmanager
async def _served(*devices: SimDevice, framer: FramerType = FramerType.SOCKET) -> AsyncIterator[tuple[ModbusTcpServer, str]]:
    server = ModbusTcpServer(list(devices), framer=framer, address=("127.0.0.1", 0), ignore_missing_devices=True)
    await server.serve_forever(background=True)
    number = server.transport.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield server, f"{'tcp' if framer is FramerType.SOCKET else 'socket'}://127.0.0.1:{number}"
    finally:
        await server.shutdown()


def _adapter(port: str, clock: Clock | None = None, *, ids: tuple[int, ...] = (1,), **device: Any) -> ModbusAdapter:
    about = {"timeout_s": 1.5, "registers": REGISTERS} | device
    return open_adapter("plc", {"port": port, "devices": {f"d{number}": {"id": number, **about} for number in ids}}, clock or SystemClock())


def _names(*registers: str, device: str = "d1") -> list[str]:
    return [f"{device}/{register}" for register in registers]


@pytest.mark.parametrize("framer", [FramerType.SOCKET, FramerType.RTU], ids=["tcp", "rtu-over-tcp"])
async def test_registers_of_every_table_and_type(framer: FramerType) -> None:
    async with _served(_device(1), framer=framer) as (_, port):
        adapter = _adapter(port)
        await adapter.open()
        samples = await adapter.read(_names(*SENSORS))
        assert [s.value for s in samples] == [-123.4, 123_456_789.0, pytest.approx(50.02), 1.0, 21.5, 1.0]
        assert {s.quality for s in samples} == {Quality.GOOD}
        assert "ACME-1" in adapter.health().detail
        kinds = {info.channel: info.kind for info in adapter.channels()}
        assert kinds["d1/relay"] is ChannelKind.ACTUATOR
        assert "d1/maker" not in kinds
        assert adapter.health().counters["requests"] == 4  # the text, then one of each table
        await adapter.close()


async def test_outputs_are_written_and_read_back() -> None:
    async with _served(_device(1)) as (_, port):
        adapter = _adapter(port)
        await adapter.open()
        for channel, state in (("relay", "on"), ("relay", "off"), ("mode", "manual"), ("set_point", "-7.5"), ("set_point", "40")):
            await adapter.actuate(f"d1/{channel}", state)
            assert await adapter.actuator_state(f"d1/{channel}") == state
        for channel, state in (("mode", "1"), ("relay", "open"), ("set_point", "41"), ("set_point", "warm"), ("mode", "")):
            with pytest.raises(InputError):
                await adapter.actuate(f"d1/{channel}", state)
        await adapter.close()


async def test_an_output_that_does_not_keep_its_value_is_an_error() -> None:
    async def keep_zero(function: int, start: int, address: int, count: int, now: list[int], new: list[int] | None) -> ExcCodes | None:
        if new is not None and function == 6:
            new[:] = [0]
        return None

    async with _served(_device(1, keep_zero)) as (_, port):
        adapter = _adapter(port)
        await adapter.open()
        with pytest.raises(AdapterError, match=r"reads back \[0\]"):
            await adapter.actuate("d1/mode", "manual")
        await adapter.close()


async def test_a_register_that_is_not_there_harms_only_itself() -> None:
    async with _served(_device(1)) as (_, port):
        registers = REGISTERS | {"ghost": {"address": 108}}
        adapter = _adapter(port, registers=registers)
        await adapter.open()
        for _ in range(2):
            samples = await adapter.read(_names("power", "ghost", "energy"))
            assert [s.value for s in samples] == [-123.4, None, 123_456_789.0]
            assert samples[1].quality is Quality.BAD
        assert "ghost: device 1: read of 1 holding from 108: illegal address (exception 2)" in adapter.health().detail
        assert adapter.health().ok
        await adapter.close()


async def test_a_dead_device_does_not_hold_up_the_others() -> None:
    """It is asked once, and then left alone for longer each time."""
    awake = asyncio.Event()

    async def dead(*_: Any) -> ExcCodes | None:
        await awake.wait()
        return None

    async with _served(_device(1, dead), _device(2), framer=FramerType.RTU) as (_, port):
        clock = VirtualClock()
        adapter = _adapter(port, clock, ids=(1, 2), timeout_s=0.3)
        await adapter.open()
        asked = adapter.health().counters["requests"]
        for _ in range(5):
            dead, alive = await adapter.read(["d1/power", "d2/power"])
            assert (dead.value, dead.quality, alive.value) == (None, Quality.BAD, -123.4)
        assert adapter.health().counters["requests"] == asked + 5
        assert "d1: device 1: no answer" in adapter.health().detail
        clock.advance(1.0)
        await adapter.read(["d1/power", "d2/power"])
        assert adapter.health().counters["no_answers"] == 2
        await adapter.close()


async def test_a_device_that_comes_back_is_read_again() -> None:
    awake = asyncio.Event()

    async def sleepy(*_: Any) -> ExcCodes | None:
        await awake.wait()
        return None

    async with _served(_device(1, sleepy), _device(2)) as (_, port):
        clock = VirtualClock()
        adapter = _adapter(port, clock, ids=(1, 2), timeout_s=0.3)
        await adapter.open()
        assert [s.value for s in await adapter.read(["d1/power", "d2/power"])] == [None, -123.4]
        awake.set()
        clock.advance(120)
        assert [s.value for s in await adapter.read(["d1/power", "d2/power"])] == [-123.4, -123.4]
        await adapter.close()


async def test_when_nobody_answers_any_more_the_line_is_opened_again() -> None:
    asleep = asyncio.Event()

    async def falls_asleep(*_: Any) -> ExcCodes | None:
        if asleep.is_set():
            return ExcCodes.GATEWAY_NO_RESPONSE
        return None

    async with _served(_device(1, falls_asleep)) as (_, port):
        clock = VirtualClock()
        adapter = _adapter(port, clock)
        await adapter.open()
        asleep.set()
        for _ in range(2):
            await adapter.read(["d1/power"])
            clock.advance(120)
        with pytest.raises(AdapterDisconnected, match="no answer behind the gateway"):
            await adapter.read(["d1/power"])
        await adapter.close()
        with pytest.raises(AdapterDisconnected, match="no device answers"):
            await adapter.open()
        asleep.clear()
        await adapter.open()
        assert adapter.health().ok
        await adapter.close()


async def test_a_connection_that_breaks_is_disconnected() -> None:
    async with _served(_device(1)) as (server, port):
        adapter = _adapter(port)
        await adapter.open()
        await server.shutdown()
        with pytest.raises(AdapterDisconnected, match="is gone"):
            await adapter.read(["d1/power"])
        await adapter.close()
    with pytest.raises(AdapterDisconnected, match="does not open"):
        await adapter.open()


# -- liars -------------------------------------------------------------------------------------------------------------------


def _answers(rng: random.Random) -> Callable[[bytes], bytes]:
    """A right head, and then anything: wrong lengths, wrong functions, wrong numbers, exceptions, noise, nothing."""

    def answer(request: bytes) -> bytes:
        tid, function = request[:2], request[7]
        pdu = rng.choice(
            [
                bytes([function, 2, 0, 1]),
                bytes([function, 250, 0]),
                bytes([function | 0x80, rng.randrange(256)]),
                bytes([function | 0x80]),
                bytes([function]),
                bytes([rng.randrange(256)]) + rng.randbytes(rng.randrange(8)),
                bytes([function, 2]) + rng.randbytes(300),
            ]
        )
        head = rng.choice([tid, b"\xff\xff"]) + rng.choice([b"\0\0", b"\0\1"]) + rng.choice([len(pdu) + 1, 0, 65_535]).to_bytes(2, "big")
        return rng.choice([head + bytes([rng.choice([1, 9])]) + pdu, rng.randbytes(rng.randrange(40)), b""])

    return answer


@contextlib.asynccontextmanager
async def _liar(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    writers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(ConnectionError):
            while request := await reader.read(300):
                writer.write(answer(request) if len(request) > 8 else b"")
        writers.discard(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in list(writers):
            writer.close()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("scheme", ["tcp", "socket"])
@pytest.mark.parametrize("seed", range(3))
async def test_lies_are_bad_readings_or_a_lost_line_and_nothing_else(seed: int, scheme: str) -> None:
    rng, refusals = random.Random(seed), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # pymodbus raises into the loop when it is lied to
    async with _liar(_answers(rng)) as where:
        clock = VirtualClock()
        adapter = _adapter(f"{scheme}://{where}", clock, timeout_s=0.03)
        for _ in range(12):
            try:
                if not adapter._bus.is_open:
                    await adapter.open()
                samples = await adapter.read(_names(*SENSORS))
                assert all(s.value is None or abs(s.value) < 1e40 for s in samples)
                await adapter.actuate("d1/mode", "manual")
            except AdapterDisconnected:
                await adapter.close()
            except AdapterError as err:
                refusals.append(str(err))
            clock.advance(120)
        await adapter.close()
    assert all("d1/mode" in refusal for refusal in refusals)


# -- serial ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pty_pair() -> Iterator[tuple[str, str, list[bytes]]]:
    """Two ttys joined back to back, and what was injected towards the first."""
    pairs = [os.openpty(), os.openpty()]
    for _, mine in pairs:
        tty.setraw(mine)
    (a, a_tty), (b, b_tty) = pairs
    noise: list[bytes] = []

    def pump(source: int, target: int, extra: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(source, 4096):
                while extra:
                    os.write(target, extra.pop())
                os.write(target, data)

    threads = [threading.Thread(target=pump, args=job, daemon=True) for job in ((a, b, []), (b, a, noise))]
    for thread in threads:
        thread.start()
    yield os.ttyname(a_tty), os.ttyname(b_tty), noise
    for fd in (a_tty, b_tty):
        os.close(fd)
    for thread in threads:
        thread.join(5)
    for fd in (a, b):
        os.close(fd)


async def test_rtu_on_a_tty_with_two_devices_and_noise(pty_pair: tuple[str, str, list[bytes]]) -> None:
    ours, theirs, noise = pty_pair
    server = ModbusSerialServer([_device(1), _device(17)], framer=FramerType.RTU, port=theirs, baudrate=115_200)
    await server.serve_forever(background=True)
    clock = VirtualClock()
    adapter = _adapter(ours, clock, ids=(1, 17))
    await adapter.open()
    assert [s.value for s in await adapter.read(["d1/power", "d17/energy"])] == [-123.4, 123_456_789.0]
    noise.append(b"\x01\x03\xff\x00" * 3)
    await adapter.read(["d1/power"])
    clock.advance(120)
    assert [s.value for s in await adapter.read(["d1/power", "d17/energy"])] == [-123.4, 123_456_789.0]
    await adapter.close()
    await server.shutdown()


# -- options -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": "udp://x:1"}, r"port.*tcp://"),
        ({"port": "tcp://x"}, "port"),
        ({"devices": {}}, "devices"),
        ({"devices": {"d": {"id": 300, "registers": REGISTERS}}}, r"devices\.d\.id"),
        ({"devices": {"d": {"id": 1, "registers": {}}}}, "at least one register"),
        ({"devices": {"d": {"id": 1, "timeout_s": 9, "registers": REGISTERS}}}, "timeout_s"),
        ({"devices": {"d": {"id": 1, "gap": -1, "registers": REGISTERS}}}, "gap"),
        ({"devices": {"d": {"id": 1, "registers": {"r": {"address": 1, "type": "u24"}}}}}, r"devices.*u24"),
        ({"bauds": 1}, "did you mean `baud`"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    right = {"port": "tcp://127.0.0.1:502", "devices": {"d": {"id": 1, "registers": REGISTERS}}}
    with pytest.raises(InputError, match=said):
        open_adapter("plc", right | options, VirtualClock())


class TestModbusUnderContract(AdapterContract):
    option = "connect_s"
    absent: ClassVar = {"port": "tcp://127.0.0.1:1"}

    @pytest.fixture
    async def make_adapter(self) -> AsyncIterator[MakeAdapter]:
        async with _served(_device(1)) as (_, port):

            def make(options: Any, clock: Clock) -> ModbusAdapter:
                devices = {"d1": {"id": 1, "registers": REGISTERS}}
                return open_adapter("plc", {"port": port, "devices": devices, **options}, clock)

            yield make
