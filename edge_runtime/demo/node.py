"""The demo's sensor node: our firmware on an emulated microcontroller, where QEMU and a compiler are, and its place in the demo's files."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from edge_runtime.errors import EdgeRuntimeError

ROOM_CELSIUS, HOT_CELSIUS = 21.5, 82.5
FAN_PIN = 0

_ANSWER_S = 10.0

_GATEWAY = {
    "adapters": "  node: {{driver: microcontroller, options: {{port: {port}, node_inference: true, lines: {lines}}}}}\n",
    "sensors": "  motor_temperature: {{adapter: node, channel: temperature}}\n  motor_state: {{adapter: node, channel: inference/top}}\n",
    "actuators": "  fan: {{adapter: node, channel: fan}}\n",
}
_LINES = f"{{fan: {{line: {FAN_PIN}, states: [stopped, running], lease_s: 1}}}}"
_DEPLOYMENT = {
    "sensors": "  motor_temperature: {unit: degC, rate_hz: 10}\n  motor_state: {unit: count, rate_hz: 10}\n",
    "rules": """\
  - rule: motor_hot
    when: motor_state >= 1
    then: {start: fan}
    until: motor_state < 1 for 1s
    note: The model on the sensor node says rising or hot, so the fan runs until it says normal again.
""",
    "actuators": "  fan: {safe_state: stopped, states: [stopped, running]}\n",
}


@dataclass(frozen=True, slots=True)
class EmulatedNode:
    """A running `edge-runtime node emulate --alone`: what it said of itself, and orders to it."""

    process: asyncio.subprocess.Process
    port: str

    async def heat(self, celsius: float) -> None:
        """What its sensor measures from now on."""
        await self._order(f"temperature {celsius}")

    async def fan(self) -> int:
        """The level of the fan's pin, from the emulator's register."""
        return int((await self._order(f"line {FAN_PIN}"))["level"])

    def gateway_file(self, text: str) -> str:
        """The gateway file with the node in it."""
        return _added(text, {section: lines.format(port=json.dumps(self.port), lines=_LINES) for section, lines in _GATEWAY.items()})

    def deployment(self, text: str) -> str:
        """The deployment with the node's channels and its rule."""
        return _added(text, _DEPLOYMENT)

    async def _order(self, text: str) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(text.encode() + b"\n")
        async with asyncio.timeout(_ANSWER_S):
            line = await stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it has ended"}
        if "error" in answer:
            raise EdgeRuntimeError(f"the emulated node: `{text}`: {answer['error']}")
        return answer


def _added(text: str, sections: dict[str, str]) -> str:
    for section, lines in sections.items():
        text = text.replace(f"\n{section}:\n", f"\n{section}:\n{lines}", 1)
    return text
