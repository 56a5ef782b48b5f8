"""Devices played on a real broker: what they answer is what the makers' own ones answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from cloud_sync.mqtt import MqttOptions, MqttSession, open_transport

STATUS = {
    "ble": {},
    "input:0": {"id": 0, "state": False},
    "switch:0": {
        "id": 0,
        "source": "WS_in",
        "output": False,
        "apower": 0.0,
        "voltage": 232.8,
        "current": 0.0,
        "aenergy": {"by_minute": [0.0, 0.0, 0.0], "minute_ts": 1707326934, "total": 110.046},
        "temperature": {"tC": 30.3, "tF": 86.6},
    },
    "sys": {"uptime": 63, "ram_free": 113080},
}


class Plug:
    """A Shelly Plus 1PM by its RPC: answers GetStatus, switches, and notifies."""

    def __init__(self, port: int, prefix: str = "shellyplus1pm-aabbcc") -> None:
        self.prefix, self.port = prefix, port
        self.status = json.loads(json.dumps(STATUS))
        self.calls: list[dict[str, Any]] = []
        self.silent_s = 0.0
        self.session: MqttSession
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.session = await client(self.port, self.prefix)
        await self.session.subscribe(f"{self.prefix}/rpc", self._called)
        await self.session.publish(f"{self.prefix}/online", b"true", retain=True)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.close()

    def speak(self, every_s: float = 0.01) -> None:
        self._spawn(self._speaking(every_s))

    async def notify(self, **changed: Any) -> None:
        params = {"ts": 1707326934.25, "switch:0": changed, "input:0": {"id": 0, "state": False}}
        message = {"src": self.prefix, "dst": "x", "method": "NotifyStatus", "params": params}
        await self.session.publish(f"{self.prefix}/events/rpc", json.dumps(message).encode())

    async def _speaking(self, every_s: float) -> None:
        power = 0.0
        while True:
            power += 1
            await self.notify(apower=power)
            await asyncio.sleep(every_s)

    def _called(self, _topic: str, payload: bytes) -> None:
        call = json.loads(payload)
        self.calls.append(call)
        if call["method"] == "Shelly.GetStatus":
            self._spawn(self._answer(call, self.status))
        elif call["method"] == "Switch.Set":
            was, self.status["switch:0"]["output"] = self.status["switch:0"]["output"], call["params"]["on"]
            self._spawn(self._answer(call, {"was_on": was}))
            self._spawn(self.notify(output=call["params"]["on"]))

    async def _answer(self, call: dict[str, Any], result: Any) -> None:
        await asyncio.sleep(self.silent_s)
        message = {"id": call["id"], "src": self.prefix, "dst": call["src"], "result": result}
        await self.session.publish(f"{call['src']}/rpc", json.dumps(message).encode())

    def _spawn(self, job: Any) -> None:
        task = asyncio.ensure_future(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def client(port: int, name: str) -> MqttSession:
    return await open_transport(MqttOptions(host="127.0.0.1", port=port, client_id=name, session_expiry_s=0)).connect()
