"""`node emulate`: an emulated node, a gateway beside it, and the whole way of a temperature from the sensor to a pin, there and back.

Heat goes in through QEMU's control socket. The firmware reads it over I2C and tells it over its UART and over CoAP; the node infers, the
gateway infers, and a rule on each moves a line of the node. The lines are read from the pins' register, not from what the node says.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from adapters.firmware.emulator import Emulator
from edge_runtime.demo.stage import GatewayStage, run
from edge_runtime.errors import DeadlineExceeded, EdgeRuntimeError, InputError

ROOM_CELSIUS, HOT_CELSIUS = 21.5, 82.5
LEASE_S = 2
ACTIONS = ("temperature C", "line N", "reset", "power-cycle")

_STEP_TIMEOUT_S = 30.0
_POLL_S = 0.01
_NEAR_CELSIUS = 0.1
_FAN, _LAMP = 0, 1

_GATEWAY_FILE = f"""\
schema: 1
gateway: {{id: gw-node}}
adapters:
  uart: {{driver: microcontroller, options: {{port: "$SERIAL", period_ms: 50, node_inference: true, lines: {{fan: {{line: {_FAN}, lease_s: {LEASE_S}}}}}}}}}
  coap: {{driver: coap, options: {{uri: "$COAP", period_ms: 50, lines: {{lamp: {{line: {_LAMP}, lease_s: {LEASE_S}}}}}}}}}
sensors:
  temperature:      {{adapter: uart, channel: temperature}}
  coap_temperature: {{adapter: coap, channel: temperature}}
  node_says:        {{adapter: uart, channel: inference/top}}
actuators:
  fan:  {{adapter: uart, channel: fan}}
  lamp: {{adapter: coap, channel: lamp}}
deployment: deployment.yaml
"""  # noqa: E501
_DEPLOYMENT = """\
schema: 1
revision: 1
sensors:
  temperature:      {unit: degC}
  coap_temperature: {unit: degC}
  node_says:        {unit: count}
models:
  thermal: {path: "zoo:thermal"}
pipelines:
  thermal:
    input: [temperature]
    window: {size: 16, hop: 1}
    model: thermal
    output: thermal
rules:
  - rule: gateway_sees_heat
    when: 'thermal != "normal"'
    then: {"on": fan}
    until: 'thermal == "normal"'
    note: The model on the gateway says rising or hot, so the fan runs. Its command goes over the UART.
  - rule: node_sees_heat
    when: node_says >= 1
    then: {"on": lamp}
    until: node_says < 1
    note: The node's own model says so, and the lamp is lit. Its command goes over CoAP.
actuators:
  fan:  {states: ["off", "on"], safe_state: "off"}
  lamp: {states: ["off", "on"], safe_state: "off"}
"""


class Step(msgspec.Struct, frozen=True):
    """One thing that was seen; `after_ms` counts from what caused it, as found by asking every 10 ms."""

    seen: str
    by: str
    after_ms: int


class Outcome(msgspec.Struct, frozen=True):
    """How it went. `problem` is empty when all of it came true."""

    rounds: int
    steps: tuple[Step, ...]
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem

    def table(self) -> list[str]:
        """The end, for people."""
        if self.problem:
            return [f"not so: {self.problem}"]
        rounds = "once" if self.rounds == 1 else f"{self.rounds} times"
        return [f"heated and cooled {rounds}; every step came true, read back from the emulator's pins"]


Say = Callable[[str], None]


def emulate(folder: Path, duration_s: float, say: Say) -> Outcome:
    """Heats and cools the node until the time is over, at least once; ends with the gateway's death, of which the node knows by its leases.

    Raises MissingEmulator, MissingCompiler.
    """
    return run(_emulate(folder, duration_s, say))


async def _emulate(folder: Path, duration_s: float, say: Say) -> Outcome:
    begun = time.monotonic()
    node = await asyncio.to_thread(Emulator)
    stage = GatewayStage(folder)
    story = _Story(node, stage, say)
    try:
        prepare(folder, node)
        await story.begin()
        rounds = 0
        while not rounds or time.monotonic() - begun < duration_s - LEASE_S:
            await story.heat()
            await story.cool()
            rounds += 1
        await story.leave_alone()
        return Outcome(rounds, tuple(story.steps))
    except EdgeRuntimeError as err:
        return Outcome(0, tuple(story.steps), str(err))
    finally:
        await stage.close()
        await asyncio.to_thread(node.close)


def prepare(folder: Path, node: Emulator) -> None:
    """Writes the gateway file and the deployment."""
    text = _GATEWAY_FILE.replace("$SERIAL", node.serial_url).replace("$COAP", coap_uri(node))
    (folder / "gateway.yaml").write_text(text)
    (folder / "deployment.yaml").write_text(_DEPLOYMENT)


def coap_uri(node: Emulator) -> str:
    """Where the node's CoAP is reached from this machine."""
    return f"coap://127.0.0.1:{node.coap_port}"


