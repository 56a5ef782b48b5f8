"""A Modbus line: RTU on a serial port, RTU over TCP, or Modbus TCP. The only module that knows pymodbus.

One request at a time; it neither retries nor reconnects: that is for whoever knows the devices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from adapters.modbus.registers import Block, Table
from adapters.serial_port import Line
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError, MissingDependency

EXCEPTIONS = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "failure of the device",
    5: "acknowledged, not done yet",
    6: "busy",
    7: "refused",
    8: "memory parity error",
    10: "no path through the gateway",
    11: "no answer behind the gateway",
}
_NOT_THERE = (10, 11)
_QUIET_S = 0.2
"""After a missing answer on an RTU line: an answer that is late must not be taken for the next one, which has no number."""


class NoAnswer(AdapterError):
    """A device said nothing in time, or something that is no answer."""


class Refused(AdapterError):
    """A device answered with an exception; `code` as in `EXCEPTIONS`."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


class Bus:
    """One line with its devices, by their numbers (1..247). The port is a device, `socket://host:port` (RTU) or `tcp://host:port`."""

    def __init__(self, name: str, line: Line) -> None:
        self.name = name
        self.line = line
        self._client: Any = None
        self._turn = asyncio.Lock()
        self.counters = dict.fromkeys(("requests", "no_answers", "exceptions", "malformed"), 0)

    @property
    def is_open(self) -> bool:
        return self._client is not None

    async def open(self, timeout_s: float) -> None:
        """Raises AdapterDisconnected when the line cannot be reached, MissingDependency."""
        await asyncio.to_thread(_import_library)
        client = _client(self.line, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                connected = await client.connect()
        except (OSError, TimeoutError, ValueError) as err:
            client.close()
            raise AdapterDisconnected(f"{self.name}: {self.line.port} does not open: {str(err) or 'no answer'}") from err
        except BaseException:
            client.close()
            raise
        if not connected:
            client.close()
            raise AdapterDisconnected(f"{self.name}: {self.line.port} does not open; is it there, and free?")
        self._client = client

    def close(self) -> None:
        """Safe to call twice."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def read(self, device: int, block: Block, timeout_s: float) -> list[int]:
        """`block.count` registers or bits. Raises NoAnswer, Refused, AdapterDisconnected."""
        what = f"read of {block.count} {block.table} from {block.address}"
        call: Callable[..., Awaitable[Any]] = getattr(self._open_client(), _READS[block.table])
        answer = await self._ask(device, what, timeout_s, lambda: call(block.address, count=block.count, device_id=device))
        values: list[int] = [int(value) for value in (answer.bits if block.table in ("coil", "discrete") else answer.registers)]
        if len(values) < block.count or (block.table in ("holding", "input") and len(values) != block.count):
            self.counters["malformed"] += 1
            raise NoAnswer(f"device {device}: {what}: {len(values)} came")
        return values[: block.count]

    async def write(self, device: int, table: Table, address: int, values: list[int], timeout_s: float, *, multiple: bool = False) -> None:
        """One coil, or one or more holding registers. Raises NoAnswer, Refused, AdapterDisconnected."""
        client = self._open_client()
        what = f"write of {table} {address}"

        def call() -> Awaitable[Any]:
            if table == "coil":
                return client.write_coil(address, bool(values[0]), device_id=device)  # type: ignore[no-any-return]
            if len(values) == 1 and not multiple:
                return client.write_register(address, values[0], device_id=device)  # type: ignore[no-any-return]
            return client.write_registers(address, values, device_id=device)  # type: ignore[no-any-return]

        await self._ask(device, what, timeout_s, call)

    async def _ask(self, device: int, what: str, timeout_s: float, call: Callable[[], Awaitable[Any]]) -> Any:
        from pymodbus.exceptions import ConnectionException, ModbusException

        async with self._turn:
            client = self._open_client()
            if not client.connected:
                raise AdapterDisconnected(f"{self.name}: {self.line.port} is gone")
            self.counters["requests"] += 1
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await call()
            except ConnectionException as err:
                raise AdapterDisconnected(f"{self.name}: {self.line.port} is gone: {err}") from err
            except (ModbusException, TimeoutError, ValueError, OSError) as err:
                await self._quiet(client)
                raise NoAnswer(f"device {device}: no answer to the {what} within {timeout_s:g} s") from err
            return self._checked(device, what, answer)

    async def _quiet(self, client: Any) -> None:
        self.counters["no_answers"] += 1
        if not client.connected:
            raise AdapterDisconnected(f"{self.name}: {self.line.port} is gone")
        if not self.line.port.startswith("tcp://"):
            await asyncio.sleep(_QUIET_S)

    def _checked(self, device: int, what: str, answer: Any) -> Any:
        if not answer.isError():
            return answer
        code = int(getattr(answer, "exception_code", 0))
        said = f"device {device}: {what}: {EXCEPTIONS.get(code, 'unknown exception')} (exception {code})"
        self.counters["exceptions"] += 1
        raise NoAnswer(said) if code in _NOT_THERE else Refused(code, said)

    def _open_client(self) -> Any:
        if self._client is None:
            raise AdapterDisconnected(f"{self.name}: not open")
        return self._client


_READS = {
    "holding": "read_holding_registers",
    "input": "read_input_registers",
    "coil": "read_coils",
    "discrete": "read_discrete_inputs",
}


def check_port(line: Line, name: str) -> None:
    """Raises InputError for a line that cannot be."""
    scheme, found, rest = line.port.partition("://")
    if not found:
        line.check(name)
        return
    host, _, number = rest.rpartition(":")
    if scheme not in ("tcp", "socket") or not host or not number.isdecimal() or not 0 < int(number) < 65_536:
        raise InputError(
            f"{name}.options.port: expected a device such as /dev/ttyUSB0, tcp://host:502 (Modbus TCP) or socket://host:port "
            f"(RTU over TCP), got `{line.port}`"
        )


def _import_library() -> None:
    """In a thread: importing it takes longer than the event loop may stand still."""
    try:
        import pymodbus.client  # noqa: F401
    except ImportError as err:
        raise MissingDependency("pymodbus", "modbus") from err


def _client(line: Line, timeout_s: float) -> Any:
    """Made by pymodbus: without retries and without reconnecting by itself."""
    from pymodbus import FramerType
    from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient

    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # what fails is told by exceptions, once
    scheme, found, rest = line.port.partition("://")
    client: Any
    if found:
        host, _, number = rest.rpartition(":")
        framer = FramerType.SOCKET if scheme == "tcp" else FramerType.RTU
        client = AsyncModbusTcpClient(
            host.strip("[]"), framer=framer, port=int(number), timeout=timeout_s, retries=0, reconnect_delay=0, name="edge-runtime"
        )
    else:
        client = AsyncModbusSerialClient(
            line.port,
            baudrate=line.baud,
            bytesize=int(line.frame[0]),
            parity=line.frame[1],
            stopbits=int(line.frame[2]),
            timeout=timeout_s,
            retries=0,
            reconnect_delay=0,
            name="edge-runtime",
        )
    client.set_max_no_responses(2**31)
    return client
