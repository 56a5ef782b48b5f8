"""The emulated sensor node over its UART and CoAP: round trips, streaming, model updates. `edge-runtime bench node`.

QEMU does not throttle a UART: what a wire at 115,200 baud would take for the same bytes stands beside each figure as its reference.
Instructions and times under an emulator say nothing of hardware.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from adapters.coap.node import CoapNode
from adapters.firmware.emulator import Emulator
from adapters.microcontroller.frames import wire_time_s
from adapters.microcontroller.node import SerialNode
from adapters.node.messages import NodeReading, Notice, Result
from adapters.node.push import after_reset
from benchmarks.rows import row
from models.export_c.export import pack
from models.export_c.network import Layer, Network, Operator, Rounding, Shape, Tensor, Window

_BAUD = 115_200
_TRIPS = 1000
_INFERENCES = 300
_STREAM_S = 5.0
_WARM_UP = 50


class _Heard:
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def on_reading(self, reading: NodeReading) -> None:
        self.numbers.append(reading.number)

    def on_result(self, result: Result) -> None: ...

    def on_notice(self, notice: Notice) -> None: ...

    def on_lost(self, reason: str) -> None: ...


def run() -> dict[str, Any]:
    """About 30 s. Needs qemu-system-arm and a compiler for Arm."""
    with Emulator() as emulator:
        emulator.set_temperature(21.5)
        uart = asyncio.run(_uart(emulator))
        coap = asyncio.run(_coap(emulator))
    return {"rows": uart + coap}


async def _uart(emulator: Emulator) -> list[dict[str, Any]]:
    node, heard = SerialNode(emulator.serial_url, _BAUD), _Heard()
    await node.open(heard)
    ping = await _trips(lambda: node.ping(b"12345678"), _TRIPS)
    blob = _model(2)
    upload_ms = await _milliseconds(lambda: node.upload(blob, 2, _silent))
    await _start(node)
    inputs = bytes((await node.model()).inputs)
    infer = await _trips(lambda: node.infer(inputs), _INFERENCES)
    rate, lost = await _stream(node, heard)
    await node.rollback()
    await node.close()
    return [
        row("UART ping of 8 bytes, p50", ping[0], "ms", wire_time_s(32, _BAUD) * 1e3, "<= 0.6"),
        row("UART ping of 8 bytes, p99", ping[1], "ms"),
        row(f"UART inference of {len(inputs)} bytes, p50", infer[0], "ms", wire_time_s(len(inputs) + 35, _BAUD) * 1e3, "<= 3.5"),
        row(f"UART inference of {len(inputs)} bytes, p99", infer[1], "ms"),
        row("UART stream at a period of 1 ms", rate, "frames/s", 1 / wire_time_s(23, _BAUD), ">= 900"),
        row("UART stream: frames lost", lost, "", None, "0"),
        row(f"UART model update of {len(blob)} bytes", upload_ms, "ms", wire_time_s(len(blob), _BAUD) * 1e3, "<= 200"),
    ]


async def _coap(emulator: Emulator) -> list[dict[str, Any]]:
    node = CoapNode(f"coap://127.0.0.1:{emulator.coap_port}")
    await node.open(_Heard())
    get = await _trips(node.read, _TRIPS)
    bare = await asyncio.to_thread(_bare_gets, emulator.coap_port)
    blob = _model(3)
    upload_ms = await _milliseconds(lambda: node.upload(blob, 3, _silent))
    await node.close()
    return [
        row("CoAP GET /temp, p50", get[0], "ms", bare[0], "<= 1.5"),
        row("CoAP GET /temp, p99", get[1], "ms", bare[1], "<= 8"),
        row(f"CoAP model update of {len(blob)} bytes", upload_ms, "ms", None, "<= 50"),
    ]


async def _start(node: SerialNode) -> None:
    boots = (await node.hello()).boots
    await node.trial(600)
    await after_reset(node, boots)


async def _stream(node: SerialNode, heard: _Heard) -> tuple[float, int]:
    """Frames per second, and how many of the numbered samples between the first and the last did not come."""
    await node.subscribe(1, readings=True, results=False)
    heard.numbers.clear()
    started = perf_counter()
    await asyncio.sleep(_STREAM_S)
    rate = len(heard.numbers) / (perf_counter() - started)
    await node.subscribe(0, readings=True, results=False)
    return rate, node.counters()["events_missed"]


async def _trips(call: Callable[[], Awaitable[object]], count: int) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds."""
    for _ in range(_WARM_UP):
        await call()
    return _percentiles([await _milliseconds(call) for _ in range(count)])


async def _milliseconds(call: Callable[[], Awaitable[object]]) -> float:
    started = perf_counter()
    await call()
    return (perf_counter() - started) * 1e3


def _bare_gets(port: int) -> tuple[float, float]:
    """The same GET as one datagram there and one back, without a CoAP library."""
    times = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(2.0)
        link.connect(("127.0.0.1", port))
        for number in range(_TRIPS):
            started = perf_counter()
            link.send(b"\x50\x01" + (0x4000 + number).to_bytes(2, "big") + b"\xb4temp")
            link.recv(2048)
            times.append((perf_counter() - started) * 1e3)
    return _percentiles(times)


def _percentiles(times: list[float]) -> tuple[float, float]:
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def _model(version: int) -> bytes:
    """About 8 KB: three convolutions over a window of 64 samples of 3 axes, and a decision."""
    import numpy as np

    random, scale = np.random.default_rng(1), np.float32(0.05)
    shapes = [Shape(1, 64, 3), Shape(1, 31, 8), Shape(1, 15, 16), Shape(1, 7, 32), Shape(1, 1, 22)]
    kernels = [(1, 3), (1, 3), (1, 3), (1, 7)]
    tensors = [Tensor(f"t{index}", shape, scale, 0) for index, shape in enumerate(shapes)]
    layers = []
    for index, (given, made, kernel) in enumerate(zip(tensors, tensors[1:], kernels, strict=False)):
        size = (made.shape.c, *kernel, given.shape.c)
        layers.append(
            Layer(
                Operator.CONV,
                f"conv{index}",
                (given,),
                made,
                Window(kernel, (1, 2)),
                weights=random.integers(-127, 128, size).astype(np.int8),
                weight_scales=np.full(made.shape.c, 0.01, np.float32),
                bias=np.zeros(made.shape.c, np.int32),
            )
        )
    return pack(Network(layers, tensors[0], tensors[-1]), Rounding.HALF_EVEN, name="bench", version=version).data


def _silent(done: int, total: int) -> None: ...


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