class _Story:
    """The steps; each waits for a fact and notes how long it took."""

    def __init__(self, node: Emulator, stage: GatewayStage, say: Say) -> None:
        self.steps: list[Step] = []
        self._node, self._stage, self._say = node, stage, say
        self._caused = time.monotonic()

    async def begin(self) -> None:
        self._say(f"An Arm Cortex-M3 runs our firmware under QEMU: UART {self._node.serial_url}, CoAP {coap_uri(self._node)}")
        await self._inject(ROOM_CELSIUS)
        await self._stage.start_gateway()
        self._say("A gateway holds it by both; its model and the node's own are the same network.")
        await self._measured(ROOM_CELSIUS)
        await self._judged(hot=False)

    async def heat(self) -> None:
        await self._inject(HOT_CELSIUS)
        await self._everything(HOT_CELSIUS, hot=True)

    async def cool(self) -> None:
        await self._inject(ROOM_CELSIUS)
        await self._everything(ROOM_CELSIUS, hot=False)

    async def leave_alone(self) -> None:
        """The gateway dies with the fan on: the node gives the line back by itself."""
        await self._inject(HOT_CELSIUS)
        await self._moved(1)
        await self._stage.kill("gateway")
        self._caused = time.monotonic()
        self._say(f"The gateway is killed with SIGKILL; the node's lines are leased for {LEASE_S} s.")
        await asyncio.gather(self._pin(_FAN, 0, "the node's own lease"), self._pin(_LAMP, 0, "the node's own lease"))

    async def _everything(self, celsius: float, *, hot: bool) -> None:
        await asyncio.gather(self._measured(celsius), self._judged(hot=hot), self._moved(int(hot)))

    async def _inject(self, celsius: float) -> None:
        await asyncio.to_thread(self._node.set_temperature, celsius)
        self._caused = time.monotonic()
        self._say(f"{celsius:g} degC is put on the sensor through QEMU's control socket.")

    async def _measured(self, celsius: float) -> None:
        await asyncio.gather(
            self._status(f"{celsius:g} degC", "I2C and UART", lambda s: _near(s, "temperature", celsius)),
            self._status(f"{celsius:g} degC", "I2C and CoAP", lambda s: _near(s, "coap_temperature", celsius)),
        )

    async def _judged(self, *, hot: bool) -> None:
        seen = "rising or hot" if hot else "normal"
        await asyncio.gather(
            self._status(seen, "the node's model", lambda s: (_value(s, "node_says") or 0) >= 1 if hot else _value(s, "node_says") == 0),
            self._status(seen, "the gateway's model", lambda s: _label(s) in ("rising", "hot") if hot else _label(s) == "normal"),
        )

    async def _moved(self, level: int) -> None:
        await asyncio.gather(
            self._pin(_FAN, level, "gateway's model, rule, UART"), self._pin(_LAMP, level, "node's model, gateway's rule, CoAP")
        )

    async def _status(self, seen: str, by: str, true: Callable[[dict[str, Any]], bool]) -> None:
        async def look() -> bool:
            status = await self._stage.status()
            return bool(status.get("ready")) and true(status)

        await self._until(seen, by, look)

    async def _pin(self, number: int, level: int, by: str) -> None:
        name = "fan" if number == _FAN else "lamp"

        async def look() -> bool:
            return await asyncio.to_thread(self._node.line, number) == level

        await self._until(f"{name} {'on' if level else 'off'}, pin {number} is {level}", by, look)

    async def _until(self, seen: str, by: str, look: Callable[[], Any]) -> None:
        caused = self._caused
        deadline = time.monotonic() + _STEP_TIMEOUT_S
        while not await look():
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{seen}, by {by}: not within {_STEP_TIMEOUT_S:g} s; the log is {self._stage.log_path('gateway')}")
            await asyncio.sleep(_POLL_S)
        step = Step(seen, by, round((time.monotonic() - caused) * 1000))
        self.steps.append(step)
        self._say(f"{step.after_ms:8d} ms  {seen:24s} {by}")


def _near(status: dict[str, Any], channel: str, celsius: float) -> bool:
    value = _value(status, channel)
    return value is not None and abs(value - celsius) < _NEAR_CELSIUS


def _value(status: dict[str, Any], channel: str) -> float | None:
    value: float | None = status["channels"].get(channel, {}).get("value")
    return value


def _label(status: dict[str, Any]) -> str | None:
    label: str | None = status["pipelines"].get("thermal", {}).get("label")
    return label


def answers(node: Emulator, lines: Iterable[str]) -> Iterator[str]:
    """What comes of each line of `ACTIONS`, as JSON: the temperature set, a line's level read, or an error. Ends with the lines."""
    for line in lines:
        words = line.split()
        if words:
            try:
                yield json.dumps(_act(node, words))
            except (EdgeRuntimeError, ValueError) as err:
                yield json.dumps({"error": str(err)})


def _act(node: Emulator, words: list[str]) -> dict[str, Any]:
    match words:
        case ["temperature", celsius]:
            node.set_temperature(float(celsius))
            return {"temperature": float(celsius)}
        case ["line", number]:
            return {"line": int(number), "level": node.line(int(number))}
        case ["reset"]:
            node.reset()
        case ["power-cycle"]:
            node.power_cycle()
        case _:
            raise InputError(f"expected {', '.join(f'`{action}`' for action in ACTIONS)}, got `{' '.join(words)[:60]}`")
    return {"done": words[0]}
